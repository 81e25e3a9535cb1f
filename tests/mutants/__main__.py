"""Applies the mutants one by one to copies of the checkout and runs the named test of each: it must fail.

First every named test is run on an untouched copy, where it must pass. Exit status: 0 when every mutant was noticed, 1
when one survived, 2 when something does not fit (a guard that is not there, a test that fails without its mutant).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.catalogue import MUTANTS, REQUIRED, Mutant

ROOT = Path(__file__).resolve().parents[2]
_COPIED = ("eventbus", "gateway", "tests", "clients", "docs", "pyproject.toml", "README.md", "Makefile")
_TIMEOUT_S = 40
_PATIENCE_MS = 6_000
_FAILED, _PASSED, _HUNG = 1, 0, -1


class Outcome(StrEnum):
    """What became of a mutant."""

    NOTICED = "noticed"
    SURVIVED = "SURVIVED"
    BROKEN = "BROKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A mutant, and what its test said."""

    mutant: Mutant
    outcome: Outcome
    seconds: float
    told: str = ""


def _copy(directory: Path) -> Path:
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "node_modules", ".*")
            shutil.copytree(source, directory / name, ignore=ignore)
        elif source.exists():
            shutil.copy2(source, directory / name)
    return directory


def _pytest(directory: Path, tests: Sequence[str], *options: str) -> tuple[int, str]:
    """Runs tests in a copy; returns pytest's status and what it said."""
    command = [
        sys.executable,
        "-B",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        "-m",
        "not soak",
    ]
    command += [f"--timeout={_TIMEOUT_S}", "--tb=line", *options, *tests]
    # The faults wait less long for what can not come, and two mutants run at a time.
    environment = {
        **os.environ,
        "PYTHONPATH": str(directory),
        "PYTHONDONTWRITEBYTECODE": "1",
        "EVENTBUS_TEST_PATIENCE_MS": str(_PATIENCE_MS),
    }
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S * (len(tests) + 1),
        )
    except subprocess.TimeoutExpired:
        return _HUNG, f"still running: {' '.join(command)}"
    return done.returncode, done.stdout + done.stderr


def _run(mutant: Mutant, directory: Path) -> Result:
    begin = time.monotonic()
    path = directory / mutant.file
    text = path.read_text()
    count = text.count(mutant.guard)
    if count != 1:
        told = f"the guard stands {count} times in {mutant.file}: {mutant.guard.strip()!r}"
        return Result(mutant=mutant, outcome=Outcome.BROKEN, seconds=0, told=told)
    path.write_text(text.replace(mutant.guard, mutant.replacement))
    try:
        status, said = _pytest(directory, [mutant.test], "-x")
    finally:
        path.write_text(text)
    outcome = {_FAILED: Outcome.NOTICED, _PASSED: Outcome.SURVIVED}.get(status, Outcome.BROKEN)
    told = "" if outcome is Outcome.NOTICED else said[-2_000:]
    return Result(mutant=mutant, outcome=outcome, seconds=time.monotonic() - begin, told=told)


def _chosen(pattern: str) -> list[Mutant]:
    wanted = re.compile(pattern, re.IGNORECASE)
    return [mutant for mutant in MUTANTS if wanted.search(f"{mutant.requirement} {mutant.name} {mutant.test}")]


def _baseline(mutants: Sequence[Mutant], directory: Path, workers: int) -> bool:
    tests = list(dict.fromkeys(mutant.test for mutant in mutants))
    _say(f"{len(tests)} tests without any mutant: ", end="")
    status, said = _pytest(directory, tests, "-n", str(workers))
    _say("pass" if status == _PASSED else f"FAIL (status {status})\n{said[-6_000:]}")
    return status == _PASSED


def _say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the mutants; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("-k", default="", metavar="PATTERN", help="only mutants whose row, name or test has this")
    parser.add_argument("-n", type=int, default=2, metavar="N", help="so many at a time (2)")
    parser.add_argument("--no-baseline", action="store_true", help="trust that the tests pass without a mutant")
    options = parser.parse_args(arguments)
    mutants = _chosen(options.k)
    missing = REQUIRED - {mutant.requirement for mutant in MUTANTS}
    if missing or not mutants:
        _say(f"no mutant for {', '.join(sorted(missing)) or options.k}")
        return 2
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.n):
            copies.put(_copy(Path(name) / str(number)))
        first = copies.get()
        if not options.no_baseline and not _baseline(mutants, first, options.n):
            return 2
        copies.put(first)

        def run(mutant: Mutant) -> Result:
            directory = copies.get()
            try:
                result = _run(mutant, directory)
            finally:
                copies.put(directory)
            _say(f"{result.outcome:9} {mutant.requirement:4} {result.seconds:5.1f} s  {mutant.name}")
            return result

        with ThreadPoolExecutor(options.n) as pool:
            results = list(pool.map(run, mutants))
    bad = [result for result in results if result.outcome is not Outcome.NOTICED]
    for result in bad:
        mutant = result.mutant
        _say(f"\n{result.outcome} {mutant.requirement}: {mutant.name}\n  {mutant.test}\n{result.told}")
    _say(f"\n{len(results) - len(bad)} of {len(results)} mutants were noticed")
    if any(result.outcome is Outcome.BROKEN for result in bad):
        return 2
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
