import assert from "node:assert/strict";
import { test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import {
  backoffMs, closeVerdict, compareEntries, CursorTracker, dataProblem, frameText, helloFrame, idsAFrame, Inbox, Outbox, Pacer,
  refreshDelayMs, SeenEvents, socketUrl,
} from "../eventbus-client.js";
import { seeded } from "../support/clocks.js";

test("the address of a node becomes the address of its socket", () => {
  for (const [url, expected] of [
    ["ws://host:1", "ws://host:1/v1/connect"],
    ["wss://host/", "wss://host/v1/connect"],
    ["http://host", "ws://host/v1/connect"],
    ["https://host/bus/", "wss://host/bus/v1/connect"],
    ["https://host/v1/connect", "wss://host/v1/connect"],
    ["https://host/v1/connect/?a=b#c", "wss://host/v1/connect?a=b"],
  ]) {
    assert.equal(socketUrl(url), expected);
  }
  assert.equal(socketUrl("/", "https://page.example/app/index.html"), "wss://page.example/v1/connect");
  assert.throws(() => socketUrl("ftp://host"), TypeError);
});

test("entry ids are ordered as numbers, not as text", () => {
  assert.ok(compareEntries("999-5", "1000-1") < 0);
  assert.ok(compareEntries("1000-10", "1000-9") > 0);
  assert.ok(compareEntries("1000-0", "1000-1") < 0);
  assert.equal(compareEntries("1000-1", "1000-1"), 0);
  assert.ok(compareEntries("1000-18446744073709551615", "1000-18446744073709551614") > 0, "beyond 2^53");
});

test("confirmations that wait for a connection are bounded, and the oldest go", () => {
  let refs = 0;
  const outbox = new Outbox(() => `r${++refs}`);
  for (let number = 0; number < 3_000; number += 1) outbox.confirmed(`1-${number}`);
  for (let number = 0; number < 5_000; number += 1) outbox.displayed(`2-${number}`);
  const frames = [];
  for (let frame = outbox.next(); frame !== undefined; frame = outbox.next()) frames.push(frame);
  assert.equal(frames.length, 1_024);
  assert.equal(frames.filter(({ level }) => level === "displayed").flatMap(({ ids }) => ids).length, 5_000);
  assert.deepEqual(frames.at(0).ids, ["1-1981"]);
});

test("events that were handled are remembered within a bound, however many come", () => {
  const seen = new SeenEvents();
  for (let number = 0; number < 270_000; number += 1) seen.add(`e${number}`, `1-${number}`, number / 1_000);
  assert.equal(seen.size, 262_144);
  assert.ok(seen.has("e269999") && !seen.has("e0"));
});

test("events that are withdrawn while a handler hangs are held no longer", async () => {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc");
  const inbox = new Inbox(new CursorTracker(), { now: () => 0, handle: () => new Promise(() => {}), handled() {}, failed() {} });
  const events = [];
  const came = (number) => {
    const event = { id: `e${number}`, type: "note" };
    events.push(new WeakRef(event));
    inbox.arrived([{ id: `1-${number}`, delivery: 1, event }]);
  };
  for (let number = 0; number < 100; number += 1) came(number);
  inbox.withdrawn(Array.from({ length: 100 }, (_, number) => `1-${number}`));
  await new Promise(setImmediate);
  collect();
  assert.equal(inbox.held, 1);
  assert.deepEqual(events.flatMap((event, number) => (event.deref() === undefined ? [] : [number])), [0]);
});

test("waits are jittered over the whole range, double, and stop at 15 s", () => {
  const limits = Array.from({ length: 8 }, (_, attempt) => backoffMs(attempt, () => 0.999999));
  assert.deepEqual(limits, [249, 499, 999, 1999, 3999, 7999, 14999, 14999]);
  assert.equal(backoffMs(1e6, () => 0), 0);
  const random = seeded(1);
  const waits = Array.from({ length: 1_000 }, () => backoffMs(3, random));
  assert.ok(Math.min(...waits) < 50 && Math.max(...waits) > 1_950);
});

test("each close code has its decision", () => {
  const decisions = (options) => (code) => [code, closeVerdict(code, options)];
  const codes = [1000, 1001, 1002, 1003, 1005, 1006, 1007, 1009, 1011, 1012, 1013, 1015, 3000, 4001, 4002, 4003, 4005, 4006,
    4007, 4499];
  for (const [code, verdict] of codes.map(decisions({ tokenCallback: true }))) assert.equal(verdict, "reconnect", `${code}`);
  for (const code of [4500, 4502, 4504, 4505, 4506, 4999]) {
    assert.equal(closeVerdict(code, { tokenCallback: true, refusals: 0 }), "final", `${code}`);
  }
  assert.equal(closeVerdict(4503, { lateHellos: 4 }), "reconnect", "a busy page");
  assert.equal(closeVerdict(4503, { lateHellos: 5 }), "final");
  assert.equal(closeVerdict(4004, { tokenCallback: true }), "new_token");
  assert.equal(closeVerdict(4004), "reconnect");
  assert.equal(closeVerdict(4501, { tokenCallback: true, refusals: 1 }), "new_token");
  assert.equal(closeVerdict(4501, { tokenCallback: true, refusals: 2 }), "final");
  assert.equal(closeVerdict(4501, { tokenCallback: false, refusals: 1 }), "final");
});

test("a token is refreshed at 80 % of its life or 30 s before its end, whichever is earlier", () => {
  assert.equal(refreshDelayMs(3_600_000), 2_880_000);
  assert.equal(refreshDelayMs(100_000), 70_000);
  assert.equal(refreshDelayMs(40_000), 20_000);
  assert.equal(refreshDelayMs(500), 1_000, "no storm near the end");
  assert.equal(refreshDelayMs(0), undefined);
  assert.equal(refreshDelayMs(-3_600_000), undefined, "the clocks disagree");
  assert.equal(refreshDelayMs(1e12), 2 ** 31 - 1, "what a timer can hold");
});

test("a session without a welcome starts at the page's cursor or at the earliest, never in between (D9)", () => {
  assert.deepEqual(JSON.parse(JSON.stringify(helloFrame({ token: "t", window: 256, known: false }))),
    { op: "hello", token: "t", start: "earliest", window: 256 });
  assert.equal(helloFrame({ cursor: "5-1", known: false }).start, "cursor");
  assert.equal(helloFrame({ cursor: "5-1", known: false }).cursor, "5-1");
  assert.equal(helloFrame({ start: "new", known: false }).start, "new");
});

test("a session that had a welcome sends its cursor and epoch, and falls back to the earliest", () => {
  const known = helloFrame({ session: "s", start: "new", cursor: "5-1", epoch: "e", known: true });
  assert.deepEqual([known.session, known.start, known.cursor, known.epoch], ["s", undefined, "5-1", "e"]);
  assert.equal(helloFrame({ session: "s", start: "new", epoch: "e", known: true }).start, "earliest");
});

test("handled events are known for 10 minutes, and the last 4,096 for ever", () => {
  const seen = new SeenEvents();
  for (let i = 0; i < 6_000; i += 1) seen.add(`e${i}`, `1-${i}`, i);
  assert.equal(seen.size, 6_000, "within 10 minutes all are kept");
  seen.add("late", "2-0", 700_000);
  assert.equal(seen.size, 4_096);
  assert.ok(seen.has("late") && seen.has("e5999") && seen.has("e1905") && !seen.has("e1904"));
  assert.equal(seen.entryOf("e5999"), "1-5999");
  assert.equal(seen.entryOf("e0"), undefined);
});

test("the cursor is held by the oldest entry under way, not by the newest seen (D9)", () => {
  const tracker = new CursorTracker("1-0");
  for (const id of ["1-1", "1-2", "1-3"]) tracker.arrived(id);
  assert.equal(tracker.cursor, "1-0");
  tracker.done("1-2");
  tracker.done("1-3");
  assert.equal(tracker.cursor, "1-0", "1-1 still waits");
  tracker.done("1-1");
  assert.equal(tracker.cursor, "1-3");
});

test("a cursor that nobody knows stays unknown until everything under way is handled", () => {
  const tracker = new CursorTracker();
  tracker.arrived("1-1");
  assert.equal(tracker.cursor, undefined);
  tracker.passed("1-9");
  assert.equal(tracker.cursor, undefined);
  tracker.done("1-1");
  assert.equal(tracker.cursor, "1-9");
});

test("after a connection the cursor waits for what is held, and forgets what the node will send again", () => {
  const tracker = new CursorTracker("1-0");
  for (const id of ["1-1", "1-2", "1-3"]) tracker.arrived(id);
  tracker.done("1-1");
  tracker.rewind(["1-3"]); // 1-2 was nacked
  assert.equal(tracker.cursor, "1-1");
  tracker.arrived("1-2");
  tracker.arrived("1-3");
  tracker.done("1-3");
  assert.equal(tracker.cursor, "1-1");
  tracker.done("1-2");
  assert.equal(tracker.cursor, "1-3");
});

test("after a rollback the cursor may be lower (D4)", () => {
  const tracker = new CursorTracker("9-0");
  tracker.arrived("9-1");
  tracker.rebase("5-0");
  assert.equal(tracker.cursor, "5-0");
  tracker.arrived("6-0");
  tracker.done("9-1");
  tracker.done("6-0");
  assert.equal(tracker.cursor, "6-0");
});

test("the cursor never passes an unhandled entry, whatever the order", () => {
  const random = seeded(7);
  for (let round = 0; round < 300; round += 1) {
    const tracker = new CursorTracker();
    const waiting = new Set();
    for (let i = 1; i <= 60; i += 1) {
      tracker.arrived(`1-${i}`);
      waiting.add(i);
      while (waiting.size > 0 && random() < 0.5) {
        const one = [...waiting][Math.floor(random() * waiting.size)];
        waiting.delete(one);
        tracker.done(`1-${one}`);
      }
      const expected = waiting.size > 0 ? Math.min(...waiting) - 1 : i;
      assert.equal(tracker.cursor, expected === 0 ? undefined : `1-${expected}`);
    }
  }
});

test("confirmations stay below the lowest tier's rate, and a quiet client never waits", () => {
  const pacer = new Pacer(0);
  let sent = 0;
  for (let nowMs = 0; nowMs < 60_000; nowMs += 1) if (pacer.take(nowMs) === 0) sent += 1;
  assert.ok(sent <= 200 + 20 * 60 && sent >= 900, `${sent} frames in a minute`);
  assert.equal(pacer.take(120_000), 0);
});

test("acks of a turn leave in one frame; later levels are kept until they are answered", () => {
  let refs = 0;
  const outbox = new Outbox(() => `r${++refs}`);
  outbox.confirmed("1-1", "seen by Ann");
  outbox.displayed("1-1");
  outbox.received(["1-1"]);
  outbox.received(["1-2"]);
  assert.deepEqual(outbox.next(), { op: "ack", ids: ["1-1", "1-2"] });
  assert.deepEqual(outbox.next(), { op: "ack", ids: ["1-1"], level: "confirmed", note: "seen by Ann", ref: "r1" });
  assert.deepEqual(outbox.next(), { op: "ack", ids: ["1-1"], level: "displayed", ref: "r2" });
  assert.ok(outbox.empty);
  outbox.answered("r2");
  outbox.received(["1-3"]);
  outbox.disconnected();
  assert.equal(outbox.next().ref, "r1");
  assert.ok(outbox.empty, "received is not repeated: the node sends the event again");
});

test("a frame is Unicode, whatever a text was cut to", () => {
  const half = "😀".slice(0, 1);
  const sent = (value) => JSON.parse(frameText({ op: "send", value })).value;
  assert.equal(sent(`a${half}`), "a\ufffd");
  assert.equal(sent("😀".slice(1)), "\ufffd");
  assert.deepEqual(sent({ [half]: [half, 1] }), { "\ufffd": ["\ufffd", 1] });
  for (const good of ["😀", "\\ud83d", `\\${"\\"}ud83d`, 'a "quoted" \n word', "\ud7ff\ue000"]) assert.equal(sent(good), good);
});

test("data that a node takes for no frame is refused here", () => {
  const nested = (depth) => (depth === 1 ? {} : { next: nested(depth - 1) });
  for (const good of [{}, nested(64), { n: 2 ** 53, m: -(2 ** 53), f: 1.5 }, { list: [null, true, "x"] }]) {
    assert.equal(dataProblem(good), undefined);
  }
  assert.match(dataProblem({ a: [{ n: 2 ** 53 + 2 }] }), /^data\.a\.0\.n is an integer beyond/);
  assert.match(dataProblem({ n: -1e20 }), /beyond/);
  assert.match(dataProblem(nested(65)), /64 deep/);
});

test("a frame names as many entries as fit into it, and one at the least", () => {
  assert.deepEqual([undefined, 65_536, 4_096, 256, 10].map((bytes) => idsAFrame(bytes)), [1_000, 1_000, 91, 4, 1]);
});
