import { useEffect } from "preact/hooks";
import { isAnswering, sessionId, stop } from "../chat.ts";
import { sessions } from "../sessions.ts";
import { settings } from "../settings.ts";
import { t } from "../text.ts";
import { Conversation } from "./Conversation.tsx";
import { dialogs, isListOpen, isMemoryOpen } from "./dialogs.ts";
import { Icon } from "./icons.tsx";
import { MemoryPanel } from "./MemoryPanel.tsx";
import { SettingsDialog, SignInDialog } from "./Settings.tsx";
import { Sidebar } from "./Sidebar.tsx";

export function App() {
  const title = sessions.list.value.find((session) => session.sessionId === sessionId.value)?.title || t("app.title");
  useEffect(() => {
    document.title = title;
  }, [title]);
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      // During IME composition, Escape cancels the composition.
      if (event.key !== "Escape" || event.isComposing || event.keyCode === 229 || document.querySelector("dialog[open]") !== null) return;
      if (isListOpen.value) isListOpen.value = false;
      else if (isAnswering.value) void stop();
      else isMemoryOpen.value = false;
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  return (
    <div class={isMemoryOpen.value ? "app with-memory" : "app"}>
      <a class="skip" href="#conversation" onClick={skip}>
        {t("app.skip")}
      </a>
      <header class="top">
        <button type="button" class="quiet only-narrow" aria-label={t("nav.open")} aria-expanded={isListOpen.value} onClick={() => (isListOpen.value = !isListOpen.value)}>
          <Icon name="menu" />
        </button>
        <h1>{title}</h1>
        <button type="button" class="quiet" lang={settings.language.value === "zh" ? "en" : "zh-CN"} onClick={() => (settings.language.value = settings.language.value === "zh" ? "en" : "zh")}>
          {settings.language.value === "zh" ? "English" : "中文"}
        </button>
        <button type="button" class="quiet" aria-label={t("memory.open")} aria-expanded={isMemoryOpen.value} onClick={() => (isMemoryOpen.value = !isMemoryOpen.value)}>
          <Icon name="memory" />
          <span class="wide">{t("memory.open")}</span>
        </button>
        <button type="button" class="quiet" aria-label={t("settings.open")} onClick={() => (dialogs.value = "settings")}>
          <Icon name="settings" />
        </button>
      </header>
      <Sidebar />
      {isListOpen.value && <div class="shade" onClick={() => (isListOpen.value = false)} />}
      <Conversation />
      {isMemoryOpen.value && <MemoryPanel />}
      {dialogs.value === "settings" && <SettingsDialog />}
      {dialogs.value === "sign-in" && <SignInDialog />}
    </div>
  );
}

/** The hash selects the conversation, so the skip link must not change it. */
function skip(event: Event) {
  event.preventDefault();
  document.getElementById("conversation")?.focus();
}
