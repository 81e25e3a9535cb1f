"""One port for sockets and HTTP: the head of each connection's first request decides.

uvicorn serves the HTTP, by its protocol class alone: no `uvicorn.Server`, which would install signal handlers, exit
the process when a port is taken, and close sockets at its own moment. What uvicorn lacks is added here: bounds on the
time and size of a request's head, on the time of its body and of a stalled response, and the bytes behind an upgrade's
head are not lost.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl as tls
from collections.abc import Callable, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from eventbus.clock import Clock, seconds
from eventbus.errors import RateLimited
from gateway.access.limits import AddressConnections
from gateway.access.proxy import ProxyProtocolError, parse_proxy_header, plain_address
from gateway.transport.handshake import Gatekeeper, Reject
from gateway.transport.http_connection import HttpConnection, ListenerSettings, head_too_long
from gateway.transport.lobby import Lobby
from gateway.transport.sockets import Sockets
from gateway.transport.upgrade import Route, Upgrades, http_response, linger

__all__ = ["Listener", "ListenerSettings", "serve"]

_log: Final = logging.getLogger(__name__)

_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[ \t]*websocket[ \t]*\r\n", re.IGNORECASE)
_CONNECTION: Final = re.compile(rb"\r\nconnection:(?:[^\r\n]*,)?[ \t]*upgrade[ \t]*(?:,[^\r\n]*)?\r\n", re.IGNORECASE)
_LINGER_MS: Final = 1_000
_NOTSENT_LOWAT_BYTES: Final = 16_384


class Listener:
    """A port that is served.

    Attributes:
        port: the port of the first address.
        sockets: the open WebSocket connections; they outlive `stop`.
    """

    def __init__(self, app: Any, gatekeeper: Gatekeeper, settings: ListenerSettings, clock: Clock | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.settings = settings
        self.port = 0
        self.sockets = Sockets(self.loop, settings=settings.socket, clock=clock)
        self.upgrades = Upgrades(self.sockets, gatekeeper, settings.trusted_proxy, settings.decision_timeout_ms)
        self.lobby = Lobby(self.upgrades, settings.door)
        # uvicorn asks only whether `ws` is there before it calls handle_websocket_upgrade, which is ours.
        self.config = Config(
            app,
            loop="none",
            http=HttpConnection,
            ws=asyncio.Protocol,
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        self.config.load()
        self.state = ServerState()
        # In the order in which they came: the first has waited longest for its request.
        self.heads: dict[HeadReader, None] = {}
        self.addresses = AddressConnections(settings.per_address)
        self.places = 0
        self._ssl: tls.SSLContext | None = None
        self._servers: list[asyncio.Server] = []
        self._tick: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        sockets, pending = len(self.sockets.connections), len(self.upgrades.pending)
        requests, heads = len(self.state.connections), len(self.heads)
        return f"<Listener {self.port}: {sockets} sockets, {pending} handshakes, {requests} HTTP, {heads} heads>"

    async def start(
        self, host: str | None, port: int, sockets: Sequence[socket.socket] | None, ssl: tls.SSLContext | None
    ) -> None:
        """Begin to accept.

        Raises:
            OSError: the address is taken or not there.
        """
        self._ssl = ssl
        await self._listen(host, port, sockets)
        self._date()

    @property
    def is_open(self) -> bool:
        """Whether it accepts connections."""
        return bool(self._servers)

    def close_port(self) -> None:
        """Accept nothing more, and keep all that came in. Other processes that share the port get what comes."""
        for server in self._servers:
            server.close()
        self._servers = []

    async def open_port(self, sockets: Sequence[socket.socket]) -> None:
        """Accept again, after `close_port`, on bound sockets.

        Raises:
            OSError: somebody else listens there by now.
        """
        await self._listen(None, 0, sockets)

    async def _listen(self, host: str | None, port: int, sockets: Sequence[socket.socket] | None) -> None:
        options: dict[str, Any] = {"ssl": self._ssl, "backlog": self.settings.backlog, "start_serving": False}
        servers = self._servers
        if sockets is None:
            servers.append(await self.loop.create_server(self._reader, host, port, **options))
        else:
            for listening in sockets:
                servers.append(await self.loop.create_server(self._reader, sock=listening, **options))
        for server in servers:
            for listening in server.sockets:
                _tune(listening)
        self.port = int(servers[0].sockets[0].getsockname()[1])
        for server in servers:
            await server.start_serving()

    async def stop(self) -> None:
        """Accept nothing more, at once; let running HTTP requests end within the bound. WebSockets are left to the
        node.

        Idempotent. Cancellation leaves what still runs to the loop.
        """
        self.close_port()
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        for head in list(self.heads):
            head.drop()
        self.lobby.stop()
        await self.upgrades.stop()
        for connection in list(self.state.connections):
            connection.shutdown()
        await self._end_requests()
        for connection in list(self.state.connections):
            connection.transport.abort()

    async def _end_requests(self) -> None:
        tasks = set(self.state.tasks)
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=seconds(self.settings.stop_timeout_ms))
        if late:
            _log.warning(
                "%d requests still ran after %d ms and were cancelled", len(late), self.settings.stop_timeout_ms
            )
            for task in late:
                task.cancel()
            # A request that ignores its cancellation must not hold the node up.
            await asyncio.wait(late, timeout=1)

    def admit(self, peer: str) -> Callable[[], None]:
        """Give a connection a place among those that are no sockets yet, at the cost of whoever has waited longest for
        a request when there is none left.

        Returns:
            What gives the place back; calls after the first do nothing.

        Raises:
            RateLimited: its address has as many as it may, or all places are taken by requests.
        """
        row = self.settings.row(peer)
        self.addresses.add(row)
        if self.places >= self.settings.connections_max:
            if not self.heads:
                self.addresses.remove(row)
                raise RateLimited(f"{self.places} requests are being answered, the most there may be")
            next(iter(self.heads)).drop()
        self.places += 1
        taken = True

        def leave() -> None:
            nonlocal taken
            if taken:
                taken = False
                self.places -= 1
                self.addresses.remove(row)

        return leave

    def _reader(self) -> HeadReader:
        return HeadReader(self)

    def _date(self) -> None:
        """Renew the Date header of all responses once a second."""
        self.state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._tick = self.loop.call_later(1, self._date)


def _tune(listening: socket.socket) -> None:
    """Set what accepted sockets inherit: no delay, and no megabytes that wait unsent in the kernel for a stalled
    reader.
    """
    if listening.family in (socket.AF_INET, socket.AF_INET6):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _NOTSENT_LOWAT_BYTES)


def _nothing() -> None:
    """No place is taken."""


class HeadReader(asyncio.Protocol):
    """Reads the head of a connection's first request, and hands the connection to a socket or to uvicorn."""

    __slots__ = ("_buffer", "_left", "_listener", "_proxied", "_route", "_searched", "_timer", "_transport")

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._buffer = bytearray()
        self._searched = 0
        self._proxied = True  # a PROXY header may still come
        self._timer: asyncio.TimerHandle | None = None
        self._left: Callable[[], None] = _nothing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        listener = self._listener
        self._transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")
        peer = plain_address(str(name[0])) if isinstance(name, tuple) else ""
        self._route = Route(peer=peer, scheme="https" if transport.get_extra_info("sslcontext") else "http")
        self._proxied = listener.settings.trusted_proxy(peer)
        if not self._admitted():
            return
        listener.heads[self] = None
        self._timer = listener.loop.call_later(seconds(listener.settings.head_timeout_ms), self.drop)

    def _admitted(self) -> bool:
        """Takes a place, or hangs up: who has too many connections gets no more of this process than that."""
        try:
            self._left = self._listener.admit(self._route.peer)
        except RateLimited as error:
            headers = (("Retry-After", str(-(-error.retry_after_ms // 1000))),)
            reject = Reject(status=HTTPStatus.TOO_MANY_REQUESTS, code=error.code, message=str(error), headers=headers)
            self._transport.write(http_response(reject))
            self._transport.close()
            return False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._left()

    def drop(self) -> None:
        """Hang up on a client that did not say what it wants."""
        self._leave()
        self._left()
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._proxied and not self._read_proxy_header():
            return
        found = _HEAD_END.search(self._buffer, max(0, self._searched - 3))
        self._searched = len(self._buffer)
        limit = self._listener.settings.head_bytes
        if (found.end() if found else len(self._buffer)) > limit:
            self._refuse(head_too_long(limit))
        elif found:
            self._hand_over(found.end())

    def _read_proxy_header(self) -> bool:
        """Returns whether a request may begin, for which a PROXY header has to be complete or ruled out."""
        try:
            header = parse_proxy_header(bytes(self._buffer[:4096]))
        except ProxyProtocolError as error:
            reject = Reject(status=HTTPStatus.BAD_REQUEST, code="bad_proxy_header", message=f"PROXY header: {error}")
            self._refuse(http_response(reject))
            return False
        if header is None:
            return False
        self._proxied = False
        del self._buffer[: header.size]
        if header.source is not None:
            # The place was the proxy's; it is the client's from here on.
            self._left()
            self._route = Route(peer=header.source, scheme=self._route.scheme)
            if not self._admitted():
                self._leave()
                return False
        return True

    def _hand_over(self, end: int) -> None:
        listener = self._listener
        data = bytes(self._buffer)
        self._leave()
        head = data[:end]
        if _UPGRADE.search(head) and _CONNECTION.search(head):
            # Sockets have limits of their own.
            self._left()
            listener.lobby.enter(self._transport, head, data[end:], self._route)
            return
        connection = HttpConnection(
            listener.config, listener.state, listener.upgrades, listener.settings, self._route, left=self._left
        )
        connection.connection_made(self._transport)
        self._transport.set_protocol(connection)
        connection.data_received(data)

    def _refuse(self, answer: bytes) -> None:
        self._leave()
        self._left()
        linger(self._listener.loop, self._transport, answer, _LINGER_MS)

    def _leave(self) -> None:
        self._listener.heads.pop(self, None)
        self._buffer = bytearray()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def serve(
    app: Any,
    gatekeeper: Gatekeeper,
    *,
    host: str | None = "127.0.0.1",
    port: int = 0,
    sockets: Sequence[socket.socket] | None = None,
    ssl: tls.SSLContext | None = None,
    settings: ListenerSettings | None = None,
    clock: Clock | None = None,
) -> Listener:
    """Serve sockets at `/v1/connect`, and everything else by an ASGI application, on one port.

    It runs in the caller's loop, installs no signal handler and starts no task; the application's lifespan is the
    caller's.

    Args:
        app: an ASGI 3 application.
        gatekeeper: decides who gets a socket.
        host: an address or name; ignored when `sockets` are given.
        port: 0 takes a free one.
        sockets: bound sockets to listen on; they are closed by `Listener.stop`.
        ssl: serve TLS; a PROXY header is not read then.
        settings: the bounds.
        clock: the node's.

    Returns:
        The listener, accepting.

    Raises:
        OSError: the address is taken or not there.

    Cancellation: what was begun to listen on is closed.
    """
    listener = Listener(app, gatekeeper, settings or ListenerSettings(), clock)
    try:
        await listener.start(host, port, sockets, ssl)
    except BaseException:
        await listener.stop()
        raise
    return listener
