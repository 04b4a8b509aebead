import { useSignal } from "@preact/signals";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import * as memory from "../memory.ts";
import type { Notice, Memory } from "../memory.ts";
import { settings } from "../settings.ts";
import { t } from "../text.ts";
import { sourceTypeLabel } from "./Citations.tsx";
import { Confirm, Dialog } from "./Dialog.tsx";
import { isMemoryOpen } from "./dialogs.ts";
import { FailureNote } from "./FailureNote.tsx";
import { useFocus } from "./focus.ts";
import { Icon } from "./icons.tsx";

export function MemoryPanel() {
  const isForgetting = useSignal(false);
  useEffect(() => {
    memory.notices.value = [];
    void memory.refresh();
  }, [settings.user.value, settings.token.value]);
  return (
    <aside class="memory" aria-label={t("memory.title")}>
      <header>
        <h2>{t("memory.title")}</h2>
        <button type="button" class="quiet" aria-label={t("dialog.close")} onClick={() => (isMemoryOpen.value = false)}>
          <Icon name="close" />
        </button>
      </header>
      <SearchForm />
      <AddMemory />
      <div class="done" role="status">
        {memory.notices.value.map((notice, index) => (
          <p key={index}>{noticeText(notice)}</p>
        ))}
      </div>
      {memory.failure.value && <FailureNote failure={memory.failure.value} onRetry={() => void memory.refresh()} />}
      <MemoryList />
      <footer>
        <button type="button" class="quiet" onClick={() => void memory.exportAll()}>
          <Icon name="download" />
          {t("memory.export")}
        </button>
        <button type="button" class="quiet danger" onClick={() => (isForgetting.value = true)}>
          <Icon name="trash" />
          {t("memory.forget")}
        </button>
      </footer>
      {isForgetting.value && <ForgetDialog onClose={() => (isForgetting.value = false)} />}
    </aside>
  );
}

function SearchForm() {
  const [field, slider] = [useId(), useId()];
  const alpha = settings.alpha;
  const search = (event?: Event) => {
    event?.preventDefault();
    void memory.refresh();
  };
  return (
    <form class="search" role="search" onSubmit={search}>
      <label class="hidden" for={field}>
        {t("memory.search.label")}
      </label>
      <input
        id={field}
        type="search"
        placeholder={t("memory.search.label")}
        value={memory.query.value}
        onInput={(event) => {
          memory.query.value = event.currentTarget.value;
          // The field was cleared.
          if (memory.query.value === "" && memory.resultSummary.value?.query !== "") search();
        }}
      />
      <button type="submit" aria-label={t("memory.search")}>
        <Icon name="search" />
      </button>
      <div class="alpha">
        <label for={slider}>{t("memory.alpha")}</label>
        <span aria-hidden="true">{t("memory.alpha.lexical")}</span>
        <input
          id={slider}
          type="range"
          min="0"
          max="1"
          step="0.1"
          value={alpha.value}
          aria-valuetext={t("memory.alpha.value", alpha.value)}
          onInput={(event) => (alpha.value = event.currentTarget.valueAsNumber)}
          onChange={() => memory.query.value.trim() !== "" && search()}
        />
        <span aria-hidden="true">{t("memory.alpha.vector")}</span>
        <output for={slider}>{alpha.value.toFixed(1)}</output>
      </div>
    </form>
  );
}

function AddMemory() {
  const [isOpen, setOpen] = useState(false);
  const file = useRef<HTMLInputElement>(null);
  const opener = useRef<HTMLButtonElement>(null);
  return (
    <div class="add">
      <div class="actions">
        <button ref={opener} type="button" aria-expanded={isOpen} onClick={() => setOpen(!isOpen)}>
          <Icon name="plus" />
          {t("memory.add")}
        </button>
        <button type="button" onClick={() => file.current?.click()}>
          <Icon name="upload" />
          {t("memory.import")}
        </button>
        <input
          ref={file}
          type="file"
          hidden
          multiple
          accept=".md,.markdown,.txt,text/plain,text/markdown"
          onChange={async (event) => {
            const input = event.currentTarget;
            await memory.importDocuments([...(input.files ?? [])]);
            // Allows choosing the same file again.
            input.value = "";
          }}
        />
      </div>
      {isOpen && <NoteForm onClose={() => (setOpen(false), opener.current?.focus())} />}
    </div>
  );
}

function NoteForm({ onClose }: { onClose: () => void }) {
  const [text, setText] = useState("");
  const id = useId();
  const field = useFocus<HTMLTextAreaElement>();
  const save = async (event: Event) => {
    event.preventDefault();
    if (text.trim() !== "" && (await memory.add(text.trim()))) onClose();
  };
  return (
    <form onSubmit={(event) => void save(event)}>
      <label for={id}>{t("memory.add.label")}</label>
      <textarea ref={field} id={id} rows={3} value={text} onInput={(event) => setText(event.currentTarget.value)} />
      <div class="actions">
        <button type="submit" class="primary" disabled={text.trim() === "" || memory.isBusy.value}>
          {t("memory.add.save")}
        </button>
      </div>
    </form>
  );
}

function noticeText(notice: Notice): string {
  switch (notice.kind) {
    case "saved":
    case "known":
    case "corrected":
      return t(`memory.${notice.kind}`);
    case "deleted":
    case "exported":
      return t(`memory.${notice.kind}`, notice.count);
    case "importing":
      return t("memory.importing", notice.name);
    case "tooLarge":
    case "notText":
      return t(`memory.import.${notice.kind}`, notice.name);
    case "imported":
      return t("memory.imported", notice.name, notice.chunks);
  }
}

function MemoryList() {
  const shown = memory.resultSummary.value;
  if (shown === undefined) return null;
  const { query, total, degradation } = shown;
  if (query === "" && total === 0) return <p class="hint">{t("memory.empty")}</p>;
  return (
    <>
      <p class="hint" role="status">
        {query === "" ? t("memory.all") : t("memory.found", total)}
        {(degradation === "keywords-only" || degradation === "vectors-only") && <> {t(`memory.${degradation}`)}</>}
      </p>
      <ul class="memories">
        {memory.list.value.map((item) => (
          <Entry key={item.id} memory={item} />
        ))}
      </ul>
      {memory.nextPageToken.value !== "" && (
        <button type="button" class="quiet" disabled={memory.isBusy.value} onClick={() => void memory.loadMore()}>
          {t("memory.more")}
        </button>
      )}
    </>
  );
}

function Entry({ memory: item }: { memory: Memory }) {
  const [action, setAction] = useState<"edit" | "delete" | "delete-document">();
  const close = () => setAction(undefined);
  const date = item.createdAt?.toLocaleDateString(settings.language.value === "zh" ? "zh-CN" : "en", { dateStyle: "medium" });
  const where = [sourceTypeLabel(item.sourceType), item.title, item.section, date, item.isSavedByModel && t("memory.savedByModel"), item.supersededBy && t("memory.superseded")];
  return (
    <li class={item.supersededBy === "" ? undefined : "superseded"}>
      <p class="where">
        <span>{where.filter((part) => part !== undefined && part !== false && part !== "").join(" · ")}</span>
        {item.score !== undefined && (
          <span class="score" title={t("memory.score", item.score)}>
            <meter min="0" max="1" value={item.score} aria-label={t("memory.score", item.score)} />
            {item.score.toFixed(2)}
          </span>
        )}
      </p>
      {action === "edit" ? (
        <CorrectionForm memory={item} onClose={close} />
      ) : (
        <>
          <p class="content">{item.content}</p>
          <div class="actions">
            {item.documentId === "" && (
              <button type="button" class="quiet small" onClick={() => setAction("edit")}>
                {t("memory.edit")}
              </button>
            )}
            <button type="button" class="quiet small" onClick={() => setAction("delete")}>
              {t("memory.delete")}
            </button>
            {item.documentId !== "" && (
              <button type="button" class="quiet small" onClick={() => setAction("delete-document")}>
                {t("memory.deleteDocument")}
              </button>
            )}
          </div>
        </>
      )}
      {action === "delete" && (
        <Confirm title={t("delete.memory.title")} text={item.content.slice(0, 200)} confirm={t("dialog.delete")} onConfirm={() => void memory.remove(item)} onClose={close} />
      )}
      {action === "delete-document" && (
        <Confirm
          title={t("delete.document.title")}
          text={t("delete.document.text", item.title || item.documentId)}
          confirm={t("dialog.delete")}
          onConfirm={() => void memory.removeDocument(item.documentId)}
          onClose={close}
        />
      )}
    </li>
  );
}

function CorrectionForm({ memory: item, onClose }: { memory: Memory; onClose: () => void }) {
  const [text, setText] = useState(item.content);
  const field = useFocus<HTMLTextAreaElement>();
  const save = async (event: Event) => {
    event.preventDefault();
    if (text.trim() !== "" && (await memory.correct(item, text.trim()))) onClose();
  };
  return (
    <form onSubmit={(event) => void save(event)}>
      <textarea ref={field} rows={4} aria-label={t("memory.edit.label")} value={text} onInput={(event) => setText(event.currentTarget.value)} />
      <div class="actions">
        <button type="submit" class="primary" disabled={text.trim() === "" || memory.isBusy.value}>
          {t("dialog.save")}
        </button>
        <button type="button" onClick={onClose}>
          {t("dialog.cancel")}
        </button>
      </div>
    </form>
  );
}

function ForgetDialog({ onClose }: { onClose: () => void }) {
  const memories = useSignal(true);
  const conversations = useSignal(true);
  return (
    <Dialog title={t("forget.title")} onClose={onClose} class="narrow">
      <p>{t("forget.text")}</p>
      <label class="check">
        <input type="checkbox" checked={memories.value} onChange={(event) => (memories.value = event.currentTarget.checked)} />
        {t("forget.memories")}
      </label>
      <label class="check">
        <input type="checkbox" checked={conversations.value} onChange={(event) => (conversations.value = event.currentTarget.checked)} />
        {t("forget.sessions")}
      </label>
      <footer>
        <button type="button" onClick={onClose}>
          {t("dialog.cancel")}
        </button>
        <button
          type="button"
          class="danger"
          disabled={!memories.value && !conversations.value}
          onClick={() => {
            void memory.forget({ memories: memories.value, sessions: conversations.value });
            onClose();
          }}
        >
          {t("forget.confirm")}
        </button>
      </footer>
    </Dialog>
  );
}
