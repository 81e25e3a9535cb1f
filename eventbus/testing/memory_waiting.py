"""Who has something waiting, in memory: looked up when it is asked for, so nothing is ever late."""

from __future__ import annotations

from collections.abc import Sequence

from eventbus.errors import StoreError
from eventbus.ids import UserId
from eventbus.store.waiting import AwayPending, PartitionFigures, WaitingMark, WaitingPlace, WaitingUser
from eventbus.testing.memory_base import MemoryBase

__all__ = ["MemoryWaiting"]


class MemoryWaiting(MemoryBase):
    """The part of a `MemoryStore` for `eventbus.store.waiting`."""

    async def waiting_users(
        self, marks: Sequence[WaitingMark], count: int
    ) -> Sequence[Sequence[WaitingUser] | StoreError]:
        try:
            async with self._call():
                return [
                    [
                        one
                        for one in self._waiting_in(mark.partition)
                        if (one.since_ms, one.user) > (mark.since_ms, mark.user)
                    ][:count]
                    for mark in marks
                ]
        except StoreError as error:
            return [error] * len(marks)

    async def silent_users(
        self, partitions: Sequence[int], silent_ms: int, count: int
    ) -> Sequence[Sequence[UserId] | StoreError]:
        try:
            async with self._call():
                return [[] for _ in partitions]
        except StoreError as error:
            return [error] * len(partitions)

    async def recheck_waiting(self, users: Sequence[UserId]) -> Sequence[int | StoreError]:
        try:
            async with self._call():
                return [self._oldest_ms(user) or 0 for user in users]
        except StoreError as error:
            return [error] * len(users)

    async def partition_figures(self, partitions: Sequence[int]) -> Sequence[PartitionFigures | StoreError]:
        try:
            async with self._call():
                return [self._figures_of(number) for number in partitions]
        except StoreError as error:
            return [error] * len(partitions)

    async def away_pending(self, places: Sequence[WaitingPlace]) -> Sequence[AwayPending | StoreError]:
        try:
            async with self._call():
                return [self._away_in(place) for place in places]
        except StoreError as error:
            return [error] * len(places)

    def _away_in(self, place: WaitingPlace) -> AwayPending:
        users = self._waiting_in(place.partition)[place.offset : place.offset + place.count]
        return AwayPending(users=len(users), entries=sum(self._away_of(one.user) for one in users))

    def _away_of(self, user: UserId) -> int:
        found = self._user(user)
        groups = {} if found.stream is None else found.stream.groups
        return sum(
            len(group.pending) + len(found.stream.after(group.position))
            for session, group in groups.items()
            if found.stream is not None and session not in found.live
        )

    def _figures_of(self, number: int) -> PartitionFigures:
        waiting, partition = self._waiting_in(number), self._partitions.get(number)
        return PartitionFigures(
            partition=number,
            waiting_users=len(waiting),
            oldest_ms=waiting[0].since_ms if waiting else 0,
            dead_letters=len(self._dead(number)),
            deadlines=0 if partition is None else len(partition.due),
            operator_events=0 if partition is None else len(partition.operators),
            live_users=sum(
                bool(self._user(user).live) and self._oldest_ms(user) is None
                for user in list(self._users)
                if self._number(user) == number
            ),
        )

    def _waiting_in(self, number: int) -> list[WaitingUser]:
        found = [
            WaitingUser(user=user, since_ms=since_ms)
            for user in list(self._users)
            if self._number(user) == number and (since_ms := self._oldest_ms(user)) is not None
        ]
        return sorted(found, key=lambda one: (one.since_ms, one.user))

    def _oldest_ms(self, user: UserId) -> int | None:
        """When the oldest entry was stored that is pending, or not read; None when there is none."""
        stream = self._user(user).stream
        if stream is None:
            return None
        oldest = [
            order for group in stream.groups.values() for order in (*group.pending, *stream.after(group.position, 1))
        ]
        return min(oldest)[0] if oldest else None
