import { useEffect, useState } from "preact/hooks";
import { wantsSignIn } from "../failure.ts";
import { place } from "../service.ts";
import { errorText, t } from "../text.ts";
import type { Failure } from "../turn.ts";
import { dialogs } from "./dialogs.ts";
import { Icon } from "./icons.tsx";

/** Says what went wrong and what to do about it. */
export function FailureNote({ failure, onRetry }: { failure: Failure; onRetry?: (() => void) | undefined }) {
  const seconds = useCountdown(failure.waitMs);
  // An error frame brings a sentence in the user's language; a refusal is explained here, and its own words are a detail.
  const text = failure.isForUser ? failure.message : errorText(failure.code, place());
  const details = { ...(failure.isForUser || failure.message === "" ? {} : { message: failure.message }), ...failure.details };
  return (
    <div class="note failure" role="alert">
      <p>{text}</p>
      <details>
        <summary>
          {t("error.details")} <code>{failure.code}</code>
        </summary>
        <dl>
          {Object.entries(details).map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{value}</dd>
            </div>
          ))}
        </dl>
      </details>
      <div class="actions">
        {wantsSignIn(failure) && (
          <button type="button" class="primary" onClick={() => (dialogs.value = "sign-in")}>
            {t("signin.title")}
          </button>
        )}
        {failure.code === "UNREACHABLE" && (
          <button type="button" onClick={() => (dialogs.value = "settings")}>
            {t("settings.open")}
          </button>
        )}
        {failure.retryable && onRetry && (
          <button type="button" class={wantsSignIn(failure) ? undefined : "primary"} disabled={seconds > 0} onClick={onRetry}>
            <Icon name="retry" />
            {seconds > 0 ? t("error.wait", seconds) : t("turn.retry")}
          </button>
        )}
      </div>
    </div>
  );
}

/** Whole seconds that are left of a wait. */
function useCountdown(milliseconds: number | undefined): number {
  const [seconds, setSeconds] = useState(Math.ceil((milliseconds ?? 0) / 1000));
  useEffect(() => {
    if (seconds <= 0) return undefined;
    const timer = setTimeout(() => setSeconds(seconds - 1), 1000);
    return () => clearTimeout(timer);
  }, [seconds]);
  return seconds;
}
