import { batch, useSignal, type Signal } from "@preact/signals";
import { useId } from "preact/hooks";
import { switchAccount, signIn } from "../account.ts";
import { settings, type Language, type Theme } from "../settings.ts";
import { t } from "../text.ts";
import { Dialog } from "./Dialog.tsx";
import { dialogs } from "./dialogs.ts";

const close = () => (dialogs.value = "none");

export function SettingsDialog() {
  const { user, nickname, token, address, retrieveAddress, manageAddress, language, theme } = settings;
  const draft = {
    user: useSignal(user.value),
    token: useSignal(token.value),
    address: useSignal(address.value),
    retrieveAddress: useSignal(retrieveAddress.value),
    manageAddress: useSignal(manageAddress.value),
  };
  const addresses = [draft.address, draft.retrieveAddress, draft.manageAddress];
  const isValid = addresses.every(({ value }) => isAddress(value));
  const save = (event: Event) => {
    event.preventDefault();
    if (!isValid) return;
    const names = Object.keys(draft) as (keyof typeof draft)[];
    const hasChanged = names.some((name) => settings[name].value !== draft[name].value.trim());
    batch(() => names.forEach((name) => (settings[name].value = draft[name].value.trim())));
    close();
    if (hasChanged) switchAccount();
  };
  return (
    <Dialog title={t("settings.title")} onClose={close}>
      <form onSubmit={save}>
        <Choice<Language> title={t("settings.language")} value={language} options={[["en", "English"], ["zh", "中文"]]} />
        <Choice<Theme> title={t("settings.theme")} value={theme} options={[["auto", t("theme.auto")], ["light", t("theme.light")], ["dark", t("theme.dark")]]} />
        <Field title={t("settings.nickname")} value={nickname} />
        <Field title={t("settings.user")} hint={t("settings.user.hint")} value={draft.user} />
        <Field title={t("settings.token")} hint={t("settings.token.hint")} value={draft.token} isSecret />
        <Field title={t("settings.address")} hint={t("settings.address.hint")} value={draft.address} placeholder={location.origin} isWrong={!isAddress(draft.address.value)} />
        <details open={draft.retrieveAddress.value !== "" || draft.manageAddress.value !== ""}>
          <summary>{t("settings.addresses")}</summary>
          <Field title={t("settings.retrieve")} value={draft.retrieveAddress} isWrong={!isAddress(draft.retrieveAddress.value)} />
          <Field title={t("settings.manage")} value={draft.manageAddress} isWrong={!isAddress(draft.manageAddress.value)} />
        </details>
        <footer>
          <button type="button" onClick={close}>
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

export function SignInDialog() {
  const draft = useSignal(settings.token.value);
  const save = (event: Event) => {
    event.preventDefault();
    close();
    signIn(draft.value.trim());
  };
  return (
    <Dialog title={t("signin.title")} onClose={close} class="narrow">
      <form onSubmit={save}>
        <p>{t("signin.text")}</p>
        <Field title={t("settings.token")} hint={t("settings.token.hint")} value={draft} isSecret />
        <footer>
          <button type="button" onClick={close}>
            {t("dialog.cancel")}
          </button>
          <button type="submit" class="primary">
            {t("signin.save")}
          </button>
        </footer>
      </form>
    </Dialog>
  );
}

/** Whether the page's content security policy (connect-src) allows the address. */
function isAddress(text: string): boolean {
  if (text.trim() === "") return true;
  try {
    const { protocol, hostname } = new URL(text.trim());
    return protocol === "https:" || (protocol === "http:" && ["localhost", "127.0.0.1"].includes(hostname));
  } catch {
    return false;
  }
}

interface FieldProps {
  title: string;
  hint?: string;
  value: Signal<string>;
  isSecret?: boolean;
  placeholder?: string;
  isWrong?: boolean;
}

function Field({ title, hint, value, isSecret = false, placeholder = "", isWrong = false }: FieldProps) {
  const [field, below] = [useId(), useId()];
  return (
    <div class="field">
      <label for={field}>{title}</label>
      <input
        id={field}
        type={(isSecret ? "password" : "text") as "text"}
        autocomplete="off"
        spellcheck={false}
        placeholder={placeholder}
        aria-invalid={isWrong}
        aria-describedby={below}
        value={value.value}
        onInput={(event) => (value.value = event.currentTarget.value)}
      />
      <p id={below} class={isWrong ? "hint wrong" : "hint"}>
        {isWrong ? t("settings.address.wrong") : hint}
      </p>
    </div>
  );
}

interface ChoiceProps<T extends string> {
  title: string;
  value: Signal<T>;
  options: [T, string][];
}

function Choice<T extends string>({ title, value, options }: ChoiceProps<T>) {
  const name = useId();
  return (
    <fieldset>
      <legend>{title}</legend>
      {options.map(([option, text]) => (
        <label key={option}>
          <input type="radio" name={name} checked={value.value === option} onChange={() => (value.value = option)} />
          {text}
        </label>
      ))}
    </fieldset>
  );
}
