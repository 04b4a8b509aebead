// The open conversation: renders a window of its turns, and follows the end while the user is there.

import { useSignal, type Signal } from "@preact/signals";
import type { VNode } from "preact";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { ask, earlierPageToken, isAnswering, isLoading, loadEarlier, loadFailure, open, openGeneration, sessionId, turns } from "../chat.ts";
import { t } from "../text.ts";
import type { Turn } from "../turn.ts";
import { Composer } from "./Composer.tsx";
import { FailureNote } from "./FailureNote.tsx";
import { Icon } from "./icons.tsx";
import { TurnView } from "./Turn.tsx";

/** Maximum number of turns in the DOM, so that rendering does not depend on the length of the conversation. */
const WINDOW_TURNS = 60;
/** Turns by which the window moves. */
const WINDOW_STEP = 20;
/** Distance from the window's edge at which it moves. */
const LOAD_MARGIN_PX = 900;
/** Distance from the end that counts as at the end. */
const END_MARGIN_PX = 48;

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
        <EmptyState />
      ) : (
        <TurnList key={openGeneration.value} />
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

function EmptyState() {
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

function TurnList() {
  const scroll = useRef<HTMLDivElement>(null);
  const column = useRef<HTMLDivElement>(null);
  /** Turns below the window. */
  const turnsBelow = useSignal(0);
  /** The view stays at the end while content grows. */
  const isFollowing = useSignal(true);
  const all = turns.value;
  const end = all.length - Math.min(turnsBelow.value, Math.max(0, all.length - 1));
  const begin = Math.max(0, end - WINDOW_TURNS);
  const visible = all.slice(begin, end);

  // Scroll anchoring: a turn that remains in the window keeps its position on the screen while others appear above it.
  const before = useRef<Signal<Turn>[]>([]);
  const topOf = (turn: Signal<Turn>) => column.current?.querySelector(`[data-key="${CSS.escape(turn.peek().key)}"]`)?.getBoundingClientRect().top;
  const anchor = before.current[0] === visible[0] ? undefined : visible.find((turn) => before.current.includes(turn));
  const top = anchor && topOf(anchor);
  before.current = visible;
  useLayoutEffect(() => {
    if (anchor === undefined || top === undefined || scroll.current === null) return;
    scroll.current.scrollTop += (topOf(anchor) ?? top) - top;
  });

  const onScroll = () => {
    const box = scroll.current;
    if (box === null) return;
    const below = box.scrollHeight - box.scrollTop - box.clientHeight;
    isFollowing.value = turnsBelow.value === 0 && below < END_MARGIN_PX;
    if (box.scrollTop < LOAD_MARGIN_PX && begin > 0) turnsBelow.value = Math.min(turnsBelow.value + WINDOW_STEP, all.length - 1);
    else if (box.scrollTop < LOAD_MARGIN_PX && earlierPageToken.value !== "") void loadEarlier();
    else if (below < LOAD_MARGIN_PX && turnsBelow.value > 0) turnsBelow.value = Math.max(0, turnsBelow.value - WINDOW_STEP);
  };

  // At the very top no further scroll event would come, so the window moves right after a page was loaded.
  useLayoutEffect(() => {
    if (!isFollowing.value) onScroll();
  }, [all, turnsBelow.value]);

  // The height changes with deltas, rendered formulas and the width of the window.
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

  // A new question scrolls to the end.
  const count = useRef(all.length);
  useLayoutEffect(() => {
    const isNew = all.length > count.current && all.at(-1)?.value.status !== undefined;
    count.current = all.length;
    if (isNew) scrollToEnd();
  }, [all]);

  const scrollToEnd = () => {
    turnsBelow.value = 0;
    isFollowing.value = true;
    if (scroll.current !== null) scroll.current.scrollTop = scroll.current.scrollHeight;
  };
  return (
    <>
      <div ref={scroll} class="scroll" onScroll={onScroll}>
        <div ref={column} class="column" role="log" aria-live="off" aria-label={t("turn.all")}>
          {isLoading.value && <p class="status loading">{t("turn.earlier")}</p>}
          {visible.map(elementFor)}
          {isAnswering.value && all.at(-1)?.value.status === undefined && <p class="note">{t("turn.other")}</p>}
        </div>
      </div>
      {!isFollowing.value && (
        <button type="button" class="latest" onClick={scrollToEnd}>
          <Icon name="down" />
          {t("turn.latest")}
        </button>
      )}
    </>
  );
}

/** Reuses elements, so that Preact renders a turn only when its own signal changes. */
const elements = new WeakMap<Signal<Turn>, VNode>();

function elementFor(turn: Signal<Turn>): VNode {
  const element = elements.get(turn) ?? <TurnView key={turn.peek().key} turn={turn} />;
  elements.set(turn, element);
  return element;
}

/** Announces status changes and the end to screen readers, but not each delta. */
function Announcer() {
  const turn = turns.value.at(-1)?.value;
  const announcement = useRef("");
  const wasRunning = useRef(false);
  if (turn?.status !== undefined) {
    wasRunning.current = true;
    announcement.current = turn.isReconnecting ? t("status.reconnecting") : turn.statusText || t(`status.${turn.status}`);
  } else if (wasRunning.current) {
    wasRunning.current = false;
    announcement.current = turn?.failure ? "" : turn?.isInterrupted ? t("status.stopped") : t("status.done");
  }
  return (
    <p class="hidden" role="status">
      {announcement.current}
    </p>
  );
}
