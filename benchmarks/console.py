"""What an open console costs its node and the server: with nothing to do, and under loads.

It is little beside a load, and what a load costs changes from one moment to the next by more than that. So the figure
to look at is that of sessions with nothing to do; the loads show that it is not more when there is much to do.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Self
from urllib.parse import urlsplit

from benchmarks.roles import HarnessError
from benchmarks.world import Load, World
from eventbus.embedded import ServerBinary
from eventbus.tokens import make_token

__all__ = ["Console", "difference", "measure_console"]

Values = dict[tuple[str, str], float]
Measured = tuple[str, Values, list[str]]
"""The name of a case, its values, its faults."""

FLOOD = 20_000
"""Events/s that are asked for where the question is how many go through: more than one machine keeps."""
FLOODED = 10_000
"""Events that are published so, for each second of a load."""
SPARE_S = 60.0
"""A flood takes as long as it takes."""
TIMEOUT_S = 30.0
IDLE = 6
"""With nothing to do it is measured for so many times the length of a load: a look comes every few seconds."""

PARTS: Mapping[str, tuple[str, ...]] = {
    "CPU of node and server": ("node", "server"),
    "CPU of the node": ("node",),
    "CPU of the server": ("server",),
}


class Console:
    """The overview of the page, as its node sees it: one request for the feed, which is read as it comes.

    The overview asks for nothing else. What a browser does with the figures costs the browser alone, and is left out.

    Args:
        url: of the admin port.
        secret: the node's, to make a token with.

    Raises:
        HarnessError: the node refused, or sent no figures.
    """

    def __init__(self, url: str, secret: str) -> None:
        token = make_token(
            user="operator", secret=secret.encode(), now_ms=int(time.time() * 1000), scopes=("subscribe", "admin")
        )
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=TIMEOUT_S)
        self._connection.request("GET", "/admin/v1/live", headers={"Authorization": f"Bearer {token}"})
        # The response may take the socket from the connection.
        self._socket: socket.socket = self._connection.sock
        self._response = self._connection.getresponse()
        if self._response.status != http.HTTPStatus.OK:
            raise HarnessError(f"the feed was refused with {self._response.status}: {self._response.read()!r}")
        self.looks = 0
        self.fault = ""
        self._closed = False
        self._first = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._first.wait(TIMEOUT_S) or self.fault:
            self.close()
            raise HarnessError(f"the console got no figures: {self.fault or 'nothing came'}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        try:
            while line := self._response.readline():
                kind = line.strip().removeprefix(b"event: ")
                if kind == b"figures":
                    self.looks += 1
                    self._first.set()
                elif kind in (b"problem", b"end"):
                    self.fault = f"the feed said {kind.decode()}: {self._response.readline()!r}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            if not self._closed:
                self.fault = f"the feed broke: {error!r}"
        if not self._closed and not self.fault:
            self.fault = "the feed ended"
        self._first.set()

    def close(self) -> None:
        """Ends the feed, as a tab does that is closed."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(TIMEOUT_S)
        self._response.close()
        self._connection.close()


def measure_console(
    binary: ServerBinary,
    *,
    sessions: int,
    rate: int,
    seconds: float,
    say: Callable[[str], object] = print,
) -> list[Measured]:
    """One run: with nothing to do; then for each load two pairs, in the order without, with, with, without. All in the
    same processes.

    Args:
        binary: the server.
        sessions: how many, each of a user of its own.
        rate: events/s of the load at which the node has time to spare.
        seconds: how long one load is.
        say: told what goes on.

    Returns:
        The cases of each pair. A pair with a fault has no difference.
    """
    found: list[Measured] = []
    with World(binary, sessions) as world:
        world.connect(sessions)
        world.load(1_000, 2 * sessions)  # the first events of a stream make its keys
        world.load(FLOOD, int(FLOODED * min(1.0, seconds)), spare_s=SPARE_S)
        found += _idle(world, f"{sessions:,} sessions with nothing to do", IDLE * seconds, say)
        for name, asked, events in (
            (f"{sessions:,} sessions at {rate:,}/s", rate, int(rate * seconds)),
            (f"{sessions:,} sessions, as fast as it goes", FLOOD, int(FLOODED * seconds)),
        ):
            closed = [world.load(asked, events, spare_s=SPARE_S)]
            with Console(world.node.admin_url, world.node.secret) as console:
                opened = [_looked_at(world, console, asked, events) for _ in range(2)]
            closed.append(world.load(asked, events, spare_s=SPARE_S))
            for without, (with_one, looks) in zip(closed, opened, strict=True):
                found += _pair(name, without, with_one, looks)
                say(f"console: {name}: {_told(without)} without, {_told(with_one)} with one, {looks} looks")
    return found


def _idle(world: World, name: str, seconds: float, say: Callable[[str], object]) -> list[Measured]:
    """What goes on without a load: with no console, and with one."""
    without = _spent(world, seconds)
    with Console(world.node.admin_url, world.node.secret) as console:
        before = console.looks
        with_one = _spent(world, seconds)
        looks, faults = console.looks - before, [console.fault] if console.fault else []
    say(f"console: {name}: {without} without, {with_one} with one, {looks} looks")
    looked: Values = {("looks at the whole", "1/s"): looks / seconds}
    more = {key: value - without[key] for key, value in with_one.items()}
    return [
        (f"{name}, no console", without, []),
        (f"{name}, a console open", with_one | looked, faults),
        (f"{name}, the difference", more, []),
    ]


def _spent(world: World, seconds: float) -> Values:
    before, begin = world.cpu(), time.monotonic()
    time.sleep(seconds)
    after, took = world.cpu(), time.monotonic() - begin
    return {
        (name, "ms/s"): sum(after[process] - before[process] for process in processes) / 1e6 / took
        for name, processes in PARTS.items()
    }


def _looked_at(world: World, console: Console, rate: float, events: int) -> tuple[Load, int]:
    """A load with the console open, and how often the node looked at the whole meanwhile."""
    before = console.looks
    load = world.load(rate, events, spare_s=SPARE_S)
    if console.fault:
        load.faults.append(console.fault)
    return load, console.looks - before


def _told(load: Load) -> str:
    return f"{load.events / load.seconds:,.0f}/s, {load.cpu_us('node', 'server'):.1f} us, {load.faults or 'no fault'}"


def _pair(name: str, without: Load, with_one: Load, looks: int) -> list[Measured]:
    looked: Values = {("looks at the whole", "1/s"): looks / with_one.seconds}
    pair: list[Measured] = [
        (f"{name}, no console", _values(without), without.faults),
        (f"{name}, a console open", _values(with_one) | looked, with_one.faults),
    ]
    if not without.faults and not with_one.faults:
        pair.append((f"{name}, the difference", difference(without, with_one), []))
    return pair


def _values(load: Load) -> Values:
    costs = {(name, "us/event"): load.cpu_us(*parts) for name, parts in PARTS.items()}
    return {("delivered and acked", "events/s"): load.events / load.seconds, **costs}


def difference(without: Load, with_one: Load) -> Values:
    """What is more (above 0) or less with a console, in % of what it is without."""
    before, after = _values(without), _values(with_one)
    return {(name, "%"): 100 * (after[name, unit] / before[name, unit] - 1) for name, unit in before}
