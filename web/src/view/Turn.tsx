
import type { Signal } from "@preact/signals";
import { useState } from "preact/hooks";
import { submitToolResult, isAnswering, retry, turns } from "../chat.ts";
import { Markdown } from "../markdown/Markdown.tsx";
import { t } from "../text.ts";
import { answerOf, type Part, type TokenUsage, type Turn } from "../turn.ts";
import { Boundary } from "./Boundary.tsx";
import { Citations } from "./Citations.tsx";
import { CopyButton } from "./CopyButton.tsx";
import { FailureNote } from "./FailureNote.tsx";
import { Icon } from "./icons.tsx";
import { Tool } from "./Tool.tsx";

/** A turn that cannot be drawn is displayed as text. */
export function TurnView({ turn }: { turn: Signal<Turn> }) {
  return (
    <Boundary text={`${turn.value.question}\n\n${answerOf(turn.value)}`}>
      <TurnArticle turn={turn} />
    </Boundary>
  );
}

function TurnArticle({ turn: source }: { turn: Signal<Turn> }) {
  const turn = source.value;
  const [cited, setCited] = useState(0);
  const isRunning = turn.status !== undefined;
  const isLast = turns.value.at(-1) === source;
  const canRetry = isLast && !isAnswering.value && turn.question !== "";
  return (
    <article class="turn" data-key={turn.key} aria-busy={isRunning}>
      {turn.question !== "" && (
        <div class="question">
          <h2 class="hidden">{t("turn.you")}</h2>
          <p>{turn.question}</p>
        </div>
      )}
      <div class={isRunning && turn.status === "generating" ? "answer writing" : "answer"}>
        <h2 class="hidden">{t("turn.assistant")}</h2>
        {turn.parts.map((part, index) => (
          <PartView
            key={index}
            part={part}
            citations={turn.citations.length}
            onCite={setCited}
            onResult={(tool, result) => void submitToolResult(source, tool, result)}
          />
        ))}
        {isRunning && <StatusLine turn={turn} />}
        <Notes turn={turn} />
        {turn.failure && <FailureNote key={turn.failure.code} failure={turn.failure} onRetry={canRetry ? () => void retry(source) : undefined} />}
        {turn.citations.length > 0 && <Citations citations={turn.citations} open={cited} onOpen={setCited} />}
        {!isRunning && (turn.parts.length > 0 || turn.isInterrupted) && (
          <footer class="under">
            {turn.parts.length > 0 && <CopyButton text={answerOf(turn)} />}
            {canRetry && turn.isInterrupted && !turn.failure && (
              <button type="button" class="quiet small" onClick={() => void retry(source)}>
                <Icon name="retry" />
                {t("turn.retry")}
              </button>
            )}
            {turn.usage && <UsageLine usage={turn.usage} />}
          </footer>
        )}
      </div>
    </article>
  );
}

interface PartProps {
  part: Part;
  citations: number;
  onCite: (number: number) => void;
  onResult: (tool: Part & { kind: "tool" }, result: { isError: boolean; text: string }) => void;
}

function PartView({ part, citations, onCite, onResult }: PartProps) {
  if (part.kind === "text") return <Markdown text={part.text} citations={citations} onCite={onCite} />;
  return <Tool tool={part} onResult={(result) => onResult(part, result)} />;
}

/** Present for the whole run, so that the layout does not jump. */
function StatusLine({ turn }: { turn: Turn }) {
  const text = turn.isReconnecting ? t("status.reconnecting") : turn.statusText || t(`status.${turn.status ?? "thinking"}`);
  return (
    <p class={turn.isReconnecting ? "status lost" : "status"}>
      <span class="pulse" aria-hidden="true" />
      {text}
    </p>
  );
}

function Notes({ turn }: { turn: Turn }) {
  const notes = [
    turn.isInterrupted && t("turn.interrupted"),
    turn.truncatedBy && t(`turn.truncatedBy.${turn.truncatedBy}`),
    turn.isWithoutMemory && t("turn.withoutMemory"),
    turn.isNotPersisted && t("turn.notPersisted"),
  ].filter((note) => typeof note === "string");
  return notes.map((note) => (
    <p key={note} class="note">
      {note}
    </p>
  ));
}

function UsageLine({ usage }: { usage: TokenUsage }) {
  const { promptTokens, completionTokens, costMicroUsd, model, isEstimated } = usage;
  const cost = costMicroUsd === undefined ? undefined : `$${(costMicroUsd / 1e6).toFixed(costMicroUsd < 10_000 ? 6 : 4)}`;
  const parts = [model, t("usage.tokens", promptTokens + completionTokens), cost, isEstimated && t("usage.estimated")];
  return (
    <span class="usage" title={t("usage.title", promptTokens, completionTokens)}>
      {parts.filter((part) => typeof part === "string" && part !== "").join(" · ")}
    </span>
  );
}
