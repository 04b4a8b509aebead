// Keeps the open conversation and the URL hash in sync, so that reload, bookmarks and the Back button work.

import { effect } from "@preact/signals";
import { open, openNew, sessionId } from "./chat.ts";

const PREFIX = "#/c/";

export const hashFor = (id: string): string => (id === "" ? "#/" : PREFIX + encodeURIComponent(id));

/** Opens a new conversation without waiting for `hashchange`. */
export function goToNew(): void {
  location.hash = hashFor("");
  openNew();
}

function sessionIdFromHash(): string {
  if (!location.hash.startsWith(PREFIX)) return "";
  try {
    return decodeURIComponent(location.hash.slice(PREFIX.length));
  } catch {
    return "";
  }
}

function openFromHash(): void {
  const id = sessionIdFromHash();
  if (id === sessionId.value) return;
  if (id === "") openNew();
  else void open(id);
}

export function startRouting(): void {
  addEventListener("hashchange", openFromHash);
  openFromHash();
  effect(() => {
    const id = sessionId.value;
    // replaceState: the hash of a new conversation is replaced by the id that the server assigned.
    if (id !== sessionIdFromHash() && id !== "") history.replaceState(null, "", hashFor(id));
  });
}
