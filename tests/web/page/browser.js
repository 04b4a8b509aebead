// A browser, and what of it every check looks at.

import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { connect, createServer } from "node:net";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { AxeBuilder } from "@axe-core/playwright";
import { chromium } from "playwright-core";

/** What keeps the browser from calls of its own, and lets it run as root in a container. */
const ARGUMENTS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  // A name that a browser does not trust as it trusts this machine.
  "--host-resolver-rules=MAP page.test 127.0.0.1",
];
const DESKTOP = { width: 1280, height: 800 };
export const PHONE = { width: 390, height: 844 };

/** What signs a user in, for so many seconds. */
export function tokenOf(user, secret, seconds = 600) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part({ sub: user, user_id: user, exp: Math.floor(Date.now() / 1000) + seconds })}`;
  return `${signed}.${createHmac("sha256", secret).update(signed).digest("base64url")}`;
}

export class Browser {
  static async launch(images) {
    const browser = new Browser();
    mkdirSync(images, { recursive: true });
    browser.images = images;
    browser.chromium = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ARGUMENTS });
    return browser;
  }

  /** A window of its own user, with the page of `url` in it. `kept` is what an earlier visit left in the browser. */
  async open(url, { locale = "en-US", viewport = DESKTOP, scheme = "light", user = crypto.randomUUID(), kept = {}, path = "" } = {}) {
    const context = await this.chromium.newContext({ locale, viewport, colorScheme: scheme, acceptDownloads: true, hasTouch: viewport === PHONE });
    await context.grantPermissions(["clipboard-read", "clipboard-write"]);
    await context.addInitScript((entries) => {
      for (const [name, value] of Object.entries(entries)) {
        if (localStorage.getItem(`agent.${name}`) === null) localStorage.setItem(`agent.${name}`, JSON.stringify(value));
      }
    }, { user, ...kept });
    const page = await context.newPage();
    const window = new Window(this, context, page, user);
    await page.goto(url + path);
    return window;
  }

  close() {
    return this.chromium.close();
  }
}

export class Window {
  /** What went wrong in the page: errors that nobody caught, and what its policy refused. */
  faults = [];
  /** Hosts that were called. */
  hosts = new Set();

  constructor(browser, context, page, user) {
    Object.assign(this, { browser, context, page, user });
    page.on("pageerror", (error) => this.faults.push(String(error)));
    page.on("console", (message) => {
      // What the browser itself says of a refused or broken call, or of a page without TLS, is no fault of the page.
      if (message.type() === "error" && !/Failed to load resource|net::ERR|URL's origin was untrustworthy/.test(message.text())) this.faults.push(message.text());
    });
    page.on("request", (request) => this.hosts.add(new URL(request.url()).host));
  }

  button = (name) => this.page.getByRole("button", { name, exact: true });
  get message() {
    return this.page.getByRole("textbox", { name: /^(Message|消息)$/ });
  }
  get lastTurn() {
    return this.page.locator(".turn").last();
  }
  get lastAnswer() {
    return this.lastTurn.locator(".answer");
  }

  async ask(text) {
    await this.message.fill(text);
    await this.message.press("Enter");
  }

  /** Waits until a place shows a text. */
  async shows(place, text) {
    await place.filter({ hasText: text }).first().waitFor({ timeout: 30_000 });
  }

  /** Waits until the answer has its end. */
  async answered() {
    await this.lastTurn.and(this.page.locator('[aria-busy="false"]')).locator(".under").waitFor({ timeout: 30_000 });
  }

  /** A picture of the window, for the README and for whoever looks. */
  async picture(name) {
    // A caret that blinks would make every picture another one.
    await this.page.evaluate(() => document.fonts.ready);
    await this.page.screenshot({ path: join(this.browser.images, `${name}.png`), animations: "disabled", caret: "hide" });
  }

  /** Nothing serious that axe finds. */
  async isAccessible(state) {
    const { violations } = await new AxeBuilder({ page: this.page }).analyze();
    const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
    const told = serious.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join("\n")}`);
    assert.equal(serious.length, 0, `${state}: ${told.join("\n")}`);
  }

  /** Closes the window; the page must have done nothing that it may not do. */
  async close(hosts) {
    await this.context.close();
    assert.deepEqual(this.faults, []);
    assert.deepEqual([...this.hosts].filter((host) => !hosts.includes(host)), [], "nobody else is called");
  }
}

/** A way to a server that can be cut. */
export class Relay {
  #sockets = new Set();
  #isDown = false;
  #isHeld = false;
  #server;

  static async to(port) {
    const relay = new Relay();
    relay.#server = createServer((socket) => {
      if (relay.#isDown) return socket.destroy();
      if (relay.#isHeld) socket.cork();
      const other = connect(port, "127.0.0.1");
      for (const [from, to] of [[socket, other], [other, socket]]) {
        relay.#sockets.add(from);
        from.on("error", () => undefined);
        from.once("close", () => {
          relay.#sockets.delete(from);
          to.destroy();
        });
        from.pipe(to);
      }
    });
    await new Promise((resolve) => relay.#server.listen(0, "127.0.0.1", resolve));
    relay.url = `http://127.0.0.1:${relay.#server.address().port}`;
    return relay;
  }

  /** Ends all connections, and lets none in until it is up again. */
  cut() {
    this.#isDown = true;
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  restore() {
    this.#isDown = false;
    this.#isHeld = false;
  }

  /** Keeps back what the server says until it is released. */
  hold() {
    this.#isHeld = true;
    for (const socket of this.#sockets) socket.cork();
  }

  release() {
    this.#isHeld = false;
    for (const socket of this.#sockets) socket.uncork();
  }

  close() {
    this.cut();
    this.#server.close();
  }
}
