/** Parts that several views share: tables of sessions, of what waits, of dead letters and runs; pages; words. */

import { actionButton } from "./action.js";
import { address, h, link, nothing, prose, renew, say, Table, when } from "./dom.js";
import { count, percent, span, words } from "./format.js";

const ID_MAX = 16, ID_END = 12;

let meanings = { verdicts: {}, fates: {} };

export async function loadWords() {
  const response = await fetch("/console/words.json");
  if (response.ok) meanings = await response.json();
}

const LOOKS = {
  live: "good", acked: "good", ready: "good", completed: "good", ok: "good", met: "good",
  in_flight: "", arriving: "", running: "", requested: "wait", away: "", offline: "", before_session: "", filtered: "", released: "",
  slow: "wait", expired: "wait", trimmed: "wait", skipped: "wait", pending: "wait", not_read: "wait", draining: "wait", held: "wait", node_gone: "wait",
  nacking: "bad", not_acking: "bad", dead_lettered: "bad", not_ready: "bad", gone: "bad", node_not_ready: "bad", unknown: "wait", failed: "bad", missed: "bad",
};

/** A state or verdict in one word; what it means is never told by colour alone. */
export const tag = (word, text) => h("span", { class: `tag ${LOOKS[word] ?? ""}` }, text ?? words(word));

export const verdict = (word) => [tag(word), h("span", { class: "why" }, prose(meanings.verdicts[word] ?? ""))];
export const fateMeaning = (word) => meanings.fates[word] ?? "";

export const facts = (pairs) => h("dl", { class: "facts" }, pairs.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));

/** A tile of the overview, whose value changes in place. */
export class Tile {
  constructor(title) {
    this.value = h("dd", { class: "value" }, "–");
    this.detail = h("dd", { class: "small" }, "\u00a0");
    this.element = h("div", { class: "tile" }, h("dt", {}, title), this.value, this.detail);
  }

  show(value, detail, look = "") {
    const link = this.value.querySelector("a");
    // A link stays the same one, which may have the focus; its text is new.
    if (link && link.getAttribute("href") === value.getAttribute?.("href")) link.textContent = value.textContent;
    else this.value.replaceChildren(value);
    renew(this.detail, detail, () => detail);
    this.element.className = `tile ${look}`;
  }
}

/** What the verdicts on a page mean, each once, with how many sessions have it. */
export function meaningsOf(rows) {
  const counts = new Map();
  for (const { verdict: word } of rows) counts.set(word, (counts.get(word) ?? 0) + 1);
  const most = [...counts].sort(([, one], [, other]) => other - one);
  return h("dl", { class: "meanings" }, most.map(([word, number]) => h("div", {},
    h("dt", {}, tag(word), h("span", { class: "number" }, ` ${count(number)} ${number === 1 ? "session" : "sessions"}`)), h("dd", {}, prose(meanings.verdicts[word] ?? "")))));
}

/** Sessions and why something waits for them; `inWords` where there are few, each with the sentence. */
export function pendingTable({ withUser = false, withSession = true, empty, inWords = true }) {
  return new Table({
    caption: "Sessions for which something waits",
    key: (row) => `${row.user} ${row.session}`,
    empty,
    columns: [
      withUser && { title: "User", cell: (row) => link(row.user, "user", row.user) },
      withSession && { title: "Session", cell: (row) => link(row.session, "user", row.user, "session", row.session) },
      { title: "Why it waits", cell: (row) => (inWords ? verdict(row.verdict) : tag(row.verdict)) },
      { title: "Oldest", number: true, cell: (row) => span(row.oldest_ms) },
      { title: "Pending", number: true, cell: (row) => count(row.pending) },
      { title: "Not read yet", number: true, cell: (row) => (row.unread >= 1000 ? "1,000+" : count(row.unread)) },
      { title: "Deliveries", number: true, cell: (row) => count(row.deliveries) },
      { title: "Node", cell: (row) => row.node ?? "–" },
    ].filter(Boolean),
  });
}

export function runsTable({ withUser, empty }) {
  return new Table({
    caption: "Runs of agents",
    key: (row) => `${row.user} ${row.run}`,
    empty,
    columns: [
      { title: "Run", cell: (row) => h("span", { class: "mono nowrap" }, link(row.run, "run", row.user, row.run)) },
      withUser && { title: "User", cell: (row) => link(row.user, "user", row.user) },
      { title: "Agent", cell: (row) => row.agent || "–" },
      { title: "State", cell: (row) => tag(row.outcome === "success" ? "ok" : row.outcome === "failed" ? "failed" : row.state, row.outcome ? words(row.outcome) : undefined) },
      { title: "Since", cell: (row) => when(row.started_ms ?? row.requested_ms) },
      { title: "Took", number: true, cell: (row) => (row.ended_ms && row.started_ms ? span(row.ended_ms - row.started_ms) : "–") },
      { title: "Events", number: true, cell: (row) => count(row.events) },
      { title: "Deadlines missed", number: true, cell: (row) => (row.breaches ? h("span", { class: "tag bad" }, count(row.breaches)) : "0") },
    ].filter(Boolean),
  });
}

/** A long id by its end: what many ids of one moment begin with is the same. */
const ending = (id) => (id.length > ID_MAX ? `…${id.slice(-ID_END)}` : id);

/** Dead letters; with `chosen`, a Set of ids that the check boxes of the rows change; `all` chooses those of the page. */
export function deadTable({ withUser, chosen, changed, all, empty, after }) {
  return new Table({
    caption: "Dead letters",
    key: (row) => row.id,
    empty,
    columns: [
      chosen && { title: "Choose", head: all, cell: (row) => h("input", {
        type: "checkbox", "aria-label": `Choose ${row.id}`, checked: chosen.has(row.id),
        on: { change: (event) => {
          if (event.target.checked) chosen.add(row.id);
          else chosen.delete(row.id);
          changed();
        } },
      }) },
      { title: "Dead letter", heads: true, cell: (row) => h("span", { class: "nowrap mono" }, link(row.id, "dead", row.id)) },
      { title: "Given up", cell: (row) => when(row.time_ms) },
      withUser && { title: "User", cell: (row) => link(row.user, "user", row.user) },
      { title: "Session", cell: (row) => row.session },
      { title: "Type", cell: (row) => row.type || "–" },
      { title: "Event", cell: (row) => h("span", { class: "mono nowrap", title: row.event || row.entry }, link(ending(row.event || row.entry), "event", row.user, row.event || row.entry)) },
      { title: "Reason", cell: (row) => tag("dead_lettered", row.reason) },
      { title: "Deliveries", number: true, cell: (row) => count(row.deliveries) },
      { title: "Last node", cell: (row) => row.node || "–" },
      !chosen && { title: "Actions", hidden: true, cell: (row) => h("div", { class: "buttons" }, actionButton({ action: "replay", letters: [row.id] }, { after, label: `Replay ${row.id}` }), actionButton({ action: "drop", letters: [row.id] }, { after, label: `Drop ${row.id}` })) },
    ].filter(Boolean),
  });
}

/** What a state of a node means that wants something done, or that passes. */
const NODE_STATES = {
  not_ready: "what it writes to Redis does not come back to it: `eventbus doctor`, then its log",
  draining: "it stops, and its clients go to others",
};

export function nodesTable({ after, withActions = true }) {
  return new Table({
    caption: "Nodes",
    key: (row) => row.node,
    empty: nothing("No node tells of itself.", "A node that is alive writes every few seconds; a silent one leaves the list after 15 s."),
    columns: [
      { title: "Node", cell: (row) => h("span", { class: "nowrap" }, row.node) },
      { title: "State", cell: (row) => [tag(row.state), h("span", { class: "why" }, row.held_by ? `drained, by ${row.held_by}` : prose(NODE_STATES[row.state] ?? ""))] },
      { title: "Address", cell: (row) => h("code", {}, row.address || "–") },
      { title: "Version", cell: (row) => row.version || "–" },
      { title: "Connections", number: true, cell: (row) => count(row.connections) },
      { title: "Sessions", number: true, cell: (row) => count(row.sessions) },
      { title: "Up since", cell: (row) => when(row.started_ms) },
      withActions && { title: "Actions", hidden: true, cell: (row) => actionButton({ action: row.held_by ? "undrain" : "drain", node: row.node }, { after, text: row.held_by ? "Let go" : "Drain", label: row.held_by ? `Let go of ${row.node}` : `Drain ${row.node}` }) },
    ].filter(Boolean),
  });
}

/** What became of deliveries, by type: a table out of rates. */
export function ratesTable(caption, empty) {
  const number = (title, name) => ({ title, number: true, cell: (row) => count(row[name]) });
  return new Table({
    caption,
    key: (row) => row.type,
    empty,
    columns: [
      { title: "Type", cell: (row) => row.type },
      number("Stored", "stored"), number("Received", "received"), number("Displayed", "displayed"), number("Confirmed", "confirmed"),
      number("Expired", "expired"), number("Trimmed", "trimmed"), number("Dead-lettered", "dead_lettered"),
      { title: "Succeeded", number: true, cell: (row) => percent(row.success) },
    ],
  });
}

/** The buttons below a page of a list. The cursor stands in the address, so that a page can be kept and sent on. */
export function pager(place, { cursor, next, path, query }) {
  const to = (text, where) => h("a", { href: address(...path, { ...query, cursor: where }) }, text);
  renew(place, [cursor, next], () => (cursor || next) && h("nav", { class: "pager", "aria-label": "Pages" }, cursor && to("First page", ""), next ? to("Next page", next) : h("span", { class: "small" }, "This is the last page.")));
}

/** A sentence about an event that operators were told of. */
export function toldSentence(one) {
  const who = one.agent ? `${one.agent} ` : "";
  switch (one.kind) {
    case "missed_deadline":
      return `${who}was late: ${one.deadline === "agent" ? "the whole run" : words(one.deadline ?? "")}${one.tool ? ` (${one.tool})` : ""}`;
    case "run_abandoned":
      return `${who}left its run behind: a node closed it`;
    case "missed_confirmation":
      return `event ${one.event ?? ""}: ${one.level} was demanded, ${one.reached || "nothing"} was reached`;
    case "webhook_failed":
      return `a webhook was given up after ${one.attempts} attempts: ${one.reason}`;
    case "order":
      return "events of a run are lost, and the run goes on behind the hole";
    default:
      return words(one.kind ?? "");
  }
}

export function toldItem(one) {
  const about = one.run ? link(one.run, "run", one.user, one.run) : one.event && one.user ? link(one.event, "event", one.user, one.event) : undefined;
  return h("li", { data: { id: one.id } },
    h("span", { class: "small" }, when(one.time_ms)), " ", tag(one.kind === "missed_deadline" ? "slow" : "nacking", words(one.kind)), " ",
    one.user && [link(one.user, "user", one.user), ": "], toldSentence(one), about && [" · ", about]);
}

/** `tellCount(2, "dead letters", "on this page")`. */
export function tellCount(number, what, where = "") {
  say(`${number === 1 ? `1 ${what.replace(/s$/, "")}` : `${count(number)} ${what}`} ${where}`.trim());
}
