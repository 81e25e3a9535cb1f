"""What operators ask of runs, and the events that are meant for them: missed deadlines, closed runs, escalations.

Asynchronous functions over a `Store` that return frozen records. Nothing writes.

Source: docs/escalation.md, docs/cli.md.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from eventbus.ids import ENTRY_ZERO, EntryId, RunId, ThreadId, UserId, entry_order
from eventbus.store.running import OperatorEvent, RunRecord, RunStore
from eventbus.watch import RunPhase, breaches_of, open_calls

__all__ = ["RunRow", "RunRows", "run_row", "new_operator_events", "operator_events", "runs", "users_of_run"]

PAGE: Final = 200

LOOKED_MAX: Final = 100_000
"""Runs that one list looks at: keeping them all in view costs a scan of everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run as operators see it.

    Attributes:
        state: `requested`, `running` or `completed`.
        outcome: how it ended; None while it has not.
        requested_ms: when it was asked for, Unix milliseconds, where that is known.
        started_ms: when its agent began; None while it has not.
        ended_ms: when it ended.
        events: the number of its last event.
        breaches: how many deadlines were missed.
        missed: which, by name, each with the time when it was due.
        tools: the tools that are being called, oldest first.
    """

    run: RunId
    user: UserId
    thread: ThreadId | None
    agent: str
    state: RunPhase
    outcome: str | None
    requested_ms: int | None
    started_ms: int | None
    ended_ms: int | None
    events: int
    breaches: int
    missed: Mapping[str, int]
    tools: Sequence[str]

    @property
    def since_ms(self) -> int:
        """When it was started, or else asked for."""
        return self.started_ms or self.requested_ms or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRows:
    """Runs, the newest last, and whether there are more than were looked at or wanted."""

    rows: Sequence[RunRow]
    more: bool


async def runs(
    store: RunStore, *, user: UserId | None = None, state: RunPhase | None = None, limit: int = 100
) -> RunRows:
    """The newest runs, at most `limit`, the newest last.

    Args:
        store: where they are.
        user: this user's only.
        state: only those that stand there.
        limit: how many at most.

    Raises:
        StoreError: the store does not answer.
    """
    seen: dict[tuple[UserId, RunId], RunRow] = {}
    cursor, looked = "", 0
    while True:
        page, cursor = await store.runs(cursor, PAGE)
        looked += len(page)
        for record in page:
            if user in (None, record.user):
                row = run_row(record)
                if state in (None, row.state):
                    seen[record.user, record.run] = row  # a scan may give one twice
        if not cursor or looked >= LOOKED_MAX:
            break
    newest = heapq.nlargest(limit, seen.values(), key=lambda row: (row.since_ms, row.run))
    return RunRows(rows=newest[::-1], more=bool(cursor) or len(seen) > limit)


async def users_of_run(store: RunStore, run: RunId) -> list[UserId]:
    """Whose a run is, among the remembered runs that `runs` looks at: two users may have picked one run id.

    Raises:
        StoreError: the store does not answer.
    """
    found: set[UserId] = set()
    cursor, looked = "", 0
    while True:
        page, cursor = await store.runs(cursor, PAGE)
        looked += len(page)
        found.update(record.user for record in page if record.run == run)
        if not cursor or looked >= LOOKED_MAX:
            return sorted(found)


def run_row(record: RunRecord) -> RunRow:
    """A run as operators see it."""
    fields = record.fields
    thread = fields.get("thread")
    return RunRow(
        run=record.run,
        user=record.user,
        thread=ThreadId(thread) if thread else None,
        agent=fields.get("agent", ""),
        state=RunPhase(fields.get("state", RunPhase.RUNNING)),
        outcome=fields.get("outcome") or None,
        requested_ms=_number(fields, "requested_ms"),
        started_ms=_number(fields, "started_ms"),
        ended_ms=_number(fields, "ended_ms"),
        events=_number(fields, "seq") or 0,
        breaches=_number(fields, "breaches") or 0,
        missed=breaches_of(record),
        tools=tuple(open_calls(record).values()),
    )


def _number(fields: Mapping[str, str], name: str) -> int | None:
    value = fields.get(name, "")
    return int(value) if value.isdecimal() else None


# --- events for operators ---------------------------------------------------------------------------------------------


async def operator_events(
    store: RunStore, *, kind: str | None = None, user: UserId | None = None, since_ms: int = 0, limit: int = 100
) -> list[OperatorEvent]:
    """The newest events for the operators, at most `limit`, the newest last.

    Args:
        store: where they are.
        kind: of this kind only.
        user: about this user only.
        since_ms: Unix milliseconds; only those written since.
        limit: how many at most.

    Raises:
        StoreError: the store does not answer.
    """
    after = ENTRY_ZERO if since_ms <= 0 else EntryId(f"{since_ms - 1}-{2**64 - 1}")
    newest: list[tuple[tuple[int, int, int], OperatorEvent]] = []
    for partition in await store.operator_partitions():
        async for event in _of_partition(store, partition, after):
            if (kind is None or event.fields.get("kind") == kind) and (
                user is None or event.fields.get("user") == user
            ):
                item = ((*entry_order(event.id), partition), event)
                (heapq.heappush if len(newest) < limit else heapq.heappushpop)(newest, item)
    return [event for _, event in sorted(newest, key=lambda item: item[0])]


async def new_operator_events(store: RunStore, seen: dict[int, EntryId], since: EntryId) -> list[OperatorEvent]:
    """What has come since the last call, the newest last.

    Args:
        store: where they are.
        seen: the last id of each partition; changed by the call. Empty the first time.
        since: where a partition begins that is not in `seen`.

    Raises:
        StoreError: the store does not answer; what was found until then comes with a later call.
    """
    found: list[OperatorEvent] = []
    last: dict[int, EntryId] = {}
    for partition in await store.operator_partitions():
        async for event in _of_partition(store, partition, seen.get(partition, since)):
            found.append(event)
            last[partition] = event.id
    seen.update(last)
    return sorted(found, key=lambda event: (*entry_order(event.id), event.partition))


async def _of_partition(store: RunStore, partition: int, after: EntryId) -> AsyncIterator[OperatorEvent]:
    while True:
        page = await store.operator_events(partition, after, PAGE)
        for event in page:
            yield event
        if len(page) < PAGE:
            return
        after = page[-1].id
