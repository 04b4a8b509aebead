// Parses Markdown into trees of nodes, one for each top-level block. Never produces HTML.
//
// An answer is untrusted: parsing takes time in proportion to its length, whatever it contains, and nesting is bounded, so that
// neither the parser nor the renderer runs out of stack. What is nested deeper stays text.

import MarkdownIt, { type StateBlock, type Token } from "markdown-it";
import { cite, lineBreak, mathBlock, mathInline, strongBesideHan } from "./rules.ts";

/** Nodes inside each other. */
export const MAX_NESTING = 32;
/** Markdown fills short rows of a table up to the width of its head. A table that would grow more by this is text. */
const MAX_GROWTH = 4;
/** Cells that any table may be filled up with. */
const MAX_FILLED_CELLS = 256;

export interface Node {
  /** The type of its token, without `_open`. */
  type: string;
  token: Token;
  children: Node[];
  /** Whether the task of a list item is done; undefined = it is none. */
  task?: boolean;
}

export interface Block {
  /** Its part of the source, up to the next block. */
  raw: string;
  nodes: Node[];
}

/** Definitions of links, which later blocks use. */
export type References = Record<string, unknown>;

const markdown = configured();

function configured() {
  // The deepest block is text, so that the parser's own limit, beyond which it drops text, is never reached.
  const it = new MarkdownIt({ html: false, linkify: true, maxNesting: MAX_NESTING + 8 });
  it.core.ruler.disable("linkify");
  // Links are checked where they are rendered: a refused one stays visible.
  it.validateLink = () => true;
  it.normalizeLink = it.normalizeLinkText = (address) => address;

  const table = ruleOf(it.block.ruler, "table");
  const isTable = (state: StateBlock, start: number, end: number) => table(state, start, end, true) && isFilled(state, start, end);
  it.block.ruler.at("table", (state, start, end, silent) => isTable(state, start, end) && (silent || table(state, start, end, false)), {
    alt: ["paragraph", "reference"],
  });
  it.block.ruler.before("table", "too_deep", tooDeep);
  it.block.ruler.before("fence", "math", mathBlock, { alt: ["paragraph", "reference", "blockquote", "list"] });

  // Images become links: loading one would tell a third party that the answer was read.
  const link = ruleOf(it.inline.ruler, "link");
  it.inline.ruler.at("image", (state, silent) => {
    if (!state.src.startsWith("![", state.pos)) return false;
    state.pos += 1;
    if (link(state, silent)) return true;
    state.pos -= 1;
    return false;
  });
  it.inline.ruler.before("escape", "math", mathInline);
  it.inline.ruler.before("emphasis", "strong_beside_han", strongBesideHan);
  it.inline.ruler.before("link", "cite", cite);
  it.inline.ruler.before("autolink", "line_break", lineBreak);
  return it;
}

/** The library does not export its rules. */
function ruleOf<Rule>(ruler: { before: (name: string, own: string, rule: Rule) => void }, name: string): Rule {
  const { __rules__: rules } = ruler as unknown as { __rules__: { name: string; fn: Rule }[] };
  const rule = rules.find((it) => it.name === name);
  if (rule === undefined) throw new Error(`markdown-it has no rule ${name}`);
  return rule.fn;
}

const scannedLines = new WeakMap<StateBlock, number>();

/** Whether the rows of a table have about as many cells as its head. */
function isFilled(state: StateBlock, start: number, end: number): boolean {
  const columns = pipesOf(state, start) + 1;
  let [rows, pipes, scanned] = [0, 0, scannedLines.get(state) ?? 0];
  // Tables that are not separated by blank lines are not scanned to the end again and again.
  const maxScanned = MAX_GROWTH * state.bMarks.length;
  for (let line = start + 2; line < end && !state.isEmpty(line) && scanned <= maxScanned; line += 1) {
    [rows, pipes, scanned] = [rows + 1, pipes + pipesOf(state, line), scanned + 1];
    if (rows * columns > MAX_GROWTH * pipes + MAX_FILLED_CELLS) break;
  }
  scannedLines.set(state, scanned);
  return rows * columns <= MAX_GROWTH * pipes + MAX_FILLED_CELLS && scanned <= maxScanned;
}

const pipesOf = (state: StateBlock, line: number) => sourceOf(state, line).split("|").length - 1;

const sourceOf = (state: StateBlock, line: number) => state.src.slice(state.bMarks[line], state.eMarks[line]);

function tooDeep(state: StateBlock, start: number, end: number): boolean {
  if (state.level < MAX_NESTING) return false;
  const token = state.push("plain", "", 0);
  token.content = state.getLines(start, end, state.blkIndent, false);
  token.map = [start, end];
  state.line = end;
  return true;
}

/**
  * Splits text into top-level blocks. `before` is the result for a prefix of the text: all but its last two blocks are reused, so
  * that appending to an answer parses only its end.
 */
export function parseBlocks(source: string, before: Block[] = [], references: References = {}): Block[] {
  const text = source.replace(/\r\n?/g, "\n");
  // The last two blocks can still merge: a line below a paragraph can make it a heading or a table.
  const done = before.slice(0, -2);
  const length = done.reduce((sum, { raw }) => sum + raw.length, 0);
  return [...done, ...split(text.slice(length), references)];
}

function split(text: string, references: References): Block[] {
  const tokens = markdown.parse(text, references);
  const lines = lineStarts(text);
  const blocks: Block[] = [];
  let start = 0;
  for (let begin = 0, end = 0; begin < tokens.length; begin = end) {
    do end += 1;
    while (end < tokens.length && tokens[end]?.level !== 0 || tokens[end]?.nesting === -1);
    const next = tokens[end]?.map?.[0];
    const stop = next === undefined ? text.length : (lines[next] ?? text.length);
    blocks.push({ raw: text.slice(start, stop), nodes: treeOf(tokens.slice(begin, end)) });
    start = stop;
  }
  return blocks;
}

function lineStarts(text: string): number[] {
  const starts = [0];
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) starts.push(at + 1);
  return starts;
}

/** Without recursion. A node that is nested too deep is replaced by its children. */
function treeOf(tokens: Token[]): Node[] {
  const root: Node[] = [];
  /** Open nodes; undefined = replaced by its children. */
  const open: (Node | undefined)[] = [];
  const path: Node[] = [];
  const add = (token: Token) => {
    if (token.nesting === -1) {
      const closed = open.pop() === undefined ? undefined : path.pop();
      if (closed?.type === "list_item") takeTask(closed);
      return;
    }
    const node: Node = { type: token.type.replace(/_open$/, ""), token, children: [] };
    // Leaves are no deeper than what they are in.
    const isReplaced = token.nesting === 1 && (token.hidden || path.length >= MAX_NESTING || (node.type === "link" && path.some(({ type }) => type === "link")));
    if (!isReplaced) (path.at(-1)?.children ?? root).push(node);
    if (token.nesting !== 1) return;
    open.push(isReplaced ? undefined : node);
    if (!isReplaced) path.push(node);
  };
  for (const token of tokens) {
    if (token.type === "inline") token.children?.forEach(add);
    else add(token);
  }
  return root;
}

/** Moves the mark of a task, `[x]`, from its text to its node. */
function takeTask(item: Node): void {
  const first = item.children[0];
  const text = first?.type === "paragraph" ? first.children[0] : first;
  const mark = text?.type === "text" ? /^\[([ xX])\](?:\s|$)/.exec(text.token.content) : null;
  if (text === undefined || mark === null) return;
  text.token.content = text.token.content.slice(mark[0].length);
  item.task = mark[1] !== " ";
}

/** Returns the normalized URL if its scheme is allowed in links (http, https, mailto). */
export function safeAddress(address: string): string | undefined {
  try {
    const { protocol, href } = new URL(address);
    return protocol === "https:" || protocol === "http:" || protocol === "mailto:" ? href : undefined;
  } catch {
    return undefined;
  }
}

