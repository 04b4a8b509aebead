// Browser driver: pages with helpers and assertions shared by all checks.

import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { connect, createServer } from "node:net";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { AxeBuilder } from "@axe-core/playwright";
import { chromium } from "playwright-core";

/** No background network traffic; and no sandbox, so that it runs as root in a container. */
const LAUNCH_ARGUMENTS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  // A host name that is not a secure context, unlike localhost.
  "--host-resolver-rules=MAP page.test 127.0.0.1",
];
const DESKTOP = { width: 1280, height: 800 };
export const PHONE = { width: 390, height: 844 };

/** A signed JWT for a user. */
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
    browser.chromium = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: LAUNCH_ARGUMENTS });
    return browser;
  }

  /** Opens the page in a new context with its own user. `stored` prefills localStorage. */
  async open(url, { locale = "en-US", viewport = DESKTOP, scheme = "light", user = crypto.randomUUID(), stored = {}, path = "" } = {}) {
    const context = await this.chromium.newContext({ locale, viewport, colorScheme: scheme, acceptDownloads: true, hasTouch: viewport === PHONE });
    await context.grantPermissions(["clipboard-read", "clipboard-write"]);
    await context.addInitScript((entries) => {
      for (const [name, value] of Object.entries(entries)) {
        if (localStorage.getItem(`agent.${name}`) === null) localStorage.setItem(`agent.${name}`, JSON.stringify(value));
      }
    }, { user, ...stored });
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
  /** Uncaught errors and content security policy violations. */
  pageErrors = [];
  /** Hosts that the page sent requests to. */
  hosts = new Set();

  constructor(browser, context, page, user) {
    Object.assign(this, { browser, context, page, user });
    page.on("pageerror", (error) => this.pageErrors.push(String(error)));
    page.on("console", (message) => {
      // The browser's own messages about failed requests and insecure origins are expected.
      if (message.type() === "error" && !/Failed to load resource|net::ERR|URL's origin was untrustworthy/.test(message.text())) this.pageErrors.push(message.text());
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

  /** Waits until a locator contains a text or matches a pattern. */
  async shows(locator, text) {
    await locator.filter({ hasText: text }).first().waitFor({ timeout: 30_000 });
  }

  /** Waits until the last answer is complete. */
  async answered() {
    await this.lastTurn.and(this.page.locator('[aria-busy="false"]')).locator(".under").waitFor({ timeout: 30_000 });
  }

  /** Saves a screenshot, for the documentation. */
  async screenshot(name) {
    // Hidden caret and no animations: screenshots must be reproducible.
    await this.page.evaluate(() => document.fonts.ready);
    await this.page.screenshot({ path: join(this.browser.images, `${name}.png`), animations: "disabled", caret: "hide" });
  }

  /** Asserts that axe finds no serious or critical violation. */
  async assertAccessible(state) {
    const { violations } = await new AxeBuilder({ page: this.page }).analyze();
    const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
    const details = serious.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join("\n")}`);
    assert.equal(serious.length, 0, `${state}: ${details.join("\n")}`);
  }

  /** Closes the window and asserts that the page raised no errors and called only the given hosts. */
  async close(allowedHosts) {
    await this.context.close();
    assert.deepEqual(this.pageErrors, []);
    assert.deepEqual([...this.hosts].filter((host) => !allowedHosts.includes(host)), [], "only the allowed hosts are called");
  }
}

/** A TCP relay that can drop or delay traffic. */
export class Relay {
  #sockets = new Set();
  #browsers = new Set();
  #isDown = false;
  #isHeld = false;
  #server;

  static async to(port) {
    const relay = new Relay();
    relay.#server = createServer((socket) => {
      if (relay.#isDown) return socket.destroy();
      relay.#browsers.add(socket);
      socket.once("close", () => relay.#browsers.delete(socket));
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

  /** Resets all connections and refuses new ones until `restore`. */
  cut() {
    this.#isDown = true;
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  restore() {
    this.#isDown = false;
    this.#isHeld = false;
  }

  /** Buffers what the server sends until `release`. Requests pass, also on connections that are open already. */
  hold() {
    this.#isHeld = true;
    for (const socket of this.#browsers) socket.cork();
  }

  release() {
    this.#isHeld = false;
    for (const socket of this.#browsers) socket.uncork();
  }

  close() {
    this.cut();
    this.#server.close();
  }
}
