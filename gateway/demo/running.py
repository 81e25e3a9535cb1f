"""The demo as a whole: its server, nodes, agent, page and door are made, started, kept and ended here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from eventbus import Bus
from eventbus.clock import SystemClock, seconds
from eventbus.embedded import EmbeddedServer
from eventbus.errors import ConfigError
from eventbus.store.redis_store import RedisStore
from gateway.demo.control import Control, NoSockets, Refused
from gateway.demo.door import Door
from gateway.demo.files import Files
from gateway.demo.fleet import Fleet
from gateway.demo.processes import AgentProcess, Bell, NodeProcess
from gateway.demo.published import Published
from gateway.processes.process import Stop, bind, close_all, first_of, port_of
from gateway.transport.listener import Listener, serve

__all__ = ["Options", "run"]

PORTS_TRIED: Final = 50
DRAIN_MS: Final = 3_000
PACE_MS: Final = 400
SERVER_CHECK_MS: Final = 500
RUN_LEASE_MS: Final = 5_000
"""Shorter than usual: nobody wants to watch for half a minute until a node ends the run of a killed agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says.

    Attributes:
        port: of the page; None takes the first that is free from `first_port` on.
        first_port: see `port`.
        data_dir: where everything is kept.
        nodes: how many.
        open_browser: whether to open the page.
        question: with which a run begins at once, None for none.
    """

    port: int | None
    first_port: int
    data_dir: Path
    nodes: int
    open_browser: bool
    question: str | None


def run(options: Options) -> None:
    """Run everything until a signal comes.

    Raises:
        ConfigError, EmbeddedServerError, OSError: it can not start, with a sentence for the user.
    """
    with _hangup_is_termination(), _server(options.data_dir) as server:
        asyncio.run(_run(options, server))
        click.echo("Stopping the server.")


@contextlib.contextmanager
def _hangup_is_termination() -> Iterator[None]:
    """A closed terminal ends everything as Ctrl-C does."""
    before = signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@contextlib.contextmanager
def _server(data_dir: Path) -> Iterator[EmbeddedServer]:
    """A Valkey or Redis of our own, with its append-only file. Raises: EmbeddedServerError, OSError."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    server = EmbeddedServer(data_dir / "server")
    # Here, in the main thread: the server ends with the thread that started it.
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _take_port(options: Options) -> list[socket.socket]:
    """The port of the page; without a wish the first free one from the default on. Raises: ConfigError."""
    if options.port is not None:
        return bind("127.0.0.1", options.port, setting="PORT")
    for port in range(options.first_port, options.first_port + PORTS_TRIED):
        with contextlib.suppress(ConfigError):
            return bind("127.0.0.1", port, setting="PORT")
    return bind("127.0.0.1", 0, setting="PORT")


class _Demo:
    """All parts, made and not yet started."""

    def __init__(self, options: Options, server: EmbeddedServer) -> None:
        directory = options.data_dir
        logs = directory / "logs"
        logs.mkdir(exist_ok=True)
        for old in logs.glob("*.log"):
            old.unlink()
        secret = secrets.token_hex(32)
        secret_file = directory / "jwt-secret"
        secret_file.touch(mode=0o600)
        secret_file.write_text(secret)
        # What is set in the terminal is meant for another installation.
        env = {name: value for name, value in os.environ.items() if not name.startswith("EVENTBUS_")}
        env["EVENTBUS_RUN_LEASE_MS"] = str(RUN_LEASE_MS)
        bell = Bell()
        published_log = directory / "published.jsonl"
        published = Published(published_log)
        published.prune()
        nodes = [
            NodeProcess(
                f"node-{number}",
                redis_url=server.url,
                secret_file=secret_file,
                log=logs / f"node-{number}.log",
                env=env,
                drain_ms=DRAIN_MS,
                bell=bell,
            )
            for number in range(1, options.nodes + 1)
        ]
        agent = AgentProcess(redis_url=server.url, published=published_log, log=logs / "agent.log", env=env)
        self.server = server
        self.fleet = Fleet(nodes, agent, agent_died=published.give_up, bell=bell)
        self.store = RedisStore(server.url)
        self.bus = Bus(server.url)
        self.files = Files(directory / "uploads")
        self.control = Control(
            fleet=self.fleet,
            files=self.files,
            published=published,
            bus=self.bus,
            store=self.store,
            server=server,
            secret=secret.encode(),
            installation=_installation(directory / "installation"),
            clock=SystemClock(),
        )

    async def keep_server(self) -> None:
        """Starts the server again when it has died, on its port and with its data."""
        while True:
            await asyncio.sleep(seconds(SERVER_CHECK_MS))
            if not self.server.running:
                click.echo("The server has ended: it is started again, with its data.", err=True)
                self.server.start()


def _installation(path: Path) -> str:
    """The name of the data in this directory, made once."""
    if not path.exists():
        path.write_text(secrets.token_hex(8))
    return path.read_text()


async def _run(options: Options, server: EmbeddedServer) -> None:
    """Everything but the server, until a signal comes. Raises: ConfigError."""
    stop = Stop()
    stop.listen()
    sockets: list[socket.socket] = []
    door: Door | None = None
    page: Listener | None = None
    demo = _Demo(options, server)
    try:
        await demo.bus.__aenter__()  # the counterpart is in `_end`
        door_sockets = _take_port(options)
        page_sockets = bind("127.0.0.1", 0, setting="PORT")
        sockets += door_sockets + page_sockets
        starting = asyncio.ensure_future(demo.fleet.start())
        await first_of(starting, stop.asked.wait())
        if not starting.done():
            starting.cancel()
            return
        for node in starting.result():
            click.echo(f"{node.name} did not start: {node.ended}. {node.last_words()}", err=True)
        page = await serve(demo.control.app(), NoSockets(), sockets=page_sockets)
        door = Door(demo.fleet, page.port)
        url = f"http://127.0.0.1:{port_of(door_sockets)}"
        await door.start(door_sockets[0])
        click.echo(_welcome(demo, url, options.data_dir))
        await _first_steps(demo, options, url)
        keeping = asyncio.create_task(demo.keep_server(), name="demo:server")
        await first_of(keeping, stop.asked.wait())
        keeping.cancel()
        await asyncio.wait([keeping])
        if not keeping.cancelled():
            keeping.result()
    finally:
        ending = asyncio.ensure_future(_end(demo, door, page))
        await first_of(ending, stop.at_once.wait())
        if not ending.done():
            demo.fleet.kill()
        await ending
        close_all(sockets)
        stop.unlisten()


async def _first_steps(demo: _Demo, options: Options, url: str) -> None:
    if options.question:
        try:
            await demo.control.run(demo.files.all()[0], options.question, PACE_MS)
        except Refused as error:
            click.echo(f"The run was not started: {error}", err=True)
    if options.open_browser:
        # It may wait for the browser to come up.
        opening = asyncio.to_thread(webbrowser.open, url)
        with contextlib.suppress(TimeoutError, webbrowser.Error):
            await asyncio.wait_for(opening, 5)


async def _end(demo: _Demo, door: Door | None, page: Listener | None) -> None:
    """Ends all in order: who publishes, who delivers, who shows."""
    click.echo("Stopping the agent and draining the nodes.")
    await demo.fleet.stop_agent()
    await demo.fleet.stop_nodes(2 * DRAIN_MS)
    if door is not None:
        await door.stop()
    if page is not None:
        await page.stop()
    await demo.control.aclose()
    await demo.bus.aclose()
    await demo.store.aclose()


def _welcome(demo: _Demo, url: str, data_dir: Path) -> str:
    binary = demo.server.binary
    rows = [
        *((node.name, node.pid, f"gateway node on port {node.port}") for node in demo.fleet.nodes.values()),
        ("agent", demo.fleet.agent.pid, "publishes what it does"),
        (binary.kind, demo.server.pid, f"{binary.version}, {demo.server.url}"),
    ]
    processes = "\n".join(f"  {name:<8} pid {pid:<8} {what}" for name, pid, what in rows)
    return (
        f"\nOpen {url}\n\n"
        "Ask the agent something there, and kill a node while it answers: nothing goes missing.\n\n"
        f"{processes}\n\n"
        f"The data is in {data_dir} (delete it to start anew).\n"
        "Ctrl-C stops everything.\n"
    )
