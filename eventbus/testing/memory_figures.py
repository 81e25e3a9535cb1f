"""Counts, threads and presence in memory."""

from __future__ import annotations

from collections.abc import Sequence

from eventbus.errors import StoreError
from eventbus.ids import UserId
from eventbus.store.figures import Counts, OnlinePage, OnlineRecord, ThreadPage, ThreadRecord, thread_place
from eventbus.testing.memory_base import MemoryBase
from eventbus.testing.memory_stream import entry_id

__all__ = ["MemoryFigures"]


class MemoryFigures(MemoryBase):
    """The part of a `MemoryStore` for `eventbus.store.figures`."""

    async def threads(self, user: UserId, before: ThreadRecord | None, count: int) -> ThreadPage:
        async with self._call():
            state = self._user(user)
            if state.stream is None or state.stream.first is None:
                return ThreadPage(threads=(), more=False)
            least = thread_place(entry_id(state.stream.first))
            found = sorted(((place, thread) for thread, place in state.threads.items() if place >= least), reverse=True)
            if before is not None:
                found = [one for one in found if one < (before.place, before.thread)]
            threads = [ThreadRecord(thread=thread, place=place) for place, thread in found[:count]]
            return ThreadPage(threads=threads, more=len(found) > count)

    async def counts(self, partitions: Sequence[int]) -> Sequence[Counts | StoreError]:
        try:
            async with self._call():
                return [self._counted(number) for number in partitions]
        except StoreError as error:
            return [error] * len(partitions)

    def _counted(self, partition: int) -> Counts:
        found = self._partitions.get(partition)
        names = {} if found is None else found.counts
        return {(state, kind): count for name, count in names.items() for state, _, kind in [name.partition(":")]}

    async def online(self, user: UserId) -> OnlinePage:
        async with self._call():
            live = sorted(self._user(user).live.items())
            return OnlinePage(
                sessions=[
                    OnlineRecord(session=session, node=held.node, last_seen_ms=held.seen_ms) for session, held in live
                ],
                time_ms=self.clock.now_ms(),
            )
