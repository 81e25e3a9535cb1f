import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { Texts } from "../eventbus-client.js";
import { seeded, until } from "../support/clocks.js";
import { parts, reach, reconnected } from "../support/connecting.js";

let node;
let clock;
const all = parts();
const { connect } = all;

beforeEach(() => ({ node, clock } = all));

const frame = (offset, text, more = {}) => ({ op: "text", run: "run_1", stream: "text", offset, text, ...more });

test("text is handed out as it comes, each character once, also over a reconnect (R19)", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  assert.equal(client.text("run_1"), undefined);
  peer.send(frame(0, "Hello"));
  peer.send(frame(5, ", wor"));
  await until(() => client.seen.texts.length === 2, "two parts");
  assert.equal(client.text("run_1"), "Hello, wor");
  peer.socket.terminate();
  const again = await reconnected(all, client, 2);
  await again.greet({ resumed: true });
  again.send(frame(0, "Hello, world"));
  again.send(frame(12, "!", { final: true }));
  again.send(frame(0, "Hello, world!", { final: true }));
  again.send({ ...frame(0, "other"), stream: "notes" });
  await until(() => client.seen.texts.length === 5, "the rest");
  assert.deepEqual(client.seen.texts.map(({ run, stream, offset, text, final }) => [run, stream, offset, text, final]), [
    ["run_1", "text", 0, "Hello", false], ["run_1", "text", 5, ", wor", false], ["run_1", "text", 10, "ld", false],
    ["run_1", "text", 12, "!", true], ["run_1", "notes", 0, "other", false],
  ]);
  assert.equal(client.text("run_1", "text"), "Hello, world!");
  assert.equal(client.text("run_1", "notes"), "other");
  assert.deepEqual(client.seen.errors, []);
});

test("the event with the whole text completes a stream that ended while the client was away (R19)", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  peer.send(frame(0, "Hello"));
  await until(() => client.seen.texts.length === 1, "the first part");
  peer.socket.terminate();
  const again = await reconnected(all, client, 2);
  await again.greet({ resumed: true });
  const event = { v: 1, id: "e1", type: "agent_text", user: "ann", time_ms: 1, run: "run_1", data: { stream: "text", text: "Hello, world" } };
  again.send({ op: "events", events: [{ id: "1000-1", delivery: 1, event }] });
  again.send(frame(5, ", world", { final: true }));
  await until(() => client.seen.events.length === 1, "the event");
  assert.deepEqual(client.seen.texts.map(({ offset, text, final }) => [offset, text, final]), [[0, "Hello", false], [5, ", world", true]]);
  assert.equal(client.text("run_1"), "Hello, world");
});

test("offsets count characters, not the units that JavaScript counts", () => {
  const texts = new Texts();
  assert.equal(texts.take(frame(0, "a😀"), 0).text, "a😀");
  assert.deepEqual([texts.take(frame(2, "b👍🏽"), 0).offset, texts.text("run_1", "text")], [2, "a😀b👍🏽"]);
  assert.deepEqual(texts.take(frame(1, "😀b👍🏽c"), 0), { run: "run_1", stream: "text", offset: 5, text: "c", final: false });
});

test("nothing behind a hole is handed out until a frame fits; one that stays is reported once", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet({ heartbeat_ms: 10_000_000 });
  peer.send(frame(0, "ab"));
  peer.send(frame(4, "ef"));
  await until(() => clock.due(10_000), "the hole is watched");
  await clock.advance(9_000);
  peer.send(frame(0, "abcdef"));
  await until(() => client.seen.texts.length === 2, "it is filled");
  await clock.advance(20_000);
  assert.deepEqual([client.text("run_1"), client.seen.errors], ["abcdef", []]);

  peer.send(frame(9, "j"));
  await until(() => clock.due(10_000), "the second hole is watched");
  await clock.advance(9_000);
  peer.socket.terminate();
  const again = await reconnected(all, client, 2);
  await again.greet({ resumed: true, heartbeat_ms: 10_000_000 });
  await reach(client, "catching_up");
  await clock.advance(9_999);
  assert.deepEqual(client.seen.errors, [], "a new connection has time to fill it");
  await clock.advance(1);
  assert.deepEqual(client.seen.errors.map(({ code, retryable }) => [code, retryable]), [["text_gap", true]]);
  again.send(frame(10, "k"));
  again.send(frame(6, "g"));
  await until(() => client.text("run_1") === "abcdefg", "what fits");
  await clock.advance(60_000);
  assert.equal(client.seen.errors.length, 1);
});

test("however a text is cut, repeated and overtaken, what is handed out is the text once", () => {
  const random = seeded(11);
  const whole = Array.from({ length: 400 }, (_, i) => ["a", "é", "😀", "字"][Math.floor(random() * 4)] + (i % 10));
  const characters = [...whole.join("")];
  for (let round = 0; round < 200; round += 1) {
    const texts = new Texts();
    let handedOut = "";
    let at = 0; // up to where the node has sent
    while (at < characters.length) {
      const from = random() < 0.1 ? 0 : Math.max(0, at - Math.floor(random() * 5));
      at = Math.min(characters.length, Math.max(at, from) + Math.floor(random() * 60));
      const part = frame(from, characters.slice(from, at).join(""), at === characters.length ? { final: true } : {});
      if (random() < 0.1) texts.take(frame(at + 3, "later"), 0);
      const taken = texts.take(part, 0);
      if (taken) {
        assert.equal(taken.offset, [...handedOut].length);
        handedOut += taken.text;
      }
      if (random() < 0.1) assert.equal(texts.take(part, 0), undefined, "a repetition has nothing new");
    }
    assert.equal(handedOut, characters.join(""));
    assert.equal(texts.text("run_1", "text"), handedOut);
  }
});

test("the texts that are kept are bounded: what has ended goes first", () => {
  const texts = new Texts();
  for (let i = 0; i < 128; i += 1) texts.take({ ...frame(0, `${i}`, { final: i === 5 }), run: `run_${i}` }, 0);
  texts.take({ ...frame(0, "new"), run: "run_new" }, 0);
  assert.deepEqual([texts.text("run_5", "text"), texts.text("run_0", "text"), texts.text("run_new", "text")], [undefined, "0", "new"]);
  texts.take({ ...frame(0, "newer"), run: "run_newer" }, 0);
  assert.equal(texts.text("run_0", "text"), undefined);
});
