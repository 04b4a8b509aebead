// Answers that are hard to parse or to draw: the page shows them, and their conversation opens again.

import assert from "node:assert/strict";

const lines = (count, line) => Array.from({ length: count }, (_, index) => line(index)).join("\n");

const HOSTILE = {
  quotes: "> ".repeat(3_000),
  bullets: "- ".repeat(3_000),
  items: lines(200, (depth) => `${" ".repeat(2 * depth)}- item`),
  emphasis: "*a **b ".repeat(2_000),
  strong: `${"**a ".repeat(2_000)}${" a**".repeat(2_000)}`,
  brackets: "[".repeat(10_000),
  images: `${"![".repeat(2_000)}a${"](x)".repeat(2_000)}`,
  backticks: lines(150, (run) => "`".repeat(run)),
  table: `${"|a".repeat(500)}|\n${"|-".repeat(500)}|\n${"|\n".repeat(500)}`,
  formulas: `${"\\(a ".repeat(3_000)} $${"\\frac{1}{".repeat(500)}x${"}".repeat(500)}$`,
  dollars: "$$ a\n\n".repeat(2_000),
  html: "<div><!--".repeat(2_000),
};

export async function checkHostileAnswers({ check, browser, provider, url, hosts }) {
  const answer = async (window, question, text) => {
    await window.ask(question);
    let turn = await provider.turn();
    // A long conversation is also summarized.
    for (; turn.request.messages.at(-1).content !== question; turn = await provider.turn()) turn.refuse(503, "not now");
    turn.say(text);
    turn.finish();
    await window.answered();
  };

  await check("hostile_answer_is_drawn_and_its_conversation_opens_again", async () => {
    for (const [name, text] of Object.entries(HOSTILE)) {
      const window = await browser.open(url);
      await answer(window, name, `${text}\n\nend of ${name}`);
      await window.shows(window.lastAnswer, `end of ${name}`);
      await window.page.reload();
      await window.shows(window.lastAnswer, `end of ${name}`);
      await answer(window, "What is 1 + 1?", "It is **2**.");
      assert.equal(await window.lastAnswer.locator("strong").innerText(), "2", name);
      await window.close(hosts);
    }
  });

  await check("answer_that_cannot_be_drawn_is_shown_as_text", async () => {
    const window = await browser.open(url);
    // A defect in the renderer of tables.
    const breakTables = () => {
      Array.prototype.findLastIndex = () => {
        throw new RangeError("too deep");
      };
    };
    await window.page.addInitScript(breakTables);
    await window.page.evaluate(breakTables);
    await answer(window, "Draw a table.", "| a |\n|---|\n| b |\n");
    assert.equal(await window.lastAnswer.locator(".plain").innerText(), "| a |\n|---|\n| b |\n");
    await window.page.reload();
    await window.shows(window.lastAnswer.locator(".plain"), "| b |");
    await answer(window, "And without?", "It is **bold**.");
    assert.equal(await window.lastAnswer.locator("strong").innerText(), "bold");
    assert(window.pageErrors.every((error) => error.includes("an answer cannot be drawn")), window.pageErrors.join("\n"));
    window.pageErrors = [];
    await window.close(hosts);
  });
}
