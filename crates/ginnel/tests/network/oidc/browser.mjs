// A person at a browser: signs in at a provider of the tests by WebDriver and Chromium.
//
//   node browser.mjs PORT_OF_CHROMEDRIVER URL NAME SCREENSHOT_PREFIX
//
// Fills in what it is asked and presses what it finds, one screenshot each page, until the
// browser is back at 127.0.0.1 or the provider says that all is done.

import { writeFileSync } from "node:fs";

const [port, url, name, prefix] = process.argv.slice(2);
const ELEMENT = "element-6066-11e4-a52e-4f735466cecf";
const PAGES_MAX = 10;

async function call(method, path, body) {
  const response = await fetch(`http://127.0.0.1:${port}${path}`, {
    method,
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const { value } = await response.json();
  if (!response.ok) throw new Error(`${path}: ${value.message}`);
  return value;
}

const options = { args: ["--headless=new", "--no-sandbox", "--disable-gpu", "--lang=en"] };
const capabilities = { acceptInsecureCerts: true, "goog:chromeOptions": options };
const begun = await call("POST", "/session", { capabilities: { alwaysMatch: capabilities } });
const session = `/session/${begun.sessionId}`;

async function find(selector) {
  const found = await call("POST", `${session}/elements`, {
    using: "css selector",
    value: selector,
  });
  return found[0]?.[ELEMENT];
}

async function type(element, text) {
  await call("POST", `${session}/element/${element}/value`, { text });
}

try {
  await call("POST", `${session}/url`, { url });
  for (let page = 1; ; page += 1) {
    const image = await call("GET", `${session}/screenshot`);
    writeFileSync(`${prefix}-${page}.png`, Buffer.from(image, "base64"));
    const here = await call("GET", `${session}/url`);
    const title = await call("GET", `${session}/title`);
    console.log(`page ${page}: ${title}`);
    const button = await find("button[type=submit]");
    if (here.startsWith("http://127.0.0.1") || button === undefined) break;
    if (page === PAGES_MAX) throw new Error(`no end in sight at ${here}`);
    const login = await find("input[name=login]");
    if (login !== undefined) {
      await type(login, name);
      await type(await find("input[name=password]"), "any password");
    }
    await call("POST", `${session}/element/${button}/click`, {});
  }
} finally {
  await call("DELETE", session);
}
