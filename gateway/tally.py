"""What waits, counted now and then: of this node's sessions, and of the partitions that are this node's to count.

Nodes share the partitions as they do for the watch, so that the sum over all nodes is the installation's and nothing
is counted twice. One small script a partition reads the index of who has something waiting; nobody scans users. How
much waits for those who are away is counted where few users wait, else taken from a sample of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from eventbus.clock import Clock, seconds
from eventbus.errors import StoreError
from eventbus.ids import EntryId, UserId, entry_order
from eventbus.store import StoreInfo
from eventbus.store.waiting import SILENT_MS, AwayPending, PartitionFigures, WaitingMark, WaitingPlace, WaitingUser
from gateway.counters import Counters

__all__ = ["Tallied", "Tally", "places_of"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

RECHECKED_MAX: Final = 50
"""So many users of the partition in which it waits for longest are looked at again: the index may be behind."""

SILENT_MAX: Final = 20
"""So many users of a partition, of whom nobody has said anything for a while, are looked at again."""

SAMPLED_MAX: Final = 256
"""So many users of all partitions, for whom something waits, are asked how much it is."""

_GOLDEN: Final = 0.618
"""Steps of this part of the whole come near every place before they come near one again."""

AT_ONCE: Final = 64
"""So many partitions are asked in one write: all 1,024 would hold up the loop for 10 ms."""

SLICE: Final = 1_000
"""So many sessions are looked at in one turn of the loop: about a tenth of a millisecond."""

STALE_FACTOR: Final = 4
"""What is older than so many waits is told no more: an old figure looks like a good one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tallied:
    """What was found.

    Attributes:
        at_ms: when, monotonic.
        pending: entries that were read for sessions here and are not acked.
        pending_oldest_ms: for how long at most one of them has been stored while its client was connected.
        waiting_users: users of the node's partitions for whom something waits, connected or not.
        waiting_oldest_ms: for how long, of the one for whom it waits longest.
        pending_away: entries that wait for sessions of theirs that are away, each once for each session; taken from a
            sample where many users wait.
        dead_letters: that are kept in the node's partitions.
        deadlines: that are watched there.
        operator_events: that are kept there.
        servers: the primaries; none at a node that is not the one to tell of them.
    """

    at_ms: int
    pending: int
    pending_oldest_ms: int
    waiting_users: int = 0
    waiting_oldest_ms: int = 0
    pending_away: int = 0
    dead_letters: int = 0
    deadlines: int = 0
    operator_events: int = 0
    servers: Sequence[StoreInfo] = ()


class Window(Protocol):
    """What is read of a session's window."""

    @property
    def outstanding(self) -> int: ...
    @property
    def oldest(self) -> EntryId | None: ...


class Seated(Protocol):
    """What is read of a session."""

    @property
    def delivery(self) -> Window: ...
    @property
    def opened_ms(self) -> int: ...
    @property
    def is_open(self) -> bool: ...


class Counted(Protocol):
    """What is asked of the store."""

    async def partition_figures(self, partitions: Sequence[int]) -> Sequence[PartitionFigures | StoreError]: ...
    async def waiting_users(
        self, marks: Sequence[WaitingMark], count: int
    ) -> Sequence[Sequence[WaitingUser] | StoreError]: ...
    async def silent_users(
        self, partitions: Sequence[int], silent_ms: int, count: int
    ) -> Sequence[Sequence[UserId] | StoreError]: ...
    async def recheck_waiting(self, users: Sequence[UserId]) -> Sequence[int | StoreError]: ...
    async def away_pending(self, places: Sequence[WaitingPlace]) -> Sequence[AwayPending | StoreError]: ...
    async def infos(self) -> Sequence[StoreInfo]: ...


class Tally:
    """The counting of one node. `run` it.

    Args:
        store: where the index is.
        sessions: those that are attached here.
        share: the partitions that this node counts now; none while it drains, for others count them then.
        clock: with the store's wall time.
        counters: for what fails.
        every_ms: between two counts.
    """

    def __init__(
        self,
        store: Counted,
        sessions: Iterable[Seated],
        share: Callable[[], Sequence[int]],
        clock: Clock,
        counters: Counters,
        *,
        every_ms: int,
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._share = share
        self._clock = clock
        self._counters = counters
        self._every_ms = every_ms
        self._turn = 0
        self._found: Tallied | None = None

    def __repr__(self) -> str:
        return f"<Tally {self._found!r}>"

    @property
    def found(self) -> Tallied | None:
        """The last count; None when there is none that is fresh enough to be told."""
        found = self._found
        if found is None or self._clock.monotonic_ms() - found.at_ms > STALE_FACTOR * self._every_ms:
            return None
        return found

    async def run(self) -> None:
        """Counts until it is cancelled."""
        while True:
            await self.count()
            await asyncio.sleep(seconds(self._every_ms))

    async def count(self) -> None:
        """One count. Where the store fails the last one stays, and grows old. Cancellation leaves the last one."""
        here = await self._here()
        try:
            self._found = await self._with_partitions(here, self._share())
        except StoreError as error:
            self._counters.store_errors[error.code] += 1
            logger.debug("what waits could not be counted: %s", error, extra={"code": error.code})

    async def _here(self) -> Tallied:
        """What the node's own sessions owe."""
        now_ms, wall_ms = self._clock.monotonic_ms(), self._clock.now_ms()
        pending = oldest_ms = 0
        for number, session in enumerate(list(self._sessions), 1):
            if number % SLICE == 0:
                await asyncio.sleep(0)
            if not session.is_open:
                continue
            pending += session.delivery.outstanding
            oldest = session.delivery.oldest
            if oldest is not None:
                # What waited for its client to come is not late: only the time since then counts.
                age_ms = min(wall_ms - entry_order(oldest)[0], now_ms - session.opened_ms)
                oldest_ms = max(oldest_ms, age_ms)
        return Tallied(at_ms=now_ms, pending=pending, pending_oldest_ms=oldest_ms)

    async def _with_partitions(self, here: Tallied, share: Sequence[int]) -> Tallied:
        if not share:
            return here
        figures: list[PartitionFigures] = []
        for at in range(0, len(share), AT_ONCE):
            some = share[at : at + AT_ONCE]
            await self._mend(some)
            figures += _good(await self._store.partition_figures(some))
        waiting = [one for one in figures if one.waiting_users]
        first = min(waiting, key=lambda one: one.oldest_ms, default=None)
        oldest_ms = 0
        if first is not None:
            oldest_ms = max(0, self._clock.now_ms() - await self._oldest_of(first))
        return replace(
            here,
            waiting_users=sum(one.waiting_users for one in figures),
            waiting_oldest_ms=oldest_ms,
            pending_away=await self._away(figures),
            dead_letters=sum(one.dead_letters for one in figures),
            deadlines=sum(one.deadlines for one in figures),
            operator_events=sum(one.operator_events for one in figures),
            # One node of all has this partition.
            servers=await self._store.infos() if 0 in share else (),
        )

    async def _mend(self, share: Sequence[int]) -> None:
        """Looks again at those whose node may have died: nobody says of them any more that something waits."""
        silent = _good(await self._store.silent_users(share, SILENT_MS, SILENT_MAX))
        users = [user for page in silent for user in page]
        if users:
            _good(await self._store.recheck_waiting(users))

    async def _away(self, figures: Sequence[PartitionFigures]) -> int:
        """How much waits for sessions that are away; other users are asked each time where many wait."""
        self._turn += 1
        places = places_of(figures, self._turn)
        found: list[AwayPending] = []
        for at in range(0, len(places), AT_ONCE):
            found += _good(await self._store.away_pending(places[at : at + AT_ONCE]))
        return _estimate(figures, places, found)

    async def _oldest_of(self, figures: PartitionFigures) -> int:
        """Since when it waits in a partition, after another look at those who have waited for longest."""
        mark = WaitingMark(since_ms=1, partition=figures.partition)
        [page] = _good(await self._store.waiting_users([mark], RECHECKED_MAX))
        if not page:
            return self._clock.now_ms()
        since = _good(await self._store.recheck_waiting([one.user for one in page]))
        return min([one for one in since if one], default=page[-1].since_ms)


def places_of(figures: Sequence[PartitionFigures], turn: int) -> list[WaitingPlace]:
    """Whom to ask how much waits: everybody for whom something does, `SAMPLED_MAX` at most.

    Where they are more, as many of each partition, or one of each of as many partitions; others in each turn.
    """
    waiting = [one for one in figures if one.waiting_users]
    if sum(one.waiting_users for one in waiting) <= SAMPLED_MAX:
        return [WaitingPlace(partition=one.partition, offset=0, count=one.waiting_users) for one in waiting]
    step = -(-len(waiting) // SAMPLED_MAX)
    chosen = waiting[turn % step :: step]
    part, places = turn * _GOLDEN % 1, list[WaitingPlace]()
    for one in chosen:
        count = min(one.waiting_users, max(1, SAMPLED_MAX // len(chosen)))
        offset = int(part * (one.waiting_users - count + 1))
        places.append(WaitingPlace(partition=one.partition, offset=offset, count=count))
    return places


def _estimate(figures: Sequence[PartitionFigures], places: Sequence[WaitingPlace], found: Sequence[AwayPending]) -> int:
    """How much waits for all, given how much waits for those who were asked: each stands for others of its partition,
    and the partitions that were asked for the others.
    """
    waiting = {one.partition: one.waiting_users for one in figures}
    stood_for = entries = 0.0
    for place, one in zip(places, found, strict=True):
        if one.users:  # else they have gone from the index meanwhile
            # The index may have grown since it was counted: those who were asked stand at least for themselves.
            users = max(waiting[place.partition], one.users)
            stood_for += users
            entries += one.entries * users / one.users
    return round(entries * max(1.0, sum(waiting.values()) / stood_for)) if stood_for else 0


def _good(answers: Sequence[T | StoreError]) -> list[T]:
    """All answers. Raises: StoreError: one of them is an error."""
    found: list[T] = []
    for answer in answers:
        if isinstance(answer, StoreError):
            raise answer
        found.append(answer)
    return found
