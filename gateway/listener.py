"""One port for sockets and HTTP: the head of each connection's first request decides.

uvicorn serves the HTTP, by its protocol class alone: no `uvicorn.Server`, which would install signal handlers, exit the process
when a port is taken, and close sockets at its own moment. What uvicorn lacks is added here: bounds on the time and size of a
request's head, on the time of its body and of a stalled response, and the bytes behind an upgrade's head are not lost.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl as tls
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Final, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from eventbus.clock import Clock, seconds
from gateway.handshake import Gatekeeper
from gateway.proxy import (
    Trusted,
)
from gateway.upgrade import Upgrades
from gateway.websocket import Sockets, SocketSettings

__all__ = ["Listener", "ListenerSettings", "serve"]

_log: Final = logging.getLogger(__name__)

_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[ \t]*websocket[ \t]*\r\n", re.IGNORECASE)
_CONNECTION: Final = re.compile(rb"\r\nconnection:(?:[^\r\n]*,)?[ \t]*upgrade[ \t]*(?:,[^\r\n]*)?\r\n", re.IGNORECASE)
_NOTSENT_LOWAT_BYTES: Final = 16_384


def nobody_is_trusted(address: str) -> bool:
    """The default: no proxy stands in front."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSettings:
    """The bounds of a listener.

    Attributes:
        backlog: connections that the kernel lets wait; a storm of reconnects needs thousands.
        head_bytes: longest head of a request.
        head_timeout_ms: for the whole head of a request, from the connection or from its first byte.
        body_timeout_ms: for the whole body of a request, and for a response that the client does not read.
        decision_timeout_ms: for the gatekeeper's decision.
        keep_alive_ms: for the next request on a connection.
        stop_timeout_ms: for requests that run when the listener stops.
        trusted_proxy: whether an address is that of a trusted proxy.
        socket: the bounds of the sockets.
    """

    backlog: int = 4096
    head_bytes: int = 16_384
    head_timeout_ms: int = 5_000
    body_timeout_ms: int = 30_000
    decision_timeout_ms: int = 10_000
    keep_alive_ms: int = 5_000
    stop_timeout_ms: int = 5_000
    trusted_proxy: Trusted = nobody_is_trusted
    socket: SocketSettings = field(default_factory=SocketSettings)


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
        self.heads: set[HeadReader] = set()
        self._server: asyncio.Server | None = None
        self._more_servers: list[asyncio.Server] = []
        self._tick: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return (
            f"<Listener port {self.port}: {len(self.sockets.connections)} sockets, {len(self.upgrades.pending)} handshakes, "
            f"{len(self.state.connections)} HTTP connections, {len(self.heads)} heads>"
        )

    async def start(
        self, host: str | None, port: int, sockets: Sequence[socket.socket] | None, ssl: tls.SSLContext | None
    ) -> None:
        """Begin to accept.

        Raises:
            OSError: the address is taken or not there.
        """
        options: dict[str, Any] = {"ssl": ssl, "backlog": self.settings.backlog, "start_serving": False}
        servers: list[asyncio.Server] = []
        if sockets is None:
            servers.append(await self.loop.create_server(self._reader, host, port, **options))
        else:
            for listening in sockets:
                servers.append(await self.loop.create_server(self._reader, sock=listening, **options))
        self._more_servers = servers
        for server in servers:
            for listening in server.sockets:
                _tune(cast(socket.socket, listening))
        self.port = int(servers[0].sockets[0].getsockname()[1])
        self._date()
        for server in servers:
            await server.start_serving()

    async def stop(self) -> None:
        """Accept nothing more, at once; let running HTTP requests end within the bound. WebSockets are left to the node.

        Idempotent. Cancellation leaves what still runs to the loop.
        """
        for server in self._more_servers:
            server.close()
        self._more_servers = []
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        for head in list(self.heads):
            head.drop()
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
            _log.warning("%d requests still ran after %d ms and were cancelled", len(late), self.settings.stop_timeout_ms)
            for task in late:
                task.cancel()
            # A request that ignores its cancellation must not hold the node up.
            await asyncio.wait(late, timeout=1)

    def _reader(self) -> HeadReader:
        return HeadReader(self)

    def _date(self) -> None:
        """Renew the Date header of all responses once a second."""
        self.state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._tick = self.loop.call_later(1, self._date)


def _tune(listening: socket.socket) -> None:
    """Set what accepted sockets inherit: no delay, and no megabytes that wait unsent in the kernel for a stalled reader."""
    if listening.family in (socket.AF_INET, socket.AF_INET6):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _NOTSENT_LOWAT_BYTES)
