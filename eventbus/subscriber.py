"""A Python client of the wire protocol: each event is handed to the application once and in order, and acked when the
application is done with it.

    async with Subscriber("https://bus.example.com", token=fetch_token, session="reports") as subscriber:
        async for delivery in subscriber:
            await handle(delivery.event)

The decisions are in `eventbus.client.state`, `eventbus.client.inbox` and `eventbus.client.link`, which know no I/O, one
connection's life in `eventbus.client.connection`, the loop that connects again and again in
`eventbus.client.connecting`, the socket in `eventbus.client.websocket`. This module has what applications call. A
subscriber owns one task (`_supervise`); a connection's writer and a token's refresh are its children. The
application's own task runs the handler and the gap callback.

Source: docs/protocol.md; the guide is docs/subscriber.md.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import ssl as tls
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from random import SystemRandom
from types import TracebackType
from typing import Final, Self, TypeVar

from eventbus.client.callbacks import Callbacks, Delivery, FailedEvents, State, StateDetail, told
from eventbus.client.connecting import Connecting
from eventbus.client.core import Core
from eventbus.client.inbox import CaughtUpMark, Inbox, Item
from eventbus.client.sending import Sending
from eventbus.client.state import check_range, parse_filter, parse_url
from eventbus.client.texts import Chunk, TextFeed
from eventbus.client.tokens import Tokens, TokenSource
from eventbus.client.websocket import Door
from eventbus.clock import Clock, SystemClock
from eventbus.errors import (
    CloseCode,
    EventBusError,
    HandlerFailed,
    InvalidField,
    SubscriberError,
)
from eventbus.event import Level
from eventbus.frames import Dropped, Filter, Gap
from eventbus.framespecs import MAX_DELAY_MS, MAX_WINDOW
from eventbus.ids import EntryId, SessionId, parse_entry_id, parse_session_id
from eventbus.store import Start
from eventbus.timers import LoopTimers, Timers
from eventbus.wire import Format

__all__ = ["Chunk", "Delivery", "Dropped", "FailedEvents", "Filter", "Gap", "State", "StateDetail", "Subscriber"]

logger = logging.getLogger(__name__)

WordT = TypeVar("WordT", bound=StrEnum)


class Subscriber(Sending):
    """One session of a user, as an asynchronous iterator of deliveries or with a handler and `run`.

    It has more arguments than most: each is an option of the protocol or a callback, and all but two may be left out.

    Args:
        url: of a node or the load balancer: `http:`, `https:`, `ws:` or `wss:`; `/v1/connect` is added.
        token: a JWT, or a function (asynchronous or not) that gives one, called for each connection and each refresh.
        session: `[A-Za-z0-9_-]{1,64}`, kept over restarts of the process; by default the node makes one.
        start: where a session that does not exist yet begins: `earliest`, `new` or `cursor`. By default at the cursor
            if one is given, else at the earliest.
        cursor: an entry id up to which the application has everything.
        window: most events under way at once, 1 to 1024; it bounds what is kept in memory. By default the node's.
        filter: `{"types": [...], "threads": [...], "runs": [...]}`.
        format: `json` or `msgpack`.
        on_event: the handler for `run`; what it returns is awaited if it can be.
        on_gap: called in order with the events, by the task that iterates; what it returns is awaited.
        on_state: called with the `State` and a `StateDetail`.
        on_dropped: called with entries that will not come again, and why.
        on_text: called in order with each `Chunk` of a token stream; what it returns is awaited. It holds no event up.
        on_error: called with what does not end the subscriber; by default it is logged. A callback may be asynchronous.
        failed_events: `redeliver` or `skip`: what becomes of an event whose handler raised.
        nack_delay_ms: how long such an event waits; by default the node's wait.
        ssl: for `wss:`, if not the system's default context.
        proxy: address of an HTTP or SOCKS proxy; the environment's is not used.
        clock: for tests; one that also has timers (`ManualClock`) rules every wait but those of single I/O calls.
        random: for tests; from 0 to 1, for the jitter.

    Raises:
        InvalidField: an argument has not the form that it must have.
    """

    def __init__(
        self,
        url: str,
        token: TokenSource,
        *,
        session: str | None = None,
        start: Start | str | None = None,
        cursor: str | None = None,
        window: int | None = None,
        filter: Filter | Mapping[str, Iterable[str]] | None = None,
        format: str = "json",
        on_event: Callable[[Delivery], object] | None = None,
        on_gap: Callable[[Gap], object] | None = None,
        on_state: Callable[[State, StateDetail], object] | None = None,
        on_dropped: Callable[[Dropped], object] | None = None,
        on_text: Callable[[Chunk], object] | None = None,
        on_error: Callable[[EventBusError], object] | None = None,
        failed_events: FailedEvents | str = FailedEvents.REDELIVER,
        nack_delay_ms: int | None = None,
        ssl: tls.SSLContext | None = None,
        proxy: str | None = None,
        clock: Clock | None = None,
        random: Callable[[], float] | None = None,
    ) -> None:
        address = parse_url(url)
        first = None if cursor is None else parse_entry_id(cursor, "cursor")
        begin = None if start is None else _word(Start, start, "start")
        if begin is not None and (begin is Start.CURSOR) != (first is not None):
            raise InvalidField("start", "`cursor` and an argument `cursor` go together")
        if window is not None:
            check_range("window", window, 1, MAX_WINDOW)
        if nack_delay_ms is not None:
            check_range("nack_delay_ms", nack_delay_ms, 0, MAX_DELAY_MS)
        if format not in _FORMATS:
            raise InvalidField("format", f"must be json or msgpack, not {format!r}")
        _check_callable(on_event=on_event, on_gap=on_gap, on_state=on_state, on_dropped=on_dropped, on_text=on_text)
        _check_callable(on_error=on_error, random=random)
        self._clock = clock or SystemClock()
        self._callbacks = Callbacks(on_gap=on_gap, on_state=on_state, on_dropped=on_dropped, on_error=on_error)
        self._inbox = Inbox(first)
        self._texts = TextFeed(on_text, self._callbacks.report)
        self._core = Core(
            inbox=self._inbox,
            texts=self._texts,
            tokens=Tokens(token),
            callbacks=self._callbacks,
            clock=self._clock,
            format=_FORMATS[format],
            session=None if session is None else parse_session_id(session),
            start=begin,
            window=window,
            filter=None if filter is None else parse_filter(filter),
        )
        self._on_event = on_event
        self._failed_events = _word(FailedEvents, failed_events, "failed_events")
        self._nack_delay_ms = nack_delay_ms
        self._connecting = Connecting(
            self._core,
            Door(url=address, format=_FORMATS[format], ssl=ssl, proxy=proxy),
            random or SystemRandom().random,
        )
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._failure: EventBusError | None = None
        self._asking = False
        self._in_hand: Item | None = None
        self._afterwards: dict[Item, list[tuple[Level, str | None]]] = {}

    def __repr__(self) -> str:
        return f"<Subscriber {self.state} session={self.session} held={self._inbox.held} cursor={self.cursor}>"

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where it stands."""
        return self._callbacks.state

    @property
    def session(self) -> SessionId | None:
        """The session id, once it is known."""
        return self._core.session

    @property
    def cursor(self) -> EntryId | None:
        """The highest entry id up to which every event has been handled; None while nobody knows."""
        return self._inbox.tracker.cursor

    @property
    def texts(self) -> TextFeed:
        """The chunks of token streams, to iterate over instead of an `on_text`, in a task of its own.

        Ask for it before or right after opening: what came before is in the event of its stream alone.
        """
        return self._texts.want()

    # --- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Begin to connect; returns at once, so nothing is there to cancel. The first connection that fails is tried
        again like every other.

        Raises:
            SubscriberError: it was opened before.
        """
        if self._task is not None or self._closing:
            raise SubscriberError("this subscriber was opened before; make a new one")
        self._core.timers = self._clock if isinstance(self._clock, Timers) else LoopTimers()
        self._task = asyncio.create_task(self._supervise(), name="eventbus:subscriber")
        self._texts.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave. The event in hand counts as handled when the block ended well (also by `break` and `return`).

        When it raised, that event is nacked; when it was cancelled, the event is left to the session's next connection.
        """
        if self._in_hand is not None:
            if kind is None:
                self._ack(self._in_hand)
            elif issubclass(kind, Exception):
                self._nack(self._in_hand, told(error), self._nack_delay_ms)
        await self.close()

    async def close(self) -> None:
        """Send the acks that wait and close; iterating ends, and no handler is called any more. Safe to repeat.

        The event that the application has in hand is not acked: it comes again in the session's next life. Bounded by
        a few seconds. A cancelled call leaves the end to the subscriber's own task, which is as bounded.
        Source: docs/subscriber.md.
        """
        first, self._closing = not self._closing, True
        self._core.arrived.set()
        task = self._task
        if task is not None:
            if first:
                task.cancel()
            if asyncio.current_task() is task:  # a token callback that closes
                return
            await asyncio.wait({task})
        self._finish(None)
        await self._texts.aclose()
        await self._callbacks.end()

    async def run(self) -> None:
        """Call `on_event` with each delivery until `close`: ack after it has returned, nack when it raises.

        Cancellation passes on to the handler; its event is neither acked nor nacked.

        Raises:
            SubscriberError: there is no `on_event`, or as iterating does.
            AuthError, Forbidden: as iterating does.
        """
        if self._on_event is None:
            raise SubscriberError("`run` needs `on_event`; without it, iterate")
        async with self:
            async for delivery in self:
                try:
                    result = self._on_event(delivery)
                    if inspect.isawaitable(result):
                        await result
                except Exception as error:
                    self._handler_failed(delivery, error)

    # --- the application's side ---------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        """The next event; asking for it acks the one before.

        A cancelled call has acked the one before and takes nothing.

        Raises:
            AuthError, Forbidden, Superseded, SessionEnded, ClosedForGood: the node closed for good.
            SubscriberError: it is not open, or another task iterates too.
            StopAsyncIteration: it was closed.
        """
        if self._task is None:
            raise SubscriberError("open the subscriber first: `async with Subscriber(...) as subscriber`")
        if self._asking:
            raise SubscriberError("one task at a time iterates over a subscriber, so that events stay in order")
        if self._in_hand is not None:
            self._ack(self._in_hand)
            self._in_hand = None
        self._asking = True
        try:
            return await self._next()
        finally:
            self._asking = False

    async def _next(self) -> Delivery:
        while True:
            if self._failure is not None:
                raise self._failure
            if self._closing:
                raise StopAsyncIteration
            turn = self._inbox.peek()
            if turn is None:
                self._core.arrived.clear()
                await self._core.arrived.wait()
            elif isinstance(turn, Item):
                self._inbox.take()
                self._in_hand = turn
                return Delivery(turn, self._ack, self._nack, self._confirm)
            elif isinstance(turn, CaughtUpMark):
                self._inbox.take()
                if (connection := self._connecting.connection) is not None:
                    connection.caught_up(turn)
            else:
                await self._callbacks.tell_gap(turn)
                if self._inbox.peek() is turn:  # removed only now: a cancelled callback is called again
                    self._inbox.take()

    def _ack(self, item: Item) -> None:
        entries = self._inbox.handled(item, self._now())
        if entries and (connection := self._connecting.connection) is not None:
            connection.acknowledge(entries)
        for level, note in self._afterwards.pop(item, ()):
            self._confirm(item, level, note)
        self._core.room.set()

    def _confirm(self, item: Item, level: Level, note: str | None) -> None:
        """An event that is not handled yet is confirmed when it is."""
        if self._inbox.was_handled(item):
            self._core.confirms.add(item.entry, level, note)
            if (connection := self._connecting.connection) is not None:
                connection.touch()
        elif item is self._in_hand:
            self._afterwards.setdefault(item, []).append((level, note))

    def _nack(self, item: Item, reason: str | None, delay_ms: int | None) -> None:
        self._afterwards.pop(item, None)
        entry = self._inbox.failed(item)
        if entry is not None and (connection := self._connecting.connection) is not None:
            connection.nack(entry, reason, delay_ms)
        self._core.room.set()

    def _handler_failed(self, delivery: Delivery, error: Exception) -> None:
        item, self._in_hand = self._in_hand, None
        if item is not None and self._failed_events is FailedEvents.SKIP:
            self._ack(item)
        elif item is not None:
            self._nack(item, told(error), self._nack_delay_ms)
        what = f"on_event failed with {delivery!r}: {told(error)}"
        self._callbacks.report(HandlerFailed(what, event=delivery.event), error)

    @property
    def _is_open(self) -> bool:
        return self._task is not None and self.state is not State.CLOSED

    async def _supervise(self) -> None:
        try:
            await self._connecting.forever()
        except EventBusError as error:
            self._finish(error)
        except Exception as error:
            logger.exception("a defect ended the subscriber")
            defect = SubscriberError(f"a defect ended the subscriber: {told(error)}")
            defect.__cause__ = error
            self._finish(defect)

    # --- small things -------------------------------------------------------------------------------------------------

    def _now(self) -> int:
        return self._clock.monotonic_ms()

    def _finish(self, error: EventBusError | None) -> None:
        if self.state is State.CLOSED:
            return
        self._failure = error
        self._inbox.clear()
        self._texts.end()
        for rung in self._core.answered.values():
            rung.set()
        code: int | None = int(CloseCode.NORMAL)
        if error is not None:
            code = getattr(error, "closed_with", None) or error.close_code
        reason = "closed" if error is None else str(error)
        self._callbacks.set_state(State.CLOSED, StateDetail(code=code, reason=reason))
        self._core.arrived.set()


_FORMATS: Final = {"json": Format.JSON, "msgpack": Format.MSGPACK}


def _word(kind: type[WordT], value: str, name: str) -> WordT:
    try:
        return kind(value)
    except ValueError:
        raise InvalidField(name, f"{value!r} is none of {', '.join(kind)}") from None


def _check_callable(**given: object) -> None:
    for name, value in given.items():
        if value is not None and not callable(value):
            raise InvalidField(name, f"must be a function, not {type(value).__name__}")
