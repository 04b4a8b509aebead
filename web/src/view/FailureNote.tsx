import { useEffect, useState } from "preact/hooks";
import { needsSignIn } from "../failure.ts";
import { serviceAddress } from "../service.ts";
import { errorText, t } from "../text.ts";
import type { Failure } from "../turn.ts";
import { dialogs } from "./dialogs.ts";
import { Icon } from "./icons.tsx";

export function FailureNote({ failure, onRetry }: { failure: Failure; onRetry?: (() => void) | undefined }) {
  const seconds = useCountdown(failure.waitMs);
  // Error frames carry localized text. For a gRPC status the page has its own text, and the server's message is a detail.
  const text = failure.isForUser ? failure.message : errorText(failure.code, serviceAddress());
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
        {needsSignIn(failure) && (
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
          <button type="button" class={needsSignIn(failure) ? undefined : "primary"} disabled={seconds > 0} onClick={onRetry}>
            <Icon name="retry" />
            {seconds > 0 ? t("error.wait", seconds) : t("turn.retry")}
          </button>
        )}
      </div>
    </div>
  );
}

function useCountdown(milliseconds: number | undefined): number {
  const [seconds, setSeconds] = useState(Math.ceil((milliseconds ?? 0) / 1000));
  useEffect(() => {
    if (seconds <= 0) return undefined;
    const timer = setTimeout(() => setSeconds(seconds - 1), 1000);
    return () => clearTimeout(timer);
  }, [seconds]);
  return seconds;
}
