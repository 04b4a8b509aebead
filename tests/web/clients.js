// One interface for both gRPC-Web libraries: connect-web in binary mode, grpc-web in text mode.

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import grpcWeb from "grpc-web";
import xhr from "xmlhttprequest";
import { Frames } from "./frames.js";

// XMLHttpRequest for Node that exposes partial responses as browsers do. It prepends `*/*` to "Accept"; a lower-case name avoids that.
globalThis.XMLHttpRequest = class extends xhr.XMLHttpRequest {
  constructor() {
    super();
    const set = this.setRequestHeader;
    this.setRequestHeader = (name, value) => set.call(this, name === "Accept" ? "accept" : name, value);
  }
};

export class CallError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

export class ConnectWeb {
  static title = "connect-web, binary";

  constructor(baseUrl) {
    this.transport = createGrpcWebTransport({ baseUrl, useBinaryFormat: true });
  }

  async unary(method, request, headers) {
    try {
      const sent = create(method.input, request);
      return (await this.transport.unary(method, undefined, undefined, headers, sent)).message;
    } catch (error) {
      throw toCallError(error);
    }
  }

  stream(method, request, headers) {
    const frames = new Frames();
    const client = createClient(method.parent, this.transport);
    const answer = client[method.localName](request, { headers });
    (async () => {
      try {
        for await (const frame of answer) frames.push(frame);
        frames.end();
      } catch (error) {
        frames.end(toCallError(error));
      }
    })();
    return frames;
  }
}

function toCallError(error) {
  const { code, rawMessage } = ConnectError.from(error);
  return new CallError(code, rawMessage);
}

/** The official grpc-web. It streams in text mode only. */
export class GrpcWeb {
  static title = "grpc-web, text";

  constructor(baseUrl) {
    this.baseUrl = baseUrl;
    this.client = new grpcWeb.GrpcWebClientBase({ format: "text" });
  }

  /** Call arguments, as grpc-web's code generator writes them. */
  call(method, kind, request, headers) {
    const path = `/${method.parent.typeName}/${method.name}`;
    const descriptor = new grpcWeb.MethodDescriptor(
      path,
      kind,
      Object,
      Object,
      (message) => toBinary(method.input, message),
      (bytes) => fromBinary(method.output, bytes),
    );
    return [this.baseUrl + path, create(method.input, request), headers ?? {}, descriptor];
  }

  async unary(method, request, headers) {
    try {
      return await this.client.unaryCall(...this.call(method, grpcWeb.MethodType.UNARY, request, headers));
    } catch (error) {
      throw new CallError(error.code, error.message);
    }
  }

  stream(method, request, headers) {
    const frames = new Frames();
    const call = this.call(method, grpcWeb.MethodType.SERVER_STREAMING, request, headers);
    const answer = this.client.serverStreaming(...call);
    answer.on("data", (frame) => frames.push(frame));
    answer.on("error", ({ code, message }) => frames.end(new CallError(code, message)));
    answer.on("end", () => frames.end());
    return frames;
  }
}
