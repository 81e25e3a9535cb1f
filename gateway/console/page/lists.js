/** The views that are lists: what waits, dead letters, users, runs, nodes, the audit log. */

import { actionButton, openAction } from "./action.js";
import { get } from "./api.js";
import { address, card, goTo, h, link, nothing, renew, Table, when } from "./dom.js";
import { count, time, words } from "./format.js";
import { deadTable, meaningsOf, nodesTable, pager, pendingTable, runsTable, tag, tellCount } from "./parts.js";

const LIMIT = 50;
const PAGES_AT_ONCE = 20;
const LOOK_LIMIT = 250; // with a filter the API looks at so many and gives those that fit
const DEAD_FIELDS = ["user", "session", "type", "reason"];

export function pending({ query, signal }) {
  const table = pendingTable({ withUser: true, inWords: false, empty: nothing("Nothing waits.", "Every session has acked what it was sent, and read what is stored.") });
  const [above, below] = [h("div"), h("div")];
  return {
    title: "Pending",
    element: card("Sessions for which something waits, the longest first", above, table.element, below),
    every: query.cursor ? undefined : 5000,
    async load(first) {
      const page = await get("pending", { cursor: query.cursor, limit: LIMIT }, signal);
      table.update(page.pending, page.cursor);
      renew(above, page.pending.map((row) => row.verdict), () => page.pending.length > 0 && meaningsOf(page.pending));
      pager(below, { cursor: query.cursor, next: page.cursor, path: ["pending"], query: {} });
      if (first) tellCount(page.pending.length, "sessions", "on this page");
    },
  };
}

// --- dead letters -----------------------------------------------------------------------------------------------------

export function dead({ query, signal, reload }) {
  const chosen = new Set();
  const { cursor } = query;
  const where = Object.fromEntries(DEAD_FIELDS.filter((name) => query[name]).map((name) => [name, query[name]]));
  const narrowed = Object.keys(where).length > 0;
  let rows = [];
  const every = h("input", { type: "checkbox", "aria-label": "Choose all on this page", on: { change: () => {
    chosen.clear();
    if (every.checked) for (const { id } of rows) chosen.add(id);
    for (const box of table.table.querySelectorAll("tbody input")) box.checked = every.checked;
    changed();
  } } });
  const table = deadTable({ withUser: true, chosen, changed, all: every, empty: nothing(narrowed ? "The filter finds no dead letters." : "There are no dead letters here.", "What is given up after its last attempt appears here with its reason.") });
  const below = h("div");
  const field = (name, title) => [h("label", { for: `dead-${name}` }, title), h("input", { id: `dead-${name}`, name, value: where[name] ?? "", autocomplete: "off", spellcheck: "false" })];
  const filter = h("form", { class: "filter", role: "search", "aria-label": "Filter dead letters", on: { submit: (event) => {
    event.preventDefault();
    const given = Object.fromEntries([...new FormData(filter)].map(([name, value]) => [name, value.trim()]));
    goTo(address("dead", given));
  } } }, field("user", "User"), field("session", "Session"), field("type", "Type"), field("reason", "Reason"), h("button", { type: "submit" }, "Filter"), link("Clear", "dead"));
  const forChosen = (action) => h("button", { type: "button", class: action === "drop" && "grave", "aria-haspopup": "dialog", on: { click: () => openAction({ action, letters: [...chosen] }, after) } });
  const replay = forChosen("replay"), drop = forChosen("drop");
  const all = narrowed ? "all found" : "all";
  const buttons = h("div", { class: "buttons bar" }, replay, drop, h("span", { class: "between" }),
    actionButton({ action: "replay", where }, { after, text: `Replay ${all} …` }),
    actionButton({ action: "replay", where, to: "everyone" }, { after, text: `Replay ${all} to everyone …` }),
    actionButton({ action: "drop", where }, { after, text: `Drop ${all} …` }));
  changed();

  function changed() {
    for (const [button, name] of [[replay, "Replay"], [drop, "Drop"]]) {
      button.textContent = chosen.size ? `${name} ${chosen.size} chosen …` : `${name} chosen …`;
      button.disabled = chosen.size === 0;
    }
    every.checked = rows.length > 0 && chosen.size === rows.length;
    every.indeterminate = chosen.size > 0 && !every.checked;
  }

  function after() {
    chosen.clear();
    for (const box of table.table.querySelectorAll("tbody input")) box.checked = false;
    changed();
    reload();
  }

  /** With a filter a page may be empty and still go on: so many are looked at, and the next ones are a page away. */
  async function found() {
    const limit = narrowed ? LOOK_LIMIT : LIMIT;
    let page = { cursor };
    const found = [];
    let looks = 0;
    do {
      page = await get("dead-letters", { ...where, cursor: page.cursor, limit }, signal);
      found.push(...page.dead_letters);
      looks += 1;
    } while (page.cursor && found.length < LIMIT && looks < PAGES_AT_ONCE);
    return { found, next: page.cursor, looks };
  }

  const made = {
    title: "Dead letters",
    element: card("What was given up, the oldest first", filter, table.element, buttons, below),
    every: cursor ? undefined : 5000,
    async load(first) {
      const { found: letters, next, looks } = await found();
      if (looks > 2) made.every = undefined; // a filter that finds little in many is not asked again by itself
      rows = letters;
      table.update(rows, next);
      const shown = new Set(rows.map(({ id }) => id));
      for (const id of [...chosen]) if (!shown.has(id)) chosen.delete(id); // somebody else has dealt with it
      changed();
      buttons.hidden = rows.length === 0;
      pager(below, { cursor, next, path: ["dead"], query: where });
      if (first) tellCount(rows.length, "dead letters", "on this page");
    },
  };
  return made;
}

// --- users, runs ------------------------------------------------------------------------------------------------------

export function users({ signal }) {
  const input = h("input", { id: "user-name", name: "user", autocomplete: "off", spellcheck: "false", required: true, maxlength: 128 });
  const form = h("form", { class: "filter", on: { submit: (event) => {
    event.preventDefault();
    goTo(address("user", input.value.trim()));
  } } }, h("label", { for: "user-name" }, "User id"), input, h("button", { type: "submit" }, "Show"));
  const table = pendingTable({ withUser: true, inWords: false, empty: nothing("Nobody waits for anything.") });
  const above = h("div");
  return {
    title: "Users",
    element: h("div", { class: "stack" }, card("A user by name", form, h("p", { class: "small" }, "Sessions, what waits and why, runs, dead letters, rates.")), card("Users for whom something waits longest", above, table.element)),
    async load() {
      const { pending: rows } = await get("pending", { limit: 10 }, signal);
      table.update(rows);
      above.replaceChildren(rows.length ? meaningsOf(rows) : "");
    },
  };
}

export function runs({ query, signal }) {
  const table = runsTable({ withUser: true, empty: nothing("No run was found.", "Runs are remembered for the retention.") });
  const user = h("input", { id: "runs-user", name: "user", value: query.user ?? "", autocomplete: "off", spellcheck: "false" });
  const choices = ["", "requested", "running", "completed"].map((one) => h("option", { value: one, selected: one === (query.state ?? "") }, one || "any"));
  const state = h("select", { id: "runs-state", name: "state" }, choices);
  const form = h("form", { class: "filter", role: "search", "aria-label": "Find runs", on: { submit: (event) => {
    event.preventDefault();
    goTo(address("runs", { user: user.value.trim(), state: state.value, find: "1" }));
  } } }, h("label", { for: "runs-user" }, "User"), user, h("label", { for: "runs-state" }, "State"), state, h("button", { type: "submit" }, "Find"));
  const note = h("p", { class: "small" }, "Runs are found by a look at all keys, up to 100,000 runs: cheap for an idle Redis, dear for a busy one. A user's own page lists the newest without it.");
  const below = h("p", { class: "small" });
  table.element.hidden = !query.find;
  return {
    title: "Runs",
    element: card("Runs of agents, the newest first", form, note, table.element, below),
    async load(first) {
      if (!query.find) return;
      const found = await get("runs", { user: query.user, state: query.state, limit: 100 }, signal);
      table.update(found.runs.reverse());
      below.textContent = found.more ? "There are more; these are the newest." : "";
      if (first) tellCount(found.runs.length, "runs");
    },
  };
}

// --- nodes, audit -----------------------------------------------------------------------------------------------------

export function nodes({ signal, reload, live }) {
  const table = nodesTable({ after: reload });
  return {
    title: "Nodes",
    element: card("Nodes that tell of themselves, and those that an operator drains", table.element),
    onFigures: () => table.update(live.figures.nodes),
    async load(first) {
      const { nodes: rows } = await get("nodes", {}, signal);
      table.update(rows);
      if (first) tellCount(rows.length, "nodes");
    },
  };
}

export function audit({ query, signal }) {
  const table = new Table({
    caption: "What operators did", key: (row) => row.id, empty: nothing("Nobody has done anything yet.", "Every action is written down here with who did it, when and why."),
    columns: [
      { title: "When", cell: (row) => when(row.time_ms) },
      { title: "Who", cell: (row) => row.by || "–" },
      { title: "Action", cell: (row) => words(row.action ?? "–") },
      { title: "State", cell: (row) => tag(row.state === "done" ? "ok" : "away", row.state) },
      { title: "About", cell: (row) => h("span", { class: "mono" }, about(row.about)) },
      { title: "Items", number: true, cell: (row) => count(row.count) },
      { title: "Results", cell: (row) => Object.entries(row.results ?? {}).map(([name, number]) => `${words(name)}: ${count(number)}`).join(", ") || "–" },
      { title: "Why", cell: (row) => row.reason || "–" },
      { title: "Operation", cell: (row) => h("code", {}, row.operation ?? "–") },
    ],
  });
  const below = h("div");
  return {
    title: "Audit",
    element: card("What operators did, the newest first", table.element, below),
    every: query.cursor ? undefined : 5000,
    async load(first) {
      const page = await get("audit", { cursor: query.cursor, limit: LIMIT }, signal);
      table.update(page.audit, page.cursor);
      pager(below, { cursor: query.cursor, next: page.cursor, path: ["audit"], query: {} });
      if (first) tellCount(page.audit.length, "records", "on this page");
    },
  };
}

function written(value) {
  if (Array.isArray(value)) return value.join(" ");
  if (typeof value !== "object") return value;
  return Object.entries(value).map(([name, one]) => (name.endsWith("_ms") ? `${words(name.slice(0, -3))} ${time(one)}` : `${name} ${one}`)).join(", ") || "all";
}

function about(what) {
  return Object.entries(what ?? {}).map(([name, value]) => `${name} ${written(value)}`).join(", ") || "–";
}
