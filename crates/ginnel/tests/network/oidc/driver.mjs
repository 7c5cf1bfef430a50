// Chromium, driven by WebDriver, for people at a browser.

import { writeFileSync } from "node:fs";

const ELEMENT = "element-6066-11e4-a52e-4f735466cecf";
const options = {
  args: ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--lang=en"],
};
const capabilities = { acceptInsecureCerts: true, "goog:chromeOptions": options };

export class Driver {
  #port;
  #session;

  // Opens a window by the chromedriver that listens at `port`.
  static async open(port) {
    const driver = new Driver();
    driver.#port = port;
    driver.#session = "";
    const begun = await driver.#call("POST", "/session", {
      capabilities: { alwaysMatch: capabilities },
    });
    driver.#session = `/session/${begun.sessionId}`;
    return driver;
  }

  async #call(method, path, body) {
    const response = await fetch(`http://127.0.0.1:${this.#port}${this.#session}${path}`, {
      method,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const { value } = await response.json();
    if (!response.ok) throw new Error(`${path}: ${value.message}`);
    return value;
  }

  go(url) {
    return this.#call("POST", "/url", { url });
  }

  url() {
    return this.#call("GET", "/url");
  }

  title() {
    return this.#call("GET", "/title");
  }

  async find(selector) {
    const value = { using: "css selector", value: selector };
    return (await this.#call("POST", "/elements", value))[0]?.[ELEMENT];
  }

  type(element, text) {
    return this.#call("POST", `/element/${element}/value`, { text });
  }

  click(element) {
    return this.#call("POST", `/element/${element}/click`, {});
  }

  async shoot(path) {
    const image = await this.#call("GET", "/screenshot");
    writeFileSync(path, Buffer.from(image, "base64"));
  }

  // Fills in what the page of a provider asks and presses its button. Returns whether it has one.
  async answer(name) {
    const button = await this.find("button[type=submit]");
    if (button === undefined) return false;
    const login = await this.find("input[name=login]");
    if (login !== undefined) {
      await this.type(login, name);
      await this.type(await this.find("input[name=password]"), "any password");
    }
    await this.click(button);
    return true;
  }

  close() {
    return this.#call("DELETE", "");
  }
}
