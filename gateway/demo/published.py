"""What the demo agent has published, as it wrote it down itself: not what the store says of it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, Final

import orjson

from eventbus.ids import entry_order

__all__ = ["Published"]

KEPT_MS: Final = 12 * 3_600_000
"""What is older is forgotten: streams keep entries for 24 hours, so these are all there still."""
RUNS_MAX: Final = 100


class Published:
    """Reads the agent's log as it grows: a line for each event, and one when a run has ended.

    Args:
        path: the log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._runs: dict[str, list[dict[str, Any]]] = {}
        self._ended: dict[str, dict[str, Any]] = {}
        self._given_up: set[str] = set()

    def prune(self) -> None:
        """Writes the log anew without old runs; only while no agent writes it."""
        self.read()
        oldest_ms = time.time_ns() // 1_000_000 - KEPT_MS
        young = [(run, lines) for run, lines in self._runs.items() if entry_order(lines[0]["entry"])[0] >= oldest_ms]
        self._runs = dict(young[-RUNS_MAX:])
        self._ended = {run: line for run, line in self._ended.items() if run in self._runs}
        kept = [*(line for lines in self._runs.values() for line in lines), *self._ended.values()]
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in kept))
        fresh.replace(self._path)
        self._offset = self._path.stat().st_size

    def read(self) -> None:
        """Takes in what was added since."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as log:
            log.seek(self._offset)
            added = log.read()
            # A line that is being written has no end yet: it is read the next time.
            whole = added[: added.rfind(b"\n") + 1]
            self._offset += len(whole)
            for raw in whole.splitlines():
                with contextlib.suppress(orjson.JSONDecodeError):  # the agent was killed in the middle of it
                    self._take(orjson.loads(raw))

    def _take(self, line: dict[str, Any]) -> None:
        if "ended" in line:
            self._ended[line["run"]] = line
        else:
            self._runs.setdefault(line["run"], []).append(line)

    def counts(self) -> list[dict[str, Any]]:
        """Every run with the number of its events, oldest first."""
        return [{"run": run, "published": len(lines)} for run, lines in self._runs.items()]

    def of_run(self, run: str) -> list[dict[str, Any]]:
        """The events of a run: event id and entry id, in the order in which they were published."""
        return [{"id": line["id"], "entry": line["entry"]} for line in self._runs.get(run, ())]

    def open_runs(self) -> list[str]:
        """Runs that have begun and not ended, and whose agent lives."""
        return [run for run in self._runs if run not in self._ended and run not in self._given_up]

    def give_up(self) -> None:
        """The agent that wrote the log has died: nobody works on its runs any more."""
        self.read()
        self._given_up.update(self.open_runs())
