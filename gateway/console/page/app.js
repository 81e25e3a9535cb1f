/** The frame: who is signed in, which view is shown, what is live. */

import { forget, onSignedOut, remember, token } from "./api.js";
import { $, address, failure, h, say, waiting } from "./dom.js";
import { count } from "./format.js";
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
  if (first in LISTS && !parts.length) return { view: LISTS[first], nav: first || "overview", parts, query };
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
  shown?.leave();
  const found = routed();
  for (const one of document.querySelectorAll("#nav a")) {
    if (one.dataset.view === found?.nav) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
  shown = found ? opened(found) : lost();
  if (focus) $("main").querySelector("h1").focus();
  scrollTo(0, 0);
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
  let first = true;

  async function load(byHand) {
    clearTimeout(timer);
    if (!made.load || loading) return;
    loading = true;
    try {
      await made.load(first || byHand);
      first = false;
      busy.remove();
      made.element.hidden = false;
      problem.replaceChildren();
    } catch (error) {
      if (stop.signal.aborted) return;
      busy.remove();
      if (problem.textContent !== failure(error, reload).textContent) problem.replaceChildren(failure(error, reload));
    } finally {
      loading = false;
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
  $("main").replaceChildren(h("h1", { tabindex: "-1" }, "There is nothing here"), h("p", {}, h("a", { href: "#/" }, "To the overview")));
  return { made: {}, leave() {} };
}

// --- who is signed in -------------------------------------------------------------------------------------------------

function frame(visible) {
  $("top").hidden = $("nav").hidden = !visible;
  document.body.classList.toggle("signed-out", !visible);
}

function signIn(problem) {
  shown?.leave();
  shown = undefined;
  live.stop();
  frame(false);
  document.title = "Sign in · eventbus console";
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  const input = h("input", { id: "token", type: "password", autocomplete: "off", required: true, spellcheck: "false", "aria-describedby": "token-help" });
  const form = h("form", { on: { submit: (event) => {
    event.preventDefault();
    remember(input.value.trim());
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
  const text = live.state === "stale" ? `Redis does not answer: ${live.problem}. What is shown is old until it does.` : `${live.problem} What is shown is old.`;
  if ($("banner").textContent !== text) $("banner").textContent = text;
});

live.addEventListener("figures", () => {
  const now = live.figures;
  badge("count-pending", now.waiting_users, false);
  badge("count-dead", now.dead_letters, now.dead_letters > 0);
  const ready = now.nodes.filter(({ state }) => state === "ready").length;
  badge("count-nodes", ready === now.nodes.length ? ready : `${ready}/${now.nodes.length}`, ready < now.nodes.length);
  shown?.made.onFigures?.();
});

live.addEventListener("told", ({ detail }) => {
  shown?.made.onTold?.();
  const late = detail.filter(({ time_ms: at }) => at > (live.figures?.now_ms ?? 0) - 60_000);
  if (late.length) say(`Operators were told: ${late.map(toldSentence).slice(0, 3).join("; ")}`);
});

function badge(id, value, bad) {
  $(id).textContent = value ? (typeof value === "number" ? count(value) : value) : "";
  $(id).classList.toggle("bad", bad);
}

// --- the head ---------------------------------------------------------------------------------------------------------

$("find").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  const name = $("find-user").value.trim();
  const id = $("find-id").value.trim();
  location.hash = !id ? address("user", name) : id.startsWith("run_") ? address("run", name, id) : address("event", name, id);
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
