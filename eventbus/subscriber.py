"""A Python client of the wire protocol: each event is handed to the application once and in order, and acked when the
application is done with it.

    async with Subscriber("https://bus.example.com", token=fetch_token, session="reports") as subscriber:
        async for delivery in subscriber:
            await handle(delivery.event)

The decisions are in `eventbus.client.state`, `eventbus.client.inbox` and `eventbus.client.link`, which know no I/O, one
connection's life in `eventbus.client.connection`. This module has what applications call, the loop that connects again
and again, and the socket: it alone imports websockets. A subscriber owns one task (`_supervise`); a connection's writer
and a token's refresh are its children. The application's own task runs the handler and the gap callback.

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
from typing import Any, Final, Self, TypeVar, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from eventbus.client.callbacks import Callbacks, Delivery, FailedEvents, State, StateDetail, told
from eventbus.client.connection import (
    ABNORMAL,
    CLOSE_TIMEOUT_MS,
    Connection,
    Core,
    Ended,
    SocketClosed,
    Tokens,
    TokenSource,
)
from eventbus.client.inbox import CaughtUpMark, Inbox, Item
from eventbus.client.sending import Sending
from eventbus.client.state import (
    STABLE_MS,
    Backoff,
    check_range,
    final_error,
    http_error,
    parse_filter,
    parse_url,
    refusal_text,
    retry_after_ms,
)
from eventbus.client.texts import Chunk, TextFeed
from eventbus.clock import Clock, SystemClock, seconds
from eventbus.errors import (
    CloseCode,
    EventBusError,
    HandlerFailed,
    InvalidField,
    NodeFault,
    SubscriberError,
    TokenFailed,
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

OPEN_TIMEOUT_MS: Final = 15_000
MAX_MESSAGE_BYTES: Final = 32 * 1024 * 1024
"""A frame is at most 1 MiB, unless a single event is more; none that a node takes is larger than this."""
INTERNAL_ERROR: Final = 1011

WordT = TypeVar("WordT", bound=StrEnum)


class _Socket(ClientConnection):
    """The socket of websockets as `eventbus.client.connection.Socket`."""

    _heard: Callable[[], None] | None = None

    def watch(self, heard: Callable[[], None]) -> None:
        self._heard = heard

    def data_received(self, data: bytes) -> None:
        if self._heard is not None:
            self._heard()
        super().data_received(data)

    async def send_frame(self, payload: bytes, format: Format) -> None:
        try:
            await self.send(payload, text=format is Format.JSON)
        except ConnectionClosed as error:
            raise _closed(error) from None

    async def receive(self) -> bytes:
        try:
            return await self.recv(decode=False)
        except ConnectionClosed as error:
            raise _closed(error) from None

    async def leave(self, code: int, reason: str) -> None:
        await self.close(code, reason)

    def abort(self) -> None:
        self.transport.abort()


def _closed(error: ConnectionClosed) -> SocketClosed:
    if error.rcvd is not None:
        return SocketClosed(error.rcvd.code, error.rcvd.reason)
    # Nothing but a broken rule makes websockets close by itself, and it says which.
    refused = f"{error.sent.code} {error.sent.reason}" if error.sent is not None and error.sent.code != 1000 else ""
    return SocketClosed(ABNORMAL, "" if error.__cause__ is None else told(error.__cause__), refused)


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
        self._url = parse_url(url)
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
        self._ssl = ssl
        self._proxy = proxy
        self._random = random or SystemRandom().random
        self._backoff = Backoff()
        self._connections = 0
        self._connection: Connection | None = None
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
        """Begin to connect; returns at once. The first connection that fails is tried again like every other."""
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
                if self._connection is not None:
                    self._connection.caught_up(turn)
            else:
                await self._callbacks.tell_gap(turn)
                if self._inbox.peek() is turn:  # removed only now: a cancelled callback is called again
                    self._inbox.take()

    def _ack(self, item: Item) -> None:
        entries = self._inbox.handled(item, self._now())
        if entries and self._connection is not None:
            self._connection.acknowledge(entries)
        for level, note in self._afterwards.pop(item, ()):
            self._confirm(item, level, note)
        self._core.room.set()

    def _confirm(self, item: Item, level: Level, note: str | None) -> None:
        """An event that is not handled yet is confirmed when it is."""
        if self._inbox.was_handled(item):
            self._core.confirms.add(item.entry, level, note)
            if self._connection is not None:
                self._connection.touch()
        elif item is self._in_hand:
            self._afterwards.setdefault(item, []).append((level, note))

    def _nack(self, item: Item, reason: str | None, delay_ms: int | None) -> None:
        self._afterwards.pop(item, None)
        entry = self._inbox.failed(item)
        if entry is not None and self._connection is not None:
            self._connection.nack(entry, reason, delay_ms)
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

    # --- connecting ---------------------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        try:
            while True:
                ended = await self._attempt()
                goaway_ms = None if ended.come_back_ms is None else ended.come_back_ms - self._now()
                wait_ms = self._backoff.wait_ms(self._random(), goaway_ms=goaway_ms, retry_ms=ended.retry_ms)
                logger.info("connecting again in %d ms: %s %s", wait_ms, ended.code or "", ended.reason)
                self._callbacks.set_state(
                    State.WAITING, StateDetail(code=ended.code, reason=ended.reason, wait_ms=wait_ms)
                )
                await self._sleep(wait_ms)
        except EventBusError as error:
            self._finish(error)
        except Exception as error:
            logger.exception("a defect ended the subscriber")
            defect = SubscriberError(f"a defect ended the subscriber: {told(error)}")
            defect.__cause__ = error
            self._finish(defect)

    async def _attempt(self) -> Ended:
        """One connection, from the token to its end. Raises: EventBusError, when there is no point in another."""
        self._callbacks.set_state(State.CONNECTING)
        try:
            socket = await self._open(await self._core.tokens.get())
        except TokenFailed as error:
            self._callbacks.report(error, error.__cause__)
            return Ended(reason=str(error))
        except InvalidStatus as error:
            return self._turned_away(error)
        except (OSError, EOFError, WebSocketException) as error:
            return Ended(code=ABNORMAL, reason=told(error))
        self._connections += 1
        self._connection = connection = Connection(self._core, socket, self._connections)
        try:
            ended = await connection.serve()
        finally:
            self._connection = None
            if connection.link.lived_ms(self._now()) >= STABLE_MS:
                self._backoff.good()
            self._inbox.disconnected()
        return self._judge(ended)

    async def _open(self, token: str) -> _Socket:
        more: dict[str, Any] = {} if self._ssl is None else {"ssl": self._ssl}
        # `create_connection` decides the class, which the declared result does not know.
        return cast(
            _Socket,
            await connect(
                self._url,
                additional_headers={"Authorization": f"Bearer {token}"},
                subprotocols=[Subprotocol(self._core.format.subprotocol)],
                compression=None,
                proxy=self._proxy,
                open_timeout=seconds(OPEN_TIMEOUT_MS),
                ping_interval=None,
                close_timeout=seconds(CLOSE_TIMEOUT_MS),
                max_size=MAX_MESSAGE_BYTES,
                create_connection=_Socket,
                **more,
            ),
        )

    def _turned_away(self, error: InvalidStatus) -> Ended:
        """The node, or what stands before it, answered with a status instead of a socket."""
        status, headers = error.response.status_code, error.response.headers
        message = refusal_text(bytes(error.response.body))
        if status == 401:
            self._core.tokens.refused()
        final = http_error(status, message, fresh_token=self._core.tokens.fresh)
        if final is not None:
            raise final
        if status not in (401, 429, 503):
            self._callbacks.report(NodeFault(f"the node answered HTTP {status}: {message}", closed_with=status))
        return Ended(code=status, reason=message, retry_ms=retry_after_ms(headers.get("Retry-After")))

    def _judge(self, ended: Ended) -> Ended:
        code = ended.code or ABNORMAL
        if code == CloseCode.UNAUTHENTICATED:
            self._core.tokens.refused()
        final = final_error(code, ended.reason, fresh_token=self._core.tokens.fresh)
        if final is not None:
            raise final
        if code == INTERNAL_ERROR:  # a defect of the node: worth a line, and worth another try
            self._callbacks.report(NodeFault(f"the node closed with 1011: {ended.reason}", closed_with=code))
        return ended

    async def _sleep(self, ms: int) -> None:
        rung = asyncio.Event()
        timer = self._core.timers.call_later(ms, rung.set)
        try:
            await rung.wait()
        finally:
            timer.cancel()

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
