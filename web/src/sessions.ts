// The list of conversations.

import { signal } from "@preact/signals";
import { failureOf } from "./failure.ts";
import type { Session } from "./gen/conversation_service_pb.ts";
import { service } from "./service.ts";
import { userId } from "./settings.ts";
import type { Failure } from "./turn.ts";
import { forget, forgetAll } from "./unfinished.ts";

const PAGE = 50;
/** A title that the model makes comes a little after the answer. */
const TITLE_AFTER_MS = 3000;

const list = signal<Session[]>([]);
const next = signal("");
const failure = signal<Failure | undefined>(undefined);
const isLoaded = signal(false);
let latest = 0;
let later: ReturnType<typeof setTimeout> | undefined;

async function refresh(): Promise<void> {
  const mine = (latest += 1);
  clearTimeout(later);
  try {
    const pageSize = Math.min(200, Math.max(PAGE, list.value.length));
    const page = await service.conversations.listSessions({ userId: userId(), pageSize });
    if (mine !== latest) return;
    list.value = page.sessions;
    next.value = page.nextPageToken;
    failure.value = undefined;
    isLoaded.value = true;
  } catch (error) {
    if (mine === latest) failure.value = failureOf(error);
  }
}

async function more(): Promise<void> {
  const page = await service.conversations.listSessions({ userId: userId(), pageSize: PAGE, pageToken: next.value });
  const known = new Set(list.value.map(({ sessionId }) => sessionId));
  list.value = [...list.value, ...page.sessions.filter(({ sessionId }) => !known.has(sessionId))];
  next.value = page.nextPageToken;
}

async function rename(sessionId: string, title: string): Promise<void> {
  const renamed = await service.conversations.renameSession({ userId: userId(), sessionId, title });
  list.value = list.value.map((session) => (session.sessionId === sessionId ? renamed : session));
}

async function remove(sessionId: string): Promise<void> {
  await service.conversations.deleteSessions({ userId: userId(), sessionIds: [sessionId] });
  forget(sessionId);
  list.value = list.value.filter((session) => session.sessionId !== sessionId);
}

async function removeAll(): Promise<void> {
  await service.conversations.deleteSessions({ userId: userId(), everything: true });
  forgetAll();
  list.value = [];
  next.value = "";
}

export const sessions = {
  list,
  /** Where the list goes on; empty: it does not. */
  next,
  failure,
  isLoaded,
  refresh,
  /** Looks once more for a title. */
  refreshLater: () => {
    clearTimeout(later);
    later = setTimeout(() => void refresh(), TITLE_AFTER_MS);
  },
  more,
  rename,
  remove,
  removeAll,
  /** Shows what went wrong with one of these. */
  fail: (error: unknown) => void (failure.value = failureOf(error)),
};
