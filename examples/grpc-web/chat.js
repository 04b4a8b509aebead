// Asks the agent service a question and prints the answer as it streams, with the official grpc-web.
//
//   npm ci && npm run generate
//   node chat.js [--cut-after N] [--stop-after N] [QUESTION]
//
// Environment: AGENT_URL (service address), AGENT_USER (user id), AGENT_TOKEN (bearer token). The calls are the same in a web page.

import "./node.js";
import { parseArgs } from "node:util";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import grpcWeb from "grpc-web";
import { AgentService, AgentStatus_State, FinishReason } from "./gen/agent_service_pb.js";
import { ConversationService } from "./gen/conversation_service_pb.js";
import { MemoryService } from "./gen/memory_service_pb.js";

const { MethodDescriptor, MethodType, StatusCode } = grpcWeb;
const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { "cut-after": { type: "string" }, "stop-after": { type: "string" } },
});
const { AGENT_URL = "http://127.0.0.1:50051", AGENT_USER = "ann", AGENT_TOKEN } = process.env;

// grpc-web streams in text mode only; in binary mode all frames arrive at the end.
const client = new grpcWeb.GrpcWebClientBase({ format: "text" });
const RETRYABLE = [StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED, StatusCode.ABORTED];
// Browsers report a broken stream as UNKNOWN.
const LOST = [StatusCode.UNAVAILABLE, StatusCode.UNKNOWN];

/** Call arguments, which grpc-web's code generator could write as well. */
function call(method, request, timeoutMs, headers = {}) {
  const path = `/${method.parent.typeName}/${method.name}`;
  const metadata = {
    // With a token, the user must be its subject.
    "user-id": AGENT_USER,
    ...(AGENT_TOKEN && { authorization: `Bearer ${AGENT_TOKEN}` }),
    deadline: String(Date.now() + timeoutMs),
    ...headers,
  };
  const descriptor = new MethodDescriptor(
    path,
    method.methodKind === "unary" ? MethodType.UNARY : MethodType.SERVER_STREAMING,
    Object,
    Object,
    (message) => toBinary(method.input, message),
    (bytes) => fromBinary(method.output, bytes),
  );
  return [AGENT_URL + path, create(method.input, request), metadata, descriptor];
}

/** Stores a memory; idempotent by id. */
async function remember() {
  const memory = { id: "exam", content: "The calculus exam is on the ninth of June" };
  await client.unaryCall(...call(MemoryService.method.addMemories, { memories: [memory] }, 10_000));
}

/** Prints one answer to its end, resuming after lost connections; returns the last frame. */
async function ask(question) {
  const request = {
    requestId: crypto.randomUUID(), // makes retries idempotent
    input: { case: "message", value: question },
  };
  let last;
  for (let attempt = 1; ; attempt++) {
    let wait = attempt * 200;
    try {
      await read(request, last, (frame) => show((last = frame)));
    } catch (error) {
      const retryable = last ? LOST : [StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED];
      // Milliseconds to wait; -1: do not retry.
      const pushback = Number(error.metadata?.["grpc-retry-pushback-ms"] ?? wait);
      if (!retryable.includes(error.code) || attempt === 5 || pushback < 0) throw error;
      wait = pushback;
    }
    if (last && last.finishReason !== FinishReason.NULL) return last;
    console.error(last ? "[connection lost; resuming]" : "[no answer; retrying]");
    await new Promise((done) => setTimeout(done, wait));
  }
}

/** Reads the frames after the last received one. */
function read(request, last, onFrame) {
  return new Promise((resolve, reject) => {
    const headers = last && { "x-last-response-id": last.responseId };
    const stream = client.serverStreaming(...call(AgentService.method.streamChat, request, 300_000, headers));
    let frames = 0;
    stream.on("data", (frame) => {
      onFrame(frame);
      frames++;
      if (!last && frames === Number(options["cut-after"])) {
        stream.cancel();
        resolve();
      }
      if (!last && frames === Number(options["stop-after"])) {
        const { sessionId, requestId } = frame;
        client.unaryCall(...call(ConversationService.method.cancelTurn, { sessionId, requestId }, 10_000)).catch(reject);
      }
    });
    stream.on("error", reject);
    stream.on("end", resolve);
  });
}

/** Prints the answer to standard output, and everything else to standard error. */
function show({ content: { case: kind, value } }) {
  switch (kind) {
    case "statusUpdate":
      console.error(`[${AgentStatus_State[value.state]}] ${value.details}`);
      break;
    case "citations":
      for (const { score, content } of value.citations) console.error(`  ${score.toFixed(2)}  ${content}`);
      break;
    case "delta":
      process.stdout.write(value);
      break;
    case "usage":
      process.stdout.write("\n");
      console.error(`[${value.totalTokens} tokens]`);
  }
}

const hint = (retryable) => (retryable ? " (retryable)" : "");

try {
  await remember();
  const { content } = await ask(positionals[0] ?? "Make me a calculus review plan");
  if (content.case === "error") {
    // Failed after the first frame: an error frame.
    console.error(`failed: ${content.value.code}: ${content.value.message}${hint(content.value.retryable)}`);
    process.exitCode = 1;
  }
} catch (error) {
  // Refused before the first frame: a gRPC status.
  const name = Object.keys(StatusCode).find((name) => StatusCode[name] === error.code) ?? error;
  const isFinal = Number(error.metadata?.["grpc-retry-pushback-ms"]) < 0;
  console.error(`refused: ${name}: ${error.message}${hint(RETRYABLE.includes(error.code) && !isFinal)}`);
  process.exitCode = 1;
}
