// Renders LaTeX as MathML. The renderer (temml) is loaded with the first formula.

import { useEffect, useRef, useState } from "preact/hooks";
import type { render as Render } from "temml";

let loaded: typeof Render | undefined;
const loading = () => import("./temml.ts").then(({ render }) => (loaded = render));

export function Formula({ latex, display }: { latex: string; display: boolean }) {
  const target = useRef<HTMLSpanElement>(null);
  const [render, setRender] = useState(() => loaded);
  useEffect(() => {
    let isShown = true;
    // If loading fails, the LaTeX source stays visible.
    if (render === undefined) loading().then((it) => isShown && setRender(() => it), () => undefined);
    return () => void (isShown = false);
  }, []);
  useEffect(() => {
    if (render === undefined || target.current === null) return;
    try {
      // `trust: false` forbids links and external resources in formulas.
      render(latex, target.current, { displayMode: display, trust: false, throwOnError: true, maxSize: [50, 50], maxExpand: 500 });
    } catch {
      target.current.textContent = latex;
    }
  }, [render, latex, display]);
  return (
    <span ref={target} class={display ? "formula display" : "formula"} tabIndex={display ? 0 : undefined}>
      {render === undefined ? latex : null}
    </span>
  );
}
