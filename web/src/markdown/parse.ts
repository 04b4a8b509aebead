// Markdown → blocks. What comes out is data; nothing here makes HTML.

import { Marked, type Token, type TokenizerExtension, type Tokens } from "marked";

export type { Token, Tokens };

/** A formula in LaTeX. */
export interface MathToken extends Tokens.Generic {
  type: "math";
  text: string;
  display: boolean;
}

/** A number in brackets that refers to a citation. */
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
    // Of two prices in a line no formula is made: none begins or ends with a space, and no digit follows.
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

// By the rules of CommonMark `**注意：**下一步` is not bold, because no space follows the colon. Chinese has no such spaces.
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
 * Splits text into top-level blocks. Of a text that only grows all blocks but the last stay as they are, so that each piece of an
 * answer costs no more than the block that it belongs to: `before` is what the call before gave for the beginning of the text.
 */
export function blocks(given: string, before: Token[] = []): Token[] {
  const text = given.replace(/\r\n?/g, "\n");
  // The last two may still become one: a line below a paragraph can make it a heading or a table.
  const done = before.slice(0, -2);
  const length = done.reduce((sum, { raw }) => sum + raw.length, 0);
  return [...done, ...marked.lexer(text.slice(length))];
}

const ENTITIES: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };

/** Text as it is read: the few entities that models write are the characters that they stand for. */
export const readable = (text: string): string =>
  text.replace(/&(?:(amp|lt|gt|quot|apos|nbsp)|#(\d{1,7}));/g, (whole, name: string | undefined, code: string | undefined) => {
    if (name !== undefined) return ENTITIES[name] ?? whole;
    const point = Number(code);
    return point > 0 && point <= 0x10ffff ? String.fromCodePoint(point) : whole;
  });

/** An address that a click may open; undefined: no such one. */
export function safeAddress(address: string): string | undefined {
  try {
    const { protocol, href } = new URL(address);
    return protocol === "https:" || protocol === "http:" || protocol === "mailto:" ? href : undefined;
  } catch {
    return undefined;
  }
}
