import { useEffect, useRef } from "preact/hooks";
import type { Citation } from "../gen/agent_service_pb.ts";
import { safeAddress } from "../markdown/parse.ts";
import { t } from "../text.ts";

interface Props {
  citations: Citation[];
  /** The number of the one that is open; 0: none. */
  open: number;
  onOpen: (number: number) => void;
}

/** What an answer is grounded in: a row of numbers and names, of which one opens. */
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
        {citations.map((citation, place) => (
          <li key={citation.id}>
            <button type="button" class="source" aria-expanded={open === place + 1} onClick={() => onOpen(open === place + 1 ? 0 : place + 1)}>
              <b>{place + 1}</b>
              <span>{nameOf(citation)}</span>
            </button>
          </li>
        ))}
      </ul>
      {shown && (
        <div ref={card} class="card">
          <p class="where">{whereOf(shown)}</p>
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

/** A kind of memory, in words. */
export function kindOf(sourceType: string): string {
  return sourceType === "chat" || sourceType === "fact" || sourceType === "document" || sourceType === "note" ? t(`source.${sourceType}`) : sourceType;
}

const nameOf = ({ title, content }: Citation): string => title || content;

function whereOf({ title, sectionTitle, pageNumber, sourceType, score }: Citation): string {
  const page = pageNumber > 0 ? t("citation.page", pageNumber) : "";
  return [kindOf(sourceType), title, sectionTitle, page, t("memory.score", score)].filter((part) => part !== "").join(" · ");
}
