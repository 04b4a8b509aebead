import { defineConfig, type Plugin } from "vite";

/** Script capitals are drawn in the system's mathematical font; one of their own would be a tenth of the page. */
const withoutScriptFont: Plugin = {
  name: "without-script-font",
  enforce: "pre",
  transform: (code, id) => (id.endsWith("/Temml-Local.css") ? code.replace(/@font-face\s*\{[^}]*\}/, "") : undefined),
};

export default defineConfig({
  // The page finds its files beside it, whatever path it is served from.
  base: "./",
  plugins: [withoutScriptFont],
  build: {
    target: "es2022",
    assetsDir: ".",
    // Everything is a file that the page's policy names; nothing is put into the page itself.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rollupOptions: {
      output: {
        // Fixed names: the server tells a browser by an ETag whether a file is new, and a change can be read.
        entryFileNames: "[name].js",
        chunkFileNames: "[name].js",
        assetFileNames: "[name][extname]",
      },
    },
  },
  // For work on the page: `npm run dev` beside a running agent-local.
  server: { proxy: { "^/agent\\.v1\\.": "http://127.0.0.1:50051" } },
});
