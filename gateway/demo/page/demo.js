/** The demo's page: wires the form, the processes, the client of the bus, the conversation and the ledger. */

import { $, api, busy, say } from "./api.js";
import { Ledger } from "./ledger.js";
import { showProcesses } from "./processes.js";
import { Proof } from "./proof.js";
import { Threads } from "./threads.js";
import { keepAtEnd, Turn } from "./turn.js";
import { watchedSocket } from "./watched-socket.js";

const UPLOAD_MAX_BYTES = 1024 * 1024;
const POLL_MS = 500;
const SOON_MS = 120;
const AWAY_MS = 3_000;
const AGAIN_MS = 1_000;
const THREADS_MS = 5_000;

// What a tab remembers belongs to the data of one installation.
const installation = document.querySelector('meta[name="installation"]').content;
const THREAD_KEY = `${installation}:thread`;

const ledger = new Ledger();
const proof = new Proof(ledger, () => refreshSoon());
const threads = new Threads($("threads"), (chosen) => void open(chosen));
const steps = new Map(); // event id -> {number, event, entry, delivery, node, acked, back}: what this page knows
const nodeOf = new Map(); // entry -> name of the node that delivered it
const served = []; // names of the nodes that this tab was connected to, in order
let thread; // the conversation that is shown
let opened; // a promise: its history stands there
let loading = false;
const turns = new Map(); // run -> Turn, of the conversation that is shown
const places = new Map(); // event id -> the element that shows it
let shown; // the turn that the panel speaks of
let client;
let node; // the name of the node that serves this tab, while one does
let lostMs;
let threadsMs = -Infinity; // when the list of conversations was asked for
let files = [];
let state; // the last answer of /demo/state

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// ---------------------------------------------------------------------------------------------- the page's own server

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
    const asked = shown;
    const query = new URLSearchParams({ run: shown?.run ?? "", session: client?.session ?? "" });
    state = await api(`/demo/state?${query}`);
    if (asked !== shown) Object.assign(state, { published: [], confirmations: {} });
    if ($("alert").dataset.away) {
      delete $("alert").dataset.away;
      say();
    }
    showProcesses(state, node, () => refreshSoon(0));
    showFiles();
    shown?.mark(state.confirmations);
    for (const turn of turns.values()) turn.tick(Date.now());
    showProof();
    void refreshThreads();
  } catch {
    $("alert").dataset.away = "yes";
    say("The demo has been stopped. Start it again with `make demo` (or `eventbus-gateway dev`): this page goes on by itself.");
    nextMs = AWAY_MS;
  }
  refreshSoon(nextMs);
}

function showProof() {
  const streamed = shown && client?.text(shown.run);
  const runs = (state?.runs ?? []).filter(({ run }) => turns.has(run));
  proof.show({ turn: shown, state, runs, live: client?.state === "live", served, streamed });
}

/** Does what a button asks for, and looks at once what came of it. */
async function press(button, action) {
  await busy(button, action);
  refreshSoon(0);
}

// ----------------------------------------------------------------------------------------------------------- the form

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
  if (thread === undefined) throw new Error("No node is alive: revive one first.");
  const asked = { file: $("file").value, question: $("question").value.trim(), pace_ms: Number($("pace").value), thread };
  const { run } = await api("/demo/runs", { method: "POST", body: JSON.stringify(asked) });
  await opened;
  if (asked.thread !== thread) return;
  const turn = keepAtEnd($("log"), () => {
    const made = turnOf(run);
    made.ask(asked.question, files.find(({ id }) => id === asked.file)?.name ?? "");
    return made;
  });
  threads.called(thread, asked.question);
  select(turn);
}

// --------------------------------------------------------------------------------------------------- the conversation

/** Shows a conversation: the node sends what is new of it alone, and its history is read back. */
function open(wanted) {
  thread = wanted;
  sessionStorage.setItem(THREAD_KEY, wanted);
  turns.clear();
  places.clear();
  shown = undefined;
  $("log").replaceChildren();
  $("empty").hidden = false;
  threads.show(wanted);
  opened = load(wanted);
  refreshSoon(0);
  return opened;
}

/** Reads a conversation back, for as long as it takes a node to answer. */
async function load(wanted) {
  while (thread === wanted && client.state !== "closed") {
    loading = true;
    try {
      const filtered = client.filter({ threads: [wanted] });
      if (client.state !== "idle") await filtered;
      for await (const page of client.history({ thread: wanted, limit: 500 })) {
        if (thread !== wanted) return;
        for (const { id: entry, event } of page.events) show(steps.get(event.id) ?? readBack(event, entry));
      }
      for (const turn of turns.values()) turn.write(client.text(turn.run));
      $("log").scrollTop = $("log").scrollHeight;
      return;
    } catch {
      await pause(AGAIN_MS);
    } finally {
      loading = false;
    }
  }
}

function readBack(event, entry) {
  const step = { number: ledger.readBack(event), event, entry, delivery: 0, node: "", acked: false, back: true };
  steps.set(event.id, step);
  return step;
}

/** Puts an event where it belongs. Returns the element in which a user sees it. */
function show(step) {
  const { event } = step;
  if (places.has(event.id)) return places.get(event.id);
  const place = keepAtEnd($("log"), () => turnOf(event.run).take(step));
  places.set(event.id, place);
  if (event.type === "visitor_asked") threads.called(thread, event.data.question);
  return place;
}

function turnOf(run) {
  if (turns.has(run)) return turns.get(run);
  for (const turn of turns.values()) turn.fold();
  const made = new Turn(run, {
    selected: select,
    cancel: (turn, button) => press(button, () => client.cancel(turn.run, "you cancelled it")),
    answer: (turn, question, option, button) => press(button, () => client.answer(question, option, { run: turn.run })),
    confirm: (step, button) => {
      client.confirm(step.event, "got it");
      step.confirmed = button.disabled = true;
    },
    speak: (text) => loading || ($("spoken").textContent = text),
  });
  turns.set(run, made);
  $("empty").hidden = true;
  $("log").append(made.element);
  // The latest is looked at, unless the one that is looked at is under way.
  if (shown === undefined || shown.ended) select(made);
  return made;
}

function select(turn) {
  if (turn === shown) return;
  shown?.element.classList.remove("selected");
  turn.element.classList.add("selected");
  shown = turn;
  if (state) Object.assign(state, { published: [], confirmations: {} });
  refreshSoon(0);
}

/** Writes a line between the steps of the run that is under way. */
function note(text, back = false) {
  if (shown && !shown.ended) shown.note(text, back);
}

async function refreshThreads() {
  if (client?.state !== "live" || performance.now() - threadsMs < THREADS_MS) return;
  threadsMs = performance.now();
  try {
    await threads.refresh(client);
  } catch {
    // no node answers: the next time
  }
}

// ------------------------------------------------------------------------------------------------------------ the bus

async function onEvent(event, { entry, delivery }) {
  const by = nodeOf.get(entry) ?? node;
  nodeOf.delete(entry);
  for (let waited; waited !== opened; ) await (waited = opened);
  const number = ledger.handed(event);
  if (number === 0) return; // handed over twice: the panel says so
  const step = steps.get(event.id) ?? { number, event, entry, delivery, node: by, acked: false, back: false };
  steps.set(event.id, step);
  if (event.thread === thread) client.displayed(event, show(step));
  showProof();
  refreshSoon();
}

function onText({ run, stream }) {
  const turn = turns.get(run);
  if (turn) keepAtEnd($("log"), () => turn.write(client.text(run, stream)));
}

function onAcked(entries) {
  for (const turn of turns.values()) turn.acked(entries);
  const acked = new Set(entries);
  for (const step of steps.values()) if (acked.has(step.entry)) step.acked = true;
}

function onWelcome(frame) {
  node = frame.node;
  if (served.at(-1) !== node) served.push(node);
  if (lostMs !== undefined) {
    const seconds = ((performance.now() - lostMs) / 1000).toFixed(1);
    note(`Back after ${seconds} s: ${node} goes on with the same session, after ${frame.cursor}.`, true);
  }
  lostMs = undefined;
  refreshSoon(0);
}

function onState(how, detail) {
  const texts = {
    idle: "reading back…", connecting: "connecting…", open: "connecting…", catching_up: "catching up…", live: "live",
    waiting: "reconnecting…", closed: "closed",
  };
  if (how === "waiting" || how === "closed") {
    if (node !== undefined) {
      lostMs = performance.now();
      note(`The connection to ${node} is gone (${detail.code}). The run goes on: its events wait in the store.`);
    }
    node = undefined;
  }
  $("tab-state").textContent = texts[how];
  $("tab-detail").textContent = how === "closed" ? detail.reason : `session ${(client?.session ?? "…").slice(0, 12)}`;
  $("tab-state").closest(".box").className = `box tab ${how}`;
  showProof();
  refreshSoon();
}

/** The client's module comes from a node: while none is alive, there is nothing to load it from. */
async function loadClient() {
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await import(attempt === 0 ? "/client.js" : `/client.js?again=${attempt}`);
    } catch {
      $("tab-state").textContent = "no node is alive";
      $("tab-detail").textContent = "revive one: it brings the client, too";
      await pause(AGAIN_MS);
    }
  }
}

/** The conversation of this tab's last life, else the latest there is, else a new one. */
async function firstThread() {
  const remembered = sessionStorage.getItem(THREAD_KEY);
  if (remembered) return remembered;
  for (;;) {
    try {
      await threads.refresh(client);
      return threads.latest ?? newThread();
    } catch {
      await pause(AGAIN_MS);
    }
  }
}

function newThread() {
  return `talk-${crypto.randomUUID().slice(0, 8)}`;
}

async function connect() {
  const { EventBusClient } = await loadClient();
  client = new EventBusClient("/", {
    connect: false, // the history first: the session begins behind it
    storage: sessionStorage, // a reload is the same session
    storageKey: `${installation}:client`,
    token: async () => (await api("/demo/token", { method: "POST" })).token,
    onEvent,
    onText,
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
  onState("idle", {});
  await open(await firstThread());
  client.connect();
}

$("file").onchange = suggest;
$("own").onchange = () => press($("start"), upload);
$("ask").onsubmit = (submitted) => {
  submitted.preventDefault();
  void press($("start"), start);
};
$("new").onclick = () => {
  if (client === undefined) return;
  void open(newThread());
  $("question").focus();
};
document.addEventListener("visibilitychange", () => refreshSoon(0));
refreshSoon(0);
void connect();
