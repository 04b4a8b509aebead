// Failures of calls, and how a user recovers from them.

import assert from "node:assert/strict";
import { within } from "../frames.js";
import { Relay, tokenOf } from "./browser.js";

/** Route handler: answers a call with a gRPC status. Removed by `page.unroute`. */
const refuseWith = (code, message) => (route) =>
  route.fulfill({ contentType: "application/grpc-web+proto", headers: { "grpc-status": String(code), "grpc-message": message }, body: "" });
const CHAT = "**/agent.v1.AgentService/StreamChat";
const UNAVAILABLE = 14;
const UNAUTHENTICATED = 16;
const INVALID_ARGUMENT = 3;
/** Sent by the service, in an error frame. */
const PROVIDER_UNREACHABLE = /The model provider can ?not be reached right now\./;

export async function checkFailures({ check, browser, provider, url, hosts, guarded, secret }) {
  const answer = async (window, question, text) => {
    await window.ask(question);
    const turn = await provider.turn();
    assert.equal(turn.request.messages.at(-1).content, question);
    turn.say(text);
    turn.finish();
    await window.answered();
    await window.shows(window.lastAnswer, text);
  };

  await check("failed_open_blocks_messages_until_loaded", async () => {
    const window = await browser.open(url);
    const { page } = window;
    await answer(window, "Who are you?", "An assistant.");
    await page.route("**/GetSession", (route) => route.abort());
    await page.reload();
    await window.shows(page.getByRole("alert"), "The service cannot be reached");
    await window.message.fill("And who am I?");
    assert(await window.button("Send").isDisabled());
    await page.unroute("**/GetSession");
    await window.button("Try again").click();
    await window.shows(window.lastAnswer, "An assistant.");
    await answer(window, "And who am I?", "A user.");
    await window.close(hosts);
  });

  await check("deleting_running_conversation_cancels_run", async () => {
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
    await window.shows(page.getByRole("alert"), "This no longer exists.");
    await page.getByRole("link", { name: "New conversation" }).click();
    await answer(window, "Something else", "Something else it is.");
    await window.close(hosts);
  });

  await check("sign_in_again_keeps_conversation", async () => {
    const window = await browser.open(guarded, { stored: { token: tokenOf("eve", secret) } });
    const { page } = window;
    await window.ask("What can you do");
    await window.answered();
    await page.route(CHAT, refuseWith(UNAUTHENTICATED, "the token has expired"));
    await window.ask("Make me a calculus review plan");
    await window.shows(window.lastAnswer, "The service requires authentication");
    await window.lastTurn.getByRole("button", { name: "Sign in" }).click();
    await page.getByLabel("Access token").fill(tokenOf("eve", secret, 601));
    await page.getByRole("dialog").getByRole("button", { name: "Sign in" }).click();
    await page.unroute(CHAT);
    await window.lastTurn.getByRole("button", { name: "Try again" }).click();
    await window.answered();
    assert.deepEqual(await page.locator(".turn .question p").allInnerTexts(), ["What can you do", "Make me a calculus review plan"]);
    await window.close([new URL(guarded).host]);
  });

  await check("refused_message_returns_to_draft", async () => {
    const window = await browser.open(url);
    await window.page.route(CHAT, refuseWith(INVALID_ARGUMENT, "message"));
    await window.ask("Hello?");
    await window.shows(window.lastAnswer, "The service rejected this request.");
    assert.equal(await window.message.inputValue(), "Hello?");
    await window.close(hosts);
  });

  await check("insecure_page_works_and_refused_origin_names_setting", async () => {
    const at = (address) => `http://page.test:${new URL(address).port}`;
    const window = await browser.open(at(guarded), { stored: { token: tokenOf("bob", secret) } });
    assert.equal(await window.page.evaluate(() => isSecureContext), false);
    await window.ask("What can you do");
    await window.answered();
    assert.equal(await window.button("Copy").count(), 0, "no clipboard without a secure context");
    await window.close([new URL(at(guarded)).host]);
    const other = await browser.open(at(url));
    await other.page.getByText(`add ${at(url)} to ALLOWED_ORIGINS`).first().waitFor();
    assert.equal(await other.button("Sign in").count(), 0);
    await other.close([new URL(at(url)).host]);
  });

  await check("tool_result_is_retried_also_after_reload", async () => {
    const window = await browser.open(url, { stored: { tools: true } });
    const { page } = window;
    const resumed = async () => {
      const turn = await provider.turn();
      assert.equal(turn.request.messages.at(-1).role, "tool");
      assert.match(turn.request.messages.at(-1).content, /-3/);
      return turn;
    };
    await window.ask("What is the weather in Oslo?");
    (await provider.turn()).call(["c1", "get_weather", { city: "Oslo" }]);
    await page.getByLabel("Result of get_weather, as JSON").fill('{"celsius": -3}');
    await page.route(CHAT, refuseWith(UNAVAILABLE, "busy"));
    await window.button("Send the result").click();
    await window.shows(window.lastAnswer, "The service is busy or starting.");
    await page.unroute(CHAT);
    await window.button("Try again").click();
    (await resumed()).refuse(503, "down");
    await window.shows(window.lastAnswer, PROVIDER_UNREACHABLE);
    await window.button("Try again").click();
    (await resumed()).refuse(503, "down");
    await window.shows(window.lastAnswer, PROVIDER_UNREACHABLE);
    await page.reload();
    const last = await resumed();
    last.say("It is cold.");
    last.finish();
    await window.answered();
    await window.shows(window.lastAnswer, "It is cold.");
    assert.equal(await window.lastAnswer.locator("details.tool").count(), 1);
    await window.close(hosts);
  });

  await check("unanswered_tool_call_does_not_block_next_message", async () => {
    const window = await browser.open(url, { stored: { tools: true } });
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

  await check("run_of_another_page_can_be_stopped", async () => {
    const window = await browser.open(url);
    await answer(window, "Who are you?", "An assistant.");
    await window.ask("Tell me everything.");
    const turn = await provider.turn();
    turn.say("This is the beginning");
    await window.shows(window.lastAnswer, "This is the beginning");
    const other = await browser.open(url, { user: window.user, path: new URL(window.page.url()).hash });
    await other.page.getByText("Another page is receiving this answer").waitFor();
    await other.button("Stop").click();
    await within(turn.closed, "the end of the provider's call");
    await other.shows(other.lastAnswer, "The answer was stopped here.");
    await window.shows(window.lastAnswer, "The answer was stopped here.");
    await window.close(hosts);
    await other.close(hosts);
  });

  await check("new_conversation_stops_before_first_frame", async () => {
    const relay = await Relay.to(Number(new URL(url).port));
    const window = await browser.open(relay.url);
    await window.page.getByText("Your conversations are stored here.").waitFor();
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

  await check("retry_without_frames_attaches_to_same_run", async () => {
    const relay = await Relay.to(Number(new URL(url).port));
    const window = await browser.open(relay.url);
    await window.page.getByText("Your conversations are stored here.").waitFor();
    relay.hold();
    await window.ask("Count.");
    const turn = await provider.turn();
    relay.cut();
    await window.shows(window.lastAnswer, "The service cannot be reached");
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
