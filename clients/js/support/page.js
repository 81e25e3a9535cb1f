/** A page as a client sees it: the events of its life, and whether it is hidden. */
export class FakePage {
  #listeners = new Map(); // type -> Set
  hidden = false;

  addEventListener(type, listener) {
    if (!this.#listeners.has(type)) this.#listeners.set(type, new Set());
    this.#listeners.get(type).add(listener);
  }

  removeEventListener(type, listener) {
    this.#listeners.get(type)?.delete(listener);
  }

  /** How many listeners it has. */
  get listening() {
    return [...this.#listeners.values()].reduce((count, { size }) => count + size, 0);
  }

  /** Something happens to the page. */
  happens(type, fields = {}) {
    for (const listener of [...(this.#listeners.get(type) ?? [])]) listener({ type, ...fields });
  }

  hide() {
    this.hidden = true;
    this.happens("visibilitychange");
  }

  show() {
    this.hidden = false;
    this.happens("visibilitychange");
  }
}
