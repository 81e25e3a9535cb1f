"""What the bus and the nodes ask of the store for runs and for deadlines: records and a Protocol.

A run is a hash, written by whoever holds its lease: the publisher while it lives, a node afterwards. What a step of the
run changes in it is decided outside (`eventbus.watch`) and carried out by the store together with the event, in one
script. A deadline is a member of the partition's sorted set of what is due; whoever settles it first has it (D22).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from eventbus.errors import OutOfOrder, RunClosed, StoreError
from eventbus.fields import Level
from eventbus.ids import EntryId, RunId, UserId

__all__ = [
    "OPERATOR_EVENTS_LIFE_MS",
    "Demand",
    "DueRecord",
    "Lease",
    "OperatorEvent",
    "RunRecord",
    "RunRequest",
    "RunStep",
    "RunStore",
    "Settlement",
    "StepOrder",
    "out_of_order",
    "run_completed",
    "run_taken",
]

OPERATOR_EVENTS_LIFE_MS: Final = 7 * 24 * 60 * 60_000
"""How long an event for the operators is kept, from the last one of its partition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """A demanded confirmation: `level` of the event by any session within `within_ms` of its being stored."""

    level: Level
    within_ms: int


class StepOrder(StrEnum):
    """Which number a step may have."""

    NEXT = "next"
    """The last one plus 1."""
    ANEW = "anew"
    """Any above the last one: the store has lost events before this one that nobody can send again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStep:
    """What an event of a run changes beside being stored. Refused as a whole unless it is the run's next one.

    Attributes:
        run: the run.
        seq: the number of the event: the last one plus 1, or the step is `OutOfOrder`.
        owner: who holds the lease; another than the run's, or a completed run, is `RunClosed`. A run without an owner
            (requested, or not known) becomes this one's.
        lease_ms: the lease is renewed by so much; 0 gives it up.
        fields: what is written into the run's hash.
        gone: what is taken out of it.
        watch: deadlines by name, in milliseconds from now; see `eventbus.watch`.
        unwatch: names of deadlines that are met. One that has passed stays, for whoever watches to mark: a step that
            came late is a breach, also when it came before anybody looked.
        by: deadlines for this very step, in Unix milliseconds: one that has passed is watched, as due then.
        order: which number it may have.
    """

    run: RunId
    seq: int
    owner: str
    lease_ms: int
    fields: Mapping[str, str] = field(default_factory=dict)
    gone: Sequence[str] = ()
    watch: Mapping[str, int] = field(default_factory=dict)
    unwatch: Sequence[str] = ()
    by: Mapping[str, int] = field(default_factory=dict)
    order: StepOrder = StepOrder.NEXT


def out_of_order(step: RunStep, last: int) -> OutOfOrder:
    """The error of a step that does not follow the run's last event."""
    return OutOfOrder(
        f"event {step.seq} of run {step.run} came after event {last}: those between are not stored", last=last
    )


def run_completed(step: RunStep) -> RunClosed:
    """The error of a step behind the end of its run."""
    return RunClosed(f"run {step.run} is completed: nothing may follow; begin a new one")


def run_taken(step: RunStep) -> RunClosed:
    """The error of a step of whoever has lost the run."""
    return RunClosed(
        f"run {step.run} belongs to another process: its lease was lost and a node closes it, or it was resumed"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """A run that is asked for before a worker starts it."""

    user: UserId
    run: RunId
    fields: Mapping[str, str]
    watch: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A lease to renew."""

    user: UserId
    run: RunId
    owner: str
    lease_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run as it stands in the store; the names of `fields` are those of `eventbus.watch`."""

    user: UserId
    run: RunId
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DueRecord:
    """A deadline that has passed: `member` is what `eventbus.watch` made and reads, `due_ms` when it was due,
    `now_ms` the store's clock when it was read.
    """

    partition: int
    member: str
    due_ms: int
    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What is done about a deadline, all of it or nothing: nothing when it was settled or moved meanwhile.

    Attributes:
        due: the deadline as it was read; it goes.
        watch: members that become due, in milliseconds from now.
        run: whose hash is changed (it must still be there), with `fields` written and `counts` added.
        announce: an event for the operators; None for none.
        webhook: with `announce`, a member `webhook <its id> 1` that is due at once.
    """

    due: DueRecord
    watch: Mapping[str, int] = field(default_factory=dict)
    run: tuple[UserId, RunId] | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    announce: Mapping[str, str] | None = None
    webhook: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorEvent:
    """An event for the operators: its id in the partition, when it was written, and what it says."""

    id: EntryId
    partition: int
    time_ms: int
    fields: Mapping[str, str]


class RunStore(Protocol):
    """Runs, leases and deadlines. Events of a run are stored by `Store.append`, with `Append.step`."""

    async def request_run(self, request: RunRequest) -> bool:
        """Writes down a run that is asked for and watches it. Returns False when the run is known already."""

    async def renew_leases(self, leases: Sequence[Lease]) -> Sequence[bool | StoreError]:
        """Renews leases, one result for each in order: False when the run is completed or another's."""

    async def claim_run(self, lease: Lease, held_by: str) -> RunRecord | None:
        """Takes a run over from `held_by` (empty: from nobody). None when it is completed, unknown or another's."""

    async def run(self, user: UserId, run: RunId) -> RunRecord | None:
        """A run as it stands, None when nothing is known of it (any more)."""

    async def runs(self, cursor: str, count: int) -> tuple[Sequence[RunRecord], str]:
        """A page of runs, in no order, perhaps repeated; start with cursor "", end when "" comes back. For operators.
        Redis: SCAN.
        """

    async def due(self, partitions: Sequence[int], count: int) -> Sequence[Sequence[DueRecord] | StoreError]:
        """What is due, at most `count` of each partition; one result for each partition, in order."""

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[int | StoreError]:
        """Carries settlements out; one result for each, in order: the store's clock when it was done (what it watches
        is due so many ms after that, and can be settled in turn), or 0 when another has settled or moved the deadline.
        """

    async def operator_events(self, partition: int, after: EntryId, count: int) -> Sequence[OperatorEvent]:
        """Events for the operators after `after`, oldest first."""

    async def operator_partitions(self) -> Sequence[int]:
        """The partitions that have events for the operators."""
