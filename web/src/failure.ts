// Converts call errors into a `Failure` that the page can explain.

import { Code, ConnectError } from "@connectrpc/connect";
import { isTransportFailure, retryPushbackMs } from "./service.ts";
import type { Failure } from "./turn.ts";

/** Codes that a later attempt or a sign-in may resolve. */
const RETRYABLE = new Set([Code.Unavailable, Code.ResourceExhausted, Code.Aborted, Code.DeadlineExceeded, Code.Unauthenticated, Code.PermissionDenied]);

export function failureOf(error: unknown): Failure {
  const connectError = ConnectError.from(error);
  if (isTransportFailure(error)) return { code: "UNREACHABLE", message: "", isForUser: false, retryable: true, details: {} };
  // The service always sends `grpc-status`. Without one, the refusal comes from the origin check in front of it, and signing in does not help.
  if (connectError.code === Code.PermissionDenied && !connectError.metadata.has("grpc-status")) {
    return { code: "FORBIDDEN", message: connectError.rawMessage, isForUser: false, retryable: false, details: {} };
  }
  const waitMs = retryPushbackMs(error);
  return {
    code: (Code[connectError.code] ?? "Unknown").replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase(),
    message: connectError.rawMessage,
    isForUser: false,
    // A negative pushback means: waiting a moment does not help.
    retryable: RETRYABLE.has(connectError.code) && !(waitMs !== undefined && waitMs < 0),
    ...(waitMs !== undefined && waitMs > 0 ? { waitMs } : {}),
    details: {},
  };
}

export const needsSignIn = (failure: Failure): boolean => failure.code === "UNAUTHENTICATED" || failure.code === "PERMISSION_DENIED";
