"""Who has something waiting, found by the store's index: those for whom it waits longest first.

Where many users are live, the index is late by a heartbeat of a session. It may name a user for whom nothing waits
any more, who is passed over and set right. Source: docs/cli.md, `eventbus.store.waiting`.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from eventbus.errors import InvalidField, StoreError
from eventbus.ids import ENTRY_ZERO, EntryId, NodeName, SessionId, UserId, entry_order
from eventbus.inspection.lookup import state_of_entry
from eventbus.inspection.verdicts import Timing, Verdict, Waiting, WaitingState, state_of, verdict_of
from eventbus.store import NodeRecord, PendingRecord, SessionRecord, Store
from eventbus.store.waiting import SILENT_MS, WaitingMark, WaitingUser

__all__ = [
    "COUNTED_MAX",
    "PendingRow",
    "PendingRows",
    "Unread",
    "parse_pending_cursor",
    "pending_of_user",
    "pending_of_users",
    "reindex",
    "unread_of",
]

COUNTED_MAX: Final = 1_000
"""Unread entries of a session are counted up to here; a session with more shows this number."""

_SENT_PAGE: Final = 256
_LOOKED_AT: Final = 64
"""Pending entries of a session that are looked at to see whether they expired or were trimmed."""
_USERS_AT_ONCE: Final = 32
_INDEX_PAGE: Final = 8
"""Users of a partition that are read at a time: all partitions are read side by side."""
_SILENT_PAGE: Final = 64
_FEW_USERS: Final = 1_000
_SILENT_ROUNDS: Final = 16

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingRow:
    """A session that has something waiting.

    Attributes:
        pending: how many entries wait for its ack, sent or not read yet.
        unread: those of them that it has not read, up to `COUNTED_MAX`.
        oldest_ms: how long the oldest has been stored, in milliseconds.
        deliveries: the highest delivery count among them; 0 when none was sent.
        node: where the session is live, or was when its node fell silent.
    """

    user: UserId
    session: SessionId
    pending: int
    unread: int
    oldest_ms: int
    deliveries: int
    node: NodeName | None
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingRows:
    """A page of them, from `users` users; `cursor` goes on after it, and is empty after the last."""

    rows: Sequence[PendingRow]
    users: int
    cursor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """What lies after a position, without the bodies; `count` is at most `COUNTED_MAX`."""

    count: int = 0
    oldest: EntryId = ENTRY_ZERO
    states: frozenset[WaitingState] = frozenset()


_ALL_READ: Final = Unread()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Nodes:
    """The nodes that tell of themselves: their times, for the operator's settings may be others, and how they are."""

    timings: Mapping[NodeName, Timing]
    not_ready: frozenset[NodeName]
    timing: Timing

    @classmethod
    async def look(cls, store: Store, timing: Timing) -> _Nodes:
        records: Sequence[NodeRecord] = await store.nodes()
        names = ("ack_timeout_ms", "max_wait_ms")
        return cls(
            timings={
                one.node: replace(timing, **{name: one.figures[name] for name in names if name in one.figures})
                for one in records
            },
            not_ready=frozenset(one.node for one in records if one.state == "not_ready"),
            timing=timing,
        )


async def pending_of_user(store: Store, user: UserId, timing: Timing) -> list[PendingRow]:
    """The sessions of a user that have something waiting, by name. `timing` is of nodes that do not tell theirs."""
    return await _waiting_of(store, user, await _Nodes.look(store, timing))


async def pending_of_users(
    store: Store, timing: Timing, *, partitions: int, cursor: str = "", count: int = 100
) -> PendingRows:
    """One page of the sessions of all users that have something waiting, users for whom it waits longest first.

    Args:
        store: where they are.
        timing: of nodes that do not tell theirs.
        partitions: of the installation.
        cursor: where the page before ended; empty for the first.
        count: how many users to look at.

    Raises:
        InvalidField: the cursor is none.
    """
    after = parse_pending_cursor(cursor) if cursor else None
    nodes = await _Nodes.look(store, timing)
    if after is None:
        await _settle_silent(store, partitions)
    lines = [_Line(_start(number, after)) for number in range(partitions)]
    await _load(store, lines)
    heads = [(line.order, number) for number, line in enumerate(lines) if line.users]
    heapq.heapify(heads)
    found: list[UserId] = []
    last: WaitingMark | None = None
    while heads and len(found) < count:
        order, number = heapq.heappop(heads)
        line, last = lines[number], order
        found.append(line.users.pop(0).user)
        if not line.users and not line.ended:
            await _load(store, [line])
        if line.users:
            heapq.heappush(heads, (line.order, number))
    rows: list[PendingRow] = []
    over: list[UserId] = []
    for start in range(0, len(found), _USERS_AT_ONCE):
        some = found[start : start + _USERS_AT_ONCE]
        answers = await asyncio.gather(*(_waiting_of(store, user, nodes) for user in some))
        for user, of_user in zip(some, answers, strict=True):
            rows += of_user
            over += [] if of_user else [user]
    _raised(await store.recheck_waiting(over))
    following = "" if last is None or not heads else f"{last.since_ms}:{last.partition}:{last.user}"
    return PendingRows(rows=rows, users=len(found), cursor=following)


async def reindex(store: Store, *, page: int = 200) -> AsyncIterator[int]:
    """Looks at every user and sets the index right: after an upgrade from a version without one. Yields how many users
    were looked at so far.
    """
    cursor, looked = "", 0
    while True:
        users, cursor = await store.users(cursor, page)
        _raised(await store.recheck_waiting(list(dict.fromkeys(users))))
        looked += len(users)
        yield looked
        if not cursor:
            return


async def _settle_silent(store: Store, partitions: int) -> None:
    """Live users of whom the index says that nothing waits: all of them where they are few, so that nothing is late;
    else those whose node has said nothing for a while. Bounded; the rest waits for the next look.
    """
    figures = _raised(await store.partition_figures(range(partitions)))
    silent_ms = SILENT_MS if sum(one.live_users for one in figures) > _FEW_USERS else 0
    left: Sequence[int] = [one.partition for one in figures if one.live_users]
    for _ in range(_SILENT_ROUNDS if silent_ms else 1):
        pages = _raised(await store.silent_users(left, silent_ms, _SILENT_PAGE if silent_ms else _FEW_USERS))
        _raised(await store.recheck_waiting([user for page in pages for user in page]))
        left = [number for number, page in zip(left, pages, strict=True) if len(page) == _SILENT_PAGE]
        if not left:
            return


# --- the index, partition by partition --------------------------------------------------------------------------------


class _Line:
    """The users of a partition, read a small page at a time."""

    __slots__ = ("ended", "mark", "users")

    def __init__(self, mark: WaitingMark) -> None:
        self.mark = mark
        self.users: list[WaitingUser] = []
        self.ended = False

    @property
    def order(self) -> WaitingMark:
        """Where the line's first user stands among those of all lines."""
        first = self.users[0]
        return WaitingMark(since_ms=first.since_ms, partition=self.mark.partition, user=first.user)

    def take(self, page: Sequence[WaitingUser]) -> None:
        """The next page came."""
        self.ended = not page
        self.users = list(page)
        if page:
            self.mark = replace(self.mark, since_ms=page[-1].since_ms, user=page[-1].user)


async def _load(store: Store, lines: Sequence[_Line]) -> None:
    pages = _raised(await store.waiting_users([line.mark for line in lines], _INDEX_PAGE))
    for line, page in zip(lines, pages, strict=True):
        line.take(page)


def _start(partition: int, after: WaitingMark | None) -> WaitingMark:
    """Where a partition goes on behind a mark of any: the order is that of (since, partition, user)."""
    if after is None:
        return WaitingMark(since_ms=1, partition=partition)
    if partition == after.partition:
        return after
    return WaitingMark(since_ms=after.since_ms + (partition < after.partition), partition=partition)


def parse_pending_cursor(text: str) -> WaitingMark:
    """Where a page of `pending_of_users` ended. Raises: InvalidField."""
    since, _, rest = text.partition(":")
    number, _, user = rest.partition(":")
    if not all(part.isascii() and part.isdigit() and len(part) < 16 for part in (since, number)) or not user:
        raise InvalidField("cursor", f"{text[:40]!r} is none that a page before ended with")
    return WaitingMark(since_ms=int(since), partition=int(number), user=user)


def _raised(answers: Sequence[T | StoreError]) -> list[T]:
    """Raises: StoreError: the first among them."""
    found: list[T] = []
    for answer in answers:
        if isinstance(answer, StoreError):
            raise answer
        found.append(answer)
    return found


# --- one user ---------------------------------------------------------------------------------------------------------


async def _waiting_of(store: Store, user: UserId, nodes: _Nodes) -> list[PendingRow]:
    records = [record for record in await store.sessions(user) if record.pending or record.unread]
    if not records:
        return []
    pages = await asyncio.gather(*(store.pending(user, one.session, ENTRY_ZERO, _SENT_PAGE) for one in records))
    # Read last: an idle time that was measured after `now_ms` would make a time-out look like a nack.
    now_ms = await store.ping()
    rows = []
    for record, sent, unread in zip(records, pages, await unread_of(store, records, now_ms), strict=True):
        if sent or unread.count:  # else it was acked while we looked
            deliverable = await _deliverable(store, user, sent, unread, now_ms)
            rows.append(_row(record, nodes, now_ms, sent, unread, deliverable))
    return rows


# One argument for each thing that was looked up for it.
def _row(
    record: SessionRecord,
    nodes: _Nodes,
    now_ms: int,
    sent: Sequence[PendingRecord],
    unread: Unread,
    deliverable: WaitingState,
) -> PendingRow:
    unread_ms = _age_ms(unread.oldest, now_ms) if unread.count else 0
    waiting = Waiting(
        state=state_of(record, nodes.timings),
        sent=sent,
        unread=unread.count,
        oldest_unread_ms=unread_ms,
        deliverable=deliverable,
        node_ready=record.live is None or record.live.node not in nodes.not_ready,
    )
    timing = nodes.timing if record.live is None else nodes.timings.get(record.live.node, nodes.timing)
    return PendingRow(
        user=record.user,
        session=record.session,
        pending=(record.pending if len(sent) == _SENT_PAGE else len(sent)) + unread.count,
        unread=unread.count,
        oldest_ms=max(unread_ms, _age_ms(sent[0].id, now_ms) if sent else 0),
        deliveries=max((one.attempts for one in sent), default=0),
        node=None if record.live is None else record.live.node,
        verdict=verdict_of(waiting, now_ms, timing),
    )


def _age_ms(entry: EntryId, now_ms: int) -> int:
    return max(0, now_ms - entry_order(entry)[0])


async def unread_of(store: Store, records: Sequence[SessionRecord], now_ms: int) -> list[Unread]:
    """What each session of one user has not read; sessions at the same place share the look."""
    seen: dict[EntryId, Unread] = {}
    for record in records:
        if record.unread and record.position not in seen:
            page = await store.history(record.user, record.position, COUNTED_MAX)
            seen[record.position] = Unread(
                count=len(page.entries),
                oldest=page.entries[0].id if page.entries else ENTRY_ZERO,
                states=frozenset(state_of_entry(entry, now_ms) for entry in page.entries),
            )
    return [seen[record.position] if record.unread else _ALL_READ for record in records]


async def _deliverable(
    store: Store, user: UserId, sent: Sequence[PendingRecord], unread: Unread, now_ms: int
) -> WaitingState:
    """Whether any of it can still be delivered. With more than is looked at, it is taken to be so."""
    beyond = len(sent) > _LOOKED_AT or unread.count >= COUNTED_MAX
    if beyond or WaitingState.DELIVERABLE in unread.states:
        return WaitingState.DELIVERABLE
    stored = await asyncio.gather(*(store.entry(user, one.id) for one in sent))
    states = {state_of_entry(entry, now_ms) for entry in stored} | unread.states
    if WaitingState.DELIVERABLE in states:
        return WaitingState.DELIVERABLE
    return WaitingState.TRIMMED if WaitingState.TRIMMED in states else WaitingState.EXPIRED
