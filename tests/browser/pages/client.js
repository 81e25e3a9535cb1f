// A client by the plan in the page's address (JSON after the #), and a record of all that it sees: in `records`, and in the
// browser's storage, where it survives the page. The records are those of clients/js/support/reader.js.
// Plan: {module, url, options, storage, speed, blockMs, slowMs}.
const plan = JSON.parse(decodeURIComponent(location.hash.slice(1)));

const tab = Math.random();
window.records = [];
const say = (what, fields = {}) => {
  const record = { what, ...fields, tab };
  window.records.push(record);
  localStorage.setItem(`${localStorage.length}`.padStart(6, "0"), JSON.stringify(record));
};
window.remembered = () => Object.keys(localStorage).sort().map((key) => JSON.parse(localStorage.getItem(key)));
window.addEventListener("error", ({ message }) => say("failure", { message }));
window.addEventListener("unhandledrejection", ({ reason }) => say("failure", { message: `${reason}` }));
document.addEventListener("visibilitychange", () => say("visibility", { visibility: document.visibilityState }));

const { EventBusClient } = await import(plan.module);

function fastClock(speed) {
  const beginMs = Date.now();
  return {
    now: () => beginMs + (Date.now() - beginMs) * speed,
    setTimeout: (action, ms) => setTimeout(action, ms / speed),
    clearTimeout: (handle) => clearTimeout(handle),
  };
}

/** A page that computes for so long while the browser connects. */
class BlockedSocket extends WebSocket {
  constructor(...address) {
    super(...address);
    const untilMs = performance.now() + plan.blockMs;
    plan.blockMs = 0;
    setTimeout(() => { while (performance.now() < untilMs); }, 0);
  }
}

let inHandler = 0;
let handled = 0;
say("page");
window.client = new EventBusClient(plan.url, {
  token: async () => {
    const response = await fetch("/my/token", { method: "POST" });
    if (!response.ok) throw new Error(`no token: ${response.status}`);
    return response.text();
  },
  ...(plan.speed ? { clock: fastClock(plan.speed) } : {}),
  ...(plan.blockMs ? { WebSocket: BlockedSocket } : {}),
  ...(plan.storage ? { storage: sessionStorage } : {}),
  ...plan.options,
  onEvent: async (event, meta) => {
    inHandler += 1;
    await (plan.slowMs ? new Promise((resolve) => setTimeout(resolve, plan.slowMs)) : undefined);
    say("event", { id: event.id, number: event.data.number, ...meta, inHandler });
    inHandler -= 1;
    handled += 1;
    document.querySelector("#count").textContent = `${handled}`;
    await window.whenHandled?.(event);
  },
  onState: (state, detail) => {
    say("state", { state, ...detail, session: window.client.session, cursor: window.client.cursor });
    document.querySelector("#state").textContent = state;
  },
  onGap: (gap) => say("gap", gap),
  onDropped: (dropped) => say("dropped", dropped),
  onReleased: (ids) => say("released", { ids }),
  onError: ({ code, message, retryable, closeCode }) => say("error", { code, message, retryable, closeCode }),
});
