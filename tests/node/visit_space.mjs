// Visits the Gradio app with headless Chromium: uploads a picture, presses Run, waits for the result, for each task.
//
//   npm install --no-save playwright-core && node visit_space.mjs http://127.0.0.1:7860 photo.png folder-for-screenshots
//
// CHROMIUM names the browser; /usr/bin/chromium by default. Fails if a result does not come or the page throws.
import { chromium } from "playwright-core";

const [url, photo, folder] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox"],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 1250 } });
page.on("pageerror", (error) => {
  throw error;
});
await page.goto(url);
const tabs = { pose: "2D pose", segmentation: "Body parts", depth: "Depth", normal: "Surface normals" };
for (const [task, title] of Object.entries(tabs)) {
  await page.getByRole("tab", { name: title }).click();
  await page.locator(`#${task}-picture input[type=file]`).setInputFiles(photo);
  await page.waitForSelector(`#${task}-picture img`);
  await page.click(`#${task}-run`);
  await page.waitForSelector(`#${task}-result img`, { timeout: 120000 });
  await page.waitForSelector(`#${task}-file a`);
  const size = await page.locator(`#${task}-result img`).evaluate((image) => [image.naturalWidth, image.naturalHeight]);
  const numbers = (await page.locator(`#${task}-numbers`).innerText()).replace(/\s+/g, " ").slice(0, 120);
  console.log(`${task}: picture of ${size.join(" x ")}; ${numbers}`);
  await page.screenshot({ path: `${folder}/${task}.png` });
}
// A picture is missing: the page says so instead of failing silently.
await page.reload();
await page.waitForSelector("#pose-run");
await page.click("#pose-run");
await page.getByText("Choose a picture first.").first().waitFor({ timeout: 30000 });
console.log("without a picture: the page asks for one");
await browser.close();
