/** One turn of the conversation: the visitor's question, the agent's steps, what it asks back, and its answer. */

import { element, markAcked, noteItem, showTicks, stepItem, ticksOf } from "./steps.js";

/** Within so many pixels of its end a list stays at its end. */
const NEAR_END = 60;

/** Changes what is in a scrolled element, which then stays at its end if it was there. */
export function keepAtEnd(scrolled, change) {
  const atEnd = scrolled.scrollHeight - scrolled.scrollTop - scrolled.clientHeight < NEAR_END;
  const result = change();
  if (atEnd) scrolled.scrollTop = scrolled.scrollHeight;
  return result;
}

function button(className, text, action) {
  const made = element("button", className, text);
  made.type = "button";
  made.onclick = () => action(made);
  return made;
}

export class Turn {
  ended = false;
  question; // of the visitor
  whole; // the answer as its event has it, when that has come
  #hooks;
  #items = new Map(); // entry -> li
  #list = element("ol", "steps");
  #doing = element("summary", "", "waiting for the agent");
  #details = element("details", "doing", this.#doing, this.#list);
  #asked = element("p", "visitor");
  #asking = element("section", "asking");
  #choice = element("p", "visitor choice");
  #words = element("p", "words");
  #foot = element("div", "foot");
  #answer = element("div", "answer", this.#words, this.#foot);
  #outcome = element("p", "outcome");
  #cancel;
  #openQuestion; // the data of a question that waits for its answer
  #settled = new Set(); // ids of questions that have been answered

  /** `hooks`: selected(turn), cancel(turn, button), answer(turn, question, option, button), confirm(step, button), speak(text). */
  constructor(run, hooks) {
    this.run = run;
    this.#hooks = hooks;
    this.#cancel = button("cancel", "Cancel", (pressed) => hooks.cancel(this, pressed));
    for (const part of [this.#asking, this.#choice, this.#answer, this.#outcome]) part.hidden = true;
    this.#details.open = true;
    this.#doing.addEventListener("click", () => hooks.selected(this));
    this.#list.tabIndex = 0;
    this.#list.setAttribute("aria-label", "Steps of the agent");
    this.#asking.setAttribute("aria-label", "The agent asks you");
    this.element = element(
      "article", "turn", this.#asked, this.#details, this.#asking, this.#choice, this.#answer, this.#outcome, this.#cancel,
    );
    this.element.dataset.run = run;
  }

  /** The visitor's question, known before its event has come where it was asked in this tab. */
  ask(question, file) {
    this.question = question;
    this.#asked.replaceChildren(question, element("span", "small", file));
    this.element.setAttribute("aria-label", question);
  }

  fold() {
    this.#details.open = false;
  }

  /** Takes an event in. Returns the element in which a user sees it. */
  take(step) {
    const item = stepItem(step);
    this.#items.set(step.entry, item);
    keepAtEnd(this.#list, () => this.#list.append(item));
    const { type, data } = step.event;
    const seen = this[`_${type}`]?.(data, step) ?? item;
    if (!this.ended) this.#doing.textContent = `${this.#steps()}, at work`;
    return seen;
  }

  /** Something that happened between two events. */
  note(text, back) {
    keepAtEnd(this.#list, () => this.#list.append(noteItem({ text, back })));
  }

  /** The answer so far. */
  write(text) {
    if (text === undefined || this.whole !== undefined) return;
    this.#answer.hidden = false;
    this.#answer.classList.add("streaming");
    this.#words.textContent = text;
  }

  acked(entries) {
    for (const entry of entries) if (this.#items.has(entry)) markAcked(this.#items.get(entry));
  }

  /** `levels`: event id -> level. */
  mark(levels) {
    for (const place of this.element.querySelectorAll(".ticks")) showTicks(place, levels[place.dataset.event]);
  }

  /** Time goes on: says how long an answer is waited for. */
  tick(nowMs) {
    const { deadline_ms: deadlineMs } = this.#openQuestion ?? {};
    if (deadlineMs === undefined) return;
    const seconds = Math.max(0, Math.ceil((deadlineMs - nowMs) / 1_000));
    this.#asking.querySelector(".small").textContent = `After ${seconds} s without an answer it takes the first.`;
  }

  // What each type of event does beside being a step.

  _visitor_asked({ question, file }) {
    this.ask(question, file);
    return this.#asked;
  }

  _agent_question(data) {
    if (this.ended || this.#settled.has(data.question)) return undefined;
    this.#openQuestion = data;
    const choose = (option) => button("", option, (pressed) => this.#hooks.answer(this, data.question, option, pressed));
    const options = element("div", "options", ...(data.options ?? []).map(choose));
    this.#asking.replaceChildren(element("p", "", data.text), options, element("p", "small"));
    this.#asking.hidden = false;
    this.tick(Date.now());
    this.#hooks.speak(`The agent asks: ${data.text}`);
    return this.#asking;
  }

  _agent_answered({ question, answer, by }) {
    this.#settled.add(question);
    if (this.#openQuestion?.question === question) this.#hideQuestion();
    this.#choice.replaceChildren(String(answer), element("span", "small", by === "user" ? "" : "nobody answered in time"));
    this.#choice.hidden = false;
    return this.#choice;
  }

  _agent_text({ text, partial }, step) {
    this.whole = text;
    this.#answer.hidden = false;
    this.#answer.classList.remove("streaming");
    this.#words.textContent = text;
    if (text === "") this.#answer.hidden = true;
    // Only what was delivered to this page can be confirmed by it.
    const got = button("got", "Got it", (pressed) => this.#hooks.confirm(step, pressed));
    got.disabled = step.confirmed === true;
    this.#foot.replaceChildren(...(step.back || partial ? [] : [got]), ticksOf(step.event));
    if (!step.back) this.#hooks.speak(`The answer: ${text}`);
    return this.#answer;
  }

  _agent_completed({ outcome, error }) {
    this.ended = true;
    this.#hideQuestion();
    this.#cancel.hidden = true;
    this.#answer.classList.remove("streaming");
    this.#doing.textContent = this.#steps();
    if (outcome === "success") return undefined;
    this.#outcome.textContent = `The run ${outcome === "cancelled" ? "was cancelled" : "failed"}: ${error ?? "no reason was given"}.`;
    this.#outcome.className = `outcome ${outcome}`;
    this.#outcome.hidden = false;
    this.#hooks.speak(this.#outcome.textContent);
    return this.#outcome;
  }

  #steps() {
    return `${this.#items.size} ${this.#items.size === 1 ? "step" : "steps"}`;
  }

  #hideQuestion() {
    this.#openQuestion = undefined;
    // Who has just pressed one of its buttons must not lose their place in the page.
    const focused = this.#asking.contains(document.activeElement);
    this.#asking.hidden = true;
    if (focused) this.#doing.focus();
  }
}
