import assert from "node:assert/strict";
import test from "node:test";
import { HiddenTimers } from "../eventbus-client.js";
import { turn, until } from "../support/clocks.js";

/** A hidden page, and the workers that it started: each answers when it is told to. */
function hiddenPage(extra = {}) {
  const workers = [];
  class Worker {
    asked = [];
    terminated = false;

    constructor(address) {
      this.address = address;
      workers.push(this);
    }

    postMessage({ number, ms }) {
      this.asked.push({ number, ms });
    }

    terminate() {
      this.terminated = true;
    }
  }
  return { page: { document: { visibilityState: "hidden" }, Worker, ...extra }, workers };
}

test("a hidden page's timers are a worker's, and each runs once", () => {
  const { page, workers } = hiddenPage();
  const timers = new HiddenTimers(page);
  const ran = [];
  timers.set(() => ran.push("a"), 60);
  const cleared = timers.set(() => ran.push("b"), 70);
  timers.clear(cleared);
  const [worker] = workers;
  assert.deepEqual(worker.asked.map(({ ms }) => ms), [60, 70]);
  for (const { number } of [...worker.asked, ...worker.asked]) worker.onmessage({ data: number });
  assert.deepEqual(ran, ["a"]);
  assert.equal(workers.length, 1);
});

test("a page that is shown again lets its worker go with the last timer", () => {
  const { page, workers } = hiddenPage();
  const timers = new HiddenTimers(page);
  let ran = 0;
  timers.set(() => (ran += 1), 60);
  page.document.visibilityState = "visible";
  assert.ok(!timers.wanted);
  workers[0].onmessage({ data: workers[0].asked[0].number });
  assert.deepEqual([ran, workers[0].terminated], [1, true]);
});

test("what waits when the page's policy forbids the worker runs by the page's own timers", async () => {
  for (const forbid of ["later", "at once"]) {
    const { page, workers } = hiddenPage();
    if (forbid === "at once") {
      page.Worker = class {
        constructor() {
          throw new Error("forbidden");
        }
      };
    }
    const timers = new HiddenTimers(page);
    const ran = [];
    timers.set(() => ran.push("a"), 1);
    const cleared = timers.set(() => ran.push("b"), 1);
    if (forbid === "later") workers[0].onerror({});
    timers.clear(cleared);
    assert.ok(!timers.wanted);
    await until(() => ran.length > 0, "the timer");
    await turn();
    assert.deepEqual(ran, ["a"], forbid);
  }
});

test("a page that wants trusted addresses is given one", () => {
  const trustedTypes = { createPolicy: (name, rules) => ({ createScriptURL: (text) => ({ trusted: rules.createScriptURL(text) }) }) };
  const { page, workers } = hiddenPage({ trustedTypes });
  new HiddenTimers(page).set(() => {}, 1);
  assert.match(workers[0].address.trusted, /^blob:/);
});

test("a page that is hidden again and again makes one address and one policy for its workers", () => {
  let policies = 0;
  const trustedTypes = {
    createPolicy: (_, rules) => {
      if ((policies += 1) > 1) throw new TypeError("a policy of this name was made already");
      return rules;
    },
  };
  const { page, workers } = hiddenPage({ trustedTypes });
  const timers = new HiddenTimers(page);
  for (let time = 0; time < 3; time += 1) {
    page.document.visibilityState = "hidden";
    assert.ok(timers.wanted, "not refused");
    const timer = timers.set(() => {}, 1);
    page.document.visibilityState = "visible";
    timers.clear(timer);
  }
  assert.equal(workers.length, 3);
  assert.equal(new Set(workers.map(({ address }) => address)).size, 1);
});

test("without a page, as in Node, or with a shown one, the timers are the usual ones", () => {
  assert.ok(!new HiddenTimers().wanted);
  assert.ok(!new HiddenTimers({ Worker: class {}, document: { visibilityState: "visible" } }).wanted);
  assert.ok(!new HiddenTimers({ document: { visibilityState: "hidden" } }).wanted);
});
