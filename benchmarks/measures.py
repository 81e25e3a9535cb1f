"""The benchmarks: which loads are put on, and which figures they give."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.console import measure_console
from benchmarks.floor import push_floor, stream_floor
from benchmarks.link import measure_link
from benchmarks.processes import cpu_ns, rss_bytes
from benchmarks.report import Case, figures
from benchmarks.runs import measure_runs
from benchmarks.texts import measure_texts
from benchmarks.world import Load, World
from eventbus.embedded import ServerBinary

__all__ = ["BENCHMARKS", "Benchmark", "Plan", "highest"]

Values = Mapping[tuple[str, str], float]

KEPT: Final = "highest rate kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        binary: the server.
        runs: how often each case is measured, in processes made anew.
        seconds: how long one load is.
        rates: events/s, for `delivery`.
        sessions: sessions, for `delivery`.
        idle_sessions: sessions, for `idle`.
        say: told what goes on.
        profile: where the node writes what its functions cost.
    """

    binary: ServerBinary
    runs: int = 5
    seconds: float = 5.0
    rates: tuple[int, ...] = (2_000, 5_000, 10_000)
    sessions: int = 1_000
    idle_sessions: int = 10_000
    say: Callable[[str], object] = print
    profile: Path | None = None


@dataclass(slots=True)
class _Cases:
    """Collects runs by case."""

    runs: dict[str, list[Values]] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, values: Values, faults: list[str] | None = None) -> None:
        """A run that has a fault gives no figures."""
        self.runs.setdefault(name, [])
        if faults:
            self.faults.setdefault(name, []).extend(faults)
        else:
            self.runs[name].append(values)

    def add_all(self, found: Mapping[str, Values]) -> None:
        for name, values in found.items():
            self.add(name, values)

    def cases(self) -> list[Case]:
        return [
            Case(name=name, figures=figures(runs), faults=tuple(self.faults.get(name, ())))
            for name, runs in self.runs.items()
        ]


def _latency(load: Load) -> dict[tuple[str, str], float]:
    names = {"p50": "p50", "p99": "p99", "p999": "p99.9", "most": "the slowest"}
    return {
        (f"publish to client, {shown}", "ms"): load.latency_ms[name]
        for name, shown in names.items()
        if name in load.latency_ms
    }


def _costs(load: Load) -> dict[tuple[str, str], float]:
    return {
        ("CPU of node and server", "us/event"): load.cpu_us("node", "server"),
        ("CPU of the node", "us/event"): load.cpu_us("node"),
        ("CPU of the server", "us/event"): load.cpu_us("server"),
        ("CPU of the publisher", "us/event"): load.cpu_us("publisher"),
        ("CPU of the client", "us/event"): load.cpu_us("client"),
    }


def delivery(plan: Plan) -> list[Case]:
    """Delivered and acked events a second, what they cost, and the floor beside it."""
    cases = _Cases()
    highest_rate = 0.0
    for run in range(plan.runs):
        with World(plan.binary, plan.sessions, profile=plan.profile) as world:
            world.connect(plan.sessions)
            world.load(1_000, 2 * plan.sessions)  # the first events of a stream make its keys
            for rate in plan.rates:
                load = world.load(rate, int(rate * plan.seconds))
                reached = load.events / load.seconds
                plan.say(f"delivery, run {run + 1}: {rate:,}/s gave {reached:,.0f}/s, {load.faults or 'no fault'}")
                values = {("delivered and acked", "events/s"): reached, **_costs(load), **_latency(load)}
                cases.add(f"{plan.sessions:,} sessions at {rate:,}/s", values, load.faults)
            if not plan.profile:
                highest_rate = _highest_kept(plan, world, run, highest_rate or plan.rates[-1], cases)
            stored = stream_floor(world.raw, world.server.pid, max(1_000, int(4_000 * plan.seconds)), plan.sessions)
        if not plan.profile:
            _without_records(plan, run, cases)
        cases.add_all(stored)
        rate = plan.rates[-1]  # at a low one the timers of the sender would be most of it
        cases.add_all(push_floor(plan.sessions, rate, int(rate * min(2.0, plan.seconds))))
    return cases.cases()


def _without_records(plan: Plan, run: int, cases: _Cases) -> None:
    """What it costs to write down who acked what."""
    rate = plan.rates[-1]
    with World(plan.binary, plan.sessions, settings={"EVENTBUS_CONFIRMATION_RECORDS": "off"}) as world:
        world.connect(plan.sessions)
        world.load(1_000, 2 * plan.sessions)
        load = world.load(rate, int(rate * plan.seconds))
    plan.say(f"delivery, run {run + 1}: {rate:,}/s without records gave {load.faults or 'no fault'}")
    values = {("delivered and acked", "events/s"): load.events / load.seconds, **_costs(load)}
    cases.add(f"{plan.sessions:,} sessions at {rate:,}/s, acks not recorded", values, load.faults)


def _highest_kept(plan: Plan, world: World, run: int, start: float, cases: _Cases) -> float:
    best: list[Load] = []

    def kept(rate: float) -> bool:
        load = world.load(rate, int(rate * min(3.0, plan.seconds)))
        plan.say(f"delivery, run {run + 1}: {rate:,.0f}/s was {'kept' if load.kept else 'not kept'}")
        if load.kept:
            best[:] = [load]
        return load.kept

    rate = highest(kept, start)
    name = f"{plan.sessions:,} sessions, the {KEPT}"
    if not best:
        cases.add(name, {}, [f"no rate above {rate:,.0f}/s was kept"])
    else:
        cases.add(name, {("delivered and acked", "events/s"): rate, **_costs(best[0]), **_latency(best[0])})
    return rate


def highest(kept: Callable[[float], bool], start: float, steps: int = 8) -> float:
    """The highest rate that is kept, within 7 %, by at most `steps + 3` tries.

    Args:
        kept: tries a rate.
        start: the first rate.
        steps: how often the rate is raised or lowered by a quarter before the search gives up.

    Returns:
        A rate that was kept, or the lowest one that was tried when none was.
    """
    low, high = 0.0, 0.0
    rate = start
    for _ in range(steps):
        if kept(rate):
            low = rate
            if high:
                break
            rate *= 1.25
        else:
            high = rate
            if low:
                break
            rate /= 1.25
    while low and high and high / low > 1.07:
        middle = (low * high) ** 0.5
        if kept(middle):
            low = middle
        else:
            high = middle
    return low or high


def latency(plan: Plan) -> list[Case]:
    """How long an event takes from publish to client at a moderate load."""
    cases = _Cases()
    rate = 500
    for run in range(plan.runs):
        for sessions in (25, 100):
            with World(plan.binary, sessions, profile=plan.profile) as world:
                world.connect(sessions)
                world.load(rate, rate)
                load = world.load(rate, int(rate * 2 * plan.seconds))
                plan.say(f"latency, run {run + 1}: {sessions} sessions, {load.latency_ms}, {load.faults or 'no fault'}")
                cases.add(f"{sessions} sessions at {rate}/s", {**_latency(load), **_costs(load)}, load.faults)
    return cases.cases()


def idle(plan: Plan) -> list[Case]:
    """What a session costs that has nothing to do, and how fast many come back."""
    cases = _Cases()
    sessions = plan.idle_sessions
    for run in range(plan.runs):
        with World(plan.binary, sessions, profile=plan.profile) as world:
            world.connect(min(100, sessions))
            world.client.ask("drop")
            node_before, server_before = rss_bytes(world.node.pid), world.raw.memory_bytes()
            opened = _opening(world, sessions)
            time.sleep(1.0)  # for what was put off
            node_after, server_after = rss_bytes(world.node.pid), world.raw.memory_bytes()
            kept: dict[tuple[str, str], float] = {
                ("memory of the node (RSS)", "KB/session"): (node_after - node_before) / 1024 / sessions,
                ("memory of the server", "KB/session"): (server_after - server_before) / 1024 / sessions,
            }
            before_ns, began = cpu_ns(world.node.pid), time.monotonic()
            time.sleep(min(5.0, plan.seconds))
            share = (cpu_ns(world.node.pid) - before_ns) / 1e9 / (time.monotonic() - began)
            kept["CPU of the node, doing nothing", "% of a core"] = 100 * share
            world.client.ask("drop")
            back = _opening(world, sessions)
            # That they are really there: one event for each.
            load = world.load(2_000, sessions)
            plan.say(f"idle, run {run + 1}: {kept}, {load.faults or 'no fault'}")
            cases.add(f"{sessions:,} idle sessions", kept, load.faults)
            cases.add(f"{sessions:,} sessions opened", opened, load.faults)
            cases.add(f"{sessions:,} sessions back after a drop", back, load.faults)
    return cases.cases()


def texts(plan: Plan) -> list[Case]:
    """Token streams: what a delta costs, and how many get through."""
    cases = _Cases()
    few = plan.seconds < 1
    for _ in range(plan.runs):
        found = measure_texts(plan.binary, deltas=200 if few else 2_000, users=5 if few else 50, say=plan.say)
        for name, values, faults in found:
            cases.add(name, values, faults)
    return cases.cases()


def runs(plan: Plan) -> list[Case]:
    """Agents' runs: what one costs, beside the same events without a run."""
    cases = _Cases()
    few = plan.seconds < 1
    for _ in range(plan.runs):
        rate = 40.0 if few else 200.0
        found = measure_runs(
            plan.binary, runs=int(2 * rate * plan.seconds), rate=rate, users=20 if few else 100, say=plan.say
        )
        for name, values, faults in found:
            cases.add(name, values, faults)
    return cases.cases()


def console(plan: Plan) -> list[Case]:
    """What an open console costs, in pairs with none."""
    cases = _Cases()
    for _ in range(plan.runs):
        for name, values, faults in measure_console(
            plan.binary, sessions=plan.sessions, rate=plan.rates[0], seconds=plan.seconds, say=plan.say
        ):
            cases.add(name, values, faults)
    return cases.cases()


def link(plan: Plan) -> list[Case]:
    """What a command costs the process that sends it, by what it is sent with."""
    cases = _Cases()
    for _ in range(plan.runs):
        for name, values in measure_link(plan.binary, commands=500 if plan.seconds < 1 else 20_000, say=plan.say):
            cases.add(name, values)
    return cases.cases()


def _opening(world: World, sessions: int) -> dict[tuple[str, str], float]:
    before = world.cpu()
    seconds = world.connect(sessions, at_once=200)
    after = world.cpu()
    spent_us = {name: (after[name] - before[name]) / 1000 / sessions for name in after}
    return {
        ("until the last was open", "s"): seconds,
        ("opened", "sessions/s"): sessions / seconds,
        ("CPU of the node", "us/session"): spent_us["node"],
        ("CPU of the server", "us/session"): spent_us["server"],
        ("CPU of the client", "us/session"): spent_us["client"],
    }


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One of them.

    Attributes:
        title: above its table.
        measure: does it.
    """

    title: str
    measure: Callable[[Plan], list[Case]]


BENCHMARKS: Final[Mapping[str, Benchmark]] = {
    "delivery": Benchmark("Delivered and acked events, and the floor beside them", delivery),
    "latency": Benchmark("From publish to client", latency),
    "idle": Benchmark("Idle sessions", idle),
    "texts": Benchmark("Token streams", texts),
    "runs": Benchmark("Agents' runs", runs),
    "console": Benchmark("With the console open", console),
    "link": Benchmark("Commands to Redis: what the sender spends on each", link),
}
