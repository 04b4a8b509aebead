// Another token, another user, or another service.

import { loadFailure, open, sessionId } from "./chat.ts";
import { goToNew } from "./route.ts";
import { sessions } from "./sessions.ts";
import { settings } from "./settings.ts";
import * as memory from "./memory.ts";
import { forgetAll } from "./unfinished.ts";

/** What is shown belongs to another user or another service. */
export function restart(): void {
  forgetAll();
  goToNew();
  sessions.list.value = [];
  memory.list.value = [];
  memory.shown.value = undefined;
  refresh();
}

/** Takes a token that the service asked for. Whoever only had to sign in again finds everything as it was. */
export function signIn(token: string): void {
  const before = settings.token.value;
  settings.token.value = token;
  if (before !== "" && !isOfOne(before, token)) return restart();
  refresh();
  if (loadFailure.value !== undefined) void open(sessionId.value);
}

function refresh(): void {
  void sessions.refresh();
  void memory.refresh();
}

function isOfOne(one: string, other: string): boolean {
  const user = subjectOf(one);
  return user !== undefined && user === subjectOf(other);
}

/** Whom a token names; undefined: it can not be read here. */
function subjectOf(token: string): unknown {
  try {
    const claims = (token.split(".")[1] ?? "").replaceAll("-", "+").replaceAll("_", "/");
    return (JSON.parse(atob(claims)) as { sub?: unknown }).sub;
  } catch {
    return undefined;
  }
}
