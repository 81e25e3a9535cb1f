"""What goes into the delivery state machine and what comes out: inputs, effects, reads. Pure records, no behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from eventbus.ids import EntryId
from eventbus.record import record
from eventbus.store import Redelivery, RedeliveryOutcome, ReleaseReason, StoreGap

__all__ = [
    "Acked",
    "AckedElsewhere",
    "AckedUpTo",
    "Acknowledge",
    "AnnounceGap",
    "CaughtUp",
    "Clock",
    "Closed",
    "DeadLetteredElsewhere",
    "DropReason",
    "Dropped",
    "Effect",
    "GiveUp",
    "GivenUp",
    "Input",
    "Item",
    "Nacked",
    "NewItems",
    "Opened",
    "PendingItems",
    "ReadFailed",
    "ReadNew",
    "ReadPending",
    "ReattachStarted",
    "Redeliver",
    "Redelivered",
    "Release",
    "ReleasedElsewhere",
    "Send",
    "Sending",
    "Stalled",
    "StepFailed",
    "Stored",
    "WindowChanged",
    "Withdrawn",
    "Woken",
    "Working",
]


class DropReason(StrEnum):
    """Why an event will not come again. Source: docs/protocol.md, section 3."""

    DEAD_LETTERED = "dead_lettered"
    EXPIRED = "expired"


@dataclass(slots=True, kw_only=True)
class Item:
    """An entry as it was read.

    Attributes:
        id: its entry id.
        payload: whatever the shell sends; None when the entry was trimmed while it was pending.
        size_bytes: what holding it costs.
        expires_ms: when it is not delivered any more, on the clock of `now_ms`; None for never.
        skip: why it is released unsent (filtered, expired, released); None when it is to be sent.
        attempts: Redis's delivery count of a pending entry; 1 for a new one.
        poison: why it can not be sent at all and becomes a dead letter at once; empty when it can.
        shared: it is `deliver: any`: another session's ack may release it.
    """

    id: EntryId
    payload: Any
    size_bytes: int = 0
    expires_ms: int | None = None
    skip: ReleaseReason | None = None
    attempts: int = 1
    poison: str = ""
    shared: bool = False


# --- inputs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An attach succeeded, the first or another (D1).

    Attributes:
        position: the last id that the group has handed out.
        tail: the newest id of the stream then.
        pending: how many entries wait for an ack.
        gap: what the inclusive check of the cursor found missing.
    """

    position: EntryId
    tail: EntryId
    pending: int
    gap: StoreGap | None = None


@dataclass(frozen=True, slots=True)
class ReattachStarted:
    """The session is being attached again with its socket open: no read starts until `Opened`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingItems:
    """A page of pending entries came; `last` means that no pending entry follows."""

    items: Sequence[Item]
    last: bool


@record(kw_only=True)
class NewItems:
    """What is new came, in id order; `gap` lies before it."""

    items: Sequence[Item]
    gap: StoreGap | None = None


@dataclass(frozen=True, slots=True)
class ReadFailed:
    """A read ended without an answer: entries may be pending that nobody holds, so the session must be attached
    again.
    """


@record()
class Woken:
    """Something may have been stored."""


@record()
class Acked:
    """The client acked these entries."""

    ids: Sequence[EntryId]


@dataclass(frozen=True, slots=True)
class AckedUpTo:
    """The client acked every delivered entry up to and with `id`."""

    id: EntryId


@dataclass(frozen=True, slots=True)
class AckedElsewhere:
    """Entries were acked through another door and are pending no more."""

    ids: Sequence[EntryId]


@dataclass(frozen=True, slots=True)
class DeadLetteredElsewhere:
    """An operator made these entries dead letters, and they are pending no more (D21)."""

    ids: Sequence[EntryId]


@dataclass(frozen=True, slots=True)
class ReleasedElsewhere:
    """Another session acked these `deliver: any` entries, and they are pending no more (D19)."""

    ids: Sequence[EntryId]


@dataclass(frozen=True, slots=True)
class Nacked:
    """The client asks for a redelivery, after `delay_ms` or the policy's wait."""

    id: EntryId
    delay_ms: int | None


@dataclass(frozen=True, slots=True)
class Working:
    """The client's handler is still at these: their ack time-outs start anew."""

    ids: Sequence[EntryId]


@record()
class Stored:
    """Acks or releases of these entries are in Redis."""

    ids: Sequence[EntryId]


@dataclass(frozen=True, slots=True)
class Redelivered:
    """What the store said of entries that are to be sent again."""

    outcomes: Sequence[tuple[EntryId, RedeliveryOutcome]]


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The store took a dead letter; `dead` is False when the entry was not pending any more."""

    id: EntryId
    dead: bool


@dataclass(frozen=True, slots=True)
class StepFailed:
    """A redelivery or dead letter could not be recorded; it is tried again, and nothing was counted."""

    ids: Sequence[EntryId]


@dataclass(frozen=True, slots=True)
class Clock:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Stalled:
    """The node stood still for `by_ms`: its clients had no chance to ack (D23)."""

    by_ms: int


@dataclass(frozen=True, slots=True)
class WindowChanged:
    """Most entries in flight from now on."""

    window: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection is gone."""


Input = (
    Opened
    | ReattachStarted
    | PendingItems
    | NewItems
    | ReadFailed
    | Woken
    | Acked
    | AckedUpTo
    | AckedElsewhere
    | DeadLetteredElsewhere
    | ReleasedElsewhere
    | Nacked
    | Working
    | Stored
    | Redelivered
    | GivenUp
    | StepFailed
    | Clock
    | Stalled
    | WindowChanged
    | Closed
)

# --- effects --------------------------------------------------------------------------------------------------------


class Sending(NamedTuple):
    """One event of a `Send`: `delivery` is 1 the first time. A named tuple, for one is made for each event sent."""

    id: EntryId
    delivery: int
    payload: Any


@record()
class Send:
    """Send these events, in this order."""

    events: Sequence[Sending]


@record()
class Acknowledge:
    """Tell the store that the client acked these; answered by `Stored`. `payloads` are theirs, None where it is not
    held.
    """

    ids: Sequence[EntryId]
    payloads: Sequence[Any] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Release:
    """Take these off the pending entries in the node's own name; answered by `Stored`. `payloads` are as those of
    `Acknowledge`.
    """

    ids: Sequence[EntryId]
    reason: ReleaseReason
    payloads: Sequence[Any] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Redeliver:
    """Count these attempts in the store; answered by `Redelivered` or `StepFailed`."""

    entries: Sequence[Redelivery]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Write a dead letter; answered by `GivenUp` or `StepFailed`."""

    id: EntryId
    attempts: int
    reason: str
    payload: Any


@dataclass(frozen=True, slots=True)
class AnnounceGap:
    """Tell the client what it will never get."""

    gap: StoreGap


@dataclass(frozen=True, slots=True)
class Dropped:
    """Tell the client that these will not come again."""

    ids: Sequence[EntryId]
    reason: DropReason


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Tell the client that another session acked these `deliver: any` entries, which it was sent."""

    ids: Sequence[EntryId]


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """Tell the client that all that was stored when the session opened has been sent."""

    cursor: EntryId


Effect = Send | Acknowledge | Release | Redeliver | GiveUp | AnnounceGap | Dropped | Withdrawn | CaughtUp


@dataclass(frozen=True, slots=True)
class ReadPending:
    """Read a page of pending entries after `after`."""

    after: EntryId
    count: int


@record()
class ReadNew:
    """Read what is new; `verify` is the last id of a full read, whose absence is a gap (D7)."""

    count: int
    verify: EntryId | None
