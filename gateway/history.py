"""Reading a user's retained events back, a filtered page at a time: what `GET /v1/events` answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from eventbus.errors import InvalidEvent
from eventbus.event import peek
from eventbus.ids import EntryId, Epoch, RunId, ThreadId, UserId, entry_order
from eventbus.store import Store, StoredEntry

__all__ = ["HistoryAnswer", "Wanted", "read_history"]

PAGES_MAX: Final = 20
"""Most pages of the stream that one filtered read walks; the next one goes on where it stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a read keeps: events of the user that have each attribute that is given."""

    user: UserId
    type: str | None = None
    thread: ThreadId | None = None
    run: RunId | None = None

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
    page = await store.history(wanted.user, cursor, limit)
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
            page = await store.history(wanted.user, cursor, limit)
    return HistoryAnswer(entries=found, cursor=cursor, epoch=page.epoch, more=page.more)
