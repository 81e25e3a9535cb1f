import assert from "node:assert/strict";
import { test } from "node:test";
import { entryBefore, Intake, passes, Roll, statesBetween } from "../eventbus-tabs.js";
import { turn, until } from "../support/clocks.js";

// ---- small ones

test("the entry id just below another is that of no entry between the two", () => {
  assert.equal(entryBefore("1000-7"), "1000-6");
  assert.equal(entryBefore("1000-0"), "999-18446744073709551615");
  assert.equal(entryBefore("0-1"), "0-0");
  assert.equal(entryBefore("0-0"), "0-0");
});

test("a filter lets through what fits all its keys", () => {
  const event = { type: "step", thread: "t1", run: "r1" };
  assert.ok(passes(undefined, event));
  assert.ok(passes({}, event));
  assert.ok(passes({ types: ["step", "other"], threads: ["t1"] }, event));
  assert.ok(!passes({ types: ["step"], threads: ["t2"] }, event));
  assert.ok(!passes({ runs: ["r1"] }, { type: "step" }));
});

test("a tab sees no move of states that a client of its own would not make", () => {
  assert.deepEqual(statesBetween("connecting", "live"), ["open", "catching_up", "live"]);
  assert.deepEqual(statesBetween("live", "connecting"), ["waiting", "connecting"]);
  assert.deepEqual(statesBetween("live", "open"), ["waiting", "connecting", "open"]);
  assert.deepEqual(statesBetween("waiting", "catching_up"), ["connecting", "open", "catching_up"]);
  assert.deepEqual(statesBetween("idle", "connecting"), ["connecting"]);
  assert.deepEqual(statesBetween("live", "waiting"), ["waiting"]);
  assert.deepEqual(statesBetween("open", "closed"), ["closed"]);
  assert.deepEqual(statesBetween("live", "live"), []);
  assert.deepEqual(statesBetween("closed", "live"), []);
});

// ---- the roll

function roll(...tabs) {
  const made = new Roll();
  for (const tab of tabs) made.present(tab);
  made.begin("1-1", 0);
  return made;
}

test("an event is done when every tab that was there has handled it", () => {
  const tabs = roll("a", "b");
  tabs.present("c"); // came later
  tabs.handled("a", ["1-1"]);
  assert.equal(tabs.verdict(1), undefined);
  tabs.handled("b", ["1-1"]);
  assert.deepEqual(tabs.verdict(1), { handled: true, reason: undefined });
});

test("a tab that leaves is not waited for", () => {
  const tabs = roll("a", "b");
  tabs.handled("a", ["1-1"]);
  tabs.left("b");
  assert.deepEqual(tabs.verdict(1), { handled: true, reason: undefined });
});

test("a silent tab counts as gone after ten seconds, and is waited for again when it has answered the newest event", () => {
  const tabs = roll("a", "b");
  tabs.handled("a", ["1-1"]);
  assert.equal(tabs.verdict(9_999), undefined);
  assert.ok(tabs.verdict(10_000).handled);

  tabs.begin("1-2", 10_000);
  tabs.handled("a", ["1-2"]);
  assert.ok(tabs.verdict(10_000).handled, "nobody waits for it");
  tabs.handled("b", ["1-1"]); // it is behind
  tabs.begin("1-3", 10_000);
  tabs.handled("a", ["1-3"]);
  assert.ok(tabs.verdict(10_000).handled);
  tabs.handled("b", ["1-3"]); // it has kept up, too late for this one

  tabs.begin("1-4", 10_000);
  tabs.handled("a", ["1-4"]);
  assert.equal(tabs.verdict(10_000), undefined, "it is waited for");
});

test("while nobody has answered, the event waits, however long that takes", () => {
  const tabs = roll("a");
  assert.equal(tabs.verdict(3_600_000), undefined);
  tabs.handled("a", ["1-1"]);
  assert.ok(tabs.verdict(3_600_000).handled);
});

test("one tab that handled it is enough; when all failed, the first reason counts", () => {
  const tabs = roll("a", "b");
  tabs.failed("a", "1-1", "no");
  tabs.handled("b", ["1-1"]);
  assert.deepEqual(tabs.verdict(1), { handled: true, reason: "no" });

  tabs.begin("1-2", 0);
  tabs.failed("a", "1-2", "first");
  tabs.failed("b", "1-2", "second");
  assert.deepEqual(tabs.verdict(1), { handled: false, reason: "first" });
});

test("an answer to an older event decides nothing", () => {
  const tabs = roll("a");
  tabs.handled("a", ["0-9"]);
  assert.equal(tabs.verdict(20_000), undefined);
});

test("a tab that still reads the history is not waited for, and its answer counts when nobody else is there", () => {
  const tabs = roll();
  assert.equal(tabs.verdict(20_000), undefined);
  tabs.handled("a", ["1-1"]);
  assert.ok(tabs.verdict(1).handled);
});

// ---- what a tab takes in

const entry = (number, type = "step") => ({ id: `1-${number}`, delivery: 1, event: { id: `e${number}`, type } });

/** A tab's intake over a history that a test writes. */
function intake({ cursor, stored = [], filter, size = 3 } = {}) {
  const seen = { events: [], answered: [], gaps: [], failures: [], asked: [] };
  const made = new Intake(cursor, {
    now: () => 0,
    handle: async (event) => {
      await seen.handler?.(event);
      seen.events.push(event.id);
    },
    handled: (entries) => seen.answered.push(...entries),
    failed: (id, error, event, comesAgain) => {
      seen.failures.push([id, comesAgain]);
      return comesAgain;
    },
    page: async (after) => {
      seen.asked.push(after);
      await seen.beforePage?.();
      const [afterMs, afterN] = after.split("-").map(Number);
      const rest = stored.filter(({ id }) => Number(id.split("-")[1]) > (afterMs < 1 ? -1 : afterN));
      const events = rest.slice(0, size).map(({ id, event }) => ({ id, event }));
      const last = events.at(-1)?.id ?? after;
      return { events, cursor: last, ...(rest.length > size ? { next: last } : {}) };
    },
    filter: () => filter,
    gap: (gap) => seen.gaps.push(gap),
    caughtUp: () => (seen.caughtUp = true),
  });
  return Object.assign(made, { seen });
}

const numbers = (from, to) => Array.from({ length: to - from + 1 }, (_, at) => entry(from + at));
const ids = (from, to) => numbers(from, to).map(({ event }) => event.id);

test("a tab that joins late has what came after its cursor, then what comes, each once and in order", async () => {
  const stored = numbers(1, 10);
  const tab = intake({ cursor: "1-4", stored });
  tab.seen.beforePage = () => {
    if (tab.seen.asked.length === 2) tab.arrived(entry(10)); // in the history too
    if (tab.seen.asked.length === 3) tab.arrived(entry(11));
  };
  await tab.catchUp();
  await until(() => tab.seen.events.length === 7, "seven events");
  tab.arrived(entry(12));
  await until(() => tab.seen.events.length === 8, "the next one");
  assert.deepEqual(tab.seen.events, ids(5, 12));
  assert.deepEqual(tab.seen.gaps, []);
  assert.equal(tab.cursor, "1-12");
  assert.ok(tab.seen.answered.filter((id) => id === "1-10").length >= 1, "the leader hears of it");
});

test("events up to the page's cursor are answered for and not handed over", async () => {
  const tab = intake({ cursor: "1-4" });
  tab.arrived(entry(3));
  tab.arrived(entry(5));
  await until(() => tab.seen.answered.length === 2, "both answers");
  assert.deepEqual(tab.seen.events, ["e5"]);
  tab.gap({ reason: "reset" });
  tab.arrived(entry(2)); // ids begin anew
  await until(() => tab.seen.events.length === 2, "the lower id");
});

test("what lies between the cursor and the oldest that is retained is a gap", async () => {
  const tab = intake({ cursor: "1-4", stored: numbers(8, 10) });
  await tab.catchUp();
  assert.deepEqual(tab.seen.gaps, [{ reason: "trimmed", after: "1-4", before: "1-8" }]);
  assert.deepEqual(tab.seen.events, ids(8, 10));
  const empty = intake({ cursor: "1-4" });
  await empty.catchUp();
  assert.deepEqual(empty.seen.gaps, [], "nothing came since, and nothing is known to be missing");
});

test("the filter holds for the history too", async () => {
  const tab = intake({ stored: [entry(1), entry(2, "other"), entry(3)], filter: { types: ["step"] } });
  await tab.catchUp();
  assert.deepEqual(tab.seen.events, ["e1", "e3"]);
});

test("a tab that is much too slow reads the history instead of keeping everything", async () => {
  const stored = numbers(1, 5_000);
  const tab = intake({ cursor: "0-0", stored, size: 500 });
  let release;
  tab.seen.handler = () => new Promise((resolve) => (release = resolve));
  for (const one of stored) tab.arrived(one);
  tab.seen.handler = undefined;
  await until(() => release, "the first handler");
  release();
  await until(() => tab.seen.events.length === 5_000, "all of them", 10_000);
  assert.deepEqual(tab.seen.events, ids(1, 5_000));
  assert.ok(tab.seen.asked.length > 0);
  assert.deepEqual(tab.seen.gaps, []);
});

test("a gap while the history is read has it read again, and loses nothing that came meanwhile", async () => {
  const stored = numbers(1, 3);
  const tab = intake({ stored });
  tab.seen.beforePage = () => {
    if (tab.seen.asked.length > 1) return;
    tab.gap({ reason: "overflow", count: 1 });
    tab.arrived(entry(4));
  };
  await tab.catchUp();
  await until(() => tab.seen.events.length === 4, "four events");
  assert.deepEqual(tab.seen.events, ids(1, 4));
  assert.equal(tab.seen.gaps.length, 1);
});

test("an event that failed comes again from the node, and not when it was read from the history", async () => {
  const tab = intake({ stored: [entry(1)] });
  tab.seen.handler = () => {
    throw new Error("no");
  };
  await tab.catchUp();
  tab.arrived(entry(2));
  await until(() => tab.seen.failures.length === 2, "both failures");
  assert.deepEqual(tab.seen.failures, [["1-1", false], ["1-2", true]]);
  assert.equal(tab.cursor, "1-1", "the second is still to come");
  tab.withdrawn(["1-2"]);
  assert.equal(tab.cursor, "1-2");
});

test("a stopped tab hands nothing over any more", async () => {
  const tab = intake({ stored: numbers(1, 6) });
  tab.seen.handler = ({ id }) => id === "e2" && tab.stop();
  tab.catchUp();
  await until(() => tab.seen.events.length === 2, "two");
  for (let i = 0; i < 20; i += 1) await turn();
  assert.deepEqual(tab.seen.events, ["e1", "e2"]);
});
