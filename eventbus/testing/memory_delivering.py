"""Reading and sending again in memory."""

from __future__ import annotations

from collections.abc import Sequence

from eventbus.errors import StoreError
from eventbus.ids import EntryId, entry_order
from eventbus.store import (
    LOST,
    Fence,
    Lost,
    NewRead,
    PendingEntry,
    PendingPage,
    ReadRequest,
    ReadState,
    Redelivery,
    RedeliveryOutcome,
)
from eventbus.testing.memory_base import MemoryBase
from eventbus.testing.memory_gaps import verify_read
from eventbus.testing.memory_stream import Group, MemoryStream, entry_id, stored

__all__ = ["MemoryDeliveries"]


class MemoryDeliveries(MemoryBase):
    """The part of a `MemoryStore` that reads for sessions."""

    async def read_pending(self, fence: Fence, after: EntryId, count: int) -> PendingPage | Lost:
        async with self._call():
            user = self._held(fence)
            if user is None:
                return LOST
            group, stream = user.group(fence.session), user.stream
            if group is None or stream is None:
                return PendingPage(entries=(), last=True)
            waiting = group.pending_after(after)
            page = [
                PendingEntry(
                    entry_id(order), stream.body(order), group.pending[order].attempts, entry_id(order) in user.released
                )
                for order in waiting[:count]
            ]
            return PendingPage(entries=tuple(page), last=len(waiting) <= count)

    async def read_new(self, requests: Sequence[ReadRequest]) -> Sequence[NewRead | StoreError]:
        try:
            async with self._call():
                return [self._read(request) for request in requests]
        except StoreError as error:
            return [error] * len(requests)

    def _read(self, request: ReadRequest) -> NewRead:
        user = self._held(request.fence)
        if user is None:
            return NewRead(state=ReadState.LOST)
        group, stream = user.group(request.fence.session), user.stream
        if group is None or stream is None:
            return NewRead(state=ReadState.NO_GROUP)
        gap = verify_read(user, stream, group, request.fence, request.verify)
        orders = stream.read_group(group, request.count, self.clock.now_ms())
        if user.is_past_hole():
            user.hole = None
        released = tuple(entry for entry in map(entry_id, orders) if entry in user.released)
        return NewRead(state=ReadState.OK, entries=tuple(stored(stream, orders)), gap=gap, released=released)

    async def redeliver(self, fence: Fence, entries: Sequence[Redelivery]) -> Sequence[RedeliveryOutcome] | Lost:
        async with self._call():
            user = self._held(fence)
            if user is None:
                return LOST
            group, stream = user.group(fence.session), user.stream
            if group is None or stream is None:
                return [RedeliveryOutcome.GONE] * len(entries)
            return [self._redeliver(stream, group, entry) for entry in entries]

    def _redeliver(self, stream: MemoryStream, group: Group, entry: Redelivery) -> RedeliveryOutcome:
        order = entry_order(entry.id)
        pending = group.pending.get(order)
        if pending is None:
            return RedeliveryOutcome.GONE
        if order not in stream:
            # XCLAIM would drop it from the pending list without a word, so it is left as it is (D11).
            return RedeliveryOutcome.TRIMMED
        pending.attempts, pending.sent_ms = entry.attempts, self.clock.now_ms()
        return RedeliveryOutcome.READY
