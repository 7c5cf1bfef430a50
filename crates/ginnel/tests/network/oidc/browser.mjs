// A person at a browser: signs in at a provider of the tests.
//
//   node browser.mjs PORT_OF_CHROMEDRIVER URL NAME SCREENSHOT_PREFIX
//
// Fills in what it is asked and presses what it finds, one screenshot each page, until the
// browser is back at 127.0.0.1 or the provider says that all is done.

import { Driver } from "./driver.mjs";

const [port, url, name, prefix] = process.argv.slice(2);
const PAGES_MAX = 10;

const driver = await Driver.open(port);
try {
  await driver.go(url);
  for (let page = 1; ; page += 1) {
    await driver.shoot(`${prefix}-${page}.png`);
    const here = await driver.url();
    console.log(`page ${page}: ${await driver.title()}`);
    if (here.startsWith("http://127.0.0.1")) break;
    if (page === PAGES_MAX) throw new Error(`no end in sight at ${here}`);
    if (!(await driver.answer(name))) break;
  }
} finally {
  await driver.close();
}
