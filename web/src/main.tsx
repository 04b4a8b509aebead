import { render } from "preact";
import { startRouting } from "./route.ts";
import { sessions } from "./sessions.ts";
import "./style/page.css";
import { App } from "./view/App.tsx";

const root = document.getElementById("app");
if (root !== null) {
  startRouting();
  void sessions.refresh();
  render(<App />, root);
}
