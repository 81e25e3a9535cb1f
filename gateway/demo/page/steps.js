/** How an event looks on the page. Everything that came in an event goes into the page as text, never as markup. */

export function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children); // strings become text nodes
  return made;
}

const TICKS = {
  received: ["✓", "received by a tab"], displayed: ["✓✓", "on screen"], confirmed: ["✓✓✓", "confirmed by you"],
};

/** A place for an event's ticks: how far it has come, as the agent's side knows. */
export function ticksOf(event) {
  const place = element("span", "ticks");
  place.dataset.event = event.id;
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", "not confirmed yet");
  return place;
}

export function showTicks(place, level) {
  if (level === undefined || place.dataset.level === level) return;
  const [text, words] = TICKS[level];
  place.dataset.level = level;
  place.textContent = text;
  place.title = words;
  place.setAttribute("aria-label", words);
}

/** One event as an item of the list. `back`: it was read back, and not delivered to this page. */
export function stepItem({ number, event, entry, delivery, node, acked, back }) {
  const outcome = event.data.error !== undefined ? "failed" : event.type === "agent_completed" ? event.data.outcome : "";
  const body = element("div", "body", element("span", "type", event.type), ...told(event));
  const meta = element(
    "div", "meta",
    element("span", "entry", entry),
    element("span", delivery > 1 ? "again" : "", back ? "read back" : `delivery ${delivery}`),
    element("span", "by", back ? "" : `by ${node}`),
    element("span", "ack", ""),
    ticksOf(event),
  );
  const item = element("li", outcome, element("span", "number", String(number)), body, meta);
  item.dataset.type = event.type;
  item.dataset.entry = entry;
  if (acked) markAcked(item);
  return item;
}

export function markAcked(item) {
  const mark = item.querySelector(".ack");
  mark.textContent = "acked";
  mark.className = "ack acked";
}

/** Something that happened between two events. */
export function noteItem({ text, back }) {
  return element("li", back ? "note back" : "note", text);
}

function told({ type, data }) {
  if (type === "agent_started") return [data.agent];
  if (type === "visitor_asked") return [element("strong", "", data.question), ` (${data.file})`];
  if (type === "agent_thinking") return [element("em", "", data.text)];
  if (type === "tool_executing") return [element("code", "", `${data.tool}(${argumentsOf(data.arguments)})`)];
  if (data.error !== undefined) return [data.tool ? element("code", "", data.tool) : "", " ", data.error];
  if (type === "tool_completed") return [element("code", "", data.tool), " ", ...shown(data.result)];
  if (type === "agent_question") return [data.text, ` (${(data.options ?? []).length} options)`];
  if (type === "agent_answered") return [element("strong", "", String(data.answer)), ` (by ${data.by === "user" ? "you" : "the deadline"})`];
  if (type === "agent_text") return [`the whole answer, ${[...data.text].length} characters${data.partial ? ", as far as it came" : ""}`];
  if (type === "agent_completed") return [element("strong", "", data.outcome)];
  return [element("code", "", JSON.stringify(data))];
}

function argumentsOf(given = {}) {
  return Object.entries(given).map(([name, value]) => `${name}: ${JSON.stringify(value)}`).join(", ");
}

/** A tool's result: its plain values in a line, its lists below. */
function shown(result) {
  if (result === null || typeof result !== "object" || Array.isArray(result)) return [String(result)];
  const plain = [];
  const lists = [];
  for (const [name, value] of Object.entries(result)) {
    if (!Array.isArray(value)) plain.push(`${name.replaceAll("_", " ")}: ${value}`);
    else if (value.length > 0) lists.push([name, value]);
  }
  return [plain.join(", "), ...lists.map(([name, value]) => listed(name, value))];
}

function listed(name, values) {
  if (values.every((value) => value && "word" in value)) {
    const words = values.map(({ word, count }) => `${word} ${count}`).join(", ");
    return element("ul", "", element("li", "", `${name.replaceAll("_", " ")}: ${words}`));
  }
  return element("ul", "", ...values.map(({ line, text }) => element("li", "", `line ${line}: ${text}`)));
}
