"""What nodes tell of themselves, and what they are told: records and Protocols. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from eventbus.ids import ConnectionId, EntryId, NodeName, RunId, SessionId, UserId
from eventbus.store.mending import Order

__all__ = [
    "Listener",
    "Listening",
    "NodeRecord",
    "NodeStore",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """A node as it tells of itself; `figures` are whole numbers by name (connections, sessions, ...)."""

    node: NodeName
    address: str
    version: str
    state: str
    started_ms: int
    figures: Mapping[str, int]


class Listener(Protocol):
    """What a node is told through its shard channels. Called in the event loop; must not block or raise."""

    def woken(self, user: UserId) -> None:
        """Something was stored for a user who has a live session on this node."""

    def displaced(self, user: UserId, session: SessionId, connection: ConnectionId) -> None:
        """The session belongs to `connection` from now on; another holder closes with 4504."""

    def acked_elsewhere(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> None:
        """Entries of a session of this node were acked through another door (D11)."""

    def released(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> None:
        """`deliver: any` events in flight to a session of this node were acked by another session of the user (D19)."""

    def text_came(self, user: UserId, run: RunId) -> None:
        """A token stream of a user who has a live session on this node has grown or ended."""

    def revoked(self) -> None:
        """Something was revoked: `Store.revocations` says what."""

    def ordered(self, order: Order) -> None:
        """An operator wants something of this node."""

    def probed(self, token: str) -> None:
        """A probe of this node came back through its channel."""

    def subscribed(self) -> None:
        """All channels are subscribed, for the first time or again: wake-ups may have been missed, so re-attach
        everything.
        """

    def resubscribed(self, concerns: Callable[[UserId], bool]) -> None:
        """The channels of some partitions are subscribed, again or on another server: wake-ups of the users whom it
        concerns may have been missed, and what their primary had may be lost, so re-attach those.
        """

    def unsubscribed(self, reason: str) -> None:
        """The subscription is lost and being renewed; wake-ups are missed from now on."""


class Listening(Protocol):
    """A subscription that renews itself until it is closed."""

    async def aclose(self) -> None:
        """Ends it; safe to call twice."""


class NodeStore(Protocol):
    """The nodes and their channels."""

    async def beat_node(self, record: NodeRecord) -> None:
        """Writes what the node tells of itself; readers ignore it 15 s later."""

    async def leave_node(self, node: NodeName) -> None:
        """Takes the node off the list."""

    async def nodes(self) -> Sequence[NodeRecord]:
        """The nodes that told of themselves within 15 s."""

    async def listen(self, node: NodeName, listener: Listener) -> Listening:
        """Subscribes to the node's channels of every partition; returns at once and keeps (re)subscribing until
        closed.
        """

    async def probe(self, node: NodeName, token: str) -> None:
        """Proves the path: writes `token` into a stream, reads it as a session does, and sends it through one of
        the node's channels to `Listener.probed`.

        Raises when the write or the read fails; that the wake-up came is for the listener to see.
        """
