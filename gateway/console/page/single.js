/** The views of one thing: a user, a session's pending entries, an event, a run, a dead letter. */

import { actionButton } from "./action.js";
import { get, path } from "./api.js";
import { address, card, h, link, nothing, prose, renew, Table, when } from "./dom.js";
import { count, dayOf, json, percent, sentence, span, time, timeOfDay, words } from "./format.js";
import { deadTable, facts, fateMeaning, pager, pendingTable, ratesTable, runsTable, tag, toldItem } from "./parts.js";
import { DEADLINES, runTimeline } from "./timeline.js";

export function user({ parts: [name], signal, reload }) {
  const head = h("div");
  const pending = pendingTable({ withUser: false, empty: nothing("Nothing waits for this user.") });
  const sessions = new Table({
    caption: "Sessions", key: (row) => row.session, empty: nothing("No session is known.", "A session is remembered for EVENTBUS_SESSION_TTL_MS after it was last seen."),
    columns: [
      { title: "Session", cell: (row) => link(row.session, "user", name, "session", row.session) },
      { title: "State", cell: (row) => tag(row.state) },
      { title: "Node", cell: (row) => row.node ?? "–" },
      { title: "Pending", number: true, cell: (row) => count(row.pending) },
      { title: "Has read up to", cell: (row) => h("code", {}, row.cursor) },
      { title: "Last seen", cell: (row) => when(row.last_seen_ms) },
      { title: "Actions", hidden: true, cell: (row) => actionButton({ action: "end_session", user: name, session: row.session }, { after: reload, text: "End", label: `End the session ${row.session}` }) },
    ],
  });
  const runs = runsTable({ withUser: false, empty: nothing("No run of the newest events.") });
  const dead = deadTable({ withUser: false, after: reload, empty: nothing("Nothing was given up.") });
  const rates = ratesTable("What became of the retained events, by type", nothing("No event is retained."));
  const threads = h("div");
  const told = h("ul", { class: "told", role: "list" });
  const purge = actionButton({ action: "purge", user: name }, { after: reload });
  return {
    title: `User ${name}`,
    buttons: [purge],
    element: h("div", { class: "stack" }, head, card("What waits, and why", pending.element), card("Sessions", sessions.element), card("Runs", runs.element),
      card("Dead letters", dead.element), card("Deliveries by type", rates.element), h("div", { class: "columns" }, card("Threads", threads), card("What operators were told", told))),
    every: 5000,
    async load() {
      const page = await get("user", { user: name }, signal);
      pending.update(page.pending);
      sessions.update(page.sessions);
      runs.update([...page.runs].reverse());
      dead.update(page.dead);
      const entries = Object.entries(page.threads);
      renew(threads, entries, () => entries.length ? h("ul", { class: "told" }, entries.map(([thread, last]) => h("li", {}, h("code", {}, thread), " ", h("span", { class: "small" }, "last event ", when(last))))) : nothing("No thread."));
      const [of, events] = await Promise.all([get("rates", { user: name }, signal), get("operator-events", { user: name, limit: 20 }, signal)]);
      rates.update(Object.entries(of.by_type).map(([type, one]) => ({ type, ...one })));
      renew(told, events.operator_events, () => (events.operator_events.length ? events.operator_events.reverse().map(toldItem) : h("li", {}, "Nothing was told of this user.")));
      renew(head, [page.stored, page.newest, of.success, page.questions], () => facts([
        ["Events retained", count(page.stored)], ["Newest entry", page.newest === "0-0" ? "none" : link(page.newest, "event", name, page.newest)],
        ["Deliveries that succeeded", percent(of.success)], ["Open questions", count(page.questions)], ["Partition", String(page.partition)],
      ]));
    },
  };
}

export function session({ parts: [name, , one], query, signal, reload }) {
  const asked = (action) => actionButton({ action, user: name, session: one }, { after: reload });
  const head = h("div");
  const table = new Table({
    caption: "Entries that were sent and not acked", key: (row) => row.id, empty: nothing("Nothing is sent and not acked.", "What the session has not read yet is not in this list."),
    columns: [
      { title: "Entry", cell: (row) => link(row.id, "event", name, row.id) },
      { title: "Stored", cell: (row) => when(Number(row.id.split("-")[0])) },
      { title: "Deliveries", number: true, cell: (row) => count(row.attempts) },
      { title: "Sent", number: true, cell: (row) => `${span(row.idle_ms)} ago` },
      { title: "Actions", hidden: true, cell: (row) => h("div", { class: "buttons" }, ["redeliver", "skip", "dead_letter"].map((action) => actionButton({ action, user: name, session: one, entries: [row.id] }, { after: reload, of: row.id }))) },
    ],
  });
  const verdicts = pendingTable({ withSession: false, empty: nothing("Nothing waits for this session.") });
  const below = h("div");
  const forAll = h("div", { class: "for-all" }, h("p", { class: "small" }, "For all that are pending for the session:"), h("div", { class: "buttons" }, asked("redeliver"), asked("skip"), asked("dead_letter")));
  return {
    title: `Session ${one} of ${name}`,
    buttons: [asked("end_session")],
    element: h("div", { class: "stack" }, head, card("Why it waits", verdicts.element), card("Pending entries, the oldest first", table.element, forAll, below)),
    every: query.cursor ? undefined : 5000,
    async load() {
      const [known, waits, page] = await Promise.all([get("sessions", { user: name }, signal), get("pending", { user: name }, signal), get("entries", { user: name, session: one, cursor: query.cursor, limit: 50 }, signal)]);
      const found = known.sessions.find((row) => row.session === one);
      renew(head, found ?? null, () => (found ? sessionFacts(found, name) : h("p", { class: "verdict wait" }, "No such session is known: it has ended, or was away for longer than it is remembered.")));
      verdicts.update(waits.pending.filter((row) => row.session === one));
      table.update(page.entries, page.cursor);
      forAll.hidden = page.entries.length === 0;
      pager(below, { cursor: query.cursor, next: page.cursor, path: ["user", name, "session", one], query: {} });
    },
  };
}

function sessionFacts(found, name) {
  return facts([
    ["User", link(name, "user", name)], ["State", tag(found.state)], found.node && ["Node", found.node], ["Has read up to", h("code", {}, found.cursor)],
    ["Last seen", when(found.last_seen_ms)], ["What was given up", link("its dead letters", "dead", { user: name, session: found.session })],
  ]);
}

// --- an event ---------------------------------------------------------------------------------------------------------

const STEP_LOOKS = { received: "good", displayed: "good", confirmed: "good", dead_lettered: "bad", missed_confirmation: "bad", expired: "wait", trimmed: "wait", skipped: "wait" };
const STEP_WORDS = {
  made: "made by its publisher (by the publisher's clock)", stored: "stored", received: "received and acked", displayed: "displayed", confirmed: "confirmed",
  filtered: "filtered out: the session does not want it", released: "released: another session has taken it", dead_lettered: "given up, and kept as a dead letter", missed_confirmation: "a demanded confirmation was missed",
};
const STEP_OF_SESSION = new Set(["dead_lettered", "expired", "trimmed", "skipped", "filtered", "released"]); // done about it, not by it
const FATE_LOOKS = { acked: "good", pending: "wait", not_read: "wait", dead_lettered: "bad", expired: "wait", trimmed: "wait", unknown: "wait", skipped: "wait" };

export function event({ parts: [name, id], signal }) {
  // Each part is made anew for itself: what is unfolded or scrolled in another stays as it is.
  const [head, why, way, holds] = Array.from({ length: 4 }, () => h("div"));
  const whole = h("div", { class: "columns" }, card("Its way", way), card("What it holds", holds));
  return {
    title: `Event ${id}`,
    element: h("div", { class: "stack" }, head, why, whole),
    every: 5000,
    async load() {
      let found;
      try {
        found = await get("event", { user: name, event: id }, signal);
      } catch (error) {
        if (error.status !== 404) throw error;
        whole.hidden = true;
        renew(head, name, () => facts([["User", link(name, "user", name)]]));
        renew(why, error.message, () => [h("p", { class: "verdict bad", id: "why" }, prose(sentence(error.message))), h("p", { class: "beside" }, link(`Look for a run ${id} instead`, "run", name, id))]);
        return;
      }
      whole.hidden = false;
      renew(head, [found.report, found.run], () => eventFacts(found));
      renew(why, found.sessions, () => eventWhy(found));
      renew(way, [found.steps, found.stored_ms], () => wayList(found));
      renew(holds, found.event, () => contents(found.event));
    },
  };
}

function eventFacts({ report, stored_ms: stored, run: of, agent, thread }) {
  return facts([
    ["User", link(report.user, "user", report.user)], ["Type", report.type || "not known any more"], ["Stored", when(stored)], ["Entry", h("code", {}, report.entry)],
    report.event && ["Event id", h("code", {}, report.event)], of && ["Run", link(of, "run", report.user, of)], agent && ["Agent", agent], thread && ["Thread", thread],
    ["In the stream", report.stored ? "yes" : "no"],
  ]);
}

function eventWhy({ report, sessions }) {
  const said = ({ fate, why }) => h("p", { class: `verdict ${FATE_LOOKS[fate.state] ?? ""}` }, prose(sentence(why)),
    h("span", { class: "small" }, "Session ", link(fate.session, "user", report.user, "session", fate.session), " · ", prose(fateSmall(fate)),
      fate.state === "dead_lettered" && [" · ", link("its dead letters", "dead", { user: report.user, session: fate.session })]));
  const none = h("p", { class: "verdict wait" }, "The user has no session: it waits in the stream for the first one, within the retention.");
  return h("section", { id: "why", class: "card", "aria-labelledby": "why-title" }, h("h2", { id: "why-title" }, "Did it arrive, and why not"), sessions.length ? sessions.map(said) : none);
}

/** What an event holds, and what is known of it beside that. */
function contents(whole) {
  if (!whole) return nothing("Its content is not kept any more.");
  return [h("pre", { tabindex: "0", role: "region", "aria-label": "The event as JSON" }, json(whole.data ?? whole)), envelope(whole)];
}

function envelope(whole) {
  const { data, ...rest } = whole;
  return h("details", {}, h("summary", { class: "small" }, "The envelope around it"), h("pre", {}, json(rest)));
}

function fateSmall(fate) {
  const said = [fate.node && `node ${fate.node}`, fate.deliveries !== null && `delivery count ${count(fate.deliveries)}`, fate.time_ms && time(fate.time_ms), fate.note && `note: ${fate.note}`];
  return said.filter(Boolean).join(" · ") || fateMeaning(fate.state);
}

function wayList({ steps, stored_ms: stored }) {
  const dated = steps.some((step) => dayOf(step.time_ms) !== dayOf(stored));
  const items = steps.map((step) => {
    const after = step.time_ms - stored;
    return h("li", { class: STEP_LOOKS[step.what] ?? "" },
      when(step.time_ms, dated ? `${dayOf(step.time_ms)} ${timeOfDay(step.time_ms)}` : timeOfDay(step.time_ms)),
      h("span", { class: "after" }, step.what === "stored" ? "" : after < 0 ? `−${span(-after)}` : after === 0 ? "at once" : `+${span(after)}`),
      h("span", {}, STEP_WORDS[step.what] ?? words(step.what), step.session && [STEP_OF_SESSION.has(step.what) ? " for session " : " by session ", h("strong", {}, step.session)], step.detail && h("span", { class: "small" }, ` ${step.detail}`)));
  });
  return h("ol", { class: dated ? "way dated" : "way", role: "list" }, items);
}

// --- a run ------------------------------------------------------------------------------------------------------------

const EVENTS_AT_ONCE = 200;

export function run({ parts: [name, id], query, signal, live }) {
  const [head, verdict, axis, problems, below] = Array.from({ length: 5 }, () => h("div"));
  const from = Math.max(0, Math.floor(Number(query.from)) || 0);
  // It stays the same one, for a narrow screen scrolls in it.
  const picture = h("div", { class: "scroll", role: "region", "aria-label": "Time line of the run", tabindex: "0" });
  const drawing = card("On the time axis", picture);
  const deadlines = new Table({
    caption: "The deadlines of the run", key: (row) => `${row.deadline} ${row.call}`, empty: nothing("Its deadlines are not known."),
    columns: [
      { title: "Deadline of", cell: deadlineName },
      { title: "Was due", cell: (row) => (row.due_ms ? when(row.due_ms, timeOfDay(row.due_ms)) : "–") },
      { title: "Came", cell: (row) => (row.met_ms ? when(row.met_ms, timeOfDay(row.met_ms)) : "–") },
      { title: "What became of it", cell: (row) => [tag(row.state), row.late_ms ? ` by ${span(row.late_ms)}` : ""] },
    ],
  });
  const events = new Table({
    caption: "The events of the run", key: (row) => row.entry, empty: "No event of the run is retained.",
    columns: [
      { title: "No", number: true, cell: (row) => count(row.seq) },
      { title: "Event", cell: (row) => link(words(row.type), "event", name, row.event) },
      { title: "Tool", cell: (row) => row.tool ?? "–" },
      { title: "Happened", cell: (row) => h("span", { class: "mono" }, when(row.time_ms, timeOfDay(row.time_ms))) },
      { title: "Stored after", number: true, cell: (row) => span(Math.max(0, row.stored_ms - row.time_ms)) },
    ],
  });
  return {
    title: `Run ${id}`,
    element: h("div", { class: "stack" }, head, verdict, axis, problems, card("Its deadlines", deadlines.element), card("Its events", events.element, below)),
    every: 3000,
    async load() {
      let found;
      try {
        found = await get("run", { user: name, run: id }, signal);
      } catch (error) {
        if (error.status !== 404) throw error;
        renew(verdict, error.message, () => h("p", { class: "verdict bad" }, prose(sentence(error.message))));
        return;
      }
      const last = Math.min(from + EVENTS_AT_ONCE, found.events.length);
      events.update(found.events.slice(from, last), last < found.events.length);
      renew(below, [found.events.length], () => found.events.length > EVENTS_AT_ONCE && pages(found.events.length, last));
      const now = Math.max(live.nowMs ?? 0, ...found.events.map((one) => one.stored_ms), found.started_ms ?? 0);
      const until = found.ended_ms ?? now;
      const wrong = found.breaches.length + found.problems.length > 0;
      renew(head, [found.state, found.outcome, until], () => runFacts(found, until, name));
      renew(verdict, [found.breaches, found.problems, found.open_calls], () => h("p", { class: `verdict ${wrong ? "bad" : "good"}`, id: "run-verdict" }, runVerdict(found)));
      renew(axis, "", () => drawing);
      renew(picture, [found.events, found.deadlines, until], () => runTimeline(found, now));
      renew(problems, found.problems, () => found.problems.length > 0 && card("What is wrong with its order", h("ul", {}, found.problems.map((one) => h("li", {}, `${words(one.kind ?? "")}: ${one.detail ?? ""}`)))));
      deadlines.update(found.deadlines.slice(0, EVENTS_AT_ONCE));
    },
  };

  function pages(number, last) {
    const to = (text, where) => h("a", { href: address("run", name, id, { from: where }) }, text);
    return h("nav", { class: "pager", "aria-label": "Pages" }, from > 0 && to("First page", ""), last < number && to("Next page", last), h("span", { class: "small" }, `${count(from + 1)} to ${count(last)} of ${count(number)}`));
  }
}

function runFacts(found, until, name) {
  const state = found.outcome ?? (found.state || "unknown");
  return facts([
    ["User", link(name, "user", name)], found.agent && ["Agent", found.agent], ["State", tag(found.outcome === "success" ? "ok" : state, words(state))],
    found.tier && ["Tier", found.tier], found.thread && ["Thread", found.thread], found.parent && ["Parent", link(found.parent, "run", name, found.parent)],
    ["Started", when(found.started_ms)], [found.ended_ms ? "Took" : "Takes so far", found.started_ms ? span(until - found.started_ms) : "–"],
  ]);
}

const LATE_MAX = 3;
const deadlineName = ({ deadline, call, tool }) => (deadline === "started" ? "agent started" : (DEADLINES[deadline] ?? words(deadline))) + (call ? ` ${tool ?? call}` : "");

function runVerdict(found) {
  const said = [];
  if (found.breaches.length) {
    const late = found.deadlines.filter(({ state }) => state === "missed").slice(0, LATE_MAX).map((one) => deadlineName(one) + (one.late_ms ? ` by ${span(one.late_ms)}` : ""));
    said.push(`${found.breaches.length === 1 ? "One deadline was" : `${found.breaches.length} deadlines were`} missed.${late.length ? ` Late: ${late.join(", ")}.` : ""}`);
  }
  if (found.problems.length) said.push("The order of its events is not whole.");
  if (found.open_calls.length) said.push(`Tools are being called: ${found.open_calls.map((call) => found.events.find((one) => one.call === call)?.tool ?? call).join(", ")}.`);
  return said.join(" ") || "All deadlines were met, and its events are in order.";
}

// --- a dead letter ----------------------------------------------------------------------------------------------------

export function letter({ parts: [id], signal, reload }) {
  const content = h("div", { class: "stack" });
  const asked = (action, more, text) => actionButton({ action, letters: [id], ...more }, { after: reload, text });
  const buttons = h("div", { class: "buttons" }, asked("replay"), asked("replay", { to: "everyone" }, "Replay to everyone"), asked("drop"));
  return {
    title: `Dead letter ${id}`,
    element: content,
    async load() {
      let found;
      try {
        found = await get(path("dead-letters", id), {}, signal);
      } catch (error) {
        if (error.status !== 404) throw error;
        content.replaceChildren(h("p", { class: "verdict" }, "There is no such dead letter (any more): it was replayed, dropped, or its time is over (EVENTBUS_DEAD_LETTER_TTL_MS)."), h("p", {}, link("All dead letters", "dead")));
        return;
      }
      content.replaceChildren(
        h("p", { class: "verdict bad" }, `Given up after ${found.deliveries === 1 ? "1 delivery" : `${count(found.deliveries)} deliveries`}: ${found.reason}.`),
        facts([["User", link(found.user, "user", found.user)], ["Session", link(found.session, "user", found.user, "session", found.session)], ["Type", found.type || "–"], ["Event", link(found.event?.id ?? found.entry, "event", found.user, found.entry)], ["Given up", when(found.time_ms)], ["Last node", found.node || "–"]]),
        buttons, card("What it holds", contents(found.event)));
    },
  };
}
