"""Nodes, sessions, partitions, a user as a whole and the installation as a whole. Nothing here writes.

Source: docs/admin.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from eventbus.errors import InvalidEvent, StoreError
from eventbus.event import peek
from eventbus.ids import ENTRY_ZERO, EntryId, NodeName, RunId, SessionId, UserId
from eventbus.inspection.lookup import DeadRow, dead_letters
from eventbus.inspection.verdicts import SessionState, Timing, state_of
from eventbus.inspection.waiting import PendingRow, pending_of_user, unread_of
from eventbus.store import NodeRecord, Store
from eventbus.store.inbound import QuestionState
from eventbus.store.mending import Pause
from eventbus.store.waiting import PartitionFigures
from eventbus.watched import RunRow, run_row

__all__ = [
    "NodeRow",
    "Overview",
    "SessionRow",
    "UserPage",
    "nodes",
    "overview",
    "partitions_page",
    "sessions",
    "user_page",
]

_RUNS_MAX: Final = 20
_DEAD_MAX: Final = 20
_THREADS_MAX: Final = 20
_NEWEST_MAX: Final = 500
_PAGE: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """A node, as it tells of itself.

    Attributes:
        state: `ready`, `not_ready`, `draining` (it ends), `held` (an operator drains it), `gone` (held, and silent).
        held_by: the operator who drains it until it is let go; None when none does.
    """

    node: NodeName
    address: str
    version: str
    state: str
    connections: int
    sessions: int
    started_ms: int
    held_by: str | None = None


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
class UserPage:
    """One user as a whole, bounded.

    Attributes:
        partition: where the user's data is.
        stored: how many events are retained.
        newest: the entry id of the newest event ever, `0-0` when there was none.
        dead: the oldest dead letters.
        runs: those of which events are retained, the newest last.
        threads: thread ids, the newest first, each with the time of its last event.
        questions: how many questions of agents are open.
    """

    user: UserId
    partition: int
    stored: int
    newest: EntryId
    sessions: Sequence[SessionRow]
    pending: Sequence[PendingRow]
    dead: Sequence[DeadRow]
    runs: Sequence[RunRow]
    threads: Mapping[str, int]
    questions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The installation as a whole.

    Attributes:
        waiting_users: users for whom something waits, as the index has it.
        oldest_ms: for how long it waits for the one for whom it waits longest, in milliseconds.
        memory_bytes: of the server (of one of them, where there are several).
        paused: types of which nothing is taken.
    """

    now_ms: int
    nodes: Sequence[NodeRow]
    waiting_users: int
    oldest_ms: int
    dead_letters: int
    deadlines: int
    operator_events: int
    partitions: int
    server: str
    memory_bytes: int
    paused: Sequence[Pause]


async def nodes(store: Store) -> list[NodeRow]:
    """The nodes that told of themselves within 15 s, by name, and those that an operator holds."""
    held = {one.node: one for one in await store.held_nodes()}
    rows = [_node(record, held) for record in await store.nodes()]
    known = {row.node for row in rows}
    rows += [
        NodeRow(
            node=one.node,
            address="",
            version="",
            state="gone",
            connections=0,
            sessions=0,
            started_ms=0,
            held_by=one.by or "-",
        )
        for one in held.values()
        if one.node not in known
    ]
    return sorted(rows, key=lambda row: row.node)


def _node(record: NodeRecord, held: Mapping[NodeName, object]) -> NodeRow:
    hold = held.get(record.node)
    return NodeRow(
        node=record.node,
        address=record.address,
        version=record.version,
        state=record.state if hold is None else "held",
        connections=record.figures.get("connections", 0),
        sessions=record.figures.get("sessions", 0),
        started_ms=record.started_ms,
        held_by=None if hold is None else getattr(hold, "by", "") or "-",
    )


async def sessions(store: Store, user: UserId) -> list[SessionRow]:
    """The sessions of a user, by name."""
    here = {record.node for record in await store.nodes()}
    now_ms = await store.ping()
    records = await store.sessions(user)
    unread = await unread_of(store, records, now_ms)
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


async def partitions_page(
    store: Store, *, partitions: int, first: int = 0, count: int = 1024
) -> list[PartitionFigures]:
    """How much the partitions hold, from `first` on. Raises: StoreError."""
    found = []
    for answer in await store.partition_figures(range(first, min(first + count, partitions))):
        if isinstance(answer, StoreError):
            raise answer
        found.append(answer)
    return found


async def overview(store: Store, *, partitions: int) -> Overview:
    """The installation as a whole. Raises: StoreError."""
    figures = await partitions_page(store, partitions=partitions)
    info = await store.info()
    oldest = min((one.oldest_ms for one in figures if one.oldest_ms), default=info.time_ms)
    return Overview(
        now_ms=info.time_ms,
        nodes=await nodes(store),
        waiting_users=sum(one.waiting_users for one in figures),
        oldest_ms=max(0, info.time_ms - oldest),
        dead_letters=sum(one.dead_letters for one in figures),
        deadlines=sum(one.deadlines for one in figures),
        operator_events=sum(one.operator_events for one in figures),
        partitions=partitions,
        server=f"{info.kind} {info.version}",
        memory_bytes=info.memory_bytes,
        paused=await store.paused_types(),
    )


async def user_page(store: Store, user: UserId, timing: Timing, *, partitions: int, partition: int) -> UserPage:
    """One user as a whole: what an operator wants to see who was given a name.

    Args:
        store: where everything is.
        user: whose.
        timing: of nodes that do not tell theirs.
        partitions: of the installation.
        partition: the user's.

    Raises:
        StoreError: the store does not answer.
    """
    tail, _ = await store.tail(user)
    stored, newest = await _newest(store, user)
    threads = await store.threads(user, None, _THREADS_MAX)
    dead = await dead_letters(store, partitions=partitions, user=user, limit=_DEAD_MAX)
    return UserPage(
        user=user,
        partition=partition,
        stored=stored,
        newest=tail,
        sessions=await sessions(store, user),
        pending=await pending_of_user(store, user, timing),
        dead=dead.rows,
        runs=await _runs(store, user, newest),
        threads={one.thread: one.last_ms for one in threads.threads},
        questions=sum(one.state is QuestionState.OPEN for one in await store.questions(user)),
    )


async def _newest(store: Store, user: UserId) -> tuple[int, list[bytes]]:
    """How many events of a user are retained, and the envelopes of the newest of them, oldest first."""
    after, count, found = ENTRY_ZERO, 0, list[bytes]()
    while True:
        page = await store.history(user, after, _PAGE)
        count += len(page.entries)
        found = [*found, *(entry.body for entry in page.entries)][-_NEWEST_MAX:]
        if not page.more or not page.entries:
            return count, found
        after = page.entries[-1].id


async def _runs(store: Store, user: UserId, bodies: Sequence[bytes]) -> list[RunRow]:
    """The runs that the newest events are of: nobody keeps a list, and a scan of all keys is for other occasions."""
    names: dict[RunId, None] = {}
    for body in bodies:
        with contextlib.suppress(InvalidEvent):
            run = peek(body).run
            if run is not None:
                names[run] = None
    rows = []
    for name in list(names)[-_RUNS_MAX:]:
        record = await store.run(user, name)
        if record is not None:
            rows.append(run_row(record))
    return sorted(rows, key=lambda row: (row.since_ms, row.run))
