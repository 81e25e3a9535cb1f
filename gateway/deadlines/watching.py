"""Watches deadlines: of runs, of demanded confirmations, and the turns of the webhook, in this node's share of the
partitions.

What is due waits in the store until somebody settles it, so nothing is lost with a node: another sees it, at the
latest when the list of nodes has forgotten the dead one, and whoever was away catches up. A settlement is one script:
two nodes that see one deadline tell of it once (D22).

A partition in which something was due lately is looked at every `watch_ms`, the others four times as seldom. That is
256 reads a second for 1,024 idle partitions, however many nodes there are, and as many again by those that stand by
for a node that died; all of a look leave in one write.

Source: docs/escalation.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from eventbus.clock import Clock, seconds
from eventbus.config import ConfirmationRecords, StoreSettings
from eventbus.errors import EventBusError, StoreError, StoreTimeout
from eventbus.ids import NodeName, UserId
from eventbus.store import Store
from eventbus.store.running import DueRecord, RunRecord, Settlement
from eventbus.store.topology import lane_of, slot_of
from eventbus.watch import DemandMember, RunMember, WebhookMember, parse_member
from gateway.counters import Counters
from gateway.deadlines.judging import Judge, Judged, Posting
from gateway.deadlines.shares import Shares
from gateway.histogram import Worst

__all__ = ["Watcher"]

logger = logging.getLogger(__name__)

PAGE: Final = 100
"""Most deadlines of a partition that are read at a time."""

AT_ONCE: Final = 64
"""So many are judged at a time: each may ask the store."""

ROUNDS_MAX: Final = 50
"""Pages of one look; what is left over has the next one."""

IDLE_FACTOR: Final = 4
"""A partition without anything due is looked at so much more seldom."""

LATE_FACTOR: Final = 5
"""Who stands by takes what is late by so many `watch_ms`: the partition's own node has looked by then."""

UNKNOWN_MS: Final = 60_000
"""What nobody here understands is looked at again after so long: a node of a later version may know it."""

STRAGGLER_MS: Final = 1_000
"""So much longer than the others the partitions of one primary may take: when it is away, the deadlines of the others
do not wait for it.
"""

LATE_MS: Final = 10_000
"""From here on the log says how late a look was."""

WORST_MS: Final = 30_000
"""The latest of so long, at least, is what the metrics tell."""

T = TypeVar("T")


Close = Callable[[RunRecord], Awaitable[bool]]
"""Publishes what a run owes and closes it as failed; safe to repeat, and at two nodes at once. Says whether it is
completed now.
"""


@dataclass(slots=True)
class _Look:
    """When a partition is looked at again, in monotonic milliseconds, and the wait that comes after that."""

    at_ms: int
    wait_ms: int


class Watcher:
    """The watch of one node. `run` it until the node drains.

    Args:
        store: where deadlines are.
        node: the node's name.
        settings: partitions, and whether confirmations are recorded.
        clock: monotonic, for the times of looks; what is due is judged by the store's clock.
        counters: what is counted.
        close: closes a run that was abandoned.
        posting: the webhook.
        watch_ms: between two looks.
        nodes_ms: between two looks at the list of nodes.

    Attributes:
        late_ms: how late the latest of the deadlines of the last look was found.
        calls: how many reads of a partition were made.
    """

    def __init__(
        self,
        store: Store,
        node: NodeName,
        *,
        settings: StoreSettings,
        clock: Clock,
        counters: Counters,
        close: Close,
        posting: Posting,
        watch_ms: int,
        nodes_ms: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self._counters = counters
        self._close = close
        self._posting = posting
        self._watch_ms = watch_ms
        self._nodes_ms = nodes_ms
        self._judge = Judge(
            store,
            counters,
            posting,
            judges_demands=settings.confirmation_records is not ConfirmationRecords.OFF,
        )
        self._shares = Shares(node, settings.partitions)
        self._node = node
        self._living: Sequence[NodeName] = (node,)
        self._nodes_at_ms: int | None = None
        self._looks: dict[int, _Look] = {}
        self.late_ms = 0
        self._worst = Worst(WORST_MS)
        self._has_lanes = hasattr(store, "lane_of")
        self.calls = 0

    def __repr__(self) -> str:
        return f"<Watcher {self._shares!r} late_ms={self.late_ms}>"

    @property
    def partitions(self) -> Sequence[int]:
        """Those that are this node's, by the nodes that live as far as is known."""
        return self._shares.of(self._living).first

    @property
    def worst_late_ms(self) -> int:
        """How late the latest deadline of the last half to whole minute was found."""
        return int(self._worst.at(self._clock.monotonic_ms()))

    async def run(self) -> None:
        """Watches until it is cancelled, which leaves everything for the next look, here or elsewhere."""
        while True:
            await self.look()
            await asyncio.sleep(seconds(self._watch_ms))

    async def look(self) -> None:
        """One look at the partitions whose time has come; a store that is away is asked again the next time."""
        now_ms = self._clock.monotonic_ms()
        await self._look_at_nodes(now_ms)
        share = self._shares.of(self._living)
        mine = [number for number in share.first if self._is_time(number, now_ms)]
        others = [number for number in share.second if self._is_time(number, now_ms)]
        self.late_ms = 0
        for numbers, least_late_ms in ((mine, 0), (others, LATE_FACTOR * self._watch_ms)):
            busy = await self._work_off(numbers, least_late_ms)
            for number in numbers:
                self._plan(number, now_ms, busy=number in busy and least_late_ms == 0)
        self._worst.add(self.late_ms, self._clock.monotonic_ms())
        if self.late_ms >= LATE_MS:
            logger.warning("deadlines were found late", extra={"late_ms": self.late_ms})

    async def _look_at_nodes(self, now_ms: int) -> None:
        if self._nodes_at_ms is not None and now_ms < self._nodes_at_ms:
            return
        try:
            async with asyncio.timeout(seconds(STRAGGLER_MS)):
                records = await self._store.nodes()
        except (StoreError, TimeoutError) as error:
            self._counters.store_errors[getattr(error, "code", StoreTimeout.code)] += 1
            return
        # A node that drains has stopped watching.
        self._living = [record.node for record in records if record.state != "draining"]
        self._nodes_at_ms = now_ms + self._nodes_ms

    # --- when -------------------------------------------------------------------------------------------------------

    def _is_time(self, number: int, now_ms: int) -> bool:
        look = self._looks.get(number)
        return look is None or look.at_ms <= now_ms

    def _plan(self, number: int, now_ms: int, *, busy: bool) -> None:
        look = self._looks.get(number)
        longest_ms = IDLE_FACTOR * self._watch_ms
        if look is None:
            # Spread out: the first waits differ, so that each look has its part of the partitions.
            look = self._looks[number] = _Look(0, longest_ms)
            look.at_ms = now_ms + self._watch_ms * (1 + number % IDLE_FACTOR)
        else:
            look.wait_ms = self._watch_ms if busy else min(2 * look.wait_ms, longest_ms)
            look.at_ms = now_ms + look.wait_ms

    # --- what -------------------------------------------------------------------------------------------------------

    async def _work_off(self, numbers: Sequence[int], least_late_ms: int) -> set[int]:
        """Settles what is due in these partitions, in pages. Returns those that had something."""
        busy: set[int] = set()
        left = list(numbers)
        for _ in range(ROUNDS_MAX):
            if not left:
                break
            pages = await self._read(left)
            found = [due for page in pages.values() for due in page if due.now_ms - due.due_ms >= least_late_ms]
            busy.update(due.partition for due in found)
            self.late_ms = max([self.late_ms, *(due.now_ms - due.due_ms for due in found)])
            done = 0
            for at in range(0, len(found), AT_ONCE):
                done += await self._settle(found[at : at + AT_ONCE])
            # A page that is not full was the last one; where nothing moved, nothing will.
            left = [number for number, page in pages.items() if len(page) == PAGE] if done else []
        return busy

    async def _read(self, numbers: Sequence[int]) -> Mapping[int, Sequence[DueRecord]]:
        self.calls += len(numbers)
        lanes: dict[int, list[int]] = {}
        for number in numbers:
            lanes.setdefault(self._lane_of(number), []).append(number)
        pages: dict[int, Sequence[DueRecord]] = {}
        for found in await _but_stragglers([self._read_lane(lane) for lane in lanes.values()]):
            pages.update(found)
        missed = len(numbers) - len(pages)
        if missed:
            logger.debug("%d of %d partitions could not be read", missed, len(numbers))
        return pages

    def _lane_of(self, number: int) -> int:
        """Where a partition lies in a store with several primaries, of which one may be away."""
        return lane_of(slot_of(f"{{{number}}}")) if self._has_lanes else 0

    async def _read_lane(self, numbers: Sequence[int]) -> Mapping[int, Sequence[DueRecord]]:
        answers: Sequence[Sequence[DueRecord] | StoreError]
        try:
            answers = await self._store.due(numbers, PAGE)
        except StoreError as error:
            answers = [error]
        pages: dict[int, Sequence[DueRecord]] = {}
        for number, answer in zip(numbers, answers, strict=False):
            if isinstance(answer, StoreError):
                self._counters.store_errors[answer.code] += 1
            else:
                pages[number] = answer
        return pages

    async def _settle(self, found: Sequence[DueRecord]) -> int:
        """Judges deadlines and settles them. Returns how many this node settled."""
        runs: list[tuple[DueRecord, RunMember]] = []
        demands: dict[UserId, list[tuple[DueRecord, DemandMember]]] = {}
        judged: list[Judged] = []
        for due in found:
            match parse_member(due.member):
                case RunMember() as run:
                    runs.append((due, run))
                case DemandMember() as demand:
                    demands.setdefault(demand.user, []).append((due, demand))
                case WebhookMember(event, attempt):
                    self._posting.take(due, event, attempt)
                case None:
                    logger.warning(
                        "something is due that is no deadline that this version knows",
                        extra={"member": due.member, "partition": due.partition},
                    )
                    judged.append(Judged(settlement=Settlement(due=due, watch={due.member: UNKNOWN_MS})))
        answers = await asyncio.gather(
            *(self._guarded(self._judge.run(due, run), [due]) for due, run in runs),
            *(
                self._guarded(self._judge.demands(user, some), [due for due, _ in some])
                for user, some in demands.items()
            ),
        )
        for answer in answers:
            judged += answer
        return await self._carry_out(judged)

    async def _guarded(self, judging: Awaitable[Sequence[Judged]], about: Iterable[DueRecord]) -> Sequence[Judged]:
        """Judges, whatever happens: one deadline that can not be judged must not end the watch of the others."""
        try:
            return await judging
        except StoreError as error:
            self._counters.store_errors[error.code] += 1
            return ()
        except Exception:
            logger.exception("a deadline could not be judged", extra={"members": [due.member for due in about]})
            return [Judged(settlement=Settlement(due=due, watch={due.member: UNKNOWN_MS})) for due in about]

    async def _carry_out(self, judged: Sequence[Judged]) -> int:
        if not judged:
            return 0
        try:
            answers = await self._store.settle([one.settlement for one in judged])
        except StoreError as error:
            answers = [error] * len(judged)
        closing = []
        done = 0
        for one, answer in zip(judged, answers, strict=True):
            if isinstance(answer, StoreError):
                self._counters.store_errors[answer.code] += 1
            elif answer:
                done += 1
                if one.count is not None:
                    one.count()
                if one.close is not None:
                    closing.append(one.close)
        await asyncio.gather(*(self._close_run(record) for record in closing))
        return done

    async def _close_run(self, record: RunRecord) -> None:
        try:
            self._counters.runs_closed += await self._close(record)
        except EventBusError as error:
            # Its lease comes due again.
            logger.info("run %s could not be closed yet: %s", record.run, error, extra=_fields(record))
        except Exception:
            logger.exception("run %s could not be closed", record.run, extra=_fields(record))


async def _but_stragglers(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What these calls answer; those that come long after the first are given up, and asked again the next time."""
    if not calls:
        return []
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(tasks, timeout=seconds(STRAGGLER_MS))
        return [task.result() for task in tasks if task.done()]
    finally:
        late = [task for task in tasks if not task.done()]
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


def _fields(record: RunRecord) -> dict[str, object]:
    """What a line of the log says of a run."""
    return {"run": record.run, "user": record.user}
