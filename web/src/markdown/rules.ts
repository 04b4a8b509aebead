// Rules beside those of CommonMark and GFM: formulas, citations, line breaks, and bold text in Chinese.
//
// A rule whose end is missing must not search for it from each beginning again, which would take quadratic time.

import type { StateBlock, StateInline } from "markdown-it";

const DOLLAR = 0x24;
const BACKSLASH = 0x5c;

/** `$$ … $$` or `\[ … \]`, from the begin of a line to the end of a line. */
export function mathBlock(state: StateBlock, start: number, end: number, silent: boolean): boolean {
  if ((state.sCount[start] ?? 0) - state.blkIndent >= 4) return false;
  const open = state.src.slice(beginOf(state, start), beginOf(state, start) + 2);
  const close = open === "$$" ? "$$" : open === "\\[" ? "\\]" : undefined;
  if (close === undefined) return false;
  const first = lineOf(state, start).slice(2);
  const last = first.includes(close) ? start : closingLine(state, start + 1, end, close);
  if (last === undefined) return false;
  const text = last === start ? first : lineOf(state, last);
  const at = text.indexOf(close);
  // Text behind it belongs to a paragraph, which may contain formulas.
  if (text.slice(at + 2).trim() !== "" || (last === start && at === 0)) return false;
  if (silent) return true;
  const before = last === start ? [] : [first, state.getLines(start + 1, last, state.blkIndent, false)];
  const token = state.push("math", "", 0);
  token.content = [...before, text.slice(0, at)].join("\n").trim();
  token.info = "display";
  token.map = [start, last + 1];
  state.line = last + 1;
  return true;
}

const beginOf = (state: StateBlock, line: number) => (state.bMarks[line] ?? 0) + (state.tShift[line] ?? 0);

const lineOf = (state: StateBlock, line: number) => state.src.slice(beginOf(state, line), state.eMarks[line]);

/** The first line that contains `close`. */
function closingLine(state: StateBlock, from: number, end: number, close: string): number | undefined {
  const searches = memory(blockSearches, state);
  const key = `${close} ${end}`;
  const known = searches.get(key);
  if (known !== undefined && known.from <= from && (known.found === undefined || known.found >= from)) return known.found;
  let found: number | undefined;
  for (let line = from; line < end && found === undefined; line += 1) {
    if ((state.sCount[line] ?? 0) < state.blkIndent && !state.isEmpty(line)) break;
    if (lineOf(state, line).includes(close)) found = line;
  }
  searches.set(key, { from, found });
  return found;
}

interface Search {
  from: number;
  found: number | undefined;
}

const blockSearches = new WeakMap<object, Map<string, Search>>();
const inlineSearches = new WeakMap<object, Map<string, Search>>();

function memory(searches: WeakMap<object, Map<string, Search>>, state: object): Map<string, Search> {
  const known = searches.get(state) ?? new Map<string, Search>();
  searches.set(state, known);
  return known;
}

/** `$…$`, `$$…$$`, `\(…\)` and `\[…\]` in a paragraph. */
export function mathInline(state: StateInline, silent: boolean): boolean {
  const code = state.src.charCodeAt(state.pos);
  const found = code === DOLLAR ? betweenDollars(state) : code === BACKSLASH ? betweenBrackets(state) : undefined;
  if (found === undefined || found.end > state.posMax) return false;
  if (!silent) {
    const token = state.push("math", "", 0);
    token.content = found.text.trim();
    token.info = found.isDisplay ? "display" : "";
  }
  state.pos = found.end;
  return true;
}

interface InlineMath {
  text: string;
  end: number;
  isDisplay: boolean;
}

/** Searches up to the next dollar only. */
function betweenDollars({ src, pos, posMax }: StateInline): InlineMath | undefined {
  if (src.charCodeAt(pos + 1) === DOLLAR) {
    const end = src.indexOf("$", pos + 2);
    return end > pos + 2 && src.charCodeAt(end + 1) === DOLLAR ? { text: src.slice(pos + 2, end), end: end + 2, isDisplay: true } : undefined;
  }
  let end = pos + 1;
  for (; end < posMax; end += 1) {
    const code = src.charCodeAt(end);
    if (code === DOLLAR) break;
    if (code === 0x0a) return undefined;
    if (code === BACKSLASH) end += 1;
  }
  const text = src.slice(pos + 1, end);
  // "$5 and $6" is not a formula: the content has no space at either end, and no digit follows.
  if (end >= posMax || text === "" || text.trim() !== text || /^\d/.test(src.charAt(end + 1))) return undefined;
  return { text, end: end + 1, isDisplay: false };
}

function betweenBrackets(state: StateInline): InlineMath | undefined {
  const { src, pos } = state;
  const open = src.charAt(pos + 1);
  if (open !== "(" && open !== "[") return undefined;
  const close = open === "(" ? "\\)" : "\\]";
  const searches = memory(inlineSearches, state);
  const from = pos + 3;
  let search = searches.get(close);
  if (search === undefined || search.from > from || (search.found !== undefined && search.found < from)) {
    const index = src.indexOf(close, from);
    search = { from, found: index < 0 ? undefined : index };
    searches.set(close, search);
  }
  if (search.found === undefined) return undefined;
  return { text: src.slice(pos + 2, search.found), end: search.found + 2, isDisplay: open === "[" };
}

/** `[n]`, a reference to citation n. */
export function cite(state: StateInline, silent: boolean): boolean {
  const pattern = /\[(\d{1,3})\](?![([:])/y;
  pattern.lastIndex = state.pos;
  const match = pattern.exec(state.src);
  if (match === null) return false;
  if (!silent) {
    const token = state.push("cite", "", 0);
    token.content = match[1] ?? "";
    token.markup = match[0];
  }
  state.pos = pattern.lastIndex;
  return true;
}

/** Models write it in table cells. */
export function lineBreak(state: StateInline, silent: boolean): boolean {
  const pattern = /<br *\/?>/iy;
  pattern.lastIndex = state.pos;
  if (!pattern.test(state.src)) return false;
  if (!silent) state.push("hardbreak", "br", 0);
  state.pos = pattern.lastIndex;
  return true;
}

/**
 * CommonMark does not treat `**注意：**下一步` as bold, because no space follows the colon. Chinese text has no such spaces.
 * Searches up to the next asterisk only.
 */
export function strongBesideHan(state: StateInline, silent: boolean): boolean {
  const { src, pos, posMax } = state;
  if (!src.startsWith("**", pos) || src.charAt(pos + 2) === "*") return false;
  let end = pos + 2;
  for (; end < posMax && src.charAt(end) !== "*"; end += 1) {
    if (src.charAt(end) === "\n") return false;
    if (src.charAt(end) === "\\") end += 1;
  }
  const text = src.slice(pos + 2, end);
  if (text.trim() !== text || text === "" || end + 2 > posMax || !src.startsWith("**", end) || src.charAt(end + 2) === "*") return false;
  if (!/[\p{Script=Han}\u3000-\u303f\uff00-\uffef“”‘’]/u.test(text + src.charAt(end + 2))) return false;
  if (!silent) {
    state.push("strong_open", "strong", 1).markup = "**";
    state.pos = pos + 2;
    state.posMax = end;
    state.md.inline.tokenize(state);
    state.posMax = posMax;
    state.push("strong_close", "strong", -1).markup = "**";
  }
  state.pos = end + 2;
  return true;
}
