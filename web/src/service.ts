// Clients for the RPC services, at whatever addresses the settings give.

import { Code, ConnectError, createClient, type Client, type Interceptor } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import type { DescService } from "@bufbuild/protobuf";
import { AgentService } from "./gen/agent_service_pb.ts";
import { ConversationService } from "./gen/conversation_service_pb.ts";
import { MemoryService } from "./gen/memory_service_pb.ts";
import { settings } from "./settings.ts";

const DEFAULT_TIMEOUT_MS = 30_000;
/** For answers, document imports and exports. */
export const LONG_TIMEOUT_MS = 300_000;

type FunctionName = "stream-chat" | "retrieve-memory" | "manage-memory";

/** All functions share one address, have one each, or share one with the placeholder `{function}`. */
function functionAddress(name: FunctionName): string {
  const own = { "stream-chat": "", "retrieve-memory": settings.retrieveAddress.value, "manage-memory": settings.manageAddress.value }[name];
  const address = (own.trim() || settings.address.value.trim() || location.origin).replace("{function}", name);
  return address.replace(/\/+$/, "");
}

/** Reads the token for each call, so that a new one applies at once. */
const authorize: Interceptor = (next) => (request) => {
  const token = settings.token.value.trim();
  if (token !== "") request.header.set("authorization", `Bearer ${token}`);
  return next(request);
};

const clients = new Map<string, unknown>();

function client<S extends DescService>(service: S, name: FunctionName): Client<S> {
  const baseUrl = functionAddress(name);
  const key = `${service.typeName} ${baseUrl}`;
  let cached = clients.get(key) as Client<S> | undefined;
  if (cached === undefined) {
    cached = createClient(service, createGrpcWebTransport({ baseUrl, interceptors: [authorize], defaultTimeoutMs: DEFAULT_TIMEOUT_MS }));
    clients.set(key, cached);
  }
  return cached;
}

export const service = {
  get chat() {
    return client(AgentService, "stream-chat");
  },
  get retrieval() {
    return client(AgentService, "retrieve-memory");
  },
  get memory() {
    return client(MemoryService, "manage-memory");
  },
  get conversations() {
    return client(ConversationService, "manage-memory");
  },
};

export const serviceAddress = (): string => functionAddress("stream-chat");

/** Whether the connection failed before the server sent a status; the same request can be sent again. */
export function isTransportFailure(error: unknown): boolean {
  const { code, metadata, cause } = ConnectError.from(error);
  // A gRPC status arrives with metadata. A broken connection has a browser error as its cause, or no trailer.
  if (code === Code.Unavailable) return !metadata.has("grpc-status") && !metadata.has("grpc-message");
  return (code === Code.Unknown || code === Code.Internal) && (cause instanceof TypeError || isTruncated(error));
}

const isTruncated = (error: unknown): boolean => /missing trailer|premature|network|fetch|truncated/i.test(ConnectError.from(error).rawMessage);

/** The server's `grpc-retry-pushback-ms`. */
export function retryPushbackMs(error: unknown): number | undefined {
  const value = Number.parseInt(ConnectError.from(error).metadata.get("grpc-retry-pushback-ms") ?? "", 10);
  return Number.isNaN(value) ? undefined : value;
}
