"""What a `MemoryStore` holds: the keys of a user and of a partition, with their lives.

Everything here is given `now_ms`. A life that is over is noticed when the state is next looked at, as Redis does.
"""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from eventbus.fields import Level
from eventbus.ids import (
    ENTRY_ZERO,
    ConnectionId,
    EntryId,
    Epoch,
    EventId,
    NodeName,
    RunId,
    SessionId,
    ThreadId,
    UserId,
    entry_order,
)
from eventbus.store import (
    ConfirmationRecord,
    DeadLetterRecord,
    NodeRecord,
    StoreGap,
)
from eventbus.store.inbound import CommandRecord, QuestionRecord
from eventbus.testing.memory_stream import Group, MemoryStream, Order, Pending, entry_id

__all__ = [
    "ZERO",
    "CommandGroup",
    "Inbound",
    "Known",
    "Live",
    "Log",
    "MemoryRun",
    "PartitionState",
    "Seen",
    "UserState",
]

ZERO: Final[Order] = (0, 0)
_LEVELS: Final = frozenset(level.value for level in Level)
_COUNTED_TYPES: Final = 500
T = TypeVar("T")


@dataclass(slots=True)
class Live:
    """A field of the live hash: who holds a session, and when that was last said."""

    node: NodeName
    connection: ConnectionId
    seen_ms: int


@dataclass(slots=True)
class Known:
    """A field of the hash of durable facts."""

    created_ms: int
    seen_ms: int
    cursor: EntryId


@dataclass(slots=True)
class Seen:
    """A node's record and its stamp."""

    record: NodeRecord
    stamp_ms: int


class Log(list[tuple[Order, T]]):
    """A stream of records of which only ids and order matter (dead letters, confirmations)."""

    def record(self, item: T, now_ms: int) -> EntryId:
        """Append a record. Returns its entry id."""
        last = self[-1][0] if self else ZERO
        order = (now_ms, 0) if now_ms > last[0] else (last[0], last[1] + 1)
        self.append((order, item))
        return entry_id(order)

    def forget_before(self, ms: int) -> None:
        """Remove the records made before a time."""
        self[:] = [(order, item) for order, item in self if order[0] >= ms]

    def page(self, after: EntryId, count: int) -> list[tuple[Order, T]]:
        """Records above `after`, oldest first."""
        low = entry_order(after)
        return [(order, item) for order, item in self if order > low][:count]


@dataclass(slots=True)
class MemoryRun:
    """The hash of a run, and what it was after each of its last steps, for a store that is rolled back."""

    fields: dict[str, str] = field(default_factory=dict)
    until_ms: int = 0
    before: deque[tuple[Order, dict[str, str]]] = field(default_factory=lambda: deque(maxlen=256))

    def write(self, fields: dict[str, str], order: Order) -> None:
        """Replace the fields, as of the entry that changed them."""
        self.fields = fields
        self.before.append((order, dict(fields)))

    def roll_back(self, to: Order) -> bool:
        """Be again what it was at an entry. Returns whether it was there then."""
        while self.before and self.before[-1][0] > to:
            self.before.pop()
        if self.before:
            self.fields = dict(self.before[-1][1])
        return bool(self.before)


@dataclass(slots=True)
class PartitionState:
    """What all users of a partition share."""

    epoch: Epoch = field(default_factory=lambda: Epoch(secrets.token_hex(8)))
    buckets: dict[int, dict[tuple[UserId, EventId], EntryId]] = field(default_factory=dict)
    dead: Log[DeadLetterRecord] = field(default_factory=Log)
    counts: Counter[str] = field(default_factory=Counter)
    due: dict[str, int] = field(default_factory=dict)
    operators: Log[Mapping[str, str]] = field(default_factory=Log)

    def count(self, state: str, type: str, count: int = 1) -> None:
        """Count entries of a type that reached a state: `<state>:<type>`; what is too much is `other`."""
        name = f"{state}:{type or 'other'}"
        if name not in self.counts and len(self.counts) >= _COUNTED_TYPES:
            name = f"{state}:other"
        if count:
            self.counts[name] += count

    def first_entry(self, user: UserId, event: EventId, bucket: int) -> EntryId | None:
        """Where a known event is stored; the two newest buckets count."""
        for number in [old for old in self.buckets if old < bucket - 1]:
            del self.buckets[number]
        for number in (bucket, bucket - 1):
            if entry := self.buckets.get(number, {}).get((user, event)):
                return entry
        return None

    def forget_entries(self, user: UserId, above: Order) -> None:
        """Let go of the events of a user that are stored above an id."""
        for bucket in self.buckets.values():
            for key in [key for key, entry in bucket.items() if key[0] == user and entry_order(entry) > above]:
                del bucket[key]

    def remember(self, user: UserId, event: EventId, bucket: int, entry: EntryId) -> None:
        """Note where an event is stored."""
        self.buckets.setdefault(bucket, {})[user, event] = entry


@dataclass(slots=True)
class CommandGroup:
    """A consumer group of a user's commands."""

    position: Order = ZERO
    pending: dict[Order, Pending] = field(default_factory=dict)

    def has_acked(self, order: Order) -> bool:
        """Whether a command was read and is not pending."""
        return order <= self.position and order not in self.pending


@dataclass(slots=True)
class Inbound:
    """What a user sent to agents, and what agents asked, with the options."""

    commands: Log[CommandRecord] = field(default_factory=Log)
    last: Order = ZERO
    groups: dict[str, CommandGroup] = field(default_factory=dict)
    questions: dict[tuple[RunId, str], tuple[QuestionRecord, tuple[str, ...]]] = field(default_factory=dict)

    def record(self, command: CommandRecord, now_ms: int) -> EntryId:
        """Append a command, above all ids that there ever were. Returns its id."""
        self.last = (now_ms, 0) if now_ms > self.last[0] else (self.last[0], self.last[1] + 1)
        self.commands.append((self.last, command))
        return entry_id(self.last)

    def at(self, order: Order) -> CommandRecord | None:
        """A command by its id."""
        return next((command for known, command in self.commands if known == order), None)

    def forget_handled(self) -> None:
        """Let go of what everybody whom it is for has acked."""
        inboxes = [group for name, group in self.groups.items() if name.startswith("inbox:")]

        def is_handled(order: Order, command: CommandRecord) -> bool:
            if command.run is None:
                return bool(inboxes) and all(group.has_acked(order) for group in inboxes)
            group = self.groups.get(f"run:{command.run}")
            return group is not None and group.has_acked(order)

        self.commands[:] = [(order, command) for order, command in self.commands if not is_handled(order, command)]


@dataclass(slots=True)
class UserState:
    """The keys of one user.

    Attributes:
        hole: the id up to which entries are gone that a session had not read; None once all are past it.
        told: of how many trimmed entries which connection was told by its attach.
        released: `deliver: any` events that a session has acked.
        noted: gaps of which a session's client may not have heard, each with the id behind it: who handled that has.
    """

    stream: MemoryStream | None = None
    stream_until_ms: int = 0
    hole: Order | None = None
    told: dict[SessionId, tuple[ConnectionId, int]] = field(default_factory=dict)
    live: dict[SessionId, Live] = field(default_factory=dict)
    known: dict[SessionId, Known] = field(default_factory=dict)
    confirmations: Log[ConfirmationRecord] = field(default_factory=Log)
    released: set[EntryId] = field(default_factory=set)
    released_until_ms: int = 0
    noted: dict[SessionId, list[tuple[StoreGap, Order]]] = field(default_factory=dict)
    partition: PartitionState = field(default_factory=PartitionState)
    threads: dict[ThreadId, int] = field(default_factory=dict)
    runs: dict[RunId, MemoryRun] = field(default_factory=dict)
    inbound: Inbound = field(default_factory=Inbound)

    def expire(self, now_ms: int, live_ttl_ms: int) -> None:
        """Let go of what is too old: the stream and live fields."""
        if self.stream is not None and now_ms >= self.stream_until_ms:
            self.stream = None
        if now_ms >= self.released_until_ms:
            self.released.clear()
        for session, live in list(self.live.items()):
            if now_ms - live.seen_ms >= live_ttl_ms:
                del self.live[session]

    def is_over(self, session: SessionId, now_ms: int, session_ttl_ms: int) -> bool:
        """Whether a session has been away for longer than its life."""
        return session not in self.live and now_ms - self.known[session].seen_ms >= session_ttl_ms

    def end_old(self, now_ms: int, session_ttl_ms: int, spare: SessionId | None = None) -> None:
        """End the sessions whose time is over, with their groups (D16), but for one that comes back."""
        for session in [session for session in self.known if self.is_over(session, now_ms, session_ttl_ms)]:
            if session != spare:
                self.destroy(session, now_ms)

    def renew(self, session: SessionId, node: NodeName, connection: ConnectionId, now_ms: int) -> Known:
        """Write down that a connection on a node holds a session. Returns its durable facts."""
        self.live[session] = Live(node, connection, now_ms)
        group = self.group(session)
        position = entry_id(group.position) if group is not None else ENTRY_ZERO
        known = self.known.setdefault(session, Known(now_ms, now_ms, position))
        known.seen_ms = now_ms
        return known

    def is_past_hole(self) -> bool:
        """Whether every live session has read on behind the hole."""
        groups = [group for session in self.live if (group := self.group(session)) is not None]
        return self.hole is None or all(group.position >= self.hole for group in groups)

    def opened_stream(self) -> MemoryStream:
        """The stream, made when there is none."""
        if self.stream is None:
            self.stream = MemoryStream()
        return self.stream

    def group(self, session: SessionId) -> Group | None:
        """A session's group, None when it is not there."""
        return self.stream.groups.get(session) if self.stream is not None else None

    def record(
        self, session: SessionId, level: str, entries: list[EntryId], now_ms: int, note: str | None = None
    ) -> None:
        """Note what a session did with some entries."""
        if entries:
            self.confirmations.record(
                ConfirmationRecord(session=session, level=level, time_ms=now_ms, entries=tuple(entries), note=note),
                now_ms,
            )

    def reached(self, session: SessionId) -> dict[EntryId, Level]:
        """How far a session has confirmed the entries of which that is on record."""
        found: dict[EntryId, Level] = {}
        for _, record in self.confirmations:
            if record.session == session and record.level in _LEVELS:
                level = Level(record.level)
                for entry in record.entries:
                    if entry not in found or found[entry].rank < level.rank:
                        found[entry] = level
        return found

    def destroy(self, session: SessionId, now_ms: int) -> int:
        """End a session; its pending entries are recorded as expired. Returns how many those were."""
        self.live.pop(session, None)
        self.told.pop(session, None)
        self.known.pop(session, None)
        group = self.stream.groups.pop(session, None) if self.stream is not None else None
        waiting = [entry_id(order) for order in group.pending_after()] if group is not None else []
        self.record(session, "expired", waiting, now_ms)
        self.partition.count("expired", "", len(waiting))
        return len(waiting)

    def note_gap(self, session: SessionId, gap: StoreGap, stream: MemoryStream) -> None:
        """Keep a gap that is being told until the session's client must have heard of it."""
        upto = entry_order(gap.before) if gap.before is not None else stream.last
        self.noted.setdefault(session, []).append((gap, upto))

    def make_room(self, known_limit: int, now_ms: int) -> None:
        """End the sessions longest unseen until one more fits; those that are live stay."""
        away = sorted(
            (session for session in self.known if session not in self.live),
            key=lambda session: self.known[session].seen_ms,
        )
        for session in away[: max(0, len(self.known) + 1 - known_limit)]:
            self.destroy(session, now_ms)
