/** The rates of the last minutes as a picture. */

import { h, svg } from "./dom.js";
import { onAxis, perSecond, span, timeOfDay } from "./format.js";

const WIDTH_MIN = 260;

/**
 * Two lines over time: what was stored and what was acked, each second. `samples` are `{at, stored, received}`; `room`
 * is how wide it will be, so that its words are as large as those around it.
 */
export function rateChart(samples, room) {
  const width = Math.max(WIDTH_MIN, Math.round(room) || 640), height = 170, left = 44, bottom = 22, top = 10;
  const last = samples.at(-1);
  const label = last
    ? `Events each second over the last ${span(last.at - samples[0].at)}: stored ${perSecond(last.stored)}, acked ${perSecond(last.received)}`
    : "Events each second: nothing was measured yet";
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: "chart" });
  const most = nice(Math.max(1, ...samples.flatMap(({ stored, received }) => [stored, received])));
  const first = samples[0]?.at ?? 0;
  const length = Math.max(60_000, (last?.at ?? 0) - first);
  const x = (at) => left + ((at - first) / length) * (width - left - 8);
  const y = (value) => top + (1 - value / most) * (height - top - bottom);
  for (const share of [0, 0.5, 1]) {
    picture.append(
      svg("line", { x1: left, x2: width - 8, y1: y(most * share), y2: y(most * share), class: "grid" }),
      svg("text", { x: left - 6, y: y(most * share) + 4, class: "tick end" }, onAxis(most * share)),
    );
  }
  for (const name of ["stored", "received"]) {
    const points = samples.map((one) => `${x(one.at).toFixed(1)},${y(one[name]).toFixed(1)}`).join(" ");
    if (points) picture.append(svg("polyline", { points, class: `line ${name}` }));
  }
  if (last) {
    picture.append(svg("text", { x: left, y: height - 4, class: "tick" }, timeOfDay(first).slice(0, 8)),
      svg("text", { x: width - 8, y: height - 4, class: "tick end" }, timeOfDay(first + length).slice(0, 8)));
  }
  return h("figure", { class: "rates" }, picture,
    h("figcaption", {}, key("stored", "stored"), key("received", "acked"), h("span", { class: "small" }, "each second, since this page was opened")));
}

const key = (name, text) => h("span", { class: `key ${name}` }, text);

/** The next number of the form 1, 2 or 5 times a power of ten. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * power >= value) * power;
}
