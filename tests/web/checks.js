// Calls the service as web pages do:
//
//   node checks.js PROVIDER_PORT URL_OF_THE_FUNCTIONS URL_OF_AGENT_LOCAL
//
// The provider is a part of this program: it goes on only after the client has seen what it said before, so that an answer that
// is held back anywhere on the way never comes to an end.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { AgentService, FinishReason } from "./gen/agent_service_pb.js";
import { MemoryService } from "./gen/memory_service_pb.js";
import { ConnectWeb, GrpcWeb, Refused } from "./clients.js";
import { Provider } from "./provider.js";

const INVALID_ARGUMENT = 3;
const UNIMPLEMENTED = 12;
const MEMORY = "特征值和特征向量我总是搞混 (eigenvalues)";

const [providerPort, functions, server] = process.argv.slice(2);
const provider = new Provider();
await provider.listen(Number(providerPort));
let failed = 0;

async function check(sentence, body) {
  try {
    await body();
    console.log(`ok  ${sentence}`);
  } catch (error) {
    failed += 1;
    provider.hangUp();
    console.log(`FAIL  ${sentence}`);
    console.log(error);
  }
}

/** The status with which a call is refused; a call that is answered fails the check. */
async function refusal(call) {
  const answer = await call.catch((error) => error);
  assert(answer instanceof Refused, `answered instead of refused: ${JSON.stringify(answer)?.slice(0, 400)}`);
  return answer;
}

/** How every answer must end: with the whole text, and nothing after it. */
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
  assert.deepEqual(ids, [...new Set(ids)].sort(), "the ids ascend");
  return last.content.value;
}

async function checkClient(where, Client, urls) {
  const chat = new Client(urls.chat);
  const retrieve = new Client(urls.retrieve);
  const manage = new Client(urls.manage);
  const { streamChat, retrieveMemory } = AgentService.method;
  const { addMemories } = MemoryService.method;
  const user = `user-${randomUUID()}`;
  const ask = (fields, headers) => chat.stream(streamChat, { userId: user, ...fields }, headers);
  const message = { input: { case: "message", value: "特征值是什么?" } };
  console.log(`\n${Client.title}, ${where}`);

  await check("each piece is seen before the next one is made", async () => {
    const frames = ask(message);
    const turn = await provider.turn();
    assert.equal(turn.asked.messages.at(-1).content.includes("特征值是什么?"), true);
    await frames.until(({ content }) => content.case === "statusUpdate", "a status before the provider says anything");
    for (const piece of ["特征值", " is λ", " in Av = λv. ", "🎓"]) {
      turn.say(piece);
      let seen = "";
      const isWhole = ({ content }) => content.case === "delta" && (seen += content.value) === piece;
      await frames.until(isWhole, `the piece ${piece}`);
    }
    turn.finish();
    await frames.rest();
    assert.equal(answerOf(frames), "特征值 is λ in Av = λv. 🎓");
    assert(frames.kinds().includes("usage"), frames.kinds().join(" "));
  });

  await check("what is added is found, and by nobody else", async () => {
    const added = await manage.unary(addMemories, { userId: user, memories: [{ id: "m", content: MEMORY }] });
    assert.deepEqual([added.ids, added.added], [["m"], 1]);
    const query = { userId: user, queryText: "eigenvalues" };
    const { items } = await retrieve.unary(retrieveMemory, query);
    assert.deepEqual([items[0]?.id, items[0]?.content], ["m", MEMORY]);
    const ofAnother = await retrieve.unary(retrieveMemory, { ...query, userId: `user-${randomUUID()}` });
    assert.equal(ofAnother.items.length, 0);
  });

  await check("an answer begins with what it is grounded in", async () => {
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

  await check("a failure of the provider is the last frame", async () => {
    const frames = ask(message);
    const turn = await provider.turn();
    turn.refuse(401, "wrong key");
    const last = (await frames.rest()).at(-1);
    assert.equal(last.content.case, "error");
    assert.match(last.content.value.code, /^PROVIDER_/);
    assert.equal(last.content.value.retryable, false);
    assert.equal(last.finishReason, FinishReason.ERROR);
  });

  await check("a refusal can be read: its code and its message", async () => {
    const stream = await refusal(ask({ ...message, sessionId: "a/b" }).rest());
    assert.equal(stream.code, INVALID_ARGUMENT);
    assert.match(stream.message, /session_id/);
    const unary = await refusal(retrieve.unary(retrieveMemory, { userId: user, queryText: " " }));
    assert.equal(unary.code, INVALID_ARGUMENT);
    assert.match(unary.message, /query_text/);
  });

  await check("a call that there is not is UNIMPLEMENTED", async () => {
    for (const client of [chat, retrieve, manage]) {
      const { code } = await refusal(client.unary({ ...retrieveMemory, name: "NoSuchCall" }, { userId: user }));
      assert.equal(code, UNIMPLEMENTED);
    }
  });

  if (urls === underWatch) {
    await check("at the client's deadline the last frame says that trying again helps", async () => {
      // By the header alone: with a deadline of its own the client might not wait for the last frame.
      const frames = ask(message, { "grpc-timeout": "2S" });
      const turn = await provider.turn();
      turn.say("It is");
      const last = (await frames.rest()).at(-1);
      assert.equal(last.content.case, "error");
      assert.equal(last.content.value.code, "DEADLINE_EXCEEDED");
      assert.equal(last.content.value.retryable, true);
      assert(frames.kinds().includes("delta"), frames.kinds().join(" "));
      provider.hangUp();
    });
  }

  await check("the next call is answered as if nothing had been", async () => {
    const frames = ask(message);
    const turn = await provider.turn();
    turn.say("λ");
    turn.finish();
    await frames.rest();
    assert.equal(answerOf(frames), "λ");
  });
}

const underWatch = {
  chat: `${functions}/stream-chat`,
  retrieve: `${functions}/retrieve-memory`,
  manage: `${functions}/manage-memory`,
};
const local = { chat: server, retrieve: server, manage: server };
for (const Client of [ConnectWeb, GrpcWeb]) {
  await checkClient("functions", Client, underWatch);
  await checkClient("agent-local", Client, local);
}
provider.close();
process.exitCode = failed > 0 ? 1 : 0;
