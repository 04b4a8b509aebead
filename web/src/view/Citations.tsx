import { useEffect, useRef } from "preact/hooks";
import type { Citation } from "../gen/agent_service_pb.ts";
import { safeAddress } from "../markdown/parse.ts";
import { t } from "../text.ts";

interface Props {
  citations: Citation[];
  /** 1-based; 0: none. */
  open: number;
  onOpen: (number: number) => void;
}

export function Citations({ citations, open, onOpen }: Props) {
  const card = useRef<HTMLDivElement>(null);
  const shown = citations[open - 1];
  const address = shown && safeAddress(shown.url);
  useEffect(() => {
    if (shown !== undefined) card.current?.scrollIntoView({ block: "nearest" });
  }, [open]);
  return (
    <section class="citations" aria-label={t("citations")}>
      <ul>
        {citations.map((citation, index) => (
          <li key={citation.id}>
            <button type="button" class="source" aria-expanded={open === index + 1} onClick={() => onOpen(open === index + 1 ? 0 : index + 1)}>
              <b>{index + 1}</b>
              <span>{citationName(citation)}</span>
            </button>
          </li>
        ))}
      </ul>
      {shown && (
        <div ref={card} class="card">
          <p class="where">{citationSource(shown)}</p>
          <blockquote>{shown.content}</blockquote>
          {address !== undefined && (
            <a href={address} target="_blank" rel="noopener noreferrer nofollow">
              {t("citation.link")}
            </a>
          )}
        </div>
      )}
    </section>
  );
}

export function sourceTypeLabel(sourceType: string): string {
  return sourceType === "chat" || sourceType === "fact" || sourceType === "document" || sourceType === "note" ? t(`source.${sourceType}`) : sourceType;
}

const citationName = ({ title, content }: Citation): string => title || content;

function citationSource({ title, sectionTitle, pageNumber, sourceType, score }: Citation): string {
  const page = pageNumber > 0 ? t("citation.page", pageNumber) : "";
  return [sourceTypeLabel(sourceType), title, sectionTitle, page, t("memory.score", score)].filter((part) => part !== "").join(" · ");
}
