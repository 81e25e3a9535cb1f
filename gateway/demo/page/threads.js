/** The list of conversations. What each is called is its first question, read from its history once. */

import { element } from "./steps.js";

const SHOWN = 15;

export class Threads {
  #list;
  #open;
  #titles = new Map(); // thread -> its first question
  #threads = [];
  #naming; // while titles are being read
  #current;

  /** `list` is an ul, `open(thread)` is called when one is chosen. */
  constructor(list, open) {
    this.#list = list;
    this.#open = open;
  }

  /** A conversation is shown from here on; it may be so new that no event of it is stored. */
  show(current) {
    this.#current = current;
    this.#draw();
  }

  /** The first question of a conversation is known. */
  called(thread, title) {
    if (this.#titles.has(thread)) return;
    this.#titles.set(thread, title);
    // It has an event, so the node's next list has it; until then the page must not lose it.
    if (!this.#threads.includes(thread)) this.#threads.unshift(thread);
    this.#draw();
  }

  /** Asks a node for the list. Throws the client's errors. */
  async refresh(client) {
    const { threads } = await client.threads({ limit: SHOWN });
    this.#threads = threads.map(({ thread }) => thread);
    this.#draw();
    this.#naming ??= this.#name(client).finally(() => (this.#naming = undefined));
  }

  async #name(client) {
    for (const thread of this.#threads) {
      if (this.#titles.has(thread)) continue;
      try {
        this.called(thread, await firstQuestion(client, thread));
      } catch {
        return; // no node answers: the next time
      }
    }
  }

  /** The latest conversation of which anything is stored. */
  get latest() {
    return this.#threads[0];
  }

  #draw() {
    const all = this.#threads.includes(this.#current) || !this.#current ? this.#threads : [this.#current, ...this.#threads];
    const before = [...this.#list.querySelectorAll("button")].map((button) => `${button.dataset.thread} ${button.textContent}`);
    const title = (thread) => this.#titles.get(thread) ?? "New conversation";
    if (before.join("\n") !== all.map((thread) => `${thread} ${title(thread)}`).join("\n")) {
      const focused = document.activeElement?.dataset.thread;
      this.#list.replaceChildren(...all.map((thread) => this.#item(thread, title(thread))));
      if (focused) this.#list.querySelector(`[data-thread="${CSS.escape(focused)}"]`)?.focus();
    }
    for (const button of this.#list.querySelectorAll("button")) {
      if (button.dataset.thread === this.#current) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  #item(thread, title) {
    const button = element("button", "thread", element("span", "", title));
    button.type = "button";
    button.dataset.thread = thread;
    button.title = title;
    button.onclick = () => this.#open(thread);
    return element("li", "", button);
  }
}

async function firstQuestion(client, thread) {
  for await (const page of client.history({ thread, type: "visitor_asked", limit: 1 })) {
    if (page.events.length > 0) return page.events[0].event.data.question;
  }
  return "(no question)";
}
