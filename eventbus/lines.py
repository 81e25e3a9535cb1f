"""Publishes on their way to the store: one line for each user, first in first out.

A line has at most one event under way, so a retry keeps its place: what is behind it waits, other users' lines do not.
What is sent again after a primary change (`again`) stands before the line's own queue. Source: docs/publishing.md.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator

from eventbus.breaker import Permit
from eventbus.ids import UserId
from eventbus.kept import KeptEvent
from eventbus.store import Append, Appended, Durability

__all__ = ["Call", "Future", "Item", "Line"]

Future = asyncio.Future[tuple[Appended, int]]
"""What the caller of a publish waits for: the answer, and how often the event was sent."""


class Item:
    """An event that waits to be stored.

    Attributes:
        future: the caller's; done before the item is, when the caller was cancelled or told of a time-out. None for an
            event that is sent again, which nobody waits for.
        kept: the kept event that is sent again, None for a publish.
        attempts: how often it was sent.
        error: what the last try ended with.
        repaired: it was out of order, and what is kept of its run was put before it.
        queued_ms, deadline_ms: monotonic times.
    """

    __slots__ = ("append", "attempts", "deadline_ms", "durability", "error", "future", "kept", "queued_ms", "repaired")

    def __init__(
        self,
        append: Append,
        durability: Durability,
        queued_ms: int,
        deadline_ms: int,
        future: Future | None,
        kept: KeptEvent | None = None,
    ) -> None:
        self.append = append
        self.durability = durability
        self.queued_ms = queued_ms
        self.deadline_ms = deadline_ms
        self.future = future
        self.kept = kept
        self.attempts = 0
        self.error: BaseException | None = None
        self.repaired = False

    @property
    def abandoned(self) -> bool:
        """Nobody waits for it any more."""
        return self.future is not None and self.future.done()


class Line:
    """The items of one user. It is ready, has an item under way, or waits before a retry: one of these at a time.

    Attributes:
        queue: publishes, oldest first, without the one under way.
        again: events to be sent again, which go before `queue`.
        failures: how many tries of this line have failed in a row.
    """

    __slots__ = ("again", "failures", "queue", "user")

    def __init__(self, user: UserId) -> None:
        self.user = user
        self.queue: deque[Item] = deque()
        self.again: deque[Item] | None = None
        self.failures = 0

    def __bool__(self) -> bool:
        """Whether anything waits in it."""
        return bool(self.queue or self.again)

    def __iter__(self) -> Iterator[Item]:
        if self.again:
            yield from self.again
        yield from self.queue

    def pop(self) -> Item:
        """Take the item that is next. The line must not be empty."""
        return self.again.popleft() if self.again else self.queue.popleft()

    def put_back(self, item: Item) -> None:
        """Give an item that was under way its place again."""
        if item.kept is None:
            self.queue.appendleft(item)
        else:
            if self.again is None:
                self.again = deque()
            self.again.appendleft(item)

    def send_again(self, items: Iterable[Item]) -> None:
        """Put items before the queue. What waits to be sent again and is not among them is older, and stays first."""
        new = list(items)
        named = {id(item.kept) for item in new}
        self.again = deque([item for item in self.again or () if id(item.kept) not in named] + new)

    def keep(self, wanted: set[int]) -> None:
        """Drop all items but those whose `id()` is wanted."""
        self.queue = deque(item for item in self.queue if id(item) in wanted)
        if self.again:
            self.again = deque(item for item in self.again if id(item) in wanted)


class Call:
    """A call of `Store.append` under way: at most one item of each line.

    Attributes:
        doubts: of the kept events when it began.
        lane: of all its items.
        permit: of the breaker.
        started_ms: monotonic time.
    """

    __slots__ = ("doubts", "durability", "items", "lane", "lines", "permit", "started_ms", "task")

    def __init__(self, durability: Durability, permit: Permit, started_ms: int, doubts: int, lane: int = 0) -> None:
        self.doubts = doubts
        self.lane = lane
        self.durability = durability
        self.permit = permit
        self.started_ms = started_ms
        self.lines: list[Line] = []
        self.items: list[Item] = []
        self.task: asyncio.Task[None] | None = None
