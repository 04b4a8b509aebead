// The page with a service that wants a token, with functions at another origin, and with very much to show.

import assert from "node:assert/strict";
import { gzipSync } from "node:zlib";
import { create, toBinary } from "@bufbuild/protobuf";
import { GetSessionResponseSchema } from "../gen/conversation_service_pb.js";
import { tokenOf } from "./browser.js";

/** How large the page may be on the wire, in bytes. */
const BUDGET = 150_000;
/** Turns of a long conversation: twice as many messages. */
const MANY = 5_000;
/** Most turns that are in the document. */
const WINDOW = 60;

export async function checkElsewhere({ check, browser, provider, url, hosts, functions, guarded, secret }) {
  await check("a service that wants a token is signed in to, and the token names the user", async () => {
    const window = await browser.open(guarded);
    await window.page.getByText("The service wants to know who you are: sign in.").first().waitFor();
    await window.button("Sign in").first().click();
    await window.picture("sign-in");
    await window.isAccessible("signing in");
    await window.page.getByLabel("Access token").fill(tokenOf("ann", secret));
    await window.page.getByRole("dialog").getByRole("button", { name: "Sign in" }).click();
    await window.page.getByText("Conversations that you have are kept here.").waitFor();
    await window.ask("What can you do");
    await window.answered();
    await window.page.getByRole("navigation").getByRole("listitem").first().waitFor();
    await window.close([new URL(guarded).host]);
  });

  await check("functions at another origin answer as the server does", async () => {
    const window = await browser.open(url, { kept: { address: `${functions}/{function}` } });
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

  await check("a service that is not there is told from one that refuses", async () => {
    const window = await browser.open(url, { kept: { address: "http://127.0.0.1:1" } });
    await window.ask("Hello?");
    await window.shows(window.lastAnswer, "The service can not be reached at http://127.0.0.1:1.");
    await window.close([...hosts, "127.0.0.1:1"]);
  });

  await check("a conversation of ten thousand messages is as light as a short one, and one can go through it", async () => {
    const window = await browser.open(url);
    const { page } = window;
    // Pages of turns as the service would send them, so that nobody has to have so long a conversation.
    await page.route("**/agent.v1.ConversationService/GetSession", async (route) => {
      const token = Buffer.from(route.request().postDataBuffer() ?? []).toString("latin1").match(/before-(\d+)/);
      const last = token ? Number(token[1]) - 1 : MANY;
      const first = Math.max(1, last - 99);
      const turns = [];
      for (let number = last; number >= first; number--) {
        const messages = [{ role: "user", content: `question ${number}` }, { role: "assistant", content: `answer ${number}: **bold** and \`code\`, and a line that is long enough to be two of them on most screens` }];
        turns.push({ number, requestId: `r${number}`, messages });
      }
      const answer = create(GetSessionResponseSchema, { session: { sessionId: "long", turns: MANY }, turns, nextPageToken: first > 1 ? `before-${first}` : "" });
      const frame = (flags, bytes) => Buffer.concat([Buffer.from([flags, 0, 0, 0, 0]), bytes]).fill(0, 1, 5);
      const [body, trailer] = [frame(0, toBinary(GetSessionResponseSchema, answer)), frame(0x80, Buffer.from("grpc-status:0\r\n"))];
      body.writeUInt32BE(body.length - 5, 1);
      trailer.writeUInt32BE(trailer.length - 5, 1);
      await route.fulfill({ contentType: "application/grpc-web+proto", body: Buffer.concat([body, trailer]) });
    });
    await page.goto(`${url}/#/c/long`);
    await window.shows(window.lastAnswer, `answer ${MANY}`);
    const box = page.locator(".scroll");
    const drawn = () => page.locator(".turn").count();
    // What is read keeps its place while turns come in front of it and go behind it.
    const top = () => box.evaluate((box) => {
      const seen = [...box.querySelectorAll(".turn")].find((turn) => turn.getBoundingClientRect().bottom > box.getBoundingClientRect().top);
      return Number(seen.textContent.match(/question (\d+)/)[1]);
    });
    let before = await top();
    const started = performance.now();
    for (let steps = 0; before > 1; steps++) {
      assert(steps < MANY, `it stays at question ${before}`);
      await page.mouse.move(640, 300);
      await box.evaluate((box) => (box.scrollTop -= box.clientHeight * 4));
      await page.evaluate(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
      const now = await top();
      assert(now <= before && before - now < 60, `from question ${before} to ${now}`);
      assert((await drawn()) <= WINDOW);
      before = now;
    }
    console.log(`    through ${MANY} turns in ${Math.round(performance.now() - started)} ms`);
    await window.button("To the latest").click();
    await window.shows(window.lastAnswer, `answer ${MANY}`);
    await window.close(hosts);
  });

  await check("a hundred pieces a second are drawn while they come", async () => {
    const window = await browser.open(url);
    await window.ask("Write much.");
    const turn = await provider.turn();
    turn.say("# Long\n\n");
    await window.shows(window.lastAnswer, "Long");
    await window.page.evaluate(() => {
      window.frames_ = [];
      const note = (now) => (window.frames_.push(now), requestAnimationFrame(note));
      requestAnimationFrame(note);
    });
    for (let number = 0; number < 500; number++) {
      turn.say(number % 25 === 24 ? `piece ${number}.\n\n` : `piece ${number} **bold** `);
      if (number % 100 === 99) await window.shows(window.lastAnswer, `piece ${number}`);
      await new Promise((next) => setTimeout(next, 10));
    }
    turn.finish();
    await window.answered();
    await window.shows(window.lastAnswer, "piece 499");
    const gaps = await window.page.evaluate(() => window.frames_.slice(1).map((now, place) => now - window.frames_[place]).sort((a, b) => a - b));
    console.log(`    time between two pictures: p50 ${gaps[gaps.length >> 1].toFixed(1)} ms, p99 ${gaps[Math.floor(gaps.length * 0.99)].toFixed(1)} ms`);
    await window.close(hosts);
  });

  await check("the page is small", async () => {
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
    assert(bytes <= BUDGET, `${bytes} bytes are more than ${BUDGET}`);
    console.log(`    ${bytes} bytes in ${found.size} files`);
  });

  await check("both languages have settings that are understood", async () => {
    const window = await browser.open(url);
    await window.button("Settings").click();
    await window.isAccessible("settings");
    await window.page.getByLabel("中文").check();
    await window.page.getByRole("dialog").getByText("服务地址").waitFor();
    await window.page.getByLabel("服务地址").fill("ftp://example.com");
    await window.page.getByText("这不是有效地址").waitFor();
    assert(await window.button("保存").isDisabled());
    await window.page.getByLabel("深色").check();
    await window.picture("settings-dark-zh");
    await window.isAccessible("settings in the dark");
    await window.close(hosts);
  });
}
