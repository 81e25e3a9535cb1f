"""Steps that tests of the Redis store share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from eventbus.ids import ConnectionId, EntryId, EventId, NodeName, RunId, SessionId, ThreadId, UserId
from eventbus.store import (
    Append,
    Appended,
    Attach,
    Attached,
    AttachMode,
    Durability,
    Fence,
    NewRead,
    ReadRequest,
    Start,
    Store,
)
from eventbus.store.mending import Order

ALICE = UserId("alice")
NODE = NodeName("node-1")


def fence_of(session: str = "phone", user: UserId = ALICE, connection: str = "c1") -> Fence:
    """A fence with a short connection id."""
    return Fence(user=user, session=SessionId(session), connection=ConnectionId(connection.ljust(32, "0")))


def event_of(name: str, user: UserId = ALICE, body: bytes = b"", thread: ThreadId | None = None) -> Append:
    """An event whose body is its name, if no other is given."""
    return Append(user=user, event=EventId(name), body=body or name.encode(), thread=thread)


async def publish(store: Store, *events: Append, durability: Durability = Durability.MEMORY) -> list[Appended]:
    """Stores events that must succeed."""
    results = await store.append(events, durability)
    stored = [result for result in results if isinstance(result, Appended)]
    assert len(stored) == len(events), results
    return stored


async def open_session(store: Store, fence: Fence, **changes: Any) -> Attached:
    """Attaches a session from the earliest event; it must not be refused."""
    fields: dict[str, Any] = {
        "fence": fence,
        "node": NODE,
        "mode": AttachMode.OPEN,
        "start": Start.EARLIEST,
        "cursor": None,
        "epoch": None,
        "live_limit": 10,
        "known_limit": 40,
    }
    attached = await store.attach(Attach(**(fields | changes)))
    assert isinstance(attached, Attached), attached
    return attached


async def read(store: Store, fence: Fence, count: int = 100, verify: EntryId | None = None) -> NewRead:
    """One read; errors of the store are raised."""
    (result,) = await store.read_new([ReadRequest(fence=fence, count=count, verify=verify)])
    assert isinstance(result, NewRead), result
    return result


def bodies(result: NewRead) -> Sequence[str]:
    """What a read gave."""
    return [entry.body.decode() for entry in result.entries]


class Listened:
    """A listener that writes down what it is told."""

    def __init__(self) -> None:
        self.wakes: list[UserId] = []
        self.tokens: list[str] = []
        self.displacements: list[tuple[UserId, SessionId, ConnectionId]] = []
        self.acks: list[tuple[UserId, SessionId, list[EntryId]]] = []
        self.subscriptions = 0
        self.resubscriptions: list[Callable[[UserId], bool]] = []
        self.losses: list[str] = []

    def woken(self, user: UserId) -> None:
        self.wakes.append(user)

    def displaced(self, user: UserId, session: SessionId, connection: ConnectionId) -> None:
        self.displacements.append((user, session, connection))

    def acked_elsewhere(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> None:
        self.acks.append((user, session, list(entries)))

    def released(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> None:
        """No event of it is for any one session."""

    def text_came(self, user: UserId, run: RunId) -> None:
        """No run streams to it."""

    def revoked(self) -> None:
        """Nothing is revoked here."""

    def ordered(self, order: Order) -> None:
        """No operator is at work here."""

    def probed(self, token: str) -> None:
        self.tokens.append(token)

    def subscribed(self) -> None:
        self.subscriptions += 1

    def resubscribed(self, concerns: Callable[[UserId], bool]) -> None:
        self.resubscriptions.append(concerns)

    def unsubscribed(self, reason: str) -> None:
        self.losses.append(reason)
