"""Who has something waiting: records and a Protocol. Pure.

Each partition keeps an index of its users, by the time of the oldest entry that waits for one of their sessions. It is
kept by what happens anyway: a publish that finds nobody live, a session that goes away or is ended, a redelivery, and
each heartbeat of a live one, which also takes a user out again. So it is late by a heartbeat of a session at most
(`EVENTBUS_SESSION_HEARTBEAT_MS`), and what waits for less than a sixteenth of `EVENTBUS_LIVE_TTL_MS` for a session that
is live is on its way and not in it. It may name a user for whom nothing waits any more; whoever looks has it looked at
again (`recheck_waiting`), and so those of whom nobody has said anything for a while (`silent_users`): their node died.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from eventbus.errors import StoreError
from eventbus.ids import UserId

__all__ = ["SILENT_MS", "AwayPending", "PartitionFigures", "WaitingMark", "WaitingPlace", "WaitingStore", "WaitingUser"]

SILENT_MS: Final = 90_000
"""A live user without anything waiting is written down once a minute; one who was not for so long is silent."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class WaitingMark:
    """A place in a partition's index: users from `since_ms` on, at that very time only those above `user`."""

    since_ms: int
    partition: int
    user: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingUser:
    """A user for whom something waits, since when (Unix milliseconds of the store's clock), as last seen."""

    user: UserId
    since_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionFigures:
    """How much a partition holds.

    Attributes:
        waiting_users: users for whom something waits, as the index has it.
        oldest_ms: since when, of the one for whom it waits longest; 0 when nothing waits.
        dead_letters: how many are kept.
        deadlines: how many are watched.
        operator_events: how many are kept.
        live_users: users with a live session and nothing that waits, as the index has it.
    """

    partition: int
    waiting_users: int
    oldest_ms: int
    dead_letters: int
    deadlines: int
    operator_events: int
    live_users: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingPlace:
    """A stretch of a partition's index, those for whom it waits longest first: `count` users behind `offset` others."""

    partition: int
    offset: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AwayPending:
    """What waits for the sessions of some users that are away.

    Attributes:
        users: so many were looked at.
        entries: sent to such a session and not acked, or not read by it; each once for each session.
    """

    users: int
    entries: int


class WaitingStore(Protocol):
    """The index, and what partitions hold. For operators."""

    async def waiting_users(
        self, marks: Sequence[WaitingMark], count: int
    ) -> Sequence[Sequence[WaitingUser] | StoreError]:
        """Users of a partition from each mark on, at most `count`, those for whom it waits longest first; one result
        for each mark, in order.
        """

    async def silent_users(
        self, partitions: Sequence[int], silent_ms: int, count: int
    ) -> Sequence[Sequence[UserId] | StoreError]:
        """Users, at most `count` of each partition, who were live with nothing waiting, and of whom nobody has said
        anything for so long (0: all that were). One result for each partition, in order.
        """

    async def recheck_waiting(self, users: Sequence[UserId]) -> Sequence[int | StoreError]:
        """Looks at each user and sets the index right. Returns since when something waits, 0 when nothing does, for
        each in order.
        """

    async def partition_figures(self, partitions: Sequence[int]) -> Sequence[PartitionFigures | StoreError]:
        """How much partitions hold; one result for each, in order."""

    async def away_pending(self, places: Sequence[WaitingPlace]) -> Sequence[AwayPending | StoreError]:
        """How much waits for the sessions that are away, of the users in each place; one result for each, in order. A
        session counts as live until its field has run out (`EVENTBUS_LIVE_TTL_MS`).
        """
