"""The events of a run, and of the runs below it, on their way to the publisher: in their order, whatever fails.

An event is handed to the publisher at once, and nobody waits for its answer. When one fails, those behind it are taken
back, so that none overtakes it; they are sent again in their order, under the same event ids.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

from eventbus.clock import Clock
from eventbus.errors import EventBusError, OutOfOrder, RunClosed
from eventbus.event import Event
from eventbus.publishing.lines import Future
from eventbus.publishing.making import append_of
from eventbus.publishing.publisher import Publisher
from eventbus.publishing.receipt import Receipt
from eventbus.store import Append, Durability, RunStep
from eventbus.store.running import StepOrder
from eventbus.tracing import PublishSpan

__all__ = ["MAX_UNANSWERED", "RunLine", "Teller"]

MAX_UNANSWERED: Final = 256
"""With so many events unanswered an agent's next call waits. Owed events do not wait."""

_log = logging.getLogger("eventbus.runs")


class Teller(Protocol):
    """Whose event it is: a run that wants to know what became of it."""

    def stored(self, receipt: Receipt) -> None:
        """The event is stored."""

    def closed(self, error: RunClosed) -> None:
        """The run is over, or another's: none of its events that are not stored yet ever will be."""


class _Item:
    __slots__ = ("append", "future", "span", "teller")

    def __init__(self, append: Append, teller: Teller, span: PublishSpan | None) -> None:
        self.append = append
        self.teller = teller
        self.span = span
        self.future: Future | None = None

    @property
    def goes_anew(self) -> bool:
        step = self.append.step
        return step is None or step.order is StepOrder.ANEW

    def go_anew(self) -> None:
        if self.append.step is not None:
            self.append = replace(self.append, step=replace(self.append.step, order=StepOrder.ANEW))


class RunLine:
    """What is not known to be stored, oldest first.

    Args:
        publisher: where events go.
        clock: for the deadline of the end.
        durability: what it means that an event is stored.
        deadline_ms: each event is stored or has failed within this time.
        receipt: makes receipts.
    """

    def __init__(
        self,
        publisher: Publisher,
        clock: Clock,
        *,
        durability: Durability,
        deadline_ms: int,
        receipt: Callable[..., Receipt] = Receipt,
    ) -> None:
        self._receipt = receipt
        self._publisher = publisher
        self._clock = clock
        self._durability = durability
        self._deadline_ms = deadline_ms
        self._items: deque[_Item] = deque()
        self._failure: EventBusError | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, event: Event, step: RunStep, teller: Teller, span: PublishSpan | None = None) -> None:
        """Take an event, always: what fails is told by `check`, `flush` and `settle`.

        Args:
            event: what to publish.
            step: what it changes in its run.
            teller: is told what becomes of it.
            span: of the publish, which ends with it.
        """
        item = _Item(append_of(event, step), teller, span)
        self._items.append(item)
        if self._failure is None:
            self._send(item, self._deadline_ms)

    def check(self) -> None:
        """Tell of a failure once, and send again what is not stored.

        Raises:
            EventBusError: why an earlier event could not be stored.
        """
        if self._failure is not None:
            failure = self._failure
            self._send_again(self._deadline_ms)
            raise failure

    async def room(self) -> None:
        """Wait until fewer than `MAX_UNANSWERED` events are unanswered, or one has failed. Safe to cancel."""
        while len(self._items) >= MAX_UNANSWERED and (future := self._items[0].future) is not None:
            await asyncio.wait([future])

    async def flush(self) -> None:
        """Wait until everything is stored. Safe to cancel: the events stay on their way.

        Raises:
            EventBusError: why an event could not be stored; what is not stored is sent again.
        """
        self.check()
        while self._items and (future := self._items[-1].future) is not None:
            await asyncio.wait([future])
        self.check()

    async def settle(self) -> EventBusError | None:
        """The end: wait until everything is stored or has failed, within the deadline.

        Returns:
            Why something is not stored, None when all is.

        A cancelled call waits all the same, for what is owed is to come, and raises CancelledError afterwards.
        """
        end_ms = self._clock.monotonic_ms() + self._deadline_ms
        cancelled: asyncio.CancelledError | None = None
        tries = 2  # an event of long ago may have failed, or fail now, where those behind it have time left
        while self._items:
            future = self._items[-1].future
            if self._failure is not None or future is None:
                left_ms = end_ms - self._clock.monotonic_ms()
                tries -= 1
                if tries == 0 or left_ms <= 0 or not getattr(self._failure, "retryable", False):
                    break
                self._send_again(left_ms)
                continue
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        return self._failure

    def _send_again(self, deadline_ms: int) -> None:
        self._failure = None
        for item in list(self._items):
            if not self._send(item, deadline_ms):
                break

    def _send(self, item: _Item, deadline_ms: int) -> bool:
        """Hand it to the publisher; False when that does not take it."""
        try:
            self._publisher.check_room(1, len(item.append.body))
            item.future = self._publisher.submit(item.append, self._durability, deadline_ms)
        except EventBusError as error:
            self._failed(error)
            return False
        item.future.add_done_callback(partial(self._answered, item))
        return True

    def _answered(self, item: _Item, future: Future) -> None:
        if future.cancelled():
            return  # taken back
        error = future.exception()
        if item.future is not future:
            return  # taken back just when it was answered; it goes again under its id
        if error is None:
            answer, attempts = future.result()
            self._items.remove(item)  # the first, as a rule: a line is answered in its order
            append = item.append
            if item.span is not None:
                item.span.stored(answer.entry, duplicate=answer.duplicate, attempts=attempts)
            item.teller.stored(
                self._receipt(
                    event=append.event,
                    user=append.user,
                    entry=answer.entry,
                    duplicate=answer.duplicate,
                    attempts=attempts,
                )
            )
        elif isinstance(error, RunClosed):
            self._close(item, error)
        elif isinstance(error, OutOfOrder) and item is self._items[0] and not item.goes_anew:
            # All before it was stored, and neither the store nor the publisher has it any more: the run goes on behind
            # the hole, of which the sessions are told as of any other that a lost store leaves.
            _log.warning("run events are lost in the store: %s", error)
            self._failed(error)
            item.go_anew()
            self._send_again(self._deadline_ms)
        elif isinstance(error, EventBusError):
            self._failed(error)
        else:
            self._failed(EventBusError(f"a publish failed: {error!r}"))

    def _close(self, closed: _Item, error: RunClosed) -> None:
        """Let go of what a run had still to say; the other runs of the family go on."""
        step = closed.append.step
        run = None if step is None else step.run
        gone = [item for item in self._items if item is closed or (item.append.step and item.append.step.run == run)]
        self._items = deque(item for item in self._items if item not in gone)
        for item in gone:
            future, item.future = item.future, None
            if future is not None:
                future.cancel()
            if item.span is not None:
                item.span.failed(error)
        closed.teller.closed(error)

    def _failed(self, error: EventBusError) -> None:
        self._failure = error
        for item in self._items:
            future, item.future = item.future, None
            if future is not None:
                future.cancel()
