"""What publishing asks of the store: records and a Protocol. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from eventbus.errors import StoreError
from eventbus.ids import EntryId, EventId, ThreadId, UserId
from eventbus.record import record
from eventbus.store.running import Demand, RunStep

__all__ = [
    "Append",
    "AppendStore",
    "Appended",
    "Durability",
]


class Durability(StrEnum):
    """What a returned publish promises."""

    MEMORY = "memory"
    REPLICATED = "replicated"
    FSYNC = "fsync"


@record(kw_only=True)
class Append:
    """One event to store: its envelope as MessagePack, and what the store needs to know of it.

    Attributes:
        type: the event's type, for the counts; empty: not counted by type.
        thread: the thread that it belongs to, None for none.
        demand: a demanded confirmation, to be watched.
        step: of an event of a run: what it changes there.
    """

    user: UserId
    event: EventId
    body: bytes
    type: str = ""
    thread: ThreadId | None = None
    demand: Demand | None = None
    step: RunStep | None = None


@record(kw_only=True)
class Appended:
    """Where an event is stored.

    Attributes:
        entry: its entry id; of the first publish when `duplicate`.
        duplicate: the event id was known within the dedupe window, nothing was stored again.
        primary: who answered: another one than before means a restart or a failover.
        woken: how many nodes were told.
    """

    entry: EntryId
    duplicate: bool
    primary: str
    woken: int = 0


class AppendStore(Protocol):
    """Stores events."""

    async def append(
        self, events: Sequence[Append], durability: Durability = Durability.MEMORY
    ) -> Sequence[Appended | StoreError]:
        """Stores events, in the order given for each user; a known event id is answered with its first entry id.

        Returns one result for each event, in order: an `Appended`, or the error of that event alone (`StreamFull`,
        `StoreFull`, `NotReplicated`, `StoreUnavailable`, ...). Once an event of a user failed with an unknown outcome,
        the later ones of that user in the batch are still tried: the caller keeps the order (D6).
        Redis: EVALSHA append.lua, WAIT.
        """
