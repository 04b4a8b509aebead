// Collects the frames of a stream and waits for particular ones.

const TIMEOUT_MS = 30_000;

/** Rejects after a timeout. It only bounds failing checks; none depends on its length. */
export function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`timed out waiting for ${what}`)), TIMEOUT_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** An asynchronous queue with one reader. */
export class Queue {
  #items = [];
  #waiting = [];

  push(item) {
    const waiting = this.#waiting.shift();
    waiting ? waiting(item) : this.#items.push(item);
  }

  next(what) {
    if (this.#items.length > 0) return Promise.resolve(this.#items.shift());
    return within(new Promise((resolve) => this.#waiting.push(resolve)), what);
  }
}

export class Frames {
  #events = new Queue();
  /** All frames read so far. */
  seen = [];

  push(frame) {
    this.#events.push({ frame });
  }

  end(error) {
    this.#events.push({ end: true, error });
  }

  /** Reads until a frame matches. */
  async until(matches, what) {
    for (;;) {
      const frame = await this.#read(what);
      if (!frame) throw new Error(`the stream ended before ${what}: ${this.kinds().join(" ")}`);
      if (matches(frame)) return frame;
    }
  }

  async rest() {
    while (await this.#read("the end of the stream"));
    return this.seen;
  }

  async #read(what) {
    const { frame, error } = await this.#events.next(what);
    if (error) throw error;
    if (frame) this.seen.push(frame);
    return frame;
  }

  /** One word for each frame read so far. */
  kinds() {
    return this.seen.map(({ content: { case: kind, value } }) => (kind === "statusUpdate" ? STATES[value.state] : kind));
  }
}

const STATES = ["UNKNOWN", "THINKING", "SEARCHING", "EXECUTING_TOOL", "GENERATING", "IDLE"];
