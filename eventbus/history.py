"""Reading a user's retained events back, a filtered page at a time, and the list of their threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from eventbus.errors import InvalidEvent, InvalidField
from eventbus.event import Event, decode_envelope, peek
from eventbus.ids import EntryId, Epoch, RunId, ThreadId, UserId, entry_order, parse_thread_id
from eventbus.store import Store, StoredEntry
from eventbus.store.figures import ThreadRecord

__all__ = [
    "EventPage",
    "HistoryAnswer",
    "PastEvent",
    "ThreadList",
    "Wanted",
    "event_page",
    "parse_limit",
    "read_history",
    "read_threads",
]

PAGES_MAX: Final = 20
"""Most pages of the stream that one filtered read walks; the next one goes on where it stopped."""
PAGE_MIN: Final = 100
"""A filtered read asks for so many entries at a time at the least, for few of them may be wanted."""

LIMIT_MAX: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a read keeps: events of the user that have each attribute that is given."""

    user: UserId
    type: str | None = None
    thread: ThreadId | None = None
    run: RunId | None = None

    @property
    def is_filtered(self) -> bool:
        """Whether anything is left out."""
        return (self.type, self.thread, self.run) != (None, None, None)

    def matches(self, entry: StoredEntry) -> bool:
        """Whether the entry is wanted; one that can not be read, or names another user, is not."""
        try:
            head = peek(entry.body)
        except InvalidEvent:
            return False
        if head.user != self.user:
            return False
        return self.type in (None, head.type) and self.thread in (None, head.thread) and self.run in (None, head.run)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryAnswer:
    """A page as it was asked for, oldest first.

    Attributes:
        entries: what was found.
        cursor: up to where the stream was read: where the next page, or a session, begins.
        epoch: the partition's.
        more: whether something follows that may be wanted.
    """

    entries: Sequence[StoredEntry]
    cursor: EntryId
    epoch: Epoch
    more: bool


async def read_history(store: Store, wanted: Wanted, *, after: EntryId, limit: int) -> HistoryAnswer:
    """Reads on until `limit` events are found, the stream has ended, or `PAGES_MAX` pages were walked.

    Raises:
        StoreError: the store failed.
    """
    found: list[StoredEntry] = []
    cursor = after
    count = max(limit, PAGE_MIN) if wanted.is_filtered else limit
    page = await store.history(wanted.user, cursor, count)
    for number in range(1, PAGES_MAX + 1):
        for entry in page.entries:
            cursor = entry.id
            if wanted.matches(entry):
                found.append(entry)
            if len(found) == limit:
                more = page.more or entry is not page.entries[-1]
                return HistoryAnswer(entries=found, cursor=cursor, epoch=page.epoch, more=more)
        if not page.more:
            if not page.entries:
                cursor = max(cursor, page.tail, key=entry_order)
            break
        if number < PAGES_MAX:
            page = await store.history(wanted.user, cursor, count)
    return HistoryAnswer(entries=found, cursor=cursor, epoch=page.epoch, more=page.more)


@dataclass(frozen=True, slots=True, kw_only=True)
class PastEvent:
    """A retained event and where it is stored."""

    entry: EntryId
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """A page of retained events, oldest first.

    Attributes:
        events: what was found; perhaps none, and still more to come.
        cursor: up to where the stream was read: the `after` of the next page, and where a session may start.
        more: whether something follows that may be wanted.
    """

    events: Sequence[PastEvent]
    cursor: EntryId
    more: bool


def event_page(answer: HistoryAnswer) -> EventPage:
    """The events of an answer, decoded; what a newer version wrote and this one can not read is left out."""
    events = []
    for entry in answer.entries:
        try:
            events.append(PastEvent(entry=entry.id, event=decode_envelope(entry.body)))
        except InvalidEvent:
            continue
    return EventPage(events=events, cursor=answer.cursor, more=answer.more)


def parse_limit(limit: int) -> int:
    """Check how much a page may hold. Raises: InvalidField."""
    if type(limit) is not int or not 1 <= limit <= LIMIT_MAX:
        raise InvalidField("limit", f"must be a whole number from 1 to {LIMIT_MAX}, not {limit!r}")
    return limit


# --- threads ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadList:
    """A page of a user's threads, the one with the newest event first.

    Attributes:
        threads: each with the time of its last event.
        next: the `before` of the next page; None at the end.
    """

    threads: Sequence[ThreadRecord]
    next: str | None


async def read_threads(store: Store, user: UserId, *, before: str | None, limit: int) -> ThreadList:
    """The threads of which events are retained. One that gets an event between two pages moves to the front: it may be
    missed by the later one, never told twice.

    Args:
        store: where they are.
        user: whose.
        before: what the page before said in `next`; None for the first.
        limit: how many at most.

    Raises:
        InvalidField: `before` is nothing that a page said.
        StoreError: the store failed.
    """
    page = await store.threads(user, None if before is None else _mark(before), limit)
    last = page.threads[-1] if page.threads and page.more else None
    return ThreadList(threads=page.threads, next=None if last is None else f"{last.place}:{last.thread}")


def _mark(text: str) -> ThreadRecord:
    place, colon, thread = text.partition(":")
    if not colon or not place.isascii() or not place.isdigit() or len(place) > 18:
        raise InvalidField("before", f"{text[:40]!r} is not what a page gave as `next`")
    return ThreadRecord(thread=parse_thread_id(thread, "before"), place=int(place))
