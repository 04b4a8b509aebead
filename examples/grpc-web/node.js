// Node has no XMLHttpRequest, which grpc-web speaks through; a web page does not need this file.

import xhr from "xmlhttprequest";

// This one would put its own */* before what the client accepts; under a name in other letters that is replaced instead.
globalThis.XMLHttpRequest = class extends xhr.XMLHttpRequest {
  constructor() {
    super();
    const set = this.setRequestHeader;
    this.setRequestHeader = (name, value) => set.call(this, name === "Accept" ? "accept" : name, value);
  }
};
