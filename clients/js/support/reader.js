/**
 * A reader of one user's events as a process: a client by its plan, and a line of JSON on stdout for all that it sees.
 *
 * The only argument is the plan: `{url, token | tokenUrl, options, speed?, failing?, handlerMs?}`. `speed` makes the client's
 * time run faster, `failing: [n...]` are the numbers whose handler fails the first time, `failingAlways` those that fail
 * each time, `handlerMs` is how long a handler takes. SIGTERM closes the client; the process then ends.
 */
import { writeSync } from "node:fs";
import { pathToFileURL } from "node:url";
import WebSocket from "ws";

const plan = JSON.parse(process.argv[2]);
const { EventBusClient } = await import(plan.module ?? pathToFileURL("clients/js/eventbus-client.js"));

const say = (what, fields = {}) => writeSync(1, `${JSON.stringify({ what, atMs: Date.now(), ...fields })}\n`);

/** A socket that tells what goes over it: the node allows so many frames a second, and tells no event twice. */
class WatchedSocket extends WebSocket {
  constructor(...address) {
    super(...address);
    this.on("message", (data) => {
      const { events, token, ...frame } = JSON.parse(data);
      say("got", { ...frame, events: events?.length });
    });
  }

  send(data) {
    const { op, ids, token, ...rest } = JSON.parse(data);
    say("sent", { op, ids: ids?.length, ...rest });
    super.send(data);
  }
}

function fastClock(speed) {
  const beginMs = Date.now();
  return {
    now: () => beginMs + (Date.now() - beginMs) * speed,
    setTimeout: (action, ms) => setTimeout(action, ms / speed),
    clearTimeout: (handle) => clearTimeout(handle),
    nextTurn: (action) => setImmediate(action),
  };
}

const failed = new Set();
let inHandler = 0;

const client = new EventBusClient(plan.url, {
  WebSocket: WatchedSocket,
  token: plan.token ?? (async () => {
    const response = await fetch(plan.tokenUrl, { method: "POST" });
    if (!response.ok) throw new Error(`${response.status}`);
    return response.text();
  }),
  ...(plan.speed ? { clock: fastClock(plan.speed) } : {}),
  ...plan.options,
  onEvent: async (event, meta) => {
    inHandler += 1;
    const { number } = event.data;
    const fails = plan.failingAlways?.includes(number) || (plan.failing?.includes(number) && !failed.has(number));
    failed.add(number);
    if (plan.handlerMs) await new Promise((resolve) => setTimeout(resolve, plan.handlerMs));
    say(fails ? "failed" : "event", { id: event.id, number, ...meta, inHandler });
    inHandler -= 1;
    if (fails) throw new Error(`no ${number}`);
    for (const level of plan.confirm ?? []) client[level](event);
  },
  onState: (state, detail) => say("state", { state, ...detail, session: client.session, cursor: client.cursor }),
  onGap: (gap) => say("gap", gap),
  onDropped: (dropped) => say("dropped", dropped),
  onError: ({ code, message, retryable, closeCode }) => say("error", { code, message, retryable, closeCode }),
});

process.once("SIGTERM", async () => {
  await client.close();
  say("ended");
});
