"""What takes entries off the pending entries of a session: acks, confirmations, and a node's own releases. Records and
a Protocol. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from eventbus.errors import StoreError
from eventbus.fields import Level
from eventbus.ids import ConnectionId, EntryId, SessionId, UserId
from eventbus.record import record
from eventbus.store.attaching import Fence, Lost

__all__ = [
    "AckRequest",
    "AckStore",
    "ConfirmRequest",
    "Confirmed",
    "EntryFacts",
    "ReleaseReason",
]


class ReleaseReason(StrEnum):
    """Why a node itself takes an entry off a session's pending entries; never a confirmation."""

    FILTERED = "filtered"
    EXPIRED = "expired"
    TRIMMED = "trimmed"
    RELEASED = "released"


class EntryFacts(NamedTuple):
    """What an ack needs to know of an entry. A named tuple, for acks are on the hot path.

    Attributes:
        type: of its event, for the counts.
        shared: it is `deliver: any`: the first ack of any session releases it for all.
        demanded: a confirmation of it is demanded.
    """

    type: str
    shared: bool = False
    demanded: bool = False


@record(kw_only=True)
class AckRequest:
    """What a client of one session acked.

    Attributes:
        facts: one for each entry, None where the caller does not hold it; empty when it holds none. The store looks at
            the entry for those.
        connection: whose client said it; None when it came through another door, of which the node that has the session
            in flight is told (D11).
    """

    user: UserId
    session: SessionId
    entries: Sequence[EntryId]
    facts: Sequence[EntryFacts | None] = ()
    connection: ConnectionId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmRequest:
    """What a client of one session displayed or confirmed.

    Attributes:
        level: above `received`; it implies those before it.
        note: what the application says about it.
        facts: as those of an `AckRequest`.
        connection: as that of an `AckRequest`.
    """

    user: UserId
    session: SessionId
    level: Level
    entries: Sequence[EntryId]
    note: str | None = None
    facts: Sequence[EntryFacts | None] = ()
    connection: ConnectionId | None = None


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What a confirmation did.

    Attributes:
        released: how many entries were pending until then.
        recorded: how many reached the level by it; 0 where nothing is recorded (`confirmation_records`).
    """

    released: int
    recorded: int


class AckStore(Protocol):
    """The end of deliveries."""

    async def ack(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> int:
        """Releases what a client acked through another door than its connection, and counts and records it.

        The first ack of a `deliver: any` event releases it for all sessions of the user, whose nodes are told. Returns
        how many were pending. Not fenced. Redis: XACK.
        """

    async def ack_many(self, requests: Sequence[AckRequest]) -> Sequence[int | StoreError]:
        """`ack` for many sessions in one write; one result for each request, in order."""

    async def confirm_many(self, requests: Sequence[ConfirmRequest]) -> Sequence[Confirmed | StoreError]:
        """Releases what is pending, as `ack` does, and records the level for all that was delivered to the session, on
        whichever connection; what was not is passed over. Not fenced, and safe to repeat. One result for each request,
        in order.

        Redis: XACK; 1,000 records of the user are looked at from each end, and an ack behind those is not found.
        """

    async def release(
        self,
        fence: Fence,
        entries: Sequence[EntryId],
        reason: ReleaseReason,
        facts: Sequence[EntryFacts | None] = (),
    ) -> int | Lost:
        """A node's own ack: filtered, expired, trimmed or released entries; recorded and counted, never a confirmation.

        `facts` are as those of an `AckRequest`.
        """
