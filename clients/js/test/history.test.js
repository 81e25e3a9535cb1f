import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { historyCovers, requestUrl } from "../eventbus-client.js";
import { until } from "../support/clocks.js";
import { parts, reach } from "../support/connecting.js";

let node;
let clock;
const all = parts();
const { connect } = all;

beforeEach(() => ({ node, clock } = all));

/** Answers of a node in their order, each `{status?, headers?, body}`, a function, or an error; and what was asked. */
function answering(...answers) {
  const asked = [];
  const fetch = async (url, { headers, signal }) => {
    asked.push({ path: url.slice(url.indexOf("/v1")), authorization: headers.authorization });
    const answer = answers[asked.length - 1] ?? answers.at(-1);
    if (answer instanceof Error) throw answer;
    if (answer === "never") return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    return new Response(JSON.stringify(answer.body), { status: answer.status ?? 200, headers: answer.headers });
  };
  return { fetch, asked };
}

const page = (ids, more = {}) => ({ body: { events: ids.map((id) => ({ id, event: { id: `e${id}` } })), cursor: ids.at(-1) ?? "0-0", ...more } });
const later = { status: 503, headers: { "retry-after": "2" }, body: { error: { code: "store_unavailable", message: "later" } } };

test("requests go to the host of the socket, beside it", () => {
  assert.equal(requestUrl("wss://host/bus/v1/connect?ticket=a", "/v1/events", { cursor: "1-1", run: undefined, limit: 5 }),
    "https://host/bus/v1/events?cursor=1-1&limit=5");
  assert.equal(requestUrl("ws://host:81/v1/connect", "/v1/threads"), "http://host:81/v1/threads");
});

test("history is read page by page with the token, the first one by await alone (R26)", async () => {
  const { fetch, asked } = answering(page(["1-1", "1-2"], { next: "1-2" }), page(["1-3"]), page(["1-1"]));
  const client = connect({ fetch });
  await (await node.peer()).greet();
  const ids = [];
  for await (const { events } of client.history({ thread: "t 1", limit: 2 })) ids.push(...events.map(({ id }) => id));
  assert.deepEqual(ids, ["1-1", "1-2", "1-3"]);
  const { events, cursor, next } = await client.history();
  assert.deepEqual([events.length, cursor, next], [1, "1-1", undefined]);
  assert.deepEqual(asked, [
    { path: "/v1/events?limit=2&thread=t+1", authorization: "Bearer jwt" },
    { path: "/v1/events?cursor=1-2&limit=2&thread=t+1", authorization: "Bearer jwt" },
    { path: "/v1/events", authorization: "Bearer jwt" },
  ]);
});

test("threads and presence are asked for in the same way", async () => {
  const { fetch, asked } = answering({ body: { threads: [{ thread: "t2", last_ms: 9 }], next: "9" } },
    { body: { threads: [{ thread: "t1", last_ms: 8 }] } }, { body: { online: true, sessions: [{ session: "s1" }] } });
  const client = connect({ fetch });
  const threads = [];
  for await (const found of client.threads({ limit: 1 })) threads.push(...found.threads.map(({ thread }) => thread));
  assert.deepEqual(threads, ["t2", "t1"]);
  assert.deepEqual(await client.presence(), { online: true, sessions: [{ session: "s1" }] });
  assert.deepEqual(asked.map(({ path }) => path), ["/v1/threads?limit=1", "/v1/threads?limit=1&before=9", "/v1/presence"]);
});

test("a history read before the client connects is where its session begins", async () => {
  const { fetch } = answering(page(["1-1"], { next: "1-1" }), page(["1-2"]));
  const client = connect({ fetch, connect: false });
  assert.equal(client.state, "idle");
  for await (const _ of client.history());
  assert.equal(node.peers.length, 0);
  client.connect();
  client.connect();
  const hello = await (await node.peer()).greet();
  assert.deepEqual([hello.start, hello.cursor], ["cursor", "1-2"]);
  await reach(client, "catching_up");
  assert.equal(node.peers.length, 1);
});

test("a history that leaves out what the session wants is no place to begin at, nor one that is read later", async () => {
  assert.ok(historyCovers({}, { threads: ["t1"] }) && historyCovers({ thread: "t1" }, { threads: ["t1"], types: ["a"] }));
  for (const [wanted, filter] of [[{ thread: "t1" }], [{ thread: "t1" }, { threads: [] }], [{ thread: "t1" }, { threads: ["t1", "t2"] }],
    [{ thread: "t1", run: "r1" }, { threads: ["t1"] }], [{ type: "a" }, { types: ["b"] }]]) {
    assert.equal(historyCovers(wanted, filter), false, JSON.stringify([wanted, filter]));
  }
  const { fetch } = answering(page(["9-1"]));
  const narrow = connect({ fetch, connect: false });
  await narrow.history({ thread: "t1" });
  narrow.connect();
  assert.equal((await (await node.peer()).greet()).start, "earliest");
  await narrow.history();
  assert.equal(narrow.cursor, undefined);
});

test("a request is repeated when the node says that this helps, and not without end", async () => {
  const { fetch, asked } = answering(later, new TypeError("fetch failed"), page(["1-1"]), later);
  const client = connect({ fetch, connect: false });
  const read = client.history().then(({ events }) => events.length);
  await until(() => clock.due(2_000), "the wait that the node asked for");
  assert.ok(!clock.due(1_999));
  await clock.advance(2_000);
  await until(() => asked.length === 2 && clock.due(15_000), "the second");
  await until(() => clock.due(1_000), "its wait");
  await clock.advance(1_000);
  assert.equal(await read, 1);
  const failing = client.presence().then(() => "answered", (error) => [error.code, error.status, error.retryable]);
  for (const count of [4, 5, 6]) {
    await until(() => asked.length === count && clock.due(2_000), `attempt ${count}`);
    await clock.advance(2_000);
  }
  assert.deepEqual(await failing, ["store_unavailable", 503, true]);
  assert.equal(asked.length, 7);
});

test("a refused token is fetched anew, once; a wrong question is not repeated", async () => {
  const refused = { status: 401, body: { error: { code: "unauthenticated", message: "expired" } } };
  const wrong = { status: 400, body: { error: { code: "bad_request", message: "no number", field: "limit" } } };
  const { fetch, asked } = answering(refused, page([]), refused, refused, wrong, { status: 404, body: "no page" });
  let tokens = 0;
  const client = connect({ fetch, connect: false, token: async () => `jwt${++tokens}` });
  await client.history();
  assert.deepEqual(asked.map(({ authorization }) => authorization), ["Bearer jwt1", "Bearer jwt2"]);
  await assert.rejects(client.history().then(), { code: "unauthenticated", status: 401, retryable: false });
  await assert.rejects(client.history({ limit: -1 }).then(), { code: "bad_request", field: "limit" });
  await assert.rejects(client.presence(), { code: "http_404" });
  assert.equal(asked.length, 6);
});

test("requests and the socket that want a token at the same time fetch one", async () => {
  const { fetch } = answering(page([]));
  let calls = 0;
  const client = connect({ fetch, token: async () => `jwt${++calls}` });
  await Promise.all([client.history(), client.presence(), (await node.peer()).greet()]);
  assert.equal(calls, 1);
});

test("a node that never answers is given up, and a client that is closed does not wait", async () => {
  const { fetch, asked } = answering("never");
  const client = connect({ fetch, connect: false });
  let done = false;
  const given = client.history().then(() => "answered", (error) => ((done = true), error.code));
  let waitedMs = 0;
  for (; client.state === "idle" && !done; waitedMs += 500) await clock.advance(500);
  assert.ok(asked.length === 4 && waitedMs >= 60_000 && waitedMs < 65_000, `${asked.length} in ${waitedMs} ms`);
  assert.equal(await given, "request_failed");
  const open = client.presence().then(() => "answered", (error) => error.code);
  await until(() => asked.length === 5, "asked");
  await client.close();
  assert.equal(await open, "closed");
});
