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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Final, Literal, NamedTuple, Protocol

from eventbus.errors import StoreError
from eventbus.fields import Level
from eventbus.ids import ConnectionId, EntryId, Epoch, EventId, NodeName, RunId, SessionId, ThreadId, UserId
from eventbus.record import record
from eventbus.store.allowing import AllowStore
from eventbus.store.figures import FigureStore
from eventbus.store.inbound import InboundStore
from eventbus.store.mending import MendStore, Order
from eventbus.store.revoking import RevokeStore
from eventbus.store.running import Demand, RunStep, RunStore
from eventbus.store.texts import TextStore
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


class _Lost(Enum):
    LOST = "lost"

    def __repr__(self) -> str:
        return "LOST"


LOST: Final = _Lost.LOST
"""The result of a fenced call whose session belongs to another connection now, or to none."""

Lost = Literal[_Lost.LOST]


class Durability(StrEnum):
    """What a returned publish promises."""

    MEMORY = "memory"
    REPLICATED = "replicated"
    FSYNC = "fsync"


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


class ReleaseReason(StrEnum):
    """Why a node itself takes an entry off a session's pending entries; never a confirmation."""

    FILTERED = "filtered"
    EXPIRED = "expired"
    TRIMMED = "trimmed"
    RELEASED = "released"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """Where an event is stored.

    Attributes:
        entry: its entry id; of the first publish when `duplicate`.
        duplicate: the event id was known within the dedupe window, nothing was stored again.
        primary: the `run_id` of the server that answered: another one than before means a restart or a failover.
        woken: how many nodes were told.
    """

    entry: EntryId
    duplicate: bool
    primary: str
    woken: int = 0


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
class Ticket:
    """What a single-use ticket stands for: the claims of the token that made it, as an opaque JSON text."""

    ticket: str
    claims: str
    life_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """A node as it tells of itself; `figures` are whole numbers by name (connections, sessions, ...)."""

    node: NodeName
    address: str
    version: str
    state: str
    started_ms: int
    figures: Mapping[str, int]


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
    values of INFO, absent ones left out.
    """

    kind: str
    version: str
    primary: str
    time_ms: int
    memory_bytes: int
    replicas: int
    settings: Mapping[str, str]
    facts: Mapping[str, str] = field(default_factory=dict)


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


class Store(RunStore, TextStore, InboundStore, FigureStore, RevokeStore, AllowStore, WaitingStore, MendStore, Protocol):
    """Everything the bus and the nodes ask of Redis."""

    async def append(
        self, events: Sequence[Append], durability: Durability = Durability.MEMORY
    ) -> Sequence[Appended | StoreError]:
        """Stores events, in the order given for each user; a known event id is answered with its first entry id.

        Returns one result for each event, in order: an `Appended`, or the error of that event alone (`StreamFull`,
        `StoreFull`, `NotReplicated`, `StoreUnavailable`, ...). Once an event of a user failed with an unknown outcome,
        the later ones of that user in the batch are still tried: the caller keeps the order (D6).
        Redis: EVALSHA append.lua, WAIT.
        """

    async def attach(self, request: Attach) -> Attached | AttachRefused:
        """Opens, resumes, takes over or renews a session in one script. Redis: EVALSHA attach.lua."""

    async def read_pending(self, fence: Fence, after: EntryId, count: int) -> PendingPage | Lost:
        """A page of pending entries after `after`; neither their delivery counts nor their idle times change (D8).

        Redis: XPENDING and XRANGE in a script.
        """

    async def read_new(self, requests: Sequence[ReadRequest]) -> Sequence[NewRead | StoreError]:
        """What is new for each session, one result for each request in order; one script call a user (D2). Redis:
        XREADGROUP.
        """

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

    async def redeliver(self, fence: Fence, entries: Sequence[Redelivery]) -> Sequence[RedeliveryOutcome] | Lost:
        """Counts an attempt for each entry before it is sent again (D11). Redis: XPENDING, XCLAIM JUSTID RETRYCOUNT."""

    async def dead_letter(self, fence: Fence, letter: DeadLetter) -> DeadOutcome | Lost:
        """Gives an entry up for a session: XACK, and only if that released it, XADD to the dead letters (D21)."""

    async def heartbeat(self, fences: Sequence[Fence], node: NodeName) -> Sequence[Beat | StoreError]:
        """Renews sessions and the life of their users' keys, and says what the sweep wants to know; one script call a
        user.
        """

    async def detach(self, fence: Fence, cursor: EntryId) -> bool | Lost:
        """The session goes away and keeps its place."""

    async def end_session(self, user: UserId, session: SessionId) -> int:
        """Destroys a session: its pending entries are recorded as expired. Returns how many those were."""

    async def tail(self, user: UserId) -> tuple[EntryId, Epoch]:
        """The id of the newest entry ever of the user's stream (`0-0` when there was none) and the epoch of its
        partition.
        """

    async def history(self, user: UserId, after: EntryId, count: int) -> HistoryPage:
        """Retained entries after `after` (exclusive), oldest first."""

    async def put_ticket(self, ticket: Ticket) -> None:
        """Keeps a ticket for its life."""

    async def take_ticket(self, ticket: str) -> str | None:
        """Burns a ticket; returns its claims the first time, None ever after. Redis: GETDEL."""

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

    async def ping(self) -> int:
        """Redis's clock in Unix milliseconds; raises `StoreUnavailable` within the command timeout."""

    async def aclose(self) -> None:
        """Closes all connections; calls under way end with `StoreUnavailable`."""
