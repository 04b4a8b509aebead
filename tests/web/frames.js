// What a client has seen of a stream, and what it waits for.

const PATIENCE_MS = 30_000;

/** A promise that fails rather than to wait forever. No check depends on how long that is. */
export function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited in vain for ${what}`)), PATIENCE_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Things that come one by one, whenever they come. */
export class Queue {
  #items = [];
  #waiting = [];

  push(item) {
    const waiting = this.#waiting.shift();
    waiting ? waiting(item) : this.#items.push(item);
  }

  /** The next one. */
  next(what) {
    if (this.#items.length > 0) return Promise.resolve(this.#items.shift());
    return within(new Promise((resolve) => this.#waiting.push(resolve)), what);
  }
}

/** The frames of a stream. */
export class Frames {
  #events = new Queue();
  #leaving = new AbortController();
  /** All that was read. */
  seen = [];

  push(frame) {
    this.#events.push({ frame });
  }

  end(error) {
    this.#events.push({ end: true, error });
  }

  /** Tells the client to go away. */
  leave() {
    this.#leaving.abort();
  }

  get left() {
    return this.#leaving.signal;
  }

  /** Reads until a frame of this kind is seen. */
  async until(isIt, what) {
    for (;;) {
      const frame = await this.#read(what);
      if (!frame) throw new Error(`the stream ended before ${what}: ${this.kinds().join(" ")}`);
      if (isIt(frame)) return frame;
    }
  }

  /** Reads to the end. */
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

  /** What was seen, in a word each. */
  kinds() {
    return this.seen.map(({ content: { case: kind, value } }) => (kind === "statusUpdate" ? STATES[value.state] : kind));
  }
}

const STATES = ["UNKNOWN", "THINKING", "SEARCHING", "EXECUTING_TOOL", "GENERATING", "IDLE"];
