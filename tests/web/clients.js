// The two libraries by which browsers speak gRPC-Web, behind one face: connect-web in binary mode, grpc-web in text mode.

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import grpcWeb from "grpc-web";
import xhr from "xmlhttprequest";
import { Frames } from "./frames.js";

// Node has no XMLHttpRequest. This one shows what has arrived so far, as those of browsers do, but would put its own */* before
// what the client accepts; under a name in other letters that is replaced instead.
globalThis.XMLHttpRequest = class extends xhr.XMLHttpRequest {
  constructor() {
    super();
    const set = this.setRequestHeader;
    this.setRequestHeader = (name, value) => set.call(this, name === "Accept" ? "accept" : name, value);
  }
};

/** The status with which a call was refused. */
export class Refused extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** @connectrpc/connect-web, in binary mode. */
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
      throw refused(error);
    }
  }

  stream(method, request, headers) {
    const frames = new Frames();
    const client = createClient(method.parent, this.transport);
    const answer = client[method.localName](request, { headers, signal: frames.left });
    (async () => {
      try {
        for await (const frame of answer) frames.push(frame);
        frames.end();
      } catch (error) {
        frames.end(refused(error));
      }
    })();
    return frames;
  }
}

function refused(error) {
  const { code, rawMessage } = ConnectError.from(error);
  return new Refused(code, rawMessage);
}

/** The official grpc-web, in text mode, which is the only one in which it streams. */
export class GrpcWeb {
  static title = "grpc-web, text";

  constructor(baseUrl) {
    this.baseUrl = baseUrl;
    this.client = new grpcWeb.GrpcWebClientBase({ format: "text" });
  }

  /** The arguments of a call, as its generator of code writes them. */
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
      throw new Refused(error.code, error.message);
    }
  }

  stream(method, request, headers) {
    const frames = new Frames();
    const call = this.call(method, grpcWeb.MethodType.SERVER_STREAMING, request, headers);
    const answer = this.client.serverStreaming(...call);
    answer.on("data", (frame) => frames.push(frame));
    answer.on("error", ({ code, message }) => frames.end(new Refused(code, message)));
    answer.on("end", () => frames.end());
    frames.left.addEventListener("abort", () => answer.cancel());
    return frames;
  }
}
