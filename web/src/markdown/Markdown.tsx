// Renders Markdown blocks. All text becomes text nodes, so HTML from a model is displayed as source.

import { Fragment, type ComponentChildren, type VNode } from "preact";
import { useRef } from "preact/hooks";
import { t } from "../text.ts";
import { CopyButton } from "../view/CopyButton.tsx";
import { Formula } from "./Formula.tsx";
import { parseBlocks, decodeEntities, safeAddress, type CiteToken, type MathToken, type Token, type Tokens } from "./parse.ts";

interface Props {
  text: string;
  /** Number of citations; a larger number in brackets is plain text. */
  citations: number;
  onCite: (number: number) => void;
}

type References = Omit<Props, "text">;

interface RenderedBlock {
  raw: string;
  citations: number;
  element: VNode;
}

export function Markdown({ text, citations, onCite }: Props) {
  const before = useRef<{ text: string; blocks: Token[]; rendered: RenderedBlock[] }>({ text: "", blocks: [], rendered: [] });
  const last = before.current;
  const parsed = last.text === text ? last.blocks : parseBlocks(text, text.startsWith(last.text) ? last.blocks : []);
  // Preact skips an element that is identical to the previous one, so only changed blocks are rendered again.
  const rendered = parsed.map((block, index): RenderedBlock => {
    const cached = last.rendered[index];
    if (cached?.raw === block.raw && cached.citations === citations) return cached;
    return { raw: block.raw, citations, element: <Fragment key={index}>{renderToken(block, 0, { citations, onCite })}</Fragment> };
  });
  before.current = { text, blocks: parsed, rendered };
  return <div class="prose">{rendered.map(({ element }) => element)}</div>;
}

const renderTokens = (tokens: Token[] | undefined, references: References): ComponentChildren => tokens?.map((token, index) => renderToken(token, index, references));

function renderToken(token: Token, key: number, references: References): ComponentChildren {
  const inner = (tokens: Token[] | undefined) => renderTokens(tokens, references);
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "heading": {
      // The page uses h1 and h2 itself.
      const Tag = `h${Math.min(6, token.depth + 2)}` as "h3";
      return <Tag key={key}>{inner(token.tokens)}</Tag>;
    }
    case "paragraph":
      return <p key={key}>{inner(token.tokens)}</p>;
    case "blockquote":
      return <blockquote key={key}>{inner(token.tokens)}</blockquote>;
    case "hr":
      return <hr key={key} />;
    case "code":
      return <Code key={key} code={token as Tokens.Code} />;
    case "list":
      return <List key={key} list={token as Tokens.List} references={references} />;
    case "table":
      return <Table key={key} table={token as Tokens.Table} references={references} />;
    case "math":
      return <Formula key={key} latex={(token as MathToken).text} display={(token as MathToken).display} />;
    case "cite": {
      const { number, raw } = token as CiteToken;
      if (number < 1 || number > references.citations) return raw;
      return (
        <button key={key} type="button" class="cite" aria-label={t("citation.open", number)} onClick={() => references.onCite(number)}>
          {number}
        </button>
      );
    }
    case "strong":
      return <strong key={key}>{inner(token.tokens)}</strong>;
    case "em":
      return <em key={key}>{inner(token.tokens)}</em>;
    case "del":
      return <del key={key}>{inner(token.tokens)}</del>;
    case "codespan":
      return <code key={key}>{token.text}</code>;
    case "br":
      return <br key={key} />;
    case "link":
      return <Link key={key} href={token.href} children={inner(token.tokens)} />;
    case "image":
      // Images become links: loading one would tell a third party that the answer was read.
      return <Link key={key} href={token.href} children={token.text || token.href} />;
    case "text":
      return <Fragment key={key}>{token.tokens === undefined ? decodeEntities(token.text) : inner(token.tokens)}</Fragment>;
    case "escape":
      return token.text;
    case "html":
      // Models write <br> in table cells.
      return /^<br\s*\/?>$/i.test(token.raw.trim()) ? <br key={key} /> : token.raw;
    default:
      return token.raw;
  }
}

function Link({ href, children }: { href: string; children: ComponentChildren }) {
  const address = safeAddress(href);
  // A link with a disallowed scheme stays visible as text.
  if (address === undefined) return <span title={href}>{children}</span>;
  return (
    <a href={address} target="_blank" rel="noopener noreferrer nofollow">
      {children}
    </a>
  );
}

function List({ list, references }: { list: Tokens.List; references: References }) {
  const items = list.items.map((item, index) => (
    <li key={index} class={item.task ? "task" : undefined}>
      {item.task && <input type="checkbox" checked={item.checked ?? false} disabled aria-label={t(item.checked ? "task.done" : "task.open")} />}
      {renderTokens(item.tokens.filter(({ type }) => type !== "checkbox"), references)}
    </li>
  ));
  return list.ordered ? <ol start={Number(list.start) || 1}>{items}</ol> : <ul>{items}</ul>;
}

function Table({ table, references }: { table: Tokens.Table; references: References }) {
  return (
    <div class="table" role="region" aria-label={t("table")} tabIndex={0}>
      <table>
        <thead>
          <tr>
            {table.header.map((cell, index) => (
              <th key={index} class={cell.align ?? undefined}>
                {renderTokens(cell.tokens, references)}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {table.rows.map((row, index) => (
            <tr key={index}>
              {row.map((cell, column) => (
                <td key={column} class={cell.align ?? undefined}>
                  {renderTokens(cell.tokens, references)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Code({ code }: { code: Tokens.Code }) {
  const language = code.lang?.split(/\s/)[0] ?? "";
  return (
    <figure class="code">
      <figcaption>
        <span>{language || t("code")}</span>
        <CopyButton text={code.text} />
      </figcaption>
      <pre tabIndex={0}>
        <code>{code.text}</code>
      </pre>
    </figure>
  );
}
