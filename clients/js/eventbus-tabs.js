/**
 * One connection for all tabs of a browser: SharedEventBusClient has the constructor, the callbacks and the methods of
 * EventBusClient, and the tabs of one origin and one name share one session and one socket. A plain ES module beside
 * eventbus-client.js. The guide is docs/frontend.md of the project, "Several tabs".
 *
 * One tab leads: it holds a lock of the browser (Web Locks) and runs the EventBusClient. It tells the others over a
 * BroadcastChannel what comes, waits until they have handled it, and then lets the client ack. When its tab closes or
 * crashes, the browser gives the lock to another tab, which opens the same session and goes on: what was not acked
 * comes again, and each tab drops by event id what it had.
 *
 * It reads from the small to the large: decisions first, in classes that know no browser, then the leader's part, the
 * tab's part, and the client. Exported beside the client is what the tests look at; applications leave it alone.
 */

import {
  backoffMs, browserPage, Callbacks, compareEntries, CursorTracker, EventBusClient, EventBusError, Inbox, isEntry, Screen,
  socketUrl, systemClock, Texts,
} from "./eventbus-client.js";

export { EventBusClient, EventBusError };

/** How long the leader waits for a tab that does not answer. */
const ANSWER_MS = 10_000;
/** How often a visible tab asks whether the leader is there, and how long a busy one may take to say so. */
const ASK_MS = 15_000;
const LEADER_ANSWER_MS = 10_000;
/** A timer later than this says that this page was busy: then the leader's answer may wait behind it. */
const LATE_MS = 1_000;
/** A leader hidden for so long, whose timers the browser slows down, gives way to a visible tab. */
const HIDDEN_MS = 60_000;
/** How long a leader whose session was opened elsewhere waits for the news that its lock was taken. */
const SUPERSEDED_MS = 1_000;
/** What a tab keeps of events that it is too slow for; beyond it they are read from the history when it is through. */
const MAX_WAITING = 2_000;
const HISTORY_PAGE = 500;
/** How long a confirmation is remembered: a leader may crash before it has passed it on. */
const CONFIRMED_MS = 30_000;
const MAX_CONFIRMED = 1_024;
const MAX_NOTE_CHARACTERS = 256;
const MAX_TEXTS = 128;
/** How long a command or a filter waits for a tab that leads and for its answer; the client's own time is shorter. */
const CALL_MS = 120_000;
const OF_THE_LEADER = new Set(["welcome", "state", "error", "filter"]);
const METHODS = new Set(["send", "filter", "displayed", "confirm"]);
const ZERO = "0-0";

// ---------------------------------------------------------------------------------------------------- pure decisions

/** The entry id just below one: a history that begins after it begins with the entry itself, when that is there. */
export function entryBefore(entry) {
  const [ms, n] = entry.split("-").map(BigInt);
  if (n > 0n) return `${ms}-${n - 1n}`;
  return ms > 0n ? `${ms - 1n}-${2n ** 64n - 1n}` : ZERO;
}

/** Whether a session with this filter is given the event: and between its keys, or within a list. */
export function passes(filter, event) {
  const fits = (list, value) => list === undefined || list.includes(value);
  return fits(filter?.types, event.type) && fits(filter?.threads, event.thread) && fits(filter?.runs, event.run);
}

const CYCLE = ["connecting", "open", "catching_up", "live"];

/** The states to tell on the way from one to another, so that a tab sees no move that a client of its own would not make. */
export function statesBetween(from, to) {
  if (from === to || from === "closed") return [];
  if (to === "waiting" || to === "closed") return [to];
  const [begin, end] = [CYCLE.indexOf(from), CYCLE.indexOf(to)];
  if (begin < end) return CYCLE.slice(begin + 1, end + 1); // from `waiting` (-1) too
  return ["waiting", ...CYCLE.slice(0, end + 1)];
}

/**
 * The roll of the tabs, and the one event that they are at. A tab is waited for when it was there as the event came. One
 * that was silent for too long is waited for again when it has answered the newest event: it has kept up then.
 */
export class Roll {
  #waitedFor = new Map(); // tab -> whether it is waited for
  #round;
  #newest;

  /** The tab is there and has caught up. */
  present(tab) {
    this.#waitedFor.set(tab, true);
  }

  left(tab) {
    this.#waitedFor.delete(tab);
    this.#round?.open.delete(tab);
  }

  begin(entry, nowMs) {
    const open = new Set([...this.#waitedFor].filter(([, waitedFor]) => waitedFor).map(([tab]) => tab));
    this.#round = { open, handled: 0, sinceMs: nowMs };
    this.#newest = entry;
  }

  handled(tab, entries) {
    if (!this.#answered(tab, entries)) return;
    this.#round.handled += 1;
  }

  failed(tab, entry, reason) {
    if (!this.#answered(tab, [entry])) return;
    this.#round.reason ??= reason;
  }

  /**
   * What becomes of the event: undefined (wait), or `{handled, reason}`: whether a tab handled it, for one is enough, and
   * why the first failed that did. When time is up those that are silent count as gone, but somebody must have answered.
   */
  verdict(nowMs) {
    const { open, handled, reason, sinceMs } = this.#round ?? { open: new Set([0]), handled: 0, sinceMs: nowMs };
    const answered = handled > 0 || reason !== undefined;
    if (!answered || (open.size > 0 && nowMs - sinceMs < ANSWER_MS)) return undefined;
    for (const tab of open) this.#waitedFor.set(tab, false);
    this.#round = undefined;
    return { handled: handled > 0, reason };
  }

  get tabs() {
    return this.#waitedFor.size;
  }

  /** Whether it is an answer to the event that they are at. */
  #answered(tab, entries) {
    if (!entries.includes(this.#newest)) return false;
    if (this.#waitedFor.has(tab)) this.#waitedFor.set(tab, true);
    this.#round?.open.delete(tab);
    return this.#round !== undefined;
  }
}

/**
 * What a tab takes in: live events from the leader, and from the history what came before or while the tab was away. All
 * of it is handed over once and in order. Live events are listened to before the history is read, so nothing falls
 * between the two; what is in both is dropped by event id.
 */
export class Intake {
  #inbox;
  #hooks;
  #shows; // the page itself shows everything up to here
  #live = []; // what came while the history is read
  #catching = false;
  #missed = false; // more came than is kept, or the history is another one: it is read again
  #stopped = false;
  #fromHistory = new Set(); // entries that nobody sends again

  /**
   * `hooks`: now(), handle(event, meta), handled(entries), failed(entry, error, event, comesAgain) -> whether it comes again,
   * page(cursor) -> promise of {events, next, cursor}, filter(), gap(gap), caughtUp().
   */
  constructor(cursor, hooks) {
    this.#hooks = hooks;
    this.#shows = cursor;
    this.#inbox = new Inbox(new CursorTracker(cursor), {
      now: hooks.now,
      handle: hooks.handle,
      handled: (entries) => hooks.handled([...entries]),
      failed: (entry, error, event) => hooks.failed(entry, error, event, !this.#fromHistory.has(entry)),
    });
  }

  /** The highest entry id up to which everything has been handled here. */
  get cursor() {
    return this.#inbox.tracker.cursor;
  }

  get catching() {
    return this.#catching;
  }

  /** From here on, for a tab that asked for nothing older. */
  begin(cursor) {
    if (cursor !== undefined) this.#inbox.tracker.passed(cursor);
  }

  arrived(entry) {
    if (this.#shows !== undefined && compareEntries(entry.id, this.#shows) <= 0) return this.#hooks.handled([entry.id]);
    if (!this.#catching && this.#inbox.held >= MAX_WAITING) this.catchUp();
    this.#take(() => this.#inbox.arrived([entry]));
  }

  gap(gap) {
    if (gap.reason === "reset" || gap.reason === "rollback") {
      this.#shows = undefined; // ids may be lower from here on
      const lower = gap.after !== undefined && this.cursor !== undefined && compareEntries(gap.after, this.cursor) < 0;
      this.#inbox.tracker.rebase(lower ? gap.after : undefined);
    }
    if (this.#catching) this.#missed = true; // and the history may be another one
    this.#inbox.inOrder(() => this.#hooks.gap(gap));
  }

  /** These will not come again. */
  withdrawn(entries) {
    this.#inbox.withdrawn(entries);
  }

  /** Runs when everything that came before has been handled. */
  inOrder(turn) {
    this.#inbox.inOrder(turn);
  }

  whenHandled(eventId, action) {
    return this.#inbox.whenHandled(eventId, action);
  }

  stop() {
    this.#stopped = true;
    this.#inbox.stop();
  }

  /** Reads the history from the cursor to its end, then goes on live. */
  async catchUp() {
    if (this.#catching) return void (this.#missed = true);
    this.#catching = true;
    do {
      await this.#drained();
      this.#missed = false;
      if (this.#live.length >= MAX_WAITING) this.#live = [];
      await this.#readHistory();
    } while (this.#missed && !this.#stopped);
    this.#catching = false;
    for (const turn of this.#live.splice(0)) turn();
    if (!this.#stopped) this.#hooks.caughtUp();
  }

  async #readHistory() {
    const from = this.cursor;
    const checked = from !== undefined && from !== ZERO;
    let page = { next: checked ? entryBefore(from) : ZERO };
    for (let first = true; page.next !== undefined && !this.#stopped; first = false) {
      page = await this.#hooks.page(page.next);
      if (this.#stopped) return;
      let { events } = page;
      if (first && checked && events.length > 0) {
        // The entry itself is there, or it and perhaps others behind it are gone.
        if (events[0].id === from) events = events.slice(1);
        else this.#inbox.inOrder(() => this.#hooks.gap({ reason: "trimmed", after: from, before: page.events[0].id }));
      }
      this.#fromHistory = new Set(events.map(({ id }) => id));
      const wanted = events.filter(({ event }) => passes(this.#hooks.filter(), event));
      this.#inbox.arrived(wanted.map(({ id, event }) => ({ id, delivery: 1, event })));
      await this.#drained();
      this.#fromHistory.clear();
      if (page.cursor !== undefined) this.#inbox.tracker.passed(page.cursor);
    }
  }

  #take(turn) {
    if (!this.#catching) turn();
    else if (this.#live.length < MAX_WAITING) this.#live.push(turn);
    else this.#missed = true;
  }

  #drained() {
    return new Promise((resolve) => {
      if (this.#stopped) resolve();
      else this.#inbox.inOrder(resolve);
    });
  }
}

// ------------------------------------------------------------------------------------------------ errors as messages

function toPlain({ name, code, message, retryable, closeCode, status, field }) {
  return { name, code, message, retryable, closeCode, status, field };
}

function toError({ name, code = "failed", message, ...more }) {
  return name === "TypeError" ? new TypeError(message) : new EventBusError(code, message, more);
}

// --------------------------------------------------------------------------------------------------- the leader's part

/** What the leading tab does for all: it runs the client, and calls the roll for each event. */
class Leadership {
  #tab; // its way to all tabs, its own included
  #clock;
  #client;
  #roll = new Roll();
  #settle; // ends the wait for the event that they are at
  #timer;
  #stopped = false;
  #state = { state: "connecting", detail: {} };
  #fresh;

  /** `tab`: id, clock, tell(message), texts(). `fresh`: no session is stored, this one will be new. */
  constructor(tab, url, options, fresh) {
    this.#tab = tab;
    this.#clock = tab.clock;
    this.#fresh = fresh;
    this.#client = new EventBusClient(url, {
      ...options,
      failedEvents: "redeliver", // what `skip` means is each tab's own affair
      onEvent: (event, { entry, delivery }) => this.#callRoll(event, entry, delivery),
      onGap: (gap) => this.#tell({ kind: "gap", gap }),
      onDropped: (dropped) => this.#tell({ kind: "dropped", dropped }),
      onReleased: (ids) => this.#tell({ kind: "released", ids }),
      onText: (part) => this.#tell({ kind: "text", part }),
      onState: (state, detail) => this.#moved(state, detail),
      onError: (error) => this.#failed(error),
    });
  }

  stop() {
    this.#stopped = true;
    this.#clock.clearTimeout(this.#timer);
    return this.#client.close();
  }

  /** Messages of tabs to the leader. */
  received(message) {
    const { from, kind } = message;
    if (kind === "join") {
      this.#tell({
        kind: "welcome", to: from, ...this.#state, session: this.#client.session, cursor: this.#client.cursor,
        filter: this.#filter, texts: this.#tab.texts(), fresh: this.#fresh,
      });
    } else if (kind === "ask") this.#tell({ kind: "here", to: from });
    else if (kind === "call") this.#call(message);
    else {
      if (kind === "present") this.#roll.present(from);
      else if (kind === "leave") this.#roll.left(from);
      else if (kind === "handled") this.#roll.handled(from, message.entries);
      else if (kind === "failed") this.#roll.failed(from, message.entry, message.reason);
      this.#decide();
    }
  }

  #filter;

  /** Resolves when the event counts as handled, and fails when no tab could handle it. */
  #callRoll(event, entry, delivery) {
    return new Promise((resolve, reject) => {
      this.#roll.begin(entry, this.#clock.now());
      this.#settle = (verdict) => {
        if (!verdict.handled) return reject(new Error(verdict.reason));
        // Where it failed it is not waited for any more.
        if (verdict.reason !== undefined) this.#tell({ kind: "settled", entries: [entry] });
        resolve();
      };
      this.#timer = this.#clock.setTimeout(() => this.#decide(), ANSWER_MS);
      this.#tell({ kind: "event", entry: { id: entry, delivery, event } });
    });
  }

  #decide() {
    if (this.#stopped || !this.#settle) return;
    const verdict = this.#roll.verdict(this.#clock.now());
    if (!verdict) return;
    const settle = this.#settle;
    this.#settle = undefined;
    this.#clock.clearTimeout(this.#timer);
    settle(verdict);
  }

  async #call({ from, ref, method, args }) {
    try {
      if (!METHODS.has(method)) throw new TypeError(`${method} is not for other tabs to call`);
      const value = await this.#client[method](...args);
      if (method === "filter") this.#filtered(args[0]);
      this.#tell({ kind: "reply", to: from, ref, value });
    } catch (error) {
      this.#tell({ kind: "reply", to: from, ref, error: toPlain(error) });
    }
  }

  #filtered(filter) {
    this.#filter = filter;
    this.#tell({ kind: "filter", filter });
  }

  #moved(state, detail) {
    if (state === "closed" && detail.code === 4504) return; // see #failed
    this.#state = { state, detail };
    this.#tell({ kind: "state", state, detail, session: this.#client.session });
  }

  #failed(error) {
    if (error.code === "handler_failed") return; // the tabs have told their applications
    const tell = () => this.#tell({ kind: "error", error: toPlain(error) });
    if (error.code !== "superseded") return void tell();
    // Another tab took the lock and opened the session, and the news of the one may come before that of the other.
    this.#clock.clearTimeout(this.#timer);
    this.#timer = this.#clock.setTimeout(() => {
      tell();
      this.#tell({ kind: "state", state: "closed", detail: { code: error.closeCode, reason: error.message } });
    }, SUPERSEDED_MS);
  }

  #tell(message) {
    if (!this.#stopped) this.#tab.tell(message);
  }
}

const closedError = () => new EventBusError("closed", "the client is closed");

// ------------------------------------------------------------------------------------------------------ a tab's part

/** The tab's own storage: it survives a reload. */
function ownStorage() {
  try {
    return globalThis.sessionStorage;
  } catch {
    return undefined;
  }
}

/** One tab among those that share a connection. */
class Member {
  shared = true;
  #name;
  #url;
  #options;
  #callbacks;
  #clock;
  #place;
  #id;
  #intake;
  #aside; // a client that never connects: it checks the options, and asks nodes what needs no socket
  #screen;
  #texts = new Texts();
  #streams = new Map(); // `run stream` -> {run, stream}: those of the texts that are not final
  #state = "connecting";
  #session;
  #filter;
  #channel; // while this tab is there
  #turn; // what this tab waits for at the lock, or holds: {abort?, release?}
  #leader; // the leading tab's id, once it has said so
  #leadership; // when that is this tab
  #begins; // the cursor that this tab wants to begin behind; undefined: from now on
  #welcomed = false;
  #away = false; // it was there and left: what came meanwhile is in the history
  #calls = new Map(); // ref -> {resolve, reject, message, sent}
  #confirmations = []; // {atMs, message}
  #stopWaiting; // for the history
  #refs = 0;
  #timers = new Map();
  #heardLeader = false; // since it was asked
  #asksWho = false;
  #listeners = {
    pagehide: ({ persisted }) => {
      this.#remember();
      this.#leave(persisted ? "the page is kept aside" : undefined);
    },
    pageshow: ({ persisted }) => persisted && this.#come(),
    freeze: () => this.#leave("the page is frozen"),
    resume: () => this.#come(),
    visibilitychange: () => this.#looked(),
  };

  constructor(name, url, options, place) {
    this.#name = name;
    this.#url = socketUrl(url);
    this.#aside = new EventBusClient(url, { ...options, connect: false, storage: undefined, onState: undefined });
    this.#options = { onError: (error) => console.error(error), ...options };
    this.#callbacks = new Callbacks(this.#options, () => this.#state === "closed");
    this.#place = place;
    this.#clock = options.clock ?? systemClock;
    this.#id = globalThis.crypto.randomUUID();
    this.#filter = options.filter;
    if (options.connect === false) this.#state = "idle";
    else this.connect();
  }

  /** With the option `connect: false`: connects. What was read of the history before needs not be told. */
  connect() {
    if (this.#intake || this.#state === "closed") return;
    const { onEvent, start } = this.#options;
    this.#begins = this.#aside.cursor ?? (start === undefined ? this.#recall() : start === "earliest" ? ZERO : undefined);
    this.#intake = new Intake(this.#begins === ZERO ? undefined : this.#begins, {
      now: () => this.#clock.now(),
      handle: onEvent,
      handled: (entries) => this.#say({ kind: "handled", entries }),
      failed: (...failure) => this.#handlerFailed(...failure),
      page: (cursor) => this.#historyPage(cursor),
      filter: () => this.#filter,
      gap: (gap) => this.#callbacks.call("onGap", gap),
      caughtUp: () => this.#present(),
    });
    for (const [type, listener] of Object.entries(this.#listeners)) this.#place.page.addEventListener(type, listener);
    this.#state = "idle"; // so that `connecting` is told
    queueMicrotask(() => {
      this.#setState("connecting", {});
      this.#come();
    });
  }

  get state() {
    return this.#state === "idle" && this.#intake ? "connecting" : this.#state;
  }

  get session() {
    return this.#session;
  }

  get cursor() {
    return (this.#intake ?? this.#aside).cursor;
  }

  /** Whether live events are for it. Before it was welcomed they would move its place past what it is yet to read. */
  get #isIn() {
    return this.#welcomed && !this.#away;
  }

  /** Lets go of everything; the session goes on when another tab is there. */
  async close() {
    if (this.#state === "closed") return;
    const ended = this.#end();
    this.#setState("closed", { code: 1000, reason: "closed" });
    await ended;
  }

  #end() {
    for (const [type, listener] of Object.entries(this.#listeners)) this.#place.page.removeEventListener(type, listener);
    this.#intake?.stop();
    this.#screen?.stop();
    this.#aside.close();
    this.#stopWaiting?.();
    const left = this.#leave();
    for (const ref of this.#calls.keys()) this.#answered(ref, undefined, toPlain(closedError()));
    return left;
  }

  history(wanted) {
    return this.#aside.history(wanted);
  }

  threads(wanted) {
    return this.#aside.threads(wanted);
  }

  presence() {
    return this.#aside.presence();
  }

  /** A command keeps its ref when another tab leads: stored already, it is not stored again. */
  send(type, data, options) {
    return this.#call("send", [type, data, { ...options, ref: this.#newRef() }]);
  }

  /** The filter is the session's: that of all tabs. */
  filter(filter) {
    return this.#call("filter", [filter]);
  }

  /** Has the leader's client call a method. Asked again when another tab leads. */
  #call(method, args) {
    return new Promise((resolve, reject) => {
      if (this.#state === "closed") throw closedError();
      const ref = this.#newRef();
      const message = "no tab has said in time that it is done: it may be or not";
      const late = { code: `${method}_timeout`, message, retryable: true };
      const timer = this.#clock.setTimeout(() => this.#answered(ref, undefined, late), CALL_MS);
      this.#calls.set(ref, { resolve, reject, timer, message: { kind: "call", ref, method, args } });
      if (this.#leader !== undefined) this.#sendCall(ref);
    });
  }

  displayed(event, element) {
    if (element === undefined) return this.#confirmed("displayed", event);
    if (typeof Element !== "function" || !(element instanceof Element)) {
      throw new TypeError("element must be an element of the page");
    }
    this.#screen ??= new Screen(this.#clock);
    this.#afterHandling(event, (entry) => {
      if (this.#state !== "closed") this.#screen.watch(element, event.id, () => this.#passOn("displayed", event.id, entry));
    });
  }

  confirm(event, note) {
    if (note !== undefined && (typeof note !== "string" || [...note].length > MAX_NOTE_CHARACTERS)) {
      throw new TypeError(`note must be a string of at most ${MAX_NOTE_CHARACTERS} characters`);
    }
    this.#confirmed("confirm", event, note);
  }

  #confirmed(method, event, ...rest) {
    this.#afterHandling(event, (entry) => this.#passOn(method, event.id, entry, ...rest));
  }

  #afterHandling(event, action) {
    if (this.#intake?.whenHandled(event.id, action)) return;
    throw new EventBusError("unknown_event", `event ${event.id} was not handed over here lately`);
  }

  /** Tells the leader; and the next one too when that comes soon, for this one may crash before it has passed it on. */
  #passOn(method, id, entry, ...rest) {
    const nowMs = this.#clock.now();
    const message = { kind: "call", method, args: [{ id, entry }, ...rest] };
    const lately = this.#confirmations.filter(({ atMs }) => nowMs - atMs < CONFIRMED_MS);
    this.#confirmations = [...lately.slice(1 - MAX_CONFIRMED), { atMs: nowMs, message }];
    if (this.#leader !== undefined) this.#say(message);
  }

  text(run, stream) {
    return this.#texts.text(run, stream);
  }

  // ---- coming and leaving

  #come() {
    if (this.#channel || this.#state === "closed") return;
    this.#channel = new this.#place.BroadcastChannel(this.#name);
    this.#channel.onmessage = ({ data }) => this.#heard(data);
    this.#say({ kind: "join" });
    this.#queue();
    this.#arm("ask", ASK_MS, () => this.#ask());
  }

  /** Lets go of everything that other tabs wait for. `reason`: why, when the page may come back. */
  #leave(reason) {
    if (!this.#channel) return Promise.resolve();
    this.#say({ kind: "leave" });
    const ended = this.#resign();
    this.#letGo();
    this.#channel.close();
    this.#channel = this.#leader = undefined;
    this.#away = true;
    this.#timers.forEach((_, name) => this.#disarm(name));
    for (const call of this.#calls.values()) call.sent = false;
    if (reason) this.#setState("waiting", { reason });
    return ended;
  }

  // ---- the lock

  /** Waits in the line of tabs for the lock; `steal` takes it from the tab that has it. */
  #queue(steal = false) {
    this.#letGo();
    const turn = (this.#turn = { abort: new AbortController() });
    const options = steal ? { steal } : { signal: turn.abort.signal };
    this.#place.locks.request(this.#name, options, () => this.#turn === turn && this.#lead(turn)).catch((cause) => {
      if (this.#turn !== turn) return; // let go of before it was given
      this.#resign();
      if (cause?.name === "AbortError") return this.#queue(); // another tab took it
      const message = `the browser gave no lock: ${cause?.message ?? cause}`;
      this.#report(new EventBusError("no_lock", message, { retryable: true, cause }));
      this.#arm("lock", ASK_MS, () => this.#queue());
    });
  }

  #letGo() {
    const turn = this.#turn;
    this.#turn = undefined;
    turn?.abort.abort();
    turn?.release?.();
  }

  /** This tab has the lock. Returns a promise that holds it. */
  #lead(turn) {
    const { cursor } = this.#intake;
    const { session, start } = this.#options;
    const held = new Promise((release) => (turn.release = release));
    const tab = {
      clock: this.#clock,
      tell: (message) => this.#say({ ...message, lead: true }),
      texts: () => [...this.#streams.values()].map((one) => ({ ...one, offset: 0, text: this.#texts.text(one.run, one.stream) })),
    };
    this.#lost();
    this.#say({ kind: "leading", lead: true });
    this.#leadership = new Leadership(tab, this.#url, {
      ...this.#options,
      session, cursor, start: cursor === undefined ? start : undefined, filter: this.#filter,
      storage: this.#place.storage, storageKey: this.#name,
    }, !this.#place.storage.getItem(this.#name));
    this.#follow(this.#id);
    return held;
  }

  #resign() {
    const leadership = this.#leadership;
    this.#leadership = undefined;
    return leadership?.stop() ?? Promise.resolve();
  }

  // ---- is the leader still there?

  #ask() {
    this.#arm("ask", ASK_MS, () => this.#ask());
    if (this.#leadership || this.#place.page.hidden) return;
    const dueMs = this.#clock.now() + LEADER_ANSWER_MS;
    this.#heardLeader = false;
    this.#say({ kind: "ask" });
    this.#arm("answer", LEADER_ANSWER_MS, () => {
      if (this.#heardLeader || this.#leadership || this.#clock.now() - dueMs > LATE_MS) return;
      this.#queue(true); // it hangs, or its page is frozen and kept the lock
    });
  }

  /** The page was hidden or shown. */
  #looked() {
    this.#disarm("hidden");
    if (!this.#leadership || !this.#place.page.hidden) return;
    this.#arm("hidden", HIDDEN_MS, () => {
      this.#asksWho = true;
      this.#say({ kind: "who" });
      this.#looked();
    });
  }

  // ---- messages

  /** To all tabs, this one included. */
  #say(message) {
    const whole = { ...message, from: this.#id };
    this.#channel?.postMessage(whole);
    if (this.#channel) this.#heard(whole);
  }

  #heard(message) {
    const { from, to, kind, lead } = message;
    if (to !== undefined && to !== this.#id) return;
    if (kind === "leading") {
      if (from !== this.#id) this.#led(from);
    } else if (lead) {
      if (kind === "welcome") this.#leader ??= from;
      // What one whose lock was taken has handed out it may have acked: that counts. How it fares does not.
      if (from !== this.#leader && OF_THE_LEADER.has(kind)) return;
      this.#heardLeader ||= from === this.#leader;
      Member.#fromLeader[kind]?.(this, message);
    } else if (kind === "leave" && from === this.#leader) this.#lost();
    else if (kind === "who") this.#answerWho(from);
    else if (kind === "seen") this.#giveWay(from);
    else if (kind === "yours") this.#queue(true);
    else this.#leadership?.received(message);
  }

  /** Another tab leads. */
  #led(leader) {
    if (this.#leadership) {
      this.#resign();
      this.#queue();
    }
    this.#lost();
    this.#follow(leader);
    this.#say({ kind: "join" });
  }

  #follow(leader) {
    this.#leader = leader;
    this.#heardLeader = true;
    if (leader === this.#id) {
      this.#say({ kind: "join" });
      this.#looked();
    }
  }

  /** The leader is gone; the lock decides who is next. */
  #lost() {
    if (this.#leader !== undefined && this.#leader !== this.#id) this.#setState("waiting", { reason: "another tab takes over" });
    this.#leader = undefined;
    for (const call of this.#calls.values()) call.sent = false;
  }

  #answerWho(from) {
    if (from === this.#leader && from !== this.#id && !this.#place.page.hidden) this.#say({ kind: "seen", to: from });
  }

  /** To the first visible tab that answers. It takes the lock, and until then this one goes on. */
  #giveWay(to) {
    if (this.#asksWho && this.#leadership && this.#place.page.hidden) this.#say({ kind: "yours", to });
    this.#asksWho = false;
  }

  static #fromLeader = {
    __proto__: null,
    welcome: (tab, message) => tab.#welcome(message),
    event: (tab, { entry }) => tab.#isIn && tab.#intake.arrived(entry),
    gap: (tab, { gap }) => tab.#isIn && tab.#intake.gap(gap),
    settled: (tab, { entries }) => tab.#intake.withdrawn(entries),
    released: (tab, { ids }) => {
      tab.#intake.withdrawn(ids);
      tab.#callbacks.call("onReleased", ids);
    },
    dropped: (tab, { dropped }) => {
      tab.#intake.withdrawn(dropped.ids);
      tab.#callbacks.call("onDropped", dropped);
    },
    text: (tab, { part }) => tab.#text(part),
    filter: (tab, { filter }) => (tab.#filter = filter),
    state: (tab, { state, detail, session }) => tab.#moved(state, detail, session),
    error: (tab, { error }) => tab.#report(toError(error)),
    reply: (tab, { ref, value, error }) => tab.#answered(ref, value, error),
  };

  #welcome({ state, detail, session, cursor, filter, texts, fresh }) {
    this.#filter = filter;
    const wantsOlder = this.#welcomed ? this.#away : this.#begins !== undefined;
    // A session that this very tab makes anew begins where the tab stands. Any other may have been acked further.
    if (wantsOlder && !(fresh && this.#leadership)) this.#intake.catchUp();
    else if (!this.#welcomed && this.#begins === undefined) this.#intake.begin(cursor);
    this.#welcomed = true;
    this.#away = false;
    if (!this.#intake.catching) this.#present();
    for (const part of texts) this.#text(part);
    this.#moved(state, detail, session);
    for (const ref of this.#calls.keys()) this.#sendCall(ref);
    const nowMs = this.#clock.now();
    this.#confirmations = this.#confirmations.filter(({ atMs }) => nowMs - atMs < CONFIRMED_MS);
    for (const { message } of this.#confirmations) this.#say(message);
  }

  #present() {
    this.#say({ kind: "present" });
    if (this.#lastState === "live") this.#live();
  }

  #text(frame) {
    const part = this.#texts.take(frame, this.#clock.now());
    if (!part) return;
    const { run, stream, final } = part;
    this.#streams.delete(`${run} ${stream}`);
    if (!final) this.#streams.set(`${run} ${stream}`, { run, stream });
    if (this.#streams.size > MAX_TEXTS) this.#streams.delete(this.#streams.keys().next().value);
    this.#callbacks.call("onText", part);
  }

  // ---- states

  #lastState; // of the leader's client

  #moved(state, detail, session) {
    this.#session = session ?? this.#session;
    this.#lastState = state;
    if (state === "live") this.#live();
    else this.#setState(state, detail);
    if (state === "closed") this.#end();
  }

  /** Live is a tab that has handled what was stored, its own part of the history included. */
  #live() {
    if (this.#intake.catching) return this.#setState("catching_up", {});
    this.#intake.inOrder(() => {
      if (this.#lastState === "live" && !this.#intake.catching && this.#leader !== undefined) this.#setState("live", {});
    });
  }

  #setState(state, detail) {
    for (const step of statesBetween(this.#state, state)) {
      if (this.#state === "closed") return;
      this.#state = step;
      this.#callbacks.last("onState", step, step === state ? detail : {});
    }
  }

  // ---- handlers

  #handlerFailed(entry, cause, event, comesAgain) {
    const again = comesAgain && this.#options.failedEvents !== "skip";
    const reason = String(cause?.message ?? cause).slice(0, 256);
    this.#say(again ? { kind: "failed", entry, reason } : { kind: "handled", entries: [entry] });
    this.#report(new EventBusError("handler_failed", `onEvent failed: ${reason}`, { retryable: again, cause, event }));
    return again;
  }

  #report(error) {
    this.#callbacks.report(error);
  }

  // ---- calls of the leader's client

  #sendCall(ref) {
    const call = this.#calls.get(ref);
    if (!call || call.sent) return;
    call.sent = true;
    try {
      this.#say(call.message);
    } catch (error) {
      this.#answered(ref, undefined, toPlain(error)); // an argument that can not be copied
    }
  }

  #answered(ref, value, error) {
    const call = this.#calls.get(ref);
    if (!call) return;
    this.#calls.delete(ref);
    this.#clock.clearTimeout(call.timer);
    if (error) call.reject(toError(error));
    else call.resolve(value);
  }

  // ---- the history

  /** A page of the user's events after a cursor; asks again, with growing waits, until it has one or the tab is closed. */
  async #historyPage(cursor) {
    for (let attempt = 0; this.#state !== "closed"; attempt += 1) {
      try {
        return await this.#aside.history({ cursor, limit: HISTORY_PAGE });
      } catch (cause) {
        const message = `the history can not be read: ${cause?.message ?? cause}`;
        this.#report(new EventBusError("history_failed", message, { retryable: true, cause }));
      }
      await new Promise((resolve) => {
        const timer = this.#clock.setTimeout(resolve, backoffMs(attempt, this.#options.random ?? Math.random));
        this.#stopWaiting = () => {
          this.#clock.clearTimeout(timer);
          resolve();
        };
      });
    }
    return { events: [] };
  }

  // ---- a tab's own place, which survives a reload (and is not copied into a duplicated tab)

  #remember() {
    try {
      if (this.cursor !== undefined) this.#place.own?.setItem(`${this.#name}:cursor`, this.cursor);
    } catch {
      // full: the next page begins where the session stands
    }
  }

  #recall() {
    const cursor = this.#place.own?.getItem(`${this.#name}:cursor`) ?? undefined;
    this.#place.own?.removeItem(`${this.#name}:cursor`);
    return isEntry(cursor) ? cursor : undefined;
  }

  // ---- small things

  #newRef() {
    this.#refs += 1;
    return `${this.#id}-${this.#refs}`;
  }

  #arm(name, ms, action) {
    this.#disarm(name);
    const handle = this.#clock.setTimeout(() => {
      this.#timers.delete(name);
      action();
    }, ms);
    this.#timers.set(name, handle);
  }

  #disarm(name) {
    this.#clock.clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }
}

// --------------------------------------------------------------------------------------------------------- the client

/** What sharing needs of the browser; undefined when something of it is missing. */
function placeOf(options) {
  try {
    const place = {
      locks: options.locks ?? globalThis.navigator?.locks,
      BroadcastChannel: options.BroadcastChannel ?? globalThis.BroadcastChannel,
      storage: options.storage ?? globalThis.localStorage,
      own: options.ownStorage ?? ownStorage(),
      page: options.page ?? browserPage,
    };
    place.storage?.getItem("");
    return place.locks && place.BroadcastChannel && place.storage ? place : undefined;
  } catch {
    return undefined; // a page that may not keep anything
  }
}

/** An EventBusClient for all tabs that give the same address and user. The guide: docs/frontend.md. */
export class SharedEventBusClient {
  #part;

  /** `options`: those of EventBusClient, and `user` (or a whole `name`): tabs of another user must not share. */
  constructor(url, options = {}) {
    const { user, name } = options;
    if (typeof (name ?? user) !== "string" || (name ?? user) === "") {
      throw new TypeError("user must be a string: tabs share one connection only when it is the same user's");
    }
    const place = placeOf(options);
    if (place) this.#part = new Member(name ?? `eventbus:${socketUrl(url)}:${user}`, url, options, place);
    else this.#part = new EventBusClient(url, { ...options, storage: ownStorage() });
  }

  /** Whether this tab shares its connection; otherwise the browser lacks what it takes, and the tab has one of its own. */
  get shared() {
    return this.#part instanceof Member;
  }

  get state() {
    return this.#part.state;
  }

  get session() {
    return this.#part.session;
  }

  get cursor() {
    return this.#part.cursor;
  }

  static {
    // The rest of the client's methods: the tab's part has them too. Those built on `send` need nothing else.
    for (const method of Object.getOwnPropertyNames(EventBusClient.prototype)) {
      if (Object.hasOwn(this.prototype, method)) continue;
      const value = ["cancel", "answer", "message"].includes(method)
        ? EventBusClient.prototype[method]
        : function (...args) {
          return this.#part[method](...args);
        };
      Object.defineProperty(this.prototype, method, { value, writable: true, configurable: true });
    }
  }
}
