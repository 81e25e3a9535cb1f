import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { Commands } from "../eventbus-client.js";
import { turn, until } from "../support/clocks.js";
import { parts, reach, reconnected } from "../support/connecting.js";
import { ScriptedNode } from "../support/scripted-node.js";

let node;
let clock;
const all = parts();
const { connect } = all;

beforeEach(() => ({ node, clock } = all));

const sent = (peer, ref, id = "5-1") => peer.send({ op: "sent", ref, id });

/** What became of a promise, as far as it has come. */
function outcome(promise) {
  const result = { state: "waiting" };
  promise.then((value) => Object.assign(result, { state: "stored", value }), (error) => Object.assign(result, { state: "failed", error }));
  return result;
}

test("a command resolves with its id once the node has stored it, and not before (R20)", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  const stored = client.send("rename", { title: "A" }, { run: "run_1", thread: "t1" });
  const result = outcome(stored);
  const { ref, ...frame } = await peer.frame("send");
  assert.deepEqual(frame, { op: "send", type: "rename", data: { title: "A" }, run: "run_1", thread: "t1" });
  assert.equal(result.state, "waiting");
  sent(peer, ref);
  assert.equal(await stored, "5-1");
});

test("cancel, answer and message are commands of these types", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  await reach(client, "catching_up");
  const stored = [client.cancel("run_1", "changed my mind"), client.cancel("run_2"), client.answer("q1", "yes"),
    client.answer("q2", { seat: 4 }, { run: "run_1" }), client.message("hello", { thread: "t1" })];
  await peer.frame("send", 5);
  assert.deepEqual(peer.all("send").map(({ op, ref, ...rest }) => rest), [
    { type: "cancel", data: { reason: "changed my mind" }, run: "run_1" },
    { type: "cancel", data: {}, run: "run_2" },
    { type: "answer", data: { question: "q1", answer: "yes" } },
    { type: "answer", data: { question: "q2", answer: { seat: 4 } }, run: "run_1" },
    { type: "message", data: { text: "hello" }, thread: "t1" },
  ]);
  for (const { ref } of peer.all("send")) sent(peer, ref, ref);
  assert.equal(new Set(await Promise.all(stored)).size, 5);
});

test("a command that no answer came for goes out again under its ref, as it was when it was given", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  await reach(client, "catching_up");
  const data = { text: "first" };
  const stored = client.send("message", data);
  const first = await peer.frame("send");
  data.text = "changed";
  peer.socket.terminate();
  const again = await reconnected(all, client, 2);
  await again.greet({ resumed: true });
  assert.deepEqual(await again.frame("send"), first);
  sent(again, first.ref);
  assert.equal(await stored, "5-1");
  again.socket.terminate();
  const third = await reconnected(all, client, 3);
  await third.greet({ resumed: true });
  third.events({ id: "1-1", delivery: 1, event: { id: "e1", type: "a", user: "ann", time_ms: 1, data: {} } });
  await third.acks("1-1");
  assert.equal(third.all("send").length, 0, "what is stored is not sent again");
});

test("a command given without a connection waits for one, and they keep their order", async () => {
  const client = connect();
  const results = [1, 2, 3].map((number) => client.message(`${number}`));
  const peer = await node.peer();
  await peer.greet();
  await peer.frame("send", 3);
  assert.deepEqual(peer.all("send").map(({ data }) => data.text), ["1", "2", "3"]);
  for (const { ref, data } of peer.all("send")) sent(peer, ref, data.text);
  assert.deepEqual(await Promise.all(results), ["1", "2", "3"]);
});

test("refs differ between clients, for a session outlives its page and the node would take one for a repetition", async () => {
  const refs = new Set();
  for (const number of [1, 2, 3]) {
    const client = connect({ session: "s1" });
    const peer = await node.peer(number);
    await peer.greet();
    const stored = client.message("hello");
    const { ref } = await peer.frame("send");
    assert.ok(ref.length <= 64);
    refs.add(ref);
    sent(peer, ref);
    await stored;
    await client.close();
  }
  assert.equal(refs.size, 3);
});

test("an error rejects the command that it names; one that may pass is tried again instead", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  const refused = client.answer("q1", "maybe");
  const { ref } = await peer.frame("send");
  peer.send({ op: "error", code: "already_answered", message: "another device was first", ref });
  await assert.rejects(refused, { name: "EventBusError", code: "already_answered", retryable: false });
  const stored = client.cancel("run_1");
  const first = await peer.frame("send", 2);
  for (const count of [3, 4]) {
    peer.send({ op: "error", code: "store_unavailable", message: "later", ref: first.ref });
    await until(() => clock.due(2_000), "the wait");
    await turn();
    await clock.advance(2_000);
    assert.deepEqual(await peer.frame("send", count), first);
  }
  sent(peer, first.ref);
  assert.equal(await stored, "5-1");
  assert.deepEqual(client.seen.errors, [], "who sent it is told, and nobody else");
});

test("a command is given up when its time is over, connected or not, with the error that was last in the way", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  await reach(client, "catching_up");
  const unanswered = outcome(client.cancel("run_1"));
  const { ref } = await peer.frame("send");
  peer.send({ op: "error", code: "store_unavailable", message: "later", ref });
  await until(() => clock.due(500), "the wait");
  peer.socket.terminate();
  await reach(client, "waiting");
  await node.stop();
  const offline = outcome(client.send("cancel", {}, { timeoutMs: 90_000 }));
  await clock.advance(59_000);
  assert.equal(unanswered.state, "waiting");
  await clock.advance(1_000);
  await until(() => unanswered.state === "failed", "the end of the first");
  assert.deepEqual([unanswered.error.code, unanswered.error.retryable, unanswered.error.cause.code], ["send_timeout", true, "store_unavailable"]);
  assert.equal(offline.state, "waiting");
  await clock.advance(30_000);
  await until(() => offline.state === "failed", "the end of the second");
  all.node = await ScriptedNode.start();
});

test("at the end of the client its commands are rejected, by a close of the node with that", async () => {
  const closed = connect();
  const waiting = outcome(closed.cancel("run_1"));
  await closed.close();
  await until(() => waiting.state === "failed", "the end");
  assert.deepEqual([waiting.error.code, waiting.error.retryable], ["closed", false]);
  await assert.rejects(closed.cancel("run_1"), { code: "closed" });

  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  const lost = outcome(client.cancel("run_1"));
  await peer.frame("send");
  peer.socket.close(4506, "ended");
  await until(() => lost.state === "failed", "the end");
  assert.equal(lost.error.code, "session_ended");
});

test("what the node would close the connection for is refused here, and what is too large is not sent", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet({ max_frame_bytes: 300 });
  await reach(client, "catching_up");
  for (const [type, data, to] of [["Cancel", {}], ["", {}], ["a", []], ["a", null], ["a", "text"], ["a", {}, { run: "a b" }],
    ["a", {}, { thread: "" }], ["a", {}, { timeoutMs: 0 }], ["a", {}, { timeoutMs: 1e9 }]]) {
    await assert.rejects(client.send(type, data, to), TypeError, JSON.stringify([type, data, to]));
  }
  await assert.rejects(client.message("ü".repeat(150)), { code: "too_large", retryable: false });
  assert.equal(peer.all("send").length, 0);
});

test("commands that wait are bounded", async () => {
  const client = connect();
  const waiting = Array.from({ length: 256 }, () => outcome(client.cancel("run_1")));
  await assert.rejects(client.cancel("run_1"), { code: "too_many_commands", retryable: true });
  assert.ok(waiting.every(({ state }) => state === "waiting"));
});

test("commands go ahead of confirmations and both stay below the lowest tier's frame rate", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  await reach(client, "catching_up");
  const results = Array.from({ length: 150 }, (_, number) => outcome(client.message(`${number}`)));
  await until(() => clock.due(100), "the pace");
  assert.equal(results.length, 150);
  await peer.frame("send", 100);
  assert.equal(peer.all("send").length, 100);
  await clock.advance(1_000);
  await until(() => peer.all("send").length >= 114, "the next second's");
  assert.ok(peer.all("send").length <= 116);
});

test("a later level that the node could not store is sent again on the same connection (R11)", async () => {
  const client = connect({ onEvent: (event) => client.displayed(event) });
  const peer = await node.peer();
  await peer.greet();
  peer.events({ id: "1-1", delivery: 1, event: { id: "e1", type: "a", user: "ann", time_ms: 1, data: {} } });
  const displayed = await peer.frame("ack", 2);
  peer.send({ op: "error", code: "store_unavailable", message: "later", ref: displayed.ref });
  await until(() => client.seen.errors.length, "the report");
  await clock.advance(5_000);
  assert.deepEqual(await peer.frame("ack", 3), displayed);
  peer.send({ op: "acked", ref: displayed.ref, count: 0 });
  peer.socket.terminate();
  const again = await reconnected(all, client, 2);
  await again.greet({ resumed: true });
  client.confirm({ id: "e1" });
  await again.frame("ack");
  assert.deepEqual(again.all("ack").map(({ level }) => level), ["confirmed"], "what is stored is not sent again");
});

test("the next command to send is the first that is not under way and need not wait", () => {
  const commands = new Commands();
  for (const ref of ["a", "b"]) commands.add(ref, { endMs: 1_000 });
  assert.equal(commands.ready(0).ref, "a");
  commands.ready(0).sent = true;
  assert.equal(commands.ready(0).ref, "b");
  assert.ok(commands.refused("a", new Error("later"), 0, () => 0.5));
  commands.ready(0).sent = true;
  assert.equal(commands.ready(0), undefined);
  assert.equal(commands.dueMs(0), 375);
  assert.equal(commands.dueMs(375), 1_000, "one that only lacks a connection makes nobody look again and again");
  assert.equal(commands.ready(375).ref, "a");
  commands.disconnected();
  assert.equal(commands.ready(374).ref, "b", "a connection takes no wait away");
  assert.deepEqual(commands.overdue(1_000).map(({ ref }) => ref), ["a", "b"]);
  assert.equal(commands.dueMs(0), Infinity);
  assert.equal(commands.refused("a", new Error("later"), 0, () => 0), false);
});

test("a text that was cut in the middle of a character is sent; a number that JSON rounds is refused before", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  const stored = client.message("so \ud83d");
  const { ref, data } = await peer.frame("send");
  assert.deepEqual(data, { text: "so \ufffd" });
  sent(peer, ref);
  await stored;
  await assert.rejects(client.send("rename", { n: 2 ** 60 }), TypeError);
  await assert.rejects(client.send("rename", { toJSON: () => "no object" }), TypeError);
  assert.equal(peer.all("send").length, 1);
});
