// Asks the agent service a question and prints the answer as it streams, with @connectrpc/connect-web.
//
//   npm ci && npm run generate && npm run build
//   node dist/chat.js [--cut-after N] [--stop-after N] [QUESTION]
//
// Environment: AGENT_URL (service address), AGENT_USER (user id), AGENT_TOKEN (bearer token). The calls are the same in a web page.

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

// Metadata of every call. With a token, the user must be its subject.
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
// A call cancelled by the client itself ends with CANCELLED; browsers report a broken stream as UNKNOWN.
const LOST = [Code.Unavailable, Code.Canceled, Code.Unknown];

/** Stores a memory; idempotent by id. */
async function remember() {
  const memory = { id: "exam", content: "The calculus exam is on the ninth of June" };
  await memories.addMemories({ memories: [memory] }, { timeoutMs: 10_000 });
}

/** Prints one answer to its end, resuming after lost connections; returns the last frame. */
async function ask(question: string): Promise<ChatResponse> {
  const request = create(ChatRequestSchema, {
    requestId: crypto.randomUUID(), // makes retries idempotent
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
      const retryable = last ? LOST : [Code.Unavailable, Code.ResourceExhausted];
      // Milliseconds to wait; -1: do not retry.
      const pushback = Number(error.metadata.get("grpc-retry-pushback-ms") ?? wait);
      if (!retryable.includes(error.code) || attempt === 5 || pushback < 0) throw error;
      wait = pushback;
    }
    if (last && last.finishReason !== FinishReason.NULL) return last;
    console.error(last ? "[connection lost; resuming]" : "[no answer; retrying]");
    await new Promise((done) => setTimeout(done, wait));
  }
}

/** Yields the frames after the last received one. */
async function* read(request: ChatRequest, last?: ChatResponse) {
  const headers = new Headers(last && { "x-last-response-id": last.responseId });
  const disconnect = new AbortController();
  let frames = 0;
  for await (const frame of agent.streamChat(request, { headers, signal: disconnect.signal, timeoutMs: 300_000 })) {
    yield frame;
    frames++;
    if (!last && frames === Number(options["cut-after"])) disconnect.abort();
    if (!last && frames === Number(options["stop-after"])) {
      await conversations.cancelTurn({ sessionId: frame.sessionId, requestId: frame.requestId });
    }
  }
}

/** Prints the answer to standard output, and everything else to standard error. */
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

const hint = (retryable: boolean) => (retryable ? " (retryable)" : "");

try {
  await remember();
  const { content } = await ask(positionals[0] ?? "Make me a calculus review plan");
  if (content.case === "error") {
    // Failed after the first frame: an error frame.
    console.error(`failed: ${content.value.code}: ${content.value.message}${hint(content.value.retryable)}`);
    process.exitCode = 1;
  }
} catch (caught) {
  // Refused before the first frame: a gRPC status.
  const { code, rawMessage, metadata } = ConnectError.from(caught);
  const isFinal = Number(metadata.get("grpc-retry-pushback-ms")) < 0;
  console.error(`refused: ${Code[code]}: ${rawMessage}${hint(RETRYABLE.includes(code) && !isFinal)}`);
  process.exitCode = 1;
}
