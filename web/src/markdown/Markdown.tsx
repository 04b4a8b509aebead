// Blocks of Markdown → elements. All text becomes text nodes: HTML that a model writes is shown as it was written.

import { Fragment, type ComponentChildren, type VNode } from "preact";
import { useRef } from "preact/hooks";
import { t } from "../text.ts";
import { CopyButton } from "../view/CopyButton.tsx";
import { Formula } from "./Formula.tsx";
import { blocks, readable, safeAddress, type CiteToken, type MathToken, type Token, type Tokens } from "./parse.ts";

interface Props {
  text: string;
  /** How many citations there are; a greater number in brackets is no reference. */
  citations: number;
  onCite: (number: number) => void;
}

type References = Omit<Props, "text">;

interface Drawn {
  raw: string;
  citations: number;
  element: VNode;
}

export function Markdown({ text, citations, onCite }: Props) {
  const before = useRef<{ text: string; blocks: Token[]; drawn: Drawn[] }>({ text: "", blocks: [], drawn: [] });
  const last = before.current;
  const parsed = last.text === text ? last.blocks : blocks(text, text.startsWith(last.text) ? last.blocks : []);
  // An element that is given again is not looked at again: only a block whose text has changed costs anything.
  const drawn = parsed.map((block, place): Drawn => {
    const known = last.drawn[place];
    if (known?.raw === block.raw && known.citations === citations) return known;
    return { raw: block.raw, citations, element: <Fragment key={place}>{one(block, 0, { citations, onCite })}</Fragment> };
  });
  before.current = { text, blocks: parsed, drawn };
  return <div class="prose">{drawn.map(({ element }) => element)}</div>;
}

const all = (tokens: Token[] | undefined, references: References): ComponentChildren => tokens?.map((token, place) => one(token, place, references));

function one(token: Token, key: number, references: References): ComponentChildren {
  const inner = (tokens: Token[] | undefined) => all(tokens, references);
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "heading": {
      // The page has its own h1 and h2.
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
      // A picture would tell another server that its text was read; whoever wants to see it follows the link.
      return <Link key={key} href={token.href} children={token.text || token.href} />;
    case "text":
      return <Fragment key={key}>{token.tokens === undefined ? readable(token.text) : inner(token.tokens)}</Fragment>;
    case "escape":
      return token.text;
    case "html":
      // The one that is common in cells of tables.
      return /^<br\s*\/?>$/i.test(token.raw.trim()) ? <br key={key} /> : token.raw;
    default:
      return token.raw;
  }
}

function Link({ href, children }: { href: string; children: ComponentChildren }) {
  const address = safeAddress(href);
  // What can not be opened is shown, so that nothing is hidden.
  if (address === undefined) return <span title={href}>{children}</span>;
  return (
    <a href={address} target="_blank" rel="noopener noreferrer nofollow">
      {children}
    </a>
  );
}

function List({ list, references }: { list: Tokens.List; references: References }) {
  const items = list.items.map((item, place) => (
    <li key={place} class={item.task ? "task" : undefined}>
      {item.task && <input type="checkbox" checked={item.checked ?? false} disabled aria-label={t(item.checked ? "task.done" : "task.open")} />}
      {all(item.tokens.filter(({ type }) => type !== "checkbox"), references)}
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
            {table.header.map((cell, place) => (
              <th key={place} class={cell.align ?? undefined}>
                {all(cell.tokens, references)}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {table.rows.map((row, place) => (
            <tr key={place}>
              {row.map((cell, column) => (
                <td key={column} class={cell.align ?? undefined}>
                  {all(cell.tokens, references)}
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
