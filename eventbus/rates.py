"""How many events reached which state, and the rate of deliveries that succeeded. Pure.

An event is delivered to each session of its user, so what a session did with an event is counted: once for each
session, event and state. Source: docs/publishing.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from eventbus.fields import Level
from eventbus.ids import EntryId, SessionId
from eventbus.store import ConfirmationRecord, ReleaseReason
from eventbus.store.figures import Counts

__all__ = ["STATES", "Rates", "Tally", "rates_of_counts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Counts, and the rate of success among them.

    Attributes:
        stored: events that were stored.
        received, displayed, confirmed: deliveries that a session confirmed so far; each counts among those before it.
        filtered: deliveries that the session did not want.
        released: deliveries of `deliver: any` events that another session had taken.
        expired, trimmed, dead_lettered: deliveries that were given up.
        exact: whether all of it was looked at; False: more was stored than is kept, and the oldest is not counted.
        by_type: the same for each event type; empty in those.
    """

    stored: int = 0
    received: int = 0
    displayed: int = 0
    confirmed: int = 0
    filtered: int = 0
    released: int = 0
    expired: int = 0
    trimmed: int = 0
    dead_lettered: int = 0
    exact: bool = True
    by_type: Mapping[str, Rates] = field(default_factory=dict)

    @property
    def success(self) -> float | None:
        """Received deliveries among those that were received or given up; None while there are none of either.

        What waits is neither, nor is what a session did not want or another took.
        """
        ended = self.received + self.expired + self.trimmed + self.dead_lettered
        return self.received / ended if ended else None


STATES: Final = tuple(one.name for one in fields(Rates) if one.name not in ("exact", "by_type"))
"""The names of the counts, as they are also counted in the store."""

_LEVELS: Final = {level.value: level for level in Level}
_RELEASES: Final = frozenset(reason.value for reason in ReleaseReason)


def rates_of_counts(pages: Iterable[Counts], wanted: str | None = None) -> Rates:
    """The rates out of what was counted by state and type.

    Args:
        pages: counts to be added up.
        wanted: only this event type.
    """
    found: dict[str, dict[str, int]] = {}
    for page in pages:
        for (state, event_type), count in page.items():
            if state in STATES and wanted in (None, event_type):
                counts = found.setdefault(event_type, {})
                counts[state] = counts.get(state, 0) + count
    return _summed(found, exact=True)


class Tally:
    """Counts what became of some events of a user, out of what its sessions did. What is given twice counts once."""

    def __init__(self) -> None:
        self._types: dict[EntryId, str] = {}
        self._reached: dict[tuple[SessionId, EntryId], set[str]] = {}
        self.exact = True

    def __len__(self) -> int:
        return len(self._types)

    def event(self, entry: EntryId, event_type: str) -> None:
        """An event that counts; what sessions did with others is passed over."""
        self._types[entry] = event_type

    def record(self, record: ConfirmationRecord) -> None:
        """What a session did with some entries. Events must be given before."""
        level = _LEVELS.get(record.level)
        if level is not None:
            states = [lower.value for lower in Level if lower.rank <= level.rank]
        elif record.level in _RELEASES:
            states = [record.level]
        else:
            return
        for entry in record.entries:
            if entry in self._types:
                self._reached.setdefault((record.session, entry), set()).update(states)

    def dead(self, session: SessionId, entry: EntryId) -> None:
        """An entry was dead-lettered for a session. Events must be given before."""
        if entry in self._types:
            self._reached.setdefault((session, entry), set()).add("dead_lettered")

    def rates(self) -> Rates:
        """What was counted so far."""
        found: dict[str, dict[str, int]] = {}
        for event_type in self._types.values():
            counts = found.setdefault(event_type, {})
            counts["stored"] = counts.get("stored", 0) + 1
        for (_, entry), states in self._reached.items():
            counts = found[self._types[entry]]
            for state in states:
                counts[state] = counts.get(state, 0) + 1
        return _summed(found, exact=self.exact)


def _summed(found: Mapping[str, Mapping[str, int]], *, exact: bool) -> Rates:
    totals: dict[str, Any] = {state: sum(counts.get(state, 0) for counts in found.values()) for state in STATES}
    by_type = {event_type: Rates(exact=exact, **dict[str, Any](counts)) for event_type, counts in sorted(found.items())}
    return Rates(**totals, exact=exact, by_type=by_type)
