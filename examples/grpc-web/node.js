// XMLHttpRequest for Node, which grpc-web requires. Web pages do not need this file.

import xhr from "xmlhttprequest";

// xmlhttprequest prepends `*/*` to the header "Accept"; a lower-case name avoids that.
globalThis.XMLHttpRequest = class extends xhr.XMLHttpRequest {
  constructor() {
    super();
    const set = this.setRequestHeader;
    this.setRequestHeader = (name, value) => set.call(this, name === "Accept" ? "accept" : name, value);
  }
};
