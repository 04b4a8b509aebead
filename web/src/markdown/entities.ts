// In place of the package `entities`, whose table of all names is a sixth of the page: the names that models write. The library
// decodes numbers itself.

const ENTITIES: Record<string, string> = {
  amp: "&",
  lt: "<",
  gt: ">",
  quot: '"',
  apos: "'",
  nbsp: "\u00a0",
  copy: "©",
  deg: "°",
  plusmn: "±",
  times: "×",
  divide: "÷",
  middot: "·",
  hellip: "…",
  ndash: "–",
  mdash: "—",
  larr: "←",
  rarr: "→",
  le: "≤",
  ge: "≥",
  ne: "≠",
};

/** `&name;`; another one stays as it is. */
export const decodeHTMLStrict = (text: string): string => (Object.hasOwn(ENTITIES, text.slice(1, -1)) ? (ENTITIES[text.slice(1, -1)] ?? text) : text);
