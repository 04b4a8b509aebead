import { useLayoutEffect, useRef } from "preact/hooks";

/** For a field that appears because the user asked for it: it has the focus at once. */
export function useFocus<T extends HTMLElement>() {
  const field = useRef<T>(null);
  useLayoutEffect(() => field.current?.focus(), []);
  return field;
}
