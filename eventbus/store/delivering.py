"""What is read for a session, sent again and given up: records and a Protocol. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from eventbus.errors import StoreError
from eventbus.ids import EntryId, EventId
from eventbus.record import record
from eventbus.store.attaching import Fence, Lost, StoreGap

__all__ = [
    "DeadLetter",
    "DeadOutcome",
    "DeliverStore",
    "NewRead",
    "PendingEntry",
    "PendingPage",
    "ReadRequest",
    "ReadState",
    "Redelivery",
    "RedeliveryOutcome",
    "StoredEntry",
]


@record()
class StoredEntry:
    """An entry and its envelope."""

    id: EntryId
    body: bytes


@dataclass(frozen=True, slots=True)
class PendingEntry:
    """A pending entry; `body` is None when the entry was trimmed; `attempts` is Redis's delivery count, untouched by
    reading; `released`: another session of the user has acked this `deliver: any` event.
    """

    id: EntryId
    body: bytes | None
    attempts: int
    released: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingPage:
    """A page of a session's pending entries in id order; `last` means that no pending entry follows, `primary` is the
    `run_id` of the server that answered.
    """

    entries: Sequence[PendingEntry]
    last: bool
    primary: str = field(default="", compare=False)


@record(kw_only=True)
class ReadRequest:
    """Read what is new for one session.

    Attributes:
        count: the room in its window, at least 1 (D20).
        verify: the last id that was read when the last read was a full one: its absence is a gap (D7).
    """

    fence: Fence
    count: int
    verify: EntryId | None = None


class ReadState(StrEnum):
    """What became of a read."""

    OK = "ok"
    LOST = "lost"
    NO_GROUP = "no_group"


@record(kw_only=True)
class NewRead:
    """The answer to one `ReadRequest`, in id order. `gap` precedes the entries; `released` are those of them that
    another session of the user has acked, of `deliver: any` events (D19). `primary` is the `run_id` of the server that
    answered.
    """

    state: ReadState
    entries: Sequence[StoredEntry] = ()
    gap: StoreGap | None = None
    released: Sequence[EntryId] = ()
    primary: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redelivery:
    """An entry that is about to be sent again; `attempts` is what its delivery count becomes."""

    id: EntryId
    attempts: int


class RedeliveryOutcome(StrEnum):
    """`READY`: counted, send it. `GONE`: acked elsewhere, forget it. `TRIMMED`: pending but no longer in the stream
    (D11).
    """

    READY = "ready"
    GONE = "gone"
    TRIMMED = "trimmed"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An entry that is given up for a session. `body` is kept for a replay, empty when it is unknown."""

    id: EntryId
    event: EventId
    type: str
    reason: str
    attempts: int
    body: bytes


class DeadOutcome(StrEnum):
    """`DEAD`: written to the dead letters and released. `GONE`: it was not pending any more."""

    DEAD = "dead"
    GONE = "gone"


class DeliverStore(Protocol):
    """Entries on their way to a session."""

    async def read_pending(self, fence: Fence, after: EntryId, count: int) -> PendingPage | Lost:
        """A page of pending entries after `after`; neither their delivery counts nor their idle times change (D8).

        Redis: XPENDING and XRANGE in a script.
        """

    async def read_new(self, requests: Sequence[ReadRequest]) -> Sequence[NewRead | StoreError]:
        """What is new for each session, one result for each request in order; one script call a user (D2). Redis:
        XREADGROUP.
        """

    async def redeliver(self, fence: Fence, entries: Sequence[Redelivery]) -> Sequence[RedeliveryOutcome] | Lost:
        """Counts an attempt for each entry before it is sent again (D11). Redis: XPENDING, XCLAIM JUSTID RETRYCOUNT."""

    async def dead_letter(self, fence: Fence, letter: DeadLetter) -> DeadOutcome | Lost:
        """Gives an entry up for a session: XACK, and only if that released it, XADD to the dead letters (D21)."""
