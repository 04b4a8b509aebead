// User settings, stored in localStorage.

import { effect, signal, type Signal } from "@preact/signals";

export type Theme = "auto" | "light" | "dark";
export type Language = "en" | "zh";

/** A signal stored in localStorage; without storage it lives as long as the page. */
function persisted<T>(name: string, initial: T, isValid: (value: unknown) => value is T): Signal<T> {
  const value = signal(read(name, initial, isValid));
  let isFirst = true;
  effect(() => {
    const text = JSON.stringify(value.value);
    // The initial value is not written, so that a later default applies.
    if (!isFirst) write(name, text);
    isFirst = false;
  });
  return value;
}

function read<T>(name: string, initial: T, isValid: (value: unknown) => value is T): T {
  try {
    const value: unknown = JSON.parse(localStorage.getItem(`agent.${name}`) ?? "null");
    return isValid(value) ? value : initial;
  } catch {
    return initial;
  }
}

function write(name: string, text: string): void {
  try {
    localStorage.setItem(`agent.${name}`, text);
  } catch {
    // Storage is full or disabled.
  }
}

const isText = (value: unknown): value is string => typeof value === "string";
const isFlag = (value: unknown): value is boolean => typeof value === "boolean";
const isUnitInterval = (value: unknown): value is number => typeof value === "number" && value >= 0 && value <= 1;
const isOneOf =
  <T extends string>(...known: T[]) =>
  (value: unknown): value is T =>
    known.includes(value as T);

const browserLanguage: Language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";

export const settings = {
  /** Base URL of the service. Empty: this page's origin. `{function}` is replaced with the function's name. */
  address: persisted("address", "", isText),
  /** Base URL for RetrieveMemory, if different. */
  retrieveAddress: persisted("retrieve-address", "", isText),
  /** Base URL for MemoryService and ConversationService, if different. */
  manageAddress: persisted("manage-address", "", isText),
  token: persisted("token", "", isText),
  /** Owner of conversations and memories. Ignored with a token, which names its subject. */
  user: persisted("user", "me", isText),
  /** How the assistant addresses the user. */
  nickname: persisted("nickname", "", isText),
  language: persisted<Language>("language", browserLanguage, isOneOf("en", "zh")),
  theme: persisted<Theme>("theme", "auto", isOneOf("auto", "light", "dark")),
  tools: persisted("tools", false, isFlag),
  /** Whether answers may use memories and documents. */
  recall: persisted("recall", true, isFlag),
  /** Hybrid weight: 0 = lexical, 1 = vector. */
  alpha: persisted("alpha", 0.5, isUnitInterval),
};

/** `user_id` for requests; empty with a token, whose subject applies. */
export function userId(): string {
  return settings.token.value === "" ? settings.user.value.trim() : "";
}

effect(() => {
  document.documentElement.lang = settings.language.value === "zh" ? "zh-CN" : "en";
  document.documentElement.dataset.theme = settings.theme.value;
});
