"""Reading retained events back in filtered pages: nothing twice, nothing missed, however the pages fall."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus.history import PAGE_MIN, PAGES_MAX, HistoryAnswer, Wanted, read_history
from eventbus.ids import ENTRY_ZERO, EntryId, EventId, UserId
from eventbus.store import Append, Appended, HistoryPage
from eventbus.testing import MemoryStore

ALICE = UserId("alice")


class CountingStore(MemoryStore):
    pages = 0

    async def history(self, user: UserId, after: EntryId, count: int) -> HistoryPage:
        self.pages += 1
        return await super().history(user, after, count)


async def filled(types: str, store: MemoryStore) -> list[EntryId]:
    """One event for each letter, of that type; their entry ids."""
    appends = []
    for number, letter in enumerate(types):
        event = {"v": 1, "id": f"e{number}", "type": letter, "user": "alice", "time_ms": 1, "data": {}}
        body = msgpack.packb(event)
        assert isinstance(body, bytes)
        appends.append(Append(user=ALICE, event=EventId(f"e{number}"), body=body))
    return [result.entry for result in await store.append(appends) if isinstance(result, Appended)]


async def all_pages(store: MemoryStore, wanted: Wanted, limit: int) -> list[HistoryAnswer]:
    answers = [await read_history(store, wanted, after=ENTRY_ZERO, limit=limit)]
    while answers[-1].more:
        answers.append(await read_history(store, wanted, after=answers[-1].cursor, limit=limit))
    return answers


@pytest.mark.requirement("R7")
@given(types=st.text("ab", max_size=30), limit=st.integers(1, 7))
async def test_the_pages_together_are_what_is_wanted_in_order(types: str, limit: int) -> None:
    store = MemoryStore()
    entries = await filled(types, store)
    answers = await all_pages(store, Wanted(user=ALICE, type="a"), limit)
    assert [entry.id for answer in answers for entry in answer.entries] == [
        entry for entry, letter in zip(entries, types, strict=True) if letter == "a"
    ]
    assert all(len(answer.entries) <= limit for answer in answers)
    # The last cursor is good for a session: nothing that was stored lies behind it.
    if not types.endswith("a") or not answers[-1].more:
        assert answers[-1].cursor == (entries[-1] if entries else ENTRY_ZERO)


@pytest.mark.requirement("R25")
@pytest.mark.requirement("R26")
async def test_one_read_walks_a_bounded_number_of_pages_and_the_next_goes_on_there() -> None:
    store = CountingStore()
    entries = await filled("b" * 2 * PAGES_MAX * PAGE_MIN + "a", store)
    first = await read_history(store, Wanted(user=ALICE, type="a"), after=ENTRY_ZERO, limit=1)
    assert store.pages == PAGES_MAX
    assert (list(first.entries), first.more, first.cursor) == ([], True, entries[PAGES_MAX * PAGE_MIN - 1])
    answers = await all_pages(store, Wanted(user=ALICE, type="a"), limit=1)
    assert [entry.id for answer in answers for entry in answer.entries] == entries[-1:]


@pytest.mark.requirement("R22")
async def test_what_is_no_event_or_of_another_user_is_left_out() -> None:
    store = MemoryStore()
    (entry,) = await filled("a", store)
    foreign = msgpack.packb({"v": 1, "id": "x", "type": "a", "user": "bob", "time_ms": 1, "data": {}})
    assert isinstance(foreign, bytes)
    await store.append([Append(user=ALICE, event=EventId(f"bad{len(body)}"), body=body) for body in (b"\xc1", foreign)])
    answer = await read_history(store, Wanted(user=ALICE), after=ENTRY_ZERO, limit=10)
    assert [found.id for found in answer.entries] == [entry]
