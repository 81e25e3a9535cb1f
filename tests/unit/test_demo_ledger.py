"""The demo's page calls an event missing when it is, and never says that nothing is missing when something is."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.support.needs import program
from tests.support.processes import ROOT

LEDGER = ROOT / "gateway" / "demo" / "page" / "ledger.js"

SCRIPT = """
const { Ledger } = await import(process.argv[1]);
const { handed, back, published, gaps, live, waitedMs } = JSON.parse(process.argv[2]);
const ledger = new Ledger();
// An id that begins with `node` is of an event that somebody else than the agent has stored.
const made = (id) => ({
  id, run: "r", type: id.endsWith("end") ? "agent_completed" : "x", ...(id.startsWith("node") ? {} : { seq: 1 }),
});
for (const id of back) ledger.readBack(made(id));
for (const id of handed) ledger.handed(made(id));
for (let count = 0; count < gaps; count += 1) ledger.gap();
const logged = published.map((id) => ({ id, entry: id }));
ledger.verdict(ledger.compare("r", logged), live, 0);
const result = ledger.compare("r", logged);
console.log(JSON.stringify({ ...result, ...ledger.verdict(result, live, waitedMs) }));
"""


def judged(
    handed: list[str],
    published: list[str],
    *,
    back: tuple[str, ...] = (),
    gaps: int = 0,
    live: bool = True,
    waited_ms: int = 0,
) -> Any:
    case = {"handed": handed, "back": back, "published": published, "gaps": gaps, "live": live, "waitedMs": waited_ms}
    command = [str(program("node")), "--input-type=module", "-e", SCRIPT, "--", str(LEDGER), json.dumps(case)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=20).stdout)


def test_all_that_was_published_and_received_once_and_in_order_is_said_so() -> None:
    said = judged(["a", "b", "end"], ["a", "b", "end"])
    assert (said["tone"], said["missing"]) == ("good", 0)
    assert said["text"] == "Nothing is missing: 3 published, 3 received, each once and in order."


@pytest.mark.parametrize(
    "handed, waited_ms, tone, begins",
    [
        (["a", "end"], 0, "wait", "1 event on the way"),
        (["a", "end"], 10_001, "bad", "1 event missing"),
        (["b", "a", "end"], 0, "bad", "The order is not"),
        (["a", "b", "b", "end"], 0, "bad", "1 event shown twice"),
    ],
)
def test_what_is_not_as_published_is_told(handed: list[str], waited_ms: int, tone: str, begins: str) -> None:
    said = judged(handed, ["a", "b", "end"], waited_ms=waited_ms)
    assert said["tone"] == tone
    assert said["text"].startswith(begins)


def test_a_gap_is_told_although_nothing_else_is_wrong() -> None:
    assert judged(["a", "end"], ["a", "end"], gaps=1)["tone"] == "bad"


def test_without_a_connection_what_is_behind_waits_and_is_not_missing() -> None:
    said = judged(["a"], ["a", "b"], live=False, waited_ms=60_000)
    assert (said["tone"], said["text"]) == ("wait", "Not connected. 1 event waits in the store.")


def test_what_was_read_back_is_here_and_is_no_delivery_and_may_be_delivered_once() -> None:
    said = judged(["b", "end"], ["a", "b", "end"], back=("a", "b"))
    assert (said["received"], said["back"], said["twice"], said["tone"]) == (3, 1, 0, "good")


def test_what_others_have_stored_is_not_the_agents() -> None:
    said = judged(["a", "node-answer", "node-end"], ["a"])
    assert (said["received"], said["others"]) == (1, 2)
    assert said["text"] == "Nothing is missing: 1 published, 1 received, each once and in order."


def test_an_agent_that_was_killed_before_it_wrote_down_its_last_event_is_told() -> None:
    said = judged(["a", "b", "node-end"], ["a"])
    assert said["tone"] == "good"
    assert said["text"].endswith("The agent did not live to write down 1 more.")
