"""What is counted and indexed over a user's events and over all: records and a Protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from eventbus.errors import StoreError
from eventbus.ids import EntryId, NodeName, SessionId, ThreadId, UserId, entry_order

__all__ = ["Counts", "FigureStore", "OnlinePage", "OnlineRecord", "ThreadPage", "ThreadRecord", "thread_place"]

Counts = Mapping[tuple[str, str], int]
"""How many entries reached a state, by state and event type; types that are not known, or too many, are `other`."""


LEAST_PLACE: Final = 10**14
"""What is lower was written by a version that kept milliseconds."""


def thread_place(entry: EntryId) -> int:
    """An entry id as one number that sorts as entry ids do and that a double holds exactly.

    Its milliseconds times 1,000, and its number in them: the thousandth of a millisecond and later ones share a place.
    """
    ms, number = entry_order(entry)
    return ms * 1_000 + min(number, 999)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadRecord:
    """A thread and where its last event stands.

    Attributes:
        thread: which.
        place: of its last event in the stream, as `thread_place` says; milliseconds where an older version wrote it.
    """

    thread: ThreadId
    place: int

    @property
    def last_ms(self) -> int:
        """When its last event was stored, Unix milliseconds of the store's clock."""
        return self.place if self.place < LEAST_PLACE else self.place // 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadPage:
    """Threads of a user, the newest first; `more` when others follow."""

    threads: Sequence[ThreadRecord]
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineRecord:
    """A session that is live.

    Attributes:
        session: which.
        node: where.
        last_seen_ms: when its node last said so, Unix milliseconds of the store's clock.
    """

    session: SessionId
    node: NodeName
    last_seen_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlinePage:
    """The live sessions of a user at `time_ms`, in the order of their names."""

    sessions: Sequence[OnlineRecord]
    time_ms: int


class FigureStore(Protocol):
    """Counts by type, threads, presence."""

    async def threads(self, user: UserId, before: ThreadRecord | None, count: int) -> ThreadPage:
        """The threads of which events are retained, the one with the newest event first, those of one place by name,
        backwards.

        Args:
            user: whose.
            before: only what follows it in that order; None for the first page.
            count: how many at most.
        """

    async def counts(self, partitions: Sequence[int]) -> Sequence[Counts | StoreError]:
        """What was counted in each partition in the last 30 days and more; one result for each, in order."""

    async def online(self, user: UserId) -> OnlinePage:
        """Which sessions of a user are live now. Whoever wants to know when that changes follows the user."""
