/** An event as its publisher made it (docs/protocol.md, "The event"). Fields that later versions add are passed on. */
export interface BusEvent<Data = Record<string, unknown>> {
  id: string;
  type: string;
  user: string;
  thread?: string;
  run?: string;
  seq?: number;
  /** When the publisher made it, Unix milliseconds. */
  time_ms: number;
  data: Data;
  require?: { level: "received" | "displayed" | "confirmed"; within_ms: number };
  deliver?: "each" | "any";
  expires_ms?: number;
  trace?: string;
  [field: string]: unknown;
}

export interface Delivery {
  /** The entry id `<ms>-<n>`, which is also a cursor. */
  entry: string;
  /** 1 the first time. */
  delivery: number;
  /** Whether `delivery` is above 1. The application has not handled this event before, but its handler may have begun. */
  redelivered: boolean;
}

/** Events that this session will never get: reload what depends on them. */
export interface Gap {
  reason: "trimmed" | "expired" | "overflow" | "rollback" | "reset";
  after?: string;
  before?: string;
  count?: number;
}

export interface Dropped {
  ids: string[];
  reason: "dead_lettered" | "expired";
}

/** What is new of a token stream: each character is handed out once and in order, over all connections. */
export interface TextPart {
  run: string;
  stream: string;
  /** The place of the part's first character in the whole text. Counts Unicode code points, as `[...text].length` does. */
  offset: number;
  /** Empty only when `final` is all that is new. */
  text: string;
  /** Nothing follows but the event `agent_text` with the whole text (which may also have come before). */
  final: boolean;
}

/** Where a command belongs, and how long the client tries to have it stored. */
export interface CommandOptions {
  run?: string;
  thread?: string;
  /** From 1 to 110,000; default 60,000. */
  timeoutMs?: number;
}

/** What of the user's retained events to read. */
export interface HistoryOptions {
  thread?: string;
  run?: string;
  type?: string;
  /** Begin behind this entry id. Default: at the earliest that is retained. */
  cursor?: string;
  /** Events a page: 1 to 500, default 100. */
  limit?: number;
}

export interface HistoryPage {
  /** Oldest first; `id` is the entry id. A page may be empty and yet have a next one. */
  events: { id: string; event: BusEvent<any> }[];
  /** The `cursor` of the next page; absent at the end. */
  next?: string;
  /** Up to where the page has read: a client's option `cursor` goes on from here. */
  cursor: string;
}

export interface ThreadsPage {
  /** Those of which anything is retained, the latest first; `last_ms`: when its last event was stored, Unix milliseconds. */
  threads: { thread: string; last_ms: number }[];
  /** The `before` of the next page; absent at the end. */
  next?: string;
}

export interface Presence {
  online: boolean;
  /** `last_seen_ms`: when its node last told that it lives, Unix milliseconds. */
  sessions: { session: string; node: string; last_seen_ms: number }[];
}

/** `await` gives the first page, `for await` all of them, each when it is asked for. */
export interface Pages<Page> extends PromiseLike<Page>, AsyncIterable<Page> {}

export interface Filter {
  types?: string[];
  threads?: string[];
  runs?: string[];
}

/** `idle` only with the option `connect: false`, until `connect()`. */
export type State = "idle" | "connecting" | "open" | "catching_up" | "live" | "waiting" | "closed";

/** With `waiting` and `closed`: why. `waitMs` until the next attempt (only `waiting`). */
export interface StateDetail {
  code?: number;
  reason?: string;
  waitMs?: number;
}

/**
 * A source of time. `now` should not run back; `wall` is the time of day, by which tokens expire (without it `now` is).
 * `nextTurn` runs a function in the next macrotask; without it `setTimeout(action, 0)` does.
 */
export interface Clock {
  now(): number;
  wall?(): number;
  setTimeout(action: () => void, ms: number): unknown;
  clearTimeout(handle: any): void;
  nextTurn?(action: () => void): void;
}

/** `localStorage`, `sessionStorage`, or anything alike. */
export interface SessionStorage {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
  removeItem(key: string): void;
}

export interface EventBusOptions {
  /** A JWT, or a function that gets one: called before connecting, before the token expires, and when it was refused. */
  token?: string | (() => Promise<string> | string);
  /** `[A-Za-z0-9_-]{1,64}`, one a device or tab. Default: the node makes one. */
  session?: string;
  /** Where a session that does not exist yet begins. Default: `cursor` when one is given, else `earliest`. */
  start?: "new" | "earliest" | "cursor";
  /** An entry id that the page already shows everything up to. */
  cursor?: string;
  /** Most events under way at once: 1 to 1024, default 256. */
  window?: number;
  filter?: Filter;
  /** The next event is handed over, and this one acked, when the returned promise has resolved. */
  onEvent(event: BusEvent<any>, delivery: Delivery): unknown;
  /** In order with the events; a returned promise holds back the next event. */
  onGap?(gap: Gap): unknown;
  onState?(state: State, detail: StateDetail): unknown;
  /** Default: `console.error`. */
  onError?(error: EventBusError): void;
  onDropped?(dropped: Dropped): unknown;
  /** Another session of the user was first with these `deliver: any` events (entry ids): they are not handed over here. */
  onReleased?(ids: string[]): unknown;
  /** At once, ahead of events that are queued. */
  onText?(part: TextPart): unknown;
  /** false: the client connects when `connect()` is called, for instance after it has read a history. */
  connect?: boolean;
  /** What becomes of an event whose handler failed: delivered again (default), or acked and left. */
  failedEvents?: "redeliver" | "skip";
  /** How long a failed event waits for its redelivery. Default: the node's own growing wait, from 1 s. */
  nackDelayMs?: number;
  /** Keeps the session over reloads. Default: it lives as long as the client. */
  storage?: SessionStorage;
  /** Default: `eventbus:` and the address. Give each user of a shared browser their own. */
  storageKey?: string;
  /** Default: `globalThis.WebSocket`. In Node 20 the class of the package `ws`. */
  WebSocket?: new (url: string, protocols: string[]) => any;
  /** For `history`, `threads` and `presence`. Default: `globalThis.fetch`. */
  fetch?: typeof fetch;
  clock?: Clock;
  /** From 0 to 1, for the jitter. Default: `Math.random`. */
  random?: () => number;
}

export declare class EventBusClient {
  constructor(url: string | URL, options: EventBusOptions);
  readonly state: State;
  readonly session: string | undefined;
  readonly cursor: string | undefined;
  /** With the option `connect: false`: connects. Does nothing when it has been called before. */
  connect(): void;
  /** Sends what waits, closes, calls no handler any more. Resolves when the socket is closed. */
  close(): Promise<void>;
  /**
   * The user has seen the event. With an element: as soon as it has been in sight for a second (half of it, or half of the
   * window full of it, uncovered, on a page that is shown), once. Without: now.
   * Throws `unknown_event` for an event that was not handed over here lately, a TypeError for what is no element.
   */
  displayed(event: Pick<BusEvent, "id">, element?: Element): void;
  /** The user got the value. `note`: at most 256 characters. */
  confirm(event: Pick<BusEvent, "id">, note?: string): void;
  /** Sends a command to the agent. Resolves with the command's id when it is stored; kept over reconnects until then. */
  send(type: string, data?: Record<string, unknown>, options?: CommandOptions): Promise<string>;
  /** Asks for the end of a run. Resolves when the wish is stored; the run's `agent_completed` tells when it has ended. */
  cancel(run: string, reason?: string): Promise<string>;
  /** Answers a question: `question` is the id in the data of the event `agent_question`. */
  answer(question: string, answer: unknown, options?: CommandOptions): Promise<string>;
  /** The user's words for the agent. */
  message(text: string, options?: CommandOptions): Promise<string>;
  /** Changes the filter from here on (none: everything), also for later connections. Resolves when the node has it. */
  filter(filter?: Filter): Promise<void>;
  /** The text of a token stream (default: `text`) so far; undefined when nothing of it has come here. */
  text(run: string, stream?: string): string | undefined;
  /** The user's retained events. Read before the first connection, the session begins behind them. */
  history(options?: HistoryOptions): Pages<HistoryPage>;
  threads(options?: { limit?: number; before?: string }): Pages<ThreadsPage>;
  /** The user's sessions that are live now. */
  presence(): Promise<Presence>;
}

export declare class EventBusError extends Error {
  readonly code: string;
  readonly retryable: boolean;
  readonly closeCode?: number;
  /** With `handler_failed`: the event. */
  readonly event?: BusEvent;
  /** Of a request beside the socket: the HTTP status, and the parameter that was wrong. */
  readonly status?: number;
  readonly field?: string;
}
