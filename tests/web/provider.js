// An OpenAI-compatible provider that says the next thing only when a check lets it.

import { createServer } from "node:http";
import { Queue } from "./frames.js";

/** One turn that the provider was asked for. */
class Turn {
  #response;

  constructor(asked, response) {
    this.asked = asked;
    this.#response = response;
    /** The connection was closed, by whoever. */
    this.closed = new Promise((resolve) => response.once("close", resolve));
  }

  #event(data) {
    if (!this.#response.headersSent) this.#response.writeHead(200, { "content-type": "text/event-stream" });
    this.#response.write(`data: ${data}\n\n`);
  }

  #chunk(delta, finish_reason = null) {
    this.#event(JSON.stringify({ choices: [{ index: 0, delta, finish_reason }] }));
  }

  say(content) {
    this.#chunk({ content });
  }

  /** Calls tools: [id, name, arguments] of each. */
  call(...calls) {
    const tool_calls = calls.map(([id, name, given], index) => ({ index, id, type: "function", function: { name, arguments: JSON.stringify(given) } }));
    this.#chunk({ tool_calls });
    this.finish("tool_calls");
  }

  finish(reason = "stop") {
    this.#chunk({}, reason);
    this.#event(JSON.stringify({ choices: [], usage: { prompt_tokens: 7, completion_tokens: 3, total_tokens: 10 } }));
    this.#event("[DONE]");
    this.#response.end();
  }

  refuse(status, message) {
    this.#response.writeHead(status, { "content-type": "application/json" });
    this.#response.end(JSON.stringify({ error: { message } }));
  }
}

export class Provider {
  #turns = new Queue();
  #server = createServer(async (request, response) => {
    // Connections are warmed before the first turn.
    if (!request.url.endsWith("/chat/completions") || request.method !== "POST") return response.writeHead(404).end();
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const turn = new Turn(JSON.parse(Buffer.concat(chunks)), response);
    // The server asks of itself what a conversation is to be called; that is no turn of a check.
    if (/^(You name a conversation|你为.*对话命名)/.test(turn.asked.messages[0].content)) {
      turn.say("A title");
      return turn.finish();
    }
    this.#turns.push(turn);
  });

  async listen(port) {
    await new Promise((resolve, reject) => this.#server.once("error", reject).listen(port, "127.0.0.1", resolve));
  }

  turn() {
    return this.#turns.next("a request to the provider");
  }

  /** Ends what a failed check left open, lest it holds up the next. */
  hangUp() {
    this.#turns = new Queue();
    this.#server.closeAllConnections();
  }

  close() {
    this.#server.closeAllConnections();
    this.#server.close();
  }
}
