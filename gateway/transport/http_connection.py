"""An HTTP connection: uvicorn's protocol class, with the bounds that it lacks.

uvicorn waits without end for the rest of a request's head, for a body that trickles in, and for a client that does not
read its response; and bytes behind the head of an upgrade are lost. Each of these is closed here.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from eventbus.clock import seconds
from gateway.access.proxy import Trusted, client_address, forwarded_scheme
from gateway.transport.handshake import Reject
from gateway.transport.lobby import Door
from gateway.transport.sockets import SocketSettings
from gateway.transport.upgrade import Route, Upgrades, http_response, linger

__all__ = ["CARRIER", "HttpConnection", "ListenerSettings", "head_too_long"]

_LINGER_MS: Final = 1_000

CARRIER: Final = "eventbus.connection"
"""The ASGI extension by which a request has its connection."""


def nobody_is_trusted(address: str) -> bool:
    """The default: no proxy stands in front."""
    return False


def nobody_is_counted(address: str) -> str | None:
    """The default: no limit on addresses."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSettings:
    """The bounds of a listener.

    Attributes:
        backlog: connections that the kernel lets wait; a storm of reconnects needs thousands.
        connections_max: connections that are no sockets (yet): HTTP, and heads that are being read.
        row: under which row an address is counted (`gateway.access.limits.limited_address`); None is not counted.
        per_address: connections of one row that are no sockets (yet); 0 is no limit.
        head_bytes: longest head of a request.
        head_timeout_ms: for the whole head of a request, from the connection or from its first byte.
        body_timeout_ms: for the whole body of a request, and for a response that the client does not read.
        decision_timeout_ms: for the gatekeeper's decision.
        keep_alive_ms: for the next request on a connection.
        stop_timeout_ms: for requests that run when the listener stops.
        trusted_proxy: whether an address is that of a trusted proxy.
        door: says whose turn it is to open a socket; without one everybody's.
        socket: the bounds of the sockets.
    """

    backlog: int = 4096
    connections_max: int = 10_000
    row: Callable[[str], str | None] = nobody_is_counted
    per_address: int = 0
    head_bytes: int = 16_384
    head_timeout_ms: int = 5_000
    body_timeout_ms: int = 30_000
    decision_timeout_ms: int = 10_000
    keep_alive_ms: int = 5_000
    stop_timeout_ms: int = 5_000
    trusted_proxy: Trusted = nobody_is_trusted
    door: Door | None = None
    socket: SocketSettings = field(default_factory=SocketSettings)


def head_too_long(head_bytes: int) -> bytes:
    """The answer to a head above the limit."""
    message = f"the head of the request is longer than {head_bytes} bytes"
    return http_response(
        Reject(status=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, code="head_too_long", message=message)
    )


class _Phase(Enum):
    IDLE = "idle"  # no request is being read
    HEAD = "head"
    BODY = "body"


class HttpConnection(HttpToolsProtocol):
    """Serves the requests of one connection, and hands an upgrade over.

    Attributes:
        is_stopping: the listener stops: a response without an end is to end.
    """

    def __init__(
        self,
        config: Config,
        state: ServerState,
        upgrades: Upgrades,
        settings: ListenerSettings,
        route: Route,
        *,
        left: Callable[[], None],
    ) -> None:
        super().__init__(config, state, {}, upgrades.sockets.loop)
        self.timeout_keep_alive = seconds(settings.keep_alive_ms)  # type: ignore[assignment] # goes to call_later
        self._upgrades = upgrades
        self._settings = settings
        self._route = route
        self._left = left
        self._phase = _Phase.IDLE
        self._head_bytes = 0
        self._chunk = b""
        self._watchdog: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._endless = False
        self.is_stopping = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.client = (self._route.peer, self.client[1] if self.client else 0)
        self.scheme = "https" if self._route.scheme == "https" else "http"

    def data_received(self, data: bytes) -> None:
        self._chunk = data
        super().data_received(data)
        self._chunk = b""
        if self._phase is _Phase.HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > self._settings.head_bytes:
                self._hang_up(head_too_long(self._settings.head_bytes))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase = _Phase.HEAD
        self._head_bytes = 0
        self._watch(self._settings.head_timeout_ms)

    def on_headers_complete(self) -> None:
        trusted = self._settings.trusted_proxy
        if trusted(self._route.peer):
            headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.headers]
            client = client_address(self._route.peer, headers, trusted)
            if client != self._route.peer:
                self.scope["client"] = (client, 0)
            scheme = forwarded_scheme(self._route.scheme, self._route.peer, headers, trusted)
            self.scope["scheme"] = "https" if scheme == "https" else "http"
        self.scope["extensions"] = {CARRIER: self}  # type: ignore[dict-item] # ours, and for our own routes alone
        super().on_headers_complete()
        self._phase = _Phase.BODY
        self._watch(self._settings.body_timeout_ms)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._phase = _Phase.IDLE
        self._unwatch()

    def handle_websocket_upgrade(self) -> None:
        """Take an upgrade on a connection that served requests before; called while HttpParserUpgrade is handled."""
        self._unwatch()
        self._left()
        self.connections.discard(self)
        if self._answering():
            # Sent before the answer to the request ahead of it: a 101 would come in the middle of that answer.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.transport.close()
            return
        upgrade = sys.exception()
        early = self._chunk[upgrade.args[0] :] if upgrade is not None else b""
        head = [self.scope["method"].encode(), b" ", self.url, b" HTTP/", self.scope["http_version"].encode(), b"\r\n"]
        for name, value in self.headers:
            head += [name, b": ", value, b"\r\n"]
        head.append(b"\r\n")
        self._upgrades.begin(self.transport, b"".join(head), early, self._route)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the form that all errors have; uvicorn's would be plain text."""
        reject = Reject(status=HTTPStatus.BAD_REQUEST, code="bad_request", message="the request is not valid HTTP")
        self._hang_up(http_response(reject))

    def shutdown(self) -> None:
        """Take no further request; called when the listener stops."""
        self.is_stopping = True
        super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall is None and not self._endless:
            self._stall = self.loop.call_later(seconds(self._settings.body_timeout_ms), self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_again()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._left()
        self._unwatch()
        self._read_again()

    # What a response without an end asks for (`gateway.web.sse.Carrier`).

    @property
    def write_paused(self) -> bool:
        """Whether the client is behind with reading."""
        return self.flow.write_paused

    @property
    def buffered_bytes(self) -> int:
        """What was written and is not in the kernel yet."""
        return self.transport.get_write_buffer_size()

    def begin_endless(self, unanswered_ms: int) -> None:
        """Leave it to the sender of the response how long a client may be behind. The kernel drops the connection when
        nothing that was sent is acknowledged for so long, or when the client takes nothing; where it can not, its own
        patience counts.

        Source: tcp(7), TCP_USER_TIMEOUT.
        """
        self._endless = True
        # From here on it counts as a socket does.
        self._left()
        self._read_again()
        carrier = self.transport.get_extra_info("socket")
        if carrier is not None and carrier.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
            carrier.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unanswered_ms)

    async def written(self) -> None:
        """Wait until the client reads again or has gone. Cancellation changes nothing."""
        await self.flow.drain()

    def abort(self) -> None:
        """Drop the connection."""
        self.transport.abort()

    def _answering(self) -> bool:
        cycle: object = self.cycle  # uvicorn types it as always there
        return cycle is not None and not self.cycle.response_complete

    def _read_again(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _watch(self, timeout_ms: int) -> None:
        self._unwatch()
        self._watchdog = self.loop.call_later(seconds(timeout_ms), self._late, timeout_ms)

    def _unwatch(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _late(self, timeout_ms: int) -> None:
        """The client did not finish its request in time."""
        self._watchdog = None
        if self.flow.read_paused:  # it is not the client that is slow: the application has not read what came
            self._watch(timeout_ms)
            return
        message = f"the {self._phase.value} of the request did not come within {timeout_ms} ms"
        reject = Reject(status=HTTPStatus.REQUEST_TIMEOUT, code="request_timeout", message=message)
        self._hang_up(http_response(reject))

    def _hang_up(self, answer: bytes) -> None:
        """Answer, if no response has begun, and close; the application sees a disconnect."""
        self._unwatch()
        self._phase = _Phase.IDLE  # one answer, whatever else is wrong with what came
        cycle = self.cycle
        if self._answering():
            if cycle.response_started:
                self.transport.abort()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        self.connections.discard(self)
        # Another protocol gets `connection_lost`.
        self._left()
        linger(self.loop, self.transport, answer, _LINGER_MS)
