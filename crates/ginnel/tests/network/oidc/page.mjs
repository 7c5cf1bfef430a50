// A person at the web page: signs in by the provider of the tests, and looks at the page until it
// sends her away.
//
//   node page.mjs PORT_OF_CHROMEDRIVER URL_OF_THE_PAGE NAME SCREENSHOT_PREFIX
//
// Prints `signed in` and `signed out` as she is, one screenshot each page.

import { Driver } from "./driver.mjs";

const [port, base, name, prefix] = process.argv.slice(2);
const PAGES_MAX = 10;
const WAIT_MAX = 60_000;
// The test does two things meanwhile that it waits for as long.
const VISIT_MAX = 4 * WAIT_MAX;

const driver = await Driver.open(port);
let shots = 0;
const shoot = () => driver.shoot(`${prefix}-${(shots += 1)}.png`);

async function until(what, check, wait = WAIT_MAX) {
  for (const end = Date.now() + wait; !(await check()); ) {
    if (Date.now() > end) throw new Error(`waited in vain for ${what} at ${await driver.url()}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

const isHome = async () => [`${base}/ui`, `${base}/ui/`].includes(await driver.url());
const isSignIn = async () => (await driver.url()) === `${base}/ui/sign-in`;

try {
  await driver.go(`${base}/ui`);
  await until("the sign-in", isSignIn);
  await shoot();
  await driver.click(await driver.find("form[action='/ui/sign-in/provider'] button"));
  await until("the provider", async () => !(await driver.url()).startsWith(base));
  for (let page = 1; !(await isHome()); page += 1) {
    if (page === PAGES_MAX) throw new Error(`no end in sight at ${await driver.url()}`);
    await shoot();
    await driver.answer(name);
  }
  await shoot();
  console.log("signed in");
  const isOut = async () => {
    await driver.go(`${base}/ui`);
    return isSignIn();
  };
  await until("the end of the session", isOut, VISIT_MAX);
  await shoot();
  console.log("signed out");
} finally {
  await driver.close();
}
