"""What is to be done about a deadline that has come: of a run, its lease, or a confirmation that is demanded.

Judging changes nothing: whoever carries a judgement out learns whether it was the first (D22).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from eventbus.breach import (
    OperatorKind,
    abandoned,
    deadline_of,
    is_closed,
    missed_confirmation,
    missed_deadline,
    reached_by,
)
from eventbus.errors import EventBusError
from eventbus.event import Event, decode_envelope
from eventbus.ids import EntryId, UserId, entry_order
from eventbus.store import ConfirmationRecord, Store
from eventbus.store.running import DueRecord, RunRecord, Settlement
from eventbus.watch import LEASE, DemandMember, RunMember
from gateway.counters import Counters

__all__ = ["Judge", "Judged", "Posting"]

RECORDS: Final = 500
"""Most records of confirmations that are read at a time."""

CLOCK_STEP_MS: Final = 60_000
"""How far the id of a record may be behind that of its entry: after a failover the store's clock may have gone back."""


class Posting(Protocol):
    """Where the turns of the webhook go."""

    def posts(self, kind: OperatorKind) -> bool:
        """Whether operator events of a kind are posted."""

    def take(self, due: DueRecord, event: EntryId, attempt: int) -> None:
        """Takes a post whose turn has come; returns at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What is to be done about a deadline, and what follows when this node is the one that did it."""

    settlement: Settlement
    count: Callable[[], None] | None = None
    close: RunRecord | None = None


class Judge:
    """Judges deadlines by what the store knows.

    Args:
        store: where runs and confirmations are.
        counters: what is counted.
        posting: the webhook.
        judges_demands: whether confirmations are recorded; else no demand is called missed.
    """

    def __init__(self, store: Store, counters: Counters, posting: Posting, *, judges_demands: bool) -> None:
        self._store = store
        self._counters = counters
        self._posting = posting
        self._judges_demands = judges_demands

    async def run(self, due: DueRecord, run: RunMember) -> Sequence[Judged]:
        """Judges a deadline of a run, or its lease. Raises: StoreError."""
        record = await self._store.run(run.user, run.run)
        if run.name == LEASE:
            settlement = abandoned(due, record, posted=self._posting.posts(OperatorKind.RUN_ABANDONED))
            again = record if record is not None and not is_closed(record) else None
            return [Judged(settlement=settlement, count=self._counts_abandoned(settlement), close=again)]
        settlement = missed_deadline(due, run.name, record, posted=self._posting.posts(OperatorKind.MISSED_DEADLINE))
        which = deadline_of(run.name)

        def count() -> None:
            if which is not None and settlement.announce is not None:
                self._counters.run_breaches[which[0].value] += 1

        return [Judged(settlement=settlement, count=count)]

    def _counts_abandoned(self, settlement: Settlement) -> Callable[[], None]:
        def count() -> None:
            self._counters.runs_abandoned += settlement.announce is not None

        return count

    async def demands(self, user: UserId, some: Sequence[tuple[DueRecord, DemandMember]]) -> Sequence[Judged]:
        """Judges the demands of one user: its records are read once for all. Raises: StoreError."""
        if not self._judges_demands:
            return [Judged(settlement=Settlement(due=due)) for due, _ in some]
        records = await self._records(user, min(entry_order(demand.entry)[0] for _, demand in some))
        return [await self._demand(due, demand, records) for due, demand in some]

    async def _demand(self, due: DueRecord, demand: DemandMember, records: Sequence[ConfirmationRecord]) -> Judged:
        reached = reached_by(records, demand.entry, due.due_ms)
        event = await self._event(demand) if reached is None or reached < demand.level else None
        settlement = missed_confirmation(
            due,
            demand.user,
            demand.entry,
            demand.level,
            reached=reached,
            event=event,
            posted=self._posting.posts(OperatorKind.MISSED_CONFIRMATION),
        )

        def count() -> None:
            if settlement.announce is not None:
                self._counters.demands_missed[demand.level.value] += 1

        return Judged(settlement=settlement, count=count)

    async def _records(self, user: UserId, since_ms: int) -> Sequence[ConfirmationRecord]:
        after = EntryId(f"{max(0, since_ms - CLOCK_STEP_MS)}-0")
        records: list[ConfirmationRecord] = []
        while True:
            page = await self._store.confirmations(user, after, RECORDS)
            records += (record for _, record in page)
            if len(page) < RECORDS:
                return records
            after = page[-1][0]

    async def _event(self, demand: DemandMember) -> Event | None:
        stored = await self._store.entry(demand.user, demand.entry)
        if stored is None:
            return None
        try:
            return decode_envelope(stored.body)
        except EventBusError:
            return None
