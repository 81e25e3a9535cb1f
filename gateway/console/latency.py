"""How long deliveries take: a sample of what live sessions have acked lately, by Redis's clock alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from eventbus.errors import StoreError
from eventbus.ids import EntryId, UserId, entry_order
from eventbus.store import ConfirmationRecord, Store
from eventbus.store.waiting import WaitingMark

__all__ = ["USERS_MAX", "Latency", "Sampler", "latency_of"]

USERS_MAX: Final = 64
"""Users in a sample."""

_RECORDS_MAX: Final = 50
_SINCE_MS: Final = 60_000
_FIND_AGAIN_MS: Final = 15_000
"""Users are looked for so often: it costs two small reads of each partition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """From the storing of an event to its ack, in milliseconds.

    Attributes:
        p50_ms, p99_ms: of the sample.
        sample: how many first acks were looked at.
        users: of how many users.
    """

    p50_ms: int
    p99_ms: int
    sample: int
    users: int


def latency_of(records: Sequence[Sequence[ConfirmationRecord]]) -> Latency | None:
    """The latency out of the records of some users, None without any ack among them. An entry that a session had
    before (a client that was away) counts as late as it was.
    """
    taken: list[int] = []
    users = 0
    for of_user in records:
        times = [
            max(0, record.time_ms - entry_order(entry)[0])
            for record in of_user
            if record.level == "received"
            for entry in record.entries
        ]
        taken += times
        users += bool(times)
    if not taken:
        return None
    taken.sort()
    return Latency(
        p50_ms=taken[(len(taken) - 1) // 2],
        p99_ms=taken[(len(taken) - 1) * 99 // 100],
        sample=len(taken),
        users=users,
    )


class Sampler:
    """Remembers some users who were live, and looks at what their sessions acked in the last minute."""

    def __init__(self, store: Store, partitions: int) -> None:
        self._store = store
        self._partitions = partitions
        self._users: list[UserId] = []
        self._found_ms: int | None = None

    async def sample(self, now_ms: int) -> Latency | None:
        """A sample of the last minute; None when nothing was acked. Raises: StoreError."""
        if self._found_ms is None or not 0 <= now_ms - self._found_ms < _FIND_AGAIN_MS:
            self._users, self._found_ms = await self._find(), now_ms
        since = EntryId(f"{max(0, now_ms - _SINCE_MS)}-0")
        pages = [await self._store.confirmations(user, since, _RECORDS_MAX) for user in self._users]
        return latency_of([[record for _, record in page] for page in pages])

    async def _find(self) -> list[UserId]:
        """Some users who are or were live: of each partition at most one with nothing waiting, and one with."""
        numbers = range(self._partitions)
        found: dict[UserId, None] = {}
        for live in await self._store.silent_users(numbers, 0, 1):
            if not isinstance(live, StoreError):
                found |= dict.fromkeys(live)
        marks = [WaitingMark(since_ms=1, partition=number) for number in numbers]
        for waiting in await self._store.waiting_users(marks, 1):
            if not isinstance(waiting, StoreError):
                found |= dict.fromkeys(one.user for one in waiting)
        # Spread over all of them: neighbours in this order are neighbours in Redis.
        step = max(1, len(found) // USERS_MAX)
        return list(found)[::step][:USERS_MAX]
