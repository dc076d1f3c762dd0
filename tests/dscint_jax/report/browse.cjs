// Opens a report in Chromium, uses it as a reader would, and prints what was found as JSON.
//
// node browse.cjs PAGE CHROMIUM [FOLDER FOR SCREENSHOTS]
"use strict";
const { chromium } = require("playwright-core");
const axe = require("axe-core");
const { pathToFileURL } = require("node:url");

const [page, executablePath, pictures] = process.argv.slice(2);
const SHOWN = "#cases button";

async function look(browser, width, colorScheme) {
  const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme });
  const tab = await context.newPage();
  const errors = [];
  const requests = [];
  tab.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  tab.on("pageerror", (error) => errors.push(String(error)));
  tab.on("request", (request) => requests.push(request.url().slice(0, 60)));
  await tab.goto(pathToFileURL(page).href);
  const found = { width, colorScheme, errors };
  const cards = tab.locator(SHOWN);
  const said = () => tab.locator(`${SHOWN} .said`).allTextContents();
  const dark = () =>
    tab.evaluate(() => {
      const canvas = document.querySelector("#cases canvas");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return data.reduce((sum, value) => sum + value, 0);
    });
  const settle = async () => {
    await tab.waitForSelector("#cases canvas[data-painted]");
    await tab.waitForTimeout(300);
  };

  found.all = await cards.count();
  found.paintedBefore = await tab.locator("#cases canvas[data-painted]").count();
  if (pictures) await tab.screenshot({ path: `${pictures}/${width}-${colorScheme}-top.png` });
  found.overflow = await tab.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  await tab.locator("#gallery").scrollIntoViewIfNeeded();
  await cards.first().scrollIntoViewIfNeeded();
  await settle();
  found.paintedAfter = await tab.locator("#cases canvas[data-painted]").count();

  await tab.evaluate(axe.source);
  const { violations } = await tab.evaluate(() => axe.run());
  found.faults = violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, nodes }) => `${id}: ${nodes[0].html.slice(0, 200)}`);

  await tab.selectOption("#verdict", "wrong");
  found.wrong = await cards.count();
  found.count = await tab.locator("#count").textContent();
  await tab.selectOption("#verdict", "");
  await tab.selectOption("#order", "falling");
  found.falling = (await said()).map((text) => Number(text.split("p = ")[1]));
  await tab.selectOption("#order", "split");

  await settle();
  const before = await dark();
  await tab.locator("#window").fill("0.5");
  await settle();
  found.windowChanges = before !== (await dark());
  const plain = await dark();
  await tab.locator("#opacity").fill("0.7");
  await settle();
  found.opacityChanges = plain !== (await dark());

  await cards.first().focus();
  await tab.keyboard.press("ArrowRight");
  await tab.keyboard.press("ArrowRight");
  found.focused = await tab.evaluate(
    (shown) => [...document.querySelectorAll(shown)].indexOf(document.activeElement), SHOWN);
  found.pressed = await tab.locator(`${SHOWN}[aria-pressed="true"]`).count();
  await tab.keyboard.press("o");
  found.opacity = await tab.locator("#opacity").inputValue();
  await settle();
  if (pictures) await tab.screenshot({ path: `${pictures}/${width}-${colorScheme}-gallery.png` });
  await tab.keyboard.press("/");
  await tab.keyboard.type("no such study");
  found.none = await cards.count();
  found.typed = await tab.locator("#find").inputValue();
  await tab.keyboard.press("Escape");
  found.left = await tab.evaluate(() => document.activeElement === document.body);
  await tab.locator("#find").fill("");
  found.restored = await cards.count();
  if (pictures) {
    await tab.locator("#opacity").fill("0.5");
    await tab.locator("#window").fill("1.2");
    await cards.nth(3).click();
    await settle();
    await tab.screenshot({ path: `${pictures}/${width}-${colorScheme}-map.png` });
  }
  if (pictures) {
    await tab.screenshot({ path: `${pictures}/${width}-${colorScheme}-all.png`, fullPage: true });
  }
  found.overflowAfter = await tab.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  found.requests = requests.filter((url) => !/^(file|data):/.test(url));
  await context.close();
  return found;
}

(async () => {
  const browser = await chromium.launch({
    executablePath,
    args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
  });
  const found = [];
  for (const width of [1280, 390]) {
    for (const scheme of ["light", "dark"]) found.push(await look(browser, width, scheme));
  }
  await browser.close();
  console.log(JSON.stringify(found));
})();
