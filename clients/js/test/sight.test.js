import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { Dwell, enoughInSight } from "../eventbus-client.js";
import { parts } from "../support/connecting.js";

let node;
const all = parts();
const { connect } = all;

beforeEach(() => ({ node } = all));

test("half of an element must be in sight, or half of the window full of it", () => {
  const [element, window] = [100, 1_000];
  assert.ok(enoughInSight(element, 50, window));
  assert.ok(!enoughInSight(element, 49, window));
  assert.ok(enoughInSight(20_000, 500, window), "a long one can never be in sight by half");
  assert.ok(!enoughInSight(20_000, 499, window));
  assert.ok(!enoughInSight(0, 0, window), "what has no area shows nothing");
  assert.ok(!enoughInSight(element, 0, 0));
});

test("an element is seen after a second in sight without a break", () => {
  const dwell = new Dwell();
  assert.equal(dwell.look(true, 0), false);
  assert.equal(dwell.look(true, 500), false);
  assert.equal(dwell.look(true, 999), false);
  assert.equal(dwell.look(true, 1_000), true);
});

test("a look away begins the second anew, and so does a time without looks", () => {
  const dwell = new Dwell();
  for (const nowMs of [0, 400, 800]) dwell.look(true, nowMs);
  dwell.look(false, 900);
  for (const nowMs of [950, 1_400, 1_900]) assert.equal(dwell.look(true, nowMs), false, `${nowMs}`);
  assert.equal(dwell.look(true, 1_950), true);
  const asleep = new Dwell();
  asleep.look(true, 0);
  assert.equal(asleep.look(true, 60_000), false, "nobody looked meanwhile");
  assert.equal(asleep.look(true, 60_900), false);
  assert.equal(asleep.look(true, 61_000), true);
});

test("what is no element is refused, for without one an event counts as displayed at once", async () => {
  const client = connect({ onEvent: (event) => assert.throws(() => client.displayed(event, null), TypeError) });
  const peer = await node.peer();
  await peer.greet();
  peer.events({ id: "1-1", delivery: 1, event: { id: "e1", type: "a", user: "ann", time_ms: 1, data: {} } });
  await peer.acks("1-1");
  assert.deepEqual(client.seen.errors, []);
  assert.throws(() => client.displayed({ id: "e1" }, {}), TypeError);
});
