// In place of the packages `mdurl` and `punycode.js`, by which markdown-it normalizes addresses: `safeAddress` does, by the browser's URL.

const same = (text: string) => text;

export const encode = same;
export const decode = same;
export const parse = same;
export const format = same;
export default { toASCII: same, toUnicode: same };
