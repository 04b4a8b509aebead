// The list of conversations.

import { signal } from "@preact/signals";
import { failureOf } from "./failure.ts";
import type { Session } from "./gen/conversation_service_pb.ts";
import { service } from "./service.ts";
import { userId } from "./settings.ts";
import type { Failure } from "./turn.ts";
import { removeRequests, removeAllRequests } from "./unfinished.ts";

const PAGE_SIZE = 50;
/** The model generates a title after the first answer has been stored. */
const TITLE_DELAY_MS = 3000;

const list = signal<Session[]>([]);
const nextPageToken = signal("");
const failure = signal<Failure | undefined>(undefined);
const isLoaded = signal(false);
let latestRequest = 0;
let refreshTimer: ReturnType<typeof setTimeout> | undefined;

async function refresh(): Promise<void> {
  const request = (latestRequest += 1);
  clearTimeout(refreshTimer);
  try {
    const pageSize = Math.min(200, Math.max(PAGE_SIZE, list.value.length));
    const page = await service.conversations.listSessions({ userId: userId(), pageSize });
    if (request !== latestRequest) return;
    list.value = page.sessions;
    nextPageToken.value = page.nextPageToken;
    failure.value = undefined;
    isLoaded.value = true;
  } catch (error) {
    if (request === latestRequest) failure.value = failureOf(error);
  }
}

async function loadMore(): Promise<void> {
  const page = await service.conversations.listSessions({ userId: userId(), pageSize: PAGE_SIZE, pageToken: nextPageToken.value });
  const known = new Set(list.value.map(({ sessionId }) => sessionId));
  list.value = [...list.value, ...page.sessions.filter(({ sessionId }) => !known.has(sessionId))];
  nextPageToken.value = page.nextPageToken;
}

async function rename(sessionId: string, title: string): Promise<void> {
  const renamed = await service.conversations.renameSession({ userId: userId(), sessionId, title });
  list.value = list.value.map((session) => (session.sessionId === sessionId ? renamed : session));
}

async function remove(sessionId: string): Promise<void> {
  await service.conversations.deleteSessions({ userId: userId(), sessionIds: [sessionId] });
  removeRequests(sessionId);
  list.value = list.value.filter((session) => session.sessionId !== sessionId);
}

async function removeAll(): Promise<void> {
  await service.conversations.deleteSessions({ userId: userId(), everything: true });
  removeAllRequests();
  list.value = [];
  nextPageToken.value = "";
}

export const sessions = {
  list,
  nextPageToken,
  failure,
  isLoaded,
  refresh,
  /** Refreshes once more, after the title has been generated. */
  scheduleRefresh: () => {
    clearTimeout(refreshTimer);
    refreshTimer = setTimeout(() => void refresh(), TITLE_DELAY_MS);
  },
  loadMore,
  rename,
  remove,
  removeAll,
  reportFailure: (error: unknown) => void (failure.value = failureOf(error)),
};
