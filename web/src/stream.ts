// One call of StreamChat, held on to: a lost connection is taken up again behind the last frame that was seen.

import { Code, ConnectError } from "@connectrpc/connect";
import { FinishReason, type ChatRequest, type ChatResponse } from "./gen/agent_service_pb.ts";
import { isBrokenOff, service } from "./service.ts";
import { isBeginning } from "./turn.ts";

/** Waits between attempts to come back, in milliseconds: about a minute in all. */
const WAITS = [250, 500, 1000, 2000, 4000, 8000, 15_000, 30_000];
/** Attempts to reach a server that never answered: it is not lost but absent, and the user is told sooner. */
const FIRST_ATTEMPTS = 3;

interface Told {
  /** The connection is lost. */
  lost(): void;
  /** The request runs anew, because nothing of it was kept: what was shown of it counts no more. */
  again(): void;
}

/** Frames of a request up to its end, each once. */
export async function* frames(request: ChatRequest, signal: AbortSignal, told: Told): AsyncGenerator<ChatResponse> {
  let last = "";
  let attempt = 0;
  for (;;) {
    try {
      const headers: Record<string, string> = last === "" ? {} : { "x-last-response-id": last };
      for await (const frame of service.chat.streamChat(request, { headers, signal })) {
        attempt = 0;
        // Ids ascend within a run.
        if (frame.responseId <= last) continue;
        if (last !== "" && isBeginning(frame)) told.again();
        last = frame.responseId;
        yield frame;
        if (frame.finishReason !== FinishReason.NULL) return;
      }
      throw new ConnectError("the stream ended without its last frame", Code.Unavailable);
    } catch (error) {
      const wait = WAITS[attempt];
      attempt += 1;
      const isAbsent = last === "" && attempt >= FIRST_ATTEMPTS;
      if (signal.aborted || wait === undefined || isAbsent || !isBrokenOff(error)) throw error;
      told.lost();
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
