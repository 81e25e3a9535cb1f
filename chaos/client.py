"""Many clients as one process: each holds a session over all of its connections, and writes down all that comes.

They keep to the protocol and share no code with the node: they come back with session, cursor and epoch, drop by event
id what they have handled and ack it again, obey `goaway`, leave a node that is silent. Now and then they nack, or leave
a first delivery without an ack, or end a connection for no reason.

SIGUSR1 is churn: a third of the connections end at once, and guests come for some seconds. SIGTERM ends all.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import sys
from collections import deque
from typing import Any

from chaos.history import Kind, Log
from chaos.plans import SECRET, ClientPlan
from eventbus.clock import SystemClock
from eventbus.tokens import make_token
from tests.support.load.link import Link

_FLUSH_S = 0.05
_WATCH_S = 0.25
_KNOWN = 50_000  # of what was handled, so many are known by their event id
_GUEST_S = (3.0, 12.0)


def _order(entry: str) -> tuple[int, int]:
    milliseconds, _, number = entry.partition("-")
    return int(milliseconds), int(number)


class _Client:
    """One session of one user."""

    def __init__(self, plan: ClientPlan, user: str, session: str, log: Log) -> None:
        self._plan = plan
        self._user = user
        self._session = session
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._chance = random.Random(f"{plan.seed}/{user}/{session}")
        now_ms = SystemClock().now_ms()
        self._token = make_token(
            user=user, secret=SECRET.encode(), now_ms=now_ms, ttl_ms=24 * 3_600_000, tier="enterprise"
        )
        self._number = -1
        self._refs = itertools.count()
        self._over = asyncio.Event()
        self._epoch: str | None = None
        self._handled: dict[str, None] = {}  # event ids, oldest first
        self._waiting: set[tuple[int, int]] = set()  # entry ids that came and are not handled
        self._done: deque[tuple[int, int]] = deque(maxlen=4_096)  # those that are
        self._away_ms: int | None = None
        self._welcomed = False
        self.link: Link | None = None

    def _write(self, kind: Kind, f: str, **value: Any) -> None:
        self._log.write(kind, f, user=self._user, session=self._session, **value)

    # --- connections ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connects again and again until it is cancelled."""
        while True:
            self._over.clear()
            self._welcomed = False
            self._number += 1
            host, _, port = self._chance.choice(self._plan.addresses).rpartition(":")
            link = Link(self, self._token)
            try:
                async with asyncio.timeout(self._plan.hello_ms / 1000):
                    await self._loop.create_connection(lambda link=link: link, host, int(port))  # type: ignore[misc]
            except (OSError, TimeoutError):
                link.abort()
                await asyncio.sleep(self._chance.uniform(0.1, 0.5))
                continue
            self.link = link
            try:
                await self._watch(link)
            finally:
                self.link = None
                link.abort()
            wait_ms, self._away_ms = self._away_ms, None
            await asyncio.sleep((self._chance.randrange(20, 300) if wait_ms is None else wait_ms) / 1000)

    async def guest(self) -> None:
        """Comes for some seconds, and never again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._chance.uniform(*_GUEST_S)):
                await self.run()
        self._write(Kind.INFO, "leave")

    async def _watch(self, link: Link) -> None:
        """Waits for the end of a connection, and makes one when nothing is heard or its time is over."""
        begin = self._loop.time()
        end = begin + self._chance.uniform(0.1, 1) * self._plan.life_ms / 1000
        silence_s, pinged_at = self._plan.silence_ms / 1000, None
        while not link.over:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_S):
                    await self._over.wait()
                    return
            now = self._loop.time()
            if now > end or (not self._welcomed and now - begin > self._plan.hello_ms / 1000):
                link.abort()
            elif now - link.heard < silence_s or not self._welcomed:
                pinged_at = None
            elif pinged_at is None:
                pinged_at = now
                link.send({"op": "ping", "ref": "alive"})
            elif now - pinged_at > silence_s:
                link.abort()

    def link_open(self, link: Link) -> None:
        hello: dict[str, Any] = {"op": "hello", "session": self._session}
        if self._epoch is None:
            hello["start"] = "earliest"
        else:
            hello["epoch"] = self._epoch
            if (cursor := self._cursor()) is not None:
                hello["cursor"] = cursor
        link.send(hello)

    def _cursor(self) -> str | None:
        """The highest id up to which everything that came is handled."""
        first_open = min(self._waiting, default=None)
        handled = [entry for entry in self._done if first_open is None or entry < first_open]
        return "{}-{}".format(*max(handled)) if handled else None

    def link_over(self, link: Link, code: int, reason: str) -> None:
        if link is self.link or self.link is None:
            self._write(Kind.INFO, "close", connection=self._number, code=code, reason=reason)
        self._over.set()

    # --- frames -------------------------------------------------------------------------------------------------------

    def link_frame(self, link: Link, frame: dict[str, Any]) -> None:
        if link is not self.link:
            return
        match frame["op"]:
            case "events":
                self._events(link, frame["events"])
            case "acked":
                self._write(Kind.OK, "ack", ref=frame["ref"], count=frame["count"])
            case "welcome":
                self._welcomed = True
                self._epoch = frame["epoch"]
                self._write(
                    Kind.OK,
                    "open",
                    library=False,
                    connection=self._number,
                    node=frame["node"],
                    resumed=frame["resumed"],
                )
            case "goaway":
                self._away_ms = frame["reconnect_after_ms"]
            case "gap":
                told = {name: frame.get(name) for name in ("reason", "after", "before", "count")}
                self._write(Kind.INFO, "gap", **told)
                if told["reason"] in ("rollback", "reset"):
                    # Ids may come again lower: what was known of them is void.
                    self._waiting.clear()
                    self._done.clear()
            case "dropped":
                self._waiting.difference_update(map(_order, frame["ids"]))
                self._write(Kind.INFO, "dropped", entries=frame["ids"], reason=frame["reason"])

    def _events(self, link: Link, events: list[dict[str, Any]]) -> None:
        plan, chance = self._plan, self._chance
        batch: dict[str, str] = {}
        for item in events:
            entry, delivery, event = item["id"], item["delivery"], item["event"]
            self._write(
                Kind.OK,
                "receive",
                connection=self._number,
                event=event["id"],
                owner=event["user"],
                entry=entry,
                delivery=delivery,
            )
            self._waiting.add(_order(entry))
            if delivery == 1 and chance.random() < plan.nack_share:
                link.send({"op": "nack", "id": entry})
            elif delivery > 1 or chance.random() >= plan.ignore_share:
                batch[entry] = event["id"]
        if batch:
            self._loop.call_later(chance.uniform(*plan.ack_delay_ms) / 1000, self._handle, link, batch)

    def _handle(self, link: Link, batch: dict[str, str]) -> None:
        """The handler has returned: acks, unless the connection is gone; then the events come again."""
        for entry, event in batch.items():
            self._handled[event] = None
            self._waiting.discard(_order(entry))
            self._done.append(_order(entry))
        while len(self._handled) > _KNOWN:
            del self._handled[next(iter(self._handled))]
        if link is self.link and not link.over:
            ref = str(next(self._refs))
            self._write(Kind.INVOKE, "ack", ref=ref, entries=list(batch))
            link.send({"op": "ack", "ids": list(batch), "ref": ref})


class _Crowd:
    """All clients of the process."""

    def __init__(self, plan: ClientPlan, log: Log) -> None:
        self._plan = plan
        self._log = log
        self._chance = random.Random(f"{plan.seed}/{plan.name}")
        self._guests = itertools.count()
        self._clients = [_Client(plan, user, session, log) for user in plan.users for session in plan.sessions]
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks.update(loop.create_task(client.run()) for client in self._clients)

    def churn(self) -> None:
        """A third of the connections end, and guests come."""
        for client in self._chance.sample(self._clients, len(self._clients) // 3 + 1):
            if client.link is not None:
                client.link.abort()
        for _ in range(self._plan.guests):
            session = f"{self._plan.name}-guest-{next(self._guests)}"
            guest = _Client(self._plan, self._chance.choice(self._plan.users), session, self._log)
            task = asyncio.get_running_loop().create_task(guest.guest())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def check(self) -> None:
        """Raises what ended a client."""
        for task in [task for task in self._tasks if task.done()]:
            task.result()

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def run(plan: ClientPlan) -> None:
    """Runs all clients of a plan until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    log = Log(plan.log, plan.name, held=True)
    crowd = _Crowd(plan, log)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, crowd.churn)
    crowd.start()
    try:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_S):
                    await stop.wait()
            crowd.check()
            log.flush()
    finally:
        await crowd.aclose()
        log.close()


if __name__ == "__main__":
    asyncio.run(run(ClientPlan.read(sys.argv[1])))
