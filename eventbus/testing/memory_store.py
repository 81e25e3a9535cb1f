"""The Store in memory: an exact model of what Redis does for the bus, and the faults that tests need.

It keeps the same contract suite as `RedisStore`. One `MemoryStore` is one server: hand the same object to a bus and to
any number of nodes. Nothing is kept on disk, and several processes can not share it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from eventbus.config import StreamFullPolicy
from eventbus.errors import NotReplicated, StoreError, StreamFull, TypePaused
from eventbus.event import Event, decode_envelope
from eventbus.ids import EntryId, NodeName, SessionId, UserId, entry_order
from eventbus.store import (
    LOST,
    Append,
    Appended,
    Attach,
    Attached,
    AttachMode,
    AttachRefused,
    Beat,
    BeatState,
    Durability,
    Fence,
    Lost,
)
from eventbus.store.inbound import Told
from eventbus.testing.memory_acking import MemoryAcks
from eventbus.testing.memory_allowing import MemoryAllowances
from eventbus.testing.memory_base import MemoryBase
from eventbus.testing.memory_delivering import MemoryDeliveries
from eventbus.testing.memory_figures import MemoryFigures
from eventbus.testing.memory_gaps import place_group
from eventbus.testing.memory_inbound import MemoryInbound
from eventbus.testing.memory_looking import MemoryLooks
from eventbus.testing.memory_mending import MemoryMending
from eventbus.testing.memory_nodes import MemoryNodes
from eventbus.testing.memory_revoking import MemoryRevocations
from eventbus.testing.memory_running import MemoryRuns
from eventbus.testing.memory_state import ZERO, UserState
from eventbus.testing.memory_stream import MemoryStream, entry_id, stored
from eventbus.testing.memory_texts import MemoryTexts
from eventbus.testing.memory_waiting import MemoryWaiting

__all__ = ["MemoryStore"]


class MemoryStore(
    MemoryDeliveries,
    MemoryAcks,
    MemoryNodes,
    MemoryLooks,
    MemoryRuns,
    MemoryTexts,
    MemoryInbound,
    MemoryFigures,
    MemoryRevocations,
    MemoryAllowances,
    MemoryWaiting,
    MemoryMending,
    MemoryBase,
):
    """An `eventbus.store.Store` in one process, with switches for the faults of a server.

    Args:
        settings: sizes and lives, as for Redis; the defaults when absent.
        clock: Redis's clock; a `ManualClock` makes lives and entry ids predictable. The machine's when absent.

    Every call gives the event loop one turn before it takes effect, as a call over a network would at the least. A call
    that is cancelled while it waits has no effect.
    """

    def __repr__(self) -> str:
        return f"<MemoryStore users={len(self._users)} nodes={len(self._nodes)} {self.health}>"

    def published(self, user: str) -> list[Event]:
        """The retained events of a user, oldest first, as they were made: what a test of an agent looks at."""
        stream = self._user(UserId(user)).stream
        if stream is None:
            return []
        return [decode_envelope(entry.body) for entry in stored(stream, stream.after(ZERO))]

    # --- faults that are no errors of a call ------------------------------------------------------------------------

    def restart(self) -> None:
        """The server comes back with its data under another `run_id`, as after a crash with its append-only file."""
        self._primary = secrets.token_hex(20)

    def trim(self, user: UserId, keep: int) -> int:
        """Remove a user's oldest entries, read or not, pending or not, until `keep` are left. Returns how many went."""
        stream = self._user(user).stream
        return stream.keep(keep) if stream is not None else 0

    def roll_back(self, user: UserId, to: EntryId) -> int:
        """A failover to a replica that had the stream only up to the entry `to`, and knew no event id of what followed.

        Returns how many entries went.
        """
        self.restart()
        self._partition(user).forget_entries(user, entry_order(to))
        state = self._user(user)
        state.released = {entry for entry in state.released if entry_order(entry) <= entry_order(to)}
        state.runs = {name: run for name, run in state.runs.items() if run.roll_back(entry_order(to))}
        return state.stream.drop_after(entry_order(to)) if state.stream is not None else 0

    def lose_group(self, user: UserId, session: SessionId) -> None:
        """A session's group vanishes, with its pending list, while the stream stays."""
        stream = self._user(user).stream
        if stream is not None:
            stream.groups.pop(session, None)

    def misplace_group(self, user: UserId, session: SessionId, position: EntryId) -> None:
        """A session's group stands elsewhere than it read, ahead of the stream too, as a failover may leave it (D4)."""
        group = self._user(user).group(session)
        if group is not None:
            group.position = entry_order(position)

    def lose_live(self, user: UserId) -> None:
        """The hash of the user's live sessions is gone, as if it had expired."""
        self._user(user).live.clear()

    # --- publishing -------------------------------------------------------------------------------------------------

    async def append(
        self, events: Sequence[Append], durability: Durability = Durability.MEMORY
    ) -> Sequence[Appended | StoreError]:
        """One process has no replicas, so `REPLICATED` answers `NotReplicated`; the events are stored all the same."""
        try:
            async with self._call():
                results: list[Appended | StoreError] = [self._append(event) for event in events]
        except StoreError as error:
            return [error] * len(events)
        if durability is Durability.REPLICATED:
            missing = NotReplicated("stored, but a store in memory has no replicas that could confirm it")
            return [missing if isinstance(result, Appended) else result for result in results]
        return results

    def _append(self, event: Append) -> Appended | StoreError:
        now_ms = self.clock.now_ms()
        user, partition = self._user(event.user), self._partition(event.user)
        bucket = now_ms // self.settings.dedupe_ms
        if known := partition.first_entry(event.user, event.event, bucket):
            partition.remember(event.user, event.event, bucket, known)
            return Appended(entry=known, duplicate=True, primary=self._primary)
        if event.step is not None and (refused := self._step_refused(event, event.step)) is not None:
            if isinstance(refused, StoreError):
                return refused
            return Appended(entry=refused, duplicate=True, primary=self._primary)
        if event.type in self._paused:
            return TypePaused(f"events of the type {event.type} are paused by an operator: `eventbus paused` says why")
        stream = user.opened_stream()
        stream.trim_below((now_ms - self.settings.retention_ms, 0))
        if full := self._make_room(event.user, user, stream, len(event.body)):
            return full
        entry = entry_id(stream.add(event.body, now_ms))
        self._keep_stream(user, now_ms)
        partition.remember(event.user, event.event, bucket, entry)
        self._noted(event, entry, now_ms)
        nodes = dict.fromkeys(live.node for live in user.live.values())
        for node in nodes:
            self._tell(node, lambda listener: listener.woken(event.user))
        return Appended(entry=entry, duplicate=False, primary=self._primary, woken=len(nodes))

    def _make_room(self, name: UserId, user: UserState, stream: MemoryStream, size: int) -> StreamFull | None:
        """At the cap what nobody needs goes first, as little as possible; the policy decides on the rest (D18)."""
        limit, limit_bytes = self.settings.max_stream_entries, self.settings.max_stream_bytes

        def full() -> bool:
            return len(stream) >= limit or (len(stream) > 0 and stream.bytes + size > limit_bytes)

        needed = stream.lowest_needed() if full() else None
        while full() and (first := stream.first) is not None:
            if needed is not None and first >= needed:
                if self.settings.stream_full_policy is StreamFullPolicy.REJECT:
                    return StreamFull(
                        f"the stream of {name} holds {len(stream)} entries that sessions still need, of at most {limit}"
                        f" entries and {limit_bytes} bytes; publish again when they are acked"
                    )
                user.hole = first
            stream.keep(len(stream) - 1)
        return None

    # --- sessions ---------------------------------------------------------------------------------------------------

    async def attach(self, request: Attach) -> Attached | AttachRefused:
        async with self._call():
            fence, now_ms = request.fence, self.clock.now_ms()
            user, reattach = self._user(fence.user), request.mode is AttachMode.REATTACH
            held = user.live.get(fence.session)
            if reattach and held is not None and held.connection != fence.connection:
                return AttachRefused.LOST
            if held is None and len(user.live) >= request.live_limit:
                return AttachRefused.TOO_MANY_SESSIONS
            user.end_old(now_ms, self.settings.session_ttl_ms, spare=fence.session if reattach else None)
            resumed = user.group(fence.session) is not None or fence.session in user.known
            if fence.session not in user.known:
                user.make_room(request.known_limit, now_ms)
            epoch = self._partition(fence.user).epoch
            gap = place_group(user, request, same_epoch=request.epoch in (None, epoch))
            displaced = held.connection if held is not None and held.connection != fence.connection else None
            if displaced is not None and held is not None:
                self._tell(held.node, lambda listener: listener.displaced(fence.user, fence.session, fence.connection))
            self._keep_stream(user, now_ms)
            user.renew(fence.session, request.node, fence.connection, now_ms)
            if held is None:
                self._tell_followers(fence.user, Told.PRESENCE)
            stream = user.opened_stream()
            group = stream.groups[fence.session]
            waiting = group.pending_after()
            return Attached(
                resumed=resumed,
                epoch=epoch,
                position=entry_id(group.position),
                tail=entry_id(stream.last),
                pending=len(waiting),
                gap=gap,
                displaced=displaced,
                first_pending=entry_id(waiting[0]) if waiting else None,
            )

    async def heartbeat(self, fences: Sequence[Fence], node: NodeName) -> Sequence[Beat | StoreError]:
        try:
            async with self._call():
                return [self._beat(fence, node) for fence in fences]
        except StoreError as error:
            return [error] * len(fences)

    def _beat(self, fence: Fence, node: NodeName) -> Beat:
        now_ms = self.clock.now_ms()
        user = self._user(fence.user)
        held, group = user.live.get(fence.session), user.group(fence.session)
        if held is not None and held.connection != fence.connection:
            return Beat(state=BeatState.LOST)
        if held is None or group is None or user.stream is None:
            return Beat(state=BeatState.MISSING)
        user.renew(fence.session, node, fence.connection, now_ms)
        user.end_old(now_ms, self.settings.session_ttl_ms)
        self._keep_stream(user, now_ms)
        unread = bool(user.stream.after(group.position, 1))
        return Beat(state=BeatState.HELD, pending=len(group.pending), unread=unread)

    async def detach(self, fence: Fence, cursor: EntryId) -> bool | Lost:
        async with self._call():
            now_ms = self.clock.now_ms()
            user = self._held(fence)
            if user is None:
                return LOST
            live = user.live[fence.session]
            user.renew(fence.session, live.node, live.connection, now_ms).cursor = cursor
            del user.live[fence.session]
            self._tell_followers(fence.user, Told.PRESENCE)
            user.told.pop(fence.session, None)
            self._keep_stream(user, now_ms)
            return True

    async def end_session(self, user: UserId, session: SessionId) -> int:
        async with self._call():
            state = self._user(user)
            if session in state.live:
                self._tell_followers(user, Told.PRESENCE)
            self._end_at_its_node(state, user, session)
            return state.destroy(session, self.clock.now_ms())

    # --- the server ------------------------------------------------------------------------------------------------

    async def ping(self) -> int:
        async with self._call():
            return self.clock.now_ms()

    async def aclose(self) -> None:
        self._close()
