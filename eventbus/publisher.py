"""The publisher: what was made is stored, in order for each user, with retries and a breaker.

All publishes of a turn of the event loop leave in one `Store.append`. A call carries at most one event of each user,
because the store goes on after a failed event, and only so can no later event overtake it. Where the store lies on
several servers a call carries events of one lane alone (`eventbus.store.topology.lane_of`), so that those whose server
is being replaced hold up nobody else's. The happy path costs a future a publish and a task a call; all that takes time
(waits before retries, deadlines, the next probe) shares one alarm.

What waits stands in `eventbus.lines`, what may have to go again in `eventbus.kept`, whether to try in
`eventbus.retries` and `eventbus.breaker`. What is left here is long because every answer touches all of these.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from eventbus.breaker import Breaker, BreakerState, Permit
from eventbus.clock import Clock
from eventbus.config import PublishSettings
from eventbus.errors import (
    EventBusError,
    OutOfOrder,
    PublishTimeout,
    StoreError,
    StoreMoved,
    StoreTimeout,
    StoreUnavailable,
)
from eventbus.ids import UserId
from eventbus.kept import Kept, KeptEvent
from eventbus.lines import NEVER_MS, Call, Future, Item, Line, Lines
from eventbus.receipt import PublishStatistics
from eventbus.retries import RetryPolicy, final_error
from eventbus.store import Append, Appended, Durability, Store
from eventbus.store.running import StepOrder
from eventbus.timers import Cancellable, Timers

__all__ = ["Publisher"]

_log = logging.getLogger("eventbus.publisher")

MAX_CALLS: Final = 8
"""Calls of a lane under way at once. While all are, publishes gather, and the next call carries more of them."""
MAX_CALL_EVENTS: Final = 500
MAX_CALL_BYTES: Final = 4 * 1024 * 1024
QUEUE_BYTES: Final = 64 * 1024 * 1024
"""Bodies that may wait for the store; one publish more is refused as busy."""

_LOOK_MS: Final = 20  # from the word that a primary stands to the look at what is kept for it
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
        self._timers = timers
        self._on_breaker = on_breaker
        self._loop = asyncio.get_running_loop()
        self._kept_ms = settings.kept_ms
        self._call_limit_ms = settings.publish_deadline_ms
        self._policy = RetryPolicy(base_ms=settings.retry_base_ms, max_ms=settings.retry_max_ms)
        self._kept = Kept(
            kept_ms=settings.kept_ms, max_bytes=settings.kept_bytes, primary_of=getattr(store, "primary_of", None)
        )
        self._breaker = Breaker(
            failures=settings.breaker_failures,
            open_ms=settings.breaker_open_ms,
            open_max_ms=settings.breaker_open_max_ms,
        )
        self._told_state = BreakerState.CLOSED
        self._was_connected = False

        # A store on one server has one lane.
        self._lane_of: Callable[[UserId], int] | None = getattr(store, "lane_of", None)
        self._lines = Lines(settings.queue_events, queue_bytes, self._lane_of, self._schedule_flush)
        self._under_way: dict[int, int] = {}  # lane -> its calls
        self._answered_ms = -1  # when the store last answered a call
        self._calls: set[Call] = set()
        self._ping: asyncio.Task[None] | None = None
        self._flush_scheduled = False
        self._alarm: Cancellable | None = None
        self._alarm_ms = NEVER_MS
        self._search_ms = 0  # before this a full queue is not searched for what its callers have left
        self._deadline_ms = NEVER_MS  # no publish that waits has an earlier deadline
        self._look: Cancellable | None = None
        self._closing: asyncio.Future[None] | None = None
        self._close_ms = NEVER_MS
        self._ended = False

        self._published = self._duplicates = self._failed = self._retries = 0
        self._resent = self._recovered = self._resend_failed = 0
        # A store over a network says when a primary is lost and when another stands, also while nothing is published.
        watch: Callable[[Callable[[], object], Callable[[], object]], Callable[[], None]] | None
        watch = getattr(store, "watch_primaries", None)
        self._unwatch = None if watch is None else watch(self._primary_lost, self._primary_stands)

    def statistics(self) -> PublishStatistics:
        """How it stands."""
        self._kept.expire(self._clock.monotonic_ms())
        return PublishStatistics(
            published=self._published,
            duplicates=self._duplicates,
            failed=self._failed,
            retries=self._retries,
            resent=self._resent,
            recovered=self._recovered,
            resend_failed=self._resend_failed,
            queued_events=self._lines.events,
            queued_bytes=self._lines.bytes,
            calls=len(self._calls),
            kept_events=len(self._kept),
            kept_bytes=self._kept.bytes,
            kept_overflow=self._kept.overflow,
            breaker=self._breaker.state,
            breaker_failures=self._breaker.failures,
            breaker_opened=self._breaker.opened,
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
            self._failed += events
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
        if item.deadline_ms <= self._next_probe_ms():
            self._failed += 1
            raise final_error(item, self._breaker, now_ms)
        self._lines.add(item)
        if item.deadline_ms < self._deadline_ms:
            self._deadline_ms = item.deadline_ms
            self._arm(item.deadline_ms)
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
        if self._has_lost_connection():
            # No call has failed, it went away between two of them; and who answers next may be another.
            self._kept.doubt(now_ms)
        for lane in self._lines.lanes:
            if not self._flush_lane(lane, now_ms):
                break
        self._tell_breaker()
        self._tell_closing()

    def _flush_lane(self, lane: int, now_ms: int) -> bool:
        """Sends what is ready in a lane, as far as its calls go. Returns False when the breaker lets nothing pass."""
        while (ready := self._lines.ready(lane)) and self._under_way.get(lane, 0) < MAX_CALLS and not self._ended:
            permit = self._breaker.ask(now_ms)
            if permit is Permit.WAIT:
                if next_probe_ms := self._next_probe_ms():
                    self._arm(next_probe_ms)
                return False
            calls = self._collect(lane, ready, permit, now_ms)
            for call in calls:
                self._calls.add(call)
                self._under_way[lane] = self._under_way.get(lane, 0) + 1
                call.task = self._loop.create_task(self._run(call), name="eventbus-append")
            if calls:
                self._arm(now_ms + self._call_limit_ms)
            elif permit is Permit.PROBE:
                self._breaker.withdrawn()
            self._lines.tidy(lane)
        return True

    def _primary_lost(self) -> None:
        self._kept.doubt(self._clock.monotonic_ms())

    def _primary_stands(self) -> None:
        """A primary stands, perhaps another. Before anything new of a user goes there, what is kept is checked (D6);
        this is for those who publish nothing. It waits a little: a Cluster that moves its slots tells of each of them.
        """
        if self._look is None and not self._ended:
            self._look = self._timers.call_later(_LOOK_MS, self._look_for_moved)

    def _look_for_moved(self) -> None:
        self._look = None
        now_ms = self._clock.monotonic_ms()
        self._kept.expire(now_ms)
        if again := self._kept.moved():
            self._send_again(again, now_ms)

    def _has_lost_connection(self) -> bool:
        """Whether the store's connection has gone since the last look. A store without `connected` never loses one."""
        if getattr(self._store, "connected", True):
            self._was_connected = True
            return False
        lost, self._was_connected = self._was_connected, False
        return lost

    def _collect(self, lane: int, ready: deque[Line], permit: Permit, now_ms: int) -> Sequence[Call]:
        """Takes the next item of each ready line, as far as they fit into one call for each durability."""
        calls: dict[Durability, Call] = {}
        events, size = 0, 0
        most = 1 if permit is Permit.PROBE else MAX_CALL_EVENTS
        while ready and events < most and size < MAX_CALL_BYTES:
            line = ready.popleft()
            item = self._lines.next_wanted(line)
            if item is None:
                self._lines.go_on(line)
                continue
            if item.kept is None and (check := self._kept.to_check(line.user)) is not None:
                line.put_back(item)
                item = self._again(check, now_ms)
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
        if self._has_lost_connection():  # since the flush that made this call
            self._settle(call, [StoreUnavailable("the connection to the store was lost")] * len(call.items))
            return
        if call.doubts != self._kept.doubts:
            self._settle(call, [StoreMoved("not sent: a primary may be another one now")] * len(call.items))
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

    def _settle(self, call: Call, results: Sequence[Appended | BaseException]) -> None:
        now_ms = self._clock.monotonic_ms()
        if call in self._calls:
            self._calls.remove(call)
            self._under_way[call.lane] -= 1
        nothing = [result for result in results if isinstance(result, StoreUnavailable | StoreMoved)]
        if nothing:
            self._kept.doubt(now_ms)
        if len(nothing) < len(results):
            self._answered_ms = now_ms
            self._note_success(call.permit)
        elif not any(isinstance(result, StoreUnavailable) for result in nothing):
            if call.permit is Permit.PROBE:
                self._breaker.withdrawn()  # nothing was done, for another server is to do it: that proves nothing
        elif call.permit is Permit.PROBE or self._lane_of is None or self._answered_ms < call.started_ms:
            self._note_failure(call.permit, now_ms)
        # Else another server of the store has answered meanwhile: one that is replaced is no reason to stop for all.
        for line, item, result in zip(call.lines, call.items, results, strict=True):
            if isinstance(result, Appended):
                self._kept.trust(result.primary, call.doubts)
                self._stored(line, item, result, now_ms, call.doubts)
            else:
                self._not_stored(line, item, result, now_ms)
        if self._lines.lanes:
            self._schedule_flush()  # for those that waited for a call to end, or for the breaker
        self._tell_breaker()
        self._tell_closing()

    def _stored(self, line: Line, item: Item, answer: Appended, now_ms: int, doubts: int) -> None:
        if item.kept is None:
            self._published += 1
            self._duplicates += answer.duplicate
            self._lines.leave(item)
            if item.future is not None and not item.future.done():
                item.future.set_result((answer, item.attempts))
            again = self._kept.stored(item.append, answer.primary, now_ms, doubts)
        else:
            self._resent += 1
            self._recovered += not answer.duplicate
            again = self._kept.stored_again(item.kept, answer.primary)
        if again:
            self._send_again(again, now_ms)
        line.failures = 0
        self._lines.go_on(line)

    def _not_stored(self, line: Line, item: Item, error: BaseException, now_ms: int) -> None:
        item.error = error
        if isinstance(error, OutOfOrder) and not self._ended:
            self._repair(line, item, error, now_ms)
            return
        wait_ms = self._policy.wait_ms(error, line.failures + 1) if not self._ended else None
        if wait_ms is None:
            self._give_up(item, now_ms)
            self._lines.leave(item)
            self._lines.go_on(line)
            return
        line.failures += 1
        due_ms = now_ms + wait_ms
        if item.abandoned:
            self._lines.leave(item)
        elif max(due_ms, self._next_probe_ms()) >= item.deadline_ms:
            self._give_up(item, now_ms)
            self._lines.leave(item)
        else:
            self._retries += 1
            line.put_back(item)
        self._lines.wait(line, due_ms)
        self._arm(due_ms)

    def _repair(self, line: Line, item: Item, error: OutOfOrder, now_ms: int) -> None:
        """The store has lost events of a run before this one (D6): those that are kept go again, then this one.

        Once for an event. When that was of no use, nobody here has what is missing, and its run is told.
        """
        step = item.append.step
        if step is None or item.kept is not None or item.repaired or item.abandoned:
            self._give_up(item, now_ms)
            self._lines.leave(item)
        else:
            item.repaired = True
            lost = self._kept.of_run(line.user, step.run, error.last, step.seq)
            line.put_back(item)
            line.send_again([self._again(kept, now_ms) for kept in lost])
            self._retries += 1
        line.failures = 0
        self._lines.go_on(line)

    # --- again, after a primary change --------------------------------------------------------------------------------

    def _send_again(self, events: Sequence[KeptEvent], now_ms: int) -> None:
        by_user: dict[UserId, list[Item]] = {}
        for kept in events:
            by_user.setdefault(kept.append.user, []).append(self._again(kept, now_ms))
        _log.warning("a primary of the store has changed: %d kept events are sent again", len(events))
        for user, items in by_user.items():
            self._lines.send_again(user, items)

    def _again(self, kept: KeptEvent, now_ms: int) -> Item:
        # In memory, whatever the first time promised: right after a failover there may be no replica to wait for.
        append = kept.append
        if append.step is not None:
            # They come in order, so what is missing before the first of them is kept nowhere.
            append = replace(append, step=replace(append.step, order=StepOrder.ANEW))
        return Item(append, Durability.MEMORY, now_ms, now_ms + self._kept_ms, None, kept)

    # --- giving up --------------------------------------------------------------------------------------------------

    def _give_up(self, item: Item, now_ms: int) -> None:
        if item.future is None:
            self._resend_failed += 1
            _log.error(
                "an event could not be sent again: %s",
                item.error,
                extra={"event": item.append.event, "user": item.append.user},
            )
        elif not item.future.done():
            self._failed += 1
            item.future.set_exception(final_error(item, self._breaker, now_ms))

    def _purge(self, now_ms: int, upto_ms: int = 0) -> None:
        """Gives up what is past its deadline (or will be at `upto_ms`), and forgets what nobody waits for."""
        earliest_ms = self._lines.purge(max(now_ms, upto_ms), lambda item: self._give_up(item, now_ms))
        for call in self._calls:
            for item in call.items:
                if item.deadline_ms <= now_ms:
                    # It may still be stored: the line waits for the answer, the caller does not.
                    if item.future is not None:
                        self._give_up(item, now_ms)
                elif not item.abandoned:
                    earliest_ms = min(earliest_ms, item.deadline_ms)
        self._deadline_ms = earliest_ms if earliest_ms >= NEVER_MS else max(earliest_ms, now_ms + _DEADLINE_GRAIN_MS)

    # --- the breaker --------------------------------------------------------------------------------------------------

    def _next_probe_ms(self) -> int:
        return self._breaker.next_probe_ms if self._breaker.state is BreakerState.OPEN else 0

    def _note_success(self, permit: Permit) -> None:
        was_closed = self._breaker.state is BreakerState.CLOSED
        self._breaker.succeeded(permit)
        if not was_closed:
            # The store answers: the waits before retries have lost their reason.
            self._lines.all_go_on()

    def _note_failure(self, permit: Permit, now_ms: int) -> None:
        self._breaker.failed(permit, now_ms)
        if next_probe_ms := self._next_probe_ms():
            self._purge(now_ms, next_probe_ms)
            self._arm(next_probe_ms)

    def _tell_breaker(self) -> None:
        state = self._breaker.state
        if state is self._told_state:
            return
        self._told_state = state
        _log.warning("the circuit breaker of the store is %s", state)
        if self._on_breaker is not None:
            try:
                self._on_breaker(state)
            except Exception:
                _log.exception("on_breaker raised")

    async def _probe(self) -> None:
        """Probes the store when nothing waits that could serve as the probe."""
        try:
            await self._store.ping()
        except asyncio.CancelledError:
            self._breaker.withdrawn()
            raise
        except Exception:
            self._note_failure(Permit.PROBE, self._clock.monotonic_ms())
        else:
            self._note_success(Permit.PROBE)
        finally:
            self._ping = None
            self._schedule_flush()
            self._tell_breaker()

    # --- the alarm ----------------------------------------------------------------------------------------------------

    def _arm(self, at_ms: int) -> None:
        if at_ms >= self._alarm_ms or self._ended:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_ms = at_ms
        self._alarm = self._timers.call_later(max(1, at_ms - self._clock.monotonic_ms()), self._ring)

    def _ring(self) -> None:
        """Does what time has made due, and sets the alarm for what is due next."""
        self._alarm = None
        self._alarm_ms = NEVER_MS
        now_ms = self._clock.monotonic_ms()
        self._lines.due_go_on(now_ms)
        if now_ms >= self._deadline_ms:
            self._purge(now_ms)
        for call in self._calls:
            if now_ms - call.started_ms >= self._call_limit_ms and call.task is not None:
                call.task.cancel()
        breaker = self._breaker
        if self._lines.lanes:
            self._schedule_flush()
        elif breaker.state is not BreakerState.CLOSED and breaker.ask(now_ms) is Permit.PROBE:
            self._ping = self._loop.create_task(self._probe(), name="eventbus-probe")
            self._tell_breaker()
        self._tell_closing(overdue=now_ms >= self._close_ms)
        waits = [self._deadline_ms, self._lines.due_ms, self._close_ms if self._closing is not None else NEVER_MS]
        waits.extend(call.started_ms + self._call_limit_ms for call in self._calls)
        if next_probe_ms := self._next_probe_ms():
            waits.append(next_probe_ms)
        if (next_ms := min(waits)) < NEVER_MS:
            self._arm(max(next_ms, now_ms + 1))

    # --- closing ------------------------------------------------------------------------------------------------------

    async def aclose(self, timeout_ms: int) -> None:
        """Takes nothing more, waits until all that waits is stored or has failed, then fails the rest.

        Args:
            timeout_ms: the longest wait.

        A cancelled call fails the rest at once.
        """
        if self._closing is None:
            self._closing = self._loop.create_future()
            self._close_ms = self._clock.monotonic_ms() + timeout_ms
            self._arm(self._close_ms)
            self._tell_closing()
        try:
            await asyncio.shield(self._closing)
        finally:
            await self._end()

    def _tell_closing(self, *, overdue: bool = False) -> None:
        if self._closing is None or self._closing.done():
            return
        if overdue or not (self._calls or any(self._lines)):
            self._closing.set_result(None)

    async def _end(self) -> None:
        self._ended = True
        if self._unwatch is not None:
            self._unwatch()
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)
        for timer in (self._alarm, self._look):
            if timer is not None:
                timer.cancel()
        now_ms = self._clock.monotonic_ms()
        for item in self._lines.take_all():
            item.error = item.error or PublishTimeout("the bus was closed before it was sent")
            self._give_up(item, now_ms)
        tasks = [call.task for call in self._calls if call.task is not None] + ([self._ping] if self._ping else [])
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for call in list(self._calls):  # cancelled before its first step
                self._settle(call, [StoreTimeout("the bus was closed before it was sent")] * len(call.items))
