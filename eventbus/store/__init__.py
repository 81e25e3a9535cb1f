"""The Store: what the bus and the nodes ask of Redis, as a Protocol and its records.

Two implementations keep one contract suite: `eventbus.store.redis_store.RedisStore` and `eventbus.testing.MemoryStore`.

**Fencing.** A session belongs to one connection at a time, and the connection id is its fencing token. Every call that
acts for a live session carries a `Fence`; when the session's field in the live hash names another connection, or is
missing, the call changes nothing and its result is `LOST`. Only `ack` is not fenced: what a client confirmed is
confirmed, whoever says so.

**Batches.** Calls made in one turn of the event loop leave in one write. No call of one user waits for a call of
another, but for the server itself. A cancelled call may or may not have taken effect; it never disturbs another call.

**Errors.** Only errors of `eventbus.errors` come out: `StoreUnavailable` (and `StoreTimeout`, `StoreBusy`) when the
outcome is unknown, `StoreFull`, `StoreMisconfigured`. Everything but `append` may be repeated safely; `append` may be,
because of its event id.
"""

from __future__ import annotations

from typing import Protocol

from eventbus.store.acking import AckRequest, AckStore, Confirmed, ConfirmRequest, EntryFacts, ReleaseReason
from eventbus.store.allowing import AllowStore
from eventbus.store.appending import Append, Appended, AppendStore, Durability
from eventbus.store.attaching import (
    LOST,
    Attach,
    Attached,
    AttachMode,
    AttachRefused,
    AttachStore,
    Beat,
    BeatState,
    Fence,
    GapReason,
    Lost,
    Start,
    StoreGap,
)
from eventbus.store.delivering import (
    DeadLetter,
    DeadOutcome,
    DeliverStore,
    NewRead,
    PendingEntry,
    PendingPage,
    ReadRequest,
    ReadState,
    Redelivery,
    RedeliveryOutcome,
    StoredEntry,
)
from eventbus.store.figures import FigureStore
from eventbus.store.inbound import InboundStore
from eventbus.store.looking import (
    ConfirmationRecord,
    DeadLetterRecord,
    HistoryPage,
    LiveRecord,
    LookStore,
    PendingRecord,
    SessionRecord,
    StoreInfo,
)
from eventbus.store.mending import MendStore
from eventbus.store.nodes import Listener, Listening, NodeRecord, NodeStore
from eventbus.store.revoking import RevokeStore
from eventbus.store.running import Demand, RunStep, RunStore
from eventbus.store.texts import TextStore
from eventbus.store.tickets import Ticket, TicketStore
from eventbus.store.waiting import WaitingStore

__all__ = [
    "LOST",
    "AckRequest",
    "Append",
    "Appended",
    "Attach",
    "AttachMode",
    "AttachRefused",
    "Attached",
    "Beat",
    "BeatState",
    "ConfirmRequest",
    "ConfirmationRecord",
    "Confirmed",
    "DeadLetter",
    "DeadLetterRecord",
    "DeadOutcome",
    "Demand",
    "Durability",
    "EntryFacts",
    "Fence",
    "GapReason",
    "HistoryPage",
    "Listener",
    "Listening",
    "LiveRecord",
    "Lost",
    "NewRead",
    "NodeRecord",
    "PendingEntry",
    "PendingPage",
    "PendingRecord",
    "ReadRequest",
    "ReadState",
    "Redelivery",
    "RedeliveryOutcome",
    "ReleaseReason",
    "RunStep",
    "SessionRecord",
    "Start",
    "StoreGap",
    "StoreInfo",
    "StoredEntry",
    "Store",
    "Ticket",
]


class Store(
    AppendStore,
    AttachStore,
    DeliverStore,
    AckStore,
    TicketStore,
    NodeStore,
    LookStore,
    RunStore,
    TextStore,
    InboundStore,
    FigureStore,
    RevokeStore,
    AllowStore,
    WaitingStore,
    MendStore,
    Protocol,
):
    """Everything the bus and the nodes ask of Redis; each part stands with its records in a module of its own."""

    async def ping(self) -> int:
        """Redis's clock in Unix milliseconds; raises `StoreUnavailable` within the command timeout."""

    async def aclose(self) -> None:
        """Closes all connections; calls under way end with `StoreUnavailable`."""
