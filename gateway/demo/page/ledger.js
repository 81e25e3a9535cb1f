/** What this tab was handed, held against what the agent says that it has published. Pure: no socket, no document. */

/** How long an event may be on its way before the tab calls it missing. */
export const ON_ITS_WAY_MS = 10_000;

/** Whether the agent's process itself made an event: your answers are stored by the node, and so is the end of a dead run. */
function isAgents({ id, seq }) {
  return seq !== undefined && !id.startsWith("closing-");
}

export class Ledger {
  #runs = new Map(); // run -> {events: [{id, own}, ...] in the order in which they came, ids, handed: Sets of event ids, ended}
  #counts = { twice: 0, dropped: 0, gaps: 0 };
  #behindSinceMs;

  /** An event was handed over by the client. Returns its number in its run, or 0 when it had been handed over before. */
  handed(event) {
    const known = this.#run(event.run);
    if (known.handed.has(event.id)) {
      this.#counts.twice += 1;
      return 0;
    }
    known.handed.add(event.id);
    return this.#take(known, event);
  }

  /** An event was read back from the history. Returns its number in its run. */
  readBack(event) {
    return this.#take(this.#run(event.run), event);
  }

  /** A delivery came whose event had come before; the client drops it. */
  dropped() {
    this.#counts.dropped += 1;
  }

  gap() {
    this.#counts.gaps += 1;
  }

  ended(run) {
    return this.#run(run).ended;
  }

  /** Sums over runs: `[{run, published}]` as the agent's log has them, against what came. */
  totals(runs) {
    let published = 0;
    let received = 0;
    for (const { run, published: count } of runs) {
      published += count;
      received += this.#run(run).events.filter(({ own }) => own).length;
    }
    return { published, received };
  }

  /** One run: `published` is `[{id, entry}]` in the order of the agent's log. */
  compare(run, published) {
    const { events, ids, handed, ended } = this.#run(run);
    const place = new Map(published.map(({ id }, index) => [id, index]));
    let last = -1;
    let inOrder = true;
    for (const { id } of events) {
      const index = place.get(id);
      if (index === undefined) continue; // not the agent's, or the log was read a moment before it was written
      if (index < last) inOrder = false;
      last = index;
    }
    const own = events.filter((event) => event.own);
    return {
      published: published.length, received: own.length, others: events.length - own.length,
      back: own.filter(({ id }) => !handed.has(id)).length,
      missing: published.filter(({ id }) => !ids.has(id)).length, inOrder, ended, ...this.#counts,
    };
  }

  #run(run = "") {
    if (!this.#runs.has(run)) this.#runs.set(run, { events: [], ids: new Set(), handed: new Set(), ended: false });
    return this.#runs.get(run);
  }

  #take(known, event) {
    if (!known.ids.has(event.id)) {
      known.ids.add(event.id);
      known.events.push({ id: event.id, own: isAgents(event) });
      if (event.type === "agent_completed") known.ended = true;
    }
    return known.events.findIndex(({ id }) => id === event.id) + 1;
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
    if (published === 0 && received === 0) return { tone: "", text: "Ask something to see." };
    if (missing > 0 && !live) {
      return { tone: "wait", text: `Not connected. ${events(missing)} wait${missing === 1 ? "s" : ""} in the store.` };
    }
    if (missing > 0 && nowMs - this.#behindSinceMs > ON_ITS_WAY_MS) return { tone: "bad", text: `${events(missing)} missing.` };
    if (missing > 0) return { tone: "wait", text: `${events(missing)} on the way.` };
    if (!live && !ended) return { tone: "wait", text: "Not connected. What is published now waits in the store." };
    if (!ended) return { tone: "good", text: `Nothing is missing so far: ${received} of ${Math.max(published, received)}.` };
    const dead = received > published ? ` The agent did not live to write down ${received - published} more.` : "";
    return {
      tone: "good",
      text: `Nothing is missing: ${published} published, ${received} received, each once and in order.${dead}`,
    };
  }
}
