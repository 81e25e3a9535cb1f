"""A worker: one node in a process of its own, started by `gateway.processes.supervisor`, which speaks to it over stdin.

A worker shares the port with its siblings. While it is not ready it closes its part of it, so that the kernel gives the
connections to the others. It drains on SIGTERM, and also when its parent has died.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # Ctrl-C in a terminal reaches every process of the group; what to do about it is for the parent to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

import asyncio
import base64
import logging
import pickle
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from eventbus.clock import seconds
from eventbus.errors import ConfigError, EventBusError
from gateway import logs
from gateway.config import ListenSettings, NodeSettings
from gateway.metrics import pack, snapshot
from gateway.node import Node
from gateway.processes.channel import Channel
from gateway.processes.process import Stop, bind, close_all, raise_file_limit, run_with_loop
from gateway.processes.serving import NodeFigures, drain_when_asked, start_node
from gateway.traces import exported

__all__ = ["PortGate", "main"]

logger = logging.getLogger("gateway.processes.worker")

GATE_MS: Final = 100
"""How often a worker looks whether it is ready."""


def shared_port(listen: ListenSettings) -> list[socket.socket]:
    """A worker's own sockets on the shared port. Raises: ConfigError."""
    return bind(listen.host, listen.port, setting="PORT", shared=True)


class PortGate:
    """Holds a worker's part of the shared port open while the worker is ready, and closed while it is not.

    Args:
        node: the worker's, started.
        tell: called with `ready` or `not_ready` at the beginning and whenever it changes.
    """

    def __init__(self, node: Node, tell: Callable[[str], None]) -> None:
        self._node = node
        self._tell = tell
        self._told: str | None = None

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while True:
            # A node that drains goes on answering until its drain closes the port for good.
            if not self._node.is_ending:
                await self._look()
            await asyncio.sleep(seconds(GATE_MS))

    async def _look(self) -> None:
        listener = self._node.listener
        if listener is None:
            return
        problem = self._node.not_ready()
        if problem is not None and listener.is_open:
            listener.close_port()
            logger.warning("not ready, so the port is left to the other workers: %s", problem)
        elif problem is None and not listener.is_open:
            try:
                await listener.open_port(shared_port(self._node.node_settings.listen))
            except (ConfigError, OSError) as error:
                logger.error("ready again, but the port can not be opened: %s", error)
                return
            logger.info("ready again")
        state = "ready" if problem is None else "not_ready"
        if state != self._told:
            self._told = state
            self._tell(state)


class _Worker:
    """The node of this process, and who listens to the parent."""

    def __init__(self, settings: NodeSettings, channel: Channel) -> None:
        self._settings = settings
        self._channel = channel
        self._stop = Stop()
        self._node = Node(settings)
        self._figures: NodeFigures | None = None

    async def run(self) -> int:
        # Only the first SIGTERM counts: a service manager sends one to every process, and the parent sends another.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop.asked.set)
        sockets = shared_port(self._settings.listen)
        tasks = [asyncio.create_task(self._obey(), name="worker:obey")]
        figures = NodeFigures(self._node)
        try:
            if not await start_node(self._node, sockets, self._stop):
                return 0
            self._figures = figures
            figures.lag.start()
            gate = PortGate(self._node, lambda state: self._channel.send({"state": state}))
            tasks.append(asyncio.create_task(gate.run(), name="worker:gate"))
            return await drain_when_asked(self._node, self._stop)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            figures.lag.stop()
            await self._node.aclose()
            close_all(sockets)

    async def _obey(self) -> None:
        """Answers the parent; when the parent has died, stops the node."""
        while (message := await self._channel.receive()) is not None:
            if "ask" in message:
                figures = {} if self._figures is None else snapshot(self._figures)
                self._channel.send({"answer": message["ask"], "figures": pack(figures)})
        logger.warning("the parent has died: the worker ends after a drain")
        if self._node.listener is not None:
            # Whoever starts the service again needs the port.
            self._node.listener.close_port()
        self._stop.asked.set()


async def _main() -> int:
    try:
        stdin = socket.socket(fileno=0)
    except OSError:
        sys.stderr.write("a worker is started by its parent: eventbus-gateway serve --workers N\n")
        return 2
    channel = await Channel.over(stdin)
    try:
        first = await channel.receive()
        if first is None:
            return 1
        settings: Any = pickle.loads(base64.b64decode(first["settings"]))  # noqa: S301 - the parent made it
        logs.configure(settings.log, node=settings.listen.node)
        try:
            raise_file_limit(settings.limits.max_connections + settings.limits.max_http_connections)
            with exported(settings):
                return await _Worker(settings, channel).run()
        except EventBusError as error:
            logger.critical("the worker can not start: %s", error)
            return 2 if isinstance(error, ConfigError) else 1
    finally:
        await channel.aclose()


def main() -> int:
    """Run a worker; called by the supervisor alone. Returns the exit status."""
    return run_with_loop(_main())


if __name__ == "__main__":
    sys.exit(main())
