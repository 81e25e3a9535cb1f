"""Token streams: what a delta costs to one session and to three of a user, and how many a second get through."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.processes import cpu_ns
from benchmarks.report import per_event_us
from benchmarks.roles import Role
from benchmarks.texter import DELTA
from benchmarks.world import World
from eventbus.embedded import ServerBinary

__all__ = ["Measured", "measure_texts"]

Measured = tuple[str, dict[tuple[str, str], float], list[str]]
"""The name of a case, its values, its faults."""

PACE: float = 200.0
"""Deltas a second of one stream, where the cost of one is asked for: what a fast model gives."""


IDLE_S: float = 3.0


def measure_texts(
    binary: ServerBinary, *, deltas: int, users: int, pace: float = PACE, say: Callable[[str], object] = print
) -> list[Measured]:
    """One run of all cases.

    Args:
        binary: the server.
        deltas: calls of `write` for each stream.
        users: how many stream at once, where the rate is asked for.
        pace: deltas a second of one stream, where the cost is asked for.
        say: told what goes on.
    """
    found = [
        _case(binary, f"{deltas:,} deltas at {pace:,.0f}/s to {_sessions(sessions)}", 1, sessions, deltas, pace)
        for sessions in (1, 3)
    ]
    found.append(_case(binary, f"{users} users with {deltas:,} deltas each, at once", users, 1, deltas, 0.0))
    for name, values, faults in found:
        say(f"texts: {name}: {faults or values}")
    return found


def _sessions(count: int) -> str:
    return "1 session" if count == 1 else f"{count} sessions"


def _case(binary: ServerBinary, name: str, users: int, sessions: int, deltas: int, pace: float) -> Measured:
    with World(binary, 1) as world, Role("texter") as writer, Role("texter") as reader:
        writer.ask("open", url=world.server.url)
        reader.ask("follow", url=world.node.url, secret=world.node.secret, users=users, sessions=sessions)
        idle = _idle(world, writer, reader)
        _round(world, writer, reader, users, sessions, deltas, pace)  # makes keys, and loads scripts
        before, calls_before = _cpu(world, writer, reader), _calls(world)
        got, began_ns, memory = _round(world, writer, reader, users, sessions, deltas, pace)
        after, calls = _cpu(world, writer, reader), _calls(world) - calls_before
    wanted = users * sessions * deltas * len(DELTA)
    faults = [] if got["characters"] == wanted else [f"{got['characters']:,} of {wanted:,} characters came"]
    if got["finals"] != users * sessions:
        faults.append(f"{got['finals']} of {users * sessions} streams ended")
    total = users * deltas
    seconds = (got["reached_ns"] - began_ns) / 1e9
    spent = {name: after[name] - before[name] - idle[name] * seconds for name in after}
    values = {
        ("deltas delivered", "1/s"): total * sessions / seconds,
        **{
            (f"CPU of the {part}, beyond idling", "us/delta"): per_event_us(int(spent[part]), total)
            for part in ("node", "server", "writer", "reader")
        },
        ("commands of the server, beyond idling", "1/delta"): (calls - idle["calls"] * seconds) / total,
        ("frames to a session", "1/delta"): got["chunks"] / sessions / total,
        ("memory of the server at the most", "bytes/delta"): memory / total,
    }
    return name, values, faults


def _round(
    world: World, writer: Role, reader: Role, users: int, sessions: int, deltas: int, pace: float
) -> tuple[dict[str, Any], int, int]:
    """Write, and wait until all has come: what came, when it began, the most memory."""
    reader.ask("expect", finals=users * sessions)
    timeout_s = deltas / (pace or 1_000) + 60
    peak = _Peak(world)
    writer.tell("write", users=users, deltas=deltas, rate=pace)
    reader.tell("result", timeout_s=timeout_s)
    memory = peak.until(writer, timeout_s)
    return reader.answer(timeout_s + 5), peak.began_ns, memory


def _idle(world: World, writer: Role, reader: Role) -> dict[str, float]:
    """CPU time and commands a second while nothing is written: they would be most of a slow stream's."""
    before, calls, began = _cpu(world, writer, reader), _calls(world), time.monotonic()
    time.sleep(IDLE_S)
    seconds = time.monotonic() - began
    after = _cpu(world, writer, reader)
    return {name: (after[name] - before[name]) / seconds for name in after} | {
        "calls": (_calls(world) - calls) / seconds
    }


def _cpu(world: World, writer: Role, reader: Role) -> dict[str, int]:
    pids = {"node": world.node.pid, "server": world.server.pid, "writer": writer.pid, "reader": reader.pid}
    return {name: cpu_ns(pid) for name, pid in pids.items()}


def _calls(world: World) -> int:
    """Commands that came over a connection, without those in scripts."""
    times = world.raw.command_times()
    return sum(times.get(name, (0, 0))[0] for name in ("evalsha", "xrange", "hgetall"))


class _Peak:
    """What the server had allocated at the most, beyond what it had at first, while a writer writes."""

    def __init__(self, world: World) -> None:
        self._raw = world.raw
        self._first = world.raw.memory_bytes()
        self.began_ns = time.monotonic_ns()

    def until(self, writer: Role, timeout_s: float) -> int:
        """Look again and again until the writer answers."""
        done = threading.Event()

        def wait() -> None:
            self.began_ns = writer.answer(timeout_s)["began_ns"]
            done.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        most = self._first
        while not done.wait(0.1) and waiting.is_alive():
            most = max(most, self._raw.memory_bytes())
        waiting.join()
        return most - self._first
