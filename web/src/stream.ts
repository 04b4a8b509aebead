// One call of StreamChat, held on to: a lost connection is taken up again behind the last frame that was seen.

import { Code, ConnectError } from "@connectrpc/connect";
import { FinishReason, type ChatRequest, type ChatResponse } from "./gen/agent_service_pb.ts";
import { isBrokenOff, LONG_MS, service } from "./service.ts";

/** Waits between attempts to come back, in milliseconds: about a minute in all. */
const WAITS = [250, 500, 1000, 2000, 4000, 8000, 15_000, 30_000];
/** Attempts to reach a server that never answered: it is not lost but absent, and the user is told sooner. */
const FIRST_ATTEMPTS = 3;

/** Frames of a request up to its end, each once. `lost` is told of each connection that is lost. */
export async function* frames(request: ChatRequest, signal: AbortSignal, lost: () => void): AsyncGenerator<ChatResponse> {
  let last = "";
  let attempt = 0;
  for (;;) {
    try {
      const headers: Record<string, string> = last === "" ? {} : { "x-last-response-id": last };
      for await (const frame of service.chat.streamChat(request, { headers, signal, timeoutMs: LONG_MS })) {
        attempt = 0;
        // Ids ascend within a run.
        if (frame.responseId <= last) continue;
        last = frame.responseId;
        yield frame;
        if (frame.finishReason !== FinishReason.NULL) return;
      }
      throw new ConnectError("the stream ended without its last frame", Code.Unavailable);
    } catch (error) {
      const wait = WAITS[attempt];
      attempt += 1;
      const isAbsent = last === "" && attempt >= FIRST_ATTEMPTS;
      // A connection may be dead without a word of it. What runs longer than a call may take goes on in the next one.
      const isLost = isBrokenOff(error) || (last !== "" && ConnectError.from(error).code === Code.DeadlineExceeded);
      if (signal.aborted || wait === undefined || isAbsent || !isLost) throw error;
      lost();
      await pause(wait, signal);
    }
  }
}

/** Waits, but no longer than until the network is back. */
function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const finish = (done: () => void) => () => {
      clearTimeout(timer);
      removeEventListener("online", goOn);
      signal.removeEventListener("abort", giveUp);
      done();
    };
    const goOn = finish(resolve);
    const giveUp = finish(() => reject(signal.reason));
    const timer = setTimeout(goOn, milliseconds);
    addEventListener("online", goOn);
    signal.addEventListener("abort", giveUp);
  });
}
