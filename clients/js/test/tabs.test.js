import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import WebSocket from "ws";
import { SharedEventBusClient } from "../eventbus-tabs.js";
import { ManualClock, seeded, turn, until } from "../support/clocks.js";
import { CuttingNode, entry, ScriptedNode } from "../support/scripted-node.js";
import { FakeBrowser } from "../support/tabs.js";

let node;
let cutting; // of the walk that is under way
let clock;
let browser;
let clients;
let stored; // what the node's history has: [{id, event}]

beforeEach(async () => {
  node = await ScriptedNode.start();
  clock = new ManualClock();
  browser = new FakeBrowser();
  clients = [];
  stored = [];
});

afterEach(async () => {
  await cutting?.stop();
  cutting = undefined;
  await closeAll();
  await node.stop();
});

/** Closes what has not crashed. */
function closeAll() {
  return Promise.all(clients.filter(({ tab }) => tab.alive).map((client) => client.close()));
}

/** `GET /v1/events`, as a node answers it. */
async function history(url) {
  const query = new URL(url).searchParams;
  const number = (id) => id.split("-").map(Number);
  const [ms, n] = number(query.get("cursor") ?? "0-0");
  const rest = stored.filter(({ id }) => number(id)[0] > ms || (number(id)[0] === ms && number(id)[1] > n));
  const events = rest.slice(0, 3);
  const cursor = events.at(-1)?.id ?? query.get("cursor") ?? "0-0";
  return Response.json({ events, cursor, ...(rest.length > 3 ? { next: cursor } : {}) });
}

/** A client in a new tab, which notes everything that happens to it. */
function open(options = {}, tab = browser.tab()) {
  const seen = { events: [], states: [], errors: [], gaps: [], texts: [], dropped: [], log: [] };
  /** Sockets of a tab that crashes end without a word. */
  class TabSocket extends WebSocket {
    constructor(...address) {
      super(...address);
      tab.sockets ??= [];
      tab.sockets.push(this);
    }

    set onmessage(listener) {
      this.listener = listener;
      super.onmessage = listener && ((message) => tab.run(() => this.listener === listener && listener(message)));
    }
  }
  const timers = {
    now: () => clock.now(),
    setTimeout: (action, ms) => {
      const timer = {};
      timer.handle = clock.setTimeout(() => tab.run(() => !timer.cleared && action()), ms);
      return timer;
    },
    clearTimeout: (timer) => {
      if (timer) timer.cleared = true;
      clock.clearTimeout(timer?.handle);
    },
    nextTurn: (action) => clock.nextTurn(() => tab.run(action)),
  };
  const client = new SharedEventBusClient(options.url ?? node.url, {
    user: "ann", token: "jwt", WebSocket: TabSocket, clock: timers, random: () => 0.5, fetch: history, ...tab.options,
    onGap: (gap) => void (seen.gaps.push(gap), seen.log.push(`gap ${gap.reason}`)),
    onState: (state) => void seen.states.push(state),
    onError: (error) => void seen.errors.push(error),
    onText: ({ offset, text, final }) => void seen.texts.push([offset, text, final]),
    onDropped: (dropped) => void seen.dropped.push(dropped),
    ...options,
    onEvent: (event, meta) => {
      const result = options.onEvent?.(event, meta);
      seen.events.push(event.id);
      seen.log.push(event.id);
      return result;
    },
  });
  clients.push(client);
  return Object.assign(client, { seen, tab });
}

function crash({ tab }) {
  tab.crash();
  for (const socket of tab.sockets ?? []) {
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.send = () => {};
    socket.terminate();
  }
}

const reach = (client, state) => until(() => client.state === state, `state ${state}`);

/** Answers the hello of a connection, and says that it has caught up. */
async function greet(number, fields) {
  const peer = await node.peer(number);
  const hello = await peer.greet(fields);
  peer.send({ op: "caught_up" });
  peer.socket.on("message", (data) => JSON.parse(data).op === "ping" && peer.send({ op: "pong" }));
  return Object.assign(peer, { hello });
}

const has = (client, ...events) => until(() => client.seen.events.length >= events.length, `${events}`)
  .then(() => assert.deepEqual(client.seen.events, events));

/** Lets time pass, slowly enough for messages to reach all tabs between. */
async function pass(ms) {
  for (const endMs = clock.now() + ms; clock.now() < endMs; ) {
    await clock.advance(Math.min(500, endMs - clock.now()));
    for (let i = 0; i < 8; i += 1) await turn();
  }
}

/** Two tabs and the one connection that they share. */
async function two(options = {}, other = options) {
  const first = open(options);
  const peer = await greet(1);
  await reach(first, "live");
  const second = open(other);
  await reach(second, "live");
  return { first, second, peer };
}

// ---- one connection

test("two tabs have one connection and one session, and each gets each event once and in order", async () => {
  const { first, second, peer } = await two();
  peer.events(entry(1), entry(2), entry(3));
  await has(first, "e1", "e2", "e3");
  await has(second, "e1", "e2", "e3");
  assert.deepEqual(await peer.acks("1000-1", "1000-2", "1000-3"), ["1000-1", "1000-2", "1000-3"]);
  assert.equal(node.peers.length, 1);
  assert.ok(first.shared && second.shared);
  assert.deepEqual([first.session, second.session], ["s1", "s1"]);
  assert.deepEqual(second.seen.states, ["connecting", "open", "catching_up", "live"]);
  assert.deepEqual([first.cursor, second.cursor], ["1000-3", "1000-3"]);
  await turn();
  assert.deepEqual([...first.seen.errors, ...second.seen.errors], []);
});

test("tabs of another user do not share", async () => {
  open();
  await greet(1);
  open({ user: "bob" });
  await greet(2);
  assert.throws(() => open({ user: undefined }), /user must be a string/);
});

test("wrong options throw in the tab that gave them, also when another one leads", async () => {
  await two();
  assert.throws(() => open({ window: 0 }), /window must be an integer/);
});

test("an event is acked when all tabs have handled it", async () => {
  let release;
  const { second, peer } = await two({}, { onEvent: () => new Promise((resolve) => (release = resolve)) });
  peer.events(entry(1));
  await has(second, "e1");
  for (let i = 0; i < 20; i += 1) await turn();
  assert.deepEqual(peer.acked, []);
  release();
  await peer.acks("1000-1");
});

test("a tab that does not answer is waited for ten seconds, working goes on meanwhile, and the others go on then", async () => {
  const { first, second, peer } = await two();
  second.tab.hang();
  peer.events(entry(1), entry(2));
  await has(first, "e1");
  await clock.advance(9_900);
  assert.deepEqual(peer.acked, []);
  await clock.advance(200);
  await peer.acks("1000-1", "1000-2");
  await has(first, "e1", "e2");

  second.tab.goOn();
  await has(second, "e1", "e2");
  peer.events(entry(3));
  await has(second, "e1", "e2", "e3");
});

test("working goes on while the tabs handle an event", async () => {
  const { second, peer } = await two({ onEvent: () => new Promise(() => {}) });
  peer.events(entry(1));
  await has(second, "e1");
  await clock.advance(10_500);
  assert.deepEqual((await peer.frame("working")).ids, ["1000-1"]);
});

test("a handler that fails in one tab does not nack for the others", async () => {
  const failing = { onEvent: () => { throw new Error("no"); } };
  const { first, second, peer } = await two({}, failing);
  peer.events(entry(1));
  await peer.acks("1000-1");
  await until(() => second.seen.errors.length === 1, "the error");
  assert.deepEqual(second.seen.errors.map(({ code, event }) => [code, event.id]), [["handler_failed", "e1"]]);
  assert.deepEqual(first.seen.errors, []);
  await until(() => second.cursor === "1000-1", "nothing is waited for any more");
});

test("an event that no tab could handle is nacked, and what comes again is handed over once more", async () => {
  let fails = true;
  const onEvent = () => { if (fails) throw new Error("not yet"); };
  const { first, second, peer } = await two({ onEvent });
  peer.events(entry(1));
  const nack = await peer.frame("nack");
  assert.deepEqual([nack.id, nack.reason], ["1000-1", "not yet"]);
  fails = false;
  peer.events(entry(1, { delivery: 2 }));
  await peer.acks("1000-1");
  await has(first, "e1");
  await has(second, "e1");
  assert.deepEqual([...first.seen.errors, ...second.seen.errors].map(({ code }) => code), ["handler_failed", "handler_failed"]);
});

// ---- the leader goes

test("when the leader closes, another tab opens the same session, and nothing is lost or handed over twice", async () => {
  const { first, second, peer } = await two();
  peer.events(entry(1), entry(2));
  await peer.acks("1000-1", "1000-2");
  await first.close();
  const next = await greet(2, { resumed: true });
  assert.equal(next.hello.session, "s1");
  assert.equal(next.hello.cursor, "1000-2");
  assert.equal(next.hello.epoch, "epoch-1");
  next.events(entry(2, { delivery: 2 }), entry(3));
  await next.acks("1000-2", "1000-3");
  await has(second, "e1", "e2", "e3");
  await has(first, "e1", "e2");
});

test("when the leader crashes in the midst of an event, the others get it from the next leader, once", async () => {
  const { first, second, peer } = await two({ onEvent: () => new Promise(() => {}) }, {});
  peer.events(entry(1), entry(2));
  await has(second, "e1");
  crash(first);
  const next = await greet(2, { resumed: true });
  next.events(entry(1, { delivery: 2 }), entry(2, { delivery: 2 }));
  await next.acks("1000-1", "1000-2");
  await has(second, "e1", "e2");
  assert.deepEqual(second.seen.states.slice(-5), ["waiting", "connecting", "open", "catching_up", "live"]);
});

test("a leader that hangs loses the lock to a visible tab, and follows when it is back", async () => {
  const { first, second, peer } = await two();
  first.tab.hang();
  await pass(26_000);
  const next = await greet(2, { resumed: true });
  peer.send({ op: "events", events: [entry(9)] }); // what it gets still is not for others
  next.events(entry(1));
  await has(second, "e1");
  await next.acks("1000-1"); // nobody waits for the one that hangs, which has not said that it follows
  first.tab.goOn();
  next.events(entry(2));
  await until(() => first.seen.events.includes("e2"), "it follows");
  await has(second, "e1", "e2");
  assert.deepEqual(second.seen.errors, []);
  await until(() => peer.closed, "its own connection is closed");
});

test("a hidden tab does not take the lock from a silent leader", async () => {
  const { first, second } = await two();
  second.tab.hide();
  first.tab.hang();
  await pass(60_000);
  assert.equal(node.peers.length, 1);
});

test("a leader that was hidden for a minute gives way to a visible tab", async () => {
  const { first, second, peer } = await two();
  first.tab.hide();
  await pass(59_000);
  assert.equal(node.peers.length, 1);
  await pass(2_000);
  const next = await greet(2, { resumed: true });
  next.events(entry(1));
  await has(first, "e1");
  await has(second, "e1");
  await until(() => peer.closed, "the old connection is closed");
  assert.deepEqual([...first.seen.errors, ...second.seen.errors], []);
});

test("a page that is frozen leaves, so nobody waits for it, and has what it missed when it is back", async () => {
  const { first, second, peer } = await two();
  stored = [entry(1), entry(2), entry(3)];
  peer.events(entry(1));
  await peer.acks("1000-1");
  second.tab.happens("freeze");
  peer.events(entry(2), entry(3));
  await peer.acks("1000-1", "1000-2", "1000-3");
  await has(second, "e1");
  assert.equal(second.state, "waiting");
  second.tab.happens("resume");
  await has(second, "e1", "e2", "e3");
  await reach(second, "live");
  assert.deepEqual([...first.seen.errors, ...second.seen.errors, ...second.seen.gaps], []);
});

test("a leader whose page is kept aside gives the lock away, and joins again when it is shown", async () => {
  const { first, second } = await two();
  first.tab.happens("pagehide", { persisted: true });
  const next = await greet(2, { resumed: true });
  await reach(second, "live");
  first.tab.happens("pageshow", { persisted: true });
  await reach(first, "live");
  next.events(entry(1));
  await has(first, "e1");
  assert.equal(node.peers.length, 2);
});

test("both closed and one opened again: the session goes on", async () => {
  const { first, second, peer } = await two();
  peer.events(entry(1));
  await peer.acks("1000-1");
  await Promise.all([first.close(), second.close()]);
  const third = open();
  const hello = (await greet(node.peers.length + 1, { resumed: true })).hello;
  assert.deepEqual([hello.session, hello.cursor], ["s1", "1000-1"]);
  await reach(third, "live");
});

test("a session that was opened elsewhere ends for all tabs, when this browser still has the lock", async () => {
  const { first, second, peer } = await two();
  peer.socket.close(4504, "superseded");
  await until(() => clock.due(1_000), "its time to wait");
  for (let i = 0; i < 20; i += 1) await turn();
  assert.equal(second.state, "live");
  await clock.advance(1_100);
  await reach(first, "closed");
  await reach(second, "closed");
  assert.deepEqual([first, second].map(({ seen }) => seen.errors.map(({ code }) => code)), [["superseded"], ["superseded"]]);
});

// ---- tabs that come later

test("a tab that joins late has what came after its cursor, and then what comes, without a hole or a repeat", async () => {
  const first = open();
  const peer = await greet(1);
  stored = [1, 2, 3, 4, 5, 6, 7].map((number) => entry(number));
  peer.events(...stored.slice(0, 6));
  await peer.acks(...stored.slice(0, 6));
  const late = open({ cursor: "1000-2" });
  peer.events(entry(7));
  await has(late, "e3", "e4", "e5", "e6", "e7");
  await reach(late, "live");
  peer.events(entry(8));
  await has(late, "e3", "e4", "e5", "e6", "e7", "e8");
  await has(first, "e1", "e2", "e3", "e4", "e5", "e6", "e7", "e8");
  assert.deepEqual(late.seen.gaps, []);
});

test("a tab that joins late without a cursor has what comes from now on, and with start earliest all that is retained", async () => {
  open();
  const peer = await greet(1);
  stored = [entry(1), entry(2)];
  peer.events(...stored);
  await peer.acks("1000-1", "1000-2");
  const now = open();
  const all = open({ start: "earliest" });
  await reach(now, "live");
  await has(all, "e1", "e2");
  peer.events(entry(3));
  await has(now, "e3");
  await has(all, "e1", "e2", "e3");
  assert.equal(now.cursor, "1000-3");
});

test("a page that read the history before it connects is told what follows", async () => {
  open();
  const peer = await greet(1);
  stored = [entry(1), entry(2)];
  peer.events(...stored);
  await peer.acks("1000-1", "1000-2");
  const late = open({ connect: false });
  assert.equal(late.state, "idle");
  const page = await late.history();
  assert.deepEqual(page.events.map(({ id }) => id), ["1000-1", "1000-2"]);
  late.connect();
  stored.push(entry(3));
  peer.events(entry(3));
  await has(late, "e3");
});

test("a reloaded page goes on where it stood, although another tab led on meanwhile", async () => {
  const { first, second, peer } = await two();
  stored = [1, 2, 3].map((number) => entry(number));
  peer.events(entry(1));
  await peer.acks("1000-1");
  second.tab.happens("pagehide", { persisted: false });
  peer.events(entry(2));
  await peer.acks("1000-1", "1000-2");
  const again = open({}, second.tab);
  peer.events(entry(3));
  await has(again, "e2", "e3");
  await has(first, "e1", "e2", "e3");
  const copy = open({}, second.tab);
  await reach(copy, "live");
  assert.deepEqual(copy.seen.events, [], "a duplicated tab does not inherit it");
});

test("a place that is none, remembered by whoever, keeps no tab from connecting", async () => {
  const tab = browser.tab();
  const client = open({ name: "bus" }, tab);
  await client.close();
  tab.own.setItem("bus:cursor", "yesterday");
  const again = open({ name: "bus" }, tab);
  const peer = await greet(1);
  peer.events(entry(1));
  await has(again, "e1");
  assert.deepEqual(again.seen.errors, []);
});

test("a history that can not be read is asked for again", async () => {
  open();
  await greet(1);
  stored = [entry(1), entry(2)];
  let refusals = 6;
  const fetch = async (url) => (refusals-- > 0 ? Response.json({ error: { code: "store_unavailable", message: "away" } }, { status: 503 }) : history(url));
  const late = open({ cursor: "1000-1", fetch });
  for (let i = 0; i < 40 && late.seen.events.length === 0; i += 1) await clock.advance(1_000);
  await has(late, "e2");
  assert.deepEqual(late.seen.errors.map(({ code, retryable }) => [code, retryable]), [["history_failed", true]]);
});

// ---- confirmations, commands, texts

test("displayed and confirmed of any tab count for the session, and survive the leader", async () => {
  const { first, second, peer } = await two();
  peer.events(entry(1));
  await peer.acks("1000-1");
  second.displayed({ id: "e1" });
  assert.deepEqual((await until(() => peer.all("ack").find(({ level }) => level === "displayed"), "it")).ids, ["1000-1"]);
  second.confirm({ id: "e1" }, "paid");
  const confirmed = await until(() => peer.all("ack").find(({ level }) => level === "confirmed"), "it");
  assert.deepEqual([confirmed.ids, confirmed.note], [["1000-1"], "paid"]);
  assert.throws(() => second.displayed({ id: "e9" }), /not handed over/);

  crash(first);
  const next = await greet(2, { resumed: true });
  await until(() => next.all("ack").find(({ level }) => level === "confirmed"), "it is told again");
  assert.deepEqual(second.seen.errors, []);
});

test("a command of a tab is stored once, whoever leads", async () => {
  const { first, second, peer } = await two();
  const id = second.send("message", { text: "hello" }, { thread: "t1" });
  const { ref, ...frame } = await peer.frame("send");
  assert.deepEqual(frame, { op: "send", type: "message", data: { text: "hello" }, thread: "t1" });
  crash(first);
  const next = await greet(2, { resumed: true });
  assert.equal((await next.frame("send")).ref, ref, "the node knows it by its ref");
  next.send({ op: "sent", ref, id: "77-0" });
  assert.equal(await id, "77-0");

  const cancelled = second.cancel("run_1", "enough");
  const cancel = await next.frame("send", 2);
  assert.deepEqual([cancel.type, cancel.run, cancel.data], ["cancel", "run_1", { reason: "enough" }]);
  next.send({ op: "error", code: "bad_command", message: "no", ref: cancel.ref });
  await assert.rejects(cancelled, { name: "EventBusError", code: "bad_command", retryable: false });
  await assert.rejects(second.send("Not a type"), TypeError);
  await assert.rejects(second.send("message", { text: () => {} }), { name: "EventBusError" });
});

test("a filter is the session's", async () => {
  const { first, second, peer } = await two();
  const done = second.filter({ types: ["step"] });
  const { ref, filter } = await peer.frame("filter");
  assert.deepEqual(filter, { types: ["step"] });
  peer.send({ op: "filtered", ref });
  await done;
  crash(first);
  assert.deepEqual((await greet(2)).hello.filter, { types: ["step"] });
});

test("a text goes to all tabs, and one that joins in the midst of it has it from the beginning", async () => {
  const { first, second, peer } = await two();
  const part = (offset, text, final) => ({ op: "text", run: "r1", stream: "text", offset, text, ...(final ? { final } : {}) });
  peer.send(part(0, "Hello "));
  await until(() => second.seen.texts.length === 1, "the text");
  const late = open();
  await until(() => late.seen.texts.length === 1, "what there was");
  peer.send(part(6, "wörld"));
  peer.send(part(11, "!", true));
  await until(() => late.seen.texts.length === 3, "all");
  for (const { seen, ...client } of [first, second, late]) {
    assert.equal(seen.texts.map(([, text]) => text).join(""), "Hello wörld!");
  }
  assert.equal(late.text("r1", "text"), "Hello wörld!");
});

test("gaps come in their place among the events, and what is dropped is told to all tabs", async () => {
  const { first, second, peer } = await two();
  peer.events(entry(1));
  peer.send({ op: "gap", reason: "trimmed", count: 2 });
  peer.events(entry(4));
  peer.send({ op: "dropped", ids: ["1000-5"], reason: "expired" });
  for (const { seen } of [first, second]) {
    await until(() => seen.log.length === 3, "all three");
    assert.deepEqual(seen.log, ["e1", "gap trimmed", "e4"]);
    assert.deepEqual(seen.dropped, [{ ids: ["1000-5"], reason: "expired" }]);
  }
});

test("a final error closes all tabs, and a new client begins anew", async () => {
  const { first, second, peer } = await two();
  peer.socket.close(4502, "forbidden");
  await reach(first, "closed");
  await reach(second, "closed");
  assert.deepEqual(second.seen.errors.map(({ code, closeCode }) => [code, closeCode]), [["forbidden", 4502]]);
  await assert.rejects(second.send("message", {}), { code: "closed" });
  open();
  await greet(2);
});

// ---- without what it takes

test("without locks or channels a tab has a connection of its own and the same methods", async () => {
  const tab = browser.tab();
  const alone = () => open({ locks: null, BroadcastChannel: undefined, storage: undefined }, tab);
  const first = alone();
  assert.equal(first.shared, false);
  const peer = await greet(1);
  await reach(first, "live");
  peer.events(entry(1));
  await has(first, "e1");
  first.displayed({ id: "e1" });
  await until(() => peer.all("ack").some(({ level }) => level === "displayed"), "displayed");
  const done = first.message("hello");
  peer.send({ op: "sent", ref: (await peer.frame("send")).ref, id: "1-1" });
  assert.equal(await done, "1-1");
  alone();
  await greet(2);
});

// ---- whatever happens

const WALKS = Number(process.env.EVENTBUS_TEST_TABS ?? 12);

test(`every tab gets every event once and in order, whatever happens to tabs and connections (${WALKS} walks)`, async () => {
  for (let seed = 1; seed <= WALKS; seed += 1) await walk(seed);
});

async function walk(seed) {
  const random = seeded(seed);
  cutting = await CuttingNode.start({ random, cutChance: 0.03, maxCuts: 8 });
  browser = new FakeBrowser();
  clients = [];
  stored = [];
  const publish = (count) => {
    cutting.publish(count);
    stored = cutting.published.map((_, at) => entry(at + 1));
  };
  const tabs = [];
  const join = () => {
    const at = stored.at(-1)?.id;
    const cursor = at && random() < 0.5 ? at : undefined;
    const client = open({ url: cutting.url, ...(cursor ? { cursor } : { start: "earliest" }) });
    tabs.push({ client, from: cursor ? cutting.published.length : 0, frozen: false });
  };
  const steps = [
    () => publish(1 + Math.floor(random() * 5)),
    () => publish(1 + Math.floor(random() * 5)),
    () => tabs.length < 5 && join(),
    () => tabs.length > 1 && crash(tabs.splice(Math.floor(random() * tabs.length), 1)[0].client),
    () => tabs.length > 1 && tabs.splice(Math.floor(random() * tabs.length), 1)[0].client.close(),
    () => {
      const one = tabs[Math.floor(random() * tabs.length)];
      one.frozen = !one.frozen;
      one.client.tab.happens(one.frozen ? "freeze" : "resume");
    },
    () => {
      const one = tabs[Math.floor(random() * tabs.length)];
      if (one.hangs) one.client.tab.goOn();
      else one.client.tab.hang();
      one.hangs = !one.hangs;
    },
    () => clock.advance(Math.floor(random() * 12_000)),
    () => turn(),
  ];
  join();
  for (let step = 0; step < 60; step += 1) {
    await steps[Math.floor(random() * steps.length)]();
    for (let i = random() * 6; i > 0; i -= 1) await turn();
  }
  publish(1);
  for (const one of tabs) {
    if (one.hangs) one.client.tab.goOn();
    if (one.frozen) one.client.tab.happens("resume");
  }
  const rest = () => tabs.find(({ client, from }) => client.seen.events.length < cutting.published.length - from);
  for (let i = 0; i < 200 && (rest() || !cutting.settled); i += 1) await pass(500);
  for (const { client, from } of tabs) {
    assert.deepEqual(client.seen.events, cutting.published.slice(from), `walk ${seed}`);
    assert.deepEqual(client.seen.gaps, [], `walk ${seed}`);
    assert.deepEqual(client.seen.errors.map(({ code }) => code), [], `walk ${seed}`);
  }
  assert.ok(cutting.settled, `walk ${seed}: all is acked`);
  await closeAll();
  await cutting.stop();
  cutting = undefined;
}
