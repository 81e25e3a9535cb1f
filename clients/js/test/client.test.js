import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import WebSocket from "ws";
import { EventBusClient, EventBusError } from "../eventbus-client.js";
import { turn, until } from "../support/clocks.js";
import { parts, reach, reconnected as reconnect } from "../support/connecting.js";
import { entry, EPOCH, ScriptedNode } from "../support/scripted-node.js";

let node;
let clock;
const all = parts();
const { connect } = all;
const reconnected = (client, number) => reconnect(all, client, number);

beforeEach(() => ({ node, clock } = all));

// ---- opening and resuming

test("a client says hello with its token, and goes from connecting to live", async () => {
  const client = connect();
  assert.equal(client.state, "connecting");
  const peer = await node.peer();
  assert.equal(peer.url, "/v1/connect");
  assert.equal(peer.protocol, "eventbus.v1.json");
  assert.deepEqual(await peer.greet(), { op: "hello", token: "jwt", start: "earliest", window: 256 });
  peer.send({ op: "caught_up", cursor: "1000-0" });
  await reach(client, "live");
  assert.equal(client.session, "s1");
  assert.equal(client.cursor, "1000-0");
  assert.deepEqual(client.seen.states, ["connecting", "open", "catching_up", "live"]);
});

test("live comes after the handlers of all that was stored", async () => {
  let release;
  const client = connect({ onEvent: () => new Promise((resolve) => (release = resolve)) });
  const peer = await node.peer();
  await peer.greet();
  peer.events(entry(1));
  peer.send({ op: "caught_up" });
  peer.send({ op: "pong" });
  await until(() => release, "the handler");
  assert.equal(client.state, "catching_up");
  release();
  await reach(client, "live");
});

test("a new session starts at the page's cursor when there is one", async () => {
  connect({ cursor: "900-1" });
  const hello = await (await node.peer()).frame("hello");
  assert.equal(hello.start, "cursor");
  assert.equal(hello.cursor, "900-1");
});

test("a reconnect carries the session, the epoch and the cursor of what was handled, not of what was seen (D9)", async () => {
  const client = connect({ onEvent: (event) => (event.id === "e2" ? new Promise(() => {}) : undefined) });
  const peer = await node.peer();
  await peer.greet();
  peer.events(entry(1), entry(2), entry(3));
  await peer.acks("1000-1");
  peer.socket.terminate();
  const again = await reconnected(client, 2);
  assert.deepEqual(await again.frame("hello"),
    { op: "hello", token: "jwt", session: "s1", cursor: "1000-1", epoch: EPOCH, window: 256 });
});

test("a session that was never welcomed asks for the same start again", async () => {
  const client = connect({ start: "new" });
  const peer = await node.peer();
  await peer.frame("hello");
  peer.socket.terminate();
  const again = await reconnected(client, 2);
  assert.equal((await again.greet({ cursor: "700-0" })).start, "new");
  await reach(client, "catching_up");
  again.socket.terminate();
  const hello = await (await reconnected(client, 3)).frame("hello");
  assert.deepEqual([hello.start, hello.cursor], [undefined, "700-0"], "what came since `new` is not skipped");
});

/** A storage as a tab has one; with what another one held, as a duplicated tab begins. */
function storageOf(other = []) {
  const kept = new Map(other);
  return {
    kept,
    getItem: (key) => kept.get(key) ?? null,
    setItem: (key, value) => kept.set(key, value),
    removeItem: (key) => kept.delete(key),
  };
}

test("stored sessions are resumed by the next page, and forgotten when the node ends them", async () => {
  const storage = storageOf();
  const client = connect({ storage, storageKey: "bus" });
  const peer = await node.peer();
  await peer.greet();
  peer.events(entry(1));
  await peer.acks("1000-1");
  await client.close();
  connect({ storage, storageKey: "bus" });
  const second = await node.peer(2);
  const hello = await second.greet({ resumed: true });
  assert.deepEqual([hello.session, hello.cursor, hello.epoch], ["s1", "1000-1", EPOCH]);
  second.socket.close(4506, "ended");
  await until(() => storage.kept.size === 0, "the stored session gone");
});

test("a storage that holds what is no session of ours is as good as an empty one", async () => {
  const kept = [
    "null", "7", "[]", "{", '{"session":"a b"}', '{"session":5,"cursor":"1-1"}', '{"session":"s9","cursor":"now"}',
    '{"session":"s9","cursor":7}',
  ];
  for (const [index, text] of kept.entries()) {
    const storage = storageOf([["bus", text]]);
    connect({ storage, storageKey: "bus" });
    const hello = await (await node.peer(index + 1)).greet();
    assert.deepEqual([hello.session, hello.start, hello.cursor], [undefined, "earliest", undefined], text);
    await until(() => storage.kept.get("bus") !== text, "something is kept");
    assert.equal(JSON.parse(storage.kept.get("bus")).session, "s1");
  }
  connect({ storage: storageOf([["bus", '{"session":"s9","cursor":"1-1","epoch":7}']]), storageKey: "bus" });
  const hello = await (await node.peer(kept.length + 1)).frame("hello");
  assert.deepEqual([hello.session, hello.cursor, hello.epoch], ["s9", "1-1", undefined]);
});

test("a copy of a tab's storage is no claim to its session while that tab lives; after a crash it is", async () => {
  const first = (globalThis.sessionStorage = storageOf());
  try {
    const original = connect({ storage: first, storageKey: "bus" });
    const peer = await node.peer();
    await peer.greet();
    peer.events(entry(1));
    await peer.acks("1000-1");

    const copy = (globalThis.sessionStorage = storageOf(first.kept));
    connect({ storage: copy, storageKey: "bus", start: "new" });
    const hello = await (await node.peer(2)).greet({ session: "s2" });
    assert.deepEqual([hello.session, hello.start, hello.cursor, hello.epoch], [undefined, "cursor", "1000-1", undefined]);
    assert.equal(original.state, "catching_up");

    const crashed = (globalThis.sessionStorage = storageOf(first.kept));
    await original.close();
    connect({ storage: crashed, storageKey: "bus" });
    await until(() => clock.due(250), "the other tabs are asked");
    await clock.advance(250);
    assert.equal((await (await node.peer(3)).frame("hello")).session, "s1");
  } finally {
    delete globalThis.sessionStorage;
  }
});

// ---- each event once, in order, acked after its handler

test("events are handed over in order, one handler at a time, and acked after it has settled (R8)", async () => {
  const finish = [];
  let running = 0;
  const client = connect({
    onEvent: () => {
      running += 1;
      assert.equal(running, 1);
      return new Promise((resolve) => finish.push(() => ((running -= 1), resolve())));
    },
  });
  const peer = await node.peer();
  await peer.greet();
  peer.events(entry(1), entry(2));
  peer.events(entry(3));
  for (const count of [1, 2, 3]) {
    await until(() => finish.length === count, `handler ${count}`);
    await turn();
    assert.equal(peer.acked.length, count - 1, "not acked before the handler has settled");
    finish[count - 1]();
    await peer.acks(...Array(count));
  }
  assert.deepEqual(client.seen.events, ["e1", "e2", "e3"]);
  assert.deepEqual(peer.acked, ["1000-1", "1000-2", "1000-3"]);
  assert.deepEqual(client.seen.metas[0], { entry: "1000-1", delivery: 1, redelivered: false });
});

test("acks of one turn leave in one frame", async () => {
  connect();
  const peer = await node.peer();
  await peer.greet();
  peer.events(...Array.from({ length: 50 }, (_, i) => entry(i + 1)));
  await peer.acks(...Array(50));
  assert.equal(peer.all("ack").length, 1);
});

test("a stream of single events is acked below the lowest tier's frame rate", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  for (let i = 1; i <= 150; i += 1) {
    peer.events(entry(i));
    await until(() => client.seen.events.length === i, `event ${i}`);
    await turn();
  }
  assert.ok(peer.all("ack").length <= 101, `${peer.all("ack").length} ack frames in no time`);
  await clock.advance(100);
  await peer.acks(...Array(150));
  assert.equal(new Set(peer.acked).size, 150);
});

test("a duplicate is dropped by event id, also under another entry id, and acked again (R8, D5)", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  peer.events(entry(1), entry(2));
  await peer.acks("1000-1", "1000-2");
  peer.events(entry(1, { delivery: 2 }), entry(9, { eventId: "e2" }), entry(3));
  await peer.acks(...Array(5));
  assert.deepEqual(peer.acked.slice(2), ["1000-1", "1000-9", "1000-3"]);
  assert.deepEqual(client.seen.events, ["e1", "e2", "e3"]);
});

test("an event that comes again while its handler runs is not handed over twice", async () => {
  let release;
  const client = connect({ onEvent: (event) => event.id === "e1" && new Promise((resolve) => (release = resolve)) });
  const peer = await node.peer();
  await peer.greet();
  peer.events(entry(1), entry(2));
  await until(() => release, "the handler");
  peer.socket.terminate();
  const again = await reconnected(client, 2);
  await again.greet({ resumed: true });
  again.events(entry(1, { delivery: 2 }), entry(7, { eventId: "e2", delivery: 2 }), entry(8));
  await until(() => client.state === "catching_up", "the second connection");
  await turn();
  release();
  await again.acks(...Array(4));
  assert.deepEqual(again.acked, ["1000-1", "1000-2", "1000-7", "1000-8"], "a twice stored event is acked in both places");
  assert.deepEqual(client.seen.events, ["e1", "e2", "e8"]);
});

test("a failed handler nacks; the redelivery is handed over again and acked", async () => {
  let failures = 1;
  const client = connect({
    onEvent: async (event) => {
      if (event.id === "e1" && failures-- > 0) throw new Error("no disk");
    },
  });
  const peer = await node.peer();
  await peer.greet();
  peer.events(entry(1), entry(2));
  assert.deepEqual(await peer.frame("nack"), { op: "nack", id: "1000-1", reason: "no disk" });
  await peer.acks("1000-2");
  assert.deepEqual(peer.acked, ["1000-2"]);
  const [error] = client.seen.errors;
  assert.ok(error instanceof EventBusError);
  assert.deepEqual([error.code, error.retryable, error.event.id, error.cause.message],
    ["handler_failed", true, "e1", "no disk"]);
  assert.equal(client.cursor, undefined, "e1 is not handled");
  peer.events(entry(1, { delivery: 2 }));
  await peer.acks("1000-2", "1000-1");
  assert.deepEqual(client.seen.events, ["e1", "e2", "e1"]);
  assert.equal(client.seen.metas[2].redelivered, true);
  assert.equal(client.cursor, "1000-2");
});

test("a failed event that became somebody else's does not hold the cursor for ever", async () => {
  const client = connect({
    onEvent: (event) => {
      if (event.id === "e1") throw new Error("not here");
    },
  });
  const peer = await node.peer();
  await peer.greet();
  peer.events(entry(1), entry(2));
  await peer.acks("1000-2");
  peer.socket.terminate();
  const again = await reconnected(client, 2);
  await again.greet({ resumed: true });
  again.events(entry(3));
  await again.acks("1000-3");
  assert.equal(client.cursor, "1000-3");
});

test("a failed event can be skipped, or wait for a given time", async () => {
  const fails = () => {
    throw "broken";
  };
  connect({ failedEvents: "skip", onEvent: fails });
  const peer = await node.peer();
  await peer.greet();
  peer.events(entry(1));
  await peer.acks("1000-1");
  assert.equal(peer.all("nack").length, 0);
  connect({ nackDelayMs: 60_000, onEvent: fails });
  const second = await node.peer(2);
  await second.greet();
  second.events(entry(1));
  assert.deepEqual(await second.frame("nack"), { op: "nack", id: "1000-1", reason: "broken", delay_ms: 60_000 });
});

test("a handler slower than a third of the ack time-out keeps the node waiting, for what is queued too", async () => {
  let release;
  connect({ onEvent: () => new Promise((resolve) => (release = resolve)) });
  const peer = await node.peer();
  await peer.greet({ ack_timeout_ms: 3_000 });
  peer.events(entry(1), entry(2));
  await until(() => release, "the handler");
  await clock.advance(1_000);
  assert.deepEqual(await peer.frame("working"), { op: "working", ids: ["1000-1", "1000-2"] });
  release();
  await peer.acks("1000-1");
  await clock.advance(1_000);
  assert.deepEqual(await peer.frame("working", 2), { op: "working", ids: ["1000-2"] });
});

test("what will not come again is not handed over, unless its handler runs", async () => {
  let release;
  const dropped = [];
  const client = connect({
    onDropped: (frame) => void dropped.push(frame),
    onEvent: (event) => event.id === "e1" && new Promise((resolve) => (release = resolve)),
  });
  const peer = await node.peer();
  await peer.greet();
  peer.events(entry(1), entry(2), entry(3), entry(4));
  peer.send({ op: "released", ids: ["1000-2"] });
  peer.send({ op: "dropped", ids: ["1000-3", "1000-1"], reason: "expired" });
  await until(() => dropped.length, "dropped");
  release();
  await peer.acks("1000-1", "1000-4");
  assert.deepEqual(client.seen.events, ["e1", "e4"]);
  assert.deepEqual(dropped, [{ ids: ["1000-3", "1000-1"], reason: "expired" }]);
  assert.deepEqual(client.seen.released, [["1000-2"]]);
  assert.equal(client.cursor, "1000-4");
});

// ---- gaps

test("a gap is announced in its place, and holds the next event back until the page has reloaded", async () => {
  let reloaded;
  const client = connect({
    onGap: (gap) => {
      client.seen.gaps.push(gap);
      client.seen.log.push("gap");
      return new Promise((resolve) => (reloaded = resolve));
    },
  });
  const peer = await node.peer();
  await peer.greet();
  peer.events(entry(1));
  peer.send({ op: "gap", reason: "trimmed", after: "1000-1", before: "1000-5", count: 3 });
  peer.events(entry(5));
  await until(() => reloaded, "the gap");
  assert.deepEqual(client.seen.log, ["e1", "gap"]);
  reloaded();
  await peer.acks("1000-1", "1000-5");
  assert.deepEqual(client.seen.log, ["e1", "gap", "e5"]);
  assert.deepEqual(client.seen.gaps, [{ reason: "trimmed", after: "1000-1", before: "1000-5", count: 3 }]);
});

test("after a rollback the client takes lower ids and a lower cursor (D4)", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  peer.events(entry(8), entry(9));
  await peer.acks("1000-8", "1000-9");
  peer.send({ op: "gap", reason: "rollback", after: "1000-7" });
  await until(() => client.seen.gaps.length, "the gap");
  assert.equal(client.cursor, "1000-7");
  peer.events(entry(8, { eventId: "other" }));
  await peer.acks(...Array(3));
  assert.equal(client.cursor, "1000-8");
  peer.send({ op: "gap", reason: "reset" });
  await until(() => client.seen.gaps.length === 2, "the second gap");
  assert.equal(client.cursor, undefined);
});

// ---- coming back

test("a client obeys the time of a goaway, whether the node closes before it or not", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  await reach(client, "catching_up");
  await clock.advance(6_000);
  peer.send({ op: "goaway", reason: "draining", reconnect_after_ms: 7_000 });
  peer.socket.close(4001, "draining");
  await reach(client, "waiting");
  assert.deepEqual(client.seen.details.at(-1), { code: 4001, reason: "draining", waitMs: 7_000 });
  await clock.advance(6_999);
  assert.equal(client.state, "waiting");
  await clock.advance(1);
  const second = await node.peer(2);
  await second.greet({ resumed: true });
  await reach(client, "catching_up");
  await clock.advance(6_000);
  second.send({ op: "goaway", reason: "rebalance", reconnect_after_ms: 3_000 });
  second.events(entry(1));
  await second.acks("1000-1");
  await clock.advance(2_999);
  assert.equal(second.closed, undefined);
  await clock.advance(1);
  await until(() => second.closed, "the close by the client");
  assert.equal(second.closed.code, 1000);
  assert.equal((await (await node.peer(3)).frame("hello")).session, "s1");
});

test("goaways on connections that never last make no tight loop", async () => {
  const client = connect();
  const waits = [];
  for (let number = 1; number <= 8; number += 1) {
    const peer = await node.peer(number);
    await peer.greet();
    await reach(client, "catching_up");
    peer.send({ op: "goaway", reason: "rebalance", reconnect_after_ms: 0 });
    peer.socket.close(4001);
    await reach(client, "waiting");
    waits.push(client.seen.details.at(-1).waitMs);
    await clock.advance(waits.at(-1));
  }
  assert.ok(waits.at(-1) > 5_000, `${waits}`);
});

for (const code of [1001, 1006, 1011, 1012, 4001, 4002, 4003, 4004, 4005, 4006, 4007, 4499]) {
  test(`close code ${code} reconnects with the same session`, async () => {
    const client = connect();
    const peer = await node.peer();
    await peer.greet();
    await reach(client, "catching_up");
    if (code === 1006) peer.socket.terminate();
    else peer.socket.close(code, "why");
    const hello = await (await reconnected(client, 2)).frame("hello");
    assert.equal(hello.session, "s1");
    assert.equal(client.seen.errors.length, code === 1011 ? 1 : 0);
  });
}

for (const [code, name] of [[4500, "protocol_violation"], [4501, "unauthenticated"], [4502, "forbidden"],
  [4504, "superseded"], [4505, "frame_too_large"], [4506, "session_ended"], [4777, "close_4777"]]) {
  test(`close code ${code} is final and is reported as ${name}`, async () => {
    const client = connect();
    const peer = await node.peer();
    await peer.greet();
    await reach(client, "catching_up");
    peer.socket.close(code, "why");
    await reach(client, "closed");
    assert.deepEqual(client.seen.errors.map((error) => [error.code, error.closeCode, error.retryable]), [[name, code, false]]);
    assert.equal(client.seen.details.at(-1).code, code);
    assert.equal(clock.pending, 0);
    await client.close();
  });
}

test("a hello that came too late is tried again, five times in a row", async () => {
  const client = connect();
  let peer = await node.peer();
  peer.socket.close(4503, "hello timeout");
  peer = await reconnected(client, 2);
  await peer.greet();
  await reach(client, "catching_up");
  for (let number = 3; number <= 6; number += 1) {
    peer.socket.close(4503, "hello timeout");
    await until(() => client.state !== "catching_up", "the close");
    peer = await reconnected(client, number);
  }
  assert.deepEqual(client.seen.errors, [], "the welcome has begun the count anew");
  peer.socket.close(4503, "hello timeout");
  await reach(client, "closed");
  assert.deepEqual(client.seen.errors.map((error) => [error.code, error.closeCode, error.retryable]), [["hello_timeout", 4503, false]]);
});

test("a refused upgrade and a dead port are waited for, longer each time", async () => {
  const port = new URL(node.url).port;
  const client = connect();
  await (await node.peer()).frame("hello");
  await node.stop();
  const waits = [];
  for (let i = 0; i < 8; i += 1) {
    await until(() => client.seen.states.filter((state) => state === "waiting").length === i + 1, `wait ${i}`);
    waits.push(client.seen.details.at(-1).waitMs);
    await clock.advance(waits.at(-1));
  }
  assert.deepEqual(waits, [125, 250, 500, 1_000, 2_000, 4_000, 7_500, 7_500], `on port ${port}`);
  await client.close();
  all.node = await ScriptedNode.start();
});

test("a socket that never opens and a hello without an answer are given up", async () => {
  const client = connect({ WebSocket: class { send() {} close() {} } });
  await turn();
  await clock.advance(15_000);
  assert.equal(client.state, "waiting");
  await client.close();
  const second = connect();
  await (await node.peer()).frame("hello");
  await clock.advance(39_000);
  assert.equal(second.state, "open", "a node without its store answers after 30 s");
  await clock.advance(1_000);
  assert.equal(second.state, "waiting");
});

// ---- liveness

test("a silent node is pinged after a heartbeat, and left when 10 s bring no answer", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet({ heartbeat_ms: 20_000 });
  await reach(client, "catching_up");
  await clock.advance(19_000);
  assert.equal(peer.all("ping").length, 0);
  await clock.advance(1_000);
  const { ref } = await peer.frame("ping");
  const before = client.seen.log.length;
  peer.send({ op: "pong", ref });
  peer.events(entry(1));
  await until(() => client.seen.log.length > before, "the event behind the pong");
  await clock.advance(15_000);
  assert.equal(client.state, "catching_up", "answered");
  await clock.advance(5_000);
  await peer.frame("ping", 2);
  await clock.advance(9_999);
  assert.equal(client.state, "catching_up");
  await clock.advance(1);
  assert.equal(client.state, "waiting");
  assert.equal((await (await reconnected(client, 2)).frame("hello")).session, "s1");
});

test("a page that stood still does not take its own silence for the node's", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  await reach(client, "catching_up");
  await clock.advance(20_000);
  const { ref } = await peer.frame("ping");
  clock.freeze(60_000); // the answer has come, but the timer is served before it
  await clock.advance(0);
  assert.equal(client.state, "catching_up");
  peer.send({ op: "pong", ref });
  peer.events(entry(1));
  await until(() => client.seen.log.length, "the answer");
  await clock.advance(1_000);
  assert.equal(client.state, "catching_up");
});

test("a stuck handler neither stops the pings nor the reading of their answers", async () => {
  const client = connect({ onEvent: () => new Promise(() => {}), onText: (part) => void client.seen.log.push(part.text) });
  const peer = await node.peer();
  await peer.greet();
  peer.events(entry(1));
  await until(() => client.seen.events.length, "the handler");
  for (let round = 1; round <= 3; round += 1) {
    await clock.advance(20_000);
    const { ref } = await peer.frame("ping", round);
    peer.send({ op: "pong", ref });
    peer.send({ op: "text", run: "r", stream: "a", offset: round - 1, text: `${round}` });
    await until(() => client.seen.log.includes(`${round}`), "the answer");
  }
  assert.equal(client.state, "catching_up");
});

// ---- tokens

test("a refused token is fetched anew; a second refusal in a row is final", async () => {
  let calls = 0;
  const client = connect({ token: async () => `jwt${++calls}` });
  const peer = await node.peer();
  assert.equal((await peer.frame("hello")).token, "jwt1");
  peer.socket.close(4501, "expired");
  const second = await reconnected(client, 2);
  assert.equal((await second.greet()).token, "jwt2");
  await reach(client, "catching_up");
  second.socket.close(4004, "expired");
  const third = await reconnected(client, 3);
  assert.equal((await third.frame("hello")).token, "jwt3");
  third.socket.close(4501);
  const fourth = await reconnected(client, 4);
  assert.equal((await fourth.frame("hello")).token, "jwt4");
  fourth.socket.close(4501);
  await reach(client, "closed");
  assert.deepEqual(client.seen.errors.map((error) => error.code), ["unauthenticated"]);
});

test("a token that is good is not fetched again by a reconnect", async () => {
  let calls = 0;
  const client = connect({ token: () => `jwt${++calls}` });
  const peer = await node.peer();
  await peer.greet({ token_expires_ms: clock.now() + 3_600_000 });
  await reach(client, "catching_up");
  peer.socket.terminate();
  assert.equal((await (await reconnected(client, 2)).frame("hello")).token, "jwt1");
});

test("a token is refreshed on the live socket before it expires", async () => {
  let calls = 0;
  const client = connect({ token: async () => `jwt${++calls}` });
  const peer = await node.peer();
  await peer.greet({ token_expires_ms: clock.now() + 100_000, heartbeat_ms: 10_000_000 });
  await reach(client, "catching_up");
  await clock.advance(70_000);
  assert.deepEqual(await peer.frame("refresh"), { op: "refresh", token: "jwt2" });
  peer.send({ op: "refreshed", token_expires_ms: clock.now() + 100_000 });
  peer.events(entry(1));
  await until(() => client.seen.events.length, "the event behind the answer");
  await clock.advance(70_000);
  assert.equal((await peer.frame("refresh", 2)).token, "jwt3");
  assert.equal(node.peers.length, 1);
});

test("a goaway because of the token makes the next connection bring a new one", async () => {
  let calls = 0;
  const client = connect({ token: () => `jwt${++calls}` });
  const peer = await node.peer();
  await peer.greet();
  await reach(client, "catching_up");
  peer.send({ op: "goaway", reason: "token_expiring", reconnect_after_ms: 500 });
  peer.socket.close(4001);
  assert.equal((await (await reconnected(client, 2)).frame("hello")).token, "jwt2");
});

test("a token callback that fails is asked again and reported", async () => {
  let calls = 0;
  const client = connect({
    token: async () => {
      calls += 1;
      if (calls < 3) throw new Error("offline");
      return "jwt";
    },
  });
  for (const failures of [1, 2]) {
    await until(() => client.seen.errors.length === failures && client.state === "waiting", `failure ${failures}`);
    await clock.advance(client.seen.details.at(-1).waitMs);
  }
  const peer = await node.peer();
  assert.equal((await peer.frame("hello")).token, "jwt");
  assert.deepEqual(client.seen.errors.map((error) => [error.code, error.retryable]),
    [["token_failed", true], ["token_failed", true]]);
});

// ---- later levels, commands, filters

test("displayed and confirm follow the handler, and are repeated on the next connection until they are stored", async () => {
  const client = connect({ onEvent: (event) => event.id === "e1" && client.displayed(event) });
  const peer = await node.peer();
  await peer.greet();
  peer.events(entry(1), entry(2));
  await until(() => peer.all("ack").length === 2, "both levels");
  assert.deepEqual(peer.all("ack").map(({ level, ids }) => [level, ids]),
    [[undefined, ["1000-1", "1000-2"]], ["displayed", ["1000-1"]]]);
  client.confirm({ id: "e2" }, "Ann signed");
  const confirmed = await peer.frame("ack", 3);
  assert.deepEqual([confirmed.level, confirmed.ids, confirmed.note], ["confirmed", ["1000-2"], "Ann signed"]);
  peer.send({ op: "acked", ref: peer.all("ack")[1].ref, count: 0 });
  peer.events(entry(3));
  await until(() => client.seen.events.length === 3, "the event behind the answer");
  peer.socket.terminate();
  const again = await reconnected(client, 2);
  await again.greet({ resumed: true });
  assert.deepEqual(await again.frame("ack"), confirmed);
  assert.throws(() => client.displayed({ id: "unknown" }), { code: "unknown_event" });
  assert.throws(() => client.confirm({ id: "e2" }, "x".repeat(257)), TypeError);
});

test("a new filter is sent, and carried by the next hello", async () => {
  const client = connect({ filter: { types: ["a"] } });
  const peer = await node.peer();
  assert.deepEqual((await peer.greet()).filter, { types: ["a"] });
  await reach(client, "catching_up");
  const done = client.filter({ types: ["b"] });
  const { ref, filter } = await peer.frame("filter");
  assert.deepEqual(filter, { types: ["b"] });
  peer.send({ op: "filtered", ref });
  await done;
  const byReconnect = client.filter();
  peer.socket.terminate();
  const again = await reconnected(client, 2);
  assert.deepEqual((await again.greet()).filter, {});
  await byReconnect;
});

test("a filter that is set between the hello and its welcome is sent after that", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.frame("hello");
  let isSet = false;
  client.filter({ threads: ["t1"] }).then(() => (isSet = true));
  await peer.greet();
  const { ref, filter } = await peer.frame("filter");
  assert.deepEqual([filter, isSet], [{ threads: ["t1"] }, false]);
  peer.send({ op: "filtered", ref });
  await until(() => isSet, "the answer");
});

test("an error frame is reported, and one about a filter rejects it", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  peer.send({ op: "error", code: "rate_limited", message: "later" });
  await until(() => client.seen.errors.length, "the error");
  peer.send({ op: "error", code: "unknown_op", message: "no such op" });
  peer.send({ op: "pong" });
  await until(() => client.seen.errors.length === 2, "the second");
  assert.deepEqual(client.seen.errors.map(({ code, message, retryable }) => [code, message, retryable]),
    [["rate_limited", "later", true], ["unknown_op", "no such op", false]]);
  const refused = client.filter({ types: ["unknown"] });
  peer.send({ op: "error", code: "bad_frame", message: "types", ref: (await peer.frame("filter")).ref });
  await assert.rejects(refused, { code: "bad_frame" });
  peer.socket.terminate();
  assert.equal((await (await reconnected(client, 2)).frame("hello")).filter, undefined, "a refused filter is not kept");
});

test("an error frame and the close that follows are one error, and retryable says whether the client goes on", async () => {
  const tokens = ["old", "new"];
  const client = connect({ token: async () => tokens.shift() });
  let peer = await node.peer();
  await peer.frame("hello");
  peer.send({ op: "error", code: "unauthenticated", message: "expired" });
  peer.socket.close(4501, "expired");
  peer = await reconnected(client, 2);
  assert.equal((await peer.frame("hello")).token, "new");
  assert.deepEqual(client.seen.errors, [], "a new token is asked for without a word");
  peer.send({ op: "error", code: "store_misconfigured", message: "no rights" });
  peer.socket.close(4005, "no rights");
  peer = await reconnected(client, 3);
  await peer.greet();
  peer.send({ op: "error", code: "bad_frame", message: "ids" });
  peer.socket.close(4500, "ids");
  await reach(client, "closed");
  assert.deepEqual(client.seen.errors.map(({ code, retryable }) => [code, retryable]),
    [["store_misconfigured", true], ["protocol_violation", false]]);
  assert.equal(client.seen.errors[1].cause.code, "bad_frame");
});

test("an error that no close and no frame follows is told soon", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  peer.send({ op: "error", code: "unknown_op", message: "no such op" });
  await until(() => clock.due(1_000), "it is held");
  assert.deepEqual(client.seen.errors, []);
  await clock.advance(1_000);
  assert.equal(client.seen.errors[0].code, "unknown_op");
});

// ---- robustness and the end

test("frames of later versions are passed over; what is no frame ends the connection", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  peer.send({ op: "toString" });
  peer.send({ op: "brand_new", x: 1 });
  peer.events(entry(1));
  await peer.acks("1000-1");
  assert.equal(client.seen.errors.length, 0);
  peer.socket.send("{");
  await reach(client, "waiting");
  assert.deepEqual(client.seen.errors.map((error) => error.code), ["bad_frame"]);
  const again = await reconnected(client, 2);
  again.socket.send("null");
  await reach(client, "waiting");
});

test("a callback that fails is reported and stops nothing", async () => {
  const client = connect({
    onGap: async () => {
      throw new Error("reload failed");
    },
    onState: () => {
      throw new Error("no page");
    },
  });
  const peer = await node.peer();
  await peer.greet();
  peer.send({ op: "gap", reason: "trimmed" });
  peer.events(entry(1));
  await peer.acks("1000-1");
  assert.ok(client.seen.errors.length >= 4);
  assert.ok(client.seen.errors.every((error) => error.code === "callback_failed"));
});

test("close flushes the acks, closes with 1000, and calls no handler any more", async () => {
  let closing;
  const client = connect({
    onEvent: (event) => {
      if (event.id === "e2") closing = client.close(); // inside a handler: e1's ack still waits for its turn
    },
  });
  const peer = await node.peer();
  await peer.greet();
  peer.events(entry(1), entry(2), entry(3));
  await until(() => closing, "the close");
  assert.equal(client.state, "closed");
  await closing;
  await until(() => peer.closed, "the close at the node");
  assert.equal(peer.closed.code, 1000);
  assert.deepEqual(peer.acked, ["1000-1"]);
  assert.deepEqual(client.seen.events, ["e1", "e2"]);
  assert.equal(client.seen.states.at(-1), "closed");
  assert.equal(client.close(), client.close());
});

test("close ends a waiting client, and does not wait for a dead peer", async () => {
  const client = connect();
  (await node.peer()).socket.terminate();
  await reach(client, "waiting");
  await client.close();
  assert.equal(clock.pending, 0);
  const deaf = connect({
    WebSocket: class {
      readyState = 1;
      send() {}
      close() {}
    },
  });
  await turn();
  const closed = deaf.close();
  await clock.advance(2_000);
  await closed;
});

test("wrong options are refused when the client is made", () => {
  const good = { onEvent() {}, WebSocket };
  for (const bad of [
    { onEvent: undefined }, { WebSocket: 1 }, { token: 5 }, { session: "a b" }, { start: "now" }, { start: "cursor" },
    { start: "new", cursor: "1-1" }, { cursor: "1" }, { window: 0 }, { window: 1025 }, { failedEvents: "drop" },
    { filter: 5 }, { filter: ["note"] }, { filter: { type: ["note"] } }, { filter: { types: "note" } }, { filter: { types: ["A note"] } },
    { filter: { runs: Array(257).fill("r") } }, { nackDelayMs: -1 }, { nackDelayMs: 3_600_001 }, { nackDelayMs: 0.5 },
    { onGap: 5 }, { onState: "f" }, { onError: {} }, { onDropped: 1 }, { onReleased: 1 }, { onText: 1 },
  ]) {
    assert.throws(() => new EventBusClient(node.url, { ...good, ...bad }), TypeError, JSON.stringify(bad));
  }
  assert.throws(() => new EventBusClient("nowhere", good), TypeError);
});

test("a filter that the node would close the connection for is refused, and the one before stays", async () => {
  const client = connect({ filter: { types: ["note"] } });
  for (const bad of [5, null, { types: "note" }, { types: ["A note"] }, { kinds: ["note"] }]) {
    await assert.rejects(client.filter(bad), TypeError, JSON.stringify(bad));
  }
  assert.deepEqual((await (await node.peer()).frame("hello")).filter, { types: ["note"] });
});
