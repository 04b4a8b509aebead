// A formula in LaTeX as MathML, which browsers draw themselves. What draws it is fetched with the first formula.

import { useEffect, useRef, useState } from "preact/hooks";
import type { render as Render } from "temml";

let loaded: typeof Render | undefined;
const loading = () => import("./temml.ts").then(({ render }) => (loaded = render));

export function Formula({ latex, display }: { latex: string; display: boolean }) {
  const place = useRef<HTMLSpanElement>(null);
  const [render, setRender] = useState(() => loaded);
  useEffect(() => {
    let isShown = true;
    // Without it, the formula stays as it was written.
    if (render === undefined) loading().then((it) => isShown && setRender(() => it), () => undefined);
    return () => void (isShown = false);
  }, []);
  useEffect(() => {
    if (render === undefined || place.current === null) return;
    try {
      // Without `trust` no formula can link or load anything.
      render(latex, place.current, { displayMode: display, trust: false, throwOnError: true, maxSize: [50, 50], maxExpand: 500 });
    } catch {
      place.current.textContent = latex;
    }
  }, [render, latex, display]);
  return (
    <span ref={place} class={display ? "formula display" : "formula"} tabIndex={display ? 0 : undefined}>
      {render === undefined ? latex : null}
    </span>
  );
}
