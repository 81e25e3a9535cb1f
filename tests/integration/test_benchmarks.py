"""The benchmark suite: anyone can run it, and a figure counts only when nothing was lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.stalls import Stalls

ROOT = Path(__file__).resolve().parents[2]
TRIES = 5


def measured(directory: Path, *words: str) -> dict[str, Any]:
    """Runs the suite, which ends with status 1 when what was stored, received and acked is not the same number."""
    file = directory / "figures.json"
    subprocess.run(
        [sys.executable, "-m", "benchmarks", *words, "--json", str(file)], cwd=ROOT, check=True, capture_output=True
    )
    found: dict[str, Any] = orjson.loads(file.read_bytes())
    return found


@pytest.mark.soak
@pytest.mark.requirement("R34")
def test_the_suite_measures_latency_cost_and_memory_and_checks_that_nothing_is_missing(tmp_path: Path) -> None:
    found = measured(tmp_path, "--quick", "latency", "idle")["benchmarks"]
    figures = {figure["name"] for cases in found.values() for case in cases for figure in case["figures"]}
    assert {"publish to client, p99", "CPU of node and server", "memory of the node (RSS)"} <= figures
    assert all(
        value > 0
        for cases in found.values()
        for case in cases
        for figure in case["figures"]
        for value in figure["values"]
        if figure["name"].startswith("CPU of")
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.requirement("R33")
def test_with_25_and_100_sessions_99_of_100_events_are_there_within_50_ms(tmp_path: Path) -> None:
    """500 events a second in all. A machine that is busy with other tests is asked again; at last it is told from the
    product by what it does to a process that only looks at the clock.
    """
    wanted = {"25 sessions at 500/s", "100 sessions at 500/s"}
    told: list[str] = []
    for number in range(1, TRIES + 1):
        with Stalls() as machine:
            cases = measured(tmp_path, "latency", "--runs", "1", "--seconds", "1")["benchmarks"]
        allowed = 50 + (1_000 * machine.standing_s if number == TRIES else 0)
        for case in cases["From publish to client"]:
            (worst,) = [figure["values"][0] for figure in case["figures"] if figure["name"] == "publish to client, p99"]
            told.append(f"{case['name']}: {worst:.0f} ms, and the machine stood still for {machine.standing_s:.3f} s")
            if worst < allowed:
                wanted.discard(case["name"])
        if not wanted:
            return
    pytest.fail(f"in none of {TRIES} tries: {sorted(wanted)}. {told}")
