"""Agents' runs: what a run of the five events costs, beside the same events without a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from benchmarks.processes import cpu_ns
from benchmarks.raw import Raw
from benchmarks.report import per_event_us
from benchmarks.roles import Role
from benchmarks.runner import EVENTS_A_RUN
from benchmarks.world import World
from eventbus.embedded import ServerBinary

__all__ = ["Measured", "measure_runs"]

Measured = tuple[str, dict[tuple[str, str], float], list[str]]
"""The name of a case, its values, its faults."""

IDLE_S: Final = 3.0
ACKED_S: Final = 10.0
_CASES: Final = {"run": "agents' runs", "publish": "the same events without a run"}


def measure_runs(
    binary: ServerBinary, *, runs: int, rate: float, users: int, say: Callable[[str], object] = print
) -> list[Measured]:
    """One measurement of all cases, in the same processes, in turn.

    Args:
        binary: the server.
        runs: how many of each case.
        rate: how many begin in a second.
        users: whose runs they are, one after the other; each has a session.
        say: told what goes on.
    """
    found: list[Measured] = []
    with World(binary, users) as world, Role("runner") as agents, Role("runner") as reader:
        agents.ask("open", url=world.server.url)
        reader.ask("follow", url=world.node.url, secret=world.node.secret, users=users)
        sight = _Sight(world, agents, reader)
        for how in _CASES:
            _round(world, agents, reader, how, 2 * users, rate, users)  # makes keys, and loads scripts
        idle = sight.idle()
        for how, what in _CASES.items():
            name = f"{what}: {rate:,.0f}/s, {users:,} users"
            before = sight.now()
            got, work, faults = _round(world, agents, reader, how, runs, rate, users)
            seconds = (got["reached_ns"] - work["began_ns"]) / 1e9
            spent = {key: value - before[key] - idle.get(key, 0.0) * seconds for key, value in sight.now().items()}
            values = _values(spent, runs, seconds, work["took_ms"])
            say(f"runs: {name}: {faults or values}")
            found.append((name, values, faults))
    return found


def _values(
    spent: dict[str, float], runs: int, seconds: float, took_ms: dict[str, float]
) -> dict[tuple[str, str], float]:
    parts = ("publisher", "node", "server")
    return {
        ("runs, received to the last event and acked", "1/s"): runs / seconds,
        **{(f"CPU of the {part}, beyond idling", "us/run"): per_event_us(int(spent[part]), runs) for part in parts},
        **{
            (f"CPU of the {part}, beyond idling", "us/event"): per_event_us(int(spent[part]), runs * EVENTS_A_RUN)
            for part in parts
        },
        ("calls of scripts", "1/run"): spent["scripts"] / runs,
        ("commands, those in scripts too", "1/run"): spent["commands"] / runs,
        ("to the server", "bytes/run"): spent["in"] / runs,
        ("from the server", "bytes/run"): spent["out"] / runs,
        ("memory of the server", "bytes/run"): spent["memory"] / runs,
        ("from its begin until all is stored, p50", "ms"): took_ms["p50"],
        ("from its begin until all is stored, p99", "ms"): took_ms["p99"],
    }


def _round(
    world: World, agents: Role, reader: Role, how: str, runs: int, rate: float, users: int
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """So many runs, until all has come and is acked: what came, what the agents say, what is wrong."""
    events = runs * EVENTS_A_RUN
    acked_before = world.raw.acked(users)
    timeout_s = runs / rate + 60
    reader.ask("expect", events=events)
    agents.tell("work", how=how, runs=runs, rate=rate, users=users)
    reader.tell("result", timeout_s=timeout_s)
    work = agents.answer(timeout_s)
    got = reader.answer(timeout_s + 5)
    acked = _acked(world.raw, users, acked_before + events) - acked_before
    faults = [*work["errors"], *got["wrong"]]
    if not (got["events"] == acked == events and got["whole"] == runs):
        faults.append(f"of {runs} runs {got['whole']} came whole; of {events} events {got['events']}, {acked} acked")
    return got, work, faults


def _acked(raw: Raw, users: int, wanted: int) -> int:
    """What is acked, once it is as much as wanted or too much time has passed."""
    deadline = time.monotonic() + ACKED_S
    while (acked := raw.acked(users)) < wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    return acked


class _Sight:
    """What each process and the server have spent so far."""

    def __init__(self, world: World, agents: Role, reader: Role) -> None:
        self._pids = {
            "node": world.node.pid,
            "server": world.server.pid,
            "publisher": agents.pid,
            "reader": reader.pid,
        }
        self._raw = world.raw

    def now(self) -> dict[str, float]:
        """CPU time in ns, bytes, calls."""
        cpu = {name: float(cpu_ns(pid)) for name, pid in self._pids.items()}
        times = self._raw.command_times()
        (text,) = self._raw.pipeline([("INFO", "stats")])
        stats = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
        return {
            **cpu,
            "scripts": float(times.get("evalsha", (0, 0))[0]),
            "commands": float(sum(calls for calls, _ in times.values())),
            "in": float(stats["total_net_input_bytes"]),
            "out": float(stats["total_net_output_bytes"]),
            "memory": float(self._raw.memory_bytes()),
        }

    def idle(self) -> dict[str, float]:
        """The same for each second in which nothing is asked for."""
        before, began = self.now(), time.monotonic()
        time.sleep(IDLE_S)
        seconds = time.monotonic() - began
        after = self.now()
        return {name: (value - before[name]) / seconds for name, value in after.items() if name != "memory"}
