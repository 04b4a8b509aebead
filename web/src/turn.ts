// View model of one turn, and how each frame changes it. Pure: no calls, no signals.

import type { JsonObject } from "@bufbuild/protobuf";
import { AgentStatus_State, FinishReason, type ChatResponse, type Citation, type Usage } from "./gen/agent_service_pb.ts";
import type { Turn as StoredTurn } from "./gen/conversation_service_pb.ts";

/** A tool call, executed by the server or by the client. */
export interface ToolUse {
  kind: "tool";
  id: string;
  name: string;
  /** JSON text; empty if the server does not report it. */
  arguments: string;
  /** Undefined while pending. */
  result?: { isError: boolean; text: string };
  /** The client must supply the result. */
  isClientTool: boolean;
  /** Set if the user must approve the call, which the server then executes: what it forgets. */
  approval?: ApprovalItem[];
}

export interface ApprovalItem {
  id: string;
  content: string;
}

export interface TextPart {
  kind: "text";
  text: string;
}

export type Part = TextPart | ToolUse;

export type Status = "thinking" | "searching" | "tool" | "generating";

export interface Failure {
  /** The code of an error frame, or the name of a gRPC status. */
  code: string;
  message: string;
  /** `message` is localized text for the user, as in error frames. */
  isForUser: boolean;
  retryable: boolean;
  /** The server's retry pushback, in milliseconds. */
  waitMs?: number;
  details: Record<string, string>;
}

export interface TokenUsage {
  promptTokens: number;
  completionTokens: number;
  /** Millionths of a US dollar; undefined if the model has no known price. */
  costMicroUsd?: number;
  model: string;
  isEstimated: boolean;
}

export interface Turn {
  key: string;
  question: string;
  parts: Part[];
  citations: Citation[];
  /** Undefined once the turn has ended. */
  status?: Status;
  /** Localized status text from the server. */
  statusText: string;
  isReconnecting: boolean;
  usage?: TokenUsage;
  failure?: Failure;
  /** The answer was cancelled or broke off. */
  isInterrupted: boolean;
  /** The token limit or the provider's content filter ended the answer. */
  truncatedBy?: "length" | "filter";
  /** Retrieval failed (frame metadata `recall: failed`). */
  isWithoutMemory: boolean;
  /** The conversation store is unavailable (frame metadata `conversation: not-kept`). */
  isNotPersisted: boolean;
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
    isNotPersisted: false,
  };
}

export const answerOf = (turn: Turn): string =>
  turn.parts
    .filter((part) => part.kind === "text")
    .map((part) => part.text)
    .join("");

export const pendingToolUses = (turn: Turn): ToolUse[] =>
  turn.parts.filter((part) => part.kind === "tool").filter((tool) => tool.isClientTool && tool.result === undefined);

const STATUS: Partial<Record<AgentStatus_State, Status>> = {
  [AgentStatus_State.THINKING]: "thinking",
  [AgentStatus_State.SEARCHING]: "searching",
  [AgentStatus_State.EXECUTING_TOOL]: "tool",
  [AgentStatus_State.GENERATING]: "generating",
};

/** Applies a frame. Deltas are frequent; callers batch them with `appendText`. */
export function applyFrame(turn: Turn, frame: ChatResponse): Turn {
  const next: Turn = { ...turn, isReconnecting: false };
  const { content } = frame;
  if (frame.metadata["recall"] === "failed") next.isWithoutMemory = true;
  if (frame.metadata["conversation"] === "not-kept") next.isNotPersisted = true;
  switch (content.case) {
    case "statusUpdate": {
      const status = STATUS[content.value.state];
      if (status === undefined) delete next.status;
      else next.status = status;
      next.statusText = content.value.details;
      break;
    }
    case "delta":
      return appendText(next, content.value);
    case "citations":
      next.citations = content.value.citations;
      break;
    case "toolCall": {
      const { id, name, arguments: given } = content.value;
      const approval = frame.metadata["needs_approval"] === "true" ? { approval: approvalItems(frame.metadata["approval_details"] ?? "") } : {};
      next.parts = [...turn.parts, { kind: "tool", id, name, arguments: given, isClientTool: true, ...approval }];
      break;
    }
    case "toolResult": {
      const { toolCallId: id, toolName: name, success, data, errorMessage } = content.value;
      const result = { isError: !success, text: success ? json(data) : errorMessage };
      const isApproval = (part: Part) => part.kind === "tool" && part.id === id && part.approval !== undefined;
      // The answer to an approved or declined call replaces the decision.
      next.parts = turn.parts.some(isApproval)
        ? turn.parts.map((part) => (isApproval(part) ? { ...part, result } : part))
        : [...turn.parts, { kind: "tool", id, name, arguments: "", isClientTool: false, result }];
      break;
    }
    case "usage":
      next.usage = addUsage(turn.usage, tokenUsage(content.value, frame.metadata));
      break;
    case "error": {
      const { code, message, retryable, details } = content.value;
      // Cancellation by the user is not a failure.
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
    if (frame.finishReason === FinishReason.LENGTH) next.truncatedBy = "length";
    if (frame.finishReason === FinishReason.CONTENT_FILTER) next.truncatedBy = "filter";
  }
  return next;
}

export function appendText(turn: Turn, text: string): Turn {
  const last = turn.parts.at(-1);
  const parts: Part[] =
    last?.kind === "text"
      ? [...turn.parts.slice(0, -1), { kind: "text", text: last.text + text }]
      : [...turn.parts, { kind: "text", text }];
  return { ...turn, parts, isReconnecting: false };
}

export function turnFromStored(stored: StoredTurn): Turn {
  const [first, ...rest] = stored.messages;
  const turn = newTurn(stored.requestId || `stored-${stored.number}`, first?.role === "user" ? first.content : "");
  const results = new Map(rest.filter(({ role }) => role === "tool").map((message) => [message.toolCallId, message.content]));
  for (const { role, content, toolCalls } of rest) {
    if (role !== "assistant") continue;
    if (content !== "") turn.parts.push({ kind: "text", text: content });
    for (const { id, name, arguments: given } of toolCalls) {
      const text = results.get(id);
      turn.parts.push({ kind: "tool", id, name, arguments: given, isClientTool: false, ...(text === undefined ? {} : { result: { isError: false, text } }) });
    }
  }
  turn.citations = stored.citations;
  if (stored.usage !== undefined && stored.usage.totalTokens > 0) turn.usage = tokenUsage(stored.usage, stored.usage.costMicroUsd === 0n ? { cost: "unknown" } : {});
  turn.isInterrupted = stored.interrupted;
  return turn;
}

function tokenUsage(usage: Usage, metadata: Record<string, string>): TokenUsage {
  return {
    promptTokens: usage.promptTokens,
    completionTokens: usage.completionTokens,
    ...(metadata["cost"] === "unknown" ? {} : { costMicroUsd: Number(usage.costMicroUsd) }),
    model: metadata["model"] ?? "",
    isEstimated: metadata["usage_source"] === "estimated",
  };
}

/** A turn with client tools spans several calls, each with its own usage. */
function addUsage(before: TokenUsage | undefined, now: TokenUsage): TokenUsage {
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

function approvalItems(details: string): ApprovalItem[] {
  try {
    const items: unknown = JSON.parse(details);
    return Array.isArray(items) ? items.map(({ id, content }) => ({ id: String(id), content: String(content ?? "") })) : [];
  } catch {
    return [];
  }
}

const json = (data: JsonObject | undefined): string => (data === undefined ? "" : JSON.stringify(data, null, 2));
