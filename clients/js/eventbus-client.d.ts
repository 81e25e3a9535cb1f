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

/** A part of a token stream that begins at character `offset`; 0 means everything so far. */
export interface TextPart {
  run: string;
  stream: string;
  offset: number;
  text: string;
  final?: boolean;
}

export interface Filter {
  types?: string[];
  threads?: string[];
  runs?: string[];
}

export type State = "connecting" | "open" | "catching_up" | "live" | "waiting" | "closed";

/** With `waiting` and `closed`: why. `waitMs` until the next attempt (only `waiting`). */
export interface StateDetail {
  code?: number;
  reason?: string;
  waitMs?: number;
}

/** A source of time. `nextTurn` runs a function in the next macrotask; without it `setTimeout(action, 0)` does. */
export interface Clock {
  now(): number;
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
  onText?(part: TextPart): unknown;
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
  clock?: Clock;
  /** From 0 to 1, for the jitter. Default: `Math.random`. */
  random?: () => number;
}

export declare class EventBusClient {
  constructor(url: string | URL, options: EventBusOptions);
  readonly state: State;
  readonly session: string | undefined;
  readonly cursor: string | undefined;
  close(): Promise<void>;
  displayed(event: Pick<BusEvent, "id">): void;
  confirm(event: Pick<BusEvent, "id">, note?: string): void;
  send(type: string, data: Record<string, unknown>, to?: { run?: string; thread?: string }): Promise<{ id: string }>;
  setFilter(filter?: Filter): Promise<void>;
}

export declare class EventBusError extends Error {
  readonly code: string;
  readonly retryable: boolean;
  readonly closeCode?: number;
  /** With `handler_failed`: the event. */
  readonly event?: BusEvent;
}
