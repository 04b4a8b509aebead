// An OpenAI-compatible provider whose output is controlled by the checks.

import { createServer } from "node:http";
import { Queue } from "./frames.js";

/** One chat completion in progress. */
class Turn {
  #response;

  constructor(request, response) {
    this.request = request;
    this.#response = response;
    /** Resolves when either side closes the connection. */
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
    const tool_calls = calls.map(([id, name, args], index) => ({ index, id, type: "function", function: { name, arguments: JSON.stringify(args) } }));
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
    // The server also opens connections in advance.
    if (!request.url.endsWith("/chat/completions") || request.method !== "POST") return response.writeHead(404).end();
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const turn = new Turn(JSON.parse(Buffer.concat(chunks)), response);
    // Requests for titles and summaries are answered here; they come at any time and do not belong to a check.
    if (/^(You name a conversation|你为.*对话命名|You sum up|你概括)/.test(turn.request.messages[0].content)) {
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

  /** Drops the turns and connections that a failed check left open. */
  reset() {
    this.#turns = new Queue();
    this.#server.closeAllConnections();
  }

  close() {
    this.#server.closeAllConnections();
    this.#server.close();
  }
}
