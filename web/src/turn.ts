// One turn as the page shows it, and what each frame adds to it. Nothing here calls anything.

import type { JsonObject } from "@bufbuild/protobuf";
import { AgentStatus_State, FinishReason, type ChatResponse, type Citation, type Usage } from "./gen/agent_service_pb.ts";
import type { Turn as KeptTurn } from "./gen/conversation_service_pb.ts";

/** A tool that was called, by the server itself or for the client to run. */
export interface ToolUse {
  kind: "tool";
  id: string;
  name: string;
  /** JSON text; empty where the server does not tell. */
  arguments: string;
  /** What came of it; undefined: nothing yet. */
  result?: { isError: boolean; text: string };
  /** The client is asked for the result. */
  isAsked: boolean;
}

export interface TextPart {
  kind: "text";
  text: string;
}

export type Part = TextPart | ToolUse;

export type Status = "thinking" | "searching" | "tool" | "generating";

/** Why a turn has no whole answer. */
export interface Failure {
  /** A stable name: that of an error frame, or of a gRPC status. */
  code: string;
  /** What the server said of it; empty: nothing. */
  message: string;
  /** That is a sentence for the user in their language, as error frames bring it. */
  isForUser: boolean;
  /** Whether the same question may be answered later. */
  retryable: boolean;
  /** How long to wait before that, in milliseconds. */
  waitMs?: number;
  details: Record<string, string>;
}

export interface Spent {
  promptTokens: number;
  completionTokens: number;
  /** Millionths of a US dollar; undefined: there is no price for the model. */
  costMicroUsd?: number;
  model: string;
  isEstimated: boolean;
}

export interface Turn {
  /** Unique on the page. */
  key: string;
  question: string;
  parts: Part[];
  citations: Citation[];
  /** What is going on; undefined: nothing. */
  status?: Status;
  /** The server's own words for it. */
  statusText: string;
  /** The connection was lost, and the page tries to come back. */
  isReconnecting: boolean;
  usage?: Spent;
  failure?: Failure;
  /** The answer broke off and was kept as it was. */
  isInterrupted: boolean;
  /** It came to the limit of tokens, or a filter cut it. */
  cut?: "length" | "filter";
  /** The memory could not be asked. */
  isWithoutMemory: boolean;
  /** The conversation is not kept. */
  isNotKept: boolean;
}

export function newTurn(key: string, question: string): Turn {
  return {
    key,
    question,
    parts: [],
    citations: [],
    statusText: "",
    isReconnecting: false,
    isInterrupted: false,
    isWithoutMemory: false,
    isNotKept: false,
  };
}

/** The text of an answer. */
export const answerOf = (turn: Turn): string =>
  turn.parts
    .filter((part) => part.kind === "text")
    .map((part) => part.text)
    .join("");

/** Calls whose results the client still owes. */
export const owed = (turn: Turn): ToolUse[] =>
  turn.parts.filter((part) => part.kind === "tool").filter((tool) => tool.isAsked && tool.result === undefined);

const STATUS: Partial<Record<AgentStatus_State, Status>> = {
  [AgentStatus_State.THINKING]: "thinking",
  [AgentStatus_State.SEARCHING]: "searching",
  [AgentStatus_State.EXECUTING_TOOL]: "tool",
  [AgentStatus_State.GENERATING]: "generating",
};

/** Adds a frame that is no delta; deltas come often and are gathered by the caller. */
export function withFrame(turn: Turn, frame: ChatResponse): Turn {
  const next: Turn = { ...turn, isReconnecting: false };
  const { content } = frame;
  if (frame.metadata["recall"] === "failed") next.isWithoutMemory = true;
  if (frame.metadata["conversation"] === "not-kept") next.isNotKept = true;
  switch (content.case) {
    case "statusUpdate": {
      const status = STATUS[content.value.state];
      if (status === undefined) delete next.status;
      else next.status = status;
      next.statusText = content.value.details;
      break;
    }
    case "delta":
      return withText(next, content.value);
    case "citations":
      next.citations = content.value.citations;
      break;
    case "toolCall": {
      const { id, name, arguments: given } = content.value;
      next.parts = [...turn.parts, { kind: "tool", id, name, arguments: given, isAsked: true }];
      break;
    }
    case "toolResult": {
      const { toolCallId: id, toolName: name, success, data, errorMessage } = content.value;
      const result = { isError: !success, text: success ? json(data) : errorMessage };
      next.parts = [...turn.parts, { kind: "tool", id, name, arguments: "", isAsked: false, result }];
      break;
    }
    case "usage":
      next.usage = sum(turn.usage, spent(content.value, frame.metadata));
      break;
    case "error": {
      const { code, message, retryable, details } = content.value;
      // Somebody wanted it to stop: that is no failure.
      if (code === "CANCELLED") next.isInterrupted = true;
      else next.failure = { code, message, isForUser: true, retryable, details };
      break;
    }
    case "fullText":
    case undefined:
      break;
  }
  if (frame.finishReason !== FinishReason.NULL) {
    delete next.status;
    if (frame.finishReason === FinishReason.LENGTH) next.cut = "length";
    if (frame.finishReason === FinishReason.CONTENT_FILTER) next.cut = "filter";
  }
  return next;
}

/** Adds a piece of the answer. */
export function withText(turn: Turn, text: string): Turn {
  const last = turn.parts.at(-1);
  const parts: Part[] =
    last?.kind === "text"
      ? [...turn.parts.slice(0, -1), { kind: "text", text: last.text + text }]
      : [...turn.parts, { kind: "text", text }];
  return { ...turn, parts, isReconnecting: false };
}

/** A turn as it was kept. */
export function keptTurn(kept: KeptTurn): Turn {
  const [first, ...rest] = kept.messages;
  const turn = newTurn(kept.requestId || `kept-${kept.number}`, first?.role === "user" ? first.content : "");
  const results = new Map(rest.filter(({ role }) => role === "tool").map((message) => [message.toolCallId, message.content]));
  for (const { role, content, toolCalls } of rest) {
    if (role !== "assistant") continue;
    if (content !== "") turn.parts.push({ kind: "text", text: content });
    for (const { id, name, arguments: given } of toolCalls) {
      const text = results.get(id);
      turn.parts.push({ kind: "tool", id, name, arguments: given, isAsked: false, ...(text === undefined ? {} : { result: { isError: false, text } }) });
    }
  }
  turn.citations = kept.citations;
  if (kept.usage !== undefined && kept.usage.totalTokens > 0) turn.usage = spent(kept.usage, kept.usage.costMicroUsd === 0n ? { cost: "unknown" } : {});
  turn.isInterrupted = kept.interrupted;
  return turn;
}

function spent(usage: Usage, metadata: Record<string, string>): Spent {
  return {
    promptTokens: usage.promptTokens,
    completionTokens: usage.completionTokens,
    ...(metadata["cost"] === "unknown" ? {} : { costMicroUsd: Number(usage.costMicroUsd) }),
    model: metadata["model"] ?? "",
    isEstimated: metadata["usage_source"] === "estimated",
  };
}

/** A turn with tools of the client's is several calls. */
function sum(before: Spent | undefined, now: Spent): Spent {
  if (before === undefined) return now;
  const cost = before.costMicroUsd === undefined || now.costMicroUsd === undefined ? undefined : before.costMicroUsd + now.costMicroUsd;
  return {
    promptTokens: before.promptTokens + now.promptTokens,
    completionTokens: before.completionTokens + now.completionTokens,
    ...(cost === undefined ? {} : { costMicroUsd: cost }),
    model: now.model,
    isEstimated: before.isEstimated || now.isEstimated,
  };
}

const json = (data: JsonObject | undefined): string => (data === undefined ? "" : JSON.stringify(data, null, 2));
