"""What can be looked at, for readers of histories and for operators: records and a Protocol. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from eventbus.ids import ConnectionId, EntryId, Epoch, EventId, NodeName, SessionId, UserId
from eventbus.store.delivering import StoredEntry

__all__ = [
    "ConfirmationRecord",
    "DeadLetterRecord",
    "HistoryPage",
    "LiveRecord",
    "LookStore",
    "PendingRecord",
    "SessionRecord",
    "StoreInfo",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPage:
    """Retained entries of a user, oldest first. `tail` is the newest id ever; `more` when entries follow the last
    one.
    """

    entries: Sequence[StoredEntry]
    tail: EntryId
    epoch: Epoch
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRecord:
    """Where a session is live."""

    node: NodeName
    connection: ConnectionId
    last_seen_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """A session as operators see it. `live` is None while it is away; `oldest_pending_ms` is an age."""

    user: UserId
    session: SessionId
    created_ms: int
    last_seen_ms: int
    cursor: EntryId
    position: EntryId
    pending: int
    unread: bool
    live: LiveRecord | None
    oldest_pending: EntryId | None
    max_attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingRecord:
    """A pending entry as operators see it. `idle_ms` is the time since it was last sent."""

    id: EntryId
    attempts: int
    idle_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterRecord:
    """A dead letter as it is kept: `id` is its own entry id in the partition's dead letters, `entry` the one it had in
    the stream.
    """

    id: EntryId
    partition: int
    user: UserId
    session: SessionId
    entry: EntryId
    event: EventId
    type: str
    reason: str
    attempts: int
    node: NodeName
    time_ms: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmationRecord:
    """What one session did with some entries in one turn: a level (`received`, ...) or a `ReleaseReason` value."""

    session: SessionId
    level: str
    time_ms: int
    entries: Sequence[EntryId]
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreInfo:
    """The server behind the store, as `eventbus doctor` checks it; `settings` are raw CONFIG values and `facts` raw
    values of INFO, absent ones left out; `address` is where it answered, empty where there is no such thing.
    """

    kind: str
    version: str
    primary: str
    time_ms: int
    memory_bytes: int
    replicas: int
    settings: Mapping[str, str]
    facts: Mapping[str, str] = field(default_factory=dict)
    address: str = ""


class LookStore(Protocol):
    """What is in the store."""

    async def tail(self, user: UserId) -> tuple[EntryId, Epoch]:
        """The id of the newest entry ever of the user's stream (`0-0` when there was none) and the epoch of its
        partition.
        """

    async def history(self, user: UserId, after: EntryId, count: int) -> HistoryPage:
        """Retained entries after `after` (exclusive), oldest first."""

    async def sessions(self, user: UserId) -> Sequence[SessionRecord]:
        """All sessions of a user, live and away."""

    async def pending(self, user: UserId, session: SessionId, after: EntryId, count: int) -> Sequence[PendingRecord]:
        """Pending entries of a session after `after`, for operators."""

    async def users(self, cursor: str, count: int) -> tuple[Sequence[UserId], str]:
        """A page of the users that have a stream, in no order, perhaps repeated; start with cursor "", end when ""
        comes back.

        For operators only. Redis: SCAN.
        """

    async def dead_letters(self, partition: int, after: EntryId, count: int) -> Sequence[DeadLetterRecord]:
        """Dead letters of a partition after `after`, oldest first."""

    async def dead_letter_partitions(self) -> Sequence[int]:
        """The partitions that have dead letters."""

    async def confirmations(
        self, user: UserId, after: EntryId, count: int
    ) -> Sequence[tuple[EntryId, ConfirmationRecord]]:
        """Records of the user's confirmations and releases, oldest first, each with its own entry id."""

    async def entry(self, user: UserId, entry: EntryId) -> StoredEntry | None:
        """One entry of a user's stream, None when it is not (any more) there."""

    async def info(self) -> StoreInfo:
        """The server behind it."""

    async def infos(self) -> Sequence[StoreInfo]:
        """The server behind it, of a Cluster each primary."""
