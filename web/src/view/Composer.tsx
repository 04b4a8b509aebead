import { useEffect, useId, useRef } from "preact/hooks";
import { ask, canAsk, draft, isAnswering, sessionId, stop } from "../chat.ts";
import { settings } from "../settings.ts";
import { t } from "../text.ts";
import { Icon } from "./icons.tsx";

/** The service's limit for one message. */
const MAX_BYTES = 100_000;

export function Composer() {
  const text = draft;
  const hint = useId();
  const field = useRef<HTMLTextAreaElement>(null);
  const isTooLong = text.value.length > MAX_BYTES / 4 && new Blob([text.value]).size > MAX_BYTES;
  const canSend = text.value.trim() !== "" && !isTooLong && canAsk.value;

  // Not on touch devices, where the keyboard would cover the conversation.
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
    // During IME composition, Enter confirms the composition.
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
