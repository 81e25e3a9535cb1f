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
    """Reads the agent's log as it grows.

    Args:
        path: the log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._runs: dict[str, list[dict[str, Any]]] = {}

    def prune(self) -> None:
        """Writes the log anew without old runs; only while no agent writes it."""
        self.read()
        oldest_ms = time.time_ns() // 1_000_000 - KEPT_MS
        young = [(run, lines) for run, lines in self._runs.items() if entry_order(lines[0]["entry"])[0] >= oldest_ms]
        self._runs = dict(young[-RUNS_MAX:])
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(b"".join(orjson.dumps(line) + b"\n" for lines in self._runs.values() for line in lines))
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
                    line = orjson.loads(raw)
                    self._runs.setdefault(line["run"], []).append(line)

    def counts(self) -> list[dict[str, Any]]:
        """Every run with the number of its events, oldest first."""
        return [{"run": run, "published": len(lines)} for run, lines in self._runs.items()]

    def of_run(self, run: str) -> list[dict[str, Any]]:
        """The events of a run: event id and entry id, in the order in which they were published."""
        return [{"id": line["id"], "entry": line["entry"]} for line in self._runs.get(run, ())]

    def open_runs(self) -> list[str]:
        """Runs that have begun and not ended."""
        return [run for run, lines in self._runs.items() if lines[-1]["type"] != "agent_completed"]
