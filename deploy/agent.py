"""The demo agent of docker-compose.yml: works for one user, run after run, and tells what it does.

    python deploy/agent.py

It looks at the machine that it runs on, which is little work but true. An agent of yours begins as this one: a process
of its own, one `Bus`, a run for each piece of work. SIGTERM ends it, and the run in hand ends as cancelled.

    EVENTBUS_REDIS_URL  where the bus is
    AGENT_USER          for whom it works (demo)
    AGENT_STEP_MS       how long each step takes, so that one can watch (700)
    AGENT_PAUSE_MS      the pause between two runs (5000)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
from collections.abc import Mapping
from typing import Any

from eventbus import Bus, EventBusError, Run

logger = logging.getLogger("agent")

_WORD = re.compile(r"\S+\s*")


def look_at_load() -> dict[str, Any]:
    """How busy the machine is: the mean number of running processes over 1, 5 and 15 minutes."""
    return dict(zip(("1 minute", "5 minutes", "15 minutes"), (round(load, 2) for load in os.getloadavg()), strict=True))


def look_at_disk() -> dict[str, Any]:
    """How full the disk is."""
    usage = shutil.disk_usage("/")
    return {"total_bytes": usage.total, "free_bytes": usage.free}


async def work(run: Run, step_s: float) -> None:
    """One piece of work: two tools, and a report that comes word by word."""
    await run.thinking("I look how the machine is that I run on.")
    await asyncio.sleep(step_s)
    async with run.tool("look_at_load") as tool:
        await asyncio.sleep(step_s)
        load = tool.result = look_at_load()
    async with run.tool("look_at_disk") as tool:
        await asyncio.sleep(step_s)
        disk = tool.result = look_at_disk()
    cores = os.cpu_count() or 1
    state = "busy" if load["1 minute"] > cores else "at ease"
    free = 100 * disk["free_bytes"] // max(1, disk["total_bytes"])
    wanted = load["1 minute"]
    report = f"The machine is {state}: {wanted} processes want its {cores} cores, and {free} % of its disk is free."
    words = _WORD.findall(report)
    async with run.stream() as stream:
        for word in words:
            await stream.write(word)
            await asyncio.sleep(step_s / len(words))
    run.result = report


async def serve(env: Mapping[str, str]) -> None:
    """Works until it is cancelled. A run that fails is told to its user, and the next one begins."""
    user = env.get("AGENT_USER", "demo")
    step_s = int(env.get("AGENT_STEP_MS", "700")) / 1000
    pause_s = int(env.get("AGENT_PAUSE_MS", "5000")) / 1000
    async with Bus.from_env() as bus:
        while True:
            try:
                async with bus.run(user=user, thread="watch", agent="watchman") as run:
                    await work(run, step_s)
                logger.info("run %s for %s: %s", run.id, user, run.outcome)
            except EventBusError as error:
                logger.warning("a run could not be told in full: %s", error)
            await asyncio.sleep(pause_s)


async def main() -> None:
    """Serves until SIGTERM or Ctrl-C."""
    serving = asyncio.ensure_future(serve(os.environ))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(main())
