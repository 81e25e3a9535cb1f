import { EventBusClient, EventBusError, type EventBusOptions, type SessionStorage } from "./eventbus-client.js";

export { EventBusClient, EventBusError };

export interface SharedEventBusOptions extends EventBusOptions {
  /** Whose tabs share: required unless `name` is given. Tabs of different users never share. */
  user?: string;
  /** What the tabs that share have in common. Default: `eventbus:`, the address and the user. */
  name?: string;
  /** Where the tabs keep their session. Default: `localStorage`; it must be one that they share. */
  storage?: SessionStorage;
  /** Where this tab keeps its place over a reload. Default: `sessionStorage`. */
  ownStorage?: SessionStorage;
  /** For tests. Default: `navigator.locks`. */
  locks?: { request(name: string, options: object, callback: () => unknown): Promise<unknown> };
  /** For tests. Default: `globalThis.BroadcastChannel`. */
  BroadcastChannel?: new (name: string) => any;
  /** For tests. Default: the window. */
  page?: {
    readonly hidden: boolean;
    addEventListener(type: string, listener: (event: any) => void): void;
    removeEventListener(type: string, listener: (event: any) => void): void;
  };
}

/**
 * An EventBusClient for all tabs of one origin and user: they share one connection and one session, and each tab is given
 * each event once and in order. An event is acked when all tabs that were there have handled it.
 */
export declare class SharedEventBusClient {
  constructor(url: string | URL, options: SharedEventBusOptions);
  /** False where the browser lacks Web Locks or BroadcastChannel: this tab then has a connection of its own. */
  readonly shared: boolean;
  readonly state: EventBusClient["state"];
  readonly session: string | undefined;
  /** The highest entry id up to which every event has been handled in this tab. */
  readonly cursor: string | undefined;
  connect(): void;
  close(): Promise<void>;
  displayed: EventBusClient["displayed"];
  confirm: EventBusClient["confirm"];
  send: EventBusClient["send"];
  cancel: EventBusClient["cancel"];
  answer: EventBusClient["answer"];
  message: EventBusClient["message"];
  /** Changes the filter of the session, which is that of all tabs. */
  filter: EventBusClient["filter"];
  text: EventBusClient["text"];
  history: EventBusClient["history"];
  threads: EventBusClient["threads"];
  presence: EventBusClient["presence"];
}
