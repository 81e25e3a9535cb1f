/** The demo's page: wires the form, the processes, the client of the bus and the ledger. */

import { Ledger } from "./ledger.js";
import { element, markAcked, noteItem, stepItem } from "./steps.js";
import { watchedSocket } from "./watched-socket.js";

const UPLOAD_MAX_BYTES = 1024 * 1024;
const POLL_MS = 500;
const SOON_MS = 120;
const AWAY_MS = 3_000;
const AHEAD_MS = 2_000;
const RUNS_SHOWN = 30;

const $ = (id) => document.getElementById(id);
const controlToken = document.querySelector('meta[name="control-token"]').content;

const ledger = new Ledger();
const runs = new Map(); // run -> {id, title, steps: [step or note, ...], items: Map entry -> li}
const served = []; // names of the nodes that this tab was connected to, in order
const nodeOf = new Map(); // entry -> name of the node that delivered it
let selected; // the run that is shown
let client;
let node; // the name of the node that serves this tab, while one does
let lostMs;
let aheadMs; // since when more has arrived than the log that was read last has
let files = [];
let state; // the last answer of /demo/state

// ------------------------------------------------------------------------------------------------ the page's own server

async function api(path, { method = "GET", body } = {}) {
  const response = await fetch(path, { method, body, headers: { "x-demo-token": controlToken } });
  const answer = await response.json();
  if (response.ok) return answer;
  if (answer.error.code === "wrong_token") reloadOnce();
  throw new Error(answer.error.message);
}

/** The demo was started anew: this page belongs to the one before. Not more than once a while. */
function reloadOnce() {
  const last = Number(sessionStorage.getItem("reloaded") ?? 0);
  if (Date.now() - last < 10_000) return;
  sessionStorage.setItem("reloaded", String(Date.now()));
  location.reload();
}

function say(problem) {
  $("alert").textContent = problem ?? "";
  $("alert").hidden = !problem;
}

/** Does what a button asks for, with the button out of use meanwhile; what goes wrong is shown. */
async function busy(button, action) {
  button.disabled = true;
  try {
    say();
    await action();
  } catch (error) {
    say(error instanceof TypeError ? "The demo does not answer: is it still running?" : error.message);
  } finally {
    button.disabled = false;
    refreshSoon(0);
  }
}

let timer;
let dueMs = Infinity;

function refreshSoon(ms = SOON_MS) {
  const atMs = performance.now() + ms;
  if (atMs >= dueMs) return;
  clearTimeout(timer);
  dueMs = atMs;
  timer = setTimeout(refresh, ms);
}

async function refresh() {
  dueMs = Infinity;
  let nextMs = document.hidden ? AWAY_MS : POLL_MS;
  try {
    const query = new URLSearchParams({ run: selected ?? "", session: client?.session ?? "" });
    const asked = selected;
    state = await api(`/demo/state?${query}`);
    if (asked !== selected) state.published = [];
    if ($("alert").dataset.away) {
      delete $("alert").dataset.away;
      say();
    }
    showProcesses();
    showFiles();
    showProof();
  } catch {
    $("alert").dataset.away = "yes";
    say("The demo has been stopped. Start it again with `make demo` (or `eventbus-gateway dev`): this page goes on by itself.");
    nextMs = AWAY_MS;
  }
  refreshSoon(nextMs);
}

// ------------------------------------------------------------------------------------------------------- the processes

function showProcesses() {
  $("agent-state").textContent = processText(state.agent);
  $("server-name").textContent = state.server.name;
  $("server-state").textContent = processText(state.server);
  for (const each of state.nodes) showNode(each);
}

function processText({ pid, state: how }) {
  return how === "ended" ? "being started again" : `pid ${pid}`;
}

function showNode({ name, pid, port, state: how, ended }) {
  const box = document.querySelector(`[data-node="${CSS.escape(name)}"]`) ?? makeNode(name);
  const texts = { starting: "starting…", ready: `pid ${pid}, port ${port}`, not_ready: `pid ${pid}, not ready` };
  const up = how !== "ended";
  const mine = up && name === node;
  box.className = `node ${how} ${mine ? "serves" : ""}`;
  box.querySelector(".state").textContent = texts[how] ?? (pid ? `pid ${pid}` : "");
  box.querySelector(".serving").textContent = up ? (mine ? "serves this tab" : "") : ended;
  const button = box.querySelector("button");
  button.textContent = up ? "Kill" : "Revive";
  button.className = up ? "kill" : "revive";
  button.title = up ? `kill -9 ${pid}` : "start it again";
  button.setAttribute("aria-label", up ? `Kill ${name}, pid ${pid}, with SIGKILL` : `Revive ${name}`);
  button.dataset.action = up ? "kill" : "revive";
}

function makeNode(name) {
  const button = element("button", "");
  button.type = "button";
  button.onclick = () => busy(button, () => api(`/demo/nodes/${name}/${button.dataset.action}`, { method: "POST" }));
  const box = element("li", "node", element("h3", "", name), element("p", "state"), element("p", "serving"), button);
  box.dataset.node = name;
  $("nodes").append(box);
  return box;
}

// ------------------------------------------------------------------------------------------------------------ the form

function showFiles() {
  if (JSON.stringify(state.files) === JSON.stringify(files)) return;
  const chosen = $("file").value;
  files = state.files;
  $("file").replaceChildren(...files.map(({ id, name, bytes }) => new Option(`${name} (${sizeText(bytes)})`, id)));
  if (files.some(({ id }) => id === chosen)) $("file").value = chosen;
  else suggest();
}

function sizeText(bytes) {
  return bytes < 1024 ? `${bytes} bytes` : `${(bytes / 1024).toFixed(1)} KiB`;
}

/** Puts a question that fits the file, unless the visitor has written one. */
function suggest() {
  const question = $("question");
  if (question.value && !files.some((file) => file.question === question.value)) return;
  question.value = files.find(({ id }) => id === $("file").value)?.question ?? "";
}

async function upload() {
  const [own] = $("own").files;
  if (!own) return;
  if (own.size > UPLOAD_MAX_BYTES) throw new Error(`${own.name} has ${sizeText(own.size)}: 1 MiB is the most.`);
  const { id } = await api(`/demo/files?${new URLSearchParams({ name: own.name })}`, { method: "POST", body: own });
  state = await api("/demo/state");
  showFiles();
  $("file").value = id;
  suggest();
}

async function start() {
  const body = JSON.stringify({
    file: $("file").value, question: $("question").value, pace_ms: Number($("pace").value),
  });
  const { run } = await api("/demo/runs", { method: "POST", body });
  if (!runs.has(run)) addRun(run, $("question").value);
  select(run);
}

// ------------------------------------------------------------------------------------------------------------ the runs

function addRun(run, question) {
  runs.set(run, { id: run, steps: [], items: new Map() });
  const option = new Option(question.slice(0, 60) || run, run);
  $("runs").prepend(option);
  while ($("runs").length > RUNS_SHOWN) $("runs").lastElementChild.remove();
  $("runs").hidden = runs.size < 2;
}

function select(run) {
  selected = run;
  $("runs").value = run;
  $("empty").hidden = true;
  $("steps").hidden = false;
  const made = runs.get(run);
  made.items.clear();
  $("steps").replaceChildren(...made.steps.map((step) => itemOf(made, step)));
  $("steps").scrollTop = $("steps").scrollHeight;
  if (state) state.published = [];
  refreshSoon(0);
}

function itemOf(run, step) {
  if (!step.event) return noteItem(step);
  const item = stepItem(step);
  run.items.set(step.entry, item);
  return item;
}

function append(run, step) {
  run.steps.push(step);
  if (run.id !== selected) return;
  const list = $("steps");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  list.append(itemOf(run, step));
  if (atEnd) list.scrollTop = list.scrollHeight;
}

/** Writes a line between the steps of the run that is under way. */
function note(text, back = false) {
  const run = runs.get(selected);
  if (run && !ledger.ended(selected)) append(run, { text, back });
}

// ------------------------------------------------------------------------------------------------------------- the bus

function onEvent(event, { entry, delivery }) {
  const number = ledger.handed(event, entry);
  const by = nodeOf.get(entry) ?? node;
  nodeOf.delete(entry);
  if (number === 0) return;
  const run = event.run ?? "";
  if (!runs.has(run)) addRun(run, event.data.question ?? "");
  append(runs.get(run), { number, event, entry, delivery, node: by, acked: false });
  // The latest run is shown, unless the one that is shown is under way.
  if (selected === undefined || (event.type === "agent_started" && selected !== run && ledger.ended(selected))) select(run);
  showProof();
  refreshSoon();
}

function onAcked(entries) {
  for (const run of runs.values()) {
    // The newest stand at the end.
    for (let index = run.steps.length - 1; index >= 0 && !run.steps[index].acked; index -= 1) {
      const step = run.steps[index];
      if (!step.event || !entries.includes(step.entry)) continue;
      step.acked = true;
      const item = run.items.get(step.entry);
      if (item) markAcked(item);
    }
  }
}

function onWelcome(frame) {
  node = frame.node;
  if (served.at(-1) !== node) served.push(node);
  if (lostMs !== undefined) {
    const seconds = ((performance.now() - lostMs) / 1000).toFixed(1);
    note(`Back after ${seconds} s: ${node} goes on with the same session, after ${frame.cursor}.`, true);
  }
  lostMs = undefined;
  if (state) showProcesses();
}

function onState(how, detail) {
  const texts = {
    connecting: "connecting…", open: "connecting…", catching_up: "catching up…", live: "live", waiting: "reconnecting…",
    closed: "closed",
  };
  if (how === "waiting" || how === "closed") {
    if (node !== undefined) {
      lostMs = performance.now();
      note(`The connection to ${node} is gone (${detail.code}). The run goes on: its events wait in the store.`);
    }
    node = undefined;
    if (state) showProcesses();
  }
  $("tab-state").textContent = texts[how];
  $("tab-detail").textContent = how === "closed" ? detail.reason : `session ${client?.session ?? "…"}`;
  $("tab-state").closest(".box").className = `box tab ${how}`;
  showProof();
  refreshSoon();
}

function showProof() {
  const published = state?.published ?? [];
  const result = ledger.compare(selected, published);
  // An event may be here before the log was asked again: the two are held against each other a moment later.
  aheadMs = result.received > result.published ? (aheadMs ?? performance.now()) : undefined;
  if (aheadMs !== undefined && performance.now() - aheadMs < AHEAD_MS) return refreshSoon(SOON_MS);
  const live = client?.state === "live";
  const { tone, text } = ledger.verdict(result, live, performance.now());
  const put = (id, value, bad = false) => {
    if ($(id).textContent !== String(value)) $(id).textContent = value;
    $(id).className = bad ? "bad" : "";
  };
  if ($("verdict").textContent !== text) $("verdict").textContent = text;
  $("verdict").className = `verdict ${tone}`;
  put("published", result.published);
  put("received", result.received);
  put("missing", result.missing, tone === "bad" && result.missing > 0);
  put("order", result.received === 0 ? "–" : result.inOrder ? "yes" : "no", !result.inOrder);
  put("twice", result.twice, result.twice > 0);
  put("dropped", result.dropped);
  put("gaps", result.gaps, result.gaps > 0);
  put("pending", state?.pending ?? "–");
  const all = ledger.totals(state?.runs ?? []);
  put("all", `${all.published}/${all.received}`);
  put("served", served.join(" → ") || "no node yet");
}

/** The client's module comes from a node: while none is alive, there is nothing to load it from. */
async function loadClient() {
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await import(attempt === 0 ? "/client.js" : `/client.js?again=${attempt}`);
    } catch {
      $("tab-state").textContent = "no node is alive";
      $("tab-detail").textContent = "revive one: it brings the client, too";
      await new Promise((resolve) => setTimeout(resolve, 1_000));
    }
  }
}

async function connect() {
  const { EventBusClient } = await loadClient();
  client = new EventBusClient("/", {
    session: `tab-${crypto.randomUUID().slice(0, 8)}`,
    token: async () => (await api("/demo/token", { method: "POST" })).token,
    onEvent,
    onState,
    onGap: (gap) => {
      ledger.gap();
      note(`A gap was announced: ${gap.reason}, between ${gap.after ?? "the beginning"} and ${gap.before ?? "now"}.`);
      showProof();
    },
    onError: (error) => error.retryable || say(`${error.code}: ${error.message}`),
    WebSocket: watchedSocket({
      welcomed: onWelcome,
      delivered: ({ id }, { node: by, again }) => {
        nodeOf.set(id, by);
        if (again) ledger.dropped();
      },
      acked: onAcked,
    }),
  });
  onState("connecting", {});
}

$("file").onchange = suggest;
$("own").onchange = () => busy($("start"), upload);
$("runs").onchange = () => select($("runs").value);
$("ask").onsubmit = (submitted) => {
  submitted.preventDefault();
  void busy($("start"), start);
};
document.addEventListener("visibilitychange", () => refreshSoon(0));
refreshSoon(0);
void connect();
