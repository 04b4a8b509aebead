// Renders LaTeX as MathML. The renderer (temml) is loaded with the first formula.

import { useEffect, useRef, useState } from "preact/hooks";
import type { render as Render } from "temml";

/** The renderer nests MathML as deep as the LaTeX, and takes more than linear time. */
const MAX_CHARACTERS = 4_000;
const MAX_BRACES = 32;

/** Longer or deeper ones are displayed as LaTeX. */
function isDrawable(latex: string): boolean {
  let depth = 0;
  for (const character of latex.length <= MAX_CHARACTERS ? latex : "") {
    if (character === "{") depth += 1;
    if (character === "}") depth -= 1;
    if (depth > MAX_BRACES) return false;
  }
  return latex.length <= MAX_CHARACTERS;
}

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
    if (!isDrawable(latex)) {
      target.current.textContent = latex;
      return;
    }
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
