import { render } from "preact";
import { route } from "./route.ts";
import { sessions } from "./sessions.ts";
import "./style/page.css";
import { App } from "./view/App.tsx";

const root = document.getElementById("app");
if (root !== null) {
  route();
  void sessions.refresh();
  render(<App />, root);
}
