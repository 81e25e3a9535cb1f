/** A browser for tests: locks, channels, storage and pages for tabs that live in one process. */

import { setImmediate } from "node:timers";
import { FakePage } from "./page.js";

/** What a page keeps, as `localStorage` does. */
export function storage() {
  const kept = new Map();
  return {
    kept,
    getItem: (key) => kept.get(key) ?? null,
    setItem: (key, value) => void kept.set(key, value),
    removeItem: (key) => void kept.delete(key),
  };
}

export class FakeBrowser {
  #channels = new Set(); // {name, tab, onmessage}
  #locks = new Map(); // name -> [{tab, run, reject, held}]: the first holds it
  local = storage();
  /** Messages that were posted, for tests that look at them. */
  posted = [];

  /** A new tab: what a page in it finds of the browser. */
  tab() {
    return new FakeTab(this);
  }

  // ---- locks, as Web Locks has them: exclusive, first come first served

  request(tab, name, { steal = false, signal }, callback) {
    return new Promise((resolve, reject) => {
      const line = this.#locks.get(name) ?? [];
      this.#locks.set(name, line);
      const run = async () => {
        try {
          resolve(await callback({ name }));
        } catch (error) {
          reject(error);
        }
        this.#leaveLine(name, request);
      };
      const request = { tab, run, reject, held: false };
      signal?.addEventListener("abort", () => {
        if (request.held) return;
        reject(new DOMException("aborted", "AbortError"));
        this.#leaveLine(name, request);
      });
      if (steal && line.length > 0) line.shift().reject(new DOMException("stolen", "AbortError"));
      if (steal) line.unshift(request);
      else line.push(request);
      if (line[0] === request) setImmediate(() => this.#grant(name));
    });
  }

  #grant(name) {
    const [first] = this.#locks.get(name);
    // The browser's lock is taken at once; a page that hangs learns of it later.
    if (!first || first.held) return;
    first.held = true;
    first.tab.run(first.run);
  }

  #leaveLine(name, request) {
    const line = this.#locks.get(name);
    const place = line.indexOf(request);
    if (place < 0) return;
    line.splice(place, 1);
    if (place === 0) setImmediate(() => this.#grant(name));
  }

  holder(name) {
    return [...(this.#locks.get(name) ?? [])].find(({ held }) => held)?.tab;
  }

  // ---- channels: a copy to all others of that name, later

  join(channel) {
    this.#channels.add(channel);
  }

  leave(channel) {
    this.#channels.delete(channel);
  }

  post(sender, message) {
    const copy = structuredClone(message);
    this.posted.push(copy);
    if (!sender.tab.alive) return;
    const receivers = [...this.#channels].filter((one) => one !== sender && one.name === sender.name);
    for (const receiver of receivers) {
      setImmediate(() => receiver.tab.run(() => this.#channels.has(receiver) && receiver.onmessage?.({ data: structuredClone(copy) })));
    }
  }

  /** The tab's process is gone: nothing of it runs any more, its locks go on. */
  crashed(tab) {
    for (const channel of [...this.#channels]) if (channel.tab === tab) this.#channels.delete(channel);
    for (const [name, line] of this.#locks) {
      for (const request of line.filter((one) => one.tab === tab)) this.#leaveLine(name, request);
    }
  }
}

export class FakeTab extends FakePage {
  #browser;
  #frozen; // what waits while the page is frozen
  alive = true;
  own = storage();

  constructor(browser) {
    super();
    this.#browser = browser;
  }

  /** The options that a client in this tab is given. */
  get options() {
    const browser = this.#browser;
    const tab = this;
    return {
      locks: { request: (name, options, callback) => browser.request(tab, name, options, callback) },
      storage: browser.local,
      ownStorage: this.own,
      page: this,
      BroadcastChannel: class {
        constructor(name) {
          Object.assign(this, { name, tab });
          browser.join(this);
        }

        postMessage(message) {
          browser.post(this, message);
        }

        close() {
          browser.leave(this);
        }
      },
    };
  }

  /** Messages reach a page that is neither frozen nor gone. */
  run(action) {
    if (this.#frozen) this.#frozen.push(action);
    else if (this.alive) action();
  }

  /** Nothing runs in it, and it is not told before. */
  hang() {
    this.#frozen = [];
  }

  goOn() {
    const waiting = this.#frozen;
    this.#frozen = undefined;
    for (const action of waiting) action();
  }

  crash() {
    this.alive = false;
    this.#browser.crashed(this);
  }
}
