"""What becomes of events when the store has answered, or has not: done, tried again in their place, or given up."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from eventbus.errors import OutOfOrder
from eventbus.ids import UserId
from eventbus.publishing.guard import Guard
from eventbus.publishing.kept import Kept, KeptEvent
from eventbus.publishing.lines import Item, Line, Lines
from eventbus.publishing.retries import RetryPolicy, final_error
from eventbus.store import Appended, Durability
from eventbus.store.running import StepOrder
from eventbus.timers import NEVER_MS, Alarm

__all__ = ["Settling", "again"]

_log = logging.getLogger("eventbus.publishing")


def again(kept: KeptEvent, now_ms: int) -> Item:
    """A kept event as it is sent again."""
    # In memory, whatever the first time promised: right after a failover there may be no replica to wait for.
    append = kept.append
    if append.step is not None:
        # They come in order, so what is missing before the first of them is kept nowhere.
        append = replace(append, step=replace(append.step, order=StepOrder.ANEW))
    return Item(append, Durability.MEMORY, now_ms, NEVER_MS, None, kept)


class Settling:
    """Settles what was under way: its future, its line, what is kept of it.

    Args:
        kept: what was stored goes there.
        lines: what waits.
        guard: when the store may be tried again.
        policy: which errors are worth another try, and how long to wait before it.
        alarm: rings when a wait is over.

    Attributes:
        ended: nothing is tried any more.
        published, duplicates, failed, retries, resent, recovered, resend_failed: counts, see `PublishStatistics`.
    """

    __slots__ = (
        "_alarm",
        "_guard",
        "_kept",
        "_lines",
        "_policy",
        "duplicates",
        "ended",
        "failed",
        "published",
        "recovered",
        "resend_failed",
        "resent",
        "retries",
    )

    def __init__(self, kept: Kept, lines: Lines, guard: Guard, policy: RetryPolicy, alarm: Alarm) -> None:
        self._kept = kept
        self._lines = lines
        self._guard = guard
        self._policy = policy
        self._alarm = alarm
        self.ended = False
        self.published = self.duplicates = self.failed = self.retries = 0
        self.resent = self.recovered = self.resend_failed = 0

    def stored(self, line: Line, item: Item, answer: Appended, now_ms: int, doubts: int) -> None:
        """An event under way was stored.

        Args:
            line: whose turn it was.
            item: what was under way.
            answer: of the store.
            now_ms: monotonic time.
            doubts: of the kept events when its call began.
        """
        if item.kept is None:
            self.published += 1
            self.duplicates += answer.duplicate
            self._lines.leave(item)
            if item.future is not None and not item.future.done():
                item.future.set_result((answer, item.attempts))
            moved = self._kept.stored(item.append, answer.primary, now_ms, doubts)
        else:
            self.resent += 1
            self.recovered += not answer.duplicate
            moved = self._kept.stored_again(item.kept, answer.primary, doubts)
        if moved:
            self.send_again(moved)
        line.failures = 0
        self._lines.go_on(line)

    def not_stored(self, line: Line, item: Item, error: BaseException, now_ms: int) -> None:
        """An event under way was not stored, as far as is known: it is tried again, or given up."""
        item.error = error
        if isinstance(error, OutOfOrder) and not self.ended:
            self._repair(line, item, error, now_ms)
            return
        wait_ms = self._policy.wait_ms(error, line.failures + 1) if not self.ended else None
        if wait_ms is None:
            self.give_up(item, now_ms)
            self._lines.leave(item)
            self._lines.go_on(line)
            return
        line.failures += 1
        due_ms = now_ms + wait_ms
        if item.abandoned:
            self._lines.leave(item)
        elif max(due_ms, self._guard.next_probe_ms) >= item.deadline_ms:
            self.give_up(item, now_ms)
            self._lines.leave(item)
        else:
            self.retries += 1
            line.put_back(item)
        self._lines.wait(line, due_ms)
        self._alarm.arm(due_ms)

    def _repair(self, line: Line, item: Item, error: OutOfOrder, now_ms: int) -> None:
        """The store has lost events of a run before this one (D6): those that are kept go again, then this one.

        Once for an event and a doubt. When that was of no use, nobody here has what is missing, and its run is told.
        """
        step = item.append.step
        if step is None or item.kept is not None or item.repaired == self._kept.doubts or item.abandoned:
            self.give_up(item, now_ms)
            self._lines.leave(item)
        else:
            item.repaired = self._kept.doubts
            self._kept.lose(line.user, step.run, error.last, step.seq)
            line.put_back(item)
            self.retries += 1
        line.failures = 0
        self._lines.go_on(line)

    def send_again(self, users: Sequence[UserId]) -> None:
        """Have sent again what is kept of these users and is not where they are now."""
        _log.warning("a primary of the store has changed: what is kept of %d users is sent again", len(users))
        for user in users:
            self._lines.wake(user)

    def note_unsent(self, kept: KeptEvent, why: object) -> None:
        """Note that a kept event was lost and could not be sent again."""
        self.resend_failed += 1
        extra = {"event": kept.append.event, "user": kept.append.user}
        _log.error("an event could not be sent again: %s", why, extra=extra)

    def give_up(self, item: Item, now_ms: int) -> None:
        """Tell the caller of a publish, or the log, that no further try is made."""
        if item.kept is not None:
            item.kept.refused = True
            self.note_unsent(item.kept, item.error or "the bus was closed before it was sent")
        elif item.future is not None and not item.future.done():
            self.failed += 1
            item.future.set_exception(final_error(item, self._guard.breaker, now_ms))
