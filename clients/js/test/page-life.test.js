import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { turn, until } from "../support/clocks.js";
import { parts, reach, reconnected } from "../support/connecting.js";
import { FakePage } from "../support/page.js";
import { entry } from "../support/scripted-node.js";

let node;
let clock;
let page;
const all = parts();

beforeEach(() => {
  ({ node, clock } = all);
  page = new FakePage();
});

const connect = (options) => all.connect({ page, ...options });

/** A client on its first connection. */
async function welcomed(options) {
  const client = connect(options);
  const peer = await node.peer();
  await peer.greet();
  await reach(client, "catching_up");
  return { client, peer };
}

for (const [away, fields, back] of [["freeze", {}, "resume"], ["pagehide", { persisted: true }, "pageshow"]]) {
  test(`a page that stands still after ${away} holds no session: nothing is delivered to it and times out (R7)`, async () => {
    const { client, peer } = await welcomed();
    peer.events(entry(1));
    await until(() => client.seen.events.length, "the event");
    page.happens(away, fields);
    await until(() => peer.closed, "the close at the node");
    assert.equal(peer.closed.code, 1000);
    assert.deepEqual(peer.acked, ["1000-1"], "what was handled is acked on the way out");
    assert.equal(client.state, "waiting");
    page.happens(back, fields);
    await clock.advance(1_000);
    const second = await node.peer(2);
    assert.equal((await second.greet({ resumed: true })).session, "s1");
    second.events(entry(1, { delivery: 2 }), entry(2));
    await second.acks("1000-1", "1000-2");
    assert.deepEqual(client.seen.events, ["e1", "e2"]);
    assert.deepEqual(client.seen.errors, []);
  });
}

test("a page that goes marks its stored session as free, and one that is back as its own", async () => {
  const kept = new Map();
  const storage = { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value), removeItem() {} };
  const inUse = () => JSON.parse(kept.get("bus")).inUse;
  const { client } = await welcomed({ storage, storageKey: "bus" });
  assert.ok(inUse());
  page.happens("pagehide", { persisted: true });
  assert.ok(!inUse());
  page.happens("pageshow", { persisted: true });
  await clock.advance(1_000);
  await (await node.peer(2)).greet({ resumed: true });
  await reach(client, "catching_up");
  assert.ok(inUse());
});

test("a page that was to go and is still there connects again by itself", async () => {
  const { client, peer } = await welcomed();
  page.happens("pagehide", { persisted: false });
  await until(() => peer.closed, "the close at the node");
  await clock.advance(9_999);
  assert.equal(client.state, "waiting");
  await clock.advance(1);
  assert.equal((await (await node.peer(2)).frame("hello")).session, "s1");
});

for (const [what, happens] of [["is shown", () => page.show()], ["has a network again", () => page.happens("online")]]) {
  test(`a page that ${what} does not sit out a long wait`, async () => {
    const { client } = await welcomed();
    for (let number = 1; number <= 7; number += 1) {
      const peer = await node.peer(number);
      peer.socket.terminate();
      await until(() => client.seen.states.filter((state) => state === "waiting").length === number, `wait ${number}`);
      if (number < 7) await clock.advance(client.seen.details.at(-1).waitMs);
    }
    assert.equal(client.seen.details.at(-1).waitMs, 7_500);
    happens();
    await clock.advance(500); // the generator of these tests gives one half, of a second
    assert.equal((await (await node.peer(8)).frame("hello")).session, "s1");
  });
}

test("a page that is shown keeps to the time that a goaway gave it", async () => {
  const { client, peer } = await welcomed();
  await clock.advance(6_000);
  peer.send({ op: "goaway", reason: "draining", reconnect_after_ms: 7_000 });
  peer.socket.close(4001, "draining");
  await reach(client, "waiting");
  page.show();
  await clock.advance(6_999);
  assert.equal(client.state, "waiting");
  await clock.advance(1);
  await node.peer(2);
});

test("a node that was silent is asked as soon as the page is back, once, and given up in 10 s", async () => {
  const { client, peer } = await welcomed();
  page.show();
  await clock.advance(1_001);
  assert.equal(peer.all("ping").length, 0, "it was heard a moment ago");
  page.show();
  page.happens("online");
  await clock.advance(9_000);
  page.show();
  await clock.advance(999);
  assert.equal(client.state, "catching_up");
  await clock.advance(1);
  assert.equal(client.state, "waiting");
  await until(() => peer.closed, "the close at the node");
  assert.equal(peer.all("ping").length, 1);
  await reconnected(all, client, 2);
});

test("what waits to be acked goes out when the page is hidden, whose timers may come a minute late", async () => {
  const { client, peer } = await welcomed();
  for (let number = 1; number <= 30; number += 1) {
    peer.events(entry(number));
    await until(() => client.seen.events.length === number, `event ${number}`);
    await turn();
  }
  await turn();
  assert.ok(peer.acked.length < 30, "acks of a stream wait for each other");
  page.hide();
  await peer.acks(...Array(30));
});

test("a client that has ended listens to its page no more", async () => {
  const { client } = await welcomed();
  assert.ok(page.listening > 0);
  await client.close();
  assert.equal(page.listening, 0);
  connect({ connect: false }).close();
  assert.equal(page.listening, 0);
});
