/** The installation as a whole, kept up to date by the feed. */

import { actionButton, openAction } from "./action.js";
import { rateChart } from "./charts.js";
import { card, h, link, nothing, Table, waiting, when } from "./dom.js";
import { bytes, count, percent, perSecond, span } from "./format.js";
import { nodesTable, ratesTable, Tile, toldItem } from "./parts.js";

export function overview({ live, reload }) {
  const tiles = {
    success: new Tile("Deliveries that succeeded"), stored: new Tile("Stored each second"), acked: new Tile("Acked each second"),
    latency: new Tile("From stored to acked"), waiting: new Tile("Users who wait"), dead: new Tile("Dead letters"),
    nodes: new Tile("Nodes"), redis: new Tile("Redis"),
  };
  const chart = h("div");
  const told = h("ul", { class: "told", role: "list" });
  const nothingTold = nothing("Operators were told of nothing in the last day.", "Missed deadlines, missed confirmations and lost runs appear here as they happen.");
  const nodes = nodesTable({ withActions: false });
  const rates = ratesTable("What became of deliveries, by type", "Nothing was stored yet.");
  const paused = new Table({
    caption: "Paused types", key: (row) => row.type, empty: "No type is paused.",
    columns: [
      { title: "Type", cell: (row) => row.type }, { title: "Since", cell: (row) => when(row.since_ms ?? row.time_ms) },
      { title: "By", cell: (row) => row.by || "–" }, { title: "Why", cell: (row) => row.reason || "–" },
      { title: "Actions", hidden: true, cell: (row) => actionButton({ action: "resume", type: row.type }, { after: reload, text: "Resume", label: `Resume ${row.type}` }) },
    ],
  });
  const pauseType = h("input", { id: "pause-type", name: "type", autocomplete: "off", required: true, maxlength: 128 });
  const pause = h("form", { class: "filter", on: { submit: (event) => {
    event.preventDefault();
    openAction({ action: "pause", type: pauseType.value.trim() }, reload);
  } } }, h("label", { for: "pause-type" }, "Pause the type"), pauseType, h("button", { type: "submit" }, "Pause"));

  const busy = waiting();
  const whole = h("div", { class: "stack", hidden: true },
    h("dl", { class: "tiles" }, Object.values(tiles).map((tile) => tile.element)),
    h("div", { class: "columns" }, card("Events each second", chart), card("What operators were told", told, nothingTold)),
    card("Nodes", nodes.element),
    card("Deliveries by type", rates.element, h("p", { class: "small" }, "Counted since the installation began; what a part of the users did starts anew when nothing happened there for 30 days.")),
    card("Paused types", pause, paused.element));

  /** Nothing is said of what has not been looked at: before the first figures there is nothing to see. */
  function figures() {
    const now = live.figures;
    if (!now) return;
    whole.hidden = false;
    busy.remove();
    showTiles(tiles, now, live.samples.at(-1));
    draw();
    nodes.update(now.nodes);
    rates.update(Object.entries(now.by_type).map(([type, one]) => ({ type, ...one })));
    paused.update(now.paused);
  }

  const draw = () => chart.replaceChildren(rateChart(live.samples, chart.clientWidth));
  new ResizeObserver(draw).observe(chart);

  /** What is shown already stays the same element: a focus there stays too. */
  function tell() {
    const known = new Map([...told.children].map((item) => [item.dataset.id, item]));
    live.told.forEach((one, index) => {
      const item = known.get(one.id) ?? toldItem(one);
      if (told.children[index] !== item) told.insertBefore(item, told.children[index] ?? null);
    });
    while (told.children.length > live.told.length) told.lastChild.remove();
    told.hidden = live.told.length === 0;
    nothingTold.hidden = live.told.length > 0;
  }

  const element = h("div", {}, busy, whole);
  figures();
  tell();
  return {
    title: "Overview",
    element,
    onFigures: figures,
    onTold: tell,
  };
}

function showTiles(tiles, now, sample) {
  const { rates, latency } = now;
  const given = rates.expired + rates.trimmed + rates.dead_lettered;
  tiles.success.show(percent(rates.success), rates.success === null ? "nothing was delivered yet" : `${count(rates.received)} received, ${count(given)} given up`, rates.success === null ? "" : rates.success >= 0.999 ? "good" : rates.success >= 0.98 ? "wait" : "bad");
  tiles.stored.show(sample ? perSecond(sample.stored) : "–", `${count(rates.stored)} in all`);
  tiles.acked.show(sample ? perSecond(sample.received) : "–", `${count(rates.received)} in all`);
  tiles.latency.show(latency ? span(latency.p50_ms) : "–", latency ? `p99 ${span(latency.p99_ms)}; ${count(latency.sample)} acks of ${count(latency.users)} users in the last minute` : "nothing was acked in the last minute");
  tiles.waiting.show(link(count(now.waiting_users), "pending"), now.waiting_users ? `the longest for ${span(now.oldest_ms)}` : "nothing waits", now.waiting_users && now.oldest_ms > 60_000 ? "wait" : "good");
  tiles.dead.show(link(count(now.dead_letters), "dead"), now.dead_letters ? "each with its reason" : "nothing was given up", now.dead_letters ? "bad" : "good");
  const ready = now.nodes.filter(({ state }) => state === "ready").length;
  const sessions = now.nodes.reduce((sum, node) => sum + node.sessions, 0);
  tiles.nodes.show(link(`${ready} of ${now.nodes.length} ready`, "nodes"), `${count(sessions)} sessions`, ready === 0 ? "bad" : ready < now.nodes.length ? "wait" : "good");
  tiles.redis.show(bytes(now.memory_bytes), `${now.server}, answers in ${span(now.ping_ms)}`, now.ping_ms > 100 ? "wait" : "good");
}
