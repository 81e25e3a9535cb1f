"""Who confirmed an event, how far and when, out of the records of a user's sessions. Pure.

A level implies those before it: a session that confirmed an event has displayed and received it, at that time at the
latest. Records may be given twice and in any order; the earliest counts.

Source: docs/protocol.md, section 2; docs/publishing.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from eventbus.errors import InvalidField
from eventbus.fields import Level
from eventbus.ids import EntryId, SessionId
from eventbus.store import ConfirmationRecord

__all__ = ["Confirmation", "Goal", "Sessions", "Standing", "parse_goal", "parse_timeout"]

_LEVELS: Final = {level.value: level for level in Level}

Sessions = str | int
"""Who has to confirm: `any`, `all_live`, or so many sessions."""

ANY: Final = "any"
ALL_LIVE: Final = "all_live"


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """A session confirmed an event.

    Attributes:
        session: which.
        level: how far; a session that confirmed at once has three of these with one time.
        time_ms: when that was recorded, Unix milliseconds of the store's clock.
        note: what the application said, with the level that it said it of.
    """

    session: SessionId
    level: Level
    time_ms: int
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What somebody waits for.

    Attributes:
        level: the level that sessions have to reach.
        count: how many at least.
        all_live: every session that is live has to.
    """

    level: Level
    count: int
    all_live: bool


def parse_goal(level: Level | str, sessions: Sessions) -> Goal:
    """Check what somebody wants to wait for. Raises: InvalidField."""
    if level not in _LEVELS:
        raise InvalidField("level", f"must be one of {', '.join(_LEVELS)}, not {level!r}")
    if type(sessions) is int and sessions >= 1:
        return Goal(level=Level(level), count=sessions, all_live=False)
    if sessions not in (ANY, ALL_LIVE):
        raise InvalidField("sessions", f"must be `any`, `all_live` or a whole number above 0, not {sessions!r}")
    return Goal(level=Level(level), count=1, all_live=sessions == ALL_LIVE)


def parse_timeout(timeout_ms: int) -> int:
    """Check how long somebody wants to wait. Raises: InvalidField."""
    if type(timeout_ms) is not int or timeout_ms < 1:
        raise InvalidField("timeout_ms", f"must be a whole number of milliseconds above 0, not {timeout_ms!r}")
    return timeout_ms


class Standing:
    """How far one entry is confirmed.

    Args:
        entry: which.

    Attributes:
        excused: sessions from which a node took the entry itself (filtered, expired, ...): they will not confirm it.
    """

    __slots__ = ("_first", "entry", "excused")

    def __init__(self, entry: EntryId) -> None:
        self.entry = entry
        self.excused: set[SessionId] = set()
        self._first: dict[tuple[SessionId, Level], Confirmation] = {}

    def add(self, record: ConfirmationRecord) -> None:
        """Take a record in; one that does not name the entry changes nothing."""
        if self.entry not in record.entries:
            return
        reached = _LEVELS.get(record.level)
        if reached is None:
            self.excused.add(record.session)
            return
        for level in Level:
            if level.rank > reached.rank:
                continue
            known = self._first.get((record.session, level))
            if known is None or record.time_ms < known.time_ms:
                self._first[record.session, level] = Confirmation(
                    session=record.session,
                    level=level,
                    time_ms=record.time_ms,
                    note=record.note if level is reached else None,
                )

    def all(self) -> list[Confirmation]:
        """Every level that each session reached, oldest first."""
        return sorted(self._first.values(), key=lambda one: (one.time_ms, one.level.rank, one.session))

    def at(self, level: Level) -> list[Confirmation]:
        """One for each session that reached a level, oldest first."""
        return [one for one in self.all() if one.level is level]

    def meets(self, goal: Goal, required: Iterable[SessionId] = ()) -> bool:
        """Whether enough sessions reached the level, and all of `required` that can."""
        reached = {session for session, level in self._first if level is goal.level}
        return len(reached) >= goal.count and set(required) - self.excused <= reached
