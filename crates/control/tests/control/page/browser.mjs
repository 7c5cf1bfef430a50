// A person at the web page: goes through it by WebDriver and Chromium, as a reader of the story
// below would, and prints what the test looks at once more.
//
//   node browser.mjs PORT_OF_CHROMEDRIVER URL LOGIN_TOKEN FOLDER_OF_SCREENSHOTS

import { writeFileSync } from "node:fs";
import { join } from "node:path";

const [port, base, token, folder] = process.argv.slice(2);
const ELEMENT = "element-6066-11e4-a52e-4f735466cecf";
const WAIT_MAX = 60_000;
const TAB = "\uE004";

async function call(method, path, body) {
  const response = await fetch(`http://127.0.0.1:${port}${path}`, {
    method,
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const { value } = await response.json();
  if (!response.ok) throw new Error(`${path}: ${value.message}`);
  return value;
}

const capabilities = {
  acceptInsecureCerts: true,
  "goog:chromeOptions": {
    args: [
      "--headless=new",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-dev-shm-usage",
      "--lang=en",
      "--window-size=1280,900",
    ],
  },
  "goog:loggingPrefs": { browser: "ALL" },
};
const begun = await call("POST", "/session", { capabilities: { alwaysMatch: capabilities } });
const session = `/session/${begun.sessionId}`;

const open = (path) => call("POST", `${session}/url`, { url: `${base}${path}` });
const run = (script, ...args) => call("POST", `${session}/execute/sync`, { script, args });
const devtools = (cmd, params) => call("POST", `${session}/goog/cdp/execute`, { cmd, params });
const switchTo = (handle) => call("POST", `${session}/window`, { handle });

async function find(selector) {
  return until(selector, async () => {
    const value = { using: "css selector", value: selector };
    return (await call("POST", `${session}/elements`, value))[0]?.[ELEMENT];
  });
}

// What is live may be replaced between two requests, and what has just opened may not be there yet.
function act(selector, action) {
  return until(`an action at ${selector}`, async () => {
    try {
      await action(`${session}/element/${await find(selector)}`);
      return true;
    } catch (error) {
      if (/stale|not interactable|intercepted/.test(error.message)) return false;
      throw error;
    }
  });
}

function click(selector) {
  return act(selector, (element) => call("POST", `${element}/click`, {}));
}

function fill(selector, text) {
  return act(selector, async (element) => {
    await call("POST", `${element}/clear`, {});
    await call("POST", `${element}/value`, { text });
  });
}

async function until(what, check) {
  for (const end = Date.now() + WAIT_MAX; ; ) {
    const found = await check();
    if (found) return found;
    if (Date.now() > end) throw new Error(`waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

function shows(text) {
  const script = "return document.body.innerText.includes(arguments[0])";
  return until(`the text ${text}`, () => run(script, text));
}

async function shoot(name) {
  const image = await call("GET", `${session}/screenshot`);
  writeFileSync(join(folder, `${name}.png`), Buffer.from(image, "base64"));
}

function hold(what, is) {
  if (!is) throw new Error(`it does not hold that ${what}`);
}

// What is wrong with a page for whoever cannot see it well or has no mouse.
const INACCESSIBLE = `
  const faults = [];
  for (const field of document.querySelectorAll("input:not([type=hidden]), select")) {
    if (field.labels.length === 0) faults.push("no label: " + field.outerHTML);
  }
  for (const landmark of ["header", "main", "h1"]) {
    const count = document.querySelectorAll(landmark).length;
    if (count !== 1) faults.push(count + " of " + landmark);
  }
  if (document.documentElement.lang !== "en") faults.push("no language");
  const light = (color) => {
    const parts = color.match(/[0-9.]+/g).slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((part) =>
      part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at !== null; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (color !== "rgba(0, 0, 0, 0)") return color;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) =>
      node.nodeType === Node.TEXT_NODE && node.data.trim() !== "");
    if (!own) continue;
    const pair = [light(getComputedStyle(element).color), light(ground(element))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < 4.5) faults.push("contrast " + ratio + ": " + element.outerHTML.slice(0, 80));
  }
  return faults;
`;

async function isAccessible(page) {
  const faults = await run(INACCESSIBLE);
  hold(`${page} is accessible: ${faults.join("; ")}`, faults.length === 0);
}

try {
  // A link with a token behind its # fills the form, and the token leaves the address.
  await open(`/ui/sign-in#${token}`);
  const filled = "return document.querySelector('input[name=token]').value";
  await until("the token in its field", async () => (await run(filled)) === token);
  hold("the address is clean", !(await call("GET", `${session}/url`)).includes("#"));
  await isAccessible("the sign-in page");
  await shoot("sign-in");
  await click("form[action='/ui/sign-in/token'] button");
  await shows("Signed in until");

  // The keyboard meets the link to the content first.
  const press = [{ type: "keyDown", value: TAB }, { type: "keyUp", value: TAB }];
  const keys = { actions: [{ type: "key", id: "keyboard", actions: press }] };
  await call("POST", `${session}/actions`, keys);
  hold("the skip link comes first", await run("return document.activeElement.className === 'skip'"));

  // What somebody changes in one window is seen in the other without a reload.
  const first = await call("GET", `${session}/window`);
  await open("/ui/nodes");
  await shows("web");
  await run("window.loaded = 'once'");
  const second = await call("POST", `${session}/window/new`, { type: "window" });
  await switchTo(second.handle);
  await open("/ui/nodes?name=web");
  await click("td[data-label=Change] summary");
  await fill("form[action^='/ui/nodes/'] input[name=name]", "renamed");
  await shoot("change");
  await click("form[action^='/ui/nodes/'] button");
  await shows("renamed");
  await call("DELETE", `${session}/window`);
  await switchTo(first);
  await shows("renamed");
  hold("it was not reloaded", (await run("return window.loaded")) === "once");

  // A plain WireGuard client gets a configuration whose key was made in the browser.
  await open("/ui/peers");
  await fill("form[method=post][action='/ui/peers'] input[name=name]", "handset");
  await click("form[method=post][action='/ui/peers'] button");
  await shows("handset");
  await click("td[data-label=Change] details summary");
  await click("form[data-makes-key] button");
  await find("#qr canvas");
  await shoot("configuration");
  hold("the key stays nowhere", (await run("return sessionStorage.length")) === 0);
  const configuration = await run("return document.getElementById('configuration').textContent");
  const modules = await run(`
    const canvas = document.querySelector("#qr canvas");
    const pen = canvas.getContext("2d");
    const rows = [];
    for (let y = 2; y < canvas.height; y += 4) {
      let row = "";
      for (let x = 2; x < canvas.width; x += 4) {
        row += pen.getImageData(x, y, 1, 1).data[0] < 128 ? "1" : "0";
      }
      rows.push(row);
    }
    return rows;
  `);

  // Every page, also on a telephone in the dark.
  const pages = ["", "nodes", "users", "sites", "policy", "peers", "certificates", "audit"];
  for (const page of pages) {
    await open(`/ui/${page}`.replace(/\/$/, ""));
    await isAccessible(page || "home");
    await shoot(`wide-light-${page || "home"}`);
  }
  const metrics = { width: 360, height: 740, deviceScaleFactor: 1, mobile: false };
  await devtools("Emulation.setDeviceMetricsOverride", metrics);
  const features = [{ name: "prefers-color-scheme", value: "dark" }];
  await devtools("Emulation.setEmulatedMedia", { features });
  for (const page of pages) {
    await open(`/ui/${page}`.replace(/\/$/, ""));
    const width = await run("return document.documentElement.scrollWidth");
    hold(`${page} fits 360 pixels, and not ${width}`, width <= 360);
    const ground = await run("return getComputedStyle(document.body).backgroundColor");
    hold(`${page} is dark, and not ${ground}`, ground === "rgb(20, 23, 26)");
    await isAccessible(`${page || "home"} in the dark`);
    await shoot(`narrow-dark-${page || "home"}`);
  }

  await click("form[action='/ui/sign-out'] button");
  await find("input[name=token]");
  await open("/ui/nodes");
  await find("input[name=token]");

  // No script or style was refused, and none failed.
  const entries = await call("POST", `${session}/se/log`, { type: "browser" });
  const severe = entries.filter((entry) => entry.level === "SEVERE");
  hold(`nothing failed: ${JSON.stringify(severe)}`, severe.length === 0);
  console.log(JSON.stringify({ configuration, modules }));
} finally {
  await call("DELETE", session);
}
