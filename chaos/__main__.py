"""`python -m chaos`: a run under faults, or the matrix of faults; exit status 1 when something is wrong."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from chaos.checker import Verdict, check
from chaos.faults import FAULTS, names_for
from chaos.history import read
from chaos.installation import Size
from chaos.page import DURABILITIES, cells_of, filled, impossible, merged_cells, mix_of
from chaos.report import summary, table
from chaos.runner import Run, run_each, run_mix
from chaos.stores import TOPOLOGIES
from eventbus.embedded import ServerBinary, find_servers


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What the command line asks for."""

    seed: int
    minutes: float
    topologies: Sequence[str]
    durabilities: Sequence[str]
    faults: Sequence[str]
    size: dict[str, int]
    binary: ServerBinary
    directory: Path
    commit: str
    write: Path | None
    as_json: bool

    def run(self, topology: str, durability: str) -> Run:
        """One run of them."""
        directory = self.directory / f"{topology}-{durability}"
        directory.mkdir(parents=True, exist_ok=True)
        return Run(
            topology=topology,
            binary=self.binary,
            size=Size(durability=durability, **self.size),
            seed=self.seed,
            directory=directory,
        )

    def names(self, topology: str) -> list[str]:
        """The faults that can be staged."""
        return [name for name in names_for(topology) if not self.faults or name in self.faults]

    def origin(self, run: Run) -> dict[str, Any]:
        """Where figures come from."""
        return {
            "topology": run.topology,
            "durability": run.size.durability,
            "server": f"{self.binary.kind.capitalize()} {self.binary.version}",
            "commit": self.commit,
            "seed": self.seed,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }


@click.command()
@click.option("--seed", type=int, help="The same seed draws the same faults; by default a random one.")
@click.option("--minutes", type=float, default=1.0, show_default=True, help="Of a mix.")
@click.option("--topology", type=click.Choice(TOPOLOGIES), help="By default single; of the matrix, all.")
@click.option("--durability", type=click.Choice(DURABILITIES), help="By default memory; of the matrix, all.")
@click.option("--faults", help=f"Separated by commas; by default all that the topology allows: {', '.join(FAULTS)}.")
@click.option("--matrix", is_flag=True, help="Every fault once with every durability and topology, instead of a mix.")
@click.option("--users", type=int, default=30, show_default=True)
@click.option("--publishers", type=int, default=3, show_default=True)
@click.option("--rate", type=int, default=90, show_default=True, help="Events a second, of all publishers.")
@click.option("--server", type=click.Choice(["valkey", "redis"]), help="By default the one that is preferred.")
@click.option("--directory", type=click.Path(path_type=Path), help="For histories and logs; by default a new one.")
@click.option("--write", type=click.Path(path_type=Path, exists=True), help="The page whose tables get the figures.")
@click.option("--commit", help="What is run, for the page; by default what git says.")
@click.option("--judge", type=click.Path(path_type=Path, exists=True), help="Runs nothing: judges this history.")
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
def main(
    *,
    seed: int | None,
    minutes: float,
    topology: str | None,
    durability: str | None,
    faults: str | None,
    matrix: bool,
    users: int,
    publishers: int,
    rate: int,
    server: str | None,
    directory: Path | None,
    write: Path | None,
    commit: str | None,
    judge: Path | None,
    as_json: bool,
) -> None:
    """Runs an installation under a seeded mix of faults and judges what it did."""
    logging.basicConfig(level=logging.ERROR)
    if judge is not None:
        sys.exit(_show(check(read(judge), durability=durability or "memory"), judge, as_json=as_json))
    binaries = [one for one in find_servers() if one.supported and server in (None, one.kind)]
    if not binaries:
        raise click.UsageError("there is no such server program on this machine")
    names = faults.split(",") if faults else []
    if unknown := [name for name in names if name not in FAULTS]:
        raise click.UsageError(f"no such fault: {', '.join(unknown)}")
    asked = _Asked(
        seed=random.randrange(1_000_000) if seed is None else seed,
        minutes=minutes,
        topologies=[topology] if topology else list(TOPOLOGIES) if matrix else ["single"],
        durabilities=[durability] if durability else list(DURABILITIES) if matrix else ["memory"],
        faults=names,
        size={"users": users, "publishers": publishers, "rate": rate},
        binary=binaries[0],
        directory=directory or Path(tempfile.mkdtemp(prefix="chaos-")),
        commit=commit or _git_commit(),
        write=write,
        as_json=as_json,
    )
    click.echo(f"seed {asked.seed}, {asked.binary.kind} {asked.binary.version}, histories in {asked.directory}")
    sys.exit(_matrix(asked) if matrix else _mix(asked))


def _mix(asked: _Asked) -> int:
    run = asked.run(asked.topologies[0], asked.durabilities[0])
    verdict, complaints = asyncio.run(run_mix(run, asked.minutes * 60, asked.names(run.topology)))
    for complaint in complaints[:5]:
        click.echo(f"a node's log has: {complaint}")
    if asked.write is not None:
        _write(asked.write, [], [mix_of(verdict, {**asked.origin(run), "minutes": asked.minutes})])
    return _show(verdict, run.history, as_json=asked.as_json)


def _matrix(asked: _Asked) -> int:
    worst = 0
    for topology in asked.topologies:
        for durability in asked.durabilities:
            names = [name for name in asked.names(topology) if impossible(name, durability, topology) is None]
            if not names:
                continue
            run = asked.run(topology, durability)
            click.echo(f"--- {topology}, {durability}")
            verdict, _ = asyncio.run(run_each(run, names))
            worst = max(worst, _show(verdict, run.history, as_json=asked.as_json))
            if asked.write is not None:
                _write(asked.write, cells_of(verdict, asked.origin(run)), [])
    return worst


def _show(verdict: Verdict, history: Path, *, as_json: bool) -> int:
    begin_ms = next(op.time_ms for op in read(history))
    click.echo(json.dumps(summary(verdict)) if as_json else table(verdict, begin_ms))
    return 0 if verdict.ok else 1


def _write(page: Path, cells: list[dict[str, Any]], mixes: list[dict[str, Any]]) -> None:
    """Keeps the figures beside the page, and makes its tables anew."""
    kept = page.with_suffix(".json")
    data = json.loads(kept.read_text()) if kept.exists() else {"cells": [], "mixes": []}
    places = [(mix["topology"], mix["durability"]) for mix in mixes]
    data["cells"] = merged_cells(data["cells"], cells)
    data["mixes"] = [mix for mix in data["mixes"] if (mix["topology"], mix["durability"]) not in places] + mixes
    data["mixes"].sort(key=lambda mix: (TOPOLOGIES.index(mix["topology"]), DURABILITIES.index(mix["durability"])))
    kept.write_text(json.dumps(data, indent=1) + "\n")
    page.write_text(filled(page.read_text(), data))


def _git_commit() -> str:
    told = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
