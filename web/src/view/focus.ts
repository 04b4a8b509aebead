import { useLayoutEffect, useRef } from "preact/hooks";

/** Focuses a field as soon as it appears. */
export function useFocus<T extends HTMLElement>() {
  const field = useRef<T>(null);
  useLayoutEffect(() => field.current?.focus(), []);
  return field;
}
