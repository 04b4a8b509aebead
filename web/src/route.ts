// Which conversation is open stands in the address, so that a reload, a bookmark and the button Back find it.

import { effect } from "@preact/signals";
import { open, openNew, sessionId } from "./chat.ts";

const PREFIX = "#/c/";

/** The address of a conversation; that of none begins a new one. */
export const addressOf = (id: string): string => (id === "" ? "#/" : PREFIX + encodeURIComponent(id));

/** Begins a new conversation, at once and not only when the address is followed. */
export function goToNew(): void {
  location.hash = addressOf("");
  openNew();
}

function addressed(): string {
  if (!location.hash.startsWith(PREFIX)) return "";
  try {
    return decodeURIComponent(location.hash.slice(PREFIX.length));
  } catch {
    return "";
  }
}

function follow(): void {
  const id = addressed();
  if (id === sessionId.value) return;
  if (id === "") openNew();
  else void open(id);
}

/** Opens what the address says, and from then on keeps both in step. */
export function route(): void {
  addEventListener("hashchange", follow);
  follow();
  effect(() => {
    const id = sessionId.value;
    // A conversation that the server has just begun takes the place of the new one.
    if (id !== addressed() && id !== "") history.replaceState(null, "", addressOf(id));
  });
}
