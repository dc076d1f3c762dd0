// Drops files into a page that reads scans, and prints what the page says of them as JSON.
//
// node drop.cjs PAGE CHROMIUM FILE...   (SCREENSHOTS: a folder for a picture)
"use strict";
const { chromium } = require("playwright-core");
const { readFileSync } = require("node:fs");
const { basename } = require("node:path");
const { pathToFileURL } = require("node:url");

const [page, executablePath, ...files] = process.argv.slice(2);
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"];

async function main() {
  const browser = await chromium.launch({ executablePath, args: FLAGS });
  const tab = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  const errors = [];
  const requests = [];
  tab.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  tab.on("pageerror", (error) => errors.push(String(error)));
  tab.on("request", (request) => requests.push(request.url().slice(0, 60)));
  await tab.goto(pathToFileURL(page).href);
  await tab.waitForSelector("#files:enabled", { timeout: 60000 });
  const before = errors.length;
  // What a page with a fault could try; its own rule has to stop it.
  const escaped = await tab.evaluate(() =>
    fetch("https://example.org/").then(() => true, () => false));
  errors.splice(before);
  const contents = files.map((path) => [basename(path), readFileSync(path).toString("base64")]);
  const dataTransfer = await tab.evaluateHandle((contents) => {
    const transfer = new DataTransfer();
    for (const [name, text] of contents) {
      transfer.items.add(new File([Uint8Array.from(atob(text), (one) => one.charCodeAt(0))], name));
    }
    return transfer;
  }, contents);
  await tab.dispatchEvent("#drop", "drop", { dataTransfer });
  await tab.waitForFunction(() => document.getElementById("state").textContent.includes(" read."),
    null, { timeout: 120000 });
  const studies = await tab.locator("#studies > section").evaluateAll((sections) =>
    sections.map((section) => ({
      name: section.querySelector("h2").textContent,
      said: section.querySelector("p").textContent,
      head: [...section.querySelectorAll("th:not([scope])")].map((cell) => cell.textContent),
      rows: [...section.querySelectorAll("tbody tr")].map((row) =>
        [...row.querySelectorAll("td")].map((cell) => Number(cell.dataset.value))),
    })));
  const answers = await tab.locator("#least option").allTextContents();
  if (answers.length > 1) await tab.selectOption("#least", { index: answers.length - 1 });
  const verdicts = await tab.locator(".verdict").allTextContents();
  if (process.env.SCREENSHOTS) {
    await tab.screenshot({ path: `${process.env.SCREENSHOTS}/browser.png`, fullPage: true });
  }
  await browser.close();
  console.log(JSON.stringify({ studies, answers, verdicts, errors, requests, escaped }));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
