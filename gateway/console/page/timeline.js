/** A run on a time axis: a lane for each of its steps, its deadlines, and which of them were missed. */

import { h, nothing, svg } from "./dom.js";
import { span, timeOfDay, words } from "./format.js";

const ROW = 30, LABEL = 190, WIDTH = 1040, TOP = 34, RIGHT = 150;
const LANES_MAX = 200;
const KINDS = { agent_started: "edge", agent_completed: "edge", agent_thinking: "think" };

/** `run` is what the admin API says of a run; `now` is Redis's clock. */
export function runTimeline(run, now) {
  const lanes = lanesOf(run, now);
  const times = lanes.flatMap(({ from, until, due, missed }) => [from, until, missed ? due : undefined]).filter((one) => one !== undefined);
  if (!times.length) return nothing("No time of it is known.");
  const begin = Math.min(...times);
  const end = Math.max(begin + 1, ...times);
  const height = TOP + lanes.length * ROW + 8;
  const x = (at) => LABEL + ((at - begin) / (end - begin)) * (WIDTH - LABEL - RIGHT);
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, class: "timeline", role: "img", "aria-label": spoken(run, lanes) });
  for (const at of ticks(end - begin)) {
    picture.append(svg("line", { x1: x(begin + at), x2: x(begin + at), y1: TOP - 8, y2: height - 8, class: "grid" }),
      svg("text", { x: x(begin + at), y: 16, class: "tick middle" }, at === 0 ? "0" : span(at)));
  }
  picture.append(svg("text", { x: WIDTH - RIGHT + 16, y: 16, class: "tick" }, "deadline"));
  lanes.forEach((lane, index) => picture.append(drawn(lane, TOP + index * ROW, x, end)));
  return h("div", { class: "scroll", role: "region", "aria-label": "Time line of the run", tabindex: "0" }, picture);
}

function drawn({ name, from, until, due, missed, kind, title, open, limit }, y, x, end) {
  const group = svg("g", { class: `lane ${kind}${missed ? " missed" : ""}${open ? " open" : ""}` }, svg("title", {}, title));
  group.append(svg("text", { x: LABEL - 12, y: y + 17, class: "lane-name" }, name.length > 26 ? `${name.slice(0, 25)}…` : name));
  if (from !== undefined && until !== undefined) {
    group.append(svg("rect", { x: x(from), y: y + 5, width: Math.max(3, x(until) - x(from)), height: 16, rx: 3, class: "bar" }));
  } else if (from !== undefined) {
    group.append(svg("circle", { cx: x(from), cy: y + 13, r: 5.5, class: "dot" }));
  }
  if (due !== undefined && due <= end) group.append(svg("line", { x1: x(due), x2: x(due), y1: y + 1, y2: y + 25, class: "due" }));
  if (limit) group.append(svg("text", { x: WIDTH - RIGHT + 16, y: y + 17, class: "limit" }, limit));
  return group;
}

/** What stands in each lane, in the order of time. A deadline is due where it was missed, else where the tier has it. */
function lanesOf(run, now) {
  const missedAt = new Map(run.breaches.map(({ name, due_ms: due }) => [name, due]));
  const limits = run.limits ?? {};
  const over = run.ended_ms ?? now;
  const lanes = [];
  const lane = (name, kind, from, until, { title, open, deadline, allowed, since, met } = {}) => {
    const missed = missedAt.has(deadline);
    const due = missed ? missedAt.get(deadline) : allowed === undefined ? undefined : since + allowed;
    missedAt.delete(deadline);
    const late = missed && met !== undefined && met > due ? ` by ${span(met - due)}` : "";
    const limit = missed ? `✗ missed${late}` : allowed === undefined ? "" : `${met === undefined ? "" : "✓ "}within ${span(allowed)}`;
    lanes.push({ name, kind, from, until, due, missed, open, limit, title: limit ? `${title}; deadline: ${limit}` : title });
  };
  const known = (value) => value ?? undefined;
  if (known(run.requested_ms) !== undefined) {
    lane("waits for an agent", "wait", run.requested_ms, run.started_ms ?? over, {
      title: `an agent came after ${span((run.started_ms ?? over) - run.requested_ms)}`, open: !run.started_ms,
      deadline: "started", allowed: limits.started_ms, since: run.requested_ms, met: known(run.started_ms),
    });
  }
  if (known(run.started_ms) !== undefined) {
    lane("the whole run", "run", run.started_ms, over, {
      title: `the run took ${span(over - run.started_ms)}`, open: !run.ended_ms,
      deadline: "agent", allowed: limits.run_ms, since: run.started_ms, met: known(run.ended_ms),
    });
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
      lane("first thinking", "think", at, undefined, {
        title: `thought at ${timeOfDay(at)}`, deadline: "thinking", allowed: run.started_ms ? limits.thinking_ms : undefined, since: run.started_ms, met: at,
      });
    } else {
      lane(words(event.type), KINDS[event.type] ?? "other", at, undefined, { title: `${words(event.type)} at ${timeOfDay(at)}` });
    }
  }
  for (const [name, event] of calls) toolLane(event, name, undefined);

  function toolLane(begun, call, ended) {
    const from = begun?.time_ms ?? ended.time_ms;
    const until = ended?.time_ms ?? over;
    lane(`tool ${(begun ?? ended).tool ?? ""}`, "tool", from, until, {
      title: ended ? `the call took ${span(until - from)}` : "the call has not ended", open: !ended,
      deadline: `call:${call}`, allowed: begun && limits.completed_ms, since: begun?.stored_ms, met: ended?.stored_ms,
    });
    if (missedAt.has(`executing:${call}`)) lane("told of the tool", "tool", from, undefined, { title: "its tool_executing came late", deadline: `executing:${call}`, met: begun?.stored_ms });
  }

  for (const name of [...missedAt.keys()]) lane(words(name.split(":")[0]), "other", undefined, undefined, { title: `${words(name)} was due at ${timeOfDay(missedAt.get(name))}`, deadline: name });
  return collapsed(lanes);
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
  return found.slice(0, LANES_MAX);
}

function ticks(length) {
  const steps = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9].flatMap((power) => [1, 2, 5].map((one) => one * 10 ** power));
  const step = steps.find((one) => length / one <= 8);
  return Array.from({ length: Math.floor(length / step) + 1 }, (_, index) => index * step);
}

function spoken(run, lanes) {
  const missed = lanes.filter((one) => one.missed).map((one) => one.name);
  return `The run's ${run.events.length} events on a time axis. ${missed.length ? `Deadlines missed: ${missed.join(", ")}.` : "No deadline was missed."} The tables below have the same in words.`;
}
