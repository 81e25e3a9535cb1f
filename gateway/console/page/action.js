/** Doing something: what would be done is shown first, then confirmed by typing how much it is, then it is done. */

import { act, ApiError } from "./api.js";
import { failure, h, prose, waiting } from "./dom.js";
import { count, words } from "./format.js";

const TITLES = {
  redeliver: "Send again", skip: "Skip", dead_letter: "Give up", replay: "Replay", drop: "Drop", end_session: "End the session",
  drain: "Drain the node", undrain: "Let the node go", purge: "Purge the user", pause: "Pause the type", resume: "Resume the type",
};
const MEANINGS = {
  redeliver: "What is pending is sent to the session again at once. It counts as no attempt.",
  skip: "What is pending is taken off the session for good: it will not get it.",
  dead_letter: "What is pending becomes a dead letter, which can be replayed.",
  replay: "The session that did not take an event gets it again, while both are still there.",
  drop: "The dead letters are deleted for good.",
  end_session: "The session ends, and is not opened again by its node. What waits for it is recorded as expired.",
  drain: "The node sends its clients elsewhere and takes no new ones, until it is let go.",
  undrain: "The node takes connections again.",
  purge: "Everything that is stored of the user is deleted for good: events, sessions, runs, dead letters.",
  pause: "Publishing events of this type is refused until it is resumed.",
  resume: "Events of this type are taken again.",
};
const TO_EVERYONE = "The events are published again under their own ids, for every session of their users; a client that has handled one drops it.";
const NAMES_MAX = 3; // so many things are named at the top; more are in the list below
const GRAVE = new Set(["skip", "drop", "purge", "end_session", "dead_letter"]);
const UNITS = {
  redeliver: "entries", skip: "entries", dead_letter: "entries", replay: "dead letters", drop: "dead letters", purge: "keys",
  end_session: "sessions", drain: "nodes", undrain: "nodes", pause: "types", resume: "types",
};

/**
 * A button that opens the dialog for an action. `after` is called when something was done. Of many that look the same
 * `of` says which it is, behind the words that are seen: they are what somebody says who steers by voice.
 */
export function actionButton(asked, { after, text = TITLES[asked.action], label, of } = {}) {
  return h("button", {
    type: "button", class: GRAVE.has(asked.action) && "grave", "aria-label": label ?? (of && `${text} ${of}`), "aria-haspopup": "dialog",
    on: { click: () => openAction(asked, after) },
  }, text);
}

/** Opens the dialog. The page below can not be reached while it is open, and gets its focus back. */
export function openAction(asked, after = () => {}) {
  const body = h("div", {}, waiting());
  const title = h("h2", { id: "dialog-title", tabindex: "-1" }, TITLES[asked.action]);
  const dialog = h("dialog", { "aria-labelledby": "dialog-title", class: GRAVE.has(asked.action) && "grave" }, title, h("p", { class: "small" }, asked.to === "everyone" ? TO_EVERYONE : MEANINGS[asked.action]), body);
  const from = document.activeElement;
  let done = false;
  let why = "";
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (from?.isConnected) from.focus();
    else document.getElementById("main").focus({ preventScroll: true });
    if (done) after();
  });
  document.body.append(dialog);
  dialog.showModal();
  title.focus();
  const close = h("button", { type: "button", on: { click: () => dialog.close() } }, "Cancel");
  plan();

  async function plan(problem) {
    body.replaceChildren(waiting());
    try {
      show((await act(asked)).planned, problem);
    } catch (error) {
      body.replaceChildren(failure(error, () => plan()), h("div", { class: "buttons" }, close));
    }
  }

  function show(planned, problem) {
    const unit = UNITS[asked.action];
    const what = planned.count === 1 ? unit.replace(/ies$/, "y").replace(/s$/, "") : unit;
    if (planned.count === 0) {
      close.textContent = "Close";
      close.setAttribute("aria-describedby", "plan");
      body.replaceChildren(...[problem && failure(problem), about(planned), h("p", { class: "verdict", id: "plan" }, "Nothing to do: nothing of this is there (any more)."), h("div", { class: "buttons" }, close)].filter(Boolean));
      close.focus();
      return;
    }
    const typed = h("input", { id: "confirm-count", inputmode: "numeric", autocomplete: "off", "aria-describedby": "confirm-help", required: true });
    const reason = h("input", { id: "confirm-reason", autocomplete: "off", maxlength: 256, required: true, value: why, "aria-describedby": "plan" });
    const go = h("button", { type: "submit", class: GRAVE.has(asked.action) ? "primary grave" : "primary", disabled: true }, `${TITLES[asked.action]}: ${count(planned.count)} ${what}`);
    const check = () => {
      why = reason.value;
      go.disabled = typed.value.replaceAll(/[\s,.]/g, "") !== String(planned.count) || !why.trim();
    };
    const form = h("form", { on: { input: check, submit: (event) => {
      event.preventDefault();
      if (!go.disabled) carryOut(planned.count, why.trim(), go);
    } } },
      h("label", { for: "confirm-reason" }, "Why (it is written down with your name)"), reason,
      h("label", { for: "confirm-count" }, "Type ", h("strong", {}, count(planned.count)), " to confirm"), typed,
      h("p", { class: "small", id: "confirm-help" }, "If another number is concerned by then, nothing is done."),
      h("div", { class: "buttons" }, go, close));
    body.replaceChildren(...[
      problem && failure(problem), about(planned),
      h("p", { class: "verdict", id: "plan" }, `${count(planned.count)} ${what}${planned.more ? ", and there are more: ask again afterwards" : ""}. Nothing is changed yet.`),
      planned.notes.length && h("ul", { class: "notes" }, planned.notes.map((note) => h("li", {}, prose(note)))),
      h("details", {}, h("summary", {}, planned.items.length < planned.count ? `The first ${planned.items.length}` : "Which"), h("ul", { class: "items" }, planned.items.map((item) => h("li", {}, h("code", {}, item))))),
      form,
    ].filter(Boolean));
    (why ? typed : reason).focus();
  }

  function about(planned) {
    const flat = Object.entries(planned.about).flatMap(([name, value]) => (name === "where" ? Object.entries(value) : [[name, value]]));
    if (asked.where && !Object.keys(asked.where).length) flat.unshift(["which", "every dead letter"]);
    return h("dl", { class: "facts" }, flat.map(([name, value]) => h("div", {}, h("dt", {}, words(name)), h("dd", {}, named(value)))));
  }

  function named(value) {
    if (!Array.isArray(value)) return String(value);
    return value.length > NAMES_MAX ? `${count(value.length)} of them` : value.join(", ");
  }

  async function carryOut(confirm, reason, go) {
    go.disabled = true;
    close.textContent = "Close";
    body.setAttribute("aria-busy", "true");
    try {
      const answer = await act({ ...asked, confirm, reason });
      done = true;
      if (!dialog.isConnected) after(); // closed in the meantime: what was begun was done all the same
      const results = Object.entries(answer.results).map(([outcome, number]) => `${words(outcome)}: ${count(number)}`).join(", ") || "nothing was left to do";
      const left = Object.entries(answer.left);
      body.replaceChildren(h("p", { class: "verdict good", id: "done" }, `Done. ${results}.`),
        left.length ? h("details", { open: true }, h("summary", {}, "Not done"), h("ul", { class: "items" }, left.map(([item, why]) => h("li", {}, h("code", {}, item), ` ${words(why)}`)))) : "",
        h("p", { class: "small" }, "In the audit log as operation ", h("code", {}, answer.operation), "."), h("div", { class: "buttons" }, close));
      // Read out with the focus: what is said outside of an open dialog is not heard.
      close.setAttribute("aria-describedby", "done");
      close.focus();
    } catch (error) {
      close.textContent = "Cancel";
      if (error instanceof ApiError && error.code === "not_confirmed") return void plan(error);
      body.replaceChildren(failure(error, () => plan()), h("div", { class: "buttons" }, close));
    } finally {
      body.removeAttribute("aria-busy");
    }
  }
}
