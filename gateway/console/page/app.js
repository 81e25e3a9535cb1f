/** The frame: who is signed in, which view is shown, what is live. */

import { ApiError, claims, forget, onSignedOut, remember, token } from "./api.js";
import { $, address, failure, goTo, h, say, waiting } from "./dom.js";
import { count, dayOf, span, time, zone } from "./format.js";
import { audit, dead, nodes, pending, runs, users } from "./lists.js";
import { Live } from "./live.js";
import { overview } from "./overview.js";
import { loadWords, toldSentence } from "./parts.js";
import { event, letter, run, session, user } from "./single.js";

const THEME = "eventbus-console-theme";
const live = new Live();
let shown; // the view, and what ends it

// --- which view -------------------------------------------------------------------------------------------------------

const LISTS = { "": overview, pending, dead, users, runs, nodes, audit };

/** The view that an address stands for: `#/user/ada?cursor=...`. */
function routed() {
  const [where, words = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const query = Object.fromEntries(new URLSearchParams(words));
  const [first, ...parts] = where.split("/").map(decoded);
  if (first === "dead" && parts[0]) return { view: letter, nav: "dead", parts, query };
  if (Object.hasOwn(LISTS, first) && !parts.length) return { view: LISTS[first], nav: first || "overview", parts, query };
  if (first === "user" && parts[1] === "session" && parts[2]) return { view: session, nav: "users", parts, query };
  if (first === "user" && parts[0]) return { view: user, nav: "users", parts, query };
  if (first === "event" && parts[1]) return { view: event, nav: "users", parts, query };
  if (first === "run" && parts[1]) return { view: run, nav: "runs", parts, query };
  return undefined;
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function show({ focus = true } = {}) {
  if (!token()) return signIn();
  frame(true);
  leave();
  const found = routed();
  for (const one of document.querySelectorAll("#nav a")) {
    if (one.dataset.view === found?.nav) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
  here = placeInHistory();
  shown = found ? opened(found) : lost();
  if (focus) $("main").querySelector("h1").focus({ preventScroll: true });
  scrollTo(0, 0);
  if (!shown.made.load) returned();
}

// Who goes back is where they were: as far down, and at the link that led away. `here` is the entry of the history that
// is shown; the browser itself can not do it, for the view is only as long again once it has its data.
const PLACES_MAX = 100;
const places = new Map();
let here;
history.scrollRestoration = "manual";

function placeInHistory() {
  if (!history.state?.place) history.replaceState({ place: Math.random().toString(36) }, "");
  return history.state.place;
}

function leave() {
  if (shown && here) {
    const href = $("main").contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    places.delete(here);
    places.set(here, { y: scrollY, href });
    if (places.size > PLACES_MAX) places.delete(places.keys().next().value);
  }
  shown?.leave();
}

function returned() {
  const place = places.get(here);
  if (!place) return;
  if (document.activeElement === $("main").querySelector("h1")) {
    [...$("main").querySelectorAll("a[href]")].find((one) => one.getAttribute("href") === place.href)?.focus({ preventScroll: true });
  }
  scrollTo(0, place.y);
}

function opened({ view, parts, query }) {
  const stop = new AbortController();
  const problem = h("div");
  const reload = () => load(true);
  const made = view({ parts, query, live, signal: stop.signal, reload });
  const busy = waiting();
  const heading = h("h1", { tabindex: "-1" }, made.title);
  document.title = `${made.title} · eventbus console`;
  made.element.hidden = Boolean(made.load);
  $("main").replaceChildren(h("div", { class: "head" }, heading, made.buttons && h("div", { class: "buttons" }, made.buttons)), problem, made.load ? busy : "", made.element);
  let timer;
  let loading = false;
  let wanted = false; // something was done while it was loading, which what comes may not have
  let first = true;

  async function load(byHand) {
    clearTimeout(timer);
    if (!made.load) return;
    if (loading) {
      wanted ||= byHand;
      return;
    }
    loading = true;
    try {
      await made.load(first || byHand);
      busy.remove();
      made.element.hidden = false;
      problem.replaceChildren();
      if (first && !stop.signal.aborted) returned();
      first = false;
    } catch (error) {
      if (stop.signal.aborted) return;
      busy.remove();
      if (problem.textContent !== failure(error, reload).textContent) problem.replaceChildren(failure(error, reload));
    } finally {
      loading = false;
    }
    if (wanted) {
      wanted = false;
      return load(true);
    }
    again();
  }

  function again() {
    if (stop.signal.aborted || !made.every) return;
    clearTimeout(timer);
    timer = setTimeout(() => (document.hidden || document.querySelector("dialog[open]") ? again() : load(false)), made.every);
  }

  load(false);
  return { made, leave() {
    stop.abort();
    clearTimeout(timer);
  } };
}

function lost() {
  document.title = "Nothing here · eventbus console";
  $("main").replaceChildren(h("h1", { tabindex: "-1" }, "There is nothing here"), h("p", {}, h("a", { href: "#/" }, "To the overview")));
  return { made: {}, leave() {} };
}

// --- who is signed in -------------------------------------------------------------------------------------------------

function frame(visible) {
  $("top").hidden = $("nav").hidden = !visible;
  document.body.classList.toggle("signed-out", !visible);
}

function signIn(problem) {
  leave();
  shown = undefined;
  live.stop();
  frame(false);
  document.title = "Sign in · eventbus console";
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  const input = h("input", { id: "token", type: "password", autocomplete: "off", required: true, spellcheck: "false", "aria-describedby": "token-help" });
  const form = h("form", { on: { submit: (event) => {
    event.preventDefault();
    const given = input.value.trim().replace(/^Bearer\s+/i, "");
    // Else the browser refuses to send it, which would look like a node that does not answer.
    if (!/^[\x21-\x7e]+$/.test(given)) return signIn(new ApiError("That is no token.", "It holds characters that none has: was it cut off when it was copied?"));
    remember(given);
    start();
  } } }, h("label", { for: "token" }, "Token"), input, h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Sign in")));
  $("banner").hidden = true;
  $("main").replaceChildren(h("section", { class: "card login", "aria-labelledby": "login-title" },
    h("img", { src: "/console/icon.svg", alt: "", width: 40, height: 40 }), h("h1", { id: "login-title", tabindex: "-1" }, "eventbus console"),
    problem ? failure(problem) : h("p", { class: "small" }, "For operators: who waits for what, why, and the mending."), form,
    h("p", { class: "small", id: "token-help" }, "A token with the scope ", h("code", {}, "admin"), ". It stays in this tab and is forgotten with it. Make one where the secret of the nodes is:"),
    h("pre", {}, "eventbus token --user olga --scope admin --ttl 8h --jwt-secret-file secret")));
  input.focus();
}

onSignedOut((error) => {
  if (!token()) return;
  forget();
  signIn(error);
});

async function start() {
  frame(true);
  $("main").replaceChildren(h("h1", { tabindex: "-1", class: "hidden" }, "Console"), waiting());
  await loadWords().catch(() => {});
  tellWho();
  live.start();
  show();
}

// --- what is live -----------------------------------------------------------------------------------------------------

// A browser has six connections for all tabs of a console together, and a node a limit of feeds.
const ASLEEP_AFTER_MS = 10_000;
let falling;

document.addEventListener("visibilitychange", () => {
  clearTimeout(falling);
  if (document.hidden) falling = setTimeout(() => token() && live.sleep(), ASLEEP_AFTER_MS);
  else if (token() && live.state === "asleep") live.start();
});

const STATES = { asleep: "out of sight", connecting: "connecting", live: "live", stale: "Redis does not answer", away: "no connection" };

live.addEventListener("state", () => {
  if (!token()) return;
  $("live").dataset.state = live.state;
  $("live-text").textContent = STATES[live.state];
  if (live.state === "connecting" || live.state === "asleep") return; // whether what was wrong still is shows when it is over
  const bad = live.state !== "live";
  document.body.classList.toggle("old", bad);
  $("banner").hidden = !bad;
  if (!bad) return;
  const problem = live.state === "stale" ? `Redis does not answer (${live.problem.replace(/\.$/, "")}): eventbus doctor says more.` : live.problem;
  const text = `${problem} ${live.figures ? `What is shown is old: of ${time(live.figures.now_ms)}.` : "Nothing can be shown yet."}`;
  if ($("banner").textContent !== text) $("banner").textContent = text;
});

live.addEventListener("figures", () => {
  const now = live.figures;
  badge("count-pending", now.waiting_users, false);
  badge("count-dead", now.dead_letters, now.dead_letters > 0);
  const ready = now.nodes.filter(({ state }) => state === "ready").length;
  tellWho();
  badge("count-nodes", ready === now.nodes.length ? ready : `${ready}/${now.nodes.length}`, ready < now.nodes.length);
  shown?.made.onFigures?.();
});

live.addEventListener("told", ({ detail }) => {
  shown?.made.onTold?.();
  tellAloud(detail.filter(({ time_ms: at }) => at > (live.figures?.now_ms ?? 0) - 60_000).map(toldSentence));
});

// Who listens to the page is told of the first, and then only now and then how many more there were.
const SAID_EVERY_MS = 20_000;
let unsaid = 0;
let saying;

function tellAloud(sentences) {
  unsaid += sentences.length;
  if (saying || !unsaid) return;
  say(sentences.length ? `Operators were told: ${sentences[0]}${unsaid > 1 ? `; and ${count(unsaid - 1)} more` : ""}` : `Operators were told of ${count(unsaid)} more`);
  unsaid = 0;
  saying = setTimeout(() => {
    saying = undefined;
    tellAloud([]);
  }, SAID_EVERY_MS);
}

const ENDS_SOON_MS = 5 * 60_000;
let warned = false;

/** Who acts here, until when, and in which time zone what is shown is told. */
function tellWho() {
  const { user, untilMs } = claims();
  const left = untilMs - (live.nowMs ?? Date.now());
  const soon = left < ENDS_SOON_MS;
  const until = untilMs && (soon ? `token ends in ${span(Math.max(0, Math.ceil(left / 60_000)) * 60_000)}` : `token until ${dayOf(untilMs) === dayOf(Date.now()) ? time(untilMs).slice(11, -3) : time(untilMs).slice(0, -3)}`);
  const lines = [[user, until].filter(Boolean).join(", "), `Times are ${zone()}`];
  // A date is not broken at its hyphens.
  const whole = (line) => line.split(/(\d{4}-\S+ \S+)/).map((part, index) => (index % 2 ? h("time", {}, part) : part));
  if ($("who").textContent !== lines.join("")) $("who").replaceChildren(...lines.map((line) => h("span", {}, whole(line))));
  $("who").classList.toggle("soon", soon);
  if (soon && !warned) say("The token ends in a few minutes");
  warned = soon;
}

function badge(id, value, bad) {
  $(id).textContent = value ? (typeof value === "number" ? count(value) : value) : "";
  $(id).classList.toggle("bad", bad);
}

// --- the head ---------------------------------------------------------------------------------------------------------

$("find").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  const name = $("find-user").value.trim();
  const id = $("find-id").value.trim();
  goTo(!id ? address("user", name) : id.startsWith("run_") ? address("run", name, id) : address("event", name, id));
});

$("skip").addEventListener("click", (clicked) => {
  clicked.preventDefault();
  $("main").focus();
  $("main").scrollIntoView();
});

$("sign-out").addEventListener("click", () => {
  forget();
  signIn();
});

const dark = matchMedia("(prefers-color-scheme: dark)");

function theme() {
  const chosen = localStorage.getItem(THEME);
  if (chosen) document.documentElement.dataset.theme = chosen;
  const isDark = chosen ? chosen === "dark" : dark.matches;
  $("theme").textContent = isDark ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", `Use ${isDark ? "light" : "dark"} colours`);
}

$("theme").addEventListener("click", () => {
  const isDark = (localStorage.getItem(THEME) ?? (dark.matches ? "dark" : "light")) === "dark";
  localStorage.setItem(THEME, isDark ? "light" : "dark");
  theme();
});
dark.addEventListener("change", theme);
theme();

addEventListener("hashchange", () => show());
if (token()) start();
else signIn();
