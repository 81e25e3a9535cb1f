"""Many clients as one process: each holds a session, writes down all that it is sent, and acks by its plan.

It keeps to the protocol: it resumes on another node with session, cursor and epoch, drops events that it has handled by
their event id and acks them again, obeys `goaway`, and leaves a node that is silent. Its log has a line for each thing
that came, beginning with the user, the session and the number of the session's connection: `tests.support.load.logs`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from eventbus.tokens import make_token
from tests.support.load.link import Link
from tests.support.load.plans import ClientPlan, Mode

_FLUSH_S = 0.05
# A loop that is late by more is written down: what it should have done meanwhile it did later.
_STALL_MS = 100


def _order(entry: str) -> tuple[int, int]:
    milliseconds, _, number = entry.partition("-")
    return int(milliseconds), int(number)


class _Client:
    """One session of one user, over all of its connections."""

    def __init__(self, plan: ClientPlan, user: str, session: str, log: list[str]) -> None:
        self._plan = plan
        self._user = user
        self._session = session
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._chance = random.Random(f"{plan.seed}/{user}/{session}")
        self._token = make_token(
            user=user, secret=plan.secret.encode(), now_ms=int(time.time() * 1000), tier="enterprise"
        )
        self._link: Link | None = None
        self._number = -1
        self._welcomed = False
        self._away_ms: int | None = None
        self._epoch: str | None = None
        self._handled: set[str] = set()
        self._entries: dict[str, bool] = {}  # entry id -> acked
        self._over = asyncio.Event()
        self._pinged_at: float | None = None
        self._address = ""
        self._sent_away = False
        self.held: dict[str, str] | None = {} if plan.mode is Mode.HOLD else None

    def _write(self, kind: str, *words: object) -> None:
        self._log.append("\t".join(map(str, (kind, self._user, self._session, self._number, *words))))

    # --- connections ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        while not self._sent_away:
            self._over.clear()
            self._welcomed = False
            addresses = [a for a in Path(self._plan.addresses).read_text().split() if a != self._address]
            self._address = self._chance.choice(addresses) if addresses else self._address
            host, _, port = self._address.rpartition(":")
            # Known before it stands: it may be over, with its first word, before `create_connection` returns.
            link = self._link = Link(self, self._token)
            self._number += 1
            try:
                async with asyncio.timeout(self._plan.hello_ms / 1000):
                    await self._loop.create_connection(lambda link=link: link, host, int(port))  # type: ignore[misc]
            except (OSError, TimeoutError):
                self._link = None
                link.abort()
                await asyncio.sleep(self._chance.uniform(0.05, 0.2))  # real time: the pause before it tries again
                continue
            await self._watch(link)
            wait_ms, self._away_ms = self._away_ms, None
            if wait_ms is None:
                wait_ms = 0 if self._flapping else self._chance.randrange(20, 150)
            await asyncio.sleep(wait_ms / 1000)  # real time: the pause before it comes back

    async def _watch(self, link: Link) -> None:
        """Waits for the end of a connection, and makes one when nothing is heard."""
        begin = self._loop.time()
        while True:
            try:
                async with asyncio.timeout(0.25):
                    await self._over.wait()
                    return
            except TimeoutError:
                pass
            now = self._loop.time()
            if self._plan.mode is Mode.STUCK and self._welcomed:
                continue
            if not self._welcomed:
                if now - begin > self._plan.hello_ms / 1000:
                    link.abort()
            elif now - link.heard < self._plan.silence_ms / 1000:
                self._pinged_at = None
            elif self._pinged_at is None:
                self._pinged_at = now
                link.send({"op": "ping", "ref": "alive"})
            elif now - self._pinged_at > self._plan.silence_ms / 1000:
                self._pinged_at = None
                link.abort()

    def link_open(self, link: Link) -> None:
        hello: dict[str, Any] = {"op": "hello", "session": self._session, "window": self._plan.window}
        if self._epoch is None:
            hello["start"] = self._plan.start
        else:
            hello["epoch"] = self._epoch
            cursor = self._cursor()
            if cursor is not None:
                hello["cursor"] = cursor
        link.send(hello)

    def _cursor(self) -> str | None:
        """The highest id up to which everything that came is handled."""
        first_open = min((_order(entry) for entry, acked in self._entries.items() if not acked), default=None)
        handled = [
            _order(entry)
            for entry, acked in self._entries.items()
            if acked and (first_open is None or _order(entry) < first_open)
        ]
        return "{}-{}".format(*max(handled)) if handled else None

    def link_over(self, link: Link, code: int, reason: str) -> None:
        if link is self._link:
            self._write("X", code, reason.replace("\n", " ").replace("\t", " "))
            # 4500 and above: do not come back.
            self._sent_away = 4500 <= code < 5000
            self._link = None
            self._over.set()

    # --- frames -------------------------------------------------------------------------------------------------------

    def link_frame(self, link: Link, frame: dict[str, Any]) -> None:
        match frame["op"]:
            case "events":
                self._events(link, frame["events"])
            case "welcome":
                self._welcomed = True
                self._epoch = frame["epoch"]
                self._write("O", frame["node"], frame["connection"], int(frame["resumed"]), frame["pending"])
                if self._plan.mode is Mode.STUCK:
                    link.pause()
            case "goaway":
                self._away_ms = frame["reconnect_after_ms"]
                self._write("W", frame["reason"], self._away_ms)
            case "gap":
                self._write("G", frame["reason"], frame.get("after"), frame.get("before"), frame.get("count"))
                if frame["reason"] in ("rollback", "reset"):
                    # Ids may come again lower: what was known of them is void.
                    self._entries.clear()
            case "dropped":
                for entry in frame["ids"]:
                    self._entries[entry] = True
                    self._write("D", entry, frame["reason"])
            case "error":
                self._write("E", frame["code"], frame["message"])

    def _events(self, link: Link, events: list[dict[str, Any]]) -> None:
        stamp_ms = time.time_ns() // 1_000_000
        plan = self._plan
        fresh: dict[str, str] = {}
        again: list[str] = []
        for item in events:
            entry, delivery, event = item["id"], item["delivery"], item["event"]
            self._write("R", event["id"], event["user"], entry, delivery, stamp_ms)
            if event["id"] in self._handled:
                self._entries[entry] = True
                again.append(entry)
                continue
            self._entries[entry] = False
            if plan.mode is Mode.NACK and delivery == 1:
                nack: dict[str, Any] = {"op": "nack", "id": entry}
                if plan.nack_delay_ms is not None:
                    nack["delay_ms"] = plan.nack_delay_ms
                link.send(nack)
            else:
                fresh[entry] = event["id"]
        if again:
            link.send({"op": "ack", "ids": again})
        if self._flapping:
            link.abort()
        elif fresh and plan.mode is not Mode.NEVER:
            low, high = plan.ack_delay_ms
            if high:
                self._loop.call_later(self._chance.uniform(low, high) / 1000, self._handle, fresh)
            else:
                self._handle(fresh)

    def release(self) -> None:
        """What was held is handled now, and what comes from now on as by `ACK`."""
        held, self.held = self.held or {}, None
        self._loop.call_later(self._chance.uniform(0, 1), self._handle, held)

    @property
    def _flapping(self) -> bool:
        return self._plan.mode is Mode.FLAP and self._number < self._plan.flaps

    def _handle(self, batch: dict[str, str]) -> None:
        """The handler has returned: acks on whatever connection there is, or else when the events come again."""
        plan = self._plan
        if self.held is not None:
            self.held.update(batch)
            return
        self._handled.update(batch.values())
        link = self._link
        if link is None or not self._welcomed:
            return
        ids = [entry for entry in batch if self._entries.get(entry) is False]
        if not ids:
            return
        self._entries.update(dict.fromkeys(ids, True))
        link.send({"op": "ack", "ids": ids})
        if plan.mode is Mode.TWICE:
            first = next(iter(self._entries))
            link.send({"op": "ack", "ids": [*ids, first]})
            link.send({"op": "ack", "upto": ids[-1], "ref": "again"})


async def run(plan: ClientPlan) -> None:
    """Runs all clients of a plan until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    log: list[str] = []
    holding = plan.mode is Mode.HOLD
    clients = [_Client(plan, user, session, log) for user in plan.users for session in plan.sessions]
    with Path(plan.log).open("a", buffering=1 << 20) as file:
        tasks = [loop.create_task(client.run()) for client in clients]
        try:
            while not stop.is_set():
                begin = loop.time()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_FLUSH_S):
                        await stop.wait()
                late_ms = int(1_000 * (loop.time() - begin - _FLUSH_S))
                if late_ms > _STALL_MS:
                    log.append("\t".join(("S", "-", "-", "0", str(late_ms))))
                for task in tasks:
                    if task.done():
                        task.result()
                if holding and Path(plan.release).exists():
                    holding = False
                    for client in clients:
                        client.release()
                if log:
                    file.write("\n".join(log) + "\n")
                    file.flush()
                    log.clear()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(run(ClientPlan.read(sys.argv[1])))
