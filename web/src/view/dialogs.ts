import { signal } from "@preact/signals";

/** Which dialog is open. */
export const dialogs = signal<"none" | "settings" | "sign-in">("none");
/** Whether the list of conversations is open where it has no place of its own. */
export const isListOpen = signal(false);
export const isMemoryOpen = signal(false);
