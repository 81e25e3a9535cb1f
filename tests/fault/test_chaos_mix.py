"""Everything at once, by `python -m chaos`: a whole installation under a random mix of faults, and the judge of its
history. docs/guarantees.md has the longer runs.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from chaos.stores import TOPOLOGIES
from tests.support.needs import needs_haproxy
from tests.support.processes import Processes

pytestmark = [needs_haproxy, pytest.mark.requirement("R2", "R6", "R7", "R33")]


async def _chaos(processes: Processes, directory: Path, topology: str, minutes: float, *more: str) -> None:
    """One run; it fails when the judge finds anything, and shows the table then."""
    seed = os.environ.get("EVENTBUS_TEST_SEED") or str(random.randrange(1_000_000))
    words = ("--topology", topology, "--minutes", str(minutes), "--seed", seed, "--directory", str(directory), *more)
    child = processes.python("-m", "chaos", *words, name=f"chaos-{topology}")
    code = await child.wait(int(minutes * 60_000) + 240_000)
    assert code == 0, f"EVENTBUS_TEST_SEED={seed}\n{child.stdout}\n{child.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_short_mix_of_faults_loses_nothing_and_repeats_nothing_unmarked(
    processes: Processes, tmp_path: Path
) -> None:
    few = ("--users", "8", "--rate", "60", "--publishers", "2", "--json")
    await _chaos(processes, tmp_path / "run", "single", 0.25, *few)
    [history] = (tmp_path / "run").rglob("history.jsonl.gz")
    # The history alone is enough for the verdict.
    judging = processes.python("-m", "chaos", "--judge", history, "--json", name="judge")
    assert await judging.wait() == 0
    told = json.loads(judging.stdout)
    assert told["published"] > 300
    assert told["received"] == told["owed"] > told["published"]
    assert sum(told["faults"].values()) >= 2


@pytest.mark.soak
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("topology", TOPOLOGIES)
async def test_ten_minutes_of_chaos_end_with_nothing_lost(processes: Processes, tmp_path: Path, topology: str) -> None:
    await _chaos(processes, tmp_path / "run", topology, 10)
