// The memory panel and citations.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

export async function checkMemory({ check, browser, provider, url, hosts }) {
  await check("memories_are_added_searched_corrected_exported_deleted", async () => {
    const window = await browser.open(url);
    const { page } = window;
    await window.button("Memory").click();
    const panel = page.getByRole("complementary");
    await panel.getByText("No memories yet.").waitFor();
    for (const note of ["I mix up eigenvalues and eigenvectors", "The exam is on 12 December", '<img src=x onerror="window.hacked = true">']) {
      await panel.getByRole("button", { name: "Add a note" }).click();
      await panel.getByLabel("What to remember").fill(note);
      await panel.getByRole("button", { name: "Remember" }).click();
      await window.shows(panel.locator(".memories"), note);
    }
    await panel.locator('input[type="file"]').setInputFiles([
      { name: "<b>linear</b> algebra.md", mimeType: "text/markdown", buffer: Buffer.from("# Eigenvalues\n\nA number λ with Av = λv.\n\n# Traces\n\nThe sum of the diagonal is the sum of the eigenvalues.\n") },
      { name: "picture.txt", mimeType: "text/plain", buffer: Buffer.from([0xff, 0xfe, 0x00]) },
      { name: "last.md", mimeType: "text/markdown", buffer: Buffer.from("The last one.\n") },
    ]);
    await panel.getByText("last.md: 1 part imported").waitFor();
    await panel.getByText("picture.txt is not a UTF-8 text file.").waitFor();
    await window.shows(panel.locator(".memories"), "<b>linear</b> algebra · Traces");
    const search = panel.getByRole("searchbox");
    const slider = panel.getByRole("slider");
    for (const [key, alpha] of [["Home", "0.0"], ["End", "1.0"]]) {
      await slider.focus();
      await slider.press(key);
      await search.fill("eigenvalues");
      await search.press("Enter");
      await panel.getByText(/^\d found/).waitFor();
      assert.equal(await panel.locator("output").innerText(), alpha);
      const scores = await panel.locator("meter").evaluateAll((meters) => meters.map((meter) => meter.value));
      assert.deepEqual(scores, [...scores].sort((a, b) => b - a));
      assert(scores.length >= 3 && scores[0] > 0, String(scores));
    }
    await window.screenshot("memory");
    await window.assertAccessible("memory");
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    assert.equal(await page.locator("aside img, aside b").count(), 0);

    await search.fill("exam");
    await search.press("Enter");
    const exam = panel.locator(".memories li").filter({ hasText: "12 December" });
    await exam.getByRole("button", { name: "Correct" }).click();
    await panel.getByLabel("Corrected text").fill("The exam is on 15 December");
    await panel.getByRole("button", { name: "Save" }).click();
    await window.shows(panel.locator(".memories"), "15 December");
    await panel.locator(".memories li").filter({ hasText: "15 December" }).getByRole("button", { name: "Delete" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
    await panel.getByText("1 deleted").waitFor();

    const [download] = await Promise.all([page.waitForEvent("download"), panel.getByRole("button", { name: "Export" }).click()]);
    const lines = readFileSync(await download.path(), "utf8").trim().split("\n").map(JSON.parse);
    assert.deepEqual(lines.map(({ content }) => content.split("\n")[0]).filter((content) => content.startsWith("I mix")), ["I mix up eigenvalues and eigenvectors"]);
    assert(lines.every(({ id, created_at }) => id && created_at), JSON.stringify(lines[0]));

    await window.ask("When is the exam?");
    const turn = await provider.turn();
    turn.say("On 15 December.");
    turn.finish();
    await window.answered();
    await panel.getByRole("button", { name: "Forget everything" }).click();
    await window.assertAccessible("forget confirmation");
    await page.getByRole("dialog").getByRole("button", { name: "Forget" }).click();
    await panel.getByText("No memories yet.").waitFor();
    await page.getByText("What do you want to understand?").waitFor();
    assert.equal(new URL(page.url()).hash, "#/", "a deleted conversation is closed");
    await window.close(hosts);
  });

  await check("citations_are_shown_and_open", async () => {
    const window = await browser.open(url);
    const { page } = window;
    await window.button("Memory").click();
    await page.locator('input[type="file"]').setInputFiles({
      name: "Linear algebra.md",
      mimeType: "text/markdown",
      buffer: Buffer.from("# Eigenvalues\n\nAn eigenvalue is a number λ with Av = λv for a vector v that is not zero.\n"),
    });
    await window.shows(page.locator(".memories"), "Linear algebra");
    await page.getByRole("complementary").getByRole("button", { name: "Close" }).click();
    await window.ask("What is an eigenvalue?");
    const turn = await provider.turn();
    turn.say("Your notes call it a number $\\lambda$ with $Av = \\lambda v$ [1], and not [7].");
    turn.finish();
    await window.answered();
    await window.shows(window.lastAnswer, "and not [7].");
    await window.lastAnswer.getByRole("button", { name: "Source 1" }).click();
    await window.shows(window.lastAnswer.locator(".card"), "for a vector v that is not zero");
    await window.shows(window.lastAnswer.locator(".card"), "document · Linear algebra · Eigenvalues");
    await window.screenshot("citations");
    await window.assertAccessible("citations");
    await page.reload();
    await window.answered();
    await window.lastAnswer.getByRole("button", { name: "Source 1" }).waitFor();
    await window.close(hosts);
  });
}
