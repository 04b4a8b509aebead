// What a user chose in this browser. It outlives a reload; nothing of it leaves the browser but with a call.

import { effect, signal, type Signal } from "@preact/signals";

export type Theme = "auto" | "light" | "dark";
export type Language = "en" | "zh";

/** A value that is kept in the browser under a name. Where nothing can be kept, it lives as long as the page. */
function kept<T>(name: string, initial: T, isValid: (value: unknown) => value is T): Signal<T> {
  const value = signal(read(name, initial, isValid));
  let isFirst = true;
  effect(() => {
    const text = JSON.stringify(value.value);
    // What was never chosen is not written down, so that a later default holds.
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
    // The storage is full or forbidden.
  }
}

const isText = (value: unknown): value is string => typeof value === "string";
const isFlag = (value: unknown): value is boolean => typeof value === "boolean";
const isNumber = (value: unknown): value is number => typeof value === "number" && value >= 0 && value <= 1;
const isOneOf =
  <T extends string>(...known: T[]) =>
  (value: unknown): value is T =>
    known.includes(value as T);

const ofTheBrowser: Language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";

export const settings = {
  /** Where the service is. Empty: where the page comes from. `{function}` stands for the name of a function. */
  address: kept("address", "", isText),
  /** Where RetrieveMemory is answered, if that is another place. */
  retrieveAddress: kept("retrieve-address", "", isText),
  /** Where MemoryService and ConversationService are answered, if that is another place. */
  manageAddress: kept("manage-address", "", isText),
  /** Bearer token; empty: none. */
  token: kept("token", "", isText),
  /** Whose conversations and memories. With a token that names its user it has no meaning. */
  user: kept("user", "me", isText),
  /** How the assistant calls the user. */
  nickname: kept("nickname", "", isText),
  language: kept<Language>("language", ofTheBrowser, isOneOf("en", "zh")),
  theme: kept<Theme>("theme", "auto", isOneOf("auto", "light", "dark")),
  /** Whether the model may call tools. */
  tools: kept("tools", false, isFlag),
  /** Whether answers are grounded in memory. */
  recall: kept("recall", true, isFlag),
  /** 0: by words, 1: by meaning. */
  alpha: kept("alpha", 0.5, isNumber),
};

/** The user to send: none beside a token, whose own subject it then is. */
export function userId(): string {
  return settings.token.value === "" ? settings.user.value.trim() : "";
}

effect(() => {
  document.documentElement.lang = settings.language.value === "zh" ? "zh-CN" : "en";
  document.documentElement.dataset.theme = settings.theme.value;
});
