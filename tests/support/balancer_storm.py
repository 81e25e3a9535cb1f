"""Thousands of lean clients in one process, which all lose their node and come back as the client libraries do.

`python -m tests.support.balancer_storm <plan.json>` connects to `first`, and to `later` once the first connection is
lost. It prints a line of JSON twice a second (`Seen`), until SIGTERM.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from eventbus.client.state import STABLE_MS, Backoff, retry_after_ms
from eventbus.tokens import make_token
from tests.support.load.link import Link
from tests.support.plan import Plan

HELLO_MS: Final = 20_000
REPORT_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class StormPlan(Plan):
    """What a storm's process does.

    Attributes:
        first: `host:port` of the first connections.
        later: of all others.
        secret: signs the tokens.
        prefix: of the users' names.
        clients: how many.
        at_once: how many of the first connections are made at a time.
    """

    first: str
    later: str
    secret: str
    prefix: str
    clients: int
    at_once: int = 200


@dataclass(slots=True, kw_only=True)
class Seen:
    """What the clients saw.

    Attributes:
        open: sessions that are open now.
        lost: first connections that were lost.
        back: of these, sessions that are open again.
        attempts: connections that were tried since.
        refused: of these, those that were refused, by status or close code; `1006` for no answer.
        away_p50_ms: how long half of those that are back were away at most.
        away_p99_ms: how long 99 of 100 of them were.
        tries: for each session that is back how many attempts it took -> how many sessions.
        worst_second: most refusals within a second.
        told: how many were told by a `goaway` when to come back.
    """

    open: int = 0
    lost: int = 0
    back: int = 0
    attempts: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    away_p50_ms: int = 0
    away_p99_ms: int = 0
    tries: dict[str, int] = field(default_factory=dict)
    worst_second: int = 0
    told: int = 0

    @classmethod
    def of(cls, line: str) -> Seen:
        """Reads what a process has printed."""
        return cls(**json.loads(line))


class _Headers(Link):
    """A link that also reads how long a refusal asks it to wait."""

    retry_ms: int | None = None

    def data_received(self, data: bytes) -> None:
        head, _, rest = data.partition(b"\r\nRetry-After: ")
        if rest and head.startswith(b"HTTP/1.1 ") and not head.startswith(b"HTTP/1.1 101"):
            self.retry_ms = retry_after_ms(rest.partition(b"\r\n")[0].decode("latin-1"))
        super().data_received(data)


class _Client:
    """One session, over all of its connections."""

    def __init__(self, storm: _Storm, number: int) -> None:
        self._storm = storm
        self._chance = random.Random(number)
        self._backoff = Backoff()
        plan = storm.plan
        self._token = make_token(
            user=f"{plan.prefix}{number}", secret=plan.secret.encode(), now_ms=int(time.time() * 1000)
        )
        self._link: _Headers | None = None
        self._resume: dict[str, str] = {}
        self._welcomed = False
        self._open_ms = 0
        self._lost_ms: int | None = None
        self._tries = 0
        self._goaway_ms: int | None = None
        self.opened = asyncio.Event()

    def connect(self, address: str) -> None:
        self._storm.own(self._connect(address))

    async def _connect(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        link = self._link = _Headers(self, self._token)
        self._welcomed = False
        self._goaway_ms = None
        try:
            async with asyncio.timeout(HELLO_MS / 1000):
                await asyncio.get_running_loop().create_connection(lambda: link, host, int(port))
        except (OSError, TimeoutError):
            link.abort()
            self.link_over(link, 1006, "no connection")

    def link_open(self, link: Link) -> None:
        link.send({"op": "hello", "session": "tab", **self._resume})

    def link_frame(self, link: Link, frame: dict[str, Any]) -> None:
        if frame["op"] == "welcome":
            self._welcomed = True
            self._resume = {"epoch": frame["epoch"], "cursor": frame["cursor"]}
            self._open_ms = _now_ms()
            self.opened.set()
            self._storm.opened(None if self._lost_ms is None else self._open_ms - self._lost_ms, self._tries)
            self._lost_ms = None
        elif frame["op"] == "goaway":
            self._goaway_ms = _now_ms() + frame["reconnect_after_ms"]
            self._storm.seen.told += 1

    def link_over(self, link: Link, code: int, reason: str) -> None:
        if not isinstance(link, _Headers) or link is not self._link:
            return
        self._link = None
        now_ms = _now_ms()
        if self._welcomed:
            if now_ms - self._open_ms >= STABLE_MS:
                self._backoff.good()
            self._lost_ms, self._tries = now_ms, 0
            self._storm.lost()
        elif self._lost_ms is not None:
            self._storm.refused(code)
        retry_ms = link.retry_ms
        goaway_ms = None if self._goaway_ms is None else self._goaway_ms - now_ms
        wait_ms = self._backoff.wait_ms(self._chance.random(), goaway_ms=goaway_ms, retry_ms=retry_ms)
        asyncio.get_running_loop().call_later(wait_ms / 1000, self._again)

    def _again(self) -> None:
        plan = self._storm.plan
        if self._lost_ms is not None:
            self._tries += 1
            self._storm.seen.attempts += 1
        self.connect(plan.first if self._lost_ms is None else plan.later)


class _Storm:
    """All clients of the process."""

    def __init__(self, plan: StormPlan) -> None:
        self.plan = plan
        self.seen = Seen()
        self._tasks: set[asyncio.Task[None]] = set()
        self._seconds: Counter[int] = Counter()
        self._away_ms: list[int] = []

    def own(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def opened(self, away_ms: int | None, tries: int) -> None:
        self.seen.open += 1
        if away_ms is not None:
            self.seen.back += 1
            self._away_ms.append(away_ms)
            self.seen.tries[str(tries)] = self.seen.tries.get(str(tries), 0) + 1

    def lost(self) -> None:
        self.seen.open -= 1
        self.seen.lost += 1

    def refused(self, code: int) -> None:
        self.seen.refused[str(code)] = self.seen.refused.get(str(code), 0) + 1
        self._seconds[_now_ms() // 1000] += 1
        self.seen.worst_second = max(self.seen.worst_second, self._seconds[_now_ms() // 1000])

    async def run(self) -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        self.own(self._begin())
        while not stop.is_set():
            if away_ms := sorted(self._away_ms):
                self.seen.away_p50_ms = away_ms[len(away_ms) // 2]
                self.seen.away_p99_ms = away_ms[len(away_ms) * 99 // 100]
            sys.stdout.write(json.dumps(dataclasses.asdict(self.seen)) + "\n")
            sys.stdout.flush()
            try:
                async with asyncio.timeout(REPORT_S):
                    await stop.wait()
            except TimeoutError:
                pass

    async def _begin(self) -> None:
        turn = asyncio.Semaphore(self.plan.at_once)
        clients = [_Client(self, number) for number in range(self.plan.clients)]

        async def one(client: _Client) -> None:
            async with turn:
                client.connect(self.plan.first)
                await client.opened.wait()

        await asyncio.gather(*(one(client) for client in clients))


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


async def _main(plan: StormPlan) -> None:
    await _Storm(plan).run()


if __name__ == "__main__":
    asyncio.run(_main(StormPlan.read(sys.argv[1])))
