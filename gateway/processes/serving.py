"""Runs one node in this process until a signal ends it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from socket import socket

from starlette.routing import Route

from eventbus.breaker import BreakerState
from eventbus.errors import ConfigError
from eventbus.ids import NodeName
from eventbus.publishing.receipt import PublishStatistics
from gateway.access.loopback import is_loopback
from gateway.admin.port import make_admin_app, serve_admin
from gateway.admin.revocations import AdminAccess
from gateway.config import ListenSettings, NodeSettings
from gateway.counters import Counters
from gateway.metrics import LoopLag, Snapshot, snapshot
from gateway.node import Node
from gateway.processes.process import (
    Stop,
    bind,
    check_tls,
    close_all,
    first_of,
    port_of,
    raise_file_limit,
    ready_line,
    run_with_loop,
    say,
)
from gateway.tally import Tallied
from gateway.transport.listener import Listener
from gateway.web.routes import make_app

__all__ = ["NodeFigures", "drain_when_asked", "run_node", "run_with_loop", "start_node"]

logger = logging.getLogger(__name__)


class NodeFigures:
    """What is measured of a node, and what its own admin port shows."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.lag = LoopLag()

    @property
    def name(self) -> NodeName:
        return self._node.name

    @property
    def counters(self) -> Counters:
        return self._node.counters

    @property
    def started_ms(self) -> int:
        return self._node.started_ms

    @property
    def connections(self) -> int:
        return self._node.connections

    @property
    def sessions(self) -> int:
        return len(self._node.hub)

    @property
    def users(self) -> int:
        return self._node.hub.users

    @property
    def waiting(self) -> Mapping[str, int]:
        return {**self._node.reader.backlog, "attaches": self._node.keeper.waiting}

    @property
    def draining(self) -> bool:
        return self._node.draining

    @property
    def store_failed_ms(self) -> int:
        return self._node.readiness.store_failed_ms()

    @property
    def publishing(self) -> PublishStatistics:
        return self._node.bus.statistics()

    @property
    def watch_late_ms(self) -> int:
        return self._node.watcher.worst_late_ms

    @property
    def tallied(self) -> Tallied | None:
        return self._node.tally.found

    @property
    def link(self) -> Mapping[str, int]:
        return self._node.link_statistics()

    @property
    def handshakes_waiting(self) -> int:
        return 0 if self._node.listener is None else len(self._node.listener.lobby)

    @property
    def traces_left_out(self) -> int:
        return 0 if self._node.spans is None else self._node.spans.left_out

    @property
    def webhook_breaker(self) -> BreakerState:
        return self._node.webhook.breaker.state

    def not_ready(self) -> str | None:
        return self._node.not_ready()

    async def figures(self) -> Snapshot:
        return snapshot(self)

    def processes(self) -> Sequence[Mapping[str, object]]:
        state = "draining" if self.draining else "ready" if self.not_ready() is None else "not_ready"
        return [{"node": self.name, "pid": os.getpid(), "state": state}]


async def start_node(node: Node, sockets: Sequence[socket], stop: Stop, *, routes: Sequence[Route] = ()) -> bool:
    """Start a node, which may wait for the store for some seconds; a signal ends the wait.

    Returns:
        Whether the node accepts connections; False when it was told to stop before.

    Raises:
        ConfigError: somebody else listens on the port by now.
    """
    starting = asyncio.ensure_future(node.start(app=make_app(node, routes=routes), sockets=sockets))
    await first_of(starting, stop.asked.wait())
    if not starting.done():
        starting.cancel()
        await asyncio.wait([starting])
        return False
    try:
        starting.result()
    except OSError as error:
        raise _port_lost(node.node_settings.listen, error) from None
    _tune_collector()
    return True


def _tune_collector() -> None:
    """What was made so far lives as long as the process: the collector need not look at it again. Its thresholds are
    wide because a full collection stops the loop for tens of milliseconds at 20,000 connections.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1_000)


async def drain_when_asked(node: Node, stop: Stop) -> int:
    """Wait until a signal comes or the node fails, and drain it; a second signal ends it at once.

    Returns:
        The exit status: 0 after a drain, 1 when the node failed or its drain was not finished.
    """
    await first_of(node.failed.wait(), stop.asked.wait())
    logger.info("the node drains")
    draining = asyncio.ensure_future(node.drain())
    await first_of(draining, stop.at_once.wait())
    if not draining.done():
        logger.warning("a second signal: the node ends without finishing its drain; nothing is lost, some comes twice")
        draining.cancel()
        await asyncio.wait([draining])
        return 1
    draining.result()
    return 1 if node.failed.is_set() else 0


async def run_node(
    settings: NodeSettings,
    *,
    routes: Sequence[Route] = (),
    started: Callable[[Node], Awaitable[None]] | None = None,
) -> int:
    """Run a node with its admin port until SIGTERM or SIGINT, then drain it; a second signal ends it at once.

    Args:
        settings: the node's.
        routes: further ones on the port for clients.
        started: called when the node accepts connections, before it says that it is ready.

    Returns:
        The exit status: 0 after a drain, 1 when the node failed.

    Raises:
        ConfigError: a port is taken, or a file of the settings can not be used.
    """
    listen = settings.listen
    check_tls(listen)
    stop = Stop()
    sockets: list[socket] = []
    node: Node | None = None
    admin: Listener | None = None
    figures: NodeFigures | None = None
    try:
        # Before anything else: a port that is taken is told at once, and until the node listens it refuses.
        sockets += bind(listen.host, listen.port, setting="PORT")
        admin_sockets = bind(listen.admin_host, listen.admin_port, setting="ADMIN_PORT")
        sockets += admin_sockets
        node = Node(settings)
        raise_file_limit(settings.limits.max_connections + settings.limits.max_http_connections)
        stop.listen()
        if not await start_node(node, sockets[: -len(admin_sockets)], stop, routes=routes):
            return 0
        figures = NodeFigures(node)
        figures.lag.start()
        access = AdminAccess(node.store, node.revocations, node.authenticator, node.clock)
        looking = None if is_loopback(listen.admin_host) else access.authenticator
        app = make_admin_app(figures, authenticator=looking, access=access, settings=settings)
        admin = await serve_admin(app, admin_sockets)
        if started is not None:
            await started(node)
        say(ready_line(listen, node.port, port_of(admin_sockets)))
        return await drain_when_asked(node, stop)
    finally:
        if admin is not None:
            await admin.stop()
        if figures is not None:
            figures.lag.stop()
        if node is not None:
            await node.aclose()
        close_all(sockets)
        stop.unlisten()


def _port_lost(listen: ListenSettings, error: OSError) -> ConfigError:
    return ConfigError(
        f"EVENTBUS_PORT is {listen.port}, and {listen.host} can not be listened on: {error.strerror or error}",
        field="port",
    )
