/** The feed: figures of the whole and what operators are told, as they come. It connects again by itself. */

import { openFeed } from "./api.js";

const SILENT_MS = 25_000;
const AGAIN_MS = [500, 1000, 2000, 5000, 10_000];
const SAMPLES_MAX = 300;
const TOLD_MAX = 50;

/** One message of Server-Sent Events out of its lines. */
function parse(block) {
  let kind = "";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) kind = line.slice(7);
    else if (line.startsWith("data: ")) data.push(line.slice(6));
  }
  return kind ? { kind, data: JSON.parse(data.join("\n")) } : undefined;
}

export class Live extends EventTarget {
  /** The last figures, what they were before, one sample for each look, and what operators were told, the newest first. */
  figures;
  samples = [];
  told = [];
  state = "connecting";
  problem = "";
  #stop;
  #tries = 0;
  #taken = 0; // when the last figures came, by the page's own clock

  /** Redis's clock now, as far as the last figures tell; undefined before the first. */
  get nowMs() {
    return this.figures && Math.round(this.figures.now_ms + performance.now() - this.#taken);
  }

  start() {
    this.#stop?.abort();
    this.#stop = new AbortController();
    this.#run(this.#stop.signal);
  }

  stop() {
    this.#stop?.abort();
    this.#stop = undefined;
  }

  /** Ends the connection of a page that nobody looks at; `start` goes on. */
  sleep() {
    this.stop();
    this.#become("asleep", "");
  }

  async #run(signal) {
    while (!signal.aborted) {
      try {
        this.#become("connecting", this.problem);
        await this.#read(await openFeed(signal), signal);
      } catch (error) {
        if (signal.aborted) return;
        if (error.status === 401 || error.status === 403) return this.stop();
        this.#become("away", `${error.title ?? ""} ${error.message}`.trim());
      }
      if (signal.aborted) return;
      const pause = AGAIN_MS[Math.min(this.#tries++, AGAIN_MS.length - 1)];
      await new Promise((resolve) => setTimeout(resolve, pause * (0.75 + Math.random() / 2)));
    }
  }

  async #read(response, signal) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    let timer;
    // A connection that says nothing, not even that it is there, is dead.
    const watch = () => {
      clearTimeout(timer);
      timer = setTimeout(() => reader.cancel(), SILENT_MS);
    };
    const ended = () => reader.cancel().catch(() => {});
    signal.addEventListener("abort", ended);
    try {
      for (;;) {
        watch();
        const { value, done } = await reader.read();
        if (done) throw new Error("The connection has ended.");
        text += value;
        const blocks = text.split("\n\n");
        text = blocks.pop();
        for (const block of blocks) this.#take(parse(block));
      }
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", ended);
    }
  }

  #take(message) {
    if (!message) return;
    const { kind, data } = message;
    if (kind === "figures") {
      this.#tries = 0;
      this.#sample(data);
      this.#become("live", "");
      this.dispatchEvent(new Event("figures"));
    } else if (kind === "told" && data.length) {
      const known = new Set(this.told.map(({ id }) => id));
      const fresh = data.filter(({ id }) => !known.has(id)).reverse();
      this.told = [...fresh, ...this.told].slice(0, TOLD_MAX);
      this.dispatchEvent(new CustomEvent("told", { detail: fresh }));
    } else if (kind === "problem") {
      this.#become("stale", data.message);
    } else if (kind === "end") {
      throw Object.assign(new Error(data.message), { title: "" });
    }
  }

  /** Rates come out of two looks: what is counted only rises. */
  #sample(figures) {
    const before = this.figures;
    this.figures = figures;
    this.#taken = performance.now();
    if (!before) return;
    const seconds = (figures.now_ms - before.now_ms) / 1000;
    if (seconds <= 0) return;
    const rate = (name) => Math.max(0, figures.rates[name] - before.rates[name]) / seconds;
    this.samples.push({ at: figures.now_ms, stored: rate("stored"), received: rate("received") });
    this.samples = this.samples.slice(-SAMPLES_MAX);
  }

  #become(state, problem) {
    if (this.state === state && this.problem === problem) return;
    this.state = state;
    this.problem = problem;
    this.dispatchEvent(new Event("state"));
  }
}
