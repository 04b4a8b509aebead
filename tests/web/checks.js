// Calls the service with the client libraries of web pages:
//
//   node checks.js PROVIDER_PORT FUNCTIONS_URL AGENT_LOCAL_URL
//
// The model provider runs in this process and sends the next piece only after the client has received the previous one, so a
// response that is buffered anywhere on the way never completes.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { AgentService, FinishReason } from "./gen/agent_service_pb.js";
import { MemoryService } from "./gen/memory_service_pb.js";
import { ConnectWeb, GrpcWeb, CallError } from "./clients.js";
import { Provider } from "./provider.js";

const INVALID_ARGUMENT = 3;
const UNIMPLEMENTED = 12;
const MEMORY = "特征值和特征向量我总是搞混 (eigenvalues)";

const [providerPort, functions, server] = process.argv.slice(2);
const provider = new Provider();
await provider.listen(Number(providerPort));
let failed = 0;

async function check(name, body) {
  try {
    await body();
    console.log(`ok  ${name}`);
  } catch (error) {
    failed += 1;
    provider.reset();
    console.log(`FAIL  ${name}`);
    console.log(error);
  }
}

/** Returns the error of a call that must be refused. */
async function refusal(call) {
  const answer = await call.catch((error) => error);
  assert(answer instanceof CallError, `answered instead of refused: ${JSON.stringify(answer)?.slice(0, 400)}`);
  return answer;
}

/** Asserts that the stream ended with `full_text` and STOP, and returns the text. */
function answerOf(frames) {
  const { seen } = frames;
  const last = seen.at(-1);
  const pieces = seen.filter(({ content }) => content.case === "delta").map(({ content }) => content.value);
  assert.equal(last.content.case, "fullText", frames.kinds().join(" "));
  assert.equal(last.content.value, pieces.join(""));
  assert.deepEqual(
    seen.map((frame) => frame.finishReason),
    [...seen.slice(1).map(() => FinishReason.NULL), FinishReason.STOP],
  );
  const ids = seen.map((frame) => frame.responseId);
  assert.deepEqual(ids, [...new Set(ids)].sort(), "response ids ascend");
  return last.content.value;
}

async function checkClient(target, Client, urls) {
  const chat = new Client(urls.chat);
  const retrieve = new Client(urls.retrieve);
  const manage = new Client(urls.manage);
  const { streamChat, retrieveMemory } = AgentService.method;
  const { addMemories } = MemoryService.method;
  const user = `user-${randomUUID()}`;
  const ask = (fields, headers) => chat.stream(streamChat, { userId: user, ...fields }, headers);
  const message = { input: { case: "message", value: "特征值是什么?" } };
  console.log(`\n${Client.title}, ${target}`);

  await check("deltas_arrive_before_next_is_produced", async () => {
    const frames = ask(message);
    const turn = await provider.turn();
    assert.equal(turn.request.messages.at(-1).content.includes("特征值是什么?"), true);
    await frames.until(({ content }) => content.case === "statusUpdate", "a status before the provider's first piece");
    for (const piece of ["特征值", " is λ", " in Av = λv. ", "🎓"]) {
      turn.say(piece);
      let seen = "";
      const isComplete = ({ content }) => content.case === "delta" && (seen += content.value) === piece;
      await frames.until(isComplete, `the piece ${piece}`);
    }
    turn.finish();
    await frames.rest();
    assert.equal(answerOf(frames), "特征值 is λ in Av = λv. 🎓");
    assert(frames.kinds().includes("usage"), frames.kinds().join(" "));
  });

  await check("added_memory_is_found_by_owner_only", async () => {
    const added = await manage.unary(addMemories, { userId: user, memories: [{ id: "m", content: MEMORY }] });
    assert.deepEqual([added.ids, added.added], [["m"], 1]);
    const query = { userId: user, queryText: "eigenvalues" };
    const { items } = await retrieve.unary(retrieveMemory, query);
    assert.deepEqual([items[0]?.id, items[0]?.content], ["m", MEMORY]);
    const ofOtherUser = await retrieve.unary(retrieveMemory, { ...query, userId: `user-${randomUUID()}` });
    assert.equal(ofOtherUser.items.length, 0);
  });

  await check("answer_starts_with_citations", async () => {
    const frames = ask(message);
    const turn = await provider.turn();
    const { content } = await frames.until(({ content }) => content.case === "citations", "citations");
    assert.deepEqual(content.value.citations.map((citation) => citation.id), ["m"]);
    assert.deepEqual(frames.kinds(), ["THINKING", "SEARCHING", "citations"]);
    turn.say("You mix them up.");
    turn.finish();
    await frames.rest();
    answerOf(frames);
  });

  await check("provider_failure_is_last_frame", async () => {
    const frames = ask(message);
    const turn = await provider.turn();
    turn.refuse(401, "wrong key");
    const last = (await frames.rest()).at(-1);
    assert.equal(last.content.case, "error");
    assert.match(last.content.value.code, /^PROVIDER_/);
    assert.equal(last.content.value.retryable, false);
    assert.equal(last.finishReason, FinishReason.ERROR);
  });

  await check("refusal_carries_code_and_message", async () => {
    const stream = await refusal(ask({ ...message, sessionId: "a/b" }).rest());
    assert.equal(stream.code, INVALID_ARGUMENT);
    assert.match(stream.message, /session_id/);
    const unary = await refusal(retrieve.unary(retrieveMemory, { userId: user, queryText: " " }));
    assert.equal(unary.code, INVALID_ARGUMENT);
    assert.match(unary.message, /query_text/);
  });

  await check("unknown_rpc_is_unimplemented", async () => {
    for (const client of [chat, retrieve, manage]) {
      const { code } = await refusal(client.unary({ ...retrieveMemory, name: "NoSuchCall" }, { userId: user }));
      assert.equal(code, UNIMPLEMENTED);
    }
  });

  if (urls === lambda) {
    await check("client_deadline_ends_with_retryable_error", async () => {
      // Only the header: with its own deadline the client might not wait for the last frame.
      const frames = ask(message, { "grpc-timeout": "2S" });
      const turn = await provider.turn();
      turn.say("It is");
      const last = (await frames.rest()).at(-1);
      assert.equal(last.content.case, "error");
      assert.equal(last.content.value.code, "DEADLINE_EXCEEDED");
      assert.equal(last.content.value.retryable, true);
      assert(frames.kinds().includes("delta"), frames.kinds().join(" "));
      provider.reset();
    });
  }

  await check("next_call_is_unaffected", async () => {
    const frames = ask(message);
    const turn = await provider.turn();
    turn.say("λ");
    turn.finish();
    await frames.rest();
    assert.equal(answerOf(frames), "λ");
  });
}

const lambda = {
  chat: `${functions}/stream-chat`,
  retrieve: `${functions}/retrieve-memory`,
  manage: `${functions}/manage-memory`,
};
const local = { chat: server, retrieve: server, manage: server };
for (const Client of [ConnectWeb, GrpcWeb]) {
  await checkClient("functions", Client, lambda);
  await checkClient("agent-local", Client, local);
}
provider.close();
process.exitCode = failed > 0 ? 1 : 0;
