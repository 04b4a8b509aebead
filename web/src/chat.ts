// The conversation that is open: its turns, the one that is being answered, and what a user does to it.

import { clone, create, type MessageInitShape } from "@bufbuild/protobuf";
import { computed, signal, type Signal } from "@preact/signals";
import { failureOf } from "./failure.ts";
import { ChatRequestSchema, FinishReason, type ChatRequest, type ChatResponse } from "./gen/agent_service_pb.ts";
import { service } from "./service.ts";
import { sessions } from "./sessions.ts";
import { settings, userId } from "./settings.ts";
import { frames } from "./stream.ts";
import { keptTurn, newTurn, owed, withFrame, withText, type Failure, type ToolUse, type Turn } from "./turn.ts";
import { forget, recalled, remember } from "./unfinished.ts";

/** Turns that are asked for at a time. */
const PAGE = 30;
/** How often it is looked whether an answer that another page asked for has come, in milliseconds. */
const LOOK_AGAIN_MS = 2000;
/** How long it may take to tell the service to stop, in milliseconds. */
const STOP_MS = 5000;

/** A call that runs, and what belongs to it. */
interface Running {
  /** All requests of its turn; the last one runs. */
  requests: ChatRequest[];
  abort: AbortController;
  /** The user wants no more of it. */
  isStopped: boolean;
}

/** The open conversation; empty: a new one. */
export const sessionId = signal("");
/** Its turns, oldest first; each is a signal of its own, so that a delta touches one turn alone. */
export const turns = signal<Signal<Turn>[]>([]);
/** Where earlier turns go on; empty: there are none. */
export const earlier = signal("");
export const isLoading = signal(false);
/** The conversation could not be opened. */
export const loadFailure = signal<Failure | undefined>(undefined);
/** An answer is being made, here or for another page. */
export const isAnswering = signal(false);
/** A question can be asked: what was said before is there, and nothing else is being answered. */
export const canAsk = computed(() => !isAnswering.value && loadFailure.value === undefined && !(isLoading.value && turns.value.length === 0));
/** What is being written. */
export const draft = signal("");

/** Counts conversations that were opened: what an earlier one still brings is not wanted any more. */
export const opened = signal(0);

let running: Running | undefined;
/** What was sent for a turn: its question, then results of tools. */
const requestsOf = new WeakMap<Signal<Turn>, ChatRequest[]>();
/** What a turn that failed goes on with, and how it stood before. */
const remedies = new WeakMap<Signal<Turn>, { request: ChatRequest; before: Turn }>();

// ---- opening ----

export function openNew(): void {
  leave();
  sessionId.value = "";
}

export async function open(id: string): Promise<void> {
  leave();
  sessionId.value = id;
  const turnedTo = opened.value;
  isLoading.value = true;
  try {
    const { session, turns: kept, nextPageToken } = await service.conversations.getSession({ userId: userId(), sessionId: id, pageSize: PAGE });
    if (turnedTo !== opened.value) return;
    turns.value = kept.reverse().map((turn) => signal(keptTurn(turn)));
    earlier.value = nextPageToken;
    takeUp(id, session?.runningRequestId ?? "");
  } catch (error) {
    if (turnedTo !== opened.value) return;
    const failure = failureOf(error);
    // The first answer of a conversation may still be on its way into it.
    if (failure.code === "NOT_FOUND" && takeUp(id, "")) return;
    loadFailure.value = failure;
  } finally {
    if (turnedTo === opened.value) isLoading.value = false;
  }
}

export async function loadEarlier(): Promise<void> {
  const [token, turnedTo] = [earlier.value, opened.value];
  if (token === "" || isLoading.value) return;
  isLoading.value = true;
  try {
    const page = await service.conversations.getSession({ userId: userId(), sessionId: sessionId.value, pageSize: 100, pageToken: token });
    if (turnedTo !== opened.value) return;
    turns.value = [...page.turns.reverse().map((turn) => signal(keptTurn(turn))), ...turns.value];
    earlier.value = page.nextPageToken;
  } catch {
    // Scrolling on asks again.
  } finally {
    if (turnedTo === opened.value) isLoading.value = false;
  }
}

/** Leaves the open conversation; an answer that is being made goes on without this page. */
function leave(): void {
  opened.value += 1;
  running?.abort.abort();
  running = undefined;
  turns.value = [];
  earlier.value = "";
  isLoading.value = false;
  isAnswering.value = false;
  loadFailure.value = undefined;
}

/** Goes on with a turn that has no end yet, after the page was left or loaded again. */
function takeUp(id: string, runningRequestId: string): boolean {
  const requests = recalled(id);
  const isKept = requests.length > 0 && turns.value.some((turn) => requests.some(({ requestId }) => requestId === turn.value.key));
  if (isKept) forget(id);
  if (requests.length > 0 && !isKept) {
    const turn = addTurn(requests[0]!);
    // Each request is answered again as it was before, up to where it is now.
    void (async () => {
      for (const request of requests) if (!(await call(turn, request))) return;
    })();
    return true;
  }
  if (runningRequestId !== "") void awaitOther(id);
  return false;
}

/** Another page asked, and only it knows what; the answer is seen when it is there. */
async function awaitOther(id: string): Promise<void> {
  const turnedTo = opened.value;
  isAnswering.value = true;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS));
    if (turnedTo !== opened.value) return;
    const answer = await service.conversations.getSession({ userId: userId(), sessionId: id, pageSize: PAGE }).catch(() => undefined);
    if (turnedTo !== opened.value) return;
    if (answer === undefined || answer.session?.runningRequestId !== "") continue;
    turns.value = answer.turns.reverse().map((turn) => signal(keptTurn(turn)));
    earlier.value = answer.nextPageToken;
    isAnswering.value = false;
    return;
  }
}

// ---- asking ----

export async function ask(message: string): Promise<void> {
  const request = requestFor({ case: "message", value: message });
  await call(addTurn(request), request);
}

/** Goes on with what was not answered, or asks it again. */
export async function retry(failed: Signal<Turn>): Promise<void> {
  const remedy = remedies.get(failed);
  if (remedy !== undefined) {
    remedies.delete(failed);
    failed.value = remedy.before;
    // They may have signed in meanwhile.
    remedy.request.userId = userId();
    return void (await call(failed, remedy.request));
  }
  const { question, parts } = failed.value;
  // What was said so far stays, as it does in what is kept.
  if (parts.length === 0) turns.value = turns.value.filter((turn) => turn !== failed);
  await ask(question);
}

/** Hands in what came of a tool that the client was asked to run. */
export async function handIn(turn: Signal<Turn>, tool: ToolUse, result: { isError: boolean; text: string }): Promise<void> {
  const value = { toolCallId: tool.id, toolName: tool.name, resultJson: result.isError ? "" : result.text, isError: result.isError, errorMessage: result.isError ? result.text : "" };
  await call(turn, requestFor({ case: "toolResult", value }));
}

/** Stops the answer that is being made. What was said so far stays. */
export async function stop(): Promise<void> {
  const stopped = running;
  if (stopped !== undefined && sessionId.value === "") {
    // A new conversation can be named only after its first frame, which is not waited for much longer.
    stopped.isStopped = true;
    setTimeout(() => stopped.abort.abort(), STOP_MS);
    return;
  }
  // Without a request it is the one that another page asked for.
  const requestId = stopped?.requests.at(-1)?.requestId ?? "";
  const { cancelled } = await service.conversations
    .cancelTurn({ userId: userId(), sessionId: sessionId.value, requestId }, { timeoutMs: STOP_MS })
    .catch(() => ({ cancelled: false }));
  // Its stream says that it was cancelled. Where nobody could be told, the connection is closed, which stops it as well.
  if (!cancelled) stopped?.abort.abort();
}

function requestFor(input: NonNullable<MessageInitShape<typeof ChatRequestSchema>["input"]>): ChatRequest {
  const { language, nickname, tools, recall } = settings;
  return create(ChatRequestSchema, {
    userId: userId(),
    sessionId: sessionId.value,
    requestId: newId(),
    input,
    userProfile: {
      nickname: nickname.value.trim(),
      language: language.value === "zh" ? "zh-CN" : "en",
      timezone: Intl.DateTimeFormat().resolvedOptions().timeZone,
    },
    config: { toolsEnabled: tools.value },
    ...(recall.value ? {} : { useDocumentContext: false }),
  });
}

/** Unique. A page that came without TLS has no `crypto.randomUUID`. */
const newId = (): string => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

function addTurn(request: ChatRequest): Signal<Turn> {
  const turn = signal(newTurn(request.requestId, request.input.case === "message" ? request.input.value : ""));
  turns.value = [...turns.value, turn];
  return turn;
}

/** Runs one request of a turn to its end; false where the turn can not go on. */
async function call(turn: Signal<Turn>, request: ChatRequest): Promise<boolean> {
  if (request.input.case === "toolResult") {
    const { toolCallId, isError, resultJson, errorMessage } = request.input.value;
    answerTool(turn, toolCallId, { isError, text: isError ? errorMessage : resultJson });
  }
  const before = turn.value;
  const turnedTo = opened.value;
  const abort = new AbortController();
  const requests = [...(requestsOf.get(turn) ?? []), request];
  requestsOf.set(turn, requests);
  running = { requests, abort, isStopped: false };
  isAnswering.value = true;
  turn.value = { ...before, status: before.status ?? "thinking", statusText: "" };
  remember(sessionId.value, requests);

  const deltas = new Deltas((text) => (turn.value = withText(turn.value, text)));
  const lost = () => (turn.value = { ...turn.value, isReconnecting: true });
  let isHeard = false;
  let finish = FinishReason.NULL;
  try {
    for await (const frame of frames(request, abort.signal, lost)) {
      if (turnedTo !== opened.value) return false;
      isHeard = true;
      adopt(frame);
      if (frame.content.case === "delta") {
        deltas.add(frame.content.value);
        continue;
      }
      deltas.flush();
      turn.value = withFrame(turn.value, frame);
      finish = frame.finishReason;
    }
    return finish !== FinishReason.ERROR;
  } catch (error) {
    if (turnedTo !== opened.value) return false;
    deltas.flush();
    const { status: _, ...ended } = turn.value;
    turn.value = abort.signal.aborted
      ? { ...ended, isReconnecting: false, isInterrupted: true }
      : { ...ended, isReconnecting: false, failure: failureOf(error) };
    return false;
  } finally {
    deltas.drop();
    if (turnedTo === opened.value) {
      running = undefined;
      isAnswering.value = false;
      settle(turn, before, isHeard);
      // A new conversation gets its title a little later.
      void sessions.refresh().then(() => turns.value.length === 1 && sessions.refreshLater());
    }
  }
}

/** Looks what is left to do for a turn after a request of it. */
function settle(turn: Signal<Turn>, before: Turn, isHeard: boolean): void {
  const sent = requestsOf.get(turn) ?? [];
  const request = sent.at(-1);
  const { failure } = turn.value;
  const isResult = request?.input.case === "toolResult";
  const isRemedied = failure?.retryable === true && (isResult || !isHeard);
  if (request !== undefined && isRemedied) {
    requestsOf.set(turn, sent.slice(0, -1));
    // What nothing was heard of may run all the same, and is still the same request. What failed has to be another one.
    const next = clone(ChatRequestSchema, request);
    if (isHeard) next.requestId = newId();
    remedies.set(turn, { request: next, before });
  }
  // What the service does not take can be written in another way.
  if (failure?.retryable === false && !isHeard && request?.input.case === "message") draft.value ||= request.input.value;
  if (owed(turn.value).length === 0 && !(isRemedied && isResult)) forget(sessionId.value);
}

/** Learns from the first frame which conversation the server began. */
function adopt(frame: ChatResponse): void {
  if (sessionId.value === frame.sessionId) return;
  sessionId.value = frame.sessionId;
  remember(frame.sessionId, running?.requests ?? []);
  if (running?.isStopped) void stop();
  void sessions.refresh();
}

function answerTool(turn: Signal<Turn>, id: string, result: { isError: boolean; text: string }): void {
  const parts = turn.value.parts.map((part) => (part.kind === "tool" && part.id === id && part.isAsked ? { ...part, result } : part));
  turn.value = { ...turn.value, parts };
}

/** Pieces of an answer, shown at most once for each picture that the screen draws. */
class Deltas {
  #text = "";
  #picture = 0;
  readonly #show: (text: string) => void;

  constructor(show: (text: string) => void) {
    this.#show = show;
  }

  add(delta: string): void {
    this.#text += delta;
    // A page in the background draws no pictures; what it gathers is shown when it is looked at, or at the end.
    if (this.#picture === 0) this.#picture = requestAnimationFrame(() => this.flush());
  }

  flush(): void {
    const text = this.#text;
    this.drop();
    if (text !== "") this.#show(text);
  }

  drop(): void {
    cancelAnimationFrame(this.#picture);
    this.#picture = 0;
    this.#text = "";
  }
}
