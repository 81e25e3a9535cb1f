"""What a JavaScript client has seen, whether it runs in Node or in a page: records in the order of its calls."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.support.installation import Installation
from tests.support.needs import program
from tests.support.processes import ROOT, Child
from tests.support.waiting import until

_CLIENT = ROOT / "clients" / "js"
_POLL_MS = 20

Record = dict[str, Any]


class Seen:
    """Records of a client. `clients/js/support/reader.js` and the test page write the same ones."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def of(self, what: str) -> list[Record]:
        """The records of one kind: event, failed, state, gap, dropped, error, sent, got."""
        return [record for record in self.records if record["what"] == what]

    @property
    def events(self) -> list[str]:
        """The ids of the events whose handler has succeeded, in order."""
        return [record["id"] for record in self.of("event")]

    def got(self, op: str) -> list[Record]:
        """The frames of one kind that came, each with its fields; of `events` the number of them."""
        return [record for record in self.of("got") if record["op"] == op]

    @property
    def states(self) -> list[str]:
        return [record["state"] for record in self.of("state")]

    @property
    def state(self) -> str:
        return (self.states or ["connecting"])[-1]

    @property
    def errors(self) -> list[str]:
        return [record["code"] for record in self.of("error")]

    @property
    def closes(self) -> list[int]:
        """The close codes of connections that ended, in order."""
        return [record["code"] for record in self.of("state") if record["state"] == "waiting" and "code" in record]

    def check(self) -> None:
        """Fails when a state followed another that the guide does not name, handlers overlapped, or 1011 was seen."""
        allowed = documented_moves()
        before = ""
        for record in self.records:
            if record["what"] == "page":
                before = ""  # a new life of the page
            elif record["what"] == "state":
                after = record["state"]
                assert after in allowed[before] if before else after == "connecting", f"{before} -> {after}"
                before = after
        assert all(record["inHandler"] == 1 for record in self.of("event"))
        assert 1011 not in self.closes


class NodeReader(Seen):
    """A client in a process of Node's."""

    def __init__(self, child: Child) -> None:
        super().__init__()
        self.child = child
        self._read = 0

    def look(self) -> NodeReader:
        """Takes in what it has said since the last look."""
        text = self.child.stdout
        whole = text.rfind("\n") + 1
        self.records += [json.loads(line) for line in text[self._read : whole].splitlines()]
        self._read = whole
        return self

    async def until(self, condition: Callable[[NodeReader], Any], what: str, timeout_ms: int = 15_000) -> None:
        """Waits until `condition(self)` is true; fails at once when the process has ended."""

        def looked() -> bool:
            ended = not self.child.running
            holds = bool(condition(self.look()))
            assert holds or not ended, f"it ended, exit {self.child.exit_code}: {self.child.stderr}"
            return holds

        await until(looked, timeout_ms, lambda: f"{what}; the last it said: {self.records[-6:]}")

    async def live(self, timeout_ms: int = 15_000) -> None:
        """Waits until it is live."""
        await self.until(lambda seen: seen.state == "live", "it is live", timeout_ms)

    async def has(self, events: Sequence[str], timeout_ms: int = 15_000) -> None:
        """Waits until so many events as these were handled, and fails when they are not these in their order."""
        await self.until(lambda seen: len(seen.events) >= len(events), f"{len(events)} events", timeout_ms)
        assert self.events == list(events)


def start_reader(installation: Installation, **plan: Any) -> NodeReader:
    """Starts a client in Node; skips when Node or the package `ws` is missing."""
    node = program("node")
    needs_ws()
    whole = {
        "url": installation.url,
        **({} if "token" in plan else {"tokenUrl": f"{installation.pages.origin}/my/token"}),
        **plan,
    }
    script = _CLIENT / "support" / "reader.js"
    return NodeReader(installation.processes.start(node, script, json.dumps(whole), name="reader"))


def needs_ws() -> None:
    """Skips the test when the npm package that gives Node a WebSocket is missing."""
    if not (_CLIENT / "node_modules" / "ws").is_dir():
        pytest.skip("needs the npm package ws (npm install in clients/js)")


def documented_moves() -> dict[str, set[str]]:
    """State -> the states that may follow it, as docs/javascript.md says."""
    page = (ROOT / "docs" / "javascript.md").read_text()
    [table] = re.findall(r"^## States\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", table, re.MULTILINE)
    return {state: set(re.findall(r"`(\w+)`", after)) for state, after in rows}
