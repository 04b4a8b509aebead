// What went wrong with a call, as a user should read it.

import { Code, ConnectError } from "@connectrpc/connect";
import { isBrokenOff, pushback } from "./service.ts";
import type { Failure } from "./turn.ts";

/** Codes with which the same call may be answered later, or after signing in. */
const RETRYABLE = new Set([Code.Unavailable, Code.ResourceExhausted, Code.Aborted, Code.DeadlineExceeded, Code.Unauthenticated, Code.PermissionDenied]);

/** A refusal, or a connection that was lost or never made. */
export function failureOf(error: unknown): Failure {
  const refused = ConnectError.from(error);
  if (isBrokenOff(error)) return { code: "UNREACHABLE", message: "", isForUser: false, retryable: true, details: {} };
  // The service itself refuses with a status. Where there is none, this page is not let in to it, whoever signs in.
  if (refused.code === Code.PermissionDenied && !refused.metadata.has("grpc-status")) {
    return { code: "FORBIDDEN", message: refused.rawMessage, isForUser: false, retryable: false, details: {} };
  }
  const waitMs = pushback(error);
  return {
    code: (Code[refused.code] ?? "Unknown").replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase(),
    message: refused.rawMessage,
    isForUser: false,
    // A negative wait says that waiting minutes would not help.
    retryable: RETRYABLE.has(refused.code) && !(waitMs !== undefined && waitMs < 0),
    ...(waitMs !== undefined && waitMs > 0 ? { waitMs } : {}),
    details: {},
  };
}

/** Whether the service wants to know who calls. */
export const wantsSignIn = (failure: Failure): boolean => failure.code === "UNAUTHENTICATED" || failure.code === "PERMISSION_DENIED";
