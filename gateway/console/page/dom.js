/** Elements made by code. Every text of an event, a user or a server goes in as text: there is no way to markup here. */

import { time } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(3)) {
    if (child !== undefined && child !== null && child !== false) element.append(child);
  }
  return element;
}

/** `h("p", {class: "small", on: {click}}, "text", element, [more])`. */
export const h = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);

/** The same for SVG. */
export const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

export const $ = (id) => document.getElementById(id);

export function link(text, ...path) {
  return h("a", { href: address(...path) }, text);
}

/** The address of a view: `address("user", "ada")`, and with an object as its last part a query. */
export function address(...path) {
  const query = typeof path.at(-1) === "object" ? path.pop() : {};
  const words = new URLSearchParams(Object.entries(query).filter(([, value]) => value));
  const text = `#/${path.map(encodeURIComponent).join("/")}`;
  return words.size ? `${text}?${words}` : text;
}

/** Goes to a view, also to the one that is shown: that is made anew. */
export function goTo(to) {
  if (location.hash === to) dispatchEvent(new HashChangeEvent("hashchange"));
  else location.hash = to;
}

/** A point in time, Unix milliseconds, in the operator's time zone; in UTC where the pointer rests. */
export function when(ms, text = time(ms)) {
  if (!ms) return "–";
  const iso = new Date(ms).toISOString();
  return h("time", { datetime: iso, title: `${iso.replace("T", " ").replace("Z", "")} UTC` }, text);
}

/** A sentence of the server, with what stands between backticks as code. */
export const prose = (text) => text.split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));

const drawn = new WeakMap();

/** Fills a place anew, but not with what it shows already: a focus there, or what was unfolded, stays. */
export function renew(place, data, make) {
  const text = JSON.stringify(data);
  if (drawn.get(place) === text) return;
  drawn.set(place, text);
  place.replaceChildren(...[make()].flat().filter(Boolean));
}

/** Says something to who does not see the screen. */
export function say(text) {
  $("say").textContent = text;
}

/** Something to look at while an answer is awaited, and what a place says that holds nothing. */
export const waiting = () => h("p", { class: "empty", "aria-busy": "true" }, "Looking it up …");
export const nothing = (text, more) => h("div", { class: "empty" }, h("p", {}, text), more && h("p", { class: "small" }, more));

/** What went wrong, where something should be. */
export function failure(error, again) {
  return h("div", { class: "problem", role: "alert" }, h("p", {}, h("strong", {}, error.title ?? "That did not work. "), " ", error.message),
    again && h("button", { type: "button", on: { click: again } }, "Try again"));
}

/** A section with a heading. */
export function card(title, ...children) {
  const id = `card-${title.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`;
  return h("section", { class: "card", "aria-labelledby": id }, h("h2", { id }, title), children);
}

/**
 * A table whose rows and cells keep their place: what has not changed is not made anew, so that a focus, or a text that
 * is being copied, stays. `columns` are `{title, number, cell(row), hidden, head, heads}`: `head` stands in the place of
 * the title, and the column that `heads` (else the first) names its rows; `key(row)` names a row for good.
 */
export class Table {
  #body = h("tbody");
  #rows = new Map();

  constructor({ caption, columns, key, empty, rowClass }) {
    this.columns = columns;
    this.key = key;
    this.rowClass = rowClass;
    this.heading = Math.max(0, columns.findIndex(({ heads }) => heads));
    const head = columns.map(({ title, number, hidden, head: control }) => h("th", { scope: "col", class: classOf({ number, hidden }) },
      hidden ? h("span", { class: "hidden" }, title) : control ? "" : title, control));
    const table = h("table", {}, h("caption", { class: "hidden" }, caption), h("thead", {}, h("tr", {}, head)), this.#body);
    this.table = h("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" }, table);
    this.empty = typeof empty === "string" ? nothing(empty) : empty;
    this.none = nothing("None on this page.", "The list goes on: the next page has what lies behind.");
    this.element = h("div", { class: "table" }, this.table, this.empty, this.none);
    this.update([]);
  }

  /** Shows rows; `goesOn` when there are more pages, so that none on this one are not none at all. */
  update(rows, goesOn = false) {
    const before = this.#rows;
    this.#rows = new Map();
    const made = rows.map((row) => {
      const key = this.key(row);
      const text = JSON.stringify(row);
      const known = before.get(key);
      const element = known === undefined ? this.#make(row, key) : known.text === text ? known.element : this.#changed(known.element, row, key);
      this.#rows.set(key, { text, element });
      return element;
    });
    this.#place(made);
    this.table.hidden = rows.length === 0;
    this.empty.hidden = rows.length > 0 || Boolean(goesOn);
    this.none.hidden = rows.length > 0 || !goesOn;
  }

  #make(row, key) {
    const cells = this.columns.map(({ cell, number, hidden }, index) => {
      const heads = index === this.heading;
      return h(heads ? "th" : "td", { class: classOf({ number, hidden }), scope: heads && "row" }, cell(row));
    });
    return h("tr", { data: { key }, class: this.rowClass?.(row) }, cells);
  }

  /** Puts those cells of a row in that have changed. */
  #changed(element, row, key) {
    const fresh = this.#make(row, key);
    const focus = element.contains(document.activeElement) ? path(document.activeElement) : undefined;
    element.className = fresh.className;
    [...fresh.cells].forEach((cell, index) => {
      if (!cell.isEqualNode(element.cells[index])) element.cells[index].replaceWith(cell);
    });
    if (focus && !element.contains(document.activeElement)) refocus(element, focus);
    return element;
  }

  /** Moves only what is not at its place: an element that is moved loses the focus. */
  #place(made) {
    const focus = this.#body.contains(document.activeElement) ? path(document.activeElement) : undefined;
    const kept = new Set(made);
    for (const child of [...this.#body.children]) if (!kept.has(child)) child.remove();
    made.forEach((element, index) => {
      if (this.#body.children[index] !== element) this.#body.insertBefore(element, this.#body.children[index] ?? null);
    });
    if (focus && !this.#body.contains(document.activeElement)) refocus([...this.#body.children].find((one) => one.dataset.key === focus.key), focus);
  }
}

const classOf = ({ number, hidden }) => (number ? "number" : hidden ? "actions" : undefined);

/** Where the focus is in a table: the row's key and which of its controls. */
function path(element) {
  const row = element.closest("tr");
  return { key: row.dataset.key, index: [...row.querySelectorAll("a,button,input")].indexOf(element) };
}

function refocus(row, { index }) {
  row?.querySelectorAll("a,button,input")[index]?.focus({ preventScroll: true });
}
