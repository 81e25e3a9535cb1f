/** Time for tests: a clock that stands until it is moved, a seeded generator, and waiting for a condition. */

export class ManualClock {
  #nowMs = 1_700_000_000_000;
  #timers = new Map();
  #handles = 0;

  now() {
    return this.#nowMs;
  }

  setTimeout(action, ms) {
    this.#handles += 1;
    this.#timers.set(this.#handles, { action, dueMs: this.#nowMs + ms });
    return this.#handles;
  }

  clearTimeout(handle) {
    this.#timers.delete(handle);
  }

  nextTurn(action) {
    setImmediate(action);
  }

  /** Moves time on and runs what comes due, each at its own moment; what that started on real sockets may go on between. */
  async advance(ms) {
    const endMs = this.#nowMs + ms;
    for (;;) {
      const next = [...this.#timers].filter(([, timer]) => timer.dueMs <= endMs).sort(([, a], [, b]) => a.dueMs - b.dueMs)[0];
      if (next === undefined) break;
      const [handle, { action, dueMs }] = next;
      this.#timers.delete(handle);
      this.#nowMs = Math.max(this.#nowMs, dueMs);
      action();
      await turn();
    }
    this.#nowMs = endMs;
  }

  /** Moves time without running anything: the process stood still. */
  freeze(ms) {
    this.#nowMs += ms;
  }

  /** The machine sleeps: the time of day goes on, and its timers stand still with it. */
  sleep(ms) {
    this.#nowMs += ms;
    for (const timer of this.#timers.values()) timer.dueMs += ms;
  }

  /** Whether something comes due within so many milliseconds. */
  due(ms) {
    return [...this.#timers.values()].some(({ dueMs }) => dueMs <= this.#nowMs + ms);
  }

  get pending() {
    return this.#timers.size;
  }
}

export function seeded(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export const turn = () => new Promise((resolve) => setImmediate(resolve));

/** Waits until `condition()` is truthy and returns its value; fails after a deadline, saying what did not come. */
export async function until(condition, what, deadlineMs = 5_000) {
  const end = performance.now() + deadlineMs;
  for (;;) {
    const value = condition();
    if (value) return value;
    if (performance.now() > end) throw new Error(`did not come: ${what}`);
    await turn();
  }
}
