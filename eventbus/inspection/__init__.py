"""What operators ask: who waits for what and why, what became of an event, what was given up.

Asynchronous functions over a `Store` that return frozen records. The decisions are in `eventbus.inspection.verdicts`,
what looks back is in `eventbus.inspection.lookup`. Everything is bounded and paged, nothing writes, and the clock is
Redis's.

Source: docs/cli.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from eventbus.ids import ENTRY_ZERO, EntryId, NodeName, SessionId, UserId, entry_order
from eventbus.inspection.lookup import (
    DeadRow,
    DeadRows,
    EventReport,
    dead_letter,
    dead_letters,
    fate,
    parse_dead_id,
    state_of_entry,
)
from eventbus.inspection.verdicts import (
    EXPLANATIONS,
    Fate,
    SessionFate,
    SessionState,
    Timing,
    Verdict,
    Waiting,
    WaitingState,
    state_of,
    verdict_of,
)
from eventbus.store import NodeRecord, PendingRecord, SessionRecord, Store
from eventbus.timeline import RunTimeline, run_timeline

__all__ = [
    "COUNTED_MAX",
    "EXPLANATIONS",
    "DeadRow",
    "DeadRows",
    "EventReport",
    "Fate",
    "NodeRow",
    "PendingRow",
    "PendingRows",
    "RunTimeline",
    "SessionFate",
    "SessionRow",
    "SessionState",
    "Timing",
    "Verdict",
    "dead_letter",
    "dead_letters",
    "fate",
    "nodes",
    "parse_dead_id",
    "pending_of_user",
    "pending_of_users",
    "run_timeline",
    "sessions",
]

COUNTED_MAX: Final = 1_000
"""Unread entries of a session are counted up to here; a session with more shows this number."""

_SENT_PAGE: Final = 256
_LOOKED_AT: Final = 64
"""Pending entries of a session that are looked at to see whether they expired or were trimmed."""
_USERS_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """A session.

    Attributes:
        cursor: how far it has read; all that was sent to it lies at or below.
        pending: how many entries wait for its ack, sent or not read yet.
        unread: those of them that it has not read, up to `COUNTED_MAX`.
        last_seen_ms: Unix milliseconds of Redis's clock.
    """

    user: UserId
    session: SessionId
    state: SessionState
    node: NodeName | None
    cursor: EntryId
    pending: int
    unread: int
    last_seen_ms: int


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
class NodeRow:
    """A node, as it tells of itself."""

    node: NodeName
    address: str
    version: str
    state: str
    connections: int
    sessions: int
    started_ms: int


# --- nodes ------------------------------------------------------------------------------------------------------------


async def nodes(store: Store) -> list[NodeRow]:
    """The nodes that told of themselves within 15 s, by name."""
    return [_node(record) for record in sorted(await store.nodes(), key=lambda record: record.node)]


def _node(record: NodeRecord) -> NodeRow:
    return NodeRow(
        node=record.node,
        address=record.address,
        version=record.version,
        state=record.state,
        connections=record.figures.get("connections", 0),
        sessions=record.figures.get("sessions", 0),
        started_ms=record.started_ms,
    )


# --- sessions and what waits for them ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unread:
    """What lies after a position, without the bodies; `count` is at most `COUNTED_MAX`."""

    count: int = 0
    oldest: EntryId = ENTRY_ZERO
    states: frozenset[WaitingState] = frozenset()


_ALL_READ: Final = _Unread()


async def sessions(store: Store, user: UserId) -> list[SessionRow]:
    """The sessions of a user, by name."""
    here = {record.node for record in await store.nodes()}
    now_ms = await store.ping()
    records = await store.sessions(user)
    unread = await _unread_of(store, records, now_ms)
    return [
        SessionRow(
            user=user,
            session=record.session,
            state=state_of(record, here),
            node=None if record.live is None else record.live.node,
            cursor=record.position,
            pending=record.pending + missing.count,
            unread=missing.count,
            last_seen_ms=record.last_seen_ms,
        )
        for record, missing in zip(records, unread, strict=True)
    ]


async def pending_of_user(store: Store, user: UserId, timing: Timing) -> list[PendingRow]:
    """The sessions of a user that have something waiting, by name. `timing` is of nodes that do not tell theirs."""
    here = await _timings(store, timing)
    return await _waiting_of(store, user, here, await store.ping(), timing)


async def pending_of_users(store: Store, timing: Timing, *, cursor: str = "", count: int = 100) -> PendingRows:
    """One page of the sessions of all users that have something waiting, in no order.

    Args:
        store: where they are.
        timing: of nodes that do not tell theirs.
        cursor: where the page before ended; empty for the first.
        count: how many users to look at; a page may hold a few more, and a user may come twice (SCAN).
    """
    here = await _timings(store, timing)
    now_ms = await store.ping()
    found, following = await store.users(cursor, count)
    users = list(dict.fromkeys(found))
    rows: list[PendingRow] = []
    for start in range(0, len(users), _USERS_AT_ONCE):
        some = users[start : start + _USERS_AT_ONCE]
        for of_user in await asyncio.gather(*(_waiting_of(store, user, here, now_ms, timing) for user in some)):
            rows += of_user
    return PendingRows(rows=rows, users=len(users), cursor=following)


async def _timings(store: Store, timing: Timing) -> dict[NodeName, Timing]:
    """The nodes that tell of themselves, each with its own times: the operator's settings may be others."""
    return {
        record.node: replace(
            timing,
            **{name: record.figures[name] for name in ("ack_timeout_ms", "max_wait_ms") if name in record.figures},
        )
        for record in await store.nodes()
    }


async def _waiting_of(
    store: Store, user: UserId, here: Mapping[NodeName, Timing], now_ms: int, timing: Timing
) -> list[PendingRow]:
    records = [record for record in await store.sessions(user) if record.pending or record.unread]
    rows = []
    for record, unread in zip(records, await _unread_of(store, records, now_ms), strict=True):
        sent = await store.pending(user, record.session, ENTRY_ZERO, _SENT_PAGE)
        if sent or unread.count:  # else it was acked while we looked
            deliverable = await _deliverable(store, user, sent, unread, now_ms)
            rows.append(_row(record, here, now_ms, timing, sent, unread, deliverable))
    return rows


# One argument for each thing that was looked up for it.
def _row(
    record: SessionRecord,
    here: Mapping[NodeName, Timing],
    now_ms: int,
    timing: Timing,
    sent: Sequence[PendingRecord],
    unread: _Unread,
    deliverable: WaitingState,
) -> PendingRow:
    unread_ms = _age_ms(unread.oldest, now_ms) if unread.count else 0
    waiting = Waiting(
        state=state_of(record, here),
        sent=sent,
        unread=unread.count,
        oldest_unread_ms=unread_ms,
        deliverable=deliverable,
    )
    return PendingRow(
        user=record.user,
        session=record.session,
        pending=(record.pending if len(sent) == _SENT_PAGE else len(sent)) + unread.count,
        unread=unread.count,
        oldest_ms=max(unread_ms, _age_ms(sent[0].id, now_ms) if sent else 0),
        deliveries=max((one.attempts for one in sent), default=0),
        node=None if record.live is None else record.live.node,
        verdict=verdict_of(waiting, now_ms, timing if record.live is None else here.get(record.live.node, timing)),
    )


def _age_ms(entry: EntryId, now_ms: int) -> int:
    return max(0, now_ms - entry_order(entry)[0])


async def _unread_of(store: Store, records: Sequence[SessionRecord], now_ms: int) -> list[_Unread]:
    """What each session of one user has not read; sessions at the same place share the look."""
    seen: dict[EntryId, _Unread] = {}
    for record in records:
        if record.unread and record.position not in seen:
            page = await store.history(record.user, record.position, COUNTED_MAX)
            seen[record.position] = _Unread(
                count=len(page.entries),
                oldest=page.entries[0].id if page.entries else ENTRY_ZERO,
                states=frozenset(state_of_entry(entry, now_ms) for entry in page.entries),
            )
    return [seen[record.position] if record.unread else _ALL_READ for record in records]


async def _deliverable(
    store: Store, user: UserId, sent: Sequence[PendingRecord], unread: _Unread, now_ms: int
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
