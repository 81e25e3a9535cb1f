import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { SteadyTime, systemClock } from "../eventbus-client.js";
import { until } from "../support/clocks.js";
import { parts, reach, reconnected } from "../support/connecting.js";

let node;
let clock;
const all = parts();
const { connect } = all;

beforeEach(() => ({ node, clock } = all));

test("time goes on while the wall's clock is set back, and counts the sleep that a monotonic clock leaves out", () => {
  let [wallMs, monotonicMs] = [1_000_000, 0];
  const time = new SteadyTime(() => wallMs, () => monotonicMs);
  const pass = (ms) => {
    wallMs += ms;
    monotonicMs += ms;
    return time.now();
  };
  assert.equal(pass(100), 1_000_100);
  wallMs -= 3_600_000;
  assert.equal(pass(5_000), 1_005_100, "set back by an hour");
  assert.equal(pass(50), 1_005_150);
  wallMs += 600_000;
  assert.equal(pass(1_000), 1_606_150, "asleep for ten minutes");
  wallMs -= 200;
  assert.equal(pass(1_000), 1_606_950, "a small correction is followed");
});

test("the system's clock tells the time of day, and a time that is near it", () => {
  assert.ok(Math.abs(systemClock.wall() - Date.now()) < 1_000);
  assert.ok(Math.abs(systemClock.now() - Date.now()) < 1_000);
});

test("a token ends by the time of day, whatever the client's own time says", async () => {
  let calls = 0;
  const dayMs = 1_000_000;
  Object.assign(clock, { wall: () => dayMs });
  const client = connect({ token: () => `jwt${++calls}` });
  const peer = await node.peer();
  await peer.greet({ token_expires_ms: dayMs + 100_000, heartbeat_ms: 10_000_000 });
  await reach(client, "catching_up");
  await clock.advance(69_999);
  assert.equal(peer.all("refresh").length, 0);
  await clock.advance(1);
  assert.equal((await peer.frame("refresh")).token, "jwt2");
  peer.socket.terminate();
  assert.equal((await (await reconnected(all, client, 2)).frame("hello")).token, "jwt2", "it lives for 100 s by that day");
});

test("a token function that never ends is given up after 30 s, and asked again", async () => {
  let calls = 0;
  const client = connect({
    token: () => {
      calls += 1;
      return calls === 1 ? new Promise(() => {}) : "jwt";
    },
  });
  await until(() => calls === 1, "the function");
  await clock.advance(29_999);
  assert.equal(client.state, "connecting");
  await clock.advance(1);
  await reach(client, "waiting");
  assert.deepEqual(client.seen.errors.map(({ code, retryable }) => [code, retryable]), [["token_failed", true]]);
  await clock.advance(client.seen.details.at(-1).waitMs);
  assert.equal((await (await node.peer()).frame("hello")).token, "jwt");
});

test("a refresh whose token never comes leaves the connection alone, and is tried again", async () => {
  let calls = 0;
  const client = connect({ token: () => (++calls === 2 ? new Promise(() => {}) : `jwt${calls}`) });
  const peer = await node.peer();
  await peer.greet({ token_expires_ms: clock.now() + 600_000, heartbeat_ms: 10_000_000 });
  await reach(client, "catching_up");
  await clock.advance(480_000);
  assert.equal(calls, 2);
  await clock.advance(30_000);
  assert.equal(client.state, "catching_up");
  await clock.advance(90_000);
  assert.equal((await peer.frame("refresh")).token, "jwt3");
});

test("a token may end with a line, as a file does", async () => {
  for (const [number, token] of [["1", "jwt\n"], ["2", async () => " jwt\r\n"]]) {
    connect({ token });
    assert.equal((await (await node.peer(Number(number))).frame("hello")).token, "jwt");
  }
});

test("a client is closed while its token is still awaited", async () => {
  const client = connect({ token: () => new Promise(() => {}) });
  await until(() => clock.pending > 0, "the wait for the token");
  await client.close();
  assert.equal(clock.pending, 0);
  assert.deepEqual(client.seen.errors, []);
});

test("a command that was sent before a long sleep is not sent again after it: the node may know it no more", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  await reach(client, "catching_up");
  const stored = client.message("once");
  const late = assert.rejects(stored, { code: "send_timeout", retryable: true });
  await peer.frame("send");
  peer.socket.terminate();
  await reach(client, "waiting");
  clock.sleep(600_000);
  await clock.advance(client.seen.details.at(-1).waitMs);
  const second = await node.peer(2);
  await second.greet({ resumed: true });
  second.send({ op: "caught_up", cursor: "1-1" });
  await reach(client, "live");
  await client.close(); // whatever waits goes out
  await until(() => second.closed, "the close at the node");
  assert.equal(second.all("send").length, 0);
  await late;
});
