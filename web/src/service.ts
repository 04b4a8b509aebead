// The calls of the service, wherever it is.

import { Code, ConnectError, createClient, type Client, type Interceptor } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import type { DescService } from "@bufbuild/protobuf";
import { AgentService } from "./gen/agent_service_pb.ts";
import { ConversationService } from "./gen/conversation_service_pb.ts";
import { MemoryService } from "./gen/memory_service_pb.ts";
import { settings } from "./settings.ts";

/** What a call may take that is answered at once, in milliseconds. */
const SHORT_MS = 30_000;
/** What an answer, a document or an export may take. */
export const LONG_MS = 300_000;

type FunctionName = "stream-chat" | "retrieve-memory" | "manage-memory";

/** Where a function is reached: all at one address, at one each, or below a path of its name. */
function addressOf(name: FunctionName): string {
  const own = { "stream-chat": "", "retrieve-memory": settings.retrieveAddress.value, "manage-memory": settings.manageAddress.value }[name];
  const address = (own.trim() || settings.address.value.trim() || location.origin).replace("{function}", name);
  return address.replace(/\/+$/, "");
}

/** The token goes with each call, so that a new one counts at once. */
const authorize: Interceptor = (next) => (request) => {
  const token = settings.token.value.trim();
  if (token !== "") request.header.set("authorization", `Bearer ${token}`);
  return next(request);
};

const clients = new Map<string, unknown>();

function client<S extends DescService>(service: S, name: FunctionName): Client<S> {
  const baseUrl = addressOf(name);
  const key = `${service.typeName} ${baseUrl}`;
  let known = clients.get(key) as Client<S> | undefined;
  if (known === undefined) {
    known = createClient(service, createGrpcWebTransport({ baseUrl, interceptors: [authorize], defaultTimeoutMs: SHORT_MS }));
    clients.set(key, known);
  }
  return known;
}

export const service = {
  get chat() {
    return client(AgentService, "stream-chat");
  },
  get search() {
    return client(AgentService, "retrieve-memory");
  },
  get memory() {
    return client(MemoryService, "manage-memory");
  },
  get conversations() {
    return client(ConversationService, "manage-memory");
  },
};

/** Where calls go, for people. */
export const place = (): string => addressOf("stream-chat");

/** Whether a call broke off on the way, so that nobody refused it: the same call may be sent again. */
export function isBrokenOff(error: unknown): boolean {
  const { code, metadata, cause } = ConnectError.from(error);
  // A refusal comes with what the server said; a broken connection with an error of the browser's, or without an end.
  if (code === Code.Unavailable) return !metadata.has("grpc-status") && !metadata.has("grpc-message");
  return (code === Code.Unknown || code === Code.Internal) && (cause instanceof TypeError || isWithoutEnd(error));
}

const isWithoutEnd = (error: unknown): boolean => /missing trailer|premature|network|fetch|truncated/i.test(ConnectError.from(error).rawMessage);

/** How long the server asks to wait before the call is sent again, in milliseconds; undefined: it says nothing of it. */
export function pushback(error: unknown): number | undefined {
  const value = Number.parseInt(ConnectError.from(error).metadata.get("grpc-retry-pushback-ms") ?? "", 10);
  return Number.isNaN(value) ? undefined : value;
}
