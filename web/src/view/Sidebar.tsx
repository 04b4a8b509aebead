import { useSignal } from "@preact/signals";
import { useId, useState } from "preact/hooks";
import { isAnswering, openNew, sessionId } from "../chat.ts";
import type { Session } from "../gen/conversation_service_pb.ts";
import { addressOf, goToNew } from "../route.ts";
import { sessions } from "../sessions.ts";
import { t } from "../text.ts";
import { Confirm, Dialog } from "./Dialog.tsx";
import { isListOpen } from "./dialogs.ts";
import { FailureNote } from "./FailureNote.tsx";
import { Icon } from "./icons.tsx";

/** The list of conversations. */
export function Sidebar() {
  const asked = useSignal<{ what: "rename" | "delete"; session: Session } | undefined>(undefined);
  const close = () => (asked.value = undefined);
  const { list, next, failure, isLoaded } = sessions;
  return (
    <nav class={isListOpen.value ? "sidebar open" : "sidebar"} aria-label={t("nav.open")}>
      <a class="button new" href={addressOf("")} onClick={startNew}>
        <Icon name="plus" />
        {t("nav.new")}
      </a>
      {failure.value && <FailureNote failure={failure.value} onRetry={() => void sessions.refresh()} />}
      {isLoaded.value && list.value.length === 0 && <p class="hint">{t("nav.empty")}</p>}
      <ul>
        {list.value.map((session) => (
          <Entry key={session.sessionId} session={session} onAsk={(what) => (asked.value = { what, session })} />
        ))}
      </ul>
      {next.value !== "" && (
        <button type="button" class="quiet" onClick={() => void sessions.more().catch(sessions.fail)}>
          {t("nav.more")}
        </button>
      )}
      {asked.value?.what === "rename" && <Rename session={asked.value.session} onClose={close} />}
      {asked.value?.what === "delete" && <Delete session={asked.value.session} onClose={close} />}
    </nav>
  );
}

function startNew() {
  isListOpen.value = false;
  // The address is that of a new conversation already, so that nobody else hears of it.
  if (sessionId.value === "") openNew();
}

function Entry({ session, onAsk }: { session: Session; onAsk: (what: "rename" | "delete") => void }) {
  const title = session.title || t("nav.untitled");
  const isOpen = session.sessionId === sessionId.value;
  const isRunning = session.runningRequestId !== "" || (isOpen && isAnswering.value);
  return (
    <li class={isOpen ? "entry current" : "entry"}>
      <a href={addressOf(session.sessionId)} aria-current={isOpen ? "page" : undefined} onClick={() => (isListOpen.value = false)}>
        <span>{title}</span>
        {isRunning && <span class="pulse" role="img" aria-label={t("nav.answering")} />}
      </a>
      <button type="button" class="quiet" aria-label={`${t("nav.rename")}: ${title}`} title={t("nav.rename")} onClick={() => onAsk("rename")}>
        <Icon name="edit" />
      </button>
      <button type="button" class="quiet" aria-label={`${t("nav.delete")}: ${title}`} title={t("nav.delete")} onClick={() => onAsk("delete")}>
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
    await sessions.rename(session.sessionId, title.trim()).catch(sessions.fail);
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
      sessions.fail(error);
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
