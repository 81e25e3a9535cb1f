/** A node whose every frame a test writes, and a store behind one for tests that cut connections at random. */

import { WebSocketServer } from "ws";
import { until } from "./clocks.js";

export const EPOCH = "epoch-1";

export function welcome(fields = {}) {
  return {
    op: "welcome", protocol: 1, node: "n1", connection: "k1", session: "s1", resumed: false, cursor: "0-0", pending: 0,
    window: 256, heartbeat_ms: 20_000, ack_timeout_ms: 30_000, max_frame_bytes: 65_536,
    token_expires_ms: 1_800_000_000_000, epoch: EPOCH, ...fields,
  };
}

export function entry(number, { delivery = 1, id = `1000-${number}`, eventId = `e${number}` } = {}) {
  const event = { id: eventId, type: "step", user: "ann", time_ms: 1, data: { number } };
  return { id, delivery, event };
}

/** One connection as the node sees it. */
export class Peer {
  frames = [];
  closed; // {code, reason} once the client has gone

  constructor(socket, request) {
    this.socket = socket;
    this.url = request.url;
    this.protocol = socket.protocol;
    socket.on("message", (data) => this.frames.push(JSON.parse(data)));
    socket.on("close", (code, reason) => (this.closed = { code, reason: String(reason) }));
  }

  send(frame) {
    this.socket.send(JSON.stringify(frame));
  }

  events(...entries) {
    this.send({ op: "events", events: entries });
  }

  all(op) {
    return this.frames.filter((frame) => frame.op === op);
  }

  /** All ids acked so far, in order. */
  get acked() {
    return this.all("ack").filter((frame) => frame.level === undefined).flatMap((frame) => frame.ids);
  }

  frame(op, count = 1) {
    return until(() => this.all(op)[count - 1], `frame ${count} of ${op}`);
  }

  async acks(...ids) {
    await until(() => this.acked.length >= ids.length, `acks of ${ids}`);
    return this.acked;
  }

  /** Answers the hello. */
  async greet(fields) {
    const hello = await this.frame("hello");
    this.send(welcome(fields));
    return hello;
  }
}

export class ScriptedNode {
  peers = [];

  static async start() {
    const node = new ScriptedNode();
    node.server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
    node.server.on("connection", (socket, request) => node.peers.push(new Peer(socket, request)));
    await new Promise((resolve) => node.server.once("listening", resolve));
    node.url = `ws://127.0.0.1:${node.server.address().port}`;
    return node;
  }

  peer(number = 1) {
    return until(() => this.peers[number - 1], `connection ${number}`);
  }

  async stop() {
    for (const { socket } of this.peers) socket.terminate();
    await new Promise((resolve) => this.server.close(resolve));
  }
}

/**
 * One user's stream and one session, with a node that loses connections. It does what the protocol asks of a node:
 * pending entries first, then new ones, never more than the window, and nothing twice on a connection unless nacked.
 */
export class CuttingNode {
  cuts = 0;
  hellos = [];
  published = []; // event ids in order
  #entries = []; // {id, event}
  #nextId = 1;
  #read = 0; // the group's position: index into #entries
  #pending = new Map(); // entry id -> {event, delivery}
  #rolledBack = false;
  #session;
  #peer;

  static async start(options) {
    const node = new CuttingNode();
    Object.assign(node, { window: 64, ...options });
    node.server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
    node.server.on("connection", (socket) => node.#connected(socket));
    await new Promise((resolve) => node.server.once("listening", resolve));
    node.url = `ws://127.0.0.1:${node.server.address().port}`;
    return node;
  }

  publish(count) {
    for (let i = 0; i < count; i += 1) {
      const number = this.published.length + 1;
      this.published.push(`e${number}`);
      this.#append({ id: `e${number}`, type: "step", user: "ann", time_ms: 1, data: { number } });
    }
    this.#fill();
  }

  /** A failover that loses the end of the stream; the publisher sends it again, under other entry ids. */
  rollBack(count) {
    const lost = this.#entries.splice(Math.max(0, this.#entries.length - count));
    for (const { id } of lost) this.#pending.delete(id);
    this.#read = Math.min(this.#read, this.#entries.length);
    this.#rolledBack = true;
    this.#cut();
    for (const { event } of lost) this.#append(event);
  }

  get settled() {
    return this.#read === this.#entries.length && this.#pending.size === 0;
  }

  get session() {
    return this.#session;
  }

  async stop() {
    this.#peer?.terminate();
    await new Promise((resolve) => this.server.close(resolve));
  }

  #batchSize() {
    return 1 + Math.floor(this.random() * 5);
  }

  #append(event) {
    this.#entries.push({ id: `1000-${this.#nextId}`, event });
    this.#nextId += 1;
  }

  #connected(socket) {
    this.#peer = socket;
    socket.window = undefined;
    socket.on("message", (data) => {
      if (socket === this.#peer) this.#received(socket, JSON.parse(data));
    });
  }

  #received(socket, frame) {
    if (frame.op === "hello") this.#attach(socket, frame);
    else if (frame.op === "ack") {
      if (this.#mayCut("before the ack")) return;
      for (const id of frame.ids) {
        this.#pending.delete(id);
        socket.window.delete(id);
      }
      this.#fill();
      this.#mayCut("after the ack");
    } else if (frame.op === "nack") {
      socket.window.delete(frame.id);
      const pending = this.#pending.get(frame.id);
      if (pending) this.#deliver(socket, [[frame.id, pending]]);
    }
  }

  #attach(socket, hello) {
    this.hellos.push(hello);
    this.onHello?.(hello, this.#entries);
    if (this.#mayCut("before the welcome")) return;
    const resumed = this.#session !== undefined;
    this.#session ??= "made-by-the-node";
    socket.window = new Set();
    socket.send(JSON.stringify(welcome({ session: this.#session, resumed, pending: this.#pending.size })));
    if (this.#rolledBack) {
      const after = this.#entries.at(-1)?.id;
      socket.send(JSON.stringify({ op: "gap", reason: "rollback", after }));
      this.#rolledBack = false;
    }
    if (this.#mayCut("after the welcome")) return;
    const pending = [...this.#pending];
    while (pending.length > 0) if (!this.#deliver(socket, pending.splice(0, this.#batchSize()))) return;
    socket.send(JSON.stringify({ op: "caught_up" }));
    this.#fill();
  }

  #fill() {
    const socket = this.#peer;
    if (!socket?.window) return;
    while (this.#read < this.#entries.length && socket.window.size < this.window) {
      const count = Math.min(this.#batchSize(), this.window - socket.window.size);
      const batch = this.#entries.slice(this.#read, this.#read + count);
      this.#read += batch.length;
      for (const { id, event } of batch) this.#pending.set(id, { event, delivery: 0 });
      if (!this.#deliver(socket, batch.map(({ id }) => [id, this.#pending.get(id)]))) return;
    }
  }

  /** False when the connection was cut instead, or behind it. */
  #deliver(socket, entries) {
    if (this.#mayCut("read, not sent")) return false;
    const events = entries.map(([id, pending]) => {
      pending.delivery += 1;
      socket.window.add(id);
      return { id, delivery: pending.delivery, event: pending.event };
    });
    socket.send(JSON.stringify({ op: "events", events }));
    return !this.#mayCut("sent");
  }

  #mayCut() {
    if (this.cuts >= this.maxCuts || this.random() >= this.cutChance) return false;
    this.#cut();
    return true;
  }

  /** Half of the cuts let what was written arrive, half lose it. */
  #cut() {
    this.cuts += 1;
    const socket = this.#peer;
    this.#peer = undefined;
    if (!socket) return;
    socket.window = undefined;
    if (this.random() < 0.5) socket.terminate();
    else socket.close(this.random() < 0.5 ? 4002 : 1012);
  }
}
