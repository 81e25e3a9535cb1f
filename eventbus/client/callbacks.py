"""What a subscriber tells its application: events, states, errors; callbacks may be asynchronous, and may fail."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from eventbus.client.inbox import Item
from eventbus.client.state import check_range
from eventbus.clock import seconds
from eventbus.errors import CallbackFailed, EventBusError, InvalidField
from eventbus.event import Event, Level
from eventbus.frames import Dropped, Gap
from eventbus.framespecs import MAX_DELAY_MS, MAX_NOTE_CHARACTERS
from eventbus.ids import EntryId

__all__ = ["Callbacks", "Delivery", "FailedEvents", "State", "StateDetail", "told"]

logger = logging.getLogger("eventbus.subscriber")

MAX_UNDER_WAY: Final = 256
"""Asynchronous callbacks under way at once; what would be one more is logged and left out."""
END_TIMEOUT_MS: Final = 2_000


class State(StrEnum):
    """Where a subscriber stands."""

    CONNECTING = "connecting"
    """Getting a token, opening the socket."""
    OPEN = "open"
    """`hello` is on its way."""
    CATCHING_UP = "catching_up"
    """What was missed is being delivered."""
    LIVE = "live"
    """All that was stored when the connection opened has been handled."""
    WAITING = "waiting"
    """No connection; the next attempt comes after `StateDetail.wait_ms`."""
    CLOSED = "closed"
    """By `close`, or by an error that iterating raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDetail:
    """Why a subscriber waits or is closed.

    Attributes:
        code: the close code or HTTP status, if there was one.
        reason: short text.
        wait_ms: milliseconds until the next attempt (`State.WAITING`).
    """

    code: int | None = None
    reason: str = ""
    wait_ms: int | None = None


class FailedEvents(StrEnum):
    """What becomes of an event whose handler raised."""

    REDELIVER = "redeliver"
    SKIP = "skip"


class Delivery:
    """An event in the application's hands.

    Attributes:
        event: the event as its publisher made it.
        entry: its entry id `<ms>-<n>`.
        delivery: 1 the first time that it was delivered to this session.
    """

    __slots__ = ("_ack", "_confirm", "_item", "_nack", "delivery", "entry", "event")

    def __init__(
        self,
        item: Item,
        ack: Callable[[Item], None],
        nack: Callable[[Item, str | None, int | None], None],
        confirm: Callable[[Item, Level, str | None], None],
    ) -> None:
        self._item = item
        self._ack = ack
        self._nack = nack
        self._confirm = confirm
        self.event: Event = item.event
        self.entry: EntryId = item.entry
        self.delivery: int = item.delivery

    def __repr__(self) -> str:
        return f"<Delivery {self.event.type} {self.event.id} entry={self.entry} delivery={self.delivery}>"

    @property
    def redelivered(self) -> bool:
        """Whether it was delivered before: to a process that died with it, say. It was not handled here."""
        return self.delivery > 1

    async def ack(self) -> None:
        """Ack it now, and not when the next one is asked for. A no-op when it was acked or nacked before.

        Returns at once: the ack goes out with all those of this turn of the loop, and is repeated when it is lost.
        Source: docs/subscriber.md.
        """
        self._ack(self._item)

    async def displayed(self) -> None:
        """Record that the user has seen the event. A no-op when it was nacked.

        Returns at once: it is sent when the event is acked, and again, also after a reconnect, until it is stored. What
        is not sent when the subscriber closes is lost.
        Source: docs/subscriber.md.
        """
        self._confirm(self._item, Level.DISPLAYED, None)

    async def confirm(self, note: str | None = None) -> None:
        """Record that the user got the value. Sent as `displayed` is, and implies it.

        Args:
            note: kept with it; 256 characters at most.

        Raises:
            InvalidField: `note` is no string, no Unicode, or too long.
        Source: docs/subscriber.md.
        """
        unchecked: object = note
        if unchecked is not None and not (isinstance(unchecked, str) and len(unchecked) <= MAX_NOTE_CHARACTERS):
            raise InvalidField("note", f"must be a string of at most {MAX_NOTE_CHARACTERS} characters")
        if note is not None and any("\ud800" <= character <= "\udfff" for character in note):
            raise InvalidField("note", "holds half of a surrogate pair, which is no character")
        self._confirm(self._item, Level.CONFIRMED, note)

    async def nack(self, reason: str | None = None, delay_ms: int | None = None) -> None:
        """Ask for redelivery; the events behind it go on. A no-op when it was acked or nacked before.

        Args:
            reason: for operators; its first 256 characters.
            delay_ms: how long to wait, at most an hour; by default the node's wait, from 1 s and doubling.

        Raises:
            InvalidField: `delay_ms` is out of range.
        Source: docs/subscriber.md.
        """
        if delay_ms is not None:
            check_range("delay_ms", delay_ms, 0, MAX_DELAY_MS)
        self._nack(self._item, reason, delay_ms)


class Callbacks:
    """The application's callbacks, and the tasks of those that are asynchronous. A failing one stops nothing.

    Args:
        on_gap: in order with the events, awaited by who iterates.
        on_state: with each change.
        on_dropped: with entries that will not come again.
        on_error: with what does not end the subscriber; None logs it.
    """

    def __init__(
        self,
        *,
        on_gap: Callable[[Gap], object] | None,
        on_state: Callable[[State, StateDetail], object] | None,
        on_dropped: Callable[[Dropped], object] | None,
        on_error: Callable[[EventBusError], object] | None,
    ) -> None:
        self._on_gap = on_gap
        self._on_state = on_state
        self._on_dropped = on_dropped
        self._on_error = on_error
        self._tasks: set[asyncio.Task[None]] = set()
        self.state = State.CONNECTING

    def set_state(self, state: State, detail: StateDetail | None = None) -> None:
        """Tell a new state; after `CLOSED` there is none."""
        if self.state is State.CLOSED:
            return
        self.state = state
        if self._on_state is not None:
            self._call("on_state", self._on_state, state, detail or StateDetail())

    def dropped(self, dropped: Dropped) -> None:
        """Tell what will not come again."""
        if self._on_dropped is None:
            logger.warning("%d events will not come again: %s", len(dropped.ids), dropped.reason)
        else:
            self._call("on_dropped", self._on_dropped, dropped)

    def report(self, error: EventBusError, cause: BaseException | None = None) -> None:
        """Tell what went wrong and does not end the subscriber."""
        error.__cause__ = cause
        if self._on_error is None:
            logger.warning("%s", error, exc_info=cause)
        else:
            self._call("on_error", self._on_error, error)

    async def tell_gap(self, gap: Gap) -> None:
        """Tell a gap, and wait for what the callback returns. A cancelled call cancels that."""
        if self._on_gap is None:
            logger.warning("events are gone for ever: %s", gap)
            return
        try:
            result = self._on_gap(gap)
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            self._failed("on_gap", error)

    def _call(self, name: str, callback: Callable[..., object], *arguments: object) -> None:
        try:
            result = callback(*arguments)
        except Exception as error:
            self._failed(name, error)
            return
        if not inspect.isawaitable(result):
            return
        if len(self._tasks) >= MAX_UNDER_WAY:
            if inspect.iscoroutine(result):
                result.close()
            logger.error("%s is left out: %d callbacks are still under way", name, MAX_UNDER_WAY)
            return
        task = asyncio.create_task(self._finish(name, result), name=f"eventbus:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, name: str, result: Awaitable[object]) -> None:
        try:
            await result
        except Exception as error:
            self._failed(name, error)

    def _failed(self, name: str, error: Exception) -> None:
        failed = CallbackFailed(f"{name} failed: {told(error)}")
        if name == "on_error":
            logger.error("%s", failed, exc_info=error)
        else:
            self.report(failed, error)

    async def end(self) -> None:
        """Wait for the callbacks that are under way, at most two seconds, then cancel them.

        One that closes the subscriber itself is left to end by itself.
        """
        others = self._tasks - {asyncio.current_task()}
        if not others:
            return
        _, late = await asyncio.wait(others, timeout=seconds(END_TIMEOUT_MS))
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=seconds(END_TIMEOUT_MS))


def told(error: BaseException | None) -> str:
    """An error in one line, also one without a text."""
    return "" if error is None else str(error) or type(error).__name__
