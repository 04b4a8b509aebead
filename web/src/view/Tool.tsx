import { useId, useState } from "preact/hooks";
import { isAnswering } from "../chat.ts";
import { t } from "../text.ts";
import type { ApprovalItem, ToolUse } from "../turn.ts";
import { Icon } from "./icons.tsx";

interface Props {
  tool: ToolUse;
  onResult: (result: { isError: boolean; text: string }) => void;
}

/** A tool call with its arguments and result. A client tool shows a form for its result, or asks for approval. */
export function Tool({ tool, onResult }: Props) {
  const isOpen = tool.isClientTool && tool.result === undefined;
  return (
    <details class="tool" open={isOpen}>
      <summary>
        <Icon name="tool" />
        <span>
          {t("tool.called")} <code>{tool.name}</code>
          {tool.result?.isError && <em> {t("tool.failed")}</em>}
        </span>
      </summary>
      {tool.arguments !== "" && <Json title={t("tool.arguments")} text={tool.arguments} />}
      {tool.result && <Json title={t("tool.result")} text={tool.result.text} />}
      {isOpen && tool.approval === undefined && <ResultForm name={tool.name} onResult={onResult} />}
      {isOpen && tool.approval !== undefined && <ApprovalForm items={tool.approval} onResult={onResult} />}
    </details>
  );
}

function Json({ title, text }: { title: string; text: string }) {
  return (
    <>
      <h3>{title}</h3>
      <pre tabIndex={0}>{indented(text)}</pre>
    </>
  );
}

function indented(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function ApprovalForm({ items, onResult }: { items: ApprovalItem[] } & Pick<Props, "onResult">) {
  const decide = (approved: boolean) => onResult({ isError: false, text: JSON.stringify({ approved }) });
  return (
    <div>
      <p>{t("tool.approve.asked", items.length)}</p>
      <ul>
        {items.map(({ id, content }) => (
          <li key={id}>{content || id}</li>
        ))}
      </ul>
      <div class="actions">
        <button type="button" class="danger" disabled={isAnswering.value} onClick={() => decide(true)}>
          {t("tool.approve")}
        </button>
        <button type="button" disabled={isAnswering.value} onClick={() => decide(false)}>
          {t("tool.decline")}
        </button>
      </div>
    </div>
  );
}

function ResultForm({ name, onResult }: { name: string } & Pick<Props, "onResult">) {
  const [text, setText] = useState("{}");
  const [isWrong, setWrong] = useState(false);
  const [field, hint] = [useId(), useId()];
  const send = (event: Event) => {
    event.preventDefault();
    // A session accepts one request at a time.
    if (isAnswering.value) return;
    try {
      JSON.parse(text);
    } catch {
      setWrong(true);
      return;
    }
    onResult({ isError: false, text });
  };
  return (
    <form onSubmit={send}>
      <label for={field}>{t("tool.asked")}</label>
      <textarea
        id={field}
        rows={3}
        class="mono"
        aria-label={t("tool.asked.label", name)}
        aria-invalid={isWrong}
        aria-describedby={hint}
        value={text}
        onInput={(event) => {
          setText(event.currentTarget.value);
          setWrong(false);
        }}
      />
      <p id={hint} class="hint" role="status">
        {isWrong ? t("tool.notJson") : ""}
      </p>
      <div class="actions">
        <button type="submit" class="primary" disabled={isAnswering.value}>
          {t("tool.send")}
        </button>
        <button type="button" disabled={isAnswering.value} onClick={() => onResult({ isError: true, text: text === "{}" ? t("tool.failed") : text })}>
          {t("tool.fail")}
        </button>
      </div>
    </form>
  );
}
