// The open conversation: a window onto its turns, which follows the answer while it is read.

import { useSignal, type Signal } from "@preact/signals";
import type { VNode } from "preact";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { ask, earlier, isAnswering, isLoading, loadEarlier, loadFailure, open, opened, sessionId, turns } from "../chat.ts";
import { t } from "../text.ts";
import type { Turn } from "../turn.ts";
import { Composer } from "./Composer.tsx";
import { FailureNote } from "./FailureNote.tsx";
import { Icon } from "./icons.tsx";
import { TurnView } from "./Turn.tsx";

/** Turns in the document at a time, so that a long conversation is as quick as a short one. */
const WINDOW = 60;
/** By how many the window moves. */
const STEP = 20;
/** How near to an end of what is drawn the window moves, in pixels. */
const NEAR = 900;
/** How near to the end counts as at the end, in pixels. */
const AT_END = 48;

export function Conversation() {
  return (
    <main id="conversation" tabIndex={-1}>
      {loadFailure.value ? (
        <div class="scroll">
          <div class="column">
            <FailureNote failure={{ ...loadFailure.value, retryable: true }} onRetry={() => void open(sessionId.value)} />
          </div>
        </div>
      ) : turns.value.length === 0 && !isLoading.value ? (
        <Empty />
      ) : (
        <Turns key={opened.value} />
      )}
      <div class="bottom">
        <div class="column">
          <Composer />
        </div>
      </div>
      <Announcer />
    </main>
  );
}

function Empty() {
  return (
    <div class="scroll empty">
      <div class="column">
        <h2>{t("empty.title")}</h2>
        <p>{t("empty.text")}</p>
        <ul>
          {t("empty.examples").map((example) => (
            <li key={example}>
              <button type="button" onClick={() => void ask(example)}>
                {example}
              </button>
            </li>
          ))}
        </ul>
      </div>
    </div>
  );
}

function Turns() {
  const scroll = useRef<HTMLDivElement>(null);
  const column = useRef<HTMLDivElement>(null);
  /** Turns that follow those that are drawn. */
  const after = useSignal(0);
  /** The end is in view and is to stay there. */
  const isFollowing = useSignal(true);
  const all = turns.value;
  const end = all.length - Math.min(after.value, Math.max(0, all.length - 1));
  const begin = Math.max(0, end - WINDOW);
  const drawn = all.slice(begin, end);

  // Turns that come and go in front of what is read must not move it: one that stays keeps its place on the screen.
  const before = useRef<Signal<Turn>[]>([]);
  const topOf = (turn: Signal<Turn>) => column.current?.querySelector(`[data-key="${CSS.escape(turn.peek().key)}"]`)?.getBoundingClientRect().top;
  const staying = before.current[0] === drawn[0] ? undefined : drawn.find((turn) => before.current.includes(turn));
  const top = staying && topOf(staying);
  before.current = drawn;
  useLayoutEffect(() => {
    if (staying === undefined || top === undefined || scroll.current === null) return;
    scroll.current.scrollTop += (topOf(staying) ?? top) - top;
  });

  const onScroll = () => {
    const box = scroll.current;
    if (box === null) return;
    const below = box.scrollHeight - box.scrollTop - box.clientHeight;
    isFollowing.value = after.value === 0 && below < AT_END;
    if (box.scrollTop < NEAR && begin > 0) after.value = Math.min(after.value + STEP, all.length - 1);
    else if (box.scrollTop < NEAR && earlier.value !== "") void loadEarlier();
    else if (below < NEAR && after.value > 0) after.value = Math.max(0, after.value - STEP);
  };

  // What was loaded is moved to at once where the top was come to already: nobody can scroll there any more.
  useLayoutEffect(() => {
    if (!isFollowing.value) onScroll();
  }, [all, after.value]);

  // Whatever makes the text longer: pieces of an answer, a formula that is drawn, a window that is made narrower.
  useEffect(() => {
    const box = scroll.current;
    if (box === null || column.current === null) return undefined;
    const observer = new ResizeObserver(() => {
      if (isFollowing.value) box.scrollTop = box.scrollHeight;
    });
    observer.observe(column.current);
    observer.observe(box);
    return () => observer.disconnect();
  }, []);

  // Whoever asks wants to see the answer.
  const count = useRef(all.length);
  useLayoutEffect(() => {
    const isNew = all.length > count.current && all.at(-1)?.value.status !== undefined;
    count.current = all.length;
    if (isNew) toEnd();
  }, [all]);

  const toEnd = () => {
    after.value = 0;
    isFollowing.value = true;
    if (scroll.current !== null) scroll.current.scrollTop = scroll.current.scrollHeight;
  };
  return (
    <>
      <div ref={scroll} class="scroll" onScroll={onScroll}>
        <div ref={column} class="column" role="log" aria-live="off" aria-label={t("turn.all")}>
          {isLoading.value && <p class="status loading">{t("turn.earlier")}</p>}
          {drawn.map(elementFor)}
          {isAnswering.value && all.at(-1)?.value.status === undefined && <p class="note">{t("turn.other")}</p>}
        </div>
      </div>
      {!isFollowing.value && (
        <button type="button" class="latest" onClick={toEnd}>
          <Icon name="down" />
          {t("turn.latest")}
        </button>
      )}
    </>
  );
}

/** An element that is given again is not looked at again: a turn is drawn when it changes, and not when others do. */
const elements = new WeakMap<Signal<Turn>, VNode>();

function elementFor(turn: Signal<Turn>): VNode {
  const element = elements.get(turn) ?? <TurnView key={turn.peek().key} turn={turn} />;
  elements.set(turn, element);
  return element;
}

/** Says to screen readers what is going on: not each piece, but each step and the end. */
function Announcer() {
  const turn = turns.value.at(-1)?.value;
  const said = useRef("");
  const wasRunning = useRef(false);
  if (turn?.status !== undefined) {
    wasRunning.current = true;
    said.current = turn.isReconnecting ? t("status.reconnecting") : turn.statusText || t(`status.${turn.status}`);
  } else if (wasRunning.current) {
    wasRunning.current = false;
    said.current = turn?.failure ? "" : turn?.isInterrupted ? t("status.stopped") : t("status.done");
  }
  return (
    <p class="hidden" role="status">
      {said.current}
    </p>
  );
}
