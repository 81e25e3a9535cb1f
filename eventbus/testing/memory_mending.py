"""What operators do, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eventbus.clock import Clock
from eventbus.config import StoreSettings
from eventbus.errors import InvalidEvent
from eventbus.event import peek
from eventbus.ids import ENTRY_ZERO, EntryId, EventId, NodeName, SessionId, UserId, entry_order
from eventbus.store import DeadLetterRecord
from eventbus.store.mending import (
    AUDIT_LIFE_MS,
    AuditRecord,
    DeadLettered,
    EndSession,
    Hold,
    KeyRecord,
    LookAgain,
    LookAtHeld,
    Order,
    Pause,
    PutBack,
    SendAgain,
    SentAgain,
    TakenHow,
    TakeOff,
)
from eventbus.testing.memory_base import MemoryBase
from eventbus.testing.memory_state import Log, UserState
from eventbus.testing.memory_stream import Pending, entry_id

__all__ = ["MemoryMending"]


class MemoryMending(MemoryBase):
    """The part of a `MemoryStore` for `eventbus.store.mending`."""

    def __init__(self, settings: StoreSettings | None = None, clock: Clock | None = None) -> None:
        super().__init__(settings, clock)
        self._paused: dict[str, Pause] = {}
        self._held_nodes: dict[NodeName, Hold] = {}
        self._audit: Log[Mapping[str, object]] = Log()

    def flush(self) -> None:
        super().flush()
        self._paused.clear()
        self._held_nodes.clear()
        self._audit.clear()

    def _order(self, node: NodeName, order: Order) -> None:
        self._tell(node, lambda listener: listener.ordered(order))

    def _end_at_its_node(self, state: UserState, user: UserId, session: SessionId) -> None:
        """The node that has a session hears that it is over."""
        live = state.live.get(session)
        if live is not None:
            self._order(live.node, EndSession(user, session))

    # --- entries and dead letters -----------------------------------------------------------------------------------

    async def take_off(self, request: TakeOff) -> Sequence[EntryId]:
        async with self._call():
            user, now_ms = self._user(request.user), self.clock.now_ms()
            group = user.group(request.session)
            live = user.live.get(request.session)
            gone: list[EntryId] = []
            for entry in request.entries:
                pending = None if group is None else group.pending.get(entry_order(entry))
                if group is None or pending is None or not group.drop([entry]):
                    continue
                gone.append(entry)
                event, kind, body = self._head_of(user, entry)
                if request.how is TakenHow.SKIPPED:
                    user.partition.count("skipped", kind)
                    continue
                letter = DeadLetterRecord(
                    id=ENTRY_ZERO,
                    partition=self._number(request.user),
                    user=request.user,
                    session=request.session,
                    entry=entry,
                    event=event,
                    type=kind,
                    reason=request.reason,
                    attempts=pending.attempts,
                    node=NodeName("") if live is None else live.node,
                    time_ms=now_ms,
                    body=body,
                )
                user.partition.dead.record(letter, now_ms)
                user.partition.count("dead_lettered", kind)
            if request.how is TakenHow.SKIPPED:
                user.record(request.session, "skipped", gone, now_ms)
            if live is not None and gone:
                if request.how is TakenHow.DEAD:
                    self._order(live.node, DeadLettered(request.user, request.session, gone))
                self._tell(
                    live.node, lambda listener: listener.acked_elsewhere(request.user, request.session, tuple(gone))
                )
            return gone

    def _head_of(self, user: UserState, entry: EntryId) -> tuple[EventId, str, bytes]:
        body = (user.stream.body(entry_order(entry)) if user.stream is not None else None) or b""
        try:
            head = peek(body)
        except InvalidEvent:
            return EventId(""), "", body
        return head.id, head.type, body

    async def send_again(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> SentAgain:
        async with self._call():
            state = self._user(user)
            group, live = state.group(session), state.live.get(session)
            waiting = [entry for entry in entries if group is not None and entry_order(entry) in group.pending]
            if live is not None and waiting:
                self._order(live.node, SendAgain(user, session, waiting))
            return SentAgain(node=None if live is None else live.node, entries=waiting)

    async def put_back(self, user: UserId, session: SessionId, letter: EntryId, entry: EntryId) -> PutBack:
        async with self._call():
            state, dead = self._user(user), self._dead(self._number(user))
            place = next((item for item in dead if item[0] == entry_order(letter)), None)
            if place is None:
                return PutBack.NO_LETTER
            if state.stream is None or entry_order(entry) not in state.stream:
                return PutBack.NOT_STORED
            group = state.group(session)
            if group is None:
                return PutBack.NO_SESSION
            group.pending[entry_order(entry)] = Pending(attempts=1, sent_ms=self.clock.now_ms())
            dead.remove(place)
            live = state.live.get(session)
            if live is not None:
                self._order(live.node, LookAgain(user, session))
            return PutBack.PUT_BACK

    async def drop_dead(self, partition: int, ids: Sequence[EntryId]) -> int:
        async with self._call():
            dead, orders = self._dead(partition), {entry_order(one) for one in ids}
            before = len(dead)
            dead[:] = [item for item in dead if item[0] not in orders]
            return before - len(dead)

    # --- types and nodes --------------------------------------------------------------------------------------------

    async def pause_type(self, type: str, by: str, reason: str) -> None:
        async with self._call():
            pause = Pause(
                type=type, by=by, reason=reason, since_ms=self.clock.now_ms(), partitions=self.settings.partitions
            )
            self._paused.setdefault(type, pause)

    async def resume_type(self, type: str) -> bool:
        async with self._call():
            return self._paused.pop(type, None) is not None

    async def paused_types(self) -> Sequence[Pause]:
        async with self._call():
            return [pause for _, pause in sorted(self._paused.items())]

    async def hold_node(self, node: NodeName, by: str, reason: str) -> None:
        async with self._call():
            hold = Hold(node=node, by=by, reason=reason, since_ms=self.clock.now_ms())
            self._held_nodes.setdefault(node, hold)
            self._order(node, LookAtHeld())

    async def free_node(self, node: NodeName) -> bool:
        async with self._call():
            self._order(node, LookAtHeld())
            return self._held_nodes.pop(node, None) is not None

    async def held_nodes(self) -> Sequence[Hold]:
        async with self._call():
            return [hold for _, hold in sorted(self._held_nodes.items())]

    # --- a user's data ----------------------------------------------------------------------------------------------

    async def keys_of_user(self, user: UserId) -> Sequence[KeyRecord]:
        """One record for all of the user: there are no keys here."""
        async with self._call():
            return [KeyRecord(key=f"memory:{user}", type="memory")] if self._is_known(user) else []

    def _is_known(self, user: UserId) -> bool:
        state = self._users.get(user)
        return state is not None and bool(
            state.stream or state.known or state.confirmations or state.threads or state.runs or state.inbound.commands
        )

    async def erase_keys(self, user: UserId, keys: Sequence[str]) -> int:
        async with self._call():
            if foreign := [key for key in keys if key != f"memory:{user}"]:
                raise ValueError(f"{foreign[0]} is no key of {user} alone")
            erased = int(bool(keys) and self._is_known(user))
            if keys:
                self._users.pop(user, None)
                self._erase(user)
            return erased

    def _erase(self, user: UserId) -> None:
        """What other parts of the store hold of a user goes."""

    async def forget_user(self, user: UserId) -> int:
        async with self._call():
            partition = self._partition(user)
            logs: tuple[Log[Any], ...] = (partition.dead, partition.operators)
            before = sum(map(len, logs)) + len(partition.due)
            partition.dead[:] = [item for item in partition.dead if item[1].user != user]
            partition.operators[:] = [item for item in partition.operators if item[1].get("user") != user]
            kept = {m: ms for m, ms in partition.due.items() if m.split(" ")[1] != user or m.startswith("webhook ")}
            partition.due.clear()
            partition.due.update(kept)
            return before - sum(map(len, logs)) - len(partition.due)

    # --- audit ------------------------------------------------------------------------------------------------------

    async def audit(self, what: Mapping[str, object]) -> EntryId:
        async with self._call():
            now_ms = self.clock.now_ms()
            self._audit.forget_before(now_ms - AUDIT_LIFE_MS)
            return self._audit.record(dict(what), now_ms)

    async def audits(self, before: EntryId | None, count: int) -> Sequence[AuditRecord]:
        async with self._call():
            found = [
                AuditRecord(id=entry_id(order), time_ms=order[0], what=what)
                for order, what in reversed(self._audit)
                if before is None or order < entry_order(before)
            ]
            return found[:count]
