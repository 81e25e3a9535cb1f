"""Runs: a random mix for some minutes, or every fault in its turn for the matrix."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chaos.checker import Verdict, check
from chaos.faults import FAULTS, Harm
from chaos.history import Kind, write
from chaos.installation import Installation, Size
from chaos.mix import Planned, plan_mix
from chaos.stores import make_store
from eventbus.embedded import ServerBinary

__all__ = ["Run", "run_each", "run_mix"]

# Of each group so many at once: of three nodes one always goes on.
_AT_ONCE: Final = {"node": 2}
_CALM_S: Final = 1.0
_SETTLE_MS: Final = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run is.

    Attributes:
        directory: for everything that it writes; `history.jsonl.gz` is what the checker reads.
    """

    topology: str
    binary: ServerBinary
    size: Size
    seed: int
    directory: Path

    @property
    def history(self) -> Path:
        """Where the history is written."""
        return self.directory / "history.jsonl.gz"

    def installation(self) -> Installation:
        """Everything, not yet started. The file is forced to the disk before each answer where that was promised."""
        appendfsync = "always" if self.size.durability == "fsync" else "everysec"
        store = make_store(self.topology, self.directory, self.binary, appendfsync=appendfsync)
        return Installation(self.directory, store, self.size, self.seed)


async def run_mix(run: Run, duration_s: float, names: Sequence[str]) -> tuple[Verdict, list[str]]:
    """Runs a random mix of the named faults, and judges it. Returns the verdict and what the nodes complained of."""
    plan = plan_mix(run.seed, duration_s, {name: FAULTS[name].weight for name in names})
    async with run.installation() as world:
        locks = {kind.group: asyncio.Semaphore(_AT_ONCE.get(kind.group, 1)) for kind in FAULTS.values()}
        loop = asyncio.get_running_loop()
        begin = loop.time()

        async def one(planned: Planned) -> None:
            async with locks[FAULTS[planned.name].group]:
                # What had to wait for others of its group for too long is left out: the run ends in time.
                if loop.time() - begin < duration_s:
                    await _harm(world, planned)

        async with asyncio.TaskGroup() as group:
            for planned in plan:
                await asyncio.sleep(max(0.0, begin + planned.at_s - loop.time()))
                group.create_task(one(planned))
                world.check_processes()
            await asyncio.sleep(max(0.0, begin + duration_s - loop.time()))
        return await _judged(run, world)


async def run_each(run: Run, names: Sequence[str]) -> tuple[Verdict, list[str]]:
    """Runs each fault once, in a random order; the next comes when all that was published has come."""
    order = random.Random(run.seed).sample(names, len(names))
    async with run.installation() as world:
        for number, name in enumerate(order, 1):
            await asyncio.sleep(_CALM_S)
            await _harm(world, Planned(number=number, at_s=0, name=name, seed=f"{run.seed}/{name}"))
            await asyncio.sleep(_CALM_S)
            await world.caught_up(_SETTLE_MS // 2)
        return await _judged(run, world)


async def _harm(world: Installation, planned: Planned) -> None:
    def began(target: str) -> None:
        group = FAULTS[planned.name].group
        world.log.write(Kind.INVOKE, "fault", number=planned.number, name=planned.name, group=group, target=target)
        _tell(f"{planned.name} ({target})")

    chance = random.Random(planned.seed)
    await FAULTS[planned.name].run(Harm(world, chance, began))
    world.log.write(Kind.OK, "fault", number=planned.number)


async def _judged(run: Run, world: Installation) -> tuple[Verdict, list[str]]:
    _tell("settling")
    await world.settle(_SETTLE_MS)
    history = world.history()
    write(run.history, history)
    return check(history, durability=run.size.durability), world.complaints()


def _tell(line: str) -> None:
    sys.stderr.write(f"{asyncio.get_running_loop().time():.1f} {line}\n")
    sys.stderr.flush()
