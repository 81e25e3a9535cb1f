"""`python -m chaos`: a run under faults, or the matrix of faults; exit status 1 when something is wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import tempfile
from pathlib import Path

import click

from chaos.checker import check
from chaos.faults import FAULTS, names_for
from chaos.history import read
from chaos.installation import Size
from chaos.report import summary, table
from chaos.runner import Run, run_mix
from chaos.stores import TOPOLOGIES
from eventbus.embedded import find_servers


@click.command()
@click.option("--seed", type=int, help="The same seed draws the same faults; by default a random one.")
@click.option("--minutes", type=float, default=1.0, show_default=True)
@click.option("--topology", type=click.Choice(TOPOLOGIES), default="single", show_default=True)
@click.option("--durability", type=click.Choice(["memory", "replicated", "fsync"]), default="memory", show_default=True)
@click.option("--faults", help=f"Separated by commas; by default all that the topology allows: {', '.join(FAULTS)}.")
@click.option("--users", type=int, default=30, show_default=True)
@click.option("--publishers", type=int, default=3, show_default=True)
@click.option("--rate", type=int, default=90, show_default=True, help="Events a second, of all publishers.")
@click.option("--server", type=click.Choice(["valkey", "redis"]), help="By default the one that is preferred.")
@click.option("--directory", type=click.Path(path_type=Path), help="For histories and logs; by default a new one.")
@click.option("--judge", type=click.Path(path_type=Path, exists=True), help="Runs nothing: judges this history.")
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
def main(
    *,
    seed: int | None,
    minutes: float,
    topology: str,
    durability: str,
    faults: str | None,
    users: int,
    publishers: int,
    rate: int,
    server: str | None,
    directory: Path | None,
    judge: Path | None,
    as_json: bool,
) -> None:
    """Runs an installation under a seeded mix of faults and judges what it did."""
    logging.basicConfig(level=logging.ERROR)
    complaints: list[str] = []
    if judge is not None:
        verdict = check(read(judge), durability=durability)
        begin_ms = next(op.time_ms for op in read(judge))
    else:
        seed = random.randrange(1_000_000) if seed is None else seed
        names = faults.split(",") if faults else names_for(topology)
        unknown = [name for name in names if topology not in getattr(FAULTS.get(name), "topologies", ())]
        if unknown:
            raise click.UsageError(f"no such fault with {topology}: {', '.join(unknown)}")
        binaries = [one for one in find_servers() if one.supported and server in (None, one.kind)]
        if not binaries:
            raise click.UsageError("there is no such server program on this machine")
        run = Run(
            topology=topology,
            binary=binaries[0],
            size=Size(users=users, publishers=publishers, rate=rate, durability=durability),
            seed=seed,
            directory=directory or Path(tempfile.mkdtemp(prefix="chaos-")),
        )
        run.directory.mkdir(parents=True, exist_ok=True)
        click.echo(f"seed {seed}, {topology}, {durability}, {run.binary.kind} {run.binary.version}; {run.directory}")
        verdict, complaints = asyncio.run(run_mix(run, minutes * 60, names))
        begin_ms = next(op.time_ms for op in read(run.history))
    click.echo(json.dumps(summary(verdict)) if as_json else table(verdict, begin_ms))
    for complaint in complaints[:5]:
        click.echo(f"a node's log has: {complaint}")
    sys.exit(0 if verdict.ok else 1)


if __name__ == "__main__":
    main()
