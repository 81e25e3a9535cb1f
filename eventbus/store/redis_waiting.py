"""The index of who has something waiting, on Redis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from eventbus.errors import StoreError
from eventbus.ids import UserId
from eventbus.store.answers import whole
from eventbus.store.command import Command
from eventbus.store.keys import Keys
from eventbus.store.operating import Operating
from eventbus.store.scripts import script
from eventbus.store.waiting import AwayPending, PartitionFigures, WaitingMark, WaitingPlace, WaitingUser

__all__ = ["RedisWaiting", "away_call", "partition_call", "recheck_call"]


class RedisWaiting(Operating):
    """The part of a `RedisStore` for `eventbus.store.waiting`."""

    async def waiting_users(
        self, marks: Sequence[WaitingMark], count: int
    ) -> Sequence[Sequence[WaitingUser] | StoreError]:
        answers = await self.link.execute_all([self._page(mark, 0, count) for mark in marks])
        results: list[Sequence[WaitingUser] | StoreError] = []
        for mark, answer in zip(marks, answers, strict=True):
            results.append(answer if isinstance(answer, StoreError) else await self._behind(mark, answer, count))
        return results

    def _page(self, mark: WaitingMark, offset: int, count: int) -> Command[list[WaitingUser]]:
        key = self.keys.partition(mark.partition).waiting
        since = max(1, mark.since_ms)
        return Command(("ZRANGEBYSCORE", key, since, "+inf", "WITHSCORES", "LIMIT", offset, count), _users)

    async def _behind(self, mark: WaitingMark, page: list[WaitingUser], count: int) -> Sequence[WaitingUser]:
        """Those of a page that lie behind the mark; users of one millisecond are in the order of their names."""
        offset = 0
        while True:
            found = [one for one in page if (one.since_ms, one.user) > (mark.since_ms, mark.user)]
            if found or len(page) < count:
                return found
            offset += count
            page = await self._call(self._page(mark, offset, count))

    async def silent_users(
        self, partitions: Sequence[int], silent_ms: int, count: int
    ) -> Sequence[Sequence[UserId] | StoreError]:
        seen_ms = await self.ping() - silent_ms
        return await self.link.execute_all(
            [
                Command(
                    ("ZRANGEBYSCORE", self.keys.partition(number).waiting, -seen_ms, -1, "LIMIT", 0, count),
                    lambda reply, _primary: [UserId(raw.decode()) for raw in reply],
                )
                for number in partitions
            ]
        )

    async def recheck_waiting(self, users: Sequence[UserId]) -> Sequence[int | StoreError]:
        settings = self.settings
        return await self.link.execute_all(
            [recheck_call(self.keys, user, settings.live_ttl_ms, settings.retention_ms) for user in users]
        )

    async def partition_figures(self, partitions: Sequence[int]) -> Sequence[PartitionFigures | StoreError]:
        return await self.link.execute_all([partition_call(self.keys, number) for number in partitions])

    async def away_pending(self, places: Sequence[WaitingPlace]) -> Sequence[AwayPending | StoreError]:
        marks = [WaitingMark(since_ms=1, partition=place.partition) for place in places]
        pages = await self.link.execute_all(
            [self._page(mark, place.offset, place.count) for mark, place in zip(marks, places, strict=True)]
        )
        users = [one.user for page in pages if not isinstance(page, StoreError) for one in page]
        calls = [away_call(self.keys, user, self.settings.live_ttl_ms) for user in users]
        counts: list[int | StoreError] = await self.link.execute_all(calls)
        left = iter(counts)
        return [page if isinstance(page, StoreError) else _added(page, left) for page in pages]


def recheck_call(keys: Keys, user: UserId, live_ttl_ms: int, retention_ms: int) -> Command[int]:
    """The call of recheck.lua."""
    named = keys.user(user)
    used = (named.stream, named.live, named.partition.waiting)
    words = (user, live_ttl_ms, retention_ms)
    return Command(("EVALSHA", script("recheck").sha, len(used), *used, *words), whole, scripted=True)


def away_call(keys: Keys, user: UserId, live_ttl_ms: int) -> Command[int]:
    """The call of away.lua."""
    named = keys.user(user)
    used = (named.stream, named.live)
    return Command(("EVALSHA", script("away").sha, len(used), *used, live_ttl_ms), whole, scripted=True)


def partition_call(keys: Keys, number: int) -> Command[PartitionFigures]:
    """The call of partition.lua."""
    named = keys.partition(number)
    used = (named.waiting, named.dead, named.due, named.operators)

    def parse(reply: Any, _primary: str) -> PartitionFigures:
        waiting, oldest, dead, due, operators, live = map(int, reply)
        return PartitionFigures(
            partition=number,
            waiting_users=waiting,
            oldest_ms=oldest,
            dead_letters=dead,
            deadlines=due,
            operator_events=operators,
            live_users=live,
        )

    return Command(("EVALSHA", script("partition").sha, len(used), *used), parse, scripted=True)


def _added(page: Sequence[WaitingUser], counts: Iterator[int | StoreError]) -> AwayPending | StoreError:
    """What the next counts say of the users of a page; the first error among them."""
    of_page = list(islice(counts, len(page)))
    failed = next((one for one in of_page if isinstance(one, StoreError)), None)
    entries = sum(one for one in of_page if not isinstance(one, StoreError))
    return failed or AwayPending(users=len(page), entries=entries)


def _users(reply: Any, _primary: str) -> list[WaitingUser]:
    return [
        WaitingUser(user=UserId(name.decode()), since_ms=int(float(score)))
        for name, score in zip(reply[::2], reply[1::2], strict=True)
    ]
