"""How far a run is, read from the growing histories: for the harness, which judges nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from chaos.history import Kind, Op

__all__ = ["Progress"]

_MOST_BYTES: Final = 8 * 1024 * 1024  # of one file at a time


class Progress:
    """Takes up what is new in the histories of publishers and clients.

    Args:
        sessions: for each user the sessions that stay; each is owed every event that was answered.
    """

    def __init__(self, sessions: dict[str, list[str]]) -> None:
        self.sessions = sessions
        self._offsets: dict[Path, int] = {}
        self._users: dict[str, str] = {}
        self._answered: dict[str, set[str]] = defaultdict(set)
        self._received: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._came = 0
        self.answered = 0
        self.opened: set[tuple[str, str]] = set()

    def read(self, paths: Iterable[Path]) -> None:
        """Takes up whole new lines."""
        for path in paths:
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                text = file.read(_MOST_BYTES)
            whole = text[: text.rfind(b"\n") + 1]
            self._offsets[path] = self._offsets.get(path, 0) + len(whole)
            for line in whole.splitlines():
                self._take(Op.parse(line))

    def _take(self, op: Op) -> None:
        value = op.value
        if op.f == "publish":
            event = value["event"]
            if op.kind is Kind.INVOKE:
                self._users[event] = value["user"]
            elif op.kind is Kind.OK:
                self.answered += 1
                user = self._users[event]
                self._answered[user].add(event)
                self._came += sum(event in self._received[user, name] for name in self.sessions[user])
        elif op.f == "open" and (op.value["connection"] > 0 or not op.value["library"]):
            self.opened.add((value["user"], value["session"]))
        elif op.f == "receive" and value["session"] in self.sessions.get(value["user"], ()):
            seen = self._received[value["user"], value["session"]]
            if value["event"] not in seen:
                seen.add(value["event"])
                self._came += value["event"] in self._answered[value["user"]]

    @property
    def missing(self) -> int:
        """Deliveries that are owed and have not come yet."""
        owed = sum(len(events) * len(self.sessions[user]) for user, events in self._answered.items())
        return owed - self._came
