import { defineConfig, type Plugin } from "vite";

/** Drops temml's script font (a tenth of the page's size); the system's math font is used instead. */
const withoutScriptFont: Plugin = {
  name: "without-script-font",
  enforce: "pre",
  transform: (code, id) => (id.endsWith("/Temml-Local.css") ? code.replace(/@font-face\s*\{[^}]*\}/, "") : undefined),
};

/** Source files of markdown-it that the page has no use for, such as the writer of HTML and rules that are off, and what takes their place. */
const UNUSED = {
  renderer: "var Renderer = class {};",
  "rules_core/linkify": "function linkify$1() {}",
  "rules_core/replacements": "function replace() {}",
  "rules_core/smartquotes": "function smartquotes() {}",
  "rules_block/html_block": "function html_block() {}",
  "rules_inline/html_inline": "function html_inline() {}",
};

/** Drops what the bundler cannot: the library is one file that lists all rules. */
const withoutUnused: Plugin = {
  name: "without-unused",
  enforce: "pre",
  transform(code, id) {
    if (!id.endsWith("/markdown-it.mjs")) return undefined;
    return Object.entries(UNUSED).reduce((rest, [file, stub]) => {
      const [begin, end] = [rest.indexOf(`//#region src/${file}.ts\n`), "//#endregion"];
      if (begin < 0) throw new Error(`markdown-it has no source file ${file}`);
      return `${rest.slice(0, begin)}${stub}\n${rest.slice(rest.indexOf(end, begin))}`;
    }, code);
  },
};

const replacement = (file: string) => new URL(file, import.meta.url).pathname;

export default defineConfig({
  // For dependencies of markdown-it that the page needs little of.
  resolve: {
    alias: {
      entities: replacement("src/markdown/entities.ts"),
      "linkify-it": replacement("src/markdown/addresses.ts"),
      "uc.micro": replacement("src/markdown/unicode.ts"),
      mdurl: replacement("src/markdown/unused.ts"),
      "punycode.js": replacement("src/markdown/unused.ts"),
    },
  },
  // For `npm test`: with what is replaced.
  ssr: { noExternal: true },
  // Relative, so that the page works below any path.
  base: "./",
  plugins: [withoutScriptFont, withoutUnused],
  build: {
    target: "es2022",
    assetsDir: ".",
    // The content security policy allows files of this origin only, so nothing is inlined.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rollupOptions: {
      output: {
        // Fixed names: browsers revalidate by ETag, and diffs of dist stay readable.
        entryFileNames: "[name].js",
        chunkFileNames: "[name].js",
        assetFileNames: "[name][extname]",
      },
    },
  },
  // For `npm run dev` beside a running agent-local.
  server: { proxy: { "^/agent\\.v1\\.": "http://127.0.0.1:50051" } },
});
