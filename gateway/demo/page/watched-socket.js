/**
 * A WebSocket class for the client's option `WebSocket` that tells what goes over it: which node is at the other end, what
 * was delivered again, what was acked. The page shows it; the client works the same without.
 *
 * `hooks`: welcomed(frame), delivered(item, {node, again}), acked(ids).
 */
export function watchedSocket(hooks, Base = globalThis.WebSocket) {
  const seen = new Set(); // event ids that came over any of the connections
  return class WatchedSocket extends Base {
    #node = "";

    constructor(url, protocols) {
      super(url, protocols);
      // Added before the client sets its own handler, so it runs before it.
      this.addEventListener("message", ({ data }) => this.#look(JSON.parse(data)));
    }

    send(text) {
      super.send(text);
      const frame = JSON.parse(text);
      if (frame.op === "ack" && frame.ids) hooks.acked(frame.ids);
    }

    #look(frame) {
      if (frame.op === "welcome") {
        this.#node = frame.node;
        hooks.welcomed(frame);
      } else if (frame.op === "events") {
        for (const item of frame.events) {
          hooks.delivered(item, { node: this.#node, again: seen.has(item.event.id) });
          seen.add(item.event.id);
        }
      }
    }
  };
}
