// Renders Markdown blocks. All text becomes text nodes, so HTML from a model is displayed as source.

import { Fragment, type ComponentChildren, type VNode } from "preact";
import { useRef } from "preact/hooks";
import { t } from "../text.ts";
import { Boundary } from "../view/Boundary.tsx";
import { CopyButton } from "../view/CopyButton.tsx";
import { Formula } from "./Formula.tsx";
import { parseBlocks, safeAddress, type Block, type Node, type References as LinkReferences } from "./parse.ts";

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

interface Rendered {
  text: string;
  blocks: Block[];
  links: LinkReferences;
  rendered: RenderedBlock[];
}

/** Shows the text itself if it cannot be drawn. */
export function Markdown(props: Props) {
  return (
    <Boundary text={props.text}>
      <Blocks {...props} />
    </Boundary>
  );
}

function Blocks({ text, citations, onCite }: Props) {
  const before = useRef<Rendered>({ text: "", blocks: [], links: {}, rendered: [] });
  const last = before.current;
  const isContinued = text.startsWith(last.text);
  const links = isContinued ? last.links : {};
  const parsed = last.text === text ? last.blocks : parseBlocks(text, isContinued ? last.blocks : [], links);
  // Preact skips an element that is identical to the previous one, so only changed blocks are rendered again.
  const rendered = parsed.map((block, index): RenderedBlock => {
    const cached = last.rendered[index];
    if (cached?.raw === block.raw && cached.citations === citations) return cached;
    return { raw: block.raw, citations, element: <Fragment key={index}>{renderNodes(block.nodes, { citations, onCite })}</Fragment> };
  });
  before.current = { text, blocks: parsed, links, rendered };
  return <div class="prose">{rendered.map(({ element }) => element)}</div>;
}

const renderNodes = (nodes: Node[], references: References): ComponentChildren => nodes.map((node, index) => renderNode(node, index, references));

function renderNode(node: Node, key: number, references: References): ComponentChildren {
  const { type, token } = node;
  const inner = () => renderNodes(node.children, references);
  switch (type) {
    case "heading": {
      // The page uses h1 and h2 itself.
      const Tag = `h${Math.min(6, Number(token.tag.slice(1)) + 2)}` as "h3";
      return <Tag key={key}>{inner()}</Tag>;
    }
    case "paragraph":
      return <p key={key}>{inner()}</p>;
    case "blockquote":
      return <blockquote key={key}>{inner()}</blockquote>;
    case "hr":
      return <hr key={key} />;
    case "fence":
    case "code_block":
      return <Code key={key} text={token.content.replace(/\n$/, "")} language={token.info.trim().split(/\s/)[0] ?? ""} />;
    case "bullet_list":
      return <ul key={key}>{inner()}</ul>;
    case "ordered_list":
      return (
        <ol key={key} start={Number(token.attrGet("start") ?? 1)}>
          {inner()}
        </ol>
      );
    case "list_item":
      return <Item key={key} item={node} references={references} />;
    case "table":
      return (
        <div key={key} class="table" role="region" aria-label={t("table")} tabIndex={0}>
          <table>{inner()}</table>
        </div>
      );
    case "thead":
      return <thead key={key}>{inner()}</thead>;
    case "tbody":
      return <tbody key={key}>{inner()}</tbody>;
    case "tr":
      return <Row key={key} row={node} references={references} />;
    case "math":
      return <Formula key={key} latex={token.content} display={token.info === "display"} />;
    case "cite": {
      const number = Number(token.content);
      if (number < 1 || number > references.citations) return token.markup;
      return (
        <button key={key} type="button" class="cite" aria-label={t("citation.open", number)} onClick={() => references.onCite(number)}>
          {number}
        </button>
      );
    }
    case "strong":
      return <strong key={key}>{inner()}</strong>;
    case "em":
      return <em key={key}>{inner()}</em>;
    case "s":
      return <del key={key}>{inner()}</del>;
    case "code_inline":
      return <code key={key}>{token.content}</code>;
    case "hardbreak":
      return <br key={key} />;
    case "softbreak":
      return "\n";
    case "link": {
      const href = String(token.attrGet("href") ?? "");
      return <Link key={key} href={href} children={node.children.length > 0 ? inner() : href} />;
    }
    case "plain":
      return (
        <p key={key} class="plain">
          {token.content}
        </p>
      );
    default:
      return token.content;
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

function Item({ item, references }: { item: Node; references: References }) {
  const { task } = item;
  return (
    <li class={task === undefined ? undefined : "task"}>
      {task !== undefined && <input type="checkbox" checked={task} disabled aria-label={t(task ? "task.done" : "task.open")} />}
      {renderNodes(item.children, references)}
    </li>
  );
}

/** Cells at the end that have no text are one: a short row would otherwise be filled up. */
function Row({ row, references }: { row: Node; references: References }) {
  const used = row.children.findLastIndex(({ children }) => children.length > 0) + 1;
  const missing = row.children.length - used;
  return (
    <tr>
      {row.children.slice(0, used).map((cell, index) => {
        const Tag = cell.type as "td";
        const align = /text-align:(\w+)/.exec(String(cell.token.attrGet("style") ?? ""))?.[1];
        return (
          <Tag key={index} class={align}>
            {renderNodes(cell.children, references)}
          </Tag>
        );
      })}
      {missing > 0 && <td colSpan={missing} />}
    </tr>
  );
}

function Code({ text, language }: { text: string; language: string }) {
  return (
    <figure class="code">
      <figcaption>
        <span>{language || t("code")}</span>
        <CopyButton text={text} />
      </figcaption>
      <pre tabIndex={0}>
        <code>{text}</code>
      </pre>
    </figure>
  );
}
