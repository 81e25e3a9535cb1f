"""The open connections of a node: their bounds, who handles them, and the flush that ends each turn of the loop."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from eventbus.clock import Clock, SystemClock, seconds

if TYPE_CHECKING:
    from gateway.transport.framing import Framing
    from gateway.transport.handshake import Subprotocol
    from gateway.transport.outbox import Backlog
    from gateway.transport.websocket import Connection

__all__ = ["NOBODY", "ClientConnection", "Handler", "SocketSettings", "Sockets"]

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketSettings:
    """The bounds of each connection.

    Attributes:
        max_frame_bytes: longest message of a client, all fragments together.
        close_timeout_ms: how long a close waits for the peer.
        write_buffer_bytes: what the transport holds before the connection counts as not writable.
        max_queued_bytes: hard bound of the outbox; above it the client is a slow consumer at once.
        max_control_frames: pings, pongs and fragments that a client may send within a second.
    """

    max_frame_bytes: int = 65_536
    close_timeout_ms: int = 2_000
    write_buffer_bytes: int = 65_536
    max_queued_bytes: int = 16 * 1024 * 1024
    max_control_frames: int = 1_000


class ClientConnection(Protocol):
    """What a session is written to: a socket, or an HTTP response without an end."""

    @property
    def subprotocol(self) -> Subprotocol:
        """How what the client says is encoded."""

    @property
    def framing(self) -> Framing:
        """How what it is sent becomes bytes."""

    @property
    def is_open(self) -> bool:
        """Whether frames can be sent."""

    @property
    def writable(self) -> bool:
        """Whether it makes sense to send more now."""

    @property
    def buffered_bytes(self) -> int:
        """What waits to be written."""

    @property
    def last_received_ms(self) -> int:
        """When the client was last heard of; monotonic."""

    def send(self, frame: bytes) -> None:
        """Queue what the framing made."""

    def ping(self) -> None:
        """Ask for a sign of life."""

    def backlog(self, now_ms: int) -> Backlog:
        """Look how much waits and since when nothing went away."""

    def pause_reading(self) -> None:
        """Take nothing more from the client."""

    def resume_reading(self) -> None:
        """Go on after `pause_reading`."""

    def close(self, code: int, reason: str = "") -> None:
        """End it with a word, in bounded time."""

    def abort(self) -> None:
        """Drop it."""


class Handler(Protocol):
    """What the node does with one connection. Every call comes from the loop's thread, and none may block."""

    def on_open(self, connection: Connection) -> None:
        """The handshake is done; from here on the connection can send."""
        ...

    def on_message(self, payload: bytes) -> None:
        """A whole message came: of the right type for the subprotocol, and valid UTF-8 when that is text.

        Raises:
            EventBusError: closes the connection with the error's close code; any other exception is a defect (4007).
        """
        ...

    def on_writable(self) -> None:
        """The peer reads again: after `Connection.writable` was False it is True."""
        ...

    def on_close(self, code: int, reason: str) -> None:
        """The connection is over, exactly once for each handler, and never from within a call that the handler makes.

        Args:
            code: that of the close frame sent or received first; 1006 when the transport was lost without one.
            reason: its text.
        """
        ...


class _Nobody:
    """Handles a connection that is over or was never wanted."""

    __slots__ = ()

    def on_open(self, connection: Connection) -> None:
        """Ignored."""

    def on_message(self, payload: bytes) -> None:
        """Ignored."""

    def on_writable(self) -> None:
        """Ignored."""

    def on_close(self, code: int, reason: str) -> None:
        """Ignored."""


NOBODY: Final[Handler] = _Nobody()


class Sockets:
    """The open connections of one node, and the flush that ends each turn of the loop.

    Attributes:
        connections: all that are open or closing; for heartbeats and the drain. Copy it before closing any.
    """

    __slots__ = ("_dirty", "_empty", "clock", "connections", "loop", "settings")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, settings: SocketSettings | None = None, clock: Clock | None = None
    ) -> None:
        self.loop = loop
        self.settings = settings or SocketSettings()
        self.clock = clock or SystemClock()
        self.connections: set[ClientConnection] = set()
        self._dirty: list[Connection] = []
        self._empty: list[asyncio.Event] = []

    def mark(self, connection: Connection) -> None:
        """Have a connection flushed at the end of this turn of the loop."""
        if not self._dirty:
            self.loop.call_soon(self._flush)
        self._dirty.append(connection)

    def forget(self, connection: ClientConnection) -> None:
        """A connection is over."""
        self.connections.discard(connection)
        if not self.connections:
            for event in self._empty:
                event.set()

    async def wait_closed(self, timeout_ms: int) -> bool:
        """Wait until no connection is left.

        Returns:
            Whether that came within the time. Cancellation changes nothing.
        """
        if not self.connections:
            return True
        event = asyncio.Event()
        self._empty.append(event)
        try:
            async with asyncio.timeout(seconds(timeout_ms)):
                await event.wait()
        except TimeoutError:
            return False
        finally:
            self._empty.remove(event)
        return True

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            try:
                connection.flush()
            except Exception:  # one broken transport must not keep the others' frames back
                _log.exception("writing to %r failed", connection)
                connection.abort()
