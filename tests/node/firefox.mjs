// The chat page at argv[2] in the Firefox at argv[3], over WebDriver BiDi; prints what was seen.
import { launch } from "puppeteer-core";

const [, , url, firefox] = process.argv;
const browser = await launch({
  browser: "firefox", executablePath: firefox, headless: true, protocolTimeout: 60_000,
});
const page = await browser.newPage();
const errors = [];
page.on("pageerror", (error) => errors.push(String(error)));
page.setDefaultTimeout(30_000);
const seen = { version: await browser.version() };

const turns = () => page.$$eval(":is(.bubble, .words)", (all) => all.map((one) => one.innerText.trim()));
const label = (wanted) => page.waitForFunction(
  (wanted) => document.querySelector("#send").getAttribute("aria-label") === wanted, {}, wanted);
const last = () => page.$$eval(".words", (all) => all.at(-1).innerText.length);
const longer = (length) => page.waitForFunction(
  (length) => [...document.querySelectorAll(".words")].at(-1)?.innerText.length > length, {}, length);
const note = () => page.$$eval(".turn .note", (all) => all.at(-1).innerText);

async function ask(text) {
  await page.focus("#text");
  await page.keyboard.type(text);
  await page.keyboard.press("Enter");
}

await page.goto(url);
await page.waitForFunction(() => !document.querySelector("#model").innerText.includes("connecting"));
await ask("hi");
await label("Send");
seen.first = await turns();

await ask("count");
await label("Stop");
await longer(20);
const early = await last();
await longer(early + 20);
seen.streamed = [early, await last()];
await page.click("#send");
await label("Send");
const stopped = await last();
await new Promise((resolve) => setTimeout(resolve, 500));
seen.stopped = [stopped, await last()];
seen.note = await note();

await page.focus("#text");
await page.keyboard.press("ArrowUp"); // edits the last message, from its end
await page.keyboard.type("; table");
await page.keyboard.press("Enter");
await label("Stop").catch(() => {});
await label("Send");
seen.edited = await turns();
seen.table = await page.$$eval(".words td", (all) => all.map((one) => one.innerText));

await page.reload();
await page.waitForFunction(() => !document.querySelector("#model").innerText.includes("connecting"));
await page.click("#show_chats");
await page.waitForSelector("#list .row");
await page.click("#list .row");
seen.later = await turns();
seen.wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
seen.errors = errors;
await browser.close();
console.log(JSON.stringify(seen));
