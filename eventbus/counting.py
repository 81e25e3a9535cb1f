"""Reading the figures of `eventbus.rates` out of a store: over all, and exactly for a user. Bounded; nothing writes."""

from __future__ import annotations

from typing import Final

from eventbus.errors import InvalidEvent, StoreError
from eventbus.event import peek
from eventbus.ids import ENTRY_ZERO, EntryId, EventId, RunId, UserId, entry_order
from eventbus.rates import Rates, Tally, rates_of_counts
from eventbus.store import Store, StoredEntry
from eventbus.store.figures import Counts

__all__ = ["overall_rates", "user_rates"]

_PARTITIONS: Final = 128
_ENTRIES: Final = 100
_RECORDS: Final = 500
_LOOKED_AT_MAX: Final = 20_000
_RECORDS_KEPT: Final = 10_000
"""A user's records are trimmed at about so many: beyond, the oldest may be missing."""


async def overall_rates(store: Store, *, partitions: int, type: str | None = None) -> Rates:
    """What became of all events of the last 30 days and more, as it was counted when it happened.

    Args:
        store: where it was counted.
        partitions: of the installation.
        type: only events of this type.

    Raises:
        StoreError: the store failed.
    """
    pages: list[Counts] = []
    for start in range(0, partitions, _PARTITIONS):
        for answer in await store.counts(range(start, min(start + _PARTITIONS, partitions))):
            if isinstance(answer, StoreError):
                raise answer
            pages.append(answer)
    return rates_of_counts(pages, type)


async def user_rates(
    store: Store,
    user: UserId,
    *,
    partition: int,
    event: EventId | None = None,
    run: RunId | None = None,
    type: str | None = None,
) -> Rates:
    """What became of the retained events of a user, counted from the events and the records of the user's sessions.

    Args:
        store: where they are.
        user: whose.
        partition: the user's.
        event: only the event with this id.
        run: only events of this run.
        type: only events of this type.

    Raises:
        StoreError: the store failed.
    """
    tally = Tally()
    first = await _take_events(store, user, tally, event, run, type)
    if first is not None:
        await _take_records(store, user, tally, first)
        await _take_dead(store, user, partition, tally, first)
    return tally.rates()


async def _take_events(
    store: Store, user: UserId, tally: Tally, event: EventId | None, run: RunId | None, type: str | None
) -> EntryId | None:
    """Returns the first entry that counts, None when none does."""
    first, after = None, ENTRY_ZERO
    needle = (event or run or "").encode()
    for _ in range(0, _LOOKED_AT_MAX, _ENTRIES):
        page = await store.history(user, after, _ENTRIES)
        for entry in page.entries:
            # Most bodies do not hold the id at all, and decoding costs more than looking.
            if needle in entry.body and (found := _type_of(entry, user, event, run, type)) is not None:
                tally.event(entry.id, found)
                first = first or entry.id
        if not page.more or not page.entries:
            return first
        after = page.entries[-1].id
    tally.exact = False
    return first


def _type_of(
    entry: StoredEntry, user: UserId, event: EventId | None, run: RunId | None, type: str | None
) -> str | None:
    try:
        head = peek(entry.body)
    except InvalidEvent:  # somebody else wrote into the stream
        return None
    wanted = head.user == user and event in (None, head.id) and run in (None, head.run) and type in (None, head.type)
    return head.type if wanted else None


async def _take_records(store: Store, user: UserId, tally: Tally, first: EntryId) -> None:
    """Records are younger than their entries; the events were read before, so nothing is missed."""
    after, seen = _before(first), 0
    while seen < 2 * _RECORDS_KEPT:
        page = await store.confirmations(user, after, _RECORDS)
        for _, record in page:
            tally.record(record)
        seen += len(page)
        if len(page) < _RECORDS:
            break
        after = page[-1][0]
    if seen >= _RECORDS_KEPT:
        tally.exact = False


async def _take_dead(store: Store, user: UserId, partition: int, tally: Tally, first: EntryId) -> None:
    after = _before(first)
    for _ in range(0, _LOOKED_AT_MAX, _RECORDS):
        page = await store.dead_letters(partition, after, _RECORDS)
        for letter in page:
            if letter.user == user:
                tally.dead(letter.session, letter.entry)
        if len(page) < _RECORDS:
            return
        after = page[-1].id
    tally.exact = False


def _before(entry: EntryId) -> EntryId:
    ms, _ = entry_order(entry)
    return EntryId(f"{ms - 1}-{2**64 - 1}") if ms else ENTRY_ZERO
