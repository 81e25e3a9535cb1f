"""What can be looked at in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from eventbus.ids import ENTRY_ZERO, EntryId, Epoch, SessionId, UserId, entry_order
from eventbus.store import (
    ConfirmationRecord,
    DeadLetterRecord,
    HistoryPage,
    LiveRecord,
    PendingRecord,
    SessionRecord,
    StoredEntry,
    StoreInfo,
)
from eventbus.testing.memory_base import MemoryBase
from eventbus.testing.memory_state import UserState
from eventbus.testing.memory_stream import entry_id, stored

__all__ = ["MemoryLooks"]


class MemoryLooks(MemoryBase):
    """The part of a `MemoryStore` that readers of histories and operators see."""

    async def tail(self, user: UserId) -> tuple[EntryId, Epoch]:
        async with self._call():
            stream = self._user(user).stream
            return (entry_id(stream.last) if stream is not None else ENTRY_ZERO), self._partition(user).epoch

    async def history(self, user: UserId, after: EntryId, count: int) -> HistoryPage:
        async with self._call():
            epoch = self._partition(user).epoch
            stream = self._user(user).stream
            if stream is None:
                return HistoryPage(entries=(), tail=ENTRY_ZERO, epoch=epoch, more=False)
            orders = stream.after(entry_order(after), count + 1)
            entries = tuple(stored(stream, orders[:count]))
            return HistoryPage(entries=entries, tail=entry_id(stream.last), epoch=epoch, more=len(orders) > count)

    async def entry(self, user: UserId, entry: EntryId) -> StoredEntry | None:
        async with self._call():
            stream = self._user(user).stream
            body = stream.body(entry_order(entry)) if stream is not None else None
            return StoredEntry(entry, body) if body is not None else None

    async def sessions(self, user: UserId) -> Sequence[SessionRecord]:
        async with self._call():
            state = self._user(user)
            now_ms, ttl_ms = self.clock.now_ms(), self.settings.session_ttl_ms
            shown = [session for session in sorted(state.known) if not state.is_over(session, now_ms, ttl_ms)]
            return [self._session(user, state, session) for session in shown]

    def _session(self, user: UserId, state: UserState, session: SessionId) -> SessionRecord:
        known, live, group = state.known[session], state.live.get(session), state.group(session)
        waiting = group.pending_after() if group is not None else []
        return SessionRecord(
            user=user,
            session=session,
            created_ms=known.created_ms,
            last_seen_ms=known.seen_ms,
            cursor=known.cursor,
            position=entry_id(group.position) if group is not None else ENTRY_ZERO,
            pending=len(waiting),
            unread=bool(group and state.stream and state.stream.after(group.position, 1)),
            live=LiveRecord(node=live.node, connection=live.connection, last_seen_ms=live.seen_ms) if live else None,
            oldest_pending=entry_id(waiting[0]) if waiting else None,
            max_attempts=max((group.pending[order].attempts for order in waiting), default=0) if group else 0,
        )

    async def pending(self, user: UserId, session: SessionId, after: EntryId, count: int) -> Sequence[PendingRecord]:
        async with self._call():
            group, now_ms = self._user(user).group(session), self.clock.now_ms()
            waiting = group.pending_after(after)[:count] if group is not None else []
            return [
                PendingRecord(id=entry_id(order), attempts=held.attempts, idle_ms=now_ms - held.sent_ms)
                for order, held in ((order, group.pending[order]) for order in waiting if group is not None)
            ]

    async def users(self, cursor: str, count: int) -> tuple[Sequence[UserId], str]:
        async with self._call():
            names = sorted(user for user in list(self._users) if self._user(user).stream is not None)
            start = int(cursor or 0)
            following = start + count
            return names[start:following], str(following) if following < len(names) else ""

    async def dead_letters(self, partition: int, after: EntryId, count: int) -> Sequence[DeadLetterRecord]:
        async with self._call():
            dead = self._dead(partition)
            return [replace(record, id=entry_id(order)) for order, record in dead.page(after, count)]

    async def dead_letter_partitions(self) -> Sequence[int]:
        async with self._call():
            return [number for number in sorted(self._partitions) if self._dead(number)]

    async def confirmations(
        self, user: UserId, after: EntryId, count: int
    ) -> Sequence[tuple[EntryId, ConfirmationRecord]]:
        async with self._call():
            return [(entry_id(order), record) for order, record in self._user(user).confirmations.page(after, count)]

    async def infos(self) -> Sequence[StoreInfo]:
        return [await self.info()]

    async def info(self) -> StoreInfo:
        async with self._call():
            held = sum(state.stream.bytes for state in self._users.values() if state.stream is not None)
            return StoreInfo(
                kind="memory",
                version="0",
                primary=self._primary,
                time_ms=self.clock.now_ms(),
                memory_bytes=held,
                replicas=0,
                settings={},
            )
