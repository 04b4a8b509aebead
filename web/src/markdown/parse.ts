// Parses Markdown into tokens. Never produces HTML.

import { Marked, type Token, type TokenizerExtension, type Tokens } from "marked";

export type { Token, Tokens };

export interface MathToken extends Tokens.Generic {
  type: "math";
  text: string;
  display: boolean;
}

/** `[n]`, a reference to citation n. */
export interface CiteToken extends Tokens.Generic {
  type: "cite";
  number: number;
}

const mathBlock: TokenizerExtension = {
  name: "mathBlock",
  level: "block",
  start: (source) => source.match(/^ {0,3}(\$\$|\\\[)/m)?.index,
  tokenizer(source) {
    const match = /^ {0,3}(?:\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\])[^\S\n]*(?:\n+|$)/.exec(source);
    if (match === null) return undefined;
    return { type: "math", raw: match[0], text: (match[1] ?? match[2] ?? "").trim(), display: true };
  },
};

const mathInline: TokenizerExtension = {
  name: "mathInline",
  level: "inline",
  start: (source) => source.match(/\$|\\[([]/)?.index,
  tokenizer(source) {
    const displayed = /^(?:\$\$([^$]+?)\$\$|\\\[([\s\S]+?)\\\])/.exec(source);
    if (displayed !== null) {
      return { type: "math", raw: displayed[0], text: (displayed[1] ?? displayed[2] ?? "").trim(), display: true };
    }
    // "$5 and $6" is not a formula: the content has no space at either end, and no digit follows.
    const inline = /^(?:\$((?!\s)(?:\\[\s\S]|[^$\\\n])*?(?<!\s))\$(?!\d)|\\\(([\s\S]+?)\\\))/.exec(source);
    if (inline === null) return undefined;
    return { type: "math", raw: inline[0], text: (inline[1] ?? inline[2] ?? "").trim(), display: false };
  },
};

const cite: TokenizerExtension = {
  name: "cite",
  level: "inline",
  start: (source) => source.match(/\[\d/)?.index,
  tokenizer(source) {
    const match = /^\[(\d{1,3})\](?![([:])/.exec(source);
    return match === null ? undefined : { type: "cite", raw: match[0], number: Number(match[1]) };
  },
};

// CommonMark does not treat `**注意：**下一步` as bold, because no space follows the colon. Chinese text has no such spaces.
const strongBesideHan: TokenizerExtension = {
  name: "strongBesideHan",
  level: "inline",
  start: (source) => source.match(/\*\*\S/)?.index,
  tokenizer(source) {
    const match = /^\*\*(?=\S)((?:[^*\n\\]|\\.)+?)(?<=\S)\*\*(?!\*)/u.exec(source);
    if (match === null || !/[\p{Script=Han}\u3000-\u303f\uff00-\uffef“”‘’]/u.test(match[0] + source.charAt(match[0].length))) return undefined;
    const text = match[1] ?? "";
    return { type: "strong", raw: match[0], text, tokens: this.lexer.inlineTokens(text) };
  },
};

const marked = new Marked({ gfm: true, extensions: [mathBlock, mathInline, cite, strongBesideHan] });

/**
  * Splits text into top-level blocks. `before` is the result for a prefix of the text: all but its last two blocks are reused, so
  * that appending to an answer parses only its end.
 */
export function parseBlocks(source: string, before: Token[] = []): Token[] {
  const text = source.replace(/\r\n?/g, "\n");
  // The last two blocks can still merge: a line below a paragraph can make it a heading or a table.
  const done = before.slice(0, -2);
  const length = done.reduce((sum, { raw }) => sum + raw.length, 0);
  return [...done, ...marked.lexer(text.slice(length))];
}

const ENTITIES: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };

/** Decodes the few HTML entities that models write. */
export const decodeEntities = (text: string): string =>
  text.replace(/&(?:(amp|lt|gt|quot|apos|nbsp)|#(\d{1,7}));/g, (whole, name: string | undefined, code: string | undefined) => {
    if (name !== undefined) return ENTITIES[name] ?? whole;
    const point = Number(code);
    return point > 0 && point <= 0x10ffff ? String.fromCodePoint(point) : whole;
  });

/** Returns the normalized URL if its scheme is allowed in links (http, https, mailto). */
export function safeAddress(address: string): string | undefined {
  try {
    const { protocol, href } = new URL(address);
    return protocol === "https:" || protocol === "http:" || protocol === "mailto:" ? href : undefined;
  } catch {
    return undefined;
  }
}
