"""Agents as a process: some runs at once, each with a tool open, a child run and steady progress, until it is killed.

`python -m tests.support.load.agents work <runs>` says `inside` when every run is in the midst of it; `... finish
<runs> <file>` says `ready`, waits for the file, takes the same runs over, ends each as a success, and says `finished
<count>`. Runs that turn out to be another's are told by `closed <run>`. Settings come from the environment.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final

from eventbus import Bus, Run
from eventbus.errors import RunClosed
from tests.support.waiting import until

USERS: Final = 5


def names_of(number: int) -> tuple[str, str, str]:
    """The user, the run and the child run of a number."""
    return f"user{number % USERS}", f"run_{number}", f"run_{number}_child"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _work(bus: Bus, number: int, inside: asyncio.Event) -> None:
    user, name, child_name = names_of(number)
    try:
        async with bus.run(user=user, agent="worker", run=name) as run:
            await run.thinking("Hm")
            child = run.child(agent="helper", run=child_name)
            async with run.tool("delegate", call_id="a"), child, child.tool("search"):
                await _go_on(run, child, inside)
    except RunClosed:
        _say(f"closed {name}")


async def _go_on(run: Run, child: Run, inside: asyncio.Event) -> None:
    for step in range(100_000):
        await run.publish("progress", {"step": step})
        await child.publish("progress", {"step": step})
        if step == 3:
            await run.flush()
            inside.set()
        await asyncio.sleep(0.02)  # real time: the pace of an agent


async def _finish(bus: Bus, number: int) -> int:
    user, name, _ = names_of(number)
    try:
        async with bus.run(user=user, agent="worker", run=name, resume=True) as run:
            async with run.tool("delegate", call_id="a") as tool:
                tool.result = number
            run.result = number
    except RunClosed:
        _say(f"closed {name}")
        return 0
    return 1


async def main(mode: str, count: int, go: str = "") -> None:
    """Runs all of them."""
    async with Bus.from_env() as bus:
        if mode == "finish":
            _say("ready")
            await until(Path(go).exists, 60_000, go)
            done = await asyncio.gather(*(_finish(bus, number) for number in range(count)))
            _say(f"finished {sum(done)}")
            return
        events = [asyncio.Event() for _ in range(count)]
        async with asyncio.TaskGroup() as group:
            for number, inside in enumerate(events):
                group.create_task(_work(bus, number, inside))
            for inside in events:
                await inside.wait()
            _say("inside")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
