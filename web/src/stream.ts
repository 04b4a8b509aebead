// Runs one StreamChat call and resumes it after a lost connection, behind the last received frame.

import { Code, ConnectError } from "@connectrpc/connect";
import { FinishReason, type ChatRequest, type ChatResponse } from "./gen/agent_service_pb.ts";
import { isTransportFailure, LONG_TIMEOUT_MS, service } from "./service.ts";
import { settings } from "./settings.ts";

/** Retry backoff, in milliseconds; about a minute in total. */
const BACKOFF_MS = [250, 500, 1000, 2000, 4000, 8000, 15_000, 30_000];
/** Attempts until the first frame: a server that never answered is reported sooner than a lost connection. */
const MAX_CONNECT_ATTEMPTS = 3;

/** Yields each frame of a request once, in order, up to the final one. `onDisconnect` runs before each reconnect. */
export async function* streamFrames(request: ChatRequest, signal: AbortSignal, onDisconnect: () => void): AsyncGenerator<ChatResponse> {
  let lastResponseId = "";
  let attempt = 0;
  for (;;) {
    try {
      const headers: Record<string, string> = {
        ...(settings.recall.value ? {} : { "x-recall": "off" }),
        ...(lastResponseId === "" ? {} : { "x-last-response-id": lastResponseId }),
      };
      for await (const frame of service.chat.streamChat(request, { headers, signal, timeoutMs: LONG_TIMEOUT_MS })) {
        attempt = 0;
        // response_ids ascend within a run.
        if (frame.responseId <= lastResponseId) continue;
        lastResponseId = frame.responseId;
        yield frame;
        if (frame.finishReason !== FinishReason.NULL) return;
      }
      throw new ConnectError("the stream ended without its last frame", Code.Unavailable);
    } catch (error) {
      const delay = BACKOFF_MS[attempt];
      attempt += 1;
      const isUnreachable = lastResponseId === "" && attempt >= MAX_CONNECT_ATTEMPTS;
      // A dead connection may surface only as a timeout; an answer longer than the call timeout continues in the next call.
      const isResumable = isTransportFailure(error) || (lastResponseId !== "" && ConnectError.from(error).code === Code.DeadlineExceeded);
      if (signal.aborted || delay === undefined || isUnreachable || !isResumable) throw error;
      onDisconnect();
      await backoff(delay, signal);
    }
  }
}

/** Resolves after a delay, or as soon as the network is back. */
function backoff(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const finish = (done: () => void) => () => {
      clearTimeout(timer);
      removeEventListener("online", proceed);
      signal.removeEventListener("abort", abandon);
      done();
    };
    const proceed = finish(resolve);
    const abandon = finish(() => reject(signal.reason));
    const timer = setTimeout(proceed, milliseconds);
    addEventListener("online", proceed);
    signal.addEventListener("abort", abandon);
  });
}
