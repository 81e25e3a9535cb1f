"""A bus over a store in memory whose clock stands still, and sessions that a test moves by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eventbus import Bus
from eventbus.event import Level
from eventbus.ids import ENTRY_ZERO, ConnectionId, EntryId, NodeName, SessionId, UserId
from eventbus.store import (
    AckRequest,
    Attach,
    Attached,
    AttachMode,
    ConfirmRequest,
    DeadLetter,
    Fence,
    NewRead,
    ReadRequest,
    ReleaseReason,
    Start,
    Store,
)
from eventbus.testing import ManualClock, MemoryStore

ADA = UserId("ada")


def fence_of(session: str, user: str = ADA, connection: str = "c") -> Fence:
    """A fence with a short connection id."""
    return Fence(user=UserId(user), session=SessionId(session), connection=ConnectionId(connection.ljust(32, "0")))


async def opening(store: Store, session: str, user: str = ADA, *, connection: str = "c", node: str = "n1") -> None:
    """Open a session, or take it over."""
    attached = await store.attach(
        Attach(
            fence=fence_of(session, user, connection),
            node=NodeName(node),
            mode=AttachMode.OPEN,
            start=Start.EARLIEST,
            cursor=None,
            epoch=None,
            live_limit=10,
            known_limit=40,
        )
    )
    assert isinstance(attached, Attached), attached


async def reading(store: Store, session: str, user: str = ADA) -> list[EntryId]:
    """What is new for a session."""
    (new,) = await store.read_new([ReadRequest(fence=fence_of(session, user), count=1_000)])
    assert isinstance(new, NewRead), new
    return [entry.id for entry in new.entries]


class Bench:
    """A bus, a store and a clock; sessions that were attached are read, acked and left by the test."""

    def __init__(self, kind: type[MemoryStore] = MemoryStore, **bus: Any) -> None:
        self.clock = ManualClock()
        self.store = kind(clock=self.clock)
        self.bus = Bus(store=self.store, clock=self.clock, **bus)

    async def attach(self, session: str, user: str = ADA, *, connection: str = "c", node: str = "n1") -> None:
        """Open a session, or take it over."""
        await opening(self.store, session, user, connection=connection, node=node)

    async def detach(self, session: str, user: str = ADA, *, connection: str = "c") -> None:
        """Leave a session."""
        await self.store.detach(fence_of(session, user, connection), ENTRY_ZERO)

    async def read(self, session: str, user: str = ADA) -> list[EntryId]:
        """What is new for a session."""
        return await reading(self.store, session, user)

    async def ack(self, session: str, entries: Sequence[EntryId], user: str = ADA) -> None:
        """A session received entries."""
        await self.store.ack_many([AckRequest(user=UserId(user), session=SessionId(session), entries=entries)])

    async def confirm(
        self,
        session: str,
        entries: Sequence[EntryId],
        level: Level = Level.DISPLAYED,
        note: str | None = None,
        user: str = ADA,
    ) -> None:
        """A session displayed or confirmed entries."""
        await self.store.confirm_many(
            [ConfirmRequest(user=UserId(user), session=SessionId(session), level=level, entries=entries, note=note)]
        )

    async def release(self, session: str, entries: Sequence[EntryId], reason: ReleaseReason) -> None:
        """A node took entries off a session itself."""
        await self.store.release(fence_of(session), entries, reason)

    async def give_up(self, session: str, entry: EntryId, event: str, type: str) -> None:
        """An entry is dead-lettered."""
        letter = DeadLetter(id=entry, event=event, type=type, reason="no_ack", attempts=5, body=b"")  # type: ignore[arg-type]
        await self.store.dead_letter(fence_of(session), letter)
