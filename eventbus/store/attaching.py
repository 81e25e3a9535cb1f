"""What holds a session asks of the store: it is attached, kept alive, left and ended. Records and a Protocol. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Final, Literal, Protocol

from eventbus.errors import StoreError
from eventbus.ids import ConnectionId, EntryId, Epoch, NodeName, SessionId, UserId

__all__ = [
    "Attach",
    "AttachMode",
    "AttachRefused",
    "AttachStore",
    "Attached",
    "Beat",
    "BeatState",
    "Fence",
    "GapReason",
    "LOST",
    "Lost",
    "Start",
    "StoreGap",
]


class _Lost(Enum):
    LOST = "lost"

    def __repr__(self) -> str:
        return "LOST"


LOST: Final = _Lost.LOST
"""The result of a fenced call whose session belongs to another connection now, or to none."""

Lost = Literal[_Lost.LOST]


class Start(StrEnum):
    """Where a session that does not exist yet begins."""

    NEW = "new"
    EARLIEST = "earliest"
    CURSOR = "cursor"


class GapReason(StrEnum):
    """Why events can not be given any more. Source: docs/protocol.md, section 3."""

    TRIMMED = "trimmed"
    EXPIRED = "expired"
    OVERFLOW = "overflow"
    ROLLBACK = "rollback"
    RESET = "reset"


class AttachMode(StrEnum):
    """`OPEN` takes the session over from whoever has it; `REATTACH` never replaces another connection (D3)."""

    OPEN = "open"
    REATTACH = "reattach"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """For whom a call acts: the session of a user, held by one connection."""

    user: UserId
    session: SessionId
    connection: ConnectionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """A session is opened, resumed or taken over (`OPEN`), or checked and renewed with its socket open (`REATTACH`).

    Attributes:
        start: where a session that does not exist begins; a session that exists goes on where it stood.
        cursor: the highest entry id up to which the client has handled everything, None when it never had one.
        epoch: the epoch that the client knows, None when it knows none.
        live_limit: most live sessions of the user; one more is refused.
        known_limit: most sessions of the user that are kept; the longest unseen goes first.
        wanted: whether the client is still there; an attach that waited for a connection is not made for one that has
            gone, for it would take the session from where that client is by then.
    """

    fence: Fence
    node: NodeName
    mode: AttachMode
    start: Start
    cursor: EntryId | None
    epoch: Epoch | None
    live_limit: int
    known_limit: int
    wanted: Callable[[], bool] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreGap:
    """Events that the session will never get. `after` and `before` exist or were seen; None when unknown."""

    reason: GapReason
    after: EntryId | None
    before: EntryId | None
    count: int | None = None


class AttachRefused(StrEnum):
    """Why an attach changed nothing."""

    LOST = "lost"
    TOO_MANY_SESSIONS = "too_many_sessions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """The session is the caller's.

    Attributes:
        resumed: it existed before.
        first_pending: the lowest id that waits for an ack, None when none does.
        epoch: the partition's epoch now.
        position: the group's last delivered id: `>` reads what is after it.
        tail: the id of the stream's newest entry ever, `0-0` for an empty stream: what was stored when the session
            opened.
        pending: how many entries wait for an ack.
        gap: what was lost, found by the inclusive check of the cursor.
        displaced: the connection that held the session before, None when none was live.
        primary: the `run_id` of the server that answered. What another server answers is of no use before the session
            was attached there: it may have lost what this one had (D4).
    """

    resumed: bool
    epoch: Epoch
    position: EntryId
    tail: EntryId
    pending: int
    gap: StoreGap | None
    displaced: ConnectionId | None
    first_pending: EntryId | None = None
    primary: str = field(default="", compare=False)


class BeatState(StrEnum):
    """`MISSING`: nobody holds the session (its field expired or the data is gone): re-attach. `LOST`: another
    connection has it.
    """

    HELD = "held"
    MISSING = "missing"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """The answer to a heartbeat; `pending` and `unread` serve the sweep (D1, D17)."""

    state: BeatState
    pending: int = 0
    unread: bool = False


class AttachStore(Protocol):
    """Whose a session is."""

    async def attach(self, request: Attach) -> Attached | AttachRefused:
        """Opens, resumes, takes over or renews a session in one script. Redis: EVALSHA attach.lua."""

    async def heartbeat(self, fences: Sequence[Fence], node: NodeName) -> Sequence[Beat | StoreError]:
        """Renews sessions and the life of their users' keys, and says what the sweep wants to know; one script call a
        user.
        """

    async def detach(self, fence: Fence, cursor: EntryId) -> bool | Lost:
        """The session goes away and keeps its place."""

    async def end_session(self, user: UserId, session: SessionId) -> int:
        """Destroys a session: its pending entries are recorded as expired. Returns how many those were."""
