"""What became of an event, and what was given up: the half of `eventbus.inspection` that looks back.

Everything is bounded and paged, and nothing writes. Source: docs/cli.md.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from eventbus.confirmation import Confirmation, Standing
from eventbus.errors import InvalidEvent, InvalidField
from eventbus.event import Deliver, peek
from eventbus.ids import (
    ENTRY_ZERO,
    EntryId,
    EventId,
    NodeName,
    SessionId,
    UserId,
    entry_order,
    event_id_time_ms,
    parse_entry_id,
)
from eventbus.inspection.verdicts import SessionFate, WaitingState, fate_of, release_unread
from eventbus.store import ConfirmationRecord, DeadLetterRecord, PendingRecord, Store, StoredEntry

__all__ = [
    "DeadRow",
    "DeadRows",
    "EventReport",
    "confirmations_of",
    "confirmations_of_entry",
    "dead_letter",
    "dead_letters",
    "entry_or_none",
    "fate",
    "parse_dead_id",
    "partition_of",
    "records_of",
    "state_of_entry",
]

_DEAD_PAGE: Final = 10
_PAGE: Final = 500
_SCANNED_MAX: Final = 20_000
_CLOCKS_APART_MS: Final = 300_000
"""How much earlier than the time in its id an event may be stored: nodes take clocks that are 5 minutes ahead."""
_SEQUENCE_MAX: Final = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadRow:
    """A dead letter; its `id` is `<partition>:<id>`, for ids of partitions are not unique among them."""

    id: str
    user: UserId
    session: SessionId
    entry: EntryId
    event: EventId
    type: str
    reason: str
    deliveries: int
    node: NodeName
    time_ms: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadRows:
    """A page of dead letters, oldest first; `cursor` goes on after it, and is empty after the last."""

    rows: Sequence[DeadRow]
    cursor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventReport:
    """What became of an event.

    Attributes:
        event: its id; empty when only the entry id is left of it.
        stored: whether it is still in the stream.
        type: its type; empty when it is not known any more.
        body: its envelope; empty when it is not known any more.
        fates: one for each session that the user has, or that did something with it.
    """

    user: UserId
    event: EventId
    entry: EntryId
    stored: bool
    type: str
    body: bytes
    fates: Sequence[SessionFate]


def state_of_entry(entry: StoredEntry | None, now_ms: int) -> WaitingState:
    """Whether an entry is still stored and not past its time."""
    if entry is None:
        return WaitingState.TRIMMED
    try:
        expires_ms = peek(entry.body).expires_ms
    except InvalidEvent:  # somebody else wrote into the stream; the node dead-letters it
        return WaitingState.DELIVERABLE
    return WaitingState.EXPIRED if expires_ms is not None and expires_ms <= now_ms else WaitingState.DELIVERABLE


# --- dead letters -----------------------------------------------------------------------------------------------------


def parse_dead_id(text: str, field: str = "id") -> tuple[int, EntryId]:
    """The partition and the id within it of a dead letter's id `<partition>:<id>`. Raises: InvalidField."""
    number, colon, entry = text.partition(":")
    if not colon or not number.isascii() or not number.isdigit() or len(number) > 6:
        raise InvalidField(field, f"{text[:40]!r} is no id of a dead letter, such as 417:1732190000000-0")
    return int(number), parse_entry_id(entry, field)


async def dead_letter(store: Store, id: str) -> DeadRow | None:
    """One dead letter by its id; None when there is none (any more). Raises: InvalidField."""
    partition, entry = parse_dead_id(id)
    for record in await store.dead_letters(partition, _before(entry), 1):
        if record.id == entry:
            return _dead(record)
    return None


async def dead_letters(
    store: Store,
    *,
    partitions: int,
    user: UserId | None = None,
    since_ms: int = 0,
    cursor: str = "",
    limit: int = 100,
) -> DeadRows:
    """Dead letters, oldest first.

    Args:
        store: where they are.
        partitions: of the installation.
        user: only this user's.
        since_ms: only those given up at or after this time, Unix milliseconds.
        cursor: where the page before ended; empty for the first.
        limit: how many at most.

    Raises:
        InvalidField: the cursor is none.
    """
    after = parse_dead_id(cursor, "cursor") if cursor else None
    since = _before(EntryId(f"{since_ms}-0"))
    numbers = [partition_of(user, partitions)] if user else await store.dead_letter_partitions()
    lines = [_DeadLine(store, number, _start(number, since, after), user) for number in numbers]
    await asyncio.gather(*(line.load() for line in lines))
    heads = [(line.order, number) for number, line in enumerate(lines) if line.rows]
    heapq.heapify(heads)
    rows: list[DeadRow] = []
    while heads and len(rows) < limit:
        _, number = heapq.heappop(heads)
        line = lines[number]
        rows.append(_dead(line.rows.pop(0)))
        if not line.rows:
            await line.load()
        if line.rows:
            heapq.heappush(heads, (line.order, number))
    return DeadRows(rows=rows, cursor=rows[-1].id if heads and rows else "")


class _DeadLine:
    """The dead letters of a partition, read a small page at a time: all partitions are read side by side."""

    def __init__(self, store: Store, partition: int, after: EntryId, user: UserId | None) -> None:
        self._store = store
        self._partition = partition
        self._after = after
        self._user = user
        self.rows: list[DeadLetterRecord] = []

    @property
    def order(self) -> tuple[tuple[int, int], int]:
        """Where the line's first letter stands among those of all lines."""
        return entry_order(self.rows[0].id), self._partition

    async def load(self) -> None:
        """The next page that holds anything."""
        count = _DEAD_PAGE if self._user is None else _PAGE
        while not self.rows:
            page = await self._store.dead_letters(self._partition, self._after, count)
            if not page:
                return
            self._after = page[-1].id
            self.rows = [record for record in page if self._user in (None, record.user)]


def _start(partition: int, since: EntryId, after: tuple[int, EntryId] | None) -> EntryId:
    """Where a partition goes on after a page that ended with `after`: the order is that of (id, partition)."""
    if after is None:
        return since
    resumed = after[1] if partition <= after[0] else _before(after[1])
    return max(since, resumed, key=entry_order)


def _dead(record: DeadLetterRecord) -> DeadRow:
    return DeadRow(
        id=f"{record.partition}:{record.id}",
        user=record.user,
        session=record.session,
        entry=record.entry,
        event=record.event,
        type=record.type,
        reason=record.reason,
        deliveries=record.attempts,
        node=record.node,
        time_ms=record.time_ms,
        body=record.body,
    )


# --- what became of an event ------------------------------------------------------------------------------------------


async def fate(
    store: Store, user: UserId, event_or_entry: str, *, partitions: int, records_kept: bool = True
) -> EventReport | None:
    """What became of an event for each session of its user; None when nothing knows of it (any more).

    An event id is found by the time in it (UUIDv7), and by a scan of the whole stream when it has none or lies: at most
    20,000 entries are looked at.

    Args:
        store: where it is.
        user: whose event it is.
        event_or_entry: its event id, or its entry id.
        partitions: of the installation.
        records_kept: whether acks are recorded (`EVENTBUS_CONFIRMATION_RECORDS`).
    """
    partition = partition_of(user, partitions)
    found = await _find(store, user, event_or_entry)
    dead: Sequence[DeadLetterRecord]
    if found is not None:
        entry = found.id
        dead = await _dead_of(store, partition, user, entry_order(entry)[0], lambda letter: letter.entry == entry)
    else:
        dead = await _dead_of(store, partition, user, 0, lambda letter: event_or_entry in (letter.event, letter.entry))
        gone = dead[0].entry if dead else entry_or_none(event_or_entry)
        if gone is None:
            return None
        entry = gone
        dead = [letter for letter in dead if letter.entry == entry]
    records = await records_of(store, user, entry)
    known = {record.session: record for record in await store.sessions(user)}
    names = sorted({*known, *records, *(letter.session for letter in dead)})
    pending = dict(
        zip(names, await asyncio.gather(*(_pending_of(store, user, name, entry) for name in names)), strict=True)
    )
    if found is None and not records and not dead and not any(pending.values()):
        return None
    body = found.body if found is not None else next((letter.body for letter in dead if letter.body), b"")
    event, kind = _head(body, dead)
    letters = {letter.session: letter for letter in dead}
    waiting = state_of_entry(found, await store.ping())
    fates = [
        fate_of(
            entry,
            session=name,
            known=known.get(name),
            pending=pending[name],
            records=records.get(name, ()),
            dead=letters.get(name),
            waiting=waiting,
            records_kept=records_kept,
        )
        for name in names
    ]
    return EventReport(
        user=user,
        event=event,
        entry=entry,
        stored=found is not None,
        type=kind,
        body=body,
        fates=release_unread(fates) if _is_shared(body) else fates,
    )


async def confirmations_of(store: Store, user: UserId, event_or_entry: str) -> list[Confirmation] | None:
    """Which sessions confirmed an event, how far and when, oldest first; None when it is not stored (any more).

    Args:
        store: where it is.
        user: whose event it is.
        event_or_entry: its event id, or its entry id.
    """
    found = await _find(store, user, event_or_entry)
    return None if found is None else await confirmations_of_entry(store, user, found.id)


async def confirmations_of_entry(store: Store, user: UserId, entry: EntryId) -> list[Confirmation]:
    """As `confirmations_of`, of an entry that is known, also when it is not stored any more."""
    standing = Standing(entry)
    for records in (await records_of(store, user, entry)).values():
        for record in records:
            standing.add(record)
    return standing.all()


async def _find(store: Store, user: UserId, wanted: str) -> StoredEntry | None:
    entry = entry_or_none(wanted)
    if entry is not None and (stored := await store.entry(user, entry)) is not None:
        return stored
    made_ms = event_id_time_ms(EventId(wanted))
    start_ms = max(0, made_ms - _CLOCKS_APART_MS) if made_ms is not None else 0
    return await _scan(store, user, wanted, start_ms) or (await _scan(store, user, wanted, 0) if start_ms else None)


async def _scan(store: Store, user: UserId, wanted: str, start_ms: int) -> StoredEntry | None:
    after, needle = _before(EntryId(f"{start_ms}-0")), wanted.encode()
    for _ in range(0, _SCANNED_MAX, _PAGE):
        page = await store.history(user, after, _PAGE)
        for entry in page.entries:
            # Most bodies do not hold the id at all; the rest is decoded, for it may be quoted in the data of others.
            if needle in entry.body and _head(entry.body, ())[0] == wanted:
                return entry
        if not page.more or not page.entries:
            return None
        after = page.entries[-1].id
    return None


async def _dead_of(
    store: Store, partition: int, user: UserId, since_ms: int, wanted: Callable[[DeadLetterRecord], bool]
) -> list[DeadLetterRecord]:
    after, found = _before(EntryId(f"{since_ms}-0")), list[DeadLetterRecord]()
    for _ in range(0, _SCANNED_MAX, _PAGE):
        page = await store.dead_letters(partition, after, _PAGE)
        found += [letter for letter in page if letter.user == user and wanted(letter)]
        if len(page) < _PAGE:
            break
        after = page[-1].id
    return found


async def records_of(store: Store, user: UserId, entry: EntryId) -> dict[SessionId, list[ConfirmationRecord]]:
    """What sessions did with an entry. A record is written after its entry, by the same clock."""
    after, found = _before(EntryId(f"{entry_order(entry)[0]}-0")), dict[SessionId, list[ConfirmationRecord]]()
    for _ in range(0, _SCANNED_MAX, _PAGE):
        page = await store.confirmations(user, after, _PAGE)
        for _, record in page:
            if entry in record.entries:
                found.setdefault(record.session, []).append(record)
        if len(page) < _PAGE:
            break
        after = page[-1][0]
    return found


async def _pending_of(store: Store, user: UserId, session: SessionId, entry: EntryId) -> PendingRecord | None:
    page = await store.pending(user, session, _before(entry), 1)
    return page[0] if page and page[0].id == entry else None


def _head(body: bytes, dead: Sequence[DeadLetterRecord]) -> tuple[EventId, str]:
    """The event id and the type in an envelope, or else those that a dead letter kept."""
    try:
        head = peek(body)
    except InvalidEvent:
        return (dead[0].event, dead[0].type) if dead else (EventId(""), "")
    return EventId(head.id), head.type


def _is_shared(body: bytes) -> bool:
    """Whether an envelope is `deliver: any`."""
    try:
        return peek(body).deliver is Deliver.ANY
    except InvalidEvent:
        return False


def entry_or_none(text: str) -> EntryId | None:
    """An entry id, None when it is none."""
    try:
        return parse_entry_id(text)
    except InvalidField:
        return None


def _before(entry: EntryId) -> EntryId:
    """The greatest id below an entry's, `0-0` at the least: the Store reads what is after an id."""
    ms, sequence = entry_order(entry)
    if sequence:
        return EntryId(f"{ms}-{sequence - 1}")
    return EntryId(f"{ms - 1}-{_SEQUENCE_MAX}") if ms else ENTRY_ZERO


def partition_of(user: UserId, partitions: int) -> int:
    """The partition of a user."""
    return crc32(user.encode()) % partitions
