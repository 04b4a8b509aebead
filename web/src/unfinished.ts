// Requests of a turn without an end, kept so that the next page can go on with it.

import { fromJsonString, toJsonString } from "@bufbuild/protobuf";
import { ChatRequestSchema, type ChatRequest } from "./gen/agent_service_pb.ts";

const PREFIX = "agent.unfinished.";

export function remember(sessionId: string, requests: ChatRequest[]): void {
  if (sessionId === "") return;
  try {
    localStorage.setItem(PREFIX + sessionId, JSON.stringify(requests.map((request) => toJsonString(ChatRequestSchema, request))));
  } catch {
    // Without a place to keep it, the turn can not be taken up; it is answered all the same.
  }
}

export function recalled(sessionId: string): ChatRequest[] {
  try {
    const texts: unknown = JSON.parse(localStorage.getItem(PREFIX + sessionId) ?? "[]");
    return Array.isArray(texts) ? texts.map((text) => fromJsonString(ChatRequestSchema, String(text))) : [];
  } catch {
    return [];
  }
}

export function forget(sessionId: string): void {
  try {
    localStorage.removeItem(PREFIX + sessionId);
  } catch {
    // Nothing is kept there.
  }
}

export function forgetAll(): void {
  try {
    for (const name of Object.keys(localStorage)) if (name.startsWith(PREFIX)) localStorage.removeItem(name);
  } catch {
    // Nothing is kept there.
  }
}
