// The page with authentication, with functions at another origin, and under load.

import assert from "node:assert/strict";
import { gzipSync } from "node:zlib";
import { create, toBinary } from "@bufbuild/protobuf";
import { GetSessionResponseSchema } from "../gen/conversation_service_pb.js";
import { tokenOf } from "./browser.js";

/** Maximum size of the page, gzipped. */
const MAX_PAGE_BYTES = 150_000;
/** Turns of a long conversation; each has two messages. */
const TURN_COUNT = 5_000;
/** Maximum number of turns in the DOM. */
const WINDOW_TURNS = 60;

export async function checkDeployments({ check, browser, provider, url, hosts, functions, guarded, secret }) {
  await check("sign_in_with_token_names_user", async () => {
    const window = await browser.open(guarded);
    await window.page.getByText("The service requires authentication: sign in.").first().waitFor();
    await window.button("Sign in").first().click();
    await window.screenshot("sign-in");
    await window.assertAccessible("sign-in dialog");
    await window.page.getByLabel("Access token").fill(tokenOf("ann", secret));
    await window.page.getByRole("dialog").getByRole("button", { name: "Sign in" }).click();
    await window.page.getByText("Your conversations are stored here.").waitFor();
    await window.ask("What can you do");
    await window.answered();
    await window.page.getByRole("navigation").getByRole("listitem").first().waitFor();
    await window.close([new URL(guarded).host]);
  });

  await check("functions_at_another_origin_answer", async () => {
    const window = await browser.open(url, { stored: { address: `${functions}/{function}` } });
    await window.ask("What is an eigenvalue?");
    const turn = await provider.turn();
    for (const piece of ["A number ", "λ with ", "Av = λv"]) {
      turn.say(piece);
      await window.shows(window.lastAnswer, piece.trim());
    }
    turn.finish();
    await window.answered();
    await window.button("Memory").click();
    await window.button("Add a note").click();
    await window.page.getByLabel("What to remember").fill("I live in Oslo.");
    await window.button("Remember").click();
    await window.shows(window.page.locator(".memories"), "I live in Oslo.");
    await window.page.reload();
    await window.shows(window.lastAnswer, "A number λ with Av = λv");
    await window.close([...hosts, new URL(functions).host]);
  });

  await check("unreachable_service_is_reported", async () => {
    const window = await browser.open(url, { stored: { address: "http://127.0.0.1:1" } });
    await window.ask("Hello?");
    await window.shows(window.lastAnswer, "The service cannot be reached at http://127.0.0.1:1.");
    await window.close([...hosts, "127.0.0.1:1"]);
  });

  await check("long_conversation_scrolls_with_bounded_dom", async () => {
    const window = await browser.open(url);
    const { page } = window;
    // Synthetic pages of turns in place of GetSession.
    await page.route("**/agent.v1.ConversationService/GetSession", async (route) => {
      const token = Buffer.from(route.request().postDataBuffer() ?? []).toString("latin1").match(/before-(\d+)/);
      const last = token ? Number(token[1]) - 1 : TURN_COUNT;
      const first = Math.max(1, last - 99);
      const turns = [];
      for (let number = last; number >= first; number--) {
        const messages = [{ role: "user", content: `question ${number}` }, { role: "assistant", content: `answer ${number}: **bold** and \`code\`, and a line that is long enough to be two of them on most screens` }];
        turns.push({ number, requestId: `r${number}`, messages });
      }
      const answer = create(GetSessionResponseSchema, { session: { sessionId: "long", turns: TURN_COUNT }, turns, nextPageToken: first > 1 ? `before-${first}` : "" });
      const frame = (flags, bytes) => Buffer.concat([Buffer.from([flags, 0, 0, 0, 0]), bytes]).fill(0, 1, 5);
      const [body, trailer] = [frame(0, toBinary(GetSessionResponseSchema, answer)), frame(0x80, Buffer.from("grpc-status:0\r\n"))];
      body.writeUInt32BE(body.length - 5, 1);
      trailer.writeUInt32BE(trailer.length - 5, 1);
      await route.fulfill({ contentType: "application/grpc-web+proto", body: Buffer.concat([body, trailer]) });
    });
    await page.goto(`${url}/#/c/long`);
    await window.shows(window.lastAnswer, `answer ${TURN_COUNT}`);
    const box = page.locator(".scroll");
    const turnsInDom = () => page.locator(".turn").count();
    // The turn at the top must not jump while the window moves.
    const top = () => box.evaluate((box) => {
      const seen = [...box.querySelectorAll(".turn")].find((turn) => turn.getBoundingClientRect().bottom > box.getBoundingClientRect().top);
      return Number(seen.textContent.match(/question (\d+)/)[1]);
    });
    let before = await top();
    const started = performance.now();
    for (let steps = 0; before > 1; steps++) {
      assert(steps < TURN_COUNT, `stuck at question ${before}`);
      await page.mouse.move(640, 300);
      await box.evaluate((box) => (box.scrollTop -= box.clientHeight * 4));
      await page.evaluate(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
      const now = await top();
      assert(now <= before && before - now < 60, `from question ${before} to ${now}`);
      assert((await turnsInDom()) <= WINDOW_TURNS);
      before = now;
    }
    console.log(`    through ${TURN_COUNT} turns in ${Math.round(performance.now() - started)} ms`);
    await window.button("Jump to latest").click();
    await window.shows(window.lastAnswer, `answer ${TURN_COUNT}`);
    await window.close(hosts);
  });

  await check("hundred_deltas_per_second_render", async () => {
    const window = await browser.open(url);
    await window.ask("Write much.");
    const turn = await provider.turn();
    turn.say("# Long\n\n");
    await window.shows(window.lastAnswer, "Long");
    await window.page.evaluate(() => {
      window.frameTimes = [];
      const record = (now) => (window.frameTimes.push(now), requestAnimationFrame(record));
      requestAnimationFrame(record);
    });
    for (let number = 0; number < 500; number++) {
      turn.say(number % 25 === 24 ? `piece ${number}.\n\n` : `piece ${number} **bold** `);
      if (number % 100 === 99) await window.shows(window.lastAnswer, `piece ${number}`);
      await new Promise((next) => setTimeout(next, 10));
    }
    turn.finish();
    await window.answered();
    await window.shows(window.lastAnswer, "piece 499");
    const gaps = await window.page.evaluate(() => window.frameTimes.slice(1).map((now, index) => now - window.frameTimes[index]).sort((a, b) => a - b));
    console.log(`    frame interval: p50 ${gaps[gaps.length >> 1].toFixed(1)} ms, p99 ${gaps[Math.floor(gaps.length * 0.99)].toFixed(1)} ms`);
    await window.close(hosts);
  });

  await check("page_size_stays_within_limit", async () => {
    const found = new Set(["/"]);
    let bytes = 0;
    for (const path of found) {
      const response = await fetch(url + path, { headers: { "accept-encoding": "identity" } });
      assert.equal(response.status, 200, path);
      const text = await response.text();
      bytes += gzipSync(text).length;
      for (const [, name] of text.matchAll(/["'(]\.\/([\w-]+\.(?:js|css|svg))["')]/g)) found.add(`/${name}`);
    }
    assert(found.size >= 5, [...found].join(" "));
    assert(bytes <= MAX_PAGE_BYTES, `${bytes} bytes, at most ${MAX_PAGE_BYTES} allowed`);
    console.log(`    ${bytes} bytes in ${found.size} files`);
  });

  await check("settings_work_in_both_languages", async () => {
    const window = await browser.open(url);
    await window.button("Settings").click();
    await window.assertAccessible("settings");
    await window.page.getByLabel("中文").check();
    await window.page.getByRole("dialog").getByText("服务地址").waitFor();
    await window.page.getByLabel("服务地址").fill("ftp://example.com");
    await window.page.getByText("地址无效").waitFor();
    assert(await window.button("保存").isDisabled());
    await window.page.getByLabel("深色").check();
    await window.screenshot("settings-dark-zh");
    await window.assertAccessible("settings, dark theme");
    await window.close(hosts);
  });
}
