import { useEffect, useId, useRef } from "preact/hooks";
import { ask, canAsk, draft, isAnswering, sessionId, stop } from "../chat.ts";
import { settings } from "../settings.ts";
import { t } from "../text.ts";
import { Icon } from "./icons.tsx";

/** What the service takes of a message. */
const MAX_BYTES = 100_000;

/** Where a message is written. */
export function Composer() {
  const text = draft;
  const hint = useId();
  const field = useRef<HTMLTextAreaElement>(null);
  const isTooLong = text.value.length > MAX_BYTES / 4 && new Blob([text.value]).size > MAX_BYTES;
  const canSend = text.value.trim() !== "" && !isTooLong && canAsk.value;

  // Whoever opens a conversation wants to write; on a phone the keyboard would hide what there is to read.
  useEffect(() => {
    if (matchMedia("(hover: hover)").matches) field.current?.focus();
  }, [sessionId.value]);

  const send = () => {
    if (!canSend) return;
    const message = text.value.trim();
    text.value = "";
    void ask(message);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    // While a word of Chinese is being composed, Enter chooses it.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    send();
  };
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      <textarea
        ref={field}
        rows={1}
        aria-label={t("composer.label")}
        aria-describedby={hint}
        aria-invalid={isTooLong}
        placeholder={t("composer.placeholder")}
        value={text.value}
        onInput={(event) => (text.value = event.currentTarget.value)}
        onKeyDown={onKeyDown}
      />
      <div class="row">
        <Toggle of="recall" />
        <Toggle of="tools" />
        <span id={hint} class={isTooLong ? "hint wrong" : "hint"}>
          {t(isTooLong ? "composer.tooLong" : "composer.hint")}
        </span>
        {isAnswering.value ? (
          <button type="button" class="round stop" aria-label={t("composer.stop")} onClick={() => void stop()}>
            <Icon name="stop" />
          </button>
        ) : (
          <button type="submit" class="round primary" aria-label={t("composer.send")} disabled={!canSend}>
            <Icon name="send" />
          </button>
        )}
      </div>
    </form>
  );
}

function Toggle({ of }: { of: "recall" | "tools" }) {
  const isOn = settings[of].value;
  return (
    <button type="button" class="toggle" aria-pressed={isOn} onClick={() => (settings[of].value = !isOn)}>
      <Icon name={of === "recall" ? "memory" : "tool"} />
      {t(`composer.${of}`)}
    </button>
  );
}
