// Asks the agent service a question and types the answer as it comes, by @connectrpc/connect-web.
//
//   npm ci && npm run generate && npm run build
//   node dist/chat.js [--cut-after N] [--stop-after N] [QUESTION]
//
// AGENT_URL, AGENT_USER and AGENT_TOKEN say where, for whom, and by which right. But for these, and for where it types,
// a web page does the same.

import { parseArgs } from "node:util";
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import {
  AgentService,
  AgentStatus_State,
  ChatRequestSchema,
  type ChatRequest,
  type ChatResponse,
  FinishReason,
} from "./gen/agent_service_pb.js";
import { ConversationService } from "./gen/conversation_service_pb.js";
import { MemoryService } from "./gen/memory_service_pb.js";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { "cut-after": { type: "string" }, "stop-after": { type: "string" } },
});
const { AGENT_URL = "http://127.0.0.1:50051", AGENT_USER = "ann", AGENT_TOKEN } = process.env;

// What goes along with every call. Where there is a token, the user must be the token's.
const identify: Interceptor = (next) => (call) => {
  call.header.set("user-id", AGENT_USER);
  if (AGENT_TOKEN) call.header.set("authorization", `Bearer ${AGENT_TOKEN}`);
  return next(call);
};
const transport = createGrpcWebTransport({ baseUrl: AGENT_URL, interceptors: [identify] });
const agent = createClient(AgentService, transport);
const memories = createClient(MemoryService, transport);
const conversations = createClient(ConversationService, transport);

const RETRYABLE = [Code.Unavailable, Code.ResourceExhausted, Code.Aborted];
// CANCELLED is what hanging up looks like; a connection that breaks within an answer is UNKNOWN to a browser.
const LOST = [Code.Unavailable, Code.Canceled, Code.Unknown];

/** Stores a memory. The same id again replaces it. */
async function remember() {
  const memory = { id: "exam", content: "The calculus exam is on the ninth of June" };
  await memories.addMemories({ memories: [memory] }, { timeoutMs: 10_000 });
}

/** Shows one answer to its end, over as many connections as it takes; returns the last frame. */
async function ask(question: string): Promise<ChatResponse> {
  const request = create(ChatRequestSchema, {
    requestId: crypto.randomUUID(), // makes it one answer, however often it is asked for
    input: { case: "message", value: question },
  });
  let last: ChatResponse | undefined;
  for (let attempt = 1; ; attempt++) {
    let wait = attempt * 200;
    try {
      for await (const frame of read(request, last)) {
        last = frame;
        show(frame);
      }
    } catch (caught) {
      const error = ConnectError.from(caught);
      const again = last ? LOST : [Code.Unavailable, Code.ResourceExhausted];
      // The server may say how many milliseconds to wait, or by -1 that it is no use.
      const pushback = Number(error.metadata.get("grpc-retry-pushback-ms") ?? wait);
      if (!again.includes(error.code) || attempt === 5 || pushback < 0) throw error;
      wait = pushback;
    }
    if (last && last.finishReason !== FinishReason.NULL) return last;
    console.error(last ? "[connection lost; resuming]" : "[not answered; trying again]");
    await new Promise((done) => setTimeout(done, wait));
  }
}

/** The frames that come after the last one that was seen. */
async function* read(request: ChatRequest, last?: ChatResponse) {
  const headers = new Headers(last && { "x-last-response-id": last.responseId });
  const leaving = new AbortController();
  let frames = 0;
  for await (const frame of agent.streamChat(request, { headers, signal: leaving.signal, timeoutMs: 300_000 })) {
    yield frame;
    frames++;
    if (!last && frames === Number(options["cut-after"])) leaving.abort();
    if (!last && frames === Number(options["stop-after"])) {
      await conversations.cancelTurn({ sessionId: frame.sessionId, requestId: frame.requestId });
    }
  }
}

/** Types the answer to standard output, and what else there is to tell to standard error. */
function show({ content }: ChatResponse) {
  switch (content.case) {
    case "statusUpdate":
      console.error(`[${AgentStatus_State[content.value.state]}] ${content.value.details}`);
      break;
    case "citations":
      for (const { score, content: text } of content.value.citations) console.error(`  ${score.toFixed(2)}  ${text}`);
      break;
    case "delta":
      process.stdout.write(content.value);
      break;
    case "usage":
      process.stdout.write("\n");
      console.error(`[${content.value.totalTokens} tokens]`);
  }
}

const hint = (retryable: boolean) => (retryable ? " (trying again may help)" : "");

try {
  await remember();
  const { content } = await ask(positionals[0] ?? "Make me a calculus review plan");
  if (content.case === "error") {
    // The answer had begun: its last frame says why it ended.
    console.error(`failed: ${content.value.code}: ${content.value.message}${hint(content.value.retryable)}`);
    process.exitCode = 1;
  }
} catch (caught) {
  // There is no answer: the status of the call says why.
  const { code, rawMessage, metadata } = ConnectError.from(caught);
  const isNoUse = Number(metadata.get("grpc-retry-pushback-ms")) < 0;
  console.error(`refused: ${Code[code]}: ${rawMessage}${hint(RETRYABLE.includes(code) && !isNoUse)}`);
  process.exitCode = 1;
}
