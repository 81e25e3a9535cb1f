"""A publisher as a process: publishes by its plan and writes each operation into its history in its moment.

SIGUSR1: nothing new is published; `idle` is said when all is answered. It stays, as a living publisher does, and sends
again what a server lost, until SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import time

from chaos.history import Kind, Log
from chaos.plans import PublisherPlan
from eventbus import Bus
from eventbus.errors import EventBusError


class _Publisher:
    """Publishes and writes down."""

    def __init__(self, plan: PublisherPlan, bus: Bus, log: Log) -> None:
        self._plan = plan
        self._bus = bus
        self._log = log
        self._room = asyncio.Semaphore(plan.under_way)
        self._chance = random.Random(f"{plan.seed}/{plan.name}")
        self.quiet = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        plan = self._plan
        begin, number = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            while not self.quiet.is_set() and (plan.events == 0 or number < plan.events):
                if plan.rate:
                    early_s = begin + number / plan.rate - time.monotonic()
                    if early_s > 0.002:
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(self.quiet.wait(), early_s)
                        continue
                await self._room.acquire()
                user = self._chance.choice(plan.users)
                event = f"{plan.name}.{number}"
                self._log.write(Kind.INVOKE, "publish", event=event, user=user)
                group.create_task(self._publish(user, event))
                number += 1
        _say("idle")
        await stop.wait()

    async def _publish(self, user: str, event: str) -> None:
        plan = self._plan
        data = {"pad": "p" * plan.bytes}
        try:
            receipt = await self._bus.publish(
                user=user, type="chaos", data=data, id=event, deadline_ms=plan.deadline_ms, durability=plan.durability
            )
        except EventBusError as error:
            # Also of what the bus says was not stored: that is for it to keep, and for the checker to see.
            self._log.write(Kind.INFO, "publish", event=event, error=error.code)
        else:
            self._log.write(Kind.OK, "publish", event=event, entry=receipt.entry, duplicate=receipt.duplicate)
        finally:
            self._room.release()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def run(plan: PublisherPlan) -> None:
    """Publishes by the plan until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with Bus.from_env(redis_url=plan.url) as bus:
        publisher = _Publisher(plan, bus, Log(plan.log, plan.name))
        loop.add_signal_handler(signal.SIGUSR1, publisher.quiet.set)
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        _say("ready")
        await publisher.run(stop)


if __name__ == "__main__":
    asyncio.run(run(PublisherPlan.read(sys.argv[1])))
