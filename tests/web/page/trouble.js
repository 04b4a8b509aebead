// What goes wrong on the way, and what a user can do about it.

import assert from "node:assert/strict";
import { within } from "../frames.js";
import { Relay, tokenOf } from "./browser.js";

/** A call that the service refuses; the page is let through again by `page.unroute`. */
const refusal = (code, message) => (route) =>
  route.fulfill({ contentType: "application/grpc-web+proto", headers: { "grpc-status": String(code), "grpc-message": message }, body: "" });
const CHAT = "**/agent.v1.AgentService/StreamChat";
const UNAVAILABLE = 14;
const UNAUTHENTICATED = 16;
const INVALID_ARGUMENT = 3;

export async function checkTrouble({ check, browser, provider, url, hosts, guarded, secret }) {
  const answer = async (window, question, text) => {
    await window.ask(question);
    const turn = await provider.turn();
    assert.equal(turn.asked.messages.at(-1).content, question);
    turn.say(text);
    turn.finish();
    await window.answered();
    await window.shows(window.lastAnswer, text);
  };

  await check("a conversation that can not be opened takes no question before it is there", async () => {
    const window = await browser.open(url);
    const { page } = window;
    await answer(window, "Who are you?", "An assistant.");
    await page.route("**/GetSession", (route) => route.abort());
    await page.reload();
    await window.shows(page.getByRole("alert"), "The service can not be reached");
    await window.message.fill("And who am I?");
    assert(await window.button("Send").isDisabled());
    await page.unroute("**/GetSession");
    await window.button("Try again").click();
    await window.shows(window.lastAnswer, "An assistant.");
    await answer(window, "And who am I?", "A user.");
    await window.close(hosts);
  });

  await check("a conversation that is deleted while it is answered ends, and is not asked again by going back", async () => {
    const window = await browser.open(url);
    const { page } = window;
    await answer(window, "Who are you?", "An assistant.");
    await window.ask("Tell me everything.");
    const turn = await provider.turn();
    turn.say("This is the beginning");
    await window.shows(window.lastAnswer, "This is the beginning");
    await page.getByRole("button", { name: /^Delete/ }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
    await page.getByText("What do you want to understand?").waitFor();
    await within(turn.closed, "the end of the provider's call");
    await page.goBack();
    await window.shows(page.getByRole("alert"), "This is not there any more.");
    await page.getByRole("link", { name: "New conversation" }).click();
    await answer(window, "Something else", "Something else it is.");
    await window.close(hosts);
  });

  await check("whoever has to sign in again goes on with what they asked", async () => {
    const window = await browser.open(guarded, { kept: { token: tokenOf("eve", secret) } });
    const { page } = window;
    await window.ask("What can you do");
    await window.answered();
    await page.route(CHAT, refusal(UNAUTHENTICATED, "the token has expired"));
    await window.ask("Make me a calculus review plan");
    await window.shows(window.lastAnswer, "The service wants to know who you are");
    await window.lastTurn.getByRole("button", { name: "Sign in" }).click();
    await page.getByLabel("Access token").fill(tokenOf("eve", secret, 601));
    await page.getByRole("dialog").getByRole("button", { name: "Sign in" }).click();
    await page.unroute(CHAT);
    await window.lastTurn.getByRole("button", { name: "Try again" }).click();
    await window.answered();
    assert.deepEqual(await page.locator(".turn .question p").allInnerTexts(), ["What can you do", "Make me a calculus review plan"]);
    await window.close([new URL(guarded).host]);
  });

  await check("a question that the service does not take can be written in another way", async () => {
    const window = await browser.open(url);
    await window.page.route(CHAT, refusal(INVALID_ARGUMENT, "message"));
    await window.ask("Hello?");
    await window.shows(window.lastAnswer, "The service does not take this.");
    assert.equal(await window.message.inputValue(), "Hello?");
    await window.close(hosts);
  });

  await check("a page that came without encryption can ask, and one that is not let in says whom to tell", async () => {
    const at = (address) => `http://page.test:${new URL(address).port}`;
    const window = await browser.open(at(guarded), { kept: { token: tokenOf("bob", secret) } });
    assert.equal(await window.page.evaluate(() => isSecureContext), false);
    await window.ask("What can you do");
    await window.answered();
    assert.equal(await window.button("Copy").count(), 0, "nothing can be copied there");
    await window.close([new URL(at(guarded)).host]);
    const other = await browser.open(at(url));
    await other.page.getByText(`name ${at(url)} in ALLOWED_ORIGINS`).first().waitFor();
    assert.equal(await other.button("Sign in").count(), 0);
    await other.close([new URL(at(url)).host]);
  });

  await check("a result of a tool that does not arrive is handed in again, also after a reload", async () => {
    const window = await browser.open(url, { kept: { tools: true } });
    const { page } = window;
    const resumed = async () => {
      const turn = await provider.turn();
      assert.equal(turn.asked.messages.at(-1).role, "tool");
      assert.match(turn.asked.messages.at(-1).content, /-3/);
      return turn;
    };
    await window.ask("What is the weather in Oslo?");
    (await provider.turn()).call(["c1", "get_weather", { city: "Oslo" }]);
    await page.getByLabel("Result of get_weather, as JSON").fill('{"celsius": -3}');
    await page.route(CHAT, refusal(UNAVAILABLE, "busy"));
    await window.button("Send the result").click();
    await window.shows(window.lastAnswer, "The service is busy or starting.");
    await page.unroute(CHAT);
    await window.button("Try again").click();
    (await resumed()).refuse(503, "down");
    await window.shows(window.lastAnswer, "The model provider can not be reached right now.");
    await window.button("Try again").click();
    (await resumed()).refuse(503, "down");
    await window.shows(window.lastAnswer, "The model provider can not be reached right now.");
    await page.reload();
    const last = await resumed();
    last.say("It is cold.");
    last.finish();
    await window.answered();
    await window.shows(window.lastAnswer, "It is cold.");
    assert.equal(await window.lastAnswer.locator("details.tool").count(), 1);
    await window.close(hosts);
  });

  await check("a tool that nobody answers does not take the next question's place", async () => {
    const window = await browser.open(url, { kept: { tools: true } });
    await window.ask("What is the weather in Oslo?");
    (await provider.turn()).call(["c1", "get_weather", { city: "Oslo" }]);
    await window.page.getByLabel("Result of get_weather, as JSON").waitFor();
    await window.ask("Never mind. What is 1 + 1?");
    const turn = await provider.turn();
    turn.say("It is ");
    await window.shows(window.lastAnswer, "It is");
    await window.page.reload();
    await window.shows(window.lastAnswer, "It is");
    turn.say("2.");
    turn.finish();
    await window.answered();
    assert.equal(await window.lastTurn.locator(".question p").innerText(), "Never mind. What is 1 + 1?");
    await window.close(hosts);
  });

  await check("an answer that is made for another page can be stopped", async () => {
    const window = await browser.open(url);
    await answer(window, "Who are you?", "An assistant.");
    await window.ask("Tell me everything.");
    const turn = await provider.turn();
    turn.say("This is the beginning");
    await window.shows(window.lastAnswer, "This is the beginning");
    const other = await browser.open(url, { user: window.user, path: new URL(window.page.url()).hash });
    await other.page.getByText("The answer is being made for another page").waitFor();
    await other.button("Stop").click();
    await within(turn.closed, "the end of the provider's call");
    await other.shows(other.lastAnswer, "The answer was stopped here.");
    await window.shows(window.lastAnswer, "The answer was stopped here.");
    await window.close(hosts);
    await other.close(hosts);
  });

  await check("a new conversation is stopped before its first frame is seen", async () => {
    const relay = await Relay.to(Number(new URL(url).port));
    const window = await browser.open(relay.url);
    await window.page.getByText("Conversations that you have are kept here.").waitFor();
    relay.hold();
    await window.ask("Tell me everything.");
    const turn = await provider.turn();
    await window.button("Stop").click();
    relay.release();
    await within(turn.closed, "the end of the provider's call");
    await window.shows(window.lastAnswer, "The answer was stopped here.");
    await window.button("Try again").click();
    const again = await provider.turn();
    again.say("All of it.");
    again.finish();
    await window.answered();
    await window.close([new URL(relay.url).host]);
    relay.close();
  });

  await check("a question that was heard, although nothing of its answer came, is not asked twice", async () => {
    const relay = await Relay.to(Number(new URL(url).port));
    const window = await browser.open(relay.url);
    await window.page.getByText("Conversations that you have are kept here.").waitFor();
    relay.hold();
    await window.ask("Count.");
    const turn = await provider.turn();
    relay.cut();
    await window.shows(window.lastAnswer, "The service can not be reached");
    relay.restore();
    await window.lastTurn.getByRole("button", { name: "Try again" }).click();
    turn.say("one two");
    turn.finish();
    await window.answered();
    assert.equal(await window.lastAnswer.locator(".prose").innerText(), "one two");
    await window.close([new URL(relay.url).host]);
    relay.close();
  });
}
