// The open conversation: its turns, the running call, and the actions of the user.

import { clone, create, type MessageInitShape } from "@bufbuild/protobuf";
import { computed, signal, type Signal } from "@preact/signals";
import { failureOf } from "./failure.ts";
import { ChatRequestSchema, FinishReason, type ChatRequest, type ChatResponse } from "./gen/agent_service_pb.ts";
import { service } from "./service.ts";
import { sessions } from "./sessions.ts";
import { settings, userId } from "./settings.ts";
import { streamFrames } from "./stream.ts";
import { turnFromStored, newTurn, pendingToolUses, applyFrame, appendText, type Failure, type ToolUse, type Turn } from "./turn.ts";
import { removeRequests, loadRequests, saveRequests } from "./unfinished.ts";

/** Turns per page of GetSession. */
const PAGE_SIZE = 30;
const POLL_INTERVAL_MS = 2000;
/** Timeout of CancelTurn. */
const CANCEL_TIMEOUT_MS = 5000;

interface ActiveCall {
  /** All requests of the turn; the last one is running. */
  requests: ChatRequest[];
  abort: AbortController;
  isStopRequested: boolean;
}

/** Empty: a new conversation. */
export const sessionId = signal("");
/** Oldest first. Each turn is a signal of its own, so that a delta renders one turn only. */
export const turns = signal<Signal<Turn>[]>([]);
/** Empty: there are no earlier turns. */
export const earlierPageToken = signal("");
export const isLoading = signal(false);
export const loadFailure = signal<Failure | undefined>(undefined);
/** Also true while another page's request runs in this conversation. */
export const isAnswering = signal(false);
/** Earlier turns have loaded, and no answer is running. */
export const canAsk = computed(() => !isAnswering.value && loadFailure.value === undefined && !(isLoading.value && turns.value.length === 0));
/** Text in the message field. */
export const draft = signal("");

/** Incremented when another conversation is opened; async work of an older generation is discarded. */
export const openGeneration = signal(0);

let activeCall: ActiveCall | undefined;
/** Requests sent for a turn: its message, then tool results. */
const requestsOf = new WeakMap<Signal<Turn>, ChatRequest[]>();
/** For a failed turn: the request to send again, and the turn as it was before. */
const retryPlans = new WeakMap<Signal<Turn>, { request: ChatRequest; before: Turn }>();

// ---- opening ----

export function openNew(): void {
  leaveConversation();
  sessionId.value = "";
}

export async function open(id: string): Promise<void> {
  leaveConversation();
  sessionId.value = id;
  const generation = openGeneration.value;
  isLoading.value = true;
  try {
    const { session, turns: storedTurns, nextPageToken } = await service.conversations.getSession({ userId: userId(), sessionId: id, pageSize: PAGE_SIZE });
    if (generation !== openGeneration.value) return;
    turns.value = storedTurns.reverse().map((turn) => signal(turnFromStored(turn)));
    earlierPageToken.value = nextPageToken;
    resumeUnfinished(id, session?.runningRequestId ?? "");
  } catch (error) {
    if (generation !== openGeneration.value) return;
    const failure = failureOf(error);
    // A new session is stored only after its first turn has started.
    if (failure.code === "NOT_FOUND" && resumeUnfinished(id, "")) return;
    loadFailure.value = failure;
  } finally {
    if (generation === openGeneration.value) isLoading.value = false;
  }
}

export async function loadEarlier(): Promise<void> {
  const [token, generation] = [earlierPageToken.value, openGeneration.value];
  if (token === "" || isLoading.value) return;
  isLoading.value = true;
  try {
    const page = await service.conversations.getSession({ userId: userId(), sessionId: sessionId.value, pageSize: 100, pageToken: token });
    if (generation !== openGeneration.value) return;
    turns.value = [...page.turns.reverse().map((turn) => signal(turnFromStored(turn))), ...turns.value];
    earlierPageToken.value = page.nextPageToken;
  } catch {
    // The next scroll event retries.
  } finally {
    if (generation === openGeneration.value) isLoading.value = false;
  }
}

/** Aborts the local stream only; the server continues the run for its resume grace period. */
function leaveConversation(): void {
  openGeneration.value += 1;
  activeCall?.abort.abort();
  activeCall = undefined;
  turns.value = [];
  earlierPageToken.value = "";
  isLoading.value = false;
  isAnswering.value = false;
  loadFailure.value = undefined;
}

/** Resumes a turn without an end, after navigation or a reload. Returns whether there was one. */
function resumeUnfinished(id: string, runningRequestId: string): boolean {
  const requests = loadRequests(id);
  const isStored = requests.length > 0 && turns.value.some((turn) => requests.some(({ requestId }) => requestId === turn.value.key));
  if (isStored) removeRequests(id);
  if (requests.length > 0 && !isStored) {
    const turn = addTurn(requests[0]!);
    // Every request is sent again with its request_id: the server replays finished runs and attaches to a live one.
    void (async () => {
      for (const request of requests) if (!(await call(turn, request))) return;
    })();
    return true;
  }
  if (runningRequestId !== "") void awaitAnswerElsewhere(id);
  return false;
}

/** Another page sent the running request and alone has its text; poll until the stored turn appears. */
async function awaitAnswerElsewhere(id: string): Promise<void> {
  const generation = openGeneration.value;
  isAnswering.value = true;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, POLL_INTERVAL_MS));
    if (generation !== openGeneration.value) return;
    const answer = await service.conversations.getSession({ userId: userId(), sessionId: id, pageSize: PAGE_SIZE }).catch(() => undefined);
    if (generation !== openGeneration.value) return;
    if (answer === undefined || answer.session?.runningRequestId !== "") continue;
    turns.value = answer.turns.reverse().map((turn) => signal(turnFromStored(turn)));
    earlierPageToken.value = answer.nextPageToken;
    isAnswering.value = false;
    return;
  }
}

// ---- asking ----

export async function ask(message: string): Promise<void> {
  const request = requestFor({ case: "message", value: message });
  await call(addTurn(request), request);
}

/** Sends the planned request of a failed turn again, or asks its question as a new turn. */
export async function retry(failed: Signal<Turn>): Promise<void> {
  const plan = retryPlans.get(failed);
  if (plan !== undefined) {
    retryPlans.delete(failed);
    failed.value = plan.before;
    // The user may have signed in since.
    plan.request.userId = userId();
    return void (await call(failed, plan.request));
  }
  const { question, parts } = failed.value;
  // A partial answer stays visible, as it does in the stored session.
  if (parts.length === 0) turns.value = turns.value.filter((turn) => turn !== failed);
  await ask(question);
}

export async function submitToolResult(turn: Signal<Turn>, tool: ToolUse, result: { isError: boolean; text: string }): Promise<void> {
  const value = { toolCallId: tool.id, toolName: tool.name, resultJson: result.isError ? "" : result.text, isError: result.isError, errorMessage: result.isError ? result.text : "" };
  await call(turn, requestFor({ case: "toolResult", value }));
}

/** Cancels the running answer. Text received so far stays. */
export async function stop(): Promise<void> {
  const active = activeCall;
  if (active !== undefined && sessionId.value === "") {
    // CancelTurn needs the session_id, which arrives with the first frame. Wait for it, but only for a limited time.
    active.isStopRequested = true;
    setTimeout(() => active.abort.abort(), CANCEL_TIMEOUT_MS);
    return;
  }
  // Empty: the running request of the session, such as one of another page.
  const requestId = active?.requests.at(-1)?.requestId ?? "";
  const { cancelled } = await service.conversations
    .cancelTurn({ userId: userId(), sessionId: sessionId.value, requestId }, { timeoutMs: CANCEL_TIMEOUT_MS })
    .catch(() => ({ cancelled: false }));
  // Normally the stream itself reports the cancellation. If CancelTurn failed, closing the connection also stops the run.
  if (!cancelled) active?.abort.abort();
}

function requestFor(input: NonNullable<MessageInitShape<typeof ChatRequestSchema>["input"]>): ChatRequest {
  const { language, nickname, tools } = settings;
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
  });
}

/** `crypto.randomUUID` needs a secure context. */
const newId = (): string => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

function addTurn(request: ChatRequest): Signal<Turn> {
  const turn = signal(newTurn(request.requestId, request.input.case === "message" ? request.input.value : ""));
  turns.value = [...turns.value, turn];
  return turn;
}

/** Runs one request of a turn to its end. Returns whether the turn can continue. */
async function call(turn: Signal<Turn>, request: ChatRequest): Promise<boolean> {
  if (request.input.case === "toolResult") {
    const { toolCallId, isError, resultJson, errorMessage } = request.input.value;
    setToolResult(turn, toolCallId, { isError, text: isError ? errorMessage : resultJson });
  }
  const before = turn.value;
  const generation = openGeneration.value;
  const abort = new AbortController();
  const requests = [...(requestsOf.get(turn) ?? []), request];
  requestsOf.set(turn, requests);
  activeCall = { requests, abort, isStopRequested: false };
  isAnswering.value = true;
  turn.value = { ...before, status: before.status ?? "thinking", statusText: "" };
  saveRequests(sessionId.value, requests);

  const deltas = new DeltaBuffer((text) => (turn.value = appendText(turn.value, text)));
  const onDisconnect = () => (turn.value = { ...turn.value, isReconnecting: true });
  let hasReceivedFrame = false;
  let finish = FinishReason.NULL;
  try {
    for await (const frame of streamFrames(request, abort.signal, onDisconnect)) {
      if (generation !== openGeneration.value) return false;
      hasReceivedFrame = true;
      adoptSession(frame);
      if (frame.content.case === "delta") {
        deltas.add(frame.content.value);
        continue;
      }
      deltas.flush();
      turn.value = applyFrame(turn.value, frame);
      finish = frame.finishReason;
    }
    return finish !== FinishReason.ERROR;
  } catch (error) {
    if (generation !== openGeneration.value) return false;
    deltas.flush();
    const { status: _, ...ended } = turn.value;
    turn.value = abort.signal.aborted
      ? { ...ended, isReconnecting: false, isInterrupted: true }
      : { ...ended, isReconnecting: false, failure: failureOf(error) };
    return false;
  } finally {
    deltas.clear();
    if (generation === openGeneration.value) {
      activeCall = undefined;
      isAnswering.value = false;
      finishCall(turn, before, hasReceivedFrame);
      // The server generates the title after the first answer.
      void sessions.refresh().then(() => turns.value.length === 1 && sessions.scheduleRefresh());
    }
  }
}

/** After a request: plans a retry, restores a refused message to the draft, and drops requests that need no resume. */
function finishCall(turn: Signal<Turn>, before: Turn, hasReceivedFrame: boolean): void {
  const sent = requestsOf.get(turn) ?? [];
  const request = sent.at(-1);
  const { failure } = turn.value;
  const isResult = request?.input.case === "toolResult";
  const canRetry = failure?.retryable === true && (isResult || !hasReceivedFrame);
  if (request !== undefined && canRetry) {
    requestsOf.set(turn, sent.slice(0, -1));
    // Without any frame the run may still exist, so the retry keeps its request_id (idempotency). A failed run needs a new one.
    const next = clone(ChatRequestSchema, request);
    if (hasReceivedFrame) next.requestId = newId();
    retryPlans.set(turn, { request: next, before });
  }
  // The service refused the message; the user can edit it.
  if (failure?.retryable === false && !hasReceivedFrame && request?.input.case === "message") draft.value ||= request.input.value;
  if (pendingToolUses(turn.value).length === 0 && !(canRetry && isResult)) removeRequests(sessionId.value);
}

/** Takes over the session_id that the server assigned, from the first frame. */
function adoptSession(frame: ChatResponse): void {
  if (sessionId.value === frame.sessionId) return;
  sessionId.value = frame.sessionId;
  saveRequests(frame.sessionId, activeCall?.requests ?? []);
  if (activeCall?.isStopRequested) void stop();
  void sessions.refresh();
}

function setToolResult(turn: Signal<Turn>, id: string, result: { isError: boolean; text: string }): void {
  const parts = turn.value.parts.map((part) => (part.kind === "tool" && part.id === id && part.isClientTool ? { ...part, result } : part));
  turn.value = { ...turn.value, parts };
}

/** Batches deltas, so that a turn renders at most once per animation frame. */
class DeltaBuffer {
  #text = "";
  #animationFrame = 0;
  readonly #onFlush: (text: string) => void;

  constructor(onFlush: (text: string) => void) {
    this.#onFlush = onFlush;
  }

  add(delta: string): void {
    this.#text += delta;
    // A background page runs no animation frames; its text appears when it becomes visible, or at the end.
    if (this.#animationFrame === 0) this.#animationFrame = requestAnimationFrame(() => this.flush());
  }

  flush(): void {
    const text = this.#text;
    this.clear();
    if (text !== "") this.#onFlush(text);
  }

  clear(): void {
    cancelAnimationFrame(this.#animationFrame);
    this.#animationFrame = 0;
    this.#text = "";
  }
}
