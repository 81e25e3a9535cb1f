import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { turn, until } from "../support/clocks.js";
import { parts } from "../support/connecting.js";
import { entry } from "../support/scripted-node.js";

let node;
let clock;
const all = parts();
const { connect } = all;

beforeEach(() => ({ node, clock } = all));

const entries = (count, from = 1) => Array.from({ length: count }, (_, index) => entry(from + index));

test("a burst of 5,000 events, whose handlers end one by one, is acked in less than a frame for 70 of them", async () => {
  const client = connect({ onEvent: turn });
  const peer = await node.peer();
  await peer.greet();
  const [events, window] = [5_000, 256];
  let acked = 0;
  peer.socket.on("message", (data) => (acked += JSON.parse(data).ids?.length ?? 0));
  for (let sent = 0; sent < events; ) {
    const room = Math.min(events, acked + window) - sent;
    peer.events(...entries(room, sent + 1));
    sent += room;
    // No time passes: only what releases half of the window may go out beyond the first few.
    await until(() => sent === events || acked + window > sent, "room in the window", 20_000);
  }
  await until(() => client.cursor === `1000-${events}`, "the end of the last handler", 20_000);
  await until(() => clock.due(70) || acked === events, "the last acks wait");
  await clock.advance(70);
  await until(() => acked === events, "all acks");
  const frames = peer.all("ack").length;
  assert.ok(frames <= 70, `${frames} frames`);
  assert.equal(new Set(peer.acked).size, events);
});

test("a lone event is acked at once, and so is what follows it slowly", async () => {
  const client = connect();
  const peer = await node.peer();
  await peer.greet();
  for (let number = 1; number <= 40; number += 1) {
    peer.events(entry(number));
    await peer.acks(...Array(number));
    assert.equal(client.seen.events.length, number);
    await clock.advance(70);
  }
  assert.equal(peer.all("ack").length, 40);
});

test("acks that wait for each other hold up no nack, no confirmation and no command", async () => {
  const client = connect({
    onEvent: (event) => {
      if (event.id === "e31") throw new Error("not this one");
    },
  });
  const peer = await node.peer();
  await peer.greet();
  for (let number = 1; number <= 30; number += 1) {
    peer.events(entry(number));
    await until(() => client.seen.events.length === number, `event ${number}`);
    await turn();
  }
  client.message("now").catch(() => {});
  await peer.frame("send");
  peer.events(entry(31));
  await peer.frame("nack");
  client.displayed({ id: "e1" });
  await until(() => peer.all("ack").some(({ level }) => level === "displayed"), "the confirmation");
  await clock.advance(70);
  await peer.acks(...Array(30));
});

test("acks, confirmations and `working` name no more entries than the node takes in a frame", async () => {
  let release;
  const held = new Promise((resolve) => (release = resolve));
  const client = connect({ onEvent: (event) => (event.id === "e201" ? held : client.displayed(event)) });
  const peer = await node.peer();
  await peer.greet({ max_frame_bytes: 1_024, ack_timeout_ms: 3_000 });
  peer.events(...entries(200));
  await peer.acks(...Array(200));
  await until(() => peer.all("ack").filter(({ level }) => level === "displayed").flatMap(({ ids }) => ids).length === 200, "all levels");
  peer.events(...entries(50, 201));
  await until(() => client.seen.events.length === 201, "the handler");
  await clock.advance(1_000);
  await until(() => peer.all("working").flatMap(({ ids }) => ids).length === 50, "all that is held");
  release();
  await clock.advance(100);
  await peer.acks(...Array(250));
  const longest = Math.max(...peer.frames.map((frame) => JSON.stringify(frame).length));
  assert.ok(longest <= 1_024, `${longest} bytes`);
});

test("a reason that was cut in the middle of a character is no frame that ends the session", async () => {
  connect({
    onEvent: () => {
      throw new Error(`${"x".repeat(255)}😀`);
    },
  });
  const peer = await node.peer();
  await peer.greet();
  peer.events(entry(1));
  assert.equal((await peer.frame("nack")).reason, `${"x".repeat(255)}\ufffd`);
});
