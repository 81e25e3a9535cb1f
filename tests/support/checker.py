"""The judge of every delivery test: what was published against what each session received.

Pure: logs in, a report out. Tests must not trust the bus's own counters, so the publisher writes its own log (an event
id when its publish returned, in the order of the entry ids) and each client writes down every event that it was sent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """An event as a client was sent it.

    Attributes:
        event: The event id.
        entry: The entry id, `<ms>-<n>`.
        delivery: The delivery count; above 1 marks a redelivery.
        connection: Which of the session's connections carried it, counted from 0.
    """

    event: str
    entry: str
    delivery: int
    connection: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLog:
    """All that one session was sent, in the order in which it came.

    Attributes:
        missed: Events of the user that this session is not owed, such as those before it began.
        rolled_back: The session was told that the server had lost its newest entries. What a living publisher sent
            again then comes under another entry id, and ids may be lower than those before.
    """

    user: str
    session: str
    received: Sequence[Received]
    missed: Collection[str] = ()
    rolled_back: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong: whose, which event, and how."""

    user: str
    session: str
    event: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.user}/{self.session}: {self.event} {self.detail}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the checker found; `ok` when nothing is wrong.

    Attributes:
        published: Events in the publisher's log.
        owed: Deliveries owed: each event to each session of its user.
        received: Deliveries that came, repetitions included.
        redelivered: Of these, those that were marked as redeliveries.
        repeated: Of these, those of an event that the session had already been sent.
        lost: Owed and never received.
        unmarked: Received again although not marked as a redelivery.
        disordered: First deliveries out of the order in which the events were stored.
        stored_twice: Received under more than one entry id.
        foreign: Events of another user.
        unknown: Events that nobody published.
        late: How many first sights were redeliveries that came after a later event; allowed, since they are marked.
        restored: How many came again under another entry id after a rollback; allowed, since it was announced.
    """

    published: int
    owed: int
    received: int
    redelivered: int
    repeated: int
    lost: tuple[Finding, ...]
    unmarked: tuple[Finding, ...]
    disordered: tuple[Finding, ...]
    stored_twice: tuple[Finding, ...]
    foreign: tuple[Finding, ...]
    unknown: tuple[Finding, ...]
    late: int
    restored: int = 0

    @property
    def faults(self) -> dict[str, tuple[Finding, ...]]:
        """Everything that is wrong, by kind; empty when nothing is."""
        kinds = ("lost", "unmarked", "disordered", "stored_twice", "foreign", "unknown")
        return {kind: found for kind in kinds if (found := getattr(self, kind))}

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def __str__(self) -> str:
        head = (
            f"{self.published} published, {self.owed} deliveries owed, {self.received} received "
            f"({self.redelivered} redelivered, {self.repeated} repeated, {self.late} late, "
            f"{self.restored} restored)"
        )
        lines = [head]
        for kind, found in self.faults.items():
            lines.append(f"{kind}: {len(found)}")
            lines += [f"  {finding}" for finding in found[:_SHOWN]]
        return "\n".join(lines)


def check(
    published: Mapping[str, Sequence[str]],
    sessions: Iterable[SessionLog],
    *,
    unsure: Mapping[str, Collection[str]] | None = None,
) -> Report:
    """Compares the publisher's log with the sessions' logs.

    Args:
        published: For each user the ids of the events whose publish returned, in the order in which they were stored.
        sessions: What each session received. A user without a session is owed nothing.
        unsure: For each user the ids of events whose publish did not return (the publisher was killed, or gave up):
            they may arrive, at most once.

    Returns:
        The report.
    """
    owners = {event: user for user, events in published.items() for event in events}
    for user, events in (unsure or {}).items():
        owners.update(dict.fromkeys(events, user))
    places = {user: {event: place for place, event in enumerate(events)} for user, events in published.items()}
    tally = _Tally()
    for log in sessions:
        _check_session(log, places.get(log.user, {}), owners, tally)
    return Report(
        published=sum(len(events) for events in published.values()),
        owed=tally.owed,
        received=tally.received,
        redelivered=tally.redelivered,
        repeated=tally.repeated,
        lost=tuple(tally.lost),
        unmarked=tuple(tally.unmarked),
        disordered=tuple(tally.disordered),
        stored_twice=tuple(tally.stored_twice),
        foreign=tuple(tally.foreign),
        unknown=tuple(tally.unknown),
        late=tally.late,
        restored=tally.restored,
    )


class _Tally:
    def __init__(self) -> None:
        self.owed = self.received = self.redelivered = self.repeated = self.late = self.restored = 0
        self.lost: list[Finding] = []
        self.unmarked: list[Finding] = []
        self.disordered: list[Finding] = []
        self.stored_twice: list[Finding] = []
        self.foreign: list[Finding] = []
        self.unknown: list[Finding] = []


def _check_session(log: SessionLog, places: Mapping[str, int], owners: Mapping[str, str], tally: _Tally) -> None:
    entries: dict[str, str] = {}
    newest_place = newest_first_place = -1
    newest_entry: dict[int, tuple[int, int]] = {}
    for item in log.received:
        tally.received += 1
        marked = item.delivery > 1
        tally.redelivered += marked
        owner = owners.get(item.event)
        if owner != log.user:
            kind = tally.unknown if owner is None else tally.foreign
            kind.append(_finding(log, item.event, f"of {owner}" if owner is not None else ""))
            continue
        first_sight = item.event not in entries
        if not first_sight:
            tally.repeated += 1
            if entries[item.event] != item.entry and log.rolled_back:
                tally.restored += 1
                entries[item.event] = item.entry
                continue
            if not marked:
                tally.unmarked.append(_finding(log, item.event, f"again as {item.entry}"))
            if entries[item.event] != item.entry:
                tally.stored_twice.append(_finding(log, item.event, f"{entries[item.event]} and {item.entry}"))
        entries.setdefault(item.event, item.entry)
        place = places.get(item.event)
        if not marked:
            # Within a connection the ids of first deliveries rise strictly; over connections the stored order holds.
            entry = _entry(item.entry)
            before = newest_entry.get(item.connection, (-1, -1))
            if entry <= before and not log.rolled_back:
                tally.disordered.append(_finding(log, item.event, f"{item.entry} after {before[0]}-{before[1]}"))
            elif place is not None and first_sight and place < newest_first_place:
                tally.disordered.append(
                    _finding(log, item.event, f"stored as no. {place}, after no. {newest_first_place}")
                )
            newest_entry[item.connection] = max(entry, before)
            if place is not None:
                newest_first_place = max(newest_first_place, place)
        if place is not None and first_sight:
            tally.late += marked and place < newest_place
            newest_place = max(newest_place, place)
    owed = [event for event in places if event not in log.missed]
    tally.owed += len(owed)
    tally.lost += [_finding(log, event) for event in owed if event not in entries]


def _finding(log: SessionLog, event: str, detail: str = "") -> Finding:
    return Finding(user=log.user, session=log.session, event=event, detail=detail)


def _entry(text: str) -> tuple[int, int]:
    milliseconds, _, number = text.partition("-")
    return int(milliseconds), int(number)
