"""What waits is counted: the node's own sessions, and each partition by one node alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from eventbus.errors import StoreError, StoreUnavailable
from eventbus.ids import EntryId, UserId
from eventbus.store import StoreInfo
from eventbus.store.waiting import AwayPending, PartitionFigures, WaitingMark, WaitingPlace, WaitingUser
from eventbus.testing import ManualClock
from gateway.counters import Counters
from gateway.tally import SAMPLED_MAX, Tally, places_of


@dataclass
class FakeWindow:
    outstanding: int = 0
    oldest: EntryId | None = None


@dataclass
class FakeSession:
    delivery: FakeWindow
    opened_ms: int = 0
    is_open: bool = True


@dataclass
class FakeStore:
    """An index in which users wait since a time; `behind` are users of whom it says so wrongly."""

    waiting: dict[UserId, int] = field(default_factory=dict)
    behind: set[UserId] = field(default_factory=set)
    asked: list[int] = field(default_factory=list)
    counted: int = 0
    away: bool = False

    def _page(self, partition: int) -> list[WaitingUser]:
        rows = [WaitingUser(user=user, since_ms=since) for user, since in self.waiting.items()]
        return sorted(rows, key=lambda row: row.since_ms) if partition == 0 else []

    async def partition_figures(self, partitions: Sequence[int]) -> Sequence[PartitionFigures | StoreError]:
        if self.away:
            return [StoreUnavailable("away") for _ in partitions]
        self.asked += partitions
        return [
            PartitionFigures(
                partition=number,
                waiting_users=len(self._page(number)),
                oldest_ms=min([row.since_ms for row in self._page(number)], default=0),
                dead_letters=2,
                deadlines=3,
                operator_events=4,
                live_users=0,
            )
            for number in partitions
        ]

    async def waiting_users(
        self, marks: Sequence[WaitingMark], count: int
    ) -> Sequence[Sequence[WaitingUser] | StoreError]:
        return [self._page(mark.partition)[:count] for mark in marks]

    async def silent_users(
        self, partitions: Sequence[int], silent_ms: int, count: int
    ) -> Sequence[Sequence[UserId] | StoreError]:
        return [[] for _ in partitions]

    async def recheck_waiting(self, users: Sequence[UserId]) -> Sequence[int | StoreError]:
        for user in self.behind & set(users):
            del self.waiting[user]
        return [self.waiting.get(user, 0) for user in users]

    async def away_pending(self, places: Sequence[WaitingPlace]) -> Sequence[AwayPending | StoreError]:
        """A user has as many entries as the name has letters."""
        if self.away:
            return [StoreUnavailable("away") for _ in places]
        pages = [self._page(place.partition)[place.offset : place.offset + place.count] for place in places]
        self.counted += sum(map(len, pages))
        return [AwayPending(users=len(page), entries=sum(len(one.user) for one in page)) for page in pages]

    async def infos(self) -> Sequence[StoreInfo]:
        return []


def tally(
    store: FakeStore, clock: ManualClock, *sessions: FakeSession, share: Sequence[int] = (0, 1), counters: Counters
) -> Tally:
    return Tally(store, sessions, lambda: share, clock, counters, every_ms=1_000)


def fresh(counting: Tally) -> bool:
    """Whether there is something to tell."""
    return counting.found is not None


@pytest.fixture
def clock() -> ManualClock:
    made = ManualClock()
    made.advance(100_000)
    return made


@pytest.mark.requirement("R29")
async def test_what_sessions_owe_is_added_up_and_counts_from_when_their_client_came(clock: ManualClock) -> None:
    wall_ms, now_ms = clock.now_ms(), clock.monotonic_ms()
    counters = Counters()
    stored = EntryId(f"{wall_ms - 9_000}-0")
    sessions = (
        FakeSession(FakeWindow(3, EntryId(f"{wall_ms - 2_000}-1")), opened_ms=now_ms - 50_000),
        FakeSession(FakeWindow(4, stored), opened_ms=now_ms - 1_000),  # it waited for its client, who came just now
        FakeSession(FakeWindow(50), is_open=False),
    )
    counting = tally(FakeStore(), clock, *sessions, counters=counters)
    await counting.count()
    assert counting.found is not None
    assert (counting.found.pending, counting.found.pending_oldest_ms) == (7, 2_000)


@pytest.mark.requirement("R29")
async def test_partitions_of_the_share_are_added_up(clock: ManualClock) -> None:
    store = FakeStore({UserId("ada"): clock.now_ms() - 5_000, UserId("bob"): clock.now_ms() - 1_000})
    counting = tally(store, clock, counters=Counters())
    await counting.count()
    found = counting.found
    assert found is not None
    assert (found.waiting_users, found.waiting_oldest_ms) == (2, 5_000)
    assert (found.dead_letters, found.deadlines, found.operator_events) == (4, 6, 8)
    assert store.asked == [0, 1]


async def test_one_for_whom_nothing_waits_any_more_is_not_the_oldest(clock: ManualClock) -> None:
    store = FakeStore({UserId("ada"): 1, UserId("bob"): clock.now_ms() - 1_000}, behind={UserId("ada")})
    counting = tally(store, clock, counters=Counters())
    await counting.count()
    assert counting.found is not None
    assert counting.found.waiting_oldest_ms == 1_000


@pytest.mark.requirement("R29")
async def test_what_waits_for_those_who_are_away_is_counted_where_they_are_few(clock: ManualClock) -> None:
    store = FakeStore({UserId("ada"): 1, UserId("robert"): 2})
    counting = tally(store, clock, counters=Counters())
    await counting.count()
    assert counting.found is not None
    assert (counting.found.pending_away, store.counted) == (9, 2)


@pytest.mark.requirement("R29")
async def test_where_many_are_away_a_sample_of_them_stands_for_all_and_others_are_asked_each_time(
    clock: ManualClock,
) -> None:
    """4 letters of the first half, who wait longest, 8 of the second: in the long run it is 6 for each."""
    names = [f"{number:0{4 if number < 5_000 else 8}d}" for number in range(10_000)]
    store = FakeStore({UserId(name): since for since, name in enumerate(names, 1)})
    counting = tally(store, clock, counters=Counters())
    found: list[int] = []
    for turn in range(1, 21):
        await counting.count()
        assert counting.found is not None
        assert store.counted <= turn * SAMPLED_MAX
        found.append(counting.found.pending_away)
    assert len(set(found)) > 1
    assert 54_000 <= sum(found) / len(found) <= 66_000


def figures_of(*waiting: int) -> list[PartitionFigures]:
    return [
        PartitionFigures(
            partition=number,
            waiting_users=users,
            oldest_ms=1,
            dead_letters=0,
            deadlines=0,
            operator_events=0,
            live_users=0,
        )
        for number, users in enumerate(waiting)
    ]


@pytest.mark.parametrize("waiting", [(1_000_000,), (100,) * 1_024, (1,) * 255 + (7,), (0, 3, 0), (300, 1, 1)])
def test_never_more_are_asked_than_the_bound_and_none_who_is_not_there(waiting: tuple[int, ...]) -> None:
    for turn in range(50):
        places = places_of(figures_of(*waiting), turn)
        assert 0 < sum(place.count for place in places) <= SAMPLED_MAX
        assert len({place.partition for place in places}) == len(places)
        for place in places:
            assert 0 <= place.offset <= waiting[place.partition] - place.count
            assert place.count > 0


async def test_a_node_that_drains_leaves_the_partitions_to_others(clock: ManualClock) -> None:
    store = FakeStore({UserId("ada"): 1})
    counting = tally(store, clock, share=(), counters=Counters())
    await counting.count()
    assert counting.found is not None
    assert counting.found.waiting_users == 0
    assert store.asked == []


async def test_an_old_count_is_told_no_more(clock: ManualClock) -> None:
    store, counters = FakeStore(), Counters()
    counting = tally(store, clock, counters=counters)
    assert not fresh(counting)
    await counting.count()
    store.away = True
    clock.advance(2_000)
    await counting.count()
    assert fresh(counting)
    assert counters.store_errors["store_unavailable"] == 1
    clock.advance(3_000)
    assert not fresh(counting)
