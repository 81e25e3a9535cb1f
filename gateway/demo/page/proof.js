/** The panel that says whether anything is missing. */

import { $ } from "./api.js";

/** How long the page may have more than the log that was read last before it says so. */
const AHEAD_MS = 2_000;

export class Proof {
  #ledger;
  #again;
  #said; // what was read out last: not the count, which changes with each event
  #aheadMs; // since when more has arrived than the log that was read last has

  /** `again()` asks for another look soon. */
  constructor(ledger, again) {
    this.#ledger = ledger;
    this.#again = again;
  }

  /**
   * `turn` is shown (or none), `state` the last answer of /demo/state, `runs` its runs in this conversation, `streamed` the
   * text as it came in parts.
   */
  show({ turn, state, runs, live, served, streamed }) {
    const result = this.#ledger.compare(turn?.run ?? "", state?.published ?? []);
    const nowMs = performance.now();
    // An event may be here before the log was asked again: the two are held against each other a moment later.
    this.#aheadMs = result.received > result.published ? (this.#aheadMs ?? nowMs) : undefined;
    if (this.#aheadMs !== undefined && nowMs - this.#aheadMs < AHEAD_MS) return this.#again();
    const { tone, text } = this.#ledger.verdict(result, live, nowMs);
    put("verdict", text, `verdict ${tone}`);
    const said = [turn?.run, tone === "bad", live, result.ended].join(" ");
    if (turn && said !== this.#said) put("verdict-said", text, "hidden");
    this.#said = said;
    put("published", result.published);
    put("received", result.received);
    put("back", result.back);
    put("others", result.others);
    put("missing", result.missing, tone === "bad" && result.missing > 0 ? "bad" : "");
    put("order", result.received === 0 ? "–" : result.inOrder ? "yes" : "no", result.inOrder ? "" : "bad");
    put("twice", result.twice, result.twice > 0 ? "bad" : "");
    put("dropped", result.dropped);
    put("gaps", result.gaps, result.gaps > 0 ? "bad" : "");
    put("pending", state?.pending ?? "–");
    const { words, bad } = comparedText(streamed, turn?.whole);
    put("streamed", words, bad ? "bad" : "");
    const all = this.#ledger.totals(runs);
    put("all", `${all.published}/${all.received}`);
    put("served", served.join(" → ") || "no node yet", "");
  }
}

/** The text that came in parts, held against the one of the event that follows it. */
export function comparedText(streamed, whole) {
  if (streamed === undefined) return { words: "–" };
  const count = [...streamed].length;
  if (whole === undefined) return { words: `${count} so far` };
  if (streamed === whole) return { words: `${count}, exact` };
  return whole.startsWith(streamed) ? { words: `${count} of ${[...whole].length}` } : { words: "not the event's", bad: true };
}

function put(id, value, className = "") {
  const place = $(id);
  // Only what has changed: a screen reader would say the verdict again.
  if (place.textContent !== String(value)) place.textContent = value;
  if (place.className !== className) place.className = className;
}
