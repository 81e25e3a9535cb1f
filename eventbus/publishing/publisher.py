"""The publisher: what was made is stored, in order for each user, with retries and a breaker.

All publishes of a turn of the event loop leave in one `Store.append`. A call carries at most one event of each user,
because the store goes on after a failed event, and only so can no later event overtake it. Where the store lies on
several servers a call carries events of one lane alone (`eventbus.store.topology.lane_of`), so that those whose server
is being replaced hold up nobody else's. The happy path costs a future a publish and a task a call; all that takes time
(waits before retries, deadlines, the next probe) shares one alarm.

What waits stands in `lines`, what may have to go again in `kept`, whether to try in `retries` and `guard`, what the
store says of its primaries in `primaries`, what becomes of each event in `settling`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from eventbus.breaker import Breaker, BreakerState, Permit
from eventbus.clock import Clock
from eventbus.config import PublishSettings
from eventbus.errors import (
    EventBusError,
    PublishTimeout,
    StoreError,
    StoreMoved,
    StoreTimeout,
    StoreUnavailable,
)
from eventbus.ids import UserId
from eventbus.publishing.guard import Guard
from eventbus.publishing.kept import Kept
from eventbus.publishing.lines import Call, Future, Item, Line, Lines
from eventbus.publishing.primaries import Primaries
from eventbus.publishing.receipt import PublishStatistics
from eventbus.publishing.retries import RetryPolicy, final_error
from eventbus.publishing.settling import Settling, again
from eventbus.store import Append, Appended, Durability, Store
from eventbus.timers import NEVER_MS, Alarm, Timers

__all__ = ["Publisher"]

_log = logging.getLogger("eventbus.publishing")

MAX_CALLS: Final = 8
"""Calls of a lane under way at once. While all are, publishes gather, and the next call carries more of them."""
MAX_CALL_EVENTS: Final = 500
MAX_CALL_BYTES: Final = 4 * 1024 * 1024
QUEUE_BYTES: Final = 64 * 1024 * 1024
"""Bodies that may wait for the store; one publish more is refused as busy."""

_DEADLINE_GRAIN_MS: Final = 25  # what waits is looked through no more often than this, for deadlines and for room


class Publisher:
    """Stores events for a `Bus`. Made and used in one running event loop.

    Args:
        store: where to.
        settings: deadlines, waits, bounds.
        clock: monotonic time.
        timers: where waits go.
        on_breaker: called in the event loop whenever the breaker has moved.
        queue_bytes: most bytes of bodies that may wait.
    """

    def __init__(
        self,
        store: Store,
        settings: PublishSettings,
        *,
        clock: Clock,
        timers: Timers,
        on_breaker: Callable[[BreakerState], object] | None = None,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self._store = store
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._call_limit_ms = settings.publish_deadline_ms
        self._guard = Guard(
            Breaker(
                failures=settings.breaker_failures,
                open_ms=settings.breaker_open_ms,
                open_max_ms=settings.breaker_open_max_ms,
            ),
            store.ping,
            clock=clock,
            on_breaker=on_breaker,
            on_open=self._stands_back,
            on_close=self._goes_on,
            on_probed=self._schedule_flush,
        )
        self._kept = Kept(
            kept_ms=settings.kept_ms,
            max_bytes=settings.kept_bytes,
            primary_of=getattr(store, "primary_of", None),
            # As long as the store knows the ids: what goes again later would be stored a second time.
            held_ms=getattr(getattr(store, "settings", None), "dedupe_ms", None),
            on_late=lambda kept: self._settling.note_unsent(kept, "it was kept for long enough"),
        )
        # A store on one server has one lane.
        self._lane_of: Callable[[UserId], int] | None = getattr(store, "lane_of", None)
        self._lines = Lines(
            settings.queue_events, queue_bytes, self._lane_of, self._kept.is_wanting, self._schedule_flush
        )
        self._under_way: dict[int, int] = {}  # lane -> its calls
        self._answered_ms = -1  # when the store last answered a call
        self._calls: set[Call] = set()
        self._flush_scheduled = False
        self._alarm = Alarm(clock, timers, self._ring)
        policy = RetryPolicy(base_ms=settings.retry_base_ms, max_ms=settings.retry_max_ms)
        self._settling = Settling(self._kept, self._lines, self._guard, policy, self._alarm)
        self._search_ms = 0  # before this a full queue is not searched for what its callers have left
        self._deadline_ms = NEVER_MS  # no publish that waits has an earlier deadline
        self._closing: asyncio.Future[None] | None = None
        self._close_ms = NEVER_MS
        self._ended = False

        self._primaries = Primaries(store, timers, on_lost=self._doubt, on_look=self._look_for_moved)

    def statistics(self) -> PublishStatistics:
        """How it stands."""
        self._kept.expire(self._clock.monotonic_ms())
        return PublishStatistics(
            published=self._settling.published,
            duplicates=self._settling.duplicates,
            failed=self._settling.failed,
            retries=self._settling.retries,
            resent=self._settling.resent,
            recovered=self._settling.recovered,
            resend_failed=self._settling.resend_failed,
            queued_events=self._lines.events,
            queued_bytes=self._lines.bytes,
            calls=len(self._calls),
            kept_events=len(self._kept),
            kept_bytes=self._kept.bytes,
            kept_overflow=self._kept.overflow,
            breaker=self._guard.breaker.state,
            breaker_failures=self._guard.breaker.failures,
            breaker_opened=self._guard.breaker.opened,
        )

    # --- taking publishes in ----------------------------------------------------------------------------------------

    def check_room(self, events: int, size: int) -> None:
        """Refuse what would not fit beside what already waits.

        Args:
            events: how many events are to come.
            size: bytes of their bodies.

        Raises:
            StoreBusy: too much waits.
            EventBusError: the bus is closed.
        """
        if self._closing is not None:
            raise EventBusError("the bus is closed: publish inside `async with Bus(...)`")
        if self._lines.has_room(events, size):
            return
        now_ms = self._clock.monotonic_ms()
        if now_ms >= self._search_ms:
            # What its callers have left does not count. A look goes over all that waits, and whoever publishes too fast
            # is refused thousands of times a second: looking each time would leave no time for the store's answers.
            self._search_ms = now_ms + _DEADLINE_GRAIN_MS
            self._purge(now_ms)
        if not self._lines.has_room(events, size):
            self._settling.failed += events
            raise self._lines.too_many()

    def submit(self, append: Append, durability: Durability, deadline_ms: int) -> Future:
        """Take an event in; `check_room` came before.

        Args:
            append: the event.
            durability: what its success is to promise.
            deadline_ms: milliseconds from now.

        Returns:
            The answer to come, with the number of tries. Cancelled, the event is abandoned: not sent any more, or when
            it is under way, perhaps stored all the same.

        Raises:
            BreakerOpen: the next probe comes after the deadline.
        """
        now_ms = self._clock.monotonic_ms()
        future: Future = self._loop.create_future()
        item = Item(append, durability, now_ms, now_ms + deadline_ms, future)
        if item.deadline_ms <= self._guard.next_probe_ms:
            self._settling.failed += 1
            raise final_error(item, self._guard.breaker, now_ms)
        self._lines.add(item)
        if item.deadline_ms < self._deadline_ms:
            self._deadline_ms = item.deadline_ms
            self._alarm.arm(item.deadline_ms)
        return future

    # --- sending ----------------------------------------------------------------------------------------------------

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled and not self._ended:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Sends what is ready, one item of each line."""
        self._flush_scheduled = False
        now_ms = self._clock.monotonic_ms()
        if self._primaries.has_lost_connection():
            self._kept.doubt(now_ms)
        for lane in self._lines.lanes:
            if not self._flush_lane(lane, now_ms):
                break
        self._guard.tell()
        self._tell_closing()

    def _flush_lane(self, lane: int, now_ms: int) -> bool:
        """Sends what is ready in a lane, as far as its calls go. Returns False when the breaker lets nothing pass."""
        while (ready := self._lines.ready(lane)) and self._under_way.get(lane, 0) < MAX_CALLS and not self._ended:
            permit = self._guard.breaker.ask(now_ms)
            if permit is Permit.WAIT:
                if next_probe_ms := self._guard.next_probe_ms:
                    self._alarm.arm(next_probe_ms)
                return False
            calls = self._collect(lane, ready, permit, now_ms)
            for call in calls:
                self._calls.add(call)
                self._under_way[lane] = self._under_way.get(lane, 0) + 1
                call.task = self._loop.create_task(self._run(call), name="eventbus-append")
            if calls:
                self._alarm.arm(now_ms + self._call_limit_ms)
            else:
                self._guard.proved_nothing(permit)
            self._lines.tidy(lane)
        return True

    def _collect(self, lane: int, ready: deque[Line], permit: Permit, now_ms: int) -> Sequence[Call]:
        """Takes the next item of each ready line, as far as they fit into one call for each durability."""
        calls: dict[Durability, Call] = {}
        events, size = 0, 0
        most = 1 if permit is Permit.PROBE else MAX_CALL_EVENTS
        while ready and events < most and size < MAX_CALL_BYTES:
            line = ready.popleft()
            kept = self._kept.before_new(line.user)
            item = self._lines.next_wanted(line) if kept is None else again(kept, now_ms)
            if item is None:
                self._lines.go_on(line)
                continue
            item.attempts += 1
            call = calls.get(item.durability)
            if call is None:
                call = calls[item.durability] = Call(item.durability, permit, now_ms, self._kept.doubts, lane)
            call.lines.append(line)
            call.items.append(item)
            events += 1
            size += len(item.append.body)
        return tuple(calls.values())

    async def _run(self, call: Call) -> None:
        """Makes one call. When it is cancelled, its events count as failed with an unknown outcome."""
        results: Sequence[Appended | BaseException]
        if self._primaries.has_lost_connection():
            self._doubt()
        if call.doubts != self._kept.doubts:  # since the flush that made this call
            error = StoreMoved("not sent: a primary may be another one now")
            self._settle(call, [error] * len(call.items), sent=False)
            return
        try:
            results = await self._store.append([item.append for item in call.items], call.durability)
            if len(results) != len(call.items):
                results = [StoreError(f"{len(results)} answers for {len(call.items)} events")] * len(call.items)
        except asyncio.CancelledError:
            self._settle(call, [StoreTimeout("the store did not answer")] * len(call.items))
            raise
        except Exception as error:  # whatever it is: a line must not be left standing
            results = [error] * len(call.items)
        self._settle(call, results)

    # --- what became of it ------------------------------------------------------------------------------------------

    def _settle(self, call: Call, results: Sequence[Appended | BaseException], *, sent: bool = True) -> None:
        now_ms = self._clock.monotonic_ms()
        if call in self._calls:
            self._calls.remove(call)
            self._under_way[call.lane] -= 1
        nothing = [result for result in results if isinstance(result, StoreUnavailable | StoreMoved)]
        if nothing and sent:
            self._kept.doubt(now_ms)
        if len(nothing) < len(results):
            self._answered_ms = now_ms
            self._guard.succeeded(call.permit)
        elif not any(isinstance(result, StoreUnavailable) for result in nothing):
            self._guard.proved_nothing(call.permit)  # nothing was done, for another server is to do it
        elif call.permit is Permit.PROBE or self._lane_of is None or self._answered_ms < call.started_ms:
            self._guard.failed(call.permit, now_ms)
        # Else another server of the store has answered meanwhile: one that is replaced is no reason to stop for all.
        for line, item, result in zip(call.lines, call.items, results, strict=True):
            if isinstance(result, Appended):
                self._kept.trust(result.primary, call.doubts)
                self._settling.stored(line, item, result, now_ms, call.doubts)
            else:
                self._settling.not_stored(line, item, result, now_ms)
        if self._lines.lanes:
            self._schedule_flush()  # for those that waited for a call to end, or for the breaker
        self._guard.tell()
        self._tell_closing()

    # --- again, after a primary change --------------------------------------------------------------------------------

    def _doubt(self) -> None:
        self._kept.doubt(self._clock.monotonic_ms())

    def _look_for_moved(self) -> None:
        """A primary stands, perhaps another. Before anything new of a user goes there, what is kept is checked (D6);
        this is for those who publish nothing. A breaker that had opened meanwhile has no reason to wait any longer.
        """
        if self._ended:
            return
        now_ms = self._clock.monotonic_ms()
        if self._guard.next_probe_ms:
            self._guard.breaker.seems_back(now_ms)
            self._alarm.arm(now_ms)
        self._kept.expire(now_ms)
        if moved := self._kept.moved():
            self._settling.send_again(moved)
        self._tell_closing()

    # --- deadlines ----------------------------------------------------------------------------------------------------

    def _purge(self, now_ms: int, upto_ms: int = 0) -> None:
        """Gives up what is past its deadline (or will be at `upto_ms`), and forgets what nobody waits for."""
        earliest_ms = self._lines.purge(max(now_ms, upto_ms), lambda item: self._settling.give_up(item, now_ms))
        for call in self._calls:
            for item in call.items:
                if item.deadline_ms <= now_ms:
                    # It may still be stored: the line waits for the answer, the caller does not.
                    if item.future is not None:
                        self._settling.give_up(item, now_ms)
                elif not item.abandoned:
                    earliest_ms = min(earliest_ms, item.deadline_ms)
        self._deadline_ms = earliest_ms if earliest_ms >= NEVER_MS else max(earliest_ms, now_ms + _DEADLINE_GRAIN_MS)

    def _stands_back(self, now_ms: int, next_probe_ms: int) -> None:
        """The breaker is open: who can not wait for its probe is told."""
        self._purge(now_ms, next_probe_ms)
        self._alarm.arm(next_probe_ms)

    def _goes_on(self) -> None:
        """The store answers: the waits before retries have lost their reason."""
        self._lines.all_go_on()

    # --- the alarm ----------------------------------------------------------------------------------------------------

    def _ring(self) -> None:
        """Does what time has made due, and sets the alarm for what is due next."""
        now_ms = self._clock.monotonic_ms()
        self._lines.due_go_on(now_ms)
        if now_ms >= self._deadline_ms:
            self._purge(now_ms)
        for call in self._calls:
            if now_ms - call.started_ms >= self._call_limit_ms and call.task is not None:
                call.task.cancel()
        if self._lines.lanes:
            self._schedule_flush()
        else:
            self._guard.probe_if_due(now_ms)
        self._tell_closing(overdue=now_ms >= self._close_ms)
        waits = [self._deadline_ms, self._lines.due_ms, self._close_ms if self._closing is not None else NEVER_MS]
        waits.extend(call.started_ms + self._call_limit_ms for call in self._calls)
        if next_probe_ms := self._guard.next_probe_ms:
            waits.append(next_probe_ms)
        if (next_ms := min(waits)) < NEVER_MS:
            self._alarm.arm(max(next_ms, now_ms + 1))

    # --- closing ------------------------------------------------------------------------------------------------------

    async def aclose(self, timeout_ms: int) -> None:
        """Takes nothing more, waits until all that waits is stored or has failed, then fails the rest.

        While a primary is away that may come back without what was published in the last seconds, it waits for that
        too: nobody else could send it again.

        Args:
            timeout_ms: the longest wait.

        A cancelled call fails the rest at once.
        """
        if self._closing is None:
            self._closing = self._loop.create_future()
            self._close_ms = self._clock.monotonic_ms() + timeout_ms
            self._alarm.arm(self._close_ms)
            self._primaries.look_now()
            self._tell_closing()
        try:
            await asyncio.shield(self._closing)
        finally:
            await self._end()

    def _tell_closing(self, *, overdue: bool = False) -> None:
        if self._closing is None or self._closing.done():
            return
        if overdue or not (self._calls or self._lines.waits or self._kept.unasked()):
            self._closing.set_result(None)

    async def _end(self) -> None:
        self._ended = self._settling.ended = True
        self._primaries.end()
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)
        self._alarm.end()
        now_ms = self._clock.monotonic_ms()
        for item in self._lines.take_all():
            item.error = item.error or PublishTimeout("the bus was closed before it was sent")
            self._settling.give_up(item, now_ms)
        tasks = [task for task in (*(call.task for call in self._calls), self._guard.probe) if task is not None]
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for call in list(self._calls):  # cancelled before its first step
                self._settle(call, [StoreTimeout("the bus was closed before it was sent")] * len(call.items))
            for kept in self._kept.lost():
                self._settling.give_up(again(kept, now_ms), now_ms)
            if unasked := self._kept.unasked():
                _log.warning(
                    "closed while no primary says whether it still has the last %d events that were stored", unasked
                )
