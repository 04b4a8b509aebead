import { signal } from "@preact/signals";

export const dialogs = signal<"none" | "settings" | "sign-in">("none");
/** Only on narrow screens, where the list is an overlay. */
export const isListOpen = signal(false);
export const isMemoryOpen = signal(false);
