// The parser of answers: what it makes of Markdown, and that its work grows with the length of the text only.
//
// Work is counted, not timed: the executions of each block of the parser and its library, from V8's precise coverage. It does not
// include regular expressions and string functions, which are linear here: each is anchored, or stops at the next delimiter.

import assert from "node:assert/strict";
import { Session } from "node:inspector/promises";
import { test } from "node:test";

const session = new Session();
session.connect();
await session.post("Profiler.enable");
// Before the parser is compiled, which is when its blocks get their counters.
await session.post("Profiler.startPreciseCoverage", { callCount: true, detailed: true });
const { MAX_NESTING, parseBlocks, safeAddress } = await import("../node_modules/.test/parse.js");

/** The nodes as text: the type, and in parentheses what is inside. */
function outline(text, before) {
  const of = ({ type, token, children, task }) => {
    const content = children.length > 0 ? children.map(of).join(" ") : token.content;
    const mark = task === undefined ? "" : task ? "[x]" : "[ ]";
    return type === "text" ? content : `${type}${mark}(${content})`;
  };
  return parseBlocks(text, before)
    .map(({ nodes }) => nodes.map(of).join(" "))
    .join("; ");
}

function depthOf(nodes) {
  let depth = 0;
  for (let level = nodes; level.length > 0; level = level.flatMap(({ children }) => children)) depth += 1;
  return depth;
}

const nodesOf = (text) => parseBlocks(text).flatMap(({ nodes }) => nodes);

function textOf(nodes) {
  const texts = [];
  const rest = [...nodes].reverse();
  while (rest.length > 0) {
    const { token, children } = rest.pop();
    texts.push(children.length > 0 ? "" : token.content);
    rest.push(...children.toReversed());
  }
  return texts.join("");
}

test("markdown_becomes_nodes", () => {
  for (const [text, expected] of [
    ["# A *b* **c** ~~d~~ `e`", "heading(A  em(b)   strong(c)   s(d)   code_inline(e))"],
    ["a\nb  \nc", "paragraph(a softbreak() b hardbreak() c)"],
    ["- a\n- b\n  1. c", "bullet_list(list_item(a) list_item(b ordered_list(list_item(c))))"],
    ["- [x] done\n- [ ] open\n- [y] none", "bullet_list(list_item[x](done) list_item[ ](open) list_item([y] none))"],
    ["> a\n\nb", "blockquote(paragraph(a)); paragraph(b)"],
    ["```js\nx\n```", "fence(x\n)"],
    ["| a | b |\n|---|:-:|\n| 1 | 2 |", "table(thead(tr(th(a) th(b))) tbody(tr(td(1) td(2))))"],
    ["a<br>b <b>c</b>", "paragraph(a hardbreak() b <b>c</b>)"],
    ["[a](https://x.example) https://y.example/z.", "paragraph(link(a)   link(https://y.example/z) .)"],
    ["[a]\n\n[a]: https://x.example", "paragraph(link(a))"],
    ["![a](https://x.example/i.png)", "paragraph(link(a))"],
    ["as found [1][2], [3] and [4](x)", "paragraph(as found  [1] cite(2) ,  cite(3)  and  link(4))"],
    ["&lt;a&gt; &amp; \\*b\\*", "paragraph(<a> & *b*)"],
    ["a &rarr; b &mdash; &unknown; &#960;", "paragraph(a → b — &unknown; π)"],
    ["(https://x.example/a_(b)), **https://y.example**", "paragraph(( link(https://x.example/a_(b)) ),  strong(link(https://y.example)) )"],
    ["见 https://x.example/a，然后", "paragraph(见 link(https://x.example/a) ，然后)"],
    ["https:// http://) mailto:a@b.example", "paragraph(https:// http://) mailto:a@b.example)"],
    ["---", "hr()"],
  ]) {
    assert.equal(outline(text).replaceAll(/ +/g, " "), expected.replaceAll(/ +/g, " "), text);
  }
});

test("formulas_are_found_and_prices_are_not", () => {
  for (const [text, expected] of [
    ["$a$ and \\(b\\)", "paragraph(math(a) and math(b))"],
    ["$5 and $6", "paragraph($5 and $6)"],
    ["a $$b$$ c", "paragraph(a math(b) c)"],
    ["$$\na\n\nb\n$$\nc", "math(a\n\nb); paragraph(c)"],
    ["a\n$$b$$", "paragraph(a); math(b)"],
    ["\\[ a \\]", "math(a)"],
    ["> $$\n> a\n> $$", "blockquote(math(a))"],
    ["$$a$$ and $$b$$", "paragraph(math(a) and math(b))"],
    ["$$ a", "paragraph($$ a)"],
    ["\\( a", "paragraph(( a)"],
    ["`$a$`", "paragraph(code_inline($a$))"],
  ]) {
    assert.equal(outline(text).replaceAll(/ +/g, " "), expected.replaceAll(/ +/g, " "), text);
  }
});

test("chinese_text_is_bold_without_spaces", () => {
  assert.equal(outline("**注意：**下一步"), "paragraph(strong(注意：) 下一步)");
  assert.equal(outline("**“a”**和b"), "paragraph(strong(“a”) 和b)");
});

test("only_web_and_mail_addresses_are_links", () => {
  for (const refused of ["javascript:alert(1)", "data:text/html,x", "vbscript:x", "file:///x", "//x.example", "x"]) assert.equal(safeAddress(refused), undefined, refused);
  assert.equal(safeAddress("https://x.example"), "https://x.example/");
  assert.equal(outline("[a](javascript:alert(1))"), "paragraph(link(a))", "it stays visible, without an address");
});

test("appended_text_parses_as_the_whole", () => {
  const text = "# A\n\nb **c**\n\n- d\n- e\n\n  f\n\n| g |\n|---|\n| h |\n\n$$\ni\n$$\n\n> j\nk\n\n[l]\n\n[l]: https://x.example\n\nm\n===\n";
  const whole = parseBlocks(text);
  assert.equal(whole.map(({ raw }) => raw).join(""), text);
  let blocks = [];
  const links = {};
  for (let end = 1; end <= text.length; end += 1) blocks = parseBlocks(text.slice(0, end), blocks, links);
  assert.deepEqual(blocks.map(({ raw }) => raw), whole.map(({ raw }) => raw));
  const types = (parsed) => parsed.map(({ nodes }) => nodes.map(({ type }) => type));
  assert.deepEqual(types(blocks), types(whole));
});

/** Texts of about n characters that are hard for parsers. */
const HARD = {
  quotes: (n) => "> ".repeat(n / 2) + "end",
  quotes_without_spaces: (n) => ">".repeat(n) + "end",
  bullets: (n) => "- ".repeat(n / 2) + "end",
  numbers: (n) => "1. ".repeat(n / 3) + "end",
  quotes_and_bullets: (n) => "> - ".repeat(n / 4) + "end",
  indented_bullets: (n) => Array.from({ length: Math.sqrt(n) }, (_, depth) => `${" ".repeat(2 * depth)}- end\n`).join(""),
  many_quote_lines: (n) => `${"> ".repeat(40)}end\n`.repeat(n / 84),
  lazy_quotes: (n) => `${"> ".repeat(40)}\n${"end\n".repeat(n / 4)}`,
  emphasis: (n) => "*a ".repeat(n / 3) + "end",
  emphasis_pairs: (n) => "*a **a ".repeat(n / 7) + "end",
  emphasis_closers: (n) => "a* ".repeat(n / 3) + "end",
  emphasis_nested: (n) => "*a ".repeat(n / 6) + "end" + "*".repeat(n / 6),
  strong_nested: (n) => "**a ".repeat(n / 8) + "end" + " a**".repeat(n / 8),
  emphasis_mixed: (n) => "*_".repeat(n / 2) + "end",
  emphasis_mixed_closers: (n) => "*a_ ".repeat(n / 4) + "end",
  stars: (n) => "*".repeat(n) + "end",
  star_runs: (n) => Array.from({ length: Math.sqrt(2 * n) }, (_, run) => `a${"*".repeat(run)}`).join(" ") + "end",
  underscores: (n) => "a_b".repeat(n / 3) + "end",
  tildes: (n) => "~~a ".repeat(n / 4) + "end",
  brackets: (n) => "[".repeat(n) + "end",
  bracket_pairs: (n) => "[".repeat(n / 2) + "end" + "]".repeat(n / 2),
  closed_brackets: (n) => "[a]".repeat(n / 3) + "end",
  link_openers: (n) => "[a](".repeat(n / 4) + "end",
  link_openers_angle: (n) => "[a](<b".repeat(n / 6) + "end",
  link_titles: (n) => '[a](b "'.repeat(n / 7) + "end",
  nested_links: (n) => "[".repeat(n / 8) + "end" + "](https://x)".repeat(n / 12),
  nested_images: (n) => "![".repeat(n / 8) + "end" + "](x)".repeat(n / 8),
  images: (n) => "![".repeat(n / 2) + "end",
  references: (n) => "[a]: b\n".repeat(n / 7) + "end",
  unfinished_references: (n) => "[a\n".repeat(n / 3) + "end",
  citations: (n) => "[1]".repeat(n / 3) + "end",
  backticks: (n) => "`a".repeat(n / 2) + "end",
  backtick_runs: (n) => Array.from({ length: Math.sqrt(2 * n) }, (_, run) => "`".repeat(run)).join(" ") + "end",
  fences: (n) => "```\n".repeat(n / 4) + "end",
  dollars: (n) => "$a ".repeat(n / 3) + "end",
  dollar_pairs: (n) => "$$".repeat(n / 2) + "end",
  dollars_escaped: (n) => "$\\$ ".repeat(n / 4) + "end",
  dollar_lines: (n) => "$$a\n".repeat(n / 4) + "end",
  dollar_paragraphs: (n) => "$$a\n\n".repeat(n / 5) + "end",
  dollar_items: (n) => "- $$a\n".repeat(n / 6) + "end",
  formulas: (n) => "\\(a".repeat(n / 3) + "end",
  formulas_in_labels: (n) => `[${"\\(a".repeat(n / 3)}](x) \\) end`,
  display_formulas: (n) => "\\[a\n".repeat(n / 4) + "end",
  pipes: (n) => "|".repeat(n) + "end",
  wide_table: (n) => `${"|a".repeat(n / 8)}|\n${"|-".repeat(n / 8)}|\n${"|\n".repeat(n / 4)}end`,
  many_tables: (n) => `${"|a".repeat(60)}|\n${"|-".repeat(60)}|\n${"|\n".repeat(100)}\n`.repeat(n / 460) + "end",
  table_heads: (n) => "|a|\n|-|\n\n".repeat(n / 9) + "end",
  table_cells: (n) => `|a|\n|-|\n${"|*a `b [c\n".repeat(n / 9)}\n\nend`,
  angle_brackets: (n) => "<a".repeat(n / 2) + "end",
  autolinks: (n) => "<http:".repeat(n / 6) + "end",
  comments: (n) => "<!--".repeat(n / 4) + "end",
  html: (n) => "<div>\n".repeat(n / 6) + "end",
  addresses: (n) => "http://a".repeat(n / 8) + "end",
  address_brackets: (n) => "http://a(".repeat(n / 9) + "end",
  entities: (n) => "&amp".repeat(n / 4) + "end",
  numeric_entities: (n) => "&#1".repeat(n / 3) + "end",
  escapes: (n) => "\\".repeat(n) + "end",
  chinese_strong: (n) => "**注 ".repeat(n / 4) + "end",
  headings: (n) => "# a\n".repeat(n / 4) + "end",
  underlines: (n) => "a\n=\n".repeat(n / 4) + "end",
  hashes: (n) => "#".repeat(n) + " end",
  rules: (n) => "* ".repeat(n / 2) + "\nend",
  spaces: (n) => " ".repeat(n) + "end",
  trailing_spaces: (n) => "a  \n".repeat(n / 4) + "end",
  tabs: (n) => "\t".repeat(n) + "end",
  blank_lines: (n) => "\n".repeat(n) + "end",
  words: (n) => "word ".repeat(n / 5) + "end",
};

/** Executions of the blocks of the parser and its library. */
async function workOf(body) {
  // Each report begins where the one before ended.
  await session.post("Profiler.takePreciseCoverage");
  body();
  const { result } = await session.post("Profiler.takePreciseCoverage");
  const ours = result.filter(({ url }) => url.endsWith("/node_modules/.test/parse.js"));
  const counts = ours.flatMap(({ functions }) => functions.flatMap(({ ranges }) => ranges.map(({ count }) => count)));
  return counts.reduce((sum, count) => sum + count, 0);
}

test("work_grows_with_the_length_of_the_text", async () => {
  const failures = [];
  for (const [name, text] of Object.entries(HARD)) {
    const [small, large] = [text(2_000), text(8_000)];
    const work = [await workOf(() => parseBlocks(small)), await workOf(() => parseBlocks(large))];
    // Quadratic work would be 16 times as much.
    const growth = work[1] / work[0] / (large.length / small.length);
    if (growth > 1.5) failures.push(`${name}: ${work} executions for ${small.length}, ${large.length} characters`);
  }
  assert.deepEqual(failures, []);
});

test("nesting_is_capped_and_nothing_is_lost", () => {
  for (const [name, text] of Object.entries(HARD)) {
    const nodes = nodesOf(text(20_000));
    // Leaves are one deeper.
    assert(depthOf(nodes) <= MAX_NESTING + 1, `${name}: ${depthOf(nodes)}`);
    assert(textOf(nodes).includes("end"), `${name}: the end of the text is lost`);
  }
});
