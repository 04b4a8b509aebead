// Requests of turns without an end, in localStorage, so that a reload can resume them.

import { fromJsonString, toJsonString } from "@bufbuild/protobuf";
import { ChatRequestSchema, type ChatRequest } from "./gen/agent_service_pb.ts";

const PREFIX = "agent.unfinished.";

export function saveRequests(sessionId: string, requests: ChatRequest[]): void {
  if (sessionId === "") return;
  try {
    localStorage.setItem(PREFIX + sessionId, JSON.stringify(requests.map((request) => toJsonString(ChatRequestSchema, request))));
  } catch {
    // Without storage the turn cannot be resumed after a reload.
  }
}

export function loadRequests(sessionId: string): ChatRequest[] {
  try {
    const texts: unknown = JSON.parse(localStorage.getItem(PREFIX + sessionId) ?? "[]");
    return Array.isArray(texts) ? texts.map((text) => fromJsonString(ChatRequestSchema, String(text))) : [];
  } catch {
    return [];
  }
}

export function removeRequests(sessionId: string): void {
  try {
    localStorage.removeItem(PREFIX + sessionId);
  } catch {
    // Without storage there is nothing to remove.
  }
}

export function removeAllRequests(): void {
  try {
    for (const name of Object.keys(localStorage)) if (name.startsWith(PREFIX)) localStorage.removeItem(name);
  } catch {
    // Without storage there is nothing to remove.
  }
}
