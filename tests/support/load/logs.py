"""Reads the logs of the load's processes, from where it stopped, and hands them to the checker."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support.checker import Received, Report, SessionLog, check

# More connections than one process makes for one session.
_PROCESS = 100_000


class _Tail:
    """The whole lines of a growing file, each once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._rest = b""

    def lines(self) -> Iterator[list[str]]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            text = self._rest + file.read()
            self._offset = file.tell()
        *whole, self._rest = text.split(b"\n")
        for line in whole:
            yield line.decode().split("\t")


class PublisherLog:
    """What a publisher wrote down.

    Attributes:
        answered: for each user the events whose publish returned, in that order: a user's publishes are first in, first
            out, so it is the order in which they were stored.
        entries: event -> the entry id that its publish returned.
        tried: events whose publish was begun, with their user.
        duplicates: how many answers said that the event had been stored before.
        errors: what was raised.
        done: whether all was published.
    """

    def __init__(self, path: Path) -> None:
        self._tail = _Tail(path)
        self.answered: dict[str, list[str]] = defaultdict(list)
        self.entries: dict[str, str] = {}
        self.tried: dict[str, str] = {}
        self.errors: list[str] = []
        self.duplicates = 0
        self.ready = self.done = False

    def read(self) -> PublisherLog:
        """Takes up what is new; returns itself."""
        for words in self._tail.lines():
            match words:
                case ["ok", user, event, entry, duplicate]:
                    self.duplicates += duplicate == "1"
                    self.answered[user].append(event)
                    self.entries[event] = entry
                case ["unsure", _, event, error]:
                    self.errors.append(f"{event} {error}")
                case ["try", user, event]:
                    self.tried[event] = user
                case ["ready"]:
                    self.ready = True
                case ["done"]:
                    self.done = True
        return self

    @property
    def count(self) -> int:
        """How many publishes returned."""
        return len(self.entries)

    @property
    def unsure(self) -> dict[str, list[str]]:
        """What was begun and not answered: it may arrive or not."""
        found: dict[str, list[str]] = defaultdict(list)
        for event, user in self.tried.items():
            if event not in self.entries:
                found[user].append(event)
        return found


@dataclass(slots=True)
class Sighting:
    """One delivery, with the wall time at which it came."""

    received: Received
    user: str
    time_ms: int


@dataclass(slots=True)
class SessionSeen:
    """All that came to one session.

    Attributes:
        opened: node, connection id, resumed and pending of each welcome.
        closed: close code and reason of each end.
        gaps: reason, after, before and count of each gap.
        dropped: entry and reason.
        errors: code and message.
        goaways: reason and wait.
    """

    deliveries: list[Sighting] = field(default_factory=list)
    events: set[str] = field(default_factory=set)
    opened: list[tuple[str, str, bool, int]] = field(default_factory=list)
    closed: list[tuple[int, str]] = field(default_factory=list)
    gaps: list[tuple[str, ...]] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    goaways: list[tuple[str, int]] = field(default_factory=list)


class ClientLog:
    """What a client process wrote down, by user and session.

    Attributes:
        stalled_ms: the longest time for which the process stood still.
    """

    def __init__(self, path: Path) -> None:
        self._tail = _Tail(path)
        self.sessions: dict[tuple[str, str], SessionSeen] = defaultdict(SessionSeen)
        self.deliveries = 0
        self.stalled_ms = 0

    def read(self) -> ClientLog:
        """Takes up what is new; returns itself."""
        for kind, user, session, number, *words in self._tail.lines():
            if kind == "S":
                self.stalled_ms = max(self.stalled_ms, int(words[0]))
                continue
            seen = self.sessions[user, session]
            if kind == "R":
                event, owner, entry, delivery, time_ms = words
                received = Received(event=event, entry=entry, delivery=int(delivery), connection=int(number))
                seen.deliveries.append(Sighting(received, owner, int(time_ms)))
                seen.events.add(event)
                self.deliveries += 1
            elif kind == "O":
                seen.opened.append((words[0], words[1], words[2] == "1", int(words[3])))
            elif kind == "X":
                seen.closed.append((int(words[0]), words[1]))
            elif kind == "G":
                seen.gaps.append(tuple(words))
            elif kind == "D":
                seen.dropped.append((words[0], words[1]))
            elif kind == "E":
                seen.errors.append((words[0], words[1]))
            elif kind == "W":
                seen.goaways.append((words[0], int(words[1])))
        return self


def judge(publisher: PublisherLog, clients: Sequence[ClientLog], missed: Mapping[str, Collection[str]]) -> Report:
    """The checker's word on the publisher's own log and what the clients received.

    Args:
        publisher: the log.
        clients: the clients' logs; a session that went from one process to another is one session, in that order.
        missed: for each user the events that its sessions are not owed.
    """
    whole: dict[tuple[str, str], list[Received]] = defaultdict(list)
    rolled_back: set[tuple[str, str]] = set()
    for number, log in enumerate(clients):
        for name, seen in log.sessions.items():
            for sighting in seen.deliveries:
                received = sighting.received
                whole[name].append(replace(received, connection=received.connection + _PROCESS * number))
            if any(gap[0] in ("rollback", "reset") for gap in seen.gaps):
                rolled_back.add(name)
    logs = [
        SessionLog(
            user=name[0],
            session=name[1],
            received=received,
            missed=missed.get(name[0], ()),
            rolled_back=name in rolled_back,
        )
        for name, received in whole.items()
    ]
    return check(publisher.answered, logs, unsure=publisher.unsure)
