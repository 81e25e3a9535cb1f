/** A scripted node, time that stands, and clients that note all that happens to them: fresh for each test of a file. */
import assert from "node:assert/strict";
import { afterEach, beforeEach } from "node:test";
import WebSocket from "ws";
import { EventBusClient } from "../eventbus-client.js";
import { ManualClock, until } from "./clocks.js";
import { ScriptedNode } from "./scripted-node.js";

/** What a test works with: `node`, `clock`, `connect(options)`. Made anew before each test, and ended after it. */
export function parts() {
  const made = { connect: (options) => connect(made, options) };
  beforeEach(async () => {
    made.node = await ScriptedNode.start();
    made.clock = new ManualClock();
    made.clients = [];
  });
  afterEach(async () => {
    await Promise.all(made.clients.map((client) => client.close()));
    assert.equal(made.clock.pending, 0, "no timer outlives its client");
    await made.node.stop();
  });
  return made;
}

/** A client that notes everything that happens to it, in `seen`. */
function connect({ node, clock, clients }, options = {}) {
  const seen = { events: [], metas: [], states: [], details: [], errors: [], gaps: [], texts: [], released: [], log: [] };
  const client = new EventBusClient(node.url, {
    token: "jwt",
    WebSocket,
    clock,
    random: () => 0.5,
    onGap: (gap) => void (seen.gaps.push(gap), seen.log.push(`gap ${gap.reason}`)),
    onState: (state, detail) => void (seen.states.push(state), seen.details.push(detail)),
    onError: (error) => void seen.errors.push(error),
    onText: (part) => void seen.texts.push(part),
    onReleased: (ids) => void seen.released.push(ids),
    ...options,
    onEvent: (event, meta) => {
      seen.events.push(event.id);
      seen.metas.push(meta);
      seen.log.push(event.id);
      return options.onEvent?.(event, meta);
    },
  });
  clients.push(client);
  return Object.assign(client, { seen });
}

export const reach = (client, state) => until(() => client.state === state, `state ${state}`);

/** Lets the wait before a reconnect pass and gives the connection that comes of it. */
export async function reconnected({ node, clock }, client, number) {
  await reach(client, "waiting");
  await clock.advance(client.seen.details.at(-1).waitMs);
  return node.peer(number);
}
