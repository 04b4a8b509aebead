import { defineConfig, type Plugin } from "vite";

/** Drops temml's script font (a tenth of the page's size); the system's math font is used instead. */
const withoutScriptFont: Plugin = {
  name: "without-script-font",
  enforce: "pre",
  transform: (code, id) => (id.endsWith("/Temml-Local.css") ? code.replace(/@font-face\s*\{[^}]*\}/, "") : undefined),
};

export default defineConfig({
  // Relative, so that the page works below any path.
  base: "./",
  plugins: [withoutScriptFont],
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
