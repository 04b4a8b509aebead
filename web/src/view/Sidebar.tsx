import { useSignal } from "@preact/signals";
import { useId, useState } from "preact/hooks";
import { isAnswering, openNew, sessionId } from "../chat.ts";
import type { Session } from "../gen/conversation_service_pb.ts";
import { hashFor, goToNew } from "../route.ts";
import { sessions } from "../sessions.ts";
import { t } from "../text.ts";
import { Confirm, Dialog } from "./Dialog.tsx";
import { isListOpen } from "./dialogs.ts";
import { FailureNote } from "./FailureNote.tsx";
import { Icon } from "./icons.tsx";

export function Sidebar() {
  const dialog = useSignal<{ action: "rename" | "delete"; session: Session } | undefined>(undefined);
  const close = () => (dialog.value = undefined);
  const { list, nextPageToken, failure, isLoaded } = sessions;
  return (
    <nav class={isListOpen.value ? "sidebar open" : "sidebar"} aria-label={t("nav.open")}>
      <a class="button new" href={hashFor("")} onClick={startNew}>
        <Icon name="plus" />
        {t("nav.new")}
      </a>
      {failure.value && <FailureNote failure={failure.value} onRetry={() => void sessions.refresh()} />}
      {isLoaded.value && list.value.length === 0 && <p class="hint">{t("nav.empty")}</p>}
      <ul>
        {list.value.map((session) => (
          <Entry key={session.sessionId} session={session} onAction={(action) => (dialog.value = { action, session })} />
        ))}
      </ul>
      {nextPageToken.value !== "" && (
        <button type="button" class="quiet" onClick={() => void sessions.loadMore().catch(sessions.reportFailure)}>
          {t("nav.more")}
        </button>
      )}
      {dialog.value?.action === "rename" && <Rename session={dialog.value.session} onClose={close} />}
      {dialog.value?.action === "delete" && <Delete session={dialog.value.session} onClose={close} />}
    </nav>
  );
}

function startNew() {
  isListOpen.value = false;
  // The hash does not change in this case, so no `hashchange` follows.
  if (sessionId.value === "") openNew();
}

function Entry({ session, onAction }: { session: Session; onAction: (action: "rename" | "delete") => void }) {
  const title = session.title || t("nav.untitled");
  const isOpen = session.sessionId === sessionId.value;
  const isRunning = session.runningRequestId !== "" || (isOpen && isAnswering.value);
  return (
    <li class={isOpen ? "entry current" : "entry"}>
      <a href={hashFor(session.sessionId)} aria-current={isOpen ? "page" : undefined} onClick={() => (isListOpen.value = false)}>
        <span>{title}</span>
        {isRunning && <span class="pulse" role="img" aria-label={t("nav.answering")} />}
      </a>
      <button type="button" class="quiet" aria-label={`${t("nav.rename")}: ${title}`} title={t("nav.rename")} onClick={() => onAction("rename")}>
        <Icon name="edit" />
      </button>
      <button type="button" class="quiet" aria-label={`${t("nav.delete")}: ${title}`} title={t("nav.delete")} onClick={() => onAction("delete")}>
        <Icon name="trash" />
      </button>
    </li>
  );
}

function Rename({ session, onClose }: { session: Session; onClose: () => void }) {
  const [title, setTitle] = useState(session.title);
  const field = useId();
  const isValid = title.trim() !== "" && new Blob([title.trim()]).size <= 256;
  const save = async (event: Event) => {
    event.preventDefault();
    if (!isValid) return;
    onClose();
    await sessions.rename(session.sessionId, title.trim()).catch(sessions.reportFailure);
  };
  return (
    <Dialog title={t("rename.title")} onClose={onClose} class="narrow">
      <form onSubmit={(event) => void save(event)}>
        <label for={field}>{t("rename.label")}</label>
        <input id={field} autofocus value={title} aria-invalid={!isValid} onInput={(event) => setTitle(event.currentTarget.value)} />
        <footer>
          <button type="button" onClick={onClose}>
            {t("dialog.cancel")}
          </button>
          <button type="submit" class="primary" disabled={!isValid}>
            {t("dialog.save")}
          </button>
        </footer>
      </form>
    </Dialog>
  );
}

function Delete({ session, onClose }: { session: Session; onClose: () => void }) {
  const remove = async () => {
    try {
      await sessions.remove(session.sessionId);
      if (session.sessionId === sessionId.value) goToNew();
    } catch (error) {
      sessions.reportFailure(error);
    }
  };
  return (
    <Confirm
      title={t("delete.session.title")}
      text={t("delete.session.text", session.title || t("nav.untitled"))}
      confirm={t("dialog.delete")}
      onConfirm={() => void remove()}
      onClose={onClose}
    />
  );
}
