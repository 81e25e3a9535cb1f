import assert from "node:assert/strict";
import { test } from "node:test";
import WebSocket from "ws";
import { compareEntries, EventBusClient } from "../eventbus-client.js";
import { seeded, turn, until } from "../support/clocks.js";
import { CuttingNode } from "../support/scripted-node.js";

const SEED = Number(process.env.EVENTBUS_TEST_SEED ?? 20_261_121);
const CUTS = Number(process.env.EVENTBUS_TEST_CUTS ?? 1_000);

/**
 * Publishes while the connection is cut a thousand times at random points: before and after a welcome, a read, a send,
 * an ack, and with the end of the stream lost and sent again under other entry ids.
 */
async function survive({ failing, rollbacks }) {
  const random = seeded(SEED);
  const node = await CuttingNode.start({ random, maxCuts: CUTS, cutChance: 0.05 });
  const handled = [];
  const failedOnce = new Set();
  let stale = 0;
  node.onHello = ({ cursor }, entries) => {
    if (cursor === undefined) return;
    const done = new Set(handled);
    if (entries.some(({ id, event }) => compareEntries(id, cursor) <= 0 && !done.has(event.id))) stale += 1;
  };
  const client = new EventBusClient(node.url, {
    token: "jwt",
    WebSocket,
    random: () => random() * 0.0003, // waits of at most 5 ms
    onError: (error) => assert.equal(error.code, "handler_failed"),
    onEvent: async (event) => {
      if (random() < 0.3) await turn();
      if (failing && !failedOnce.has(event.id) && random() < 0.1) {
        failedOnce.add(event.id);
        throw new Error("once");
      }
      handled.push(event.id);
    },
  });
  try {
    while (node.cuts < CUTS) {
      if (node.published.length - new Set(handled).size < 500) node.publish(1 + Math.floor(random() * 20));
      if (rollbacks && random() < 0.05) node.rollBack(1 + Math.floor(random() * 10));
      const cuts = node.cuts;
      await until(() => node.cuts > cuts || node.settled, "progress", 10_000);
    }
    node.publish(50);
    await until(() => node.settled && new Set(handled).size === node.published.length, "everything handled and acked", 20_000);
  } finally {
    await client.close();
    await node.stop();
  }
  const note = `EVENTBUS_TEST_SEED=${SEED}`;
  assert.ok(node.cuts >= CUTS && node.published.length > CUTS, note);
  assert.equal(stale, 0, `a cursor stood above an unhandled event, ${note}`);
  assert.equal(new Set(handled).size, handled.length, `an event was handled twice, ${note}`);
  return { node, handled, note };
}

test("a thousand random cuts: every event exactly once, in order, and acked (R8)", async () => {
  const { node, handled, note } = await survive({ failing: false, rollbacks: false });
  assert.deepEqual(handled, node.published, note);
  assert.ok(node.hellos.length > CUTS / 2);
});

test("a thousand cuts with rollbacks: what is stored again under other ids is handed over once (R8, D5)", async () => {
  const { node, handled, note } = await survive({ failing: false, rollbacks: true });
  assert.deepEqual(handled, node.published, note);
});

test("a thousand cuts with failing handlers: every event succeeds exactly once", async () => {
  const { node, handled, note } = await survive({ failing: true, rollbacks: false });
  assert.deepEqual([...handled].sort(), [...node.published].sort(), note);
});
