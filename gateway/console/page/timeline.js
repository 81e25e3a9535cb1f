/** A run on a time axis: a lane for each of its steps, its deadlines, and which of them were missed. */

import { h, nothing, svg } from "./dom.js";
import { count, span, spanOnAxis, timeOfDay, words } from "./format.js";

const ROW = 30, LABEL = 215, WIDTH = 1065, NAME_MAX = 25, TOP = 34, RIGHT = 165;
const LANES_MAX = 200;
const SECOND = 1000, MINUTE = 60 * SECOND, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
const STEPS_MS = [...[1, 10, 100].flatMap((one) => [one, 2 * one, 5 * one]), ...[1, 2, 5, 10, 20, 30].map((one) => one * SECOND),
  ...[1, 2, 5, 10, 20, 30].map((one) => one * MINUTE), ...[1, 2, 4, 8, 12].map((one) => one * HOUR), ...[1, 2, 5, 10].map((one) => one * DAY)];
const LEADING = new Set(["wait", "run"]);

/** The deadlines, as the lanes name what they are for. */
export const DEADLINES = { started: "waits for an agent", thinking: "first thinking", executing: "told of the tool", completed: "tool", agent: "the whole run", lease: "its process lives" };
const KINDS = { agent_started: "edge", agent_completed: "edge", agent_thinking: "think" };

/** `run` is what the admin API says of a run; `now` is Redis's clock. */
export function runTimeline(run, now) {
  const { lanes, more } = lanesOf(run, now);
  const times = lanes.flatMap(({ from, until, due, missed }) => [from, until, missed ? due : undefined]).filter((one) => one !== undefined);
  if (!times.length) return nothing("No time of it is known.");
  const begin = Math.min(...times);
  const end = Math.max(begin + 1, ...times);
  const height = TOP + lanes.length * ROW + 8;
  const x = (at) => LABEL + ((at - begin) / (end - begin)) * (WIDTH - LABEL - RIGHT);
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, class: "timeline", role: "img", "aria-label": spoken(run, lanes) });
  for (const at of ticks(end - begin)) {
    picture.append(svg("line", { x1: x(begin + at), x2: x(begin + at), y1: TOP - 8, y2: height - 8, class: "grid" }),
      svg("text", { x: x(begin + at), y: 16, class: "tick middle" }, at === 0 ? "0" : spanOnAxis(at)));
  }
  picture.append(svg("text", { x: WIDTH - RIGHT + 28, y: 16, class: "tick" }, "deadline"));
  lanes.forEach((lane, index) => picture.append(drawn(lane, TOP + index * ROW, x, end)));
  return [picture, more > 0 && h("p", { class: "small" }, `${count(more)} further steps are not drawn: its events are in the table below.`)];
}

function drawn({ name, from, until, due, missed, kind, title, open, limit }, y, x, end) {
  const group = svg("g", { class: `lane ${kind}${missed ? " missed" : ""}${open ? " open" : ""}` }, svg("title", {}, name.length > NAME_MAX ? `${name}: ${title}` : title));
  group.append(svg("text", { x: LABEL - 12, y: y + 17, class: "lane-name" }, name.length > NAME_MAX ? `${name.slice(0, NAME_MAX - 1)}…` : name));
  if (from !== undefined && until !== undefined) {
    group.append(svg("rect", { x: x(from), y: y + 5, width: Math.max(3, x(until) - x(from)), height: 16, rx: 3, class: "bar" }));
  } else if (from !== undefined) {
    group.append(svg("circle", { cx: x(from), cy: y + 13, r: 5.5, class: "dot" }));
  }
  if (due !== undefined && due <= end) group.append(svg("line", { x1: x(due), x2: x(due), y1: y + 1, y2: y + 25, class: "due" }));
  if (limit) group.append(svg("text", { x: WIDTH - RIGHT + 28, y: y + 17, class: "limit" }, limit));
  return group;
}

const keyOf = (deadline, call) => (call ? `${deadline}:${call}` : deadline);

/** What stands in each lane, in the order of time: a call of a tool where it began. */
function lanesOf(run, now) {
  const deadlines = new Map(run.deadlines.map((one) => [keyOf(one.deadline, one.call), one]));
  const limits = run.limits ?? {};
  const over = run.ended_ms ?? now;
  const lanes = [];
  const lane = (name, kind, from, until, { title, open, deadline, allowed } = {}) => {
    const found = deadlines.get(deadline);
    deadlines.delete(deadline);
    const missed = found?.state === "missed";
    const due = found?.due_ms ?? undefined;
    const limit = missed ? `✗ missed${found.late_ms ? ` by ${span(found.late_ms)}` : ""}` : due !== undefined && allowed ? `${found.state === "met" ? "✓ " : ""}within ${span(allowed)}` : "";
    lanes.push({ name, kind, from, until, due, missed, open, limit, title: limit ? `${title}; deadline: ${limit}` : title });
  };
  if (run.requested_ms) {
    const until = run.started_ms ?? over;
    lane("waits for an agent", "wait", run.requested_ms, until, { title: `an agent came after ${span(until - run.requested_ms)}`, open: !run.started_ms, deadline: "started", allowed: limits.started_ms });
  }
  if (run.started_ms) {
    lane("the whole run", "run", run.started_ms, over, { title: `the run took ${span(over - run.started_ms)}`, open: !run.ended_ms, deadline: "agent", allowed: limits.run_ms });
  }
  const calls = new Map();
  let thought = false;
  for (const event of run.events) {
    const at = event.time_ms;
    if (event.type === "tool_executing") {
      calls.set(event.call ?? event.event, event);
    } else if (event.type === "tool_completed") {
      const name = event.call ?? [...calls.keys()][0];
      toolLane(calls.get(name), name, event);
      calls.delete(name);
    } else if (event.type === "agent_thinking" && !thought) {
      thought = true;
      lane("first thinking", "think", at, undefined, { title: `thought at ${timeOfDay(at)}`, deadline: "thinking", allowed: limits.thinking_ms });
    } else {
      lane(words(event.type), KINDS[event.type] ?? "other", at, undefined, { title: `${words(event.type)} at ${timeOfDay(at)}` });
    }
  }
  for (const [name, event] of calls) toolLane(event, name, undefined);

  function toolLane(begun, call, ended) {
    const from = begun?.time_ms ?? ended.time_ms;
    const until = ended?.time_ms ?? over;
    const title = ended ? `the call took ${span(until - from)}` : "the call has not ended";
    lane(`tool ${(begun ?? ended).tool ?? ""}`, "tool", from, until, { title, open: !ended, deadline: keyOf("completed", call), allowed: limits.completed_ms });
    if (deadlines.has(keyOf("executing", call))) lane("told of the tool", "tool", from, undefined, { title: "its tool_executing came late", deadline: keyOf("executing", call) });
  }

  const order = ({ kind, from }) => (LEADING.has(kind) ? -Infinity : from);
  lanes.sort((one, other) => order(one) - order(other) || 0);
  // What was missed, or is awaited, and has no step of its own.
  for (const [key, { deadline, state, due_ms: due }] of [...deadlines]) {
    if (state === "missed" || state === "open") lane(DEADLINES[deadline] ?? words(deadline), "other", undefined, undefined, { title: due ? `was due at ${timeOfDay(due)}` : "its time is not known", deadline: key, allowed: limits[`${deadline}_ms`] });
  }
  const found = collapsed(lanes);
  return { lanes: found.slice(0, LANES_MAX), more: found.slice(LANES_MAX).reduce((sum, { many = 1 }) => sum + many, 0) };
}

/** Steps of one kind in a row share a lane where there are many. */
function collapsed(lanes) {
  if (lanes.length <= 30) return lanes;
  const found = [];
  for (const lane of lanes) {
    const last = found.at(-1);
    if (last?.step === lane.name && !lane.limit && !last.limit) {
      last.until = lane.until ?? lane.from;
      last.many += 1;
      last.name = `${lane.name} × ${last.many}`;
      last.title = `${last.many} of them; of the last: ${lane.title}`;
    } else {
      found.push({ ...lane, step: lane.name, many: 1 });
    }
  }
  return found;
}

function ticks(length) {
  const step = STEPS_MS.find((one) => length / one <= 8) ?? length;
  return Array.from({ length: Math.floor(length / step) + 1 }, (_, index) => index * step);
}

function spoken(run, lanes) {
  const missed = lanes.filter((one) => one.missed).map((one) => one.name);
  return `The run's ${run.events.length} events on a time axis. ${missed.length ? `Deadlines missed: ${missed.join(", ")}.` : "No deadline was missed."} The tables below have the same in words.`;
}
