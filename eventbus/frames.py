"""The frames of the wire protocol as records, and the filter of a session. Pure.

Source: docs/protocol.md, sections 2 and 3.
The order of a record's fields is the order of its keys on the wire. A field with a default may be left out there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from eventbus.event import Event
from eventbus.fields import Level
from eventbus.ids import ConnectionId, EntryId, Epoch, EventId, NodeName, RunId, SessionId, ThreadId
from eventbus.moves import DropReason
from eventbus.record import record
from eventbus.store import GapReason, Start

__all__ = [
    "Ack",
    "Acked",
    "CaughtUp",
    "ClientFrame",
    "Delivered",
    "Dropped",
    "ErrorFrame",
    "Events",
    "Filter",
    "Filtered",
    "Gap",
    "GoAway",
    "GoAwayReason",
    "Hello",
    "Nack",
    "Ping",
    "Pong",
    "Ref",
    "Refresh",
    "Refreshed",
    "Released",
    "Send",
    "Sent",
    "ServerFrame",
    "SetFilter",
    "Text",
    "Welcome",
    "Working",
]

Ref = str | int
"""What a client names a request by; it comes back in the answer as it was given."""


class GoAwayReason(StrEnum):
    """Why a node asks a client to come back elsewhere. Source: docs/protocol.md, section 3."""

    DRAINING = "draining"
    TOKEN_EXPIRING = "token_expiring"  # noqa: S105 - a word of the protocol
    REBALANCE = "rebalance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What a session wants: AND between the attributes, OR within one. None wants everything, an empty set nothing."""

    types: frozenset[str] | None = None
    threads: frozenset[str] | None = None
    runs: frozenset[str] | None = None

    def matches(self, type: str, thread: str | None, run: str | None) -> bool:
        """Whether an event is wanted. One without a thread is not in any of the `threads`, and so with runs."""
        return (
            (self.types is None or type in self.types)
            and (self.threads is None or thread in self.threads)
            and (self.runs is None or run in self.runs)
        )


# --- from the client --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Opens or resumes a session."""

    op: ClassVar = "hello"
    token: str | None = None
    session: SessionId | None = None
    start: Start | None = None
    cursor: EntryId | None = None
    epoch: Epoch | None = None
    window: int | None = None
    filter: Filter | None = None


@record(kw_only=True)
class Ack:
    """Confirms events: exactly one of `ids` and `upto` is set."""

    op: ClassVar = "ack"
    ids: tuple[EntryId, ...] | None = None
    upto: EntryId | None = None
    level: Level = Level.RECEIVED
    note: str | None = None
    ref: Ref | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Nack:
    """Asks for redelivery of one event."""

    op: ClassVar = "nack"
    id: EntryId
    reason: str | None = None
    delay_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """A new token for the same user."""

    op: ClassVar = "refresh"
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """A command from the user to the agent."""

    op: ClassVar = "send"
    type: str
    data: Mapping[str, Any]
    ref: Ref
    run: RunId | None = None
    thread: ThreadId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFilter:
    """Changes the filter from here on. Its op is `filter`; `Filter` is what it carries."""

    op: ClassVar = "filter"
    filter: Filter
    ref: Ref | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Working:
    """The handler is still at it: the ack time-out of these starts anew."""

    op: ClassVar = "working"
    ids: tuple[EntryId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """Answered by `Pong` with the same ref."""

    op: ClassVar = "ping"
    ref: Ref | None = None


ClientFrame = Hello | Ack | Nack | Refresh | Send | SetFilter | Working | Ping


# --- from the node ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The session is open. All times are milliseconds, `token_expires_ms` since 1970."""

    op: ClassVar = "welcome"
    protocol: int
    node: NodeName
    connection: ConnectionId
    session: SessionId
    resumed: bool
    cursor: EntryId
    pending: int
    window: int
    heartbeat_ms: int
    ack_timeout_ms: int
    max_frame_bytes: int
    token_expires_ms: int
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """An event as it is delivered: `id` is its entry id, `delivery` is 1 the first time."""

    id: EntryId
    delivery: int
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Events, in the order of their entry ids. A node builds this frame by `event_item` and `events_payload`."""

    op: ClassVar = "events"
    events: tuple[Delivered, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaughtUp:
    """All that was stored when the session opened has been sent."""

    op: ClassVar = "caught_up"
    cursor: EntryId


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Events that this session will never get."""

    op: ClassVar = "gap"
    reason: GapReason
    after: EntryId | None = None
    before: EntryId | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Acked:
    """An ack is stored; `count` is what it released."""

    op: ClassVar = "acked"
    ref: Ref
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A `Send` is stored."""

    op: ClassVar = "sent"
    ref: Ref
    id: EntryId | EventId


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """Another session of the user acked these `deliver: any` events."""

    op: ClassVar = "released"
    ids: Sequence[EntryId]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """A new filter holds."""

    op: ClassVar = "filtered"
    ref: Ref | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """These events will not come again."""

    op: ClassVar = "dropped"
    ids: Sequence[EntryId]
    reason: DropReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The part of a token stream that begins at character `offset`."""

    op: ClassVar = "text"
    run: RunId
    stream: str
    offset: int
    text: str
    final: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """A refreshed token holds until `token_expires_ms`, Unix milliseconds."""

    op: ClassVar = "refreshed"
    token_expires_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    """The answer to `Ping`."""

    op: ClassVar = "pong"
    ref: Ref | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GoAway:
    """The client is to come back after `reconnect_after_ms`."""

    op: ClassVar = "goaway"
    reason: GoAwayReason
    reconnect_after_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorFrame:
    """A request was refused; a close follows where the code says so."""

    op: ClassVar = "error"
    code: str
    message: str
    ref: Ref | None = None


ServerFrame = (
    Welcome
    | Events
    | CaughtUp
    | Gap
    | Acked
    | Sent
    | Released
    | Filtered
    | Dropped
    | Text
    | Refreshed
    | Pong
    | GoAway
    | ErrorFrame
)
