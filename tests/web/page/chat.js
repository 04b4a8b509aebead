// Conversations in the page.

import assert from "node:assert/strict";
import { within } from "../frames.js";
import { PHONE, Relay } from "./browser.js";

const EVIL = '<img src=x onerror="window.hacked = true"> [press](javascript:window.hacked=true) <script>window.hacked = true</script>';

/** Asserts that no untrusted text became HTML or script. */
async function assertNoInjection(window) {
  assert.equal(await window.page.evaluate(() => window.hacked), undefined);
  assert.equal(await window.page.locator("main img, aside img, main script, [onerror], a[href^='javascript' i]").count(), 0);
}

export async function checkChat({ check, browser, provider, url, hosts }) {
  await check("answer_streams_with_formulas_code_and_tables", async () => {
    const window = await browser.open(url);
    await window.screenshot("empty");
    await window.assertAccessible("empty");
    await window.ask("What is an eigenvalue?");
    const turn = await provider.turn();
    assert.equal(turn.request.messages.at(-1).content, "What is an eigenvalue?");
    for (const piece of ["## Eigenvalues\n\nA number **λ** with ", "$Av = \\lambda v$ for some ", "$v \\neq 0$."]) {
      turn.say(piece);
      // The provider continues only after the page shows this piece.
      await window.shows(window.lastAnswer, piece.replace(/[#*]|\$.*?\$/g, "").trim().split("\n").at(-1).trim().slice(0, 12));
    }
    turn.say("\n\n```python\nimport numpy as np\nnp.linalg.eig([[2, 1], [1, 2]])\n```\n\n| λ | v |\n|---|---|\n| 3 | (1, 1) |\n| 1 | (1, -1) |\n\n$$\\det(A - \\lambda I) = 0$$\n");
    await window.lastAnswer.locator("table").waitFor();
    await window.screenshot("streaming");
    await window.assertAccessible("streaming");
    turn.finish();
    await window.answered();
    assert.equal(await window.lastAnswer.locator("h4").innerText(), "Eigenvalues");
    assert.equal(await window.lastAnswer.locator("strong").innerText(), "λ");
    await window.lastAnswer.locator("math").nth(2).waitFor();
    assert.equal(await window.lastAnswer.locator("math").count(), 3);
    assert.match(await window.lastAnswer.locator(".usage").innerText(), /test-model · 10 tokens/);
    await window.lastAnswer.locator("figure").getByRole("button").click();
    assert.match(await window.page.evaluate(() => navigator.clipboard.readText()), /^import numpy as np\n/);
    await window.screenshot("answer");
    await window.close(hosts);
  });

  await check("chinese_text_renders_bold_and_prices", async () => {
    const window = await browser.open(url, { locale: "zh-CN" });
    assert.equal(await window.page.locator("html").getAttribute("lang"), "zh-CN");
    await window.screenshot("empty-zh");
    await window.ask("特征值是什么？");
    const turn = await provider.turn();
    assert.match(turn.request.messages[0].content, /[\u4e00-\u9fff]/, "the page's language is sent in the profile");
    turn.say("**注意：**特征值 λ 满足 $Av=\\lambda v$，费用为 $5 和 $6。\n\n- [x] 概念\n- [ ] 练习\n");
    turn.finish();
    await window.answered();
    assert.equal(await window.lastAnswer.locator("strong").innerText(), "注意：");
    await window.lastAnswer.locator("math").first().waitFor();
    assert.equal(await window.lastAnswer.locator("math").count(), 1, "two prices are not a formula");
    assert.equal(await window.lastAnswer.getByRole("checkbox").count(), 2);
    await window.assertAccessible("an answer in Chinese");
    await window.close(hosts);
  });

  await check("stop_cancels_provider_call_and_keeps_partial_answer", async () => {
    const window = await browser.open(url);
    await window.ask("Tell me everything.");
    const turn = await provider.turn();
    turn.say("This is the beginning");
    await window.shows(window.lastAnswer, "This is the beginning");
    await window.button("Stop").click();
    await within(turn.closed, "the end of the provider's call");
    await window.shows(window.lastAnswer, "The answer was stopped here.");
    await window.shows(window.lastAnswer, "This is the beginning");
    assert.equal(await window.page.getByRole("alert").count(), 0, "stopping is not an error");
    await window.button("Try again").waitFor();
    await window.page.reload();
    await window.shows(window.lastAnswer, "The answer was stopped here.");
    await window.shows(window.lastAnswer, "This is the beginning");
    await window.button("Try again").click();
    const again = await provider.turn();
    assert.equal(again.request.messages.at(-1).content, "Tell me everything.");
    again.say("All of it.");
    again.finish();
    await window.answered();
    await window.close(hosts);
  });

  await check("lost_connection_resumes_without_gaps_or_repeats", async () => {
    const relay = await Relay.to(Number(new URL(url).port));
    const window = await browser.open(relay.url);
    await window.ask("Count.");
    const turn = await provider.turn();
    turn.say("one ");
    await window.shows(window.lastAnswer, "one");
    relay.cut();
    await window.shows(window.lastAnswer, "Connection lost.");
    await window.screenshot("reconnecting");
    turn.say("two ");
    relay.restore();
    await window.shows(window.lastAnswer, "one two");
    turn.say("three");
    turn.finish();
    await window.answered();
    assert.equal(await window.lastAnswer.locator(".prose").innerText(), "one two three");
    await window.close([...hosts, new URL(relay.url).host]);
    relay.close();
  });

  await check("reload_resumes_running_answer", async () => {
    const window = await browser.open(url);
    await window.ask("Count.");
    const turn = await provider.turn();
    turn.say("one ");
    await window.shows(window.lastAnswer, "one");
    await window.page.reload();
    await window.shows(window.lastAnswer, "one");
    turn.say("two");
    turn.finish();
    await window.answered();
    assert.equal(await window.lastAnswer.locator(".prose").innerText(), "one two");
    await window.page.reload();
    await window.answered();
    assert.deepEqual(await window.page.locator(".turn .question p").allInnerTexts(), ["Count."]);
    assert.equal(await window.lastAnswer.locator(".usage").innerText(), "10 tokens", "no cost is shown for a model without a price");
    assert.equal(await window.lastAnswer.locator(".prose").innerText(), "one two");
    await window.close(hosts);
  });

  await check("conversations_are_listed_opened_renamed_deleted", async () => {
    const window = await browser.open(url);
    for (const question of ["First question", "Second question"]) {
      await window.page.getByRole("link", { name: "New conversation" }).click();
      await window.ask(question);
      const turn = await provider.turn();
      turn.say(`Answer to: ${question}`);
      turn.finish();
      await window.answered();
    }
    const entries = window.page.getByRole("navigation").getByRole("listitem");
    await entries.nth(1).waitFor();
    await entries.nth(1).getByRole("link").click();
    await window.shows(window.lastAnswer, "Answer to: First question");
    await entries.nth(1).getByRole("button", { name: /^Rename/ }).click();
    await window.page.getByRole("textbox", { name: "Title" }).fill("My first");
    await window.page.keyboard.press("Enter");
    await window.shows(entries.nth(1), "My first");
    await window.page.reload();
    await window.shows(window.lastAnswer, "Answer to: First question");
    await window.shows(entries.nth(1), "My first");
    await entries.nth(1).getByRole("button", { name: /^Delete/ }).click();
    await window.assertAccessible("delete confirmation");
    await window.page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
    await window.page.getByText("What do you want to understand?").waitFor();
    assert.equal(await entries.count(), 1);
    await window.page.goBack();
    await window.page.getByText("This no longer exists.").waitFor();
    await window.close(hosts);
  });

  await check("model_output_stays_text", async () => {
    const window = await browser.open(url);
    await window.ask(EVIL);
    const turn = await provider.turn();
    turn.say(`${EVIL}\n\n![x](http://example.com/pixel.png) <a href="javascript:1">a</a>\n\n$\\href{javascript:window.hacked=true}{x}$ [ok](https://example.com/)`);
    turn.finish();
    await window.answered();
    await window.shows(window.lastAnswer, '<img src=x onerror="window.hacked = true">');
    await window.page.getByText("press", { exact: true }).first().click();
    await assertNoInjection(window);
    assert.equal(await window.lastAnswer.getByRole("link", { name: "ok" }).getAttribute("rel"), "noopener noreferrer nofollow");
    await window.page.reload();
    await window.answered();
    await assertNoInjection(window);
    await window.close(hosts);
  });

  await check("provider_failure_is_explained_and_retried", async () => {
    const window = await browser.open(url);
    await window.ask("Hello?");
    (await provider.turn()).refuse(503, "down");
    await window.page.getByRole("alert").waitFor();
    await window.screenshot("error");
    await window.assertAccessible("error");
    assert.match(await window.page.getByRole("alert").innerText(), /PROVIDER_UNAVAILABLE/);
    await window.button("Try again").click();
    const again = await provider.turn();
    assert.equal(again.request.messages.at(-1).content, "Hello?");
    again.say("Hello!");
    again.finish();
    await window.answered();
    assert.equal(await window.page.getByRole("alert").count(), 0);
    assert.deepEqual(await window.page.locator(".turn .question p").allInnerTexts(), ["Hello?"]);
    await window.close(hosts);
  });

  await check("tool_calls_are_shown_and_client_tool_is_answered", async () => {
    const window = await browser.open(url, { stored: { tools: true } });
    await window.ask("What is the weather in Oslo, and do you know me?");
    const first = await provider.turn();
    assert(first.request.tools.some((tool) => tool.function.name === "get_weather"), JSON.stringify(first.request.tools));
    first.call(["c1", "get_weather", { city: "Oslo" }]);
    await window.shows(window.lastAnswer.locator("details.tool"), "get_weather");
    await window.screenshot("tool");
    await window.assertAccessible("client tool form");
    // The pending tool call survives a reload.
    await window.page.reload();
    const result = window.page.getByLabel("Result of get_weather, as JSON");
    await result.fill("{");
    await window.button("Send the result").click();
    await window.shows(window.lastAnswer, "Invalid JSON.");
    await result.fill('{"celsius": -3}');
    await window.button("Send the result").click();
    const second = await provider.turn();
    assert.equal(second.request.messages.at(-1).role, "tool");
    assert.match(second.request.messages.at(-1).content, /-3/);
    second.call(["c2", "search_memory", { query: "me" }]);
    const third = await provider.turn();
    third.say("It is cold: -3 °C.");
    third.finish();
    await window.answered();
    assert.equal(await window.lastAnswer.locator("details.tool").count(), 2);
    await window.page.reload();
    await window.answered();
    await window.shows(window.lastAnswer, "It is cold: -3 °C.");
    assert.equal(await window.lastAnswer.locator("details.tool").count(), 2);
    await window.close(hosts);
  });

  await check("forgetting_many_memories_asks_the_user", async () => {
    const window = await browser.open(url, { stored: { tools: true } });
    await window.ask("Remember that I like green tea.");
    const first = await provider.turn();
    first.call(["s1", "save_memory", { content: "I like green tea." }], ["s2", "save_memory", { content: "The user likes green tea." }],
      ["s3", "save_memory", { content: "I really like green tea." }], ["s4", "save_memory", { content: "Green tea, I like it." }]);
    const saved = await provider.turn();
    const ids = saved.request.messages.slice(-4).map((message) => JSON.parse(message.content).id);
    assert(ids.every((id) => typeof id === "string"), JSON.stringify(saved.request.messages.slice(-4)));
    saved.call(["f1", "forget_memory", { ids }]);
    await window.shows(window.lastAnswer, "these 4 memories");
    await window.assertAccessible("approval of a tool call");
    // The question survives a reload.
    await window.page.reload();
    await window.button("Keep them").click();
    const declined = await provider.turn();
    assert.match(declined.request.messages.at(-1).content, /did not approve/);
    declined.call(["f2", "forget_memory", { ids }]);
    await window.button("Forget them").click();
    const forgotten = await provider.turn();
    assert.match(forgotten.request.messages.at(-1).content, /"forgotten":4/);
    forgotten.say("All gone.");
    forgotten.finish();
    await window.answered();
    await window.shows(window.lastAnswer, "All gone.");
    await window.close(hosts);
  });

  await check("keyboard_reaches_every_action", async () => {
    const window = await browser.open(url);
    const { page } = window;
    const isFocused = (name) => page.evaluate((name) => (document.activeElement?.getAttribute("aria-label") ?? document.activeElement?.textContent ?? "").trim() === name, name);
    const tabTo = async (name, back = false) => {
      for (let steps = 0; steps < 60; steps++) {
        if (await isFocused(name)) return;
        await page.keyboard.press(back ? "Shift+Tab" : "Tab");
      }
      assert.fail(`Tab does not reach ${name}`);
    };
    await tabTo("Message");
    await page.keyboard.type("first line");
    await page.keyboard.press("Shift+Enter");
    await page.keyboard.type("second line");
    await page.keyboard.press("Enter");
    const turn = await provider.turn();
    assert.equal(turn.request.messages.at(-1).content, "first line\nsecond line");
    turn.say("Here");
    await window.shows(window.lastAnswer, "Here");
    // During IME composition, Escape only cancels the composition.
    await window.message.evaluate((field) => field.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", isComposing: true, bubbles: true })));
    turn.say(" and there");
    await window.shows(window.lastAnswer, "Here and there");
    await page.keyboard.press("Escape");
    await within(turn.closed, "the end of the provider's call");
    await window.button("Send").waitFor();
    await tabTo("Memory", true);
    await page.keyboard.press("Enter");
    await page.getByRole("complementary").waitFor();
    await tabTo("Add a note");
    await page.keyboard.press("Enter");
    await page.getByLabel("What to remember").waitFor();
    await page.keyboard.type("I like proofs.");
    await tabTo("Remember");
    await page.keyboard.press("Enter");
    await window.shows(page.locator(".memories"), "I like proofs.");
    await page.keyboard.press("Escape");
    await page.getByRole("complementary").waitFor({ state: "detached" });
    await tabTo("Settings", true);
    await page.keyboard.press("Enter");
    await page.getByRole("dialog").waitFor();
    await page.keyboard.press("Escape");
    await page.getByRole("dialog").waitFor({ state: "detached" });
    // Closing the dialog restores the focus.
    await page.waitForFunction(() => document.activeElement?.getAttribute("aria-label") === "Settings");
    await window.close(hosts);
  });

  await check("phone_and_dark_theme_render", async () => {
    const window = await browser.open(url, { viewport: PHONE, scheme: "dark", locale: "zh-CN" });
    await window.ask("怎么复习？");
    const turn = await provider.turn();
    turn.say("### 三步\n\n1. 先做一遍错题\n2. 再看 $\\int_0^1 x^2\\,dx = \\frac{1}{3}$\n3. 隔一天再做\n\n> 复习不是重读，是**回想**。\n");
    turn.finish();
    await window.answered();
    await window.lastAnswer.locator("math").waitFor();
    await window.screenshot("phone-dark-zh");
    await window.assertAccessible("dark theme on a phone");
    const widths = await window.page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.equal(widths[0], widths[1], "no horizontal overflow");
    await window.button("对话列表").click();
    await window.page.getByRole("link", { name: "新对话" }).waitFor();
    await window.assertAccessible("sidebar on a phone");
    await window.screenshot("phone-list-zh");
    await window.close(hosts);
  });
}
