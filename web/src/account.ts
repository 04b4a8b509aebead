// Switching to another token, user or service.

import { loadFailure, open, sessionId } from "./chat.ts";
import { goToNew } from "./route.ts";
import { sessions } from "./sessions.ts";
import { settings } from "./settings.ts";
import * as memory from "./memory.ts";
import { removeAllRequests } from "./unfinished.ts";

export function switchAccount(): void {
  removeAllRequests();
  goToNew();
  sessions.list.value = [];
  memory.list.value = [];
  memory.resultSummary.value = undefined;
  refresh();
}

/** Stores a new token. A token with the same subject keeps the open conversation, so that an expired one can be renewed in place. */
export function signIn(token: string): void {
  const before = settings.token.value;
  settings.token.value = token;
  if (before !== "" && !haveSameSubject(before, token)) return switchAccount();
  refresh();
  if (loadFailure.value !== undefined) void open(sessionId.value);
}

function refresh(): void {
  void sessions.refresh();
  void memory.refresh();
}

function haveSameSubject(one: string, other: string): boolean {
  const user = subjectOf(one);
  return user !== undefined && user === subjectOf(other);
}

/** The unverified `sub` claim; undefined if the token is not a readable JWT. */
function subjectOf(token: string): unknown {
  try {
    const claims = (token.split(".")[1] ?? "").replaceAll("-", "+").replaceAll("_", "/");
    return (JSON.parse(atob(claims)) as { sub?: unknown }).sub;
  } catch {
    return undefined;
  }
}
