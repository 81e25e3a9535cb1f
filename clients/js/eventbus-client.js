/**
 * The event bus in a browser or in Node: one plain ES module without dependencies.
 *
 * Each event is handed to the application once and in order, and acked after its handler has returned. The connection is
 * remade by itself, and the session goes on where it stood. The wire contract is docs/protocol.md of the project, the
 * guide for applications docs/javascript.md.
 *
 * One file, though a long one, because a page loads it without a build step. It reads from the small to the large: pure
 * decisions first (functions and classes that know no socket and no timer), then what looks at the page (other tabs, what
 * is on screen), then the client that wires them to a WebSocket. Exported beside EventBusClient and EventBusError is what
 * the tests look at; applications leave it alone.
 */

const SUBPROTOCOL = "eventbus.v1.json";
const CONNECT_PATH = "/v1/connect";

const WAIT_BASE_MS = 250;
const WAIT_MAX_MS = 15_000;
/** A connection that lived this long was a good one: the waits start small again. */
const STABLE_MS = 5_000;
const OPEN_TIMEOUT_MS = 15_000;
/** A node whose store is away holds a `hello` for up to 30 s before it gives up by itself. */
const WELCOME_TIMEOUT_MS = 40_000;
const PONG_TIMEOUT_MS = 10_000;
/** A timer later than this says that the page was busy, not that the node was silent. */
const LATE_MS = 1_000;
const CLOSE_TIMEOUT_MS = 2_000;
/** A page that was busy or frozen while it connected says `hello` too late; five times in a row is something else. */
const MAX_LATE_HELLOS = 5;
const TOKEN_MARGIN_MS = 5_000;
/** How long the application's function may take to give a token: a request that a sleeping laptop cut off may never end. */
const TOKEN_TIMEOUT_MS = 30_000;
/** A page that is back from its sleep, or its network, tries again within so long, and asks a node that was silent for longer. */
const BACK_MS = 1_000;
/** A page that was to be left, and for which the browser then did nothing more, connects again after so long. */
const ASIDE_MS = 10_000;
/** The wall's clock was set back when it lost so much against the monotonic one. */
const SET_BACK_MS = 1_000;
/** How long the browser's other tabs have to say that a session is theirs; asked only after a crash or a duplication. */
const TABS_ANSWER_MS = 250;
const MAX_TIMER_MS = 2 ** 31 - 1;

const SEEN_COUNT = 4_096;
const SEEN_MAX_COUNT = 262_144; // above 437 events a second the memory reaches back less than ten minutes
const SEEN_MS = 600_000;
const IDS_A_FRAME = 1_000;
const MAX_REASON_CHARACTERS = 256;
const MAX_UNANSWERED = 1_024;
const MAX_NOTE_CHARACTERS = 256;
/** An element counts as displayed when it was in sight for so long, looked at so often, with no longer pause between. */
const DISPLAYED_MS = 1_000;
const LOOK_MS = 200;
const BREAK_MS = 1_000;
/** Points a side of the grid at which an element is asked whether something covers it. */
const GRID = 4;
const FAINTEST_OPACITY = 0.1;
/** As many elements are watched as events are known; the oldest is given up for one more. */
const MAX_WATCHED = SEEN_COUNT;
/** A later level that the node could not store is sent again after up to 4 s, as long as the connection lasts. */
const CONFIRM_ATTEMPT = 4;
/** Most token streams whose text is kept, and how long a hole in one may stay before it is reported. */
const MAX_TEXTS = 128;
const TEXT_GAP_MS = 10_000;
const DEFAULT_STREAM = "text";
/** The node knows a command by its ref for at least two minutes: repeated within them, it is stored once. */
const COMMAND_TIMEOUT_MS = 60_000;
const MAX_COMMAND_TIMEOUT_MS = 110_000;
const MAX_COMMANDS = 256;
const MAX_FILTER_WORDS = 256;
const MAX_NACK_DELAY_MS = 3_600_000;
const HTTP_ATTEMPTS = 4;
const HTTP_TIMEOUT_MS = 15_000;
const MAX_RETRY_AFTER_MS = 10_000;
/** The lowest tier allows 20 frames a second and saves up 200: confirmations stay below both. */
const PACE_BURST = 100;
const PACE_PER_SECOND = 15;
/** What acks leave of the burst: in a stream of events they wait for each other, unless half a window waits to be released. */
const PACE_KEPT = 80;
const GATHER_MS = Math.ceil(1_000 / PACE_PER_SECOND);
const MAX_DATA_DEPTH = 64;
const MAX_INTEGER = 2 ** 53;

/** Codes of `error` frames after which the same request may be tried again. */
const RETRYABLE = new Set([
  "store_unavailable", "store_timeout", "store_busy", "store_full", "breaker_open", "rate_limited", "overloaded", "draining",
  "too_many_sessions",
]);

/** What goes wrong. `retryable`: the same thing may work later. */
export class EventBusError extends Error {
  constructor(code, message, { retryable = false, closeCode, cause, event, status, field } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "EventBusError";
    this.code = code;
    this.retryable = retryable;
    if (closeCode !== undefined) this.closeCode = closeCode;
    if (event !== undefined) this.event = event;
    if (status !== undefined) this.status = status;
    if (field !== undefined) this.field = field;
  }
}

const CLOSE_NAMES = {
  4001: "draining", 4002: "slow_consumer", 4003: "heartbeat_timeout", 4004: "token_expired", 4005: "store_unavailable",
  4006: "rate_limited", 4007: "overloaded", 4500: "protocol_violation", 4501: "unauthenticated", 4502: "forbidden",
  4503: "hello_timeout", 4504: "superseded", 4505: "frame_too_large", 4506: "session_ended",
};

// ---------------------------------------------------------------------------------------------------- pure decisions

/** The address of the socket: http becomes ws, a relative address is the page's, and `/v1/connect` is added. */
export function socketUrl(url, base = globalThis.location?.href) {
  const result = new URL(url, base);
  result.protocol = { "http:": "ws:", "https:": "wss:" }[result.protocol] ?? result.protocol;
  if (result.protocol !== "ws:" && result.protocol !== "wss:") throw new TypeError(`no address of a node: ${url}`);
  result.pathname = result.pathname.replace(/\/+$/, "");
  if (!result.pathname.endsWith(CONNECT_PATH)) result.pathname = result.pathname.replace(/\/+$/, "") + CONNECT_PATH;
  result.hash = "";
  return result.href;
}

/** The address of a request beside the socket: same host, same path before `/v1`, and the parameters that are given. */
export function requestUrl(socket, path, parameters = {}) {
  const result = new URL(socket);
  result.protocol = result.protocol === "wss:" ? "https:" : "http:";
  result.pathname = result.pathname.slice(0, -CONNECT_PATH.length) + path;
  result.search = "";
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== undefined) result.searchParams.set(name, value);
  }
  return result.href;
}

/** Whether a history of `wanted` has everything that `filter` lets through: a session may then begin behind it. */
export function historyCovers(wanted, filter = {}) {
  return Object.entries({ threads: wanted.thread, runs: wanted.run, types: wanted.type }).every(([key, value]) =>
    value === undefined || (filter[key]?.length > 0 && filter[key].every((one) => one === value)));
}

const isSession = (value) => typeof value === "string" && /^[A-Za-z0-9_-]{1,64}$/.test(value);

export const isEntry = (value) => typeof value === "string" && /^\d{1,20}-\d{1,20}$/.test(value);

/** Orders two entry ids `<ms>-<n>`: negative, zero or positive. Digits only, so a longer number is a larger one. */
export function compareEntries(a, b) {
  const [aMs, aN = "0"] = a.split("-");
  const [bMs, bN = "0"] = b.split("-");
  const compare = (x, y) => x.length - y.length || (x < y ? -1 : Number(x > y));
  return compare(aMs, bMs) || compare(aN, bN);
}

/** Full jitter: anything between nothing and a limit that doubles with each attempt in a row (the first is 0). */
export function backoffMs(attempt, random) {
  return Math.floor(random() * Math.min(WAIT_MAX_MS, WAIT_BASE_MS * 2 ** Math.min(attempt, 16)));
}

/**
 * What a close code asks for: `reconnect`, `new_token` (then reconnect) or `final`.
 * `refusals` counts the 4501 in a row, this one included; the second is final, for a fresh token was refused.
 * `lateHellos` counts the 4503 in a row, this one included; docs/decisions/0006-a-late-hello-is-tried-again.md.
 */
export function closeVerdict(code, { tokenCallback = false, refusals = 0, lateHellos = 0 } = {}) {
  if (code === 4503) return lateHellos < MAX_LATE_HELLOS ? "reconnect" : "final";
  if (code === 4501) return tokenCallback && refusals < 2 ? "new_token" : "final";
  if (code === 4004) return tokenCallback ? "new_token" : "reconnect";
  return code >= 4500 && code <= 4999 ? "final" : "reconnect";
}

/**
 * When to refresh a token that lives `lifeMs` more: at 80 % of it, or 30 s before its end when that is earlier.
 * Undefined when it seems to be over: then the two clocks disagree, and the node's word (4004) is waited for.
 */
export function refreshDelayMs(lifeMs) {
  if (!(lifeMs > 0)) return undefined;
  return Math.min(Math.max(Math.min(0.8 * lifeMs, Math.max(lifeMs - 30_000, lifeMs / 2)), 1_000), MAX_TIMER_MS);
}

/** How many entry ids a frame may name: each, with its quotes and comma, is at most 44 bytes. */
export function idsAFrame(maxFrameBytes = Infinity) {
  return Math.max(1, Math.min(IDS_A_FRAME, Math.floor((maxFrameBytes - 64) / 44)));
}

/**
 * A frame as JSON that is Unicode: half of a surrogate pair, as it is left where a text was cut in the middle of a character,
 * would be no frame to the node, and it would end the session. The half becomes U+FFFD.
 */
export function frameText(frame) {
  // Each escape in its turn, so that an escaped backslash before `ud83d` is not taken for the beginning of one.
  return JSON.stringify(frame).replace(/\\(?:u(d[89a-f][0-9a-f]{2})|.)/g, (escape, half) => (half ? "\ufffd" : escape));
}

/** Why a node would refuse the data of a command, which is JSON already; undefined when it would not. */
export function dataProblem(value, depth = 1, path = "data") {
  if (typeof value === "number" && Number.isInteger(value) && Math.abs(value) > MAX_INTEGER) {
    return `${path} is an integer beyond 2^53; send it as a string`;
  }
  if (typeof value !== "object" || value === null) return undefined;
  if (depth > MAX_DATA_DEPTH) return `data is nested more than ${MAX_DATA_DEPTH} deep`;
  for (const [key, member] of Object.entries(value)) {
    const problem = dataProblem(member, depth + 1, `${path}.${key}`);
    if (problem) return problem;
  }
  return undefined;
}

/** The `hello` frame. `known`: this session had a `welcome` before; a new one starts at the page's cursor or `earliest`. */
export function helloFrame({ token, session, start, cursor, epoch, window, filter, known }) {
  const frame = { op: "hello", token, session };
  if (!known) {
    frame.start = start ?? (cursor === undefined ? "earliest" : "cursor");
    if (frame.start === "cursor") frame.cursor = cursor;
  } else {
    if (cursor === undefined) frame.start = "earliest";
    else frame.cursor = cursor; // without `start` this means `start: cursor`
    frame.epoch = epoch;
  }
  return { ...frame, window, filter };
}

/**
 * The events handled lately, by event id: the last 4,096 and all of the last 10 minutes. Entry ids do not do: after a
 * failover an event may come again under another one.
 */
export class SeenEvents {
  #entries = new Map(); // event id -> {entry, atMs}, the oldest first

  has(eventId) {
    return this.#entries.has(eventId);
  }

  entryOf(eventId) {
    return this.#entries.get(eventId)?.entry;
  }

  add(eventId, entry, nowMs) {
    this.#entries.delete(eventId);
    this.#entries.set(eventId, { entry, atMs: nowMs });
    for (const [oldest, { atMs }] of this.#entries) {
      const count = this.#entries.size;
      if (count <= SEEN_COUNT || (count <= SEEN_MAX_COUNT && nowMs - atMs < SEEN_MS)) break;
      this.#entries.delete(oldest);
    }
  }

  get size() {
    return this.#entries.size;
  }
}

/**
 * The highest entry id up to which everything has been handled: not the newest seen, which would skip what still waits.
 * Each entry under way remembers the highest id that was there when it came; the oldest under way holds the cursor there.
 */
export class CursorTracker {
  #highest;
  #underWay = new Map(); // entry id -> the cursor while this is the oldest under way; in order of arrival

  constructor(cursor) {
    this.#highest = cursor;
  }

  get cursor() {
    for (const before of this.#underWay.values()) return before;
    return this.#highest;
  }

  arrived(entry) {
    if (!this.#underWay.has(entry)) this.#underWay.set(entry, this.#highest);
    this.#raise(entry);
  }

  /** Handled, or never to come again. */
  done(entry) {
    this.#underWay.delete(entry);
  }

  /** Everything up to this entry has been sent. */
  passed(entry) {
    this.#raise(entry);
  }

  /** The connection ended: the node sends all that is pending again, so only what is still held is under way. */
  rewind(held) {
    this.#highest = this.cursor;
    this.#underWay = new Map([...held].map((entry) => [entry, this.#highest]));
  }

  /** The store lost its end (`rollback`) or all (`reset`): ids may be lower from here on. */
  rebase(after) {
    this.#highest = after;
    for (const entry of this.#underWay.keys()) this.#underWay.set(entry, after);
  }

  #raise(entry) {
    if (this.#highest === undefined || compareEntries(entry, this.#highest) > 0) this.#highest = entry;
  }
}

/** A token bucket for the frames that confirm. */
export class Pacer {
  #tokens = PACE_BURST;
  #atMs;

  constructor(nowMs) {
    this.#atMs = nowMs;
  }

  /** Takes one frame's worth and returns 0, or returns how long to wait for it. `kept`: frames that this one must leave. */
  take(nowMs, kept = 0) {
    this.#tokens = Math.min(PACE_BURST, this.#tokens + (Math.max(0, nowMs - this.#atMs) * PACE_PER_SECOND) / 1000);
    this.#atMs = nowMs;
    if (this.#tokens < 1 + kept) return Math.ceil(((1 + kept - this.#tokens) * 1000) / PACE_PER_SECOND);
    this.#tokens -= 1;
    return 0;
  }
}

/** The confirmations of one turn, gathered into as few frames as can be. */
export class Outbox {
  /** How many entries a frame names, of which the node takes only so many bytes. */
  idsAFrame = IDS_A_FRAME;
  #received = [];
  #displayed = [];
  #frames = [];
  #unanswered = new Map(); // ref -> ack frame of a later level: sent again on the next connection until `acked`
  #newRef;

  constructor(newRef) {
    this.#newRef = newRef;
  }

  received(entries) {
    this.#received.push(...entries);
  }

  displayed(entry) {
    this.#displayed.push(entry);
    if (this.#displayed.length >= this.idsAFrame) this.#keepDisplayed(); // without a connection nobody else takes them
  }

  confirmed(entry, note) {
    this.#keep({ op: "ack", ids: [entry], level: "confirmed", ...(note === undefined ? {} : { note }) });
  }

  nack(id, reason, delayMs) {
    this.#frames.push({ op: "nack", id, reason, ...(delayMs === undefined ? {} : { delay_ms: delayMs }) });
  }

  answered(ref) {
    this.#unanswered.delete(ref);
  }

  /** The node could not store the frame with this ref: it is sent once more. */
  again(ref) {
    const frame = this.#unanswered.get(ref);
    if (frame !== undefined && !this.#frames.includes(frame)) this.#frames.push(frame);
  }

  awaits(ref) {
    return this.#unanswered.has(ref);
  }

  /** The connection ended. `received` and nacks are dropped: what they were for is delivered again, and acked then. */
  disconnected() {
    this.#received = [];
    this.#frames = [...this.#unanswered.values()];
  }

  /** The next frame to send, or undefined. `received` goes first: it releases. */
  next() {
    if (this.#received.length > 0) return { op: "ack", ids: this.#received.splice(0, this.idsAFrame) };
    if (this.#displayed.length > 0) this.#keepDisplayed();
    return this.#frames.shift();
  }

  get empty() {
    return this.#received.length + this.#displayed.length + this.#frames.length === 0;
  }

  /** How many entries wait to be released, and whether nothing else waits. */
  get acks() {
    return { count: this.#received.length, alone: this.#displayed.length + this.#frames.length === 0 };
  }

  #keepDisplayed() {
    this.#keep({ op: "ack", ids: this.#displayed.splice(0, this.idsAFrame), level: "displayed" });
  }

  #keep(frame) {
    frame.ref = this.#newRef();
    this.#unanswered.set(frame.ref, frame);
    if (this.#unanswered.size > MAX_UNANSWERED) {
      const oldest = this.#unanswered.values().next().value;
      this.#unanswered.delete(oldest.ref);
      if (this.#frames.includes(oldest)) this.#frames.splice(this.#frames.indexOf(oldest), 1);
    }
    this.#frames.push(frame);
  }
}

/**
 * The commands that the node has not stored yet, in order. Each keeps its ref over all connections, so that the node, which
 * may have stored it before a connection broke, stores it once.
 */
export class Commands {
  #waiting = new Map(); // ref -> command: {text, resolve, reject, endMs, readyMs, sent, attempts}

  /** `text` is the frame, `endMs` when it is given up. */
  add(ref, command) {
    this.#waiting.set(ref, { ref, sent: false, readyMs: 0, attempts: 0, ...command });
  }

  /** The first that is to be sent now, or undefined. None whose time is over: the node may know its ref no more. */
  ready(nowMs) {
    for (const command of this.#waiting.values()) {
      if (!command.sent && command.readyMs <= nowMs && nowMs < command.endMs) return command;
    }
    return undefined;
  }

  /** Takes the command out that the node answered for good; undefined when it is none of these. */
  answered(ref) {
    const command = this.#waiting.get(ref);
    this.#waiting.delete(ref);
    return command;
  }

  /** The node could not take it now: it is sent again later. False when it is none of these. */
  refused(ref, error, nowMs, random) {
    const command = this.#waiting.get(ref);
    if (command === undefined) return false;
    const readyMs = nowMs + WAIT_BASE_MS + backoffMs(command.attempts, random);
    Object.assign(command, { sent: false, attempts: command.attempts + 1, readyMs, error });
    return true;
  }

  disconnected() {
    for (const command of this.#waiting.values()) command.sent = false;
  }

  /** Takes those out whose time is over. */
  overdue(nowMs) {
    const over = [...this.#waiting.values()].filter(({ endMs }) => endMs <= nowMs);
    for (const { ref } of over) this.#waiting.delete(ref);
    return over;
  }

  /** Takes all out. */
  drain() {
    const all = [...this.#waiting.values()];
    this.#waiting.clear();
    return all;
  }

  /** When the next one ends its wait or is given up: Infinity when there is none. */
  dueMs(nowMs) {
    const due = ({ sent, readyMs, endMs }) => (sent || readyMs <= nowMs ? endMs : Math.min(readyMs, endMs));
    return Math.min(...[...this.#waiting.values()].map(due));
  }

  get size() {
    return this.#waiting.size;
  }
}

/** How many characters a text has. JavaScript counts UTF-16 units; offsets of token streams count Unicode code points. */
function codePoints(text) {
  let count = 0;
  for (const _ of text) count += 1;
  return count;
}

/** A text without its first `count` code points. */
function withoutFirst(text, count) {
  let at = 0;
  for (; count > 0 && at < text.length; count -= 1) at += text.codePointAt(at) > 0xffff ? 2 : 1;
  return text.slice(at);
}

/**
 * The token streams as far as they have come. A node sends everything so far at offset 0 when a connection begins, then what
 * follows: only what is new is handed out, and nothing behind a hole.
 */
export class Texts {
  #streams = new Map(); // `run stream` -> {run, stream, text, length, final, hole?: {toLength, sinceMs, reported}}

  /** Takes a frame; returns the part of it that is new, or undefined. */
  take({ run, stream, offset, text, final = false }, nowMs) {
    const known = this.#stream(run, stream);
    if (offset > known.length) {
      known.hole ??= { sinceMs: nowMs, toLength: 0, reported: false };
      known.hole.toLength = Math.max(known.hole.toLength, offset + codePoints(text));
      return undefined;
    }
    const fresh = withoutFirst(text, known.length - offset);
    if (known.final || (fresh === "" && !final)) return undefined;
    const part = { run, stream, offset: known.length, text: fresh, final };
    known.text += fresh;
    known.length += codePoints(fresh);
    known.final = final;
    if (known.length >= known.hole?.toLength || final) known.hole = undefined;
    return part;
  }

  /** The text so far; undefined when nothing of it is known. */
  text(run, stream) {
    const known = this.#streams.get(`${run} ${stream}`);
    return known && (known.length > 0 || known.final) ? known.text : undefined;
  }

  /** A new connection fills the holes, so they have time again. */
  connected(nowMs) {
    for (const { hole } of this.#streams.values()) if (hole) hole.sinceMs = nowMs;
  }

  /** The streams with a hole since at least `TEXT_GAP_MS`, each once. */
  torn(nowMs) {
    const isTorn = ({ hole }) => nowMs - hole.sinceMs >= TEXT_GAP_MS;
    const torn = this.#withHole().filter(isTorn);
    for (const { hole } of torn) hole.reported = true;
    return torn.map(({ run, stream, length }) => ({ run, stream, length }));
  }

  /** When the next hole has been there for too long: Infinity when there is none. */
  get dueMs() {
    return Math.min(...this.#withHole().map(({ hole }) => hole.sinceMs + TEXT_GAP_MS));
  }

  #withHole() {
    return [...this.#streams.values()].filter(({ hole }) => hole && !hole.reported);
  }

  #stream(run, stream) {
    const key = `${run} ${stream}`;
    let known = this.#streams.get(key);
    if (known === undefined) {
      if (this.#streams.size >= MAX_TEXTS) this.#forgetOne();
      known = { run, stream, text: "", length: 0, final: false };
      this.#streams.set(key, known);
    }
    return known;
  }

  /** The oldest that has ended; the oldest of all when none has. */
  #forgetOne() {
    const ended = [...this.#streams].find(([, { final }]) => final)?.[0];
    this.#streams.delete(ended ?? this.#streams.keys().next().value);
  }
}

/** Whether so much of an element is in sight that a user can be said to see it: half of it, or half of the window. */
export function enoughInSight(elementArea, visibleArea, windowArea) {
  return elementArea > 0 && visibleArea > 0 && visibleArea >= Math.min(elementArea, windowArea) / 2;
}

/** How long one element has been in sight without a break, from looks at it. */
export class Dwell {
  #sinceMs;
  #lastMs;

  /** Takes one look; returns whether it has been in sight for long enough. A long pause between two looks is a break. */
  look(inSight, nowMs) {
    if (!inSight || nowMs - this.#lastMs > BREAK_MS) this.#sinceMs = undefined;
    this.#lastMs = nowMs;
    if (!inSight) return false;
    this.#sinceMs ??= nowMs;
    return nowMs - this.#sinceMs >= DISPLAYED_MS;
  }
}

/**
 * What lies between the socket and the handlers: one handler at a time, in order, each event once.
 * The node keeps the window, so the queue is bounded by it. What was received before a connection ended stays queued, and
 * what the node sends again of it is merged by event id.
 */
export class Inbox {
  #queue = []; // functions, each one turn of a handler
  #held = new Map(); // event id -> item: queued or in handling
  #seen = new SeenEvents();
  #running = false;
  #stopped = false;
  #hooks;

  /** `hooks`: now(), handle(event, meta), handled(entries), failed(entry, error, event) -> true when it comes again. */
  constructor(tracker, hooks) {
    this.tracker = tracker;
    this.#hooks = hooks;
  }

  arrived(entries) {
    const nowMs = this.#hooks.now();
    for (const { id, delivery, event } of entries) this.#take(id, delivery, event, nowMs);
    this.#run();
  }

  /** Puts a turn of another handler behind the events that came before it. */
  inOrder(turn) {
    this.#queue.push(turn);
    this.#run();
  }

  /** These will not come again: what is queued of them is not handed over any more. */
  withdrawn(entries) {
    const gone = new Set(entries);
    for (const entry of gone) this.tracker.done(entry);
    const turns = new Set();
    for (const [eventId, item] of this.#held) {
      if (item.handling || !gone.has(item.entry)) continue;
      this.#held.delete(eventId);
      turns.add(item.turn);
    }
    // Behind a handler that never ends they would gather for ever.
    if (turns.size > 0) this.#queue = this.#queue.filter((turn) => !turns.has(turn));
  }

  disconnected() {
    this.tracker.rewind([...this.#held.values()].flatMap((item) => [...item.entries]));
    for (const item of this.#held.values()) item.onThisConnection = false;
  }

  /** Entries held for at least `ageMs` since they came or were last named here: the node is to go on waiting for them. */
  overdue(ageMs) {
    const nowMs = this.#hooks.now();
    const late = [...this.#held.values()].filter((item) => item.onThisConnection && nowMs - item.renewedMs >= ageMs);
    for (const item of late) item.renewedMs = nowMs;
    return late.map((item) => item.entry);
  }

  /** Runs `action(entry)` when the event's handler has succeeded: at once for a handled event. */
  whenHandled(eventId, action) {
    const item = this.#held.get(eventId);
    const entry = this.#seen.entryOf(eventId);
    if (item !== undefined) item.afterwards.push(action);
    else if (entry !== undefined) action(entry);
    else return false;
    return true;
  }

  stop() {
    this.#stopped = true;
    this.#queue = [];
  }

  get held() {
    return this.#held.size;
  }

  #take(entry, delivery, event, nowMs) {
    if (this.#seen.has(event.id)) {
      this.tracker.done(entry);
      this.tracker.passed(entry);
      this.#hooks.handled([entry]); // its ack was lost, or it was stored twice: acked again, not handed over
      return;
    }
    this.tracker.arrived(entry);
    const held = this.#held.get(event.id);
    if (held !== undefined) {
      held.entries.add(entry);
      Object.assign(held, { entry, delivery, renewedMs: nowMs, onThisConnection: true });
      return;
    }
    const item = {
      event, entry, delivery, entries: new Set([entry]), renewedMs: nowMs,
      onThisConnection: true, handling: false, afterwards: [],
    };
    this.#held.set(event.id, item);
    item.turn = () => this.#handOver(item);
    this.#queue.push(item.turn);
  }

  async #run() {
    if (this.#running) return;
    this.#running = true;
    while (!this.#stopped && this.#queue.length > 0) await this.#queue.shift()();
    this.#running = false;
  }

  async #handOver(item) {
    if (this.#held.get(item.event.id) !== item) return; // withdrawn while it was queued
    const { event, entry, delivery } = item;
    item.handling = true;
    let failure;
    try {
      await this.#hooks.handle(event, { entry, delivery, redelivered: delivery > 1 });
    } catch (error) {
      failure = { error };
    }
    this.#held.delete(event.id);
    // A failed event that comes again must not count as seen: it would be dropped then.
    if (failure && this.#hooks.failed(item.entry, failure.error, event)) return;
    this.#seen.add(event.id, item.entry, this.#hooks.now());
    for (const id of item.entries) this.tracker.done(id);
    this.#hooks.handled(item.entries);
    for (const action of item.afterwards) action(item.entry);
  }
}

// ---------------------------------------------------------------------------------------------------------- the page

/** Runs a function in the next macrotask. Not a timer where it can be helped: a hidden page's timers wait for a minute. */
function nextTurn(action) {
  if (typeof globalThis.setImmediate === "function") return void globalThis.setImmediate(action);
  const channel = new MessageChannel();
  channel.port1.onmessage = () => {
    channel.port1.close();
    action();
  };
  channel.port2.postMessage(null);
}

const WAITER = "onmessage = ({ data: { number, ms } }) => setTimeout(() => postMessage(number), ms);";

/**
 * Timers for a hidden page, whose own run but once a second, and later once a minute: a worker waits for them. Where the page's
 * policy allows no such worker (`worker-src blob:`), they are the page's own after all.
 */
export class HiddenTimers {
  #page;
  #refused = false;
  #waiting = new Map(); // number -> timer
  #number = 0;
  #worker;
  #address; // of the worker's text: one for all, for each would stay in memory, and a policy may be made but once

  constructor(page = globalThis) {
    this.#page = page;
  }

  get wanted() {
    return !this.#refused && this.#page.document?.visibilityState === "hidden" && this.#page.Worker !== undefined;
  }

  /** Returns the timer, for `clear`. */
  set(action, ms) {
    const timer = { number: (this.#number += 1), action, endMs: performance.now() + ms, handle: undefined };
    this.#waiting.set(timer.number, timer);
    try {
      this.#worker ??= this.#start();
      this.#worker.postMessage({ number: timer.number, ms });
    } catch {
      this.#refuse();
    }
    return timer;
  }

  clear(timer) {
    this.#waiting.delete(timer.number);
    globalThis.clearTimeout(timer.handle);
    this.#rest();
  }

  #start() {
    this.#address ??= this.#addressOfWaiter();
    const worker = new this.#page.Worker(this.#address);
    worker.onmessage = ({ data: number }) => this.#ring(this.#waiting.get(number));
    worker.onerror = () => this.#refuse();
    return worker;
  }

  #addressOfWaiter() {
    const address = URL.createObjectURL(new Blob([WAITER], { type: "text/javascript" }));
    const policy = this.#page.trustedTypes?.createPolicy("eventbus-client", { createScriptURL: (text) => text });
    return policy?.createScriptURL(address) ?? address;
  }

  #ring(timer) {
    if (!this.#waiting.delete(timer?.number)) return; // cleared meanwhile
    this.#rest();
    timer.action();
  }

  #refuse() {
    this.#refused = true;
    this.#worker?.terminate();
    for (const timer of this.#waiting.values()) {
      timer.handle = globalThis.setTimeout(() => this.#ring(timer), Math.max(0, timer.endMs - performance.now()));
    }
  }

  /** A page that is shown again needs no worker. */
  #rest() {
    if (this.#waiting.size > 0 || this.wanted) return;
    this.#worker?.terminate();
    this.#worker = undefined;
  }
}

/**
 * Time that does not run back: the wall's clock, which counts a machine's sleep, and what the monotonic one has passed
 * while somebody set the wall's back. A wait of seconds would else become one of hours.
 */
export class SteadyTime {
  #wall;
  #monotonic;
  #wallMs;
  #monotonicMs;
  #setBackMs = 0;

  constructor(wall = () => Date.now(), monotonic = () => performance.now()) {
    this.#wall = wall;
    this.#monotonic = monotonic;
    this.#wallMs = wall();
    this.#monotonicMs = monotonic();
  }

  now() {
    const [wallMs, monotonicMs] = [this.#wall(), this.#monotonic()];
    const lostMs = monotonicMs - this.#monotonicMs - (wallMs - this.#wallMs);
    if (lostMs > SET_BACK_MS) this.#setBackMs += Math.floor(lostMs);
    this.#wallMs = wallMs;
    this.#monotonicMs = monotonicMs;
    return wallMs + this.#setBackMs;
  }
}

const hiddenTimers = new HiddenTimers();
const steadyTime = new SteadyTime();

export const systemClock = {
  now: () => steadyTime.now(),
  wall: () => Date.now(),
  setTimeout: (action, ms) => (hiddenTimers.wanted ? hiddenTimers.set(action, ms) : globalThis.setTimeout(action, ms)),
  clearTimeout: (handle) => (handle?.action ? hiddenTimers.clear(handle) : globalThis.clearTimeout(handle)),
  nextTurn,
};

/** The page as a client sees it: whether it is hidden, and the events of its life, which all pass the window. */
export const browserPage = {
  get hidden() {
    return globalThis.document?.visibilityState === "hidden";
  },
  addEventListener: (type, listener) => globalThis.addEventListener?.(type, listener, { capture: true }),
  removeEventListener: (type, listener) => globalThis.removeEventListener?.(type, listener, { capture: true }),
};

/** The application's callbacks: none after the end, and the failure of one is reported and stops nothing. */
export class Callbacks {
  #options;
  #over;

  /** `over()` says whether the end has come. */
  constructor(options, over) {
    this.#options = options;
    this.#over = over;
  }

  call(name, argument) {
    if (!this.#over()) return this.last(name, argument);
  }

  /** Also at the end: the state `closed` is told. */
  async last(name, ...given) {
    try {
      await this.#options[name]?.(...given);
    } catch (cause) {
      this.report(new EventBusError("callback_failed", `a callback failed: ${cause?.message ?? cause}`, { cause }));
    }
  }

  report(error) {
    if (this.#over()) return;
    try {
      this.#options.onError(error);
    } catch (failure) {
      console.error(failure, error);
    }
  }
}

/**
 * Knows the sessions of the browser's other tabs. A duplicated tab begins with a copy of the first one's storage: without
 * asking, it would take the session away from it.
 */
class Tabs {
  #channel;
  #answered = () => {};

  /** `holds(session)` says whether it is in use here. */
  constructor(name, holds) {
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data: { asked, held } }) => {
      if (asked !== undefined && holds(asked)) this.#channel.postMessage({ held: asked });
      if (held !== undefined) this.#answered(held);
    };
  }

  /** Whether another tab has this session. */
  holdElsewhere(session, clock) {
    return new Promise((resolve) => {
      const timer = clock.setTimeout(() => resolve(false), TABS_ANSWER_MS);
      this.#answered = (held) => {
        if (held !== session) return;
        clock.clearTimeout(timer);
        resolve(true);
      };
      this.#channel.postMessage({ asked: session });
    });
  }

  close() {
    this.#channel.close();
  }
}

/** Whether a storage is the one that a browser copies for a duplicated tab. */
function isCopiedWithTab(storage) {
  try {
    return storage !== undefined && storage === globalThis.sessionStorage && typeof BroadcastChannel === "function";
  } catch {
    return false; // a page that may not even look at it
  }
}

/**
 * Knows which elements the user has seen: at least half of it (or half of the window filled by it), not covered, on a page
 * that is shown, for a second without a break. The browser says what is near (IntersectionObserver); whether it is covered
 * must be asked (elementFromPoint), again and again for the few elements that are near and not yet done.
 */
export class Screen {
  #clock;
  #observer;
  #watched = new Map(); // element -> {events: Map of event id -> action, dwell, near, clear, wasThere}
  #shown = new SeenEvents();
  #timer;
  #sweptMs;
  #visibility = () => this.#look();

  constructor(clock) {
    if (typeof globalThis.IntersectionObserver !== "function") throw new TypeError("no IntersectionObserver here");
    this.#clock = clock;
    // Where the browser can vouch by itself that nothing covers an element (Chromium can), asking is saved.
    const options = { threshold: [0, 0.01, 0.5, 1], trackVisibility: true, delay: 100 };
    this.#observer = new IntersectionObserver((entries) => this.#changed(entries), options);
    document.addEventListener("visibilitychange", this.#visibility);
  }

  /** Calls `action` once when the user has seen the element. One event is seen in the first of its elements. */
  watch(element, eventId, action) {
    if (this.#shown.has(eventId)) return;
    let watch = this.#watched.get(element);
    if (watch === undefined) {
      this.#sweep();
      watch = { events: new Map(), dwell: new Dwell(), near: false, clear: false, wasThere: element.isConnected };
      this.#watched.set(element, watch);
      if (this.#watched.size > MAX_WATCHED) this.#letGo(this.#watched.keys().next().value);
      this.#observer.observe(element);
    }
    if (!watch.events.has(eventId)) watch.events.set(eventId, action);
  }

  stop() {
    document.removeEventListener("visibilitychange", this.#visibility);
    this.#observer.disconnect();
    this.#watched.clear();
    this.#clock.clearTimeout(this.#timer);
  }

  get size() {
    return this.#watched.size;
  }

  #changed(entries) {
    for (const { target, isIntersecting, intersectionRatio, isVisible } of entries) {
      const watch = this.#watched.get(target);
      if (watch === undefined) continue;
      watch.near = isIntersecting;
      watch.clear = isVisible === true && intersectionRatio >= 0.5;
    }
    this.#look();
  }

  /** Looks at all that is near, and again a little later while there is any. */
  #look() {
    this.#clock.clearTimeout(this.#timer);
    this.#timer = undefined;
    const nowMs = this.#clock.now();
    const pageShown = document.visibilityState === "visible";
    let more = false;
    for (const [element, watch] of this.#watched) {
      if (this.#isGone(element, watch)) continue;
      const inSight = pageShown && watch.near && isInSight(element, watch.clear);
      if (watch.dwell.look(inSight, nowMs)) this.#wasSeen(element, watch, nowMs);
      else more ||= pageShown && watch.near;
    }
    if (more) this.#timer = this.#clock.setTimeout(() => this.#look(), LOOK_MS);
  }

  #wasSeen(element, { events }, nowMs) {
    this.#letGo(element);
    for (const [eventId, action] of events) {
      if (this.#shown.has(eventId)) continue; // in another element
      this.#shown.add(eventId, "", nowMs);
      action();
    }
  }

  /** An element that has left the document is let go; one that is not there yet is waited for. */
  #isGone(element, watch) {
    if (element.isConnected) watch.wasThere = true;
    else if (watch.wasThere) this.#letGo(element);
    return !element.isConnected;
  }

  /** What left the document while it was out of sight is not told by the browser: looked for now and then. */
  #sweep() {
    const nowMs = this.#clock.now();
    if (nowMs - this.#sweptMs < BREAK_MS) return;
    this.#sweptMs = nowMs;
    for (const [element, watch] of this.#watched) this.#isGone(element, watch);
  }

  #letGo(element) {
    this.#observer.unobserve(element);
    this.#watched.delete(element);
  }
}

/** Whether enough of the element is in the window, painted, and not under something else. */
function isInSight(element, isClear) {
  if (isInvisible(element)) return false;
  const { left, top, right, bottom, width, height } = element.getBoundingClientRect();
  const [windowWidth, windowHeight] = [globalThis.innerWidth, globalThis.innerHeight];
  const box = { left: Math.max(left, 0), top: Math.max(top, 0) };
  box.width = Math.min(right, windowWidth) - box.left;
  box.height = Math.min(bottom, windowHeight) - box.top;
  if (box.width <= 0 || box.height <= 0) return false;
  const share = isClear ? 1 : uncoveredShare(element, box);
  return enoughInSight(width * height, box.width * box.height * share, windowWidth * windowHeight);
}

/** Whether the element is invisible by its style or, by opacity, that of what it is in. */
function isInvisible(element) {
  let opacity = 1;
  const above = ({ parentNode }) => (parentNode instanceof ShadowRoot ? parentNode.host : parentNode);
  for (let at = element; at instanceof Element; at = above(at)) {
    const style = getComputedStyle(at);
    if (at === element && style.visibility !== "visible") return true;
    opacity *= Number(style.opacity);
    if (style.display === "none" || opacity < FAINTEST_OPACITY) return true;
  }
  return false;
}

/** The share of points of a box at which the element, or what is in it, is on top; from a grid over the box. */
function uncoveredShare(element, { left, top, width, height }) {
  const { pointerEvents, display } = getComputedStyle(element);
  // A pointer goes through such an element, and between the lines of such a one, to what it is in.
  const isPorous = pointerEvents === "none" || display === "inline";
  let uncovered = 0;
  for (let point = 0; point < GRID * GRID; point += 1) {
    const x = left + (width * ((point % GRID) + 0.5)) / GRID;
    const y = top + (height * (Math.floor(point / GRID) + 0.5)) / GRID;
    const onTop = element.getRootNode().elementFromPoint(x, y);
    if (onTop !== null && (element.contains(onTop) || (isPorous && onTop.contains(element)))) uncovered += 1;
  }
  return uncovered / (GRID * GRID);
}

// -------------------------------------------------------------------------------------------------------- the client

/** Pages of an answer: `await` gives the first one, `for await` all of them. */
class Pages {
  #read;
  #first;

  /** `read(next)` reads the page that `next` of the one before names; the first without. */
  constructor(read) {
    this.#read = read;
  }

  then(resolve, reject) {
    return (this.#first ??= this.#read()).then(resolve, reject);
  }

  async *[Symbol.asyncIterator]() {
    let page = await this;
    yield page;
    while (page.next !== undefined) yield (page = await this.#read(page.next));
  }
}

/** A word that no other client has: a command's ref must be its own in all lives of a session. */
function uniqueWord() {
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const PLACE = /^[A-Za-z0-9_.:-]{1,128}$/; // a thread's id, or a run's

/** Throws for what the node would close the connection for. */
function checkedCommand({ type, data, run, thread, timeoutMs }) {
  const isName = (name) => name === undefined || (typeof name === "string" && PLACE.test(name));
  const fail = (message) => {
    throw new TypeError(message);
  };
  if (typeof type !== "string" || !/^[a-z][a-z0-9_.]{0,63}$/.test(type)) fail("type must match [a-z][a-z0-9_.]{0,63}");
  if (typeof data !== "object" || data === null || Array.isArray(data)) fail("data must be an object");
  if (!isName(run)) fail("run must match [A-Za-z0-9_.:-]{1,128}");
  if (!isName(thread)) fail("thread must match [A-Za-z0-9_.:-]{1,128}");
  if (!(timeoutMs > 0 && timeoutMs <= MAX_COMMAND_TIMEOUT_MS)) {
    fail(`timeoutMs must be from 1 to ${MAX_COMMAND_TIMEOUT_MS}`);
  }
}

const CALLBACKS = ["onGap", "onState", "onError", "onDropped", "onReleased", "onText"];
const FILTER_WORDS = { types: /^[a-z][a-z0-9_.]{0,63}$/, threads: PLACE, runs: PLACE };

/** Throws for a filter that the node would close the connection for, or would take for another one than it is. */
function checkFilter(filter) {
  const fail = (message) => {
    throw new TypeError(message);
  };
  if (typeof filter !== "object" || filter === null || Array.isArray(filter)) {
    fail("filter must be an object {types?, threads?, runs?} of lists");
  }
  for (const [key, words] of Object.entries(filter)) {
    const form = Object.hasOwn(FILTER_WORDS, key) ? FILTER_WORDS[key] : fail(`filter.${key} is none of types, threads, runs`);
    if (words === undefined) continue;
    if (!Array.isArray(words) || words.length > MAX_FILTER_WORDS) {
      fail(`filter.${key} must be a list of at most ${MAX_FILTER_WORDS} strings`);
    }
    for (const word of words) if (typeof word !== "string" || !form.test(word)) fail(`filter.${key} must match ${form.source}`);
  }
}

function checkedOptions(options) {
  const { token, session, start, cursor, window = 256, onEvent, failedEvents = "redeliver", filter, nackDelayMs } = options;
  const WebSocket = options.WebSocket ?? globalThis.WebSocket;
  const fail = (message) => {
    throw new TypeError(message);
  };
  if (typeof onEvent !== "function") fail("onEvent must be a function");
  if (typeof WebSocket !== "function") fail("no WebSocket here: pass one as the option WebSocket");
  if (token !== undefined && typeof token !== "string" && typeof token !== "function") {
    fail("token must be a string or a function that returns a promise of one");
  }
  if (session !== undefined && !isSession(session)) fail("session must match [A-Za-z0-9_-]{1,64}");
  if (cursor !== undefined && !isEntry(cursor)) fail("cursor must be an entry id <ms>-<n>");
  if (start !== undefined && !["new", "earliest", "cursor"].includes(start)) {
    fail("start must be new, earliest or cursor");
  }
  if ((start === "cursor" && cursor === undefined) || (start && start !== "cursor" && cursor !== undefined)) {
    fail("start cursor and the option cursor go together");
  }
  if (!Number.isInteger(window) || window < 1 || window > 1024) fail("window must be an integer from 1 to 1024");
  if (!["redeliver", "skip"].includes(failedEvents)) fail("failedEvents must be redeliver or skip");
  if (filter !== undefined) checkFilter(filter);
  const isDelay = Number.isInteger(nackDelayMs) && nackDelayMs >= 0 && nackDelayMs <= MAX_NACK_DELAY_MS;
  if (nackDelayMs !== undefined && !isDelay) {
    fail(`nackDelayMs must be an integer from 0 to ${MAX_NACK_DELAY_MS}`);
  }
  for (const name of CALLBACKS) {
    if (typeof (options[name] ?? onEvent) !== "function") fail(`${name} must be a function`);
  }
  return { onError: (error) => console.error(error), ...options, WebSocket, window, failedEvents };
}

export class EventBusClient {
  #url;
  #callbacks;
  #options;
  #clock;
  #random;
  #state = "connecting";
  #closing; // the promise of close()
  #socket;
  #welcome; // the frame, while the connection has one
  #welcomedMs;
  #timers = new Map(); // name -> handle
  #wasStable = false;
  #attempts = 0;
  #comeBackMs; // a goaway's time, on our clock
  #token;
  #tokenExpiresMs = Infinity;
  #refusals = 0;
  #lateHellos = 0;
  #refusal; // an error of the node that a close may follow: the close tells what becomes of it
  #session;
  #epoch;
  #known = false; // this session had a welcome
  #filter;
  #filterWaiters = [];
  #refs = 0;
  #word = uniqueWord();
  #commands = new Commands();
  #texts = new Texts();
  #screen; // made for the first element that is watched
  #begun = false;
  #stored; // what the storage held, until the client connects
  #over = new AbortController(); // aborted at the end: nothing asks a node any more
  #tokenComing; // the promise of a token that is being fetched
  #inbox;
  #outbox = new Outbox(() => this.#newRef());
  #pacer;
  #flushing = false;
  #heard = false; // anything came since the last ping
  #heardMs = 0;
  #tabs;
  #inUse = true; // what the storage says of this session
  #page;
  #asked = false; // a ping waits for its answer
  #retryMs; // when the next attempt is due
  #nodeSaid = false; // whether that is the time of a goaway
  #listeners = {
    pagehide: () => this.#setAside("the page is left"),
    freeze: () => this.#setAside("the page is frozen"),
    pageshow: ({ persisted }) => persisted && this.#back(),
    resume: () => this.#back(),
    online: () => this.#back(),
    visibilitychange: () => (this.#page.hidden ? this.#flushSoon() : this.#back()),
  };

  /** Connects at once (callbacks begin after the constructor has returned). The options: docs/javascript.md. */
  constructor(url, options = {}) {
    this.#options = checkedOptions(options);
    this.#callbacks = new Callbacks(this.#options, () => this.#state === "closed");
    this.#url = socketUrl(url);
    this.#clock = options.clock ?? systemClock;
    this.#random = options.random ?? Math.random;
    this.#session = options.session;
    this.#filter = options.filter;
    this.#stored = this.#load();
    this.#inbox = new Inbox(new CursorTracker(this.#stored.cursor ?? options.cursor), {
      now: () => this.#clock.now(),
      handle: (event, meta) => this.#options.onEvent(event, meta),
      handled: (entries) => this.#acknowledge(entries),
      failed: (entry, error, event) => this.#handlerFailed(entry, error, event),
    });
    this.#page = options.page ?? browserPage;
    for (const [type, listener] of Object.entries(this.#listeners)) this.#page.addEventListener(type, listener);
    if (options.connect === false) this.#state = "idle";
    else this.connect();
  }

  /** With the option `connect: false`: connects. Nothing when it has been called before. */
  connect() {
    if (this.#begun || this.#state === "closed") return;
    this.#begun = true;
    if (this.#state === "idle") this.#state = "connecting";
    queueMicrotask(() => this.#begin(this.#stored));
  }

  /** `idle` (with `connect: false`), `connecting`, `open` (hello sent), `catching_up` (welcome came), `live`, `waiting` (to reconnect) or `closed`. */
  get state() {
    return this.#state;
  }

  /** The session id, once it is known. */
  get session() {
    return this.#session;
  }

  /** The highest entry id up to which every event has been handled. */
  get cursor() {
    return this.#inbox.tracker.cursor;
  }

  /** Sends the acks that wait, closes, and calls no handler any more. Resolves when the socket is closed. */
  close() {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  /**
   * Records that the user has seen this event. Sent after its handler has succeeded, and again until it is stored. With an
   * element: when that has been on screen, uncovered, for a second; watching ends then, or when it leaves the document.
   */
  displayed(event, element) {
    if (element === undefined) return this.#afterHandling(event, (entry) => this.#outbox.displayed(entry));
    if (typeof Element !== "function" || !(element instanceof Element)) {
      throw new TypeError("element must be an element of the page");
    }
    this.#screen ??= new Screen(this.#clock);
    this.#afterHandling(event, (entry) => {
      if (this.#state === "closed") return;
      this.#screen.watch(element, event.id, () => {
        this.#outbox.displayed(entry);
        this.#flushSoon();
      });
    });
  }

  /** Records that the user got the value, with a note of at most 256 characters. Sent as `displayed` is. */
  confirm(event, note) {
    if (note !== undefined && (typeof note !== "string" || [...note].length > MAX_NOTE_CHARACTERS)) {
      throw new TypeError(`note must be a string of at most ${MAX_NOTE_CHARACTERS} characters`);
    }
    this.#afterHandling(event, (entry) => this.#outbox.confirmed(entry, note));
  }

  /**
   * Sends a command to the agent; resolves with its id once it is stored. Kept over reconnects, and repeated under the same
   * ref when the node could not store it just then; given up after `timeoutMs`. `ref` is for who repeats a command of
   * another client of this session: a word of its own for each command.
   */
  async send(type, data = {}, { run, thread, timeoutMs = COMMAND_TIMEOUT_MS, ref } = {}) {
    checkedCommand({ type, data, run, thread, timeoutMs });
    ref ??= `${this.#word}-${this.#newRef()}`;
    if (this.#state === "closed") throw this.#closedError();
    if (this.#commands.size >= MAX_COMMANDS) {
      throw new EventBusError("too_many_commands", `${MAX_COMMANDS} commands wait to be stored already`, { retryable: true });
    }
    // As it is now, whatever is done to `data` later.
    const text = frameText({ op: "send", type, data, ref, run, thread });
    const plain = JSON.parse(text).data;
    if (typeof plain !== "object" || plain === null) throw new TypeError("data must be an object, also as JSON");
    const problem = dataProblem(plain);
    if (problem) throw new TypeError(problem);
    return new Promise((resolve, reject) => {
      this.#commands.add(ref, { text, resolve, reject, endMs: this.#clock.now() + timeoutMs });
      this.#watchCommands();
      this.#flushSoon();
    });
  }

  /** Asks the agent to stop a run. Resolves with the command's id when that is stored, not when the run has ended. */
  cancel(run, reason) {
    return this.send("cancel", reason === undefined ? {} : { reason }, { run });
  }

  /** Answers a question of an agent (`question` of its event `agent_question`). Rejected when another answer was first. */
  answer(question, answer, to) {
    return this.send("answer", { question, answer }, to);
  }

  /** Sends the user's words to the agent. */
  message(text, to) {
    return this.send("message", { text }, to);
  }

  /** Changes the filter from here on (undefined: everything). Resolves when the node has it, also by a reconnect. */
  filter(filter = {}) {
    try {
      checkFilter(filter);
    } catch (error) {
      return Promise.reject(error);
    }
    const ref = this.#newRef();
    const before = this.#filter;
    const done = new Promise((resolve, reject) => {
      if (this.#state === "closed") throw this.#closedError();
      if (this.#filterWaiters.length >= MAX_COMMANDS) {
        throw new EventBusError("too_many_filters", `${MAX_COMMANDS} filters wait for the node already`, { retryable: true });
      }
      this.#filterWaiters.push({ ref, resolve, reject });
    });
    this.#filter = filter;
    // A caller that does not look must not see an unhandled rejection; a refused filter must not go into a hello.
    done.catch(() => {
      if (this.#filter === filter) this.#filter = before;
    });
    if (this.#welcome) this.#send({ op: "filter", filter, ref });
    return done;
  }

  /** The text of a token stream so far; undefined when nothing of it has come. */
  text(run, stream = DEFAULT_STREAM) {
    return this.#texts.text(run, stream);
  }

  /**
   * The user's retained events, oldest first: pages of `{events: [{id, event}], next?, cursor}`. Read before the client
   * connects for the first time, its session begins behind them.
   */
  history({ thread, run, type, cursor, limit } = {}) {
    return new Pages(async (next = cursor) => {
      const page = await this.#get("/v1/events", { cursor: next, limit, thread, run, type });
      if (!this.#begun && !this.#known && page.cursor && historyCovers({ thread, run, type }, this.#filter)) {
        this.#inbox.tracker.passed(page.cursor);
      }
      return page;
    });
  }

  /** The user's threads, the latest first: pages of `{threads: [{thread, last_ms}], next?}`. */
  threads({ limit, before } = {}) {
    return new Pages((next = before) => this.#get("/v1/threads", { limit, before: next }));
  }

  /** Which sessions of the user are live now: `{online, sessions: [{session}]}`. */
  presence() {
    return this.#get("/v1/presence");
  }

  // ---- connecting

  /** Connects; with a session of its own when the stored one turns out to be another tab's, from the cursor that came with it. */
  async #begin({ session, inUse }) {
    if (isCopiedWithTab(this.#options.storage) && this.#options.session === undefined) {
      let settled = false;
      this.#tabs = new Tabs(this.#storageKey, (asked) => settled && asked === this.#session);
      if (session !== undefined && inUse && (await this.#tabs.holdElsewhere(session, this.#clock))) {
        this.#session = this.#epoch = this.#options.start = undefined;
        this.#known = false;
      }
      settled = true;
    }
    if (this.#state === "closed") this.#tabs?.close();
    else this.#connect();
  }

  async #connect() {
    if (this.#state === "closed") return;
    this.#setState("connecting");
    let token;
    try {
      token = await this.#currentToken();
    } catch (cause) {
      if (this.#state === "closed") return;
      this.#report(new EventBusError("token_failed", "the token callback gave no token", { retryable: true, cause }));
      return this.#wait();
    }
    if (this.#state === "closed") return;
    let socket;
    try {
      socket = new this.#options.WebSocket(this.#url, [SUBPROTOCOL]);
    } catch (cause) {
      return this.#finish(new EventBusError("bad_url", `no socket can be made for ${this.#url}`, { cause }));
    }
    this.#socket = socket;
    this.#arm("deadline", OPEN_TIMEOUT_MS, () => this.#lost("the socket did not open"));
    socket.onopen = () => this.#opened(token);
    socket.onmessage = (message) => this.#received(message.data);
    socket.onclose = ({ code, reason }) => this.#ended(code, reason);
    socket.onerror = () => {}; // a close always follows, and says more
  }

  #opened(token) {
    this.#setState("open");
    this.#arm("deadline", WELCOME_TIMEOUT_MS, () => this.#lost("no welcome came"));
    const { start, window } = this.#options;
    for (const waiter of this.#filterWaiters) waiter.inHello = true;
    this.#send(helloFrame({
      token, session: this.#session, start, cursor: this.cursor, epoch: this.#epoch, window, filter: this.#filter,
      known: this.#known,
    }));
  }

  #welcomed(frame) {
    this.#disarm("deadline");
    const startedNew = !this.#known && this.#options.start === "new" && !frame.resumed;
    if (startedNew && frame.cursor) this.#inbox.tracker.passed(frame.cursor);
    this.#welcome = frame;
    this.#welcomedMs = this.#clock.now();
    this.#pacer = new Pacer(this.#welcomedMs);
    this.#outbox.idsAFrame = idsAFrame(frame.max_frame_bytes);
    this.#asked = false;
    this.#refusals = 0;
    this.#lateHellos = 0;
    this.#session = frame.session;
    this.#epoch = frame.epoch;
    this.#known = this.#inUse = true;
    this.#save();
    this.#filterWelcomed();
    this.#texts.connected(this.#welcomedMs);
    this.#watchTexts();
    this.#scheduleRefresh(frame.token_expires_ms);
    this.#watch(frame.heartbeat_ms);
    this.#arm("working", frame.ack_timeout_ms / 3, () => this.#working());
    this.#watchCommands(); // their times may have passed while the machine slept, and its timers with it
    this.#flushSoon();
    this.#setState("catching_up");
  }

  /** The socket closed, by whoever. */
  #ended(code, reason) {
    this.#release();
    const tokenCallback = typeof this.#options.token === "function";
    if (code === 4501) this.#refusals += 1;
    if (code === 4503) this.#lateHellos += 1;
    if (code === 4501 || code === 4004) this.#token = undefined;
    const verdict = closeVerdict(code, { tokenCallback, refusals: this.#refusals, lateHellos: this.#lateHellos });
    const cause = this.#refusal;
    this.#refusal = undefined;
    const name = CLOSE_NAMES[code] ?? `close_${code}`;
    const message = `the node closed with ${code}${reason ? `: ${reason}` : ""}`;
    const error = (retryable) => new EventBusError(name, message, { retryable, closeCode: code, cause });
    if (verdict === "final") {
      this.#finish(error(false));
      if (code === 4506) this.#forget();
      return;
    }
    if (code === 1011) this.#report(error(true)); // a defect of the node: worth a line, and worth another try
    else if (cause && verdict === "reconnect") this.#report(new EventBusError(cause.code, cause.message, { retryable: true }));
    this.#wait({ code, reason });
  }

  /** Gives a silent socket up without waiting for its close, which a dead peer never answers. */
  #lost(reason) {
    const socket = this.#socket;
    this.#release();
    this.#tellRefusal();
    if (socket.terminate) socket.terminate();
    else socket.close();
    this.#wait({ code: 1006, reason });
  }

  /** Lets go of the socket; what waited for an answer on it hears so. */
  #release() {
    const socket = this.#socket;
    socket.onopen = socket.onmessage = socket.onclose = null;
    this.#socket = undefined;
    this.#timers.forEach((_, name) => this.#disarm(name));
    this.#wasStable = this.#welcome !== undefined && this.#clock.now() - this.#welcomedMs >= STABLE_MS;
    if (this.#wasStable) this.#attempts = 0;
    this.#welcome = undefined;
    this.#inbox.disconnected();
    this.#outbox.disconnected();
    this.#commands.disconnected();
    this.#watchCommands();
  }

  /** Reconnects later: when a goaway said so, else after a jittered wait that grows. Never in the same turn. */
  #wait(detail = {}) {
    let waitMs = 0;
    // After a good connection the goaway's time alone counts; after a short one it must not make a tight loop.
    if (this.#comeBackMs === undefined || !this.#wasStable) waitMs = backoffMs(this.#attempts++, this.#random);
    this.#nodeSaid = this.#comeBackMs !== undefined;
    if (this.#nodeSaid) waitMs = Math.max(waitMs, this.#comeBackMs - this.#clock.now());
    this.#comeBackMs = undefined;
    this.#retry(waitMs);
    this.#setState("waiting", { ...detail, waitMs });
  }

  #retry(waitMs) {
    this.#retryMs = this.#clock.now() + waitMs;
    this.#arm("retry", waitMs, () => this.#connect());
  }

  /**
   * The page goes, perhaps to come back (it is frozen, or kept aside for the way back). What its handlers have done is acked
   * at once, at no pace, or the next page would be given it again; and the session is let go of: it may be the next page's,
   * and what is delivered to a page that stands still times out, again and again, until it is a dead letter.
   * docs/decisions/0015-a-page-that-stands-still-lets-its-session-go.md
   */
  #setAside(reason) {
    this.#inUse = false;
    if (this.#welcome) this.#sendAll();
    else this.#save();
    const socket = this.#socket;
    if (!socket) return;
    this.#release();
    this.#comeBackMs = undefined;
    this.#nodeSaid = false;
    socket.close(1000, reason);
    this.#retry(ASIDE_MS);
    this.#setState("waiting", { reason, waitMs: ASIDE_MS });
  }

  /**
   * The page is shown or thawed, or has a network again: no long wait goes on, and a node that has been silent is asked now.
   * Timers stand still while a machine sleeps. A node's own time is obeyed all the same.
   */
  #back() {
    const nowMs = this.#clock.now();
    if (this.#timers.has("retry")) {
      const leftMs = Math.max(0, this.#retryMs - nowMs);
      this.#retry(this.#nodeSaid ? leftMs : Math.min(leftMs, Math.floor(this.#random() * BACK_MS)));
    } else if (this.#welcome && !this.#asked && nowMs - this.#heardMs > BACK_MS) {
      this.#ask(this.#welcome.heartbeat_ms);
    }
  }

  #finish(error) {
    this.#shut(error);
    this.#report(error);
    this.#setState("closed", { code: error.closeCode, reason: error.message });
  }

  #shut(error) {
    this.#inbox.stop();
    this.#inUse = false;
    this.#save();
    this.#tabs?.close();
    for (const [type, listener] of Object.entries(this.#listeners)) this.#page.removeEventListener(type, listener);
    this.#timers.forEach((_, name) => this.#disarm(name));
    this.#settleFilter((waiter) => waiter.reject(error));
    this.#screen?.stop();
    this.#over.abort(error);
    for (const { reject } of this.#commands.drain()) reject(error);
  }

  async #close() {
    if (this.#state === "closed") return;
    if (this.#welcome) this.#sendAll();
    const socket = this.#socket;
    this.#shut(this.#closedError());
    let closed = Promise.resolve();
    if (socket) {
      this.#release();
      closed = new Promise((resolve) => {
        socket.onclose = resolve;
        this.#arm("closing", CLOSE_TIMEOUT_MS, resolve);
      });
      socket.close(1000, "closed");
    }
    this.#setState("closed", { code: 1000, reason: "closed" });
    await closed;
    this.#disarm("closing");
    if (socket && socket.readyState !== 3) socket.terminate?.();
  }

  // ---- frames from the node

  #received(data) {
    this.#heard = true;
    this.#heardMs = this.#clock.now();
    this.#tellRefusal();
    try {
      const frame = JSON.parse(data);
      EventBusClient.#frames[frame.op]?.(this, frame); // an op that a later version added is passed over
    } catch (cause) {
      this.#report(new EventBusError("bad_frame", "the node sent what is no frame", { retryable: true, cause }));
      if (this.#socket) this.#lost("bad frame");
    }
  }

  static #frames = {
    __proto__: null,
    welcome: (client, frame) => client.#welcomed(frame),
    events: (client, frame) => {
      for (const { event } of frame.events) client.#textCompleted(event);
      client.#inbox.arrived(frame.events);
    },
    caught_up: (client, frame) => client.#caughtUp(frame.cursor),
    gap: (client, { reason, after, before, count }) => client.#gap({ reason, after, before, count }),
    dropped: (client, { ids, reason }) => {
      client.#inbox.withdrawn(ids);
      client.#callbacks.call("onDropped", { ids, reason });
    },
    released: (client, { ids }) => {
      client.#inbox.withdrawn(ids);
      client.#callbacks.call("onReleased", ids);
    },
    text: (client, frame) => client.#textCame(frame),
    acked: (client, frame) => client.#outbox.answered(frame.ref),
    sent: (client, { ref, id }) => {
      client.#commands.answered(ref)?.resolve(id);
      client.#watchCommands();
    },
    filtered: (client, { ref }) => client.#settleFilter((waiter) => waiter.resolve(), ref),
    refreshed: (client, frame) => client.#scheduleRefresh(frame.token_expires_ms),
    goaway: (client, frame) => client.#goneAway(frame),
    error: (client, frame) => client.#refused(frame),
  };

  #caughtUp(cursor) {
    if (cursor !== undefined) this.#inbox.tracker.passed(cursor);
    const connection = this.#welcome;
    this.#inbox.inOrder(() => {
      if (connection && this.#welcome === connection) this.#setState("live");
    });
  }

  #gap(gap) {
    const { reason, after } = gap;
    if (reason === "reset") this.#inbox.tracker.rebase(undefined);
    if (reason === "rollback") {
      const survives = after !== undefined && this.cursor !== undefined && compareEntries(after, this.cursor) < 0;
      this.#inbox.tracker.rebase(survives ? after : undefined);
    }
    this.#inbox.inOrder(() => this.#callbacks.call("onGap", gap));
  }

  #goneAway({ reason, reconnect_after_ms: afterMs }) {
    if (reason === "token_expiring") this.#token = undefined;
    this.#comeBackMs = this.#clock.now() + Math.max(0, Number(afterMs) || 0);
    this.#arm("goaway", this.#comeBackMs - this.#clock.now(), () => {
      this.#sendAll();
      const socket = this.#socket;
      this.#release();
      socket.close(1000, "goaway");
      this.#wait({ reason });
    });
  }

  #refused({ code, message, ref }) {
    const error = new EventBusError(code, message, { retryable: RETRYABLE.has(code) });
    if (error.retryable && this.#commands.refused(ref, error, this.#clock.now(), this.#random)) {
      return this.#watchCommands();
    }
    const command = this.#commands.answered(ref);
    if (command) {
      this.#watchCommands();
      return command.reject(error);
    }
    if (error.retryable && this.#outbox.awaits(ref)) {
      this.#arm(`confirm ${ref}`, WAIT_BASE_MS + backoffMs(CONFIRM_ATTEMPT, this.#random), () => {
        this.#outbox.again(ref);
        this.#flushSoon();
      });
    } else {
      this.#outbox.answered(ref);
    }
    if (ref !== undefined && this.#filterWaiters.some((waiter) => waiter.ref === ref)) {
      this.#settleFilter((waiter) => waiter.reject(error), ref);
    } else if (error.retryable) {
      this.#report(error);
    } else {
      this.#refusal = error; // reported with the close that follows, or when it turns out that none does
      this.#arm("refusal", LATE_MS, () => this.#tellRefusal());
    }
  }

  #tellRefusal() {
    const refusal = this.#refusal;
    this.#refusal = undefined;
    if (refusal) this.#report(refusal);
  }

  // ---- confirmations

  #acknowledge(entries) {
    if (!this.#welcome) return; // the node sends them again on the next connection, and they are acked then
    this.#outbox.received(entries);
    if (this.#halfWaits) this.#disarm("acks");
    if (!this.#timers.has("acks")) this.#flushSoon();
    this.#renew();
  }

  /** Whether half of the window waits to be released. */
  get #halfWaits() {
    return this.#outbox.acks.count * 2 >= this.#welcome.window;
  }

  /**
   * Whether what waits may wait a little for more of it: acks alone do in a stream of events, for each handler's end would be
   * a frame. Not in a hidden page, whose timers may come a minute late.
   */
  get #mayGather() {
    return this.#outbox.acks.alone && !this.#halfWaits && !this.#page.hidden;
  }

  /** Returns whether the event comes again. */
  #handlerFailed(entry, cause, event) {
    const again = this.#options.failedEvents === "redeliver";
    const reason = String(cause?.message ?? cause).slice(0, MAX_REASON_CHARACTERS);
    if (again && this.#welcome) {
      const most = ((this.#welcome.max_frame_bytes ?? Infinity) - 160) / 6; // of JSON, six bytes a character at most
      this.#outbox.nack(entry, reason.slice(0, Math.max(0, most)), this.#options.nackDelayMs);
      this.#flushSoon();
    }
    this.#report(new EventBusError("handler_failed", `onEvent failed: ${reason}`, { retryable: again, cause, event }));
    return again;
  }

  #afterHandling(event, action) {
    const known = this.#inbox.whenHandled(event.id, (entry) => {
      action(entry);
      this.#flushSoon();
    });
    // Tabs that share a session know entries that another tab's client was given.
    if (!known && event.entry !== undefined) action(event.entry);
    else if (!known) throw new EventBusError("unknown_event", `event ${event.id} was not handed over here lately`);
    this.#flushSoon();
  }

  #flushSoon() {
    if (this.#flushing || !this.#welcome) return;
    this.#flushing = true;
    const flush = () => {
      this.#flushing = false;
      this.#flush();
    };
    if (this.#clock.nextTurn) this.#clock.nextTurn(flush);
    else this.#clock.setTimeout(flush, 0);
  }

  /** `gathered`: what waits has waited for more of it. */
  #flush(gathered = false) {
    if (!this.#welcome || this.#timers.has("flush")) return;
    this.#save();
    for (;;) {
      const nowMs = this.#clock.now();
      const command = this.#commands.ready(nowMs);
      if (command === undefined && this.#outbox.empty) return this.#disarm("acks");
      const gathers = !gathered && command === undefined && this.#mayGather;
      const waitMs = this.#pacer.take(nowMs, gathers ? PACE_KEPT : 0);
      if (waitMs > 0 && gathers) return this.#arm("acks", Math.min(waitMs, GATHER_MS), () => this.#flush(true));
      if (waitMs > 0) return this.#arm("flush", waitMs, () => this.#flush());
      if (command) this.#sendCommand(command);
      else this.#send(this.#outbox.next());
    }
  }

  #sendAll() {
    const nowMs = this.#clock.now();
    for (let command; (command = this.#commands.ready(nowMs)); ) this.#sendCommand(command);
    for (let frame; (frame = this.#outbox.next()); ) this.#send(frame);
    this.#save();
  }

  #sendCommand(command) {
    const bytes = new TextEncoder().encode(command.text).length;
    const limit = this.#welcome.max_frame_bytes ?? Infinity;
    command.sent = true;
    if (bytes <= limit) return this.#socket.send(command.text);
    this.#commands.answered(command.ref);
    command.reject(new EventBusError("too_large", `the command has ${bytes} bytes, the node takes ${limit}`));
  }

  /** Gives up the commands whose time is over, sends those whose wait is, and comes back for the next. */
  #watchCommands() {
    if (this.#state === "closed") return;
    const nowMs = this.#clock.now();
    for (const { reject, error: cause } of this.#commands.overdue(nowMs)) {
      const message = "the node has not said in time that the command is stored: it may be or not";
      reject(new EventBusError("send_timeout", message, { retryable: true, cause }));
    }
    if (this.#commands.ready(nowMs)) this.#flushSoon();
    const dueMs = this.#commands.dueMs(nowMs);
    if (dueMs === Infinity) this.#disarm("commands");
    else this.#arm("commands", dueMs - nowMs, () => this.#watchCommands());
  }

  // ---- token streams

  #textCame(frame) {
    const part = this.#texts.take(frame, this.#clock.now());
    if (part) this.#callbacks.call("onText", part);
    this.#watchTexts();
  }

  /** An event with the whole text of a stream brings what is missing: the stream may have ended while the client was away. */
  #textCompleted({ type, run, data }) {
    if (type !== "agent_text" || run === undefined) return;
    const { stream, text } = data;
    if (typeof stream === "string" && typeof text === "string") this.#textCame({ run, stream, offset: 0, text, final: true });
  }

  /** Reports the holes that nothing has filled. */
  #watchTexts() {
    const nowMs = this.#clock.now();
    for (const { run, stream, length } of this.#texts.torn(nowMs)) {
      const message = `the text ${stream} of ${run} lacks what comes after ${length} characters; its event will have the whole`;
      this.#report(new EventBusError("text_gap", message, { retryable: true }));
    }
    const { dueMs } = this.#texts;
    if (dueMs === Infinity) this.#disarm("texts");
    else this.#arm("texts", dueMs - nowMs, () => this.#watchTexts());
  }

  // ---- requests beside the socket

  /** Gets an answer of a node; asks again when it says that this helps, a few times. */
  async #get(path, parameters) {
    const url = requestUrl(this.#url, path, parameters);
    if (this.#state === "closed") throw this.#closedError();
    for (let attempt = 0, refusals = 0; ; attempt += 1) {
      const { answer, error, waitMs } = await this.#request(url);
      if (this.#state === "closed") throw this.#closedError();
      if (error === undefined) return answer;
      if (error.status === 401 && typeof this.#options.token === "function" && refusals === 0) {
        refusals += 1;
        this.#token = undefined;
      } else if (!error.retryable || attempt + 1 >= HTTP_ATTEMPTS) {
        throw error;
      } else {
        await this.#pause(waitMs ?? WAIT_BASE_MS + backoffMs(attempt, this.#random));
      }
    }
  }

  /** One request: `{answer}`, or `{error, waitMs?}`. */
  async #request(url) {
    const request = new AbortController();
    const stop = () => request.abort();
    this.#over.signal.addEventListener("abort", stop);
    const timer = this.#clock.setTimeout(stop, HTTP_TIMEOUT_MS);
    try {
      const token = await this.#currentToken();
      const headers = token === undefined ? {} : { authorization: `Bearer ${token}` };
      const fetch = this.#options.fetch ?? globalThis.fetch;
      const response = await fetch(url, { headers, signal: request.signal, cache: "no-store" });
      if (response.ok) return { answer: await response.json() };
      return this.#httpError(response, await response.json().catch(() => ({})));
    } catch (cause) {
      return { error: new EventBusError("request_failed", `no answer from ${url}`, { retryable: true, cause }) };
    } finally {
      this.#clock.clearTimeout(timer);
      this.#over.signal.removeEventListener("abort", stop);
    }
  }

  #httpError({ status, headers }, { error: { code, message, field } = {} }) {
    const retryable = status === 429 || status >= 500;
    const seconds = Number(headers.get("retry-after"));
    const waitMs = seconds > 0 ? Math.min(seconds * 1_000, MAX_RETRY_AFTER_MS) : undefined;
    const text = message ?? `the node answered with ${status}`;
    return { error: new EventBusError(code ?? `http_${status}`, text, { retryable, status, field }), waitMs };
  }

  /** Waits; rejected when the client is closed. */
  #pause(ms) {
    return this.#until(ms, (resolve) => resolve());
  }

  /** What the application's function gives; rejected when it has not within so long, or when the client is closed. */
  #inTime(ms, action) {
    const late = (_, reject) => reject(new Error(`nothing came within ${ms} ms`));
    return this.#until(ms, late, (resolve, reject) => Promise.resolve(action()).then(resolve, reject));
  }

  /** A promise that `begin` settles, or after so long `late`, or the client's end. */
  #until(ms, late, begin = () => {}) {
    const { signal } = this.#over;
    let timer, stop;
    return new Promise((resolve, reject) => {
      stop = () => reject(this.#closedError());
      signal.addEventListener("abort", stop);
      timer = this.#clock.setTimeout(() => late(resolve, reject), ms);
      begin(resolve, reject);
    }).finally(() => {
      this.#clock.clearTimeout(timer);
      signal.removeEventListener("abort", stop);
    });
  }

  #working() {
    this.#renew();
    this.#arm("working", this.#welcome.ack_timeout_ms / 3, () => this.#working());
  }

  /** Keeps the node waiting for what is queued behind a slow handler. Also after each event: timers may be throttled. */
  #renew() {
    const ids = this.#inbox.overdue(this.#welcome.ack_timeout_ms / 3);
    while (ids.length > 0) this.#send({ op: "working", ids: ids.splice(0, this.#outbox.idsAFrame) });
  }

  // ---- liveness

  #watch(heartbeatMs) {
    const quietMs = this.#clock.now() - this.#heardMs;
    if (quietMs < heartbeatMs) this.#arm("watch", heartbeatMs - quietMs, () => this.#watch(heartbeatMs));
    else this.#ask(heartbeatMs);
  }

  /** Asks the node whether it is there, and gives it up when it does not say so. */
  #ask(heartbeatMs) {
    this.#heard = false;
    this.#asked = true;
    this.#send({ op: "ping", ref: this.#newRef() });
    const dueMs = this.#clock.now() + PONG_TIMEOUT_MS;
    const decide = () => {
      this.#asked = false;
      if (this.#heard) this.#watch(heartbeatMs);
      else this.#lost("the node does not answer");
    };
    this.#arm("watch", PONG_TIMEOUT_MS, () => {
      // A timer that comes late may have overtaken messages that wait to be dispatched: one more look after them.
      if (!this.#heard && this.#clock.now() - dueMs > LATE_MS) this.#arm("watch", LATE_MS, decide);
      else decide();
    });
  }

  // ---- tokens

  async #currentToken() {
    const { token } = this.#options;
    if (typeof token !== "function") return token?.trim();
    if (this.#token === undefined || this.#tokenExpiresMs - this.#wallMs < TOKEN_MARGIN_MS) await this.#fetchToken();
    return this.#token;
  }

  /** Several may want one at once (a request, the socket): one is fetched. */
  #fetchToken() {
    this.#tokenComing ??= this.#askForToken().finally(() => (this.#tokenComing = undefined));
    return this.#tokenComing;
  }

  async #askForToken() {
    const token = await this.#inTime(TOKEN_TIMEOUT_MS, () => this.#options.token());
    if (typeof token !== "string" || token.trim() === "") throw new TypeError("the token callback returned no string");
    this.#token = token.trim(); // a line's end behind it, as a file or a backend may have it, is no part of it
    this.#tokenExpiresMs = Infinity; // until the node says
  }

  #scheduleRefresh(expiresMs) {
    if (typeof this.#options.token !== "function" || typeof expiresMs !== "number") return;
    this.#tokenExpiresMs = expiresMs;
    const delayMs = refreshDelayMs(expiresMs - this.#wallMs);
    if (delayMs !== undefined) this.#arm("refresh", delayMs, () => this.#refresh(expiresMs));
  }

  async #refresh(expiresMs) {
    const connection = this.#welcome;
    let failure;
    try {
      await this.#fetchToken();
    } catch (cause) {
      failure = new EventBusError("token_failed", "the token callback gave no token", { retryable: true, cause });
    }
    if (failure) this.#report(failure);
    if (this.#welcome !== connection) return;
    if (failure) this.#scheduleRefresh(expiresMs);
    else this.#send({ op: "refresh", token: this.#token });
  }

  // ---- small things

  #send(frame) {
    this.#socket.send(frameText(frame));
  }

  /** What the wall's clock says: an expiry is by it. */
  get #wallMs() {
    return (this.#clock.wall ?? this.#clock.now).call(this.#clock);
  }

  #newRef() {
    this.#refs += 1;
    return `c${this.#refs}`;
  }

  #closedError() {
    return new EventBusError("closed", "the client is closed");
  }

  /** The hello had the filter as it was then; what was set since goes out now. */
  #filterWelcomed() {
    const late = this.#filterWaiters.filter(({ inHello }) => !inHello);
    for (const { resolve, inHello } of this.#filterWaiters) if (inHello) resolve();
    this.#filterWaiters = late;
    for (const { ref } of late) this.#send({ op: "filter", filter: this.#filter, ref });
  }

  #settleFilter(settle, ref) {
    const settled = this.#filterWaiters.filter((waiter) => ref === undefined || waiter.ref === ref);
    this.#filterWaiters = this.#filterWaiters.filter((waiter) => !settled.includes(waiter));
    settled.forEach(settle);
  }

  #setState(state, detail = {}) {
    if (this.#state === "closed") return;
    this.#state = state;
    this.#callbacks.last("onState", state, detail);
  }

  #report(error) {
    this.#callbacks.report(error);
  }

  #arm(name, ms, action) {
    this.#disarm(name);
    const handle = this.#clock.setTimeout(() => {
      this.#timers.delete(name);
      action();
    }, Math.min(ms, MAX_TIMER_MS));
    this.#timers.set(name, handle);
  }

  #disarm(name) {
    this.#clock.clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }

  // ---- a session that survives the page, when the option `storage` says so

  get #storageKey() {
    return this.#options.storageKey ?? `eventbus:${this.#url}`;
  }

  #load() {
    let stored = {};
    try {
      stored = JSON.parse(this.#options.storage?.getItem(this.#storageKey) ?? "{}");
    } catch {
      // unreadable: as if there were none
    }
    const { session, cursor, epoch, inUse } = stored ?? {};
    if (!isSession(session) || (this.#session !== undefined && this.#session !== session)) return {};
    // What is none would be refused by the node in each life of the page anew, for good.
    if (cursor !== undefined && !isEntry(cursor)) return {};
    this.#session = session;
    this.#epoch = typeof epoch === "string" ? epoch : undefined;
    this.#known = true;
    return { session, cursor, inUse };
  }

  #save() {
    if (!this.#options.storage || this.#session === undefined) return;
    const state = { session: this.#session, cursor: this.cursor, epoch: this.#epoch, inUse: this.#inUse };
    try {
      this.#options.storage.setItem(this.#storageKey, JSON.stringify(state));
    } catch {
      // full or forbidden: the session then lives as long as the page
    }
  }

  #forget() {
    try {
      this.#options.storage?.removeItem(this.#storageKey);
    } catch {
      // forbidden
    }
  }
}
