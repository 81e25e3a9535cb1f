"""The publisher as a process: publishes by its plan and writes down what was answered, each in its moment.

Its log has `try <user> <event>` before each publish, `ok <user> <event> <entry> <duplicate>` after it has returned,
`unsure <user> <event> <error>` when it raised; at last `done`. It stays, as a living publisher does, until SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

from eventbus import Bus
from eventbus.errors import EventBusError
from tests.support.load.plans import PublisherPlan


class _Log:
    """Whole lines, written at once: what was answered is known even when this process is killed in the next moment."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *words: object) -> None:
        os.write(self._file, ("\t".join(map(str, words)) + "\n").encode())


async def _publish(bus: Bus, log: _Log, plan: PublisherPlan, number: int, done: asyncio.Semaphore) -> None:
    user = plan.users[number % len(plan.users)]
    event = f"{user}.{number}"
    data = {"number": number, "pad": "p" * plan.bytes}
    try:
        receipt = await bus.publish(user=user, type="load", data=data, id=event, deadline_ms=plan.deadline_ms)
    except EventBusError as error:
        log.write("unsure", user, event, error.code)
    else:
        log.write("ok", user, event, receipt.entry, int(receipt.duplicate))
    finally:
        done.release()


async def run(plan: PublisherPlan) -> None:
    """Publishes by the plan until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    log = _Log(plan.log)
    room = asyncio.Semaphore(plan.under_way)
    async with Bus.from_env(redis_url=plan.url) as bus, asyncio.TaskGroup() as group:
        log.write("ready")
        begin = time.monotonic()
        for number in range(plan.first, plan.first + plan.events):
            if plan.rate:
                early_s = begin + (number - plan.first) / plan.rate - time.monotonic()
                if early_s > 0.002:
                    await asyncio.sleep(early_s)  # real time: the rate of the plan
            await room.acquire()
            user = plan.users[number % len(plan.users)]
            log.write("try", user, f"{user}.{number}")
            group.create_task(_publish(bus, log, plan, number, room))
        for _ in range(plan.under_way):
            await room.acquire()
        log.write("done")
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(run(PublisherPlan.read(sys.argv[1])))
