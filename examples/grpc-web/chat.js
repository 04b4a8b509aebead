// Asks the agent service a question and types the answer as it comes, by the official grpc-web.
//
//   npm ci && npm run generate
//   node chat.js [--cut-after N] [--stop-after N] [QUESTION]
//
// AGENT_URL, AGENT_USER and AGENT_TOKEN say where, for whom, and by which right. But for these, and for where it types,
// a web page does the same.

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

// In text mode answers come as they are made; in binary mode all at the end.
const client = new grpcWeb.GrpcWebClientBase({ format: "text" });
const RETRYABLE = [StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED, StatusCode.ABORTED];
// What a browser calls a connection that breaks within an answer.
const LOST = [StatusCode.UNAVAILABLE, StatusCode.UNKNOWN];

/** The arguments of a call. A code generator may write them; what it takes is no more than this. */
function call(method, request, timeoutMs, headers = {}) {
  const path = `/${method.parent.typeName}/${method.name}`;
  const metadata = {
    // Where there is a token, the user must be the token's.
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

/** Stores a memory. The same id again replaces it. */
async function remember() {
  const memory = { id: "exam", content: "The calculus exam is on the ninth of June" };
  await client.unaryCall(...call(MemoryService.method.addMemories, { memories: [memory] }, 10_000));
}

/** Shows one answer to its end, over as many connections as it takes; returns the last frame. */
async function ask(question) {
  const request = {
    requestId: crypto.randomUUID(), // makes it one answer, however often it is asked for
    input: { case: "message", value: question },
  };
  let last;
  for (let attempt = 1; ; attempt++) {
    let wait = attempt * 200;
    try {
      await read(request, last, (frame) => show((last = frame)));
    } catch (error) {
      const again = last ? LOST : [StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED];
      // The server may say how many milliseconds to wait, or by -1 that it is no use.
      const pushback = Number(error.metadata?.["grpc-retry-pushback-ms"] ?? wait);
      if (!again.includes(error.code) || attempt === 5 || pushback < 0) throw error;
      wait = pushback;
    }
    if (last && last.finishReason !== FinishReason.NULL) return last;
    console.error(last ? "[connection lost; resuming]" : "[not answered; trying again]");
    await new Promise((done) => setTimeout(done, wait));
  }
}

/** Reads the frames that come after the last one that was seen. */
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

/** Types the answer to standard output, and what else there is to tell to standard error. */
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

const hint = (retryable) => (retryable ? " (trying again may help)" : "");

try {
  await remember();
  const { content } = await ask(positionals[0] ?? "Make me a calculus review plan");
  if (content.case === "error") {
    // The answer had begun: its last frame says why it ended.
    console.error(`failed: ${content.value.code}: ${content.value.message}${hint(content.value.retryable)}`);
    process.exitCode = 1;
  }
} catch (error) {
  // There is no answer: the status of the call says why.
  const name = Object.keys(StatusCode).find((name) => StatusCode[name] === error.code) ?? error;
  const isNoUse = Number(error.metadata?.["grpc-retry-pushback-ms"]) < 0;
  console.error(`refused: ${name}: ${error.message}${hint(RETRYABLE.includes(error.code) && !isNoUse)}`);
  process.exitCode = 1;
}
