/** What this tab was handed, held against what the agent says that it has published. Pure: no socket, no document. */

/** How long an event may be on its way before the tab calls it missing. */
export const ON_ITS_WAY_MS = 10_000;

export class Ledger {
  #runs = new Map(); // run -> {entries: [entry id, ...] in the order of arrival, ids: Set of event ids, ended}
  #counts = { twice: 0, dropped: 0, gaps: 0 };
  #behindSinceMs;

  /** An event was handed over by the client. Returns its number in its run, or 0 when it was there already. */
  handed(event, entry) {
    const run = event.run ?? "";
    if (!this.#runs.has(run)) this.#runs.set(run, { entries: [], ids: new Set(), ended: false });
    const known = this.#runs.get(run);
    if (known.ids.has(event.id)) {
      this.#counts.twice += 1;
      return 0;
    }
    known.ids.add(event.id);
    known.entries.push({ id: event.id, entry });
    if (event.type === "agent_completed") known.ended = true;
    return known.entries.length;
  }

  /** A delivery came whose event had come before; the client drops it. */
  dropped() {
    this.#counts.dropped += 1;
  }

  gap() {
    this.#counts.gaps += 1;
  }

  ended(run) {
    return this.#runs.get(run)?.ended ?? false;
  }

  /** Sums over runs: `[{run, published}]` as the agent's log has them, against what is here. */
  totals(runs) {
    let published = 0;
    let received = 0;
    for (const { run, published: count } of runs) {
      published += count;
      received += this.#runs.get(run)?.entries.length ?? 0;
    }
    return { published, received };
  }

  /** One run: `published` is `[{id, entry}]` in the order of the agent's log. */
  compare(run, published) {
    const known = this.#runs.get(run) ?? { entries: [], ids: new Set(), ended: false };
    const place = new Map(published.map(({ id }, index) => [id, index]));
    let last = -1;
    let inOrder = true;
    for (const { id } of known.entries) {
      const index = place.get(id);
      if (index === undefined) continue; // the log was read a moment before it was written
      if (index < last) inOrder = false;
      last = index;
    }
    const missing = published.filter(({ id }) => !known.ids.has(id)).length;
    return {
      published: published.length, received: known.entries.length, missing, inOrder, ended: known.ended, ...this.#counts,
    };
  }

  /** What to say of a comparison: `{tone, text}`. `live`: the tab is connected and has all that was stored. */
  verdict(result, live, nowMs) {
    const { published, received, missing, inOrder, ended, twice, gaps } = result;
    if (missing === 0) this.#behindSinceMs = undefined;
    else this.#behindSinceMs ??= nowMs;
    const events = (count) => `${count} ${count === 1 ? "event" : "events"}`;
    if (gaps > 0) return { tone: "bad", text: `The node announced ${gaps} ${gaps === 1 ? "gap" : "gaps"}: something is gone.` };
    if (twice > 0) return { tone: "bad", text: `${events(twice)} shown twice.` };
    if (!inOrder) return { tone: "bad", text: "The order is not that of the agent." };
    if (published === 0 && received === 0) return { tone: "", text: "Start a run to see." };
    if (missing > 0 && !live) {
      return { tone: "wait", text: `Not connected. ${events(missing)} wait${missing === 1 ? "s" : ""} in the store.` };
    }
    if (missing > 0 && nowMs - this.#behindSinceMs > ON_ITS_WAY_MS) return { tone: "bad", text: `${events(missing)} missing.` };
    if (missing > 0) return { tone: "wait", text: `${events(missing)} on the way.` };
    if (!live && !ended) return { tone: "wait", text: "Not connected. What is published now waits in the store." };
    if (!ended) return { tone: "good", text: `Nothing is missing so far: ${received} of ${Math.max(published, received)}.` };
    return { tone: "good", text: `Nothing is missing: ${published} published, ${received} received, each once and in order.` };
  }
}
