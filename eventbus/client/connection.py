"""One connection of a subscriber over any socket: reading, writing, timers. `eventbus.client.link` decides.

What outlives a connection is in `eventbus.client.core.Core`, which the subscriber owns.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Final, Protocol

from eventbus.client.callbacks import State
from eventbus.client.core import Core
from eventbus.client.inbox import CaughtUpMark
from eventbus.client.link import Act, Link, Lost
from eventbus.clock import seconds
from eventbus.errors import BadFrame, CloseCode, NodeFault, TokenFailed, UnknownOp
from eventbus.frames import (
    Acked,
    CaughtUp,
    ClientFrame,
    Dropped,
    ErrorFrame,
    Events,
    Gap,
    GoAway,
    Refreshed,
    Released,
    Sent,
    ServerFrame,
    Text,
    Welcome,
)
from eventbus.ids import EntryId
from eventbus.timers import Cancellable
from eventbus.wire import Format, decode_server, encode_client

__all__ = [
    "ABNORMAL",
    "CLOSE_TIMEOUT_MS",
    "Connection",
    "Ended",
    "Socket",
    "SocketClosed",
]

CLOSE_TIMEOUT_MS: Final = 2_000
DEFAULT_WINDOW: Final = 256
ABNORMAL: Final = int(CloseCode.ABNORMAL)
_NORMAL: Final = int(CloseCode.NORMAL)
_GOAWAY: Final = "goaway"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How an attempt ended.

    Attributes:
        code: close code or HTTP status; None when there was none.
        reason: short text.
        retry_ms: what `Retry-After` asked for.
        come_back_ms: when a `goaway` wants the subscriber back, monotonic time.
    """

    code: int | None = None
    reason: str = ""
    retry_ms: int | None = None
    come_back_ms: int | None = None


class SocketClosed(Exception):
    """The socket is closed.

    Args:
        code: that the peer gave; 1006 when there was none.
        reason: its text.
        refused: why this side ended it: the peer broke the rules of WebSocket.
    """

    def __init__(self, code: int, reason: str, refused: str = "") -> None:
        super().__init__(code, reason, refused)
        self.code = code
        self.reason = reason
        self.refused = refused


class Socket(Protocol):
    """What a connection needs of a WebSocket."""

    async def send_frame(self, payload: bytes, format: Format) -> None:
        """Send a message. Waits while the peer does not read. Raises: SocketClosed."""

    async def receive(self) -> bytes:
        """The next message. A cancelled call loses nothing. Raises: SocketClosed."""

    async def leave(self, code: int, reason: str) -> None:
        """Close in good order; bounded by `CLOSE_TIMEOUT_MS`."""

    def abort(self) -> None:
        """Close at once; `receive` raises."""

    def watch(self, heard: Callable[[], None]) -> None:
        """Have `heard` called when bytes come, pings included."""


class Connection:
    """One open socket, from `hello` to its end.

    Args:
        core: of the subscriber.
        socket: open, and nothing was sent on it.
        number: of the connection.
    """

    def __init__(self, core: Core, socket: Socket, number: int) -> None:
        self.link = Link(number, core.hello(), core.clock.monotonic_ms(), core.confirms, core.sends)
        self._core = core
        self._socket = socket
        self._helpers: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._nudge = asyncio.Event()
        self._timer: Cancellable | None = None
        self._timer_ms: int | None = None
        self._leaving = False
        self._lost = ""
        self._expires_ms = 0

    # --- life ---------------------------------------------------------------------------------------------------------

    async def serve(self) -> Ended:
        """Run the connection until it ends; the socket is closed then.

        A cancelled call sends what waits and closes in good order, within `CLOSE_TIMEOUT_MS`.
        """
        core, socket, link = self._core, self._socket, self.link
        socket.watch(lambda: link.heard(core.clock.monotonic_ms()))
        core.callbacks.set_state(State.OPEN)
        try:
            async with asyncio.TaskGroup() as self._group:
                self._help(self._write(), "eventbus:writer")
                try:
                    return await self._read()
                finally:
                    for helper in self._helpers:
                        helper.cancel()
        except asyncio.CancelledError:
            await self._say_goodbye("closed")
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
            socket.abort()

    def _help(self, work: Coroutine[object, object, None], name: str) -> None:
        group = self._group
        if group is None:
            raise RuntimeError("a connection that is not served has no helpers")
        helper = group.create_task(work, name=name)
        self._helpers.add(helper)
        helper.add_done_callback(self._helpers.discard)

    def touch(self) -> None:
        """Something waits to be sent, or a time has changed."""
        self._nudge.set()

    def acknowledge(self, entries: Collection[EntryId]) -> None:
        """Put acks on their way."""
        self.link.acknowledge(entries)
        self._nudge.set()

    def nack(self, entry: EntryId, reason: str | None, delay_ms: int | None) -> None:
        """Put a request for redelivery on its way."""
        self.link.nack(entry, reason, delay_ms)
        self._nudge.set()

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _read(self) -> Ended:
        core = self._core
        try:
            while True:
                await self._wait_for_room()
                payload = await self._socket.receive()
                with contextlib.suppress(UnknownOp):  # a later version's frame is passed over
                    self._handle(decode_server(payload, core.format))
        except SocketClosed as closed:
            if closed.refused:
                core.callbacks.report(NodeFault(f"the node's message was refused: {closed.refused}"))
            code, reason = (ABNORMAL, self._lost) if self._lost else (closed.code, closed.reason)
            # A node need not say again why this side has closed.
            reason = reason or closed.refused or (_GOAWAY if self._leaving else "")
            return Ended(code=code, reason=reason, come_back_ms=self.link.come_back_ms)
        except BadFrame as error:
            core.callbacks.report(NodeFault(f"the node sent what is no frame: {error}"), error)
            return Ended(code=ABNORMAL, reason="bad frame")

    async def _wait_for_room(self) -> None:
        """A node that keeps the window never fills the queue; from another one nothing is read meanwhile."""
        core, link = self._core, self.link
        window = DEFAULT_WINDOW if link.welcome is None else link.welcome.window
        while core.inbox.is_full(window):
            link.paused = True
            core.room.clear()
            await core.room.wait()
        link.paused = False

    def _handle(self, frame: ServerFrame) -> None:
        core, inbox = self._core, self._core.inbox
        now_ms = core.clock.monotonic_ms()
        match frame:
            case Events():
                again = inbox.arrived(frame.events, now_ms)
                for delivered in frame.events:
                    core.texts.event(delivered.event)
                if again:
                    self.acknowledge(again)
            case Welcome():
                core.welcomed(frame)
                self.link.welcomed(frame, now_ms)
                self._token_lives_until(frame.token_expires_ms)
                core.callbacks.set_state(State.CATCHING_UP)
            case CaughtUp():
                inbox.caught_up(frame.cursor, self.link.number)
                if inbox.held == 0 and isinstance(mark := inbox.peek(), CaughtUpMark):
                    # Nothing waits to be handled, so nobody need ask for it first.
                    inbox.take()
                    self.caught_up(mark)
            case Gap():
                inbox.gap(frame)
            case Dropped():
                inbox.withdrawn(frame.ids)
                core.callbacks.dropped(frame)
            case Text():
                core.texts.frame(frame)
            case Released():
                inbox.withdrawn(frame.ids)
            case Acked():
                core.confirms.answered(frame.ref)
            case Sent():
                core.told(frame)
            case Refreshed():
                self._token_lives_until(frame.token_expires_ms)
            case GoAway():
                self.link.goaway(frame, now_ms)
                self.touch()
            case ErrorFrame():
                if not core.told(frame):
                    self.link.confirm_refused(frame.ref, frame.code, now_ms)
                    self.touch()
                    core.callbacks.report(NodeFault(f"the node refused a frame: {frame.code}: {frame.message}"))
            case _:
                pass  # answers to what is not asked here
        core.arrived.set()

    def caught_up(self, mark: CaughtUpMark) -> None:
        """What was stored when a connection opened has been handled."""
        if mark.connection == self.link.number:
            self._core.callbacks.set_state(State.LIVE)

    def _token_lives_until(self, expires_ms: int) -> None:
        if self._core.tokens.renewable:
            clock = self._core.clock
            self.link.token_lives(expires_ms - clock.now_ms(), clock.monotonic_ms())
        self._expires_ms = expires_ms
        self.touch()

    # --- writing ------------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        """Send what waits, once a turn of the loop."""
        with contextlib.suppress(SocketClosed):  # the reader sees it too, with its code
            while True:
                while (frame := self.link.next_frame(self._core.clock.monotonic_ms())) is not None:
                    await self._send(frame)
                if self._leaving:
                    await self._say_goodbye(_GOAWAY)
                    return
                self._arm()
                await self._nudge.wait()
                self._nudge.clear()

    async def _send(self, frame: ClientFrame) -> None:
        await self._socket.send_frame(encode_client(frame, self._core.format), self._core.format)

    async def _say_goodbye(self, reason: str) -> None:
        """Send what waits, whatever its pace, and close: acks that the node has read are not delivered again."""
        with contextlib.suppress(SocketClosed, TimeoutError):
            async with asyncio.timeout(seconds(CLOSE_TIMEOUT_MS)):
                while self.link.welcome is not None and (frame := self._last_frame()) is not None:
                    await self._send(frame)
                await self._socket.leave(_NORMAL, reason)

    def _last_frame(self) -> ClientFrame | None:
        return self.link.last_frame(self._core.clock.monotonic_ms())

    # --- time ---------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Set the timer to what is due first."""
        due_ms = self.link.due_ms
        if due_ms == self._timer_ms:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_ms = due_ms
        if due_ms is not None:
            delay_ms = max(0, due_ms - self._core.clock.monotonic_ms())
            self._timer = self._core.timers.call_later(delay_ms, self._rang)

    def _rang(self) -> None:
        self._timer = self._timer_ms = None
        for act in self.link.on_clock(self._core.clock.monotonic_ms(), self._core.inbox):
            if isinstance(act, Lost):
                self._lost = act.reason
                self._socket.abort()
                return
            if act is Act.LEAVE:
                self._leaving = True
            else:
                self._help(self._refresh(), "eventbus:refresh")
        self._arm()
        self.touch()

    async def _refresh(self) -> None:
        """Get a new token and send it over the live socket."""
        try:
            token = await self._core.tokens.get()
        except TokenFailed as error:
            self._core.callbacks.report(error, error.__cause__)
            self._token_lives_until(self._expires_ms)
        else:
            self.link.refresh(token)
            self.touch()
