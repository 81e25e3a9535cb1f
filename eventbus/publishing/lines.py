"""Publishes on their way to the store: one line for each user, first in first out, and all lines by the lane of the
store that they go to.

A line has at most one event under way, so a retry keeps its place: what is behind it waits, other users' lines do not.
What is sent again after a primary change stands in no line: `eventbus.publishing.kept` names it when a line's turn has
come, and a line lives as long as there is something. Source: docs/publishing.md.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterator

from eventbus.breaker import Permit
from eventbus.errors import StoreBusy
from eventbus.ids import UserId
from eventbus.publishing.kept import KeptEvent
from eventbus.store import Append, Appended, Durability
from eventbus.timers import NEVER_MS

__all__ = ["Call", "Future", "Item", "Line", "Lines"]

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
        repaired: how many doubts there were when it was out of order, and what is kept of its run went before it; -1:
            that never was.
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
        self.repaired = -1

    @property
    def abandoned(self) -> bool:
        """Nobody waits for it any more."""
        return self.future is not None and self.future.done()


class Line:
    """The publishes of one user. It is ready, has an item under way, or waits before a retry: one of these at a time.

    Attributes:
        queue: oldest first, without the one under way.
        failures: how many tries of this line have failed in a row.
    """

    __slots__ = ("failures", "queue", "user")

    def __init__(self, user: UserId) -> None:
        self.user = user
        self.queue: deque[Item] = deque()
        self.failures = 0

    def put_back(self, item: Item) -> None:
        """Give an item that was under way its place again; what is sent again has none in a line."""
        if item.kept is None:
            self.queue.appendleft(item)


class Lines:
    """All lines of a publisher.

    Args:
        max_events: most publishes that may wait.
        max_bytes: most bytes of their bodies.
        lane_of: the lane of a user; None where there is one for all.
        is_wanting: whether something of a user is to be sent again.
        on_ready: called when a line has become ready.

    Attributes:
        events, bytes: of the publishes that wait or are under way; what is sent again does not count.
    """

    def __init__(
        self,
        max_events: int,
        max_bytes: int,
        lane_of: Callable[[UserId], int] | None,
        is_wanting: Callable[[UserId], bool],
        on_ready: Callable[[], object],
    ) -> None:
        self.events = self.bytes = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._lane_of = lane_of
        self._is_wanting = is_wanting
        self._on_ready = on_ready
        self._lines: dict[UserId, Line] = {}
        self._ready: dict[int, deque[Line]] = {}  # by lane, none of them empty
        self._waiting: list[tuple[int, int, Line]] = []  # a heap: when its retry is due, a number, the line
        self._number = 0

    @property
    def waits(self) -> bool:
        """Whether anything waits in a line."""
        return any(line.queue or self._is_wanting(line.user) for line in self._lines.values())

    # --- room -------------------------------------------------------------------------------------------------------

    def has_room(self, events: int, size: int) -> bool:
        """Whether so many more events, with bodies of `size` bytes in all, may wait."""
        return self.events + events <= self._max_events and self.bytes + size <= self._max_bytes

    def too_many(self) -> StoreBusy:
        """The error of a publish for which there is no room."""
        return StoreBusy(
            f"{self.events} events with {self.bytes} bytes already wait for the store, at most"
            f" {self._max_events} events and {self._max_bytes} bytes may: nothing of this was sent, try again later"
            " or raise EVENTBUS_QUEUE_EVENTS"
        )

    def add(self, item: Item) -> None:
        """Put a publish behind those of its user."""
        append = item.append
        self.events += 1
        self.bytes += len(append.body)
        self._line(append.user).queue.append(item)

    def leave(self, item: Item) -> None:
        """The item is in no line any more."""
        if item.kept is None:
            self.events -= 1
            self.bytes -= len(item.append.body)

    def wake(self, user: UserId) -> None:
        """Have a line for what is to be sent again of a user."""
        self._line(user)

    def _line(self, user: UserId) -> Line:
        line = self._lines.get(user)
        if line is None:
            line = self._lines[user] = Line(user)
            self._make_ready(line)
        return line

    # --- what is ready ----------------------------------------------------------------------------------------------

    @property
    def lanes(self) -> tuple[int, ...]:
        """The lanes that have ready lines."""
        return tuple(self._ready)

    def ready(self, lane: int) -> deque[Line] | None:
        """The ready lines of a lane, to be taken from; None when there is none."""
        return self._ready.get(lane)

    def tidy(self, lane: int) -> None:
        """Forget a lane whose ready lines were all taken."""
        if lane in self._ready and not self._ready[lane]:
            del self._ready[lane]

    def next_wanted(self, line: Line) -> Item | None:
        """Take the next item of a line that somebody waits for; None when there is none."""
        while line.queue:
            item = line.queue.popleft()
            if not item.abandoned:
                return item
            self.leave(item)
        return None

    def go_on(self, line: Line) -> None:
        """The line may send its next item; one that has none is forgotten."""
        if line.queue or self._is_wanting(line.user):
            self._make_ready(line)
        else:
            del self._lines[line.user]

    def _make_ready(self, line: Line) -> None:
        lane = 0 if self._lane_of is None else self._lane_of(line.user)
        ready = self._ready.get(lane)
        if ready is None:
            ready = self._ready[lane] = deque()
        ready.append(line)
        self._on_ready()

    # --- what waits before a retry ----------------------------------------------------------------------------------

    @property
    def due_ms(self) -> int:
        """When the next line goes on that waits before a retry."""
        return self._waiting[0][0] if self._waiting else NEVER_MS

    def wait(self, line: Line, due_ms: int) -> None:
        """The line goes on at `due_ms`."""
        self._number += 1
        heapq.heappush(self._waiting, (due_ms, self._number, line))

    def due_go_on(self, now_ms: int) -> None:
        """The waits that are over end."""
        while self._waiting and self._waiting[0][0] <= now_ms:
            self.go_on(heapq.heappop(self._waiting)[2])

    def all_go_on(self) -> None:
        """All waits end, in the order in which they began."""
        waiting, self._waiting = self._waiting, []
        for _, _, line in sorted(waiting, key=lambda wait: wait[1]):
            self.go_on(line)

    # --- what nobody waits for any more -----------------------------------------------------------------------------

    def purge(self, limit_ms: int, give_up: Callable[[Item], object]) -> int:
        """Give up what has its deadline at `limit_ms` or before, and forget what is abandoned.

        Returns:
            The earliest deadline of what is left, `NEVER_MS` when nothing is.
        """
        earliest_ms = NEVER_MS
        for line in self._lines.values():
            left: deque[Item] = deque()
            for item in line.queue:
                if item.deadline_ms <= limit_ms:
                    give_up(item)
                if item.abandoned or item.deadline_ms <= limit_ms:
                    self.leave(item)
                else:
                    left.append(item)
                    earliest_ms = min(earliest_ms, item.deadline_ms)
            line.queue = left
        return earliest_ms

    def take_all(self) -> Iterator[Item]:
        """Take everything that waits."""
        for line in self._lines.values():
            while line.queue:
                item = line.queue.popleft()
                self.leave(item)
                yield item


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
