// Another user, or another service: what is shown belongs to neither any more.

import { openNew } from "./chat.ts";
import { goTo } from "./route.ts";
import { sessions } from "./sessions.ts";
import * as memory from "./memory.ts";

export function restart(): void {
  goTo("");
  openNew();
  sessions.list.value = [];
  memory.list.value = [];
  memory.shown.value = undefined;
  void sessions.refresh();
  void memory.refresh();
}
