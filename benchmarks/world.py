"""One server, one node, the publisher and the clients, each in a process of its own; and one load put on them."""

from __future__ import annotations

import os
import pstats
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.events import EVENT_BYTES
from benchmarks.processes import cpu_ns
from benchmarks.raw import Raw
from benchmarks.report import per_event_us
from benchmarks.roles import ROOT, HarnessError, Role
from eventbus.embedded import EmbeddedServer, ServerBinary, tied

__all__ = ["Load", "NodeProcess", "World"]

READY_S = 20.0
ACKED_S = 2.0
LATE_WAIT_S = 30.0
LATE_S = 0.25
"""So much later than the rate says may the last event arrive for the rate to be kept."""


class NodeProcess:
    """A node as its users run it.

    Args:
        redis_url: its server.
        directory: for its secret.
        settings: variables of the environment beside those that the harness needs.
        profile: where to write what its functions cost; that makes everything slower.
    """

    def __init__(
        self, redis_url: str, directory: Path, settings: Mapping[str, str], profile: Path | None = None
    ) -> None:
        self.secret = secrets.token_hex(32)
        secret_file = directory / "secret"
        secret_file.write_text(self.secret)
        own = {
            "EVENTBUS_REDIS_URL": redis_url,
            "EVENTBUS_JWT_SECRET_FILE": str(secret_file),
            "EVENTBUS_PORT": "0",
            "EVENTBUS_ADMIN_PORT": "0",
            "EVENTBUS_NODE": "bench",
            "EVENTBUS_LOG_LEVEL": "warning",
            "EVENTBUS_DEFAULT_TIER": "enterprise",
            # All clients come from one address here.
            "EVENTBUS_HANDSHAKES_PER_ADDRESS": "0",
            "EVENTBUS_CONNECTIONS_PER_ADDRESS": "0",
        }
        others = {name: value for name, value in os.environ.items() if not name.startswith("EVENTBUS_")}
        watched = [] if profile is None else ["-m", "cProfile", "-o", str(profile)]
        self._process = subprocess.Popen(
            tied([sys.executable, *watched, "-m", "gateway", "serve"], signal.SIGKILL),
            cwd=ROOT,
            env={**others, **own, **settings},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url, self.admin_url = self._ready()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def _ready(self) -> tuple[str, str]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], READY_S)
        line = self._process.stdout.readline() if ready else ""
        found = re.search(r"url=\S*?//(\S+) admin=(\S+)", line)
        if found is None:
            self._process.kill()
            self._process.wait()
            raise HarnessError(f"the node did not get ready: {line!r}")
        return f"ws://{found[1]}", found[2]

    def stop(self) -> None:
        """Let it drain."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one load came to.

    Attributes:
        events: how many were asked for.
        rate: the rate that was asked for, events/s.
        seconds: from the first publish to the arrival of the last event.
        latency_ms: from publish to client: `p50`, `p99`, `p999`, `most`.
        cpu_ns: CPU time by process.
        faults: what did not go as it must.
    """

    events: int
    rate: float
    seconds: float
    latency_ms: dict[str, float]
    cpu_ns: dict[str, int]
    faults: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Whether all that was sent came and was acked, at the rate that was asked for."""
        return not self.faults and self.seconds <= self.events / self.rate + LATE_S

    def cpu_us(self, *processes: str) -> float:
        """CPU time an event of some of the processes."""
        return per_event_us(sum(self.cpu_ns[name] for name in processes), self.events)


class World:
    """Everything that a load needs.

    Args:
        binary: the server.
        users: most users.
        settings: see `NodeProcess`.
        profile: see `NodeProcess`.
    """

    def __init__(
        self,
        binary: ServerBinary,
        users: int,
        *,
        settings: Mapping[str, str] | None = None,
        profile: Path | None = None,
    ) -> None:
        self._stack = ExitStack()
        self.users = users
        self._profile = profile
        try:
            directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="eventbus-bench-")))
            # As it is to be run (docs/redis.md): what was written is on the disk a second later.
            self.server = self._stack.enter_context(
                EmbeddedServer(directory / "server", binary=binary, appendonly=True, appendfsync="everysec")
            )
            self.node = NodeProcess(self.server.url, directory, settings or {}, profile)
            self._stack.callback(self.node.stop)
            self.client = self._stack.enter_context(Role("client"))
            self.publisher = self._stack.enter_context(Role("publisher"))
            self.raw = self._stack.enter_context(Raw(self.server.url))
            self.client.ask("make", users=users, secret=self.node.secret)
            self.publisher.ask("open", url=self.server.url, users=users)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if self._profile is not None and self._profile.exists():
            pstats.Stats(str(self._profile)).sort_stats("tottime").print_stats(40)

    def connect(self, sessions: int, at_once: int = 100) -> float:
        """Open sessions; returns how long it took, in seconds."""
        answer = self.client.ask("connect", url=self.node.url, users=sessions, at_once=at_once)
        return float(answer["seconds"])

    def cpu(self) -> dict[str, int]:
        """CPU time so far, by process."""
        pids = {
            "node": self.node.pid,
            "server": self.server.pid,
            "publisher": self.publisher.pid,
            "client": self.client.pid,
        }
        return {name: cpu_ns(pid) for name, pid in pids.items()}

    def load(self, rate: float, events: int, body_bytes: int = EVENT_BYTES, *, spare_s: float = 10.0) -> Load:
        """Publish at a rate to all users in turn, and wait until every event has arrived and is acked.

        Args:
            rate: events/s.
            events: how many.
            body_bytes: of each, in the stream.
            spare_s: how much longer than twice its time at that rate it may take.

        Raises:
            HarnessError: it took longer.
        """
        acked_before = self.raw.acked(self.users)
        times_before = self.raw.command_times()
        self.client.ask("expect", events=events)
        before = self.cpu()
        self.publisher.tell("publish", rate=rate, events=events, body_bytes=body_bytes)
        # A rate that is far too high is found out without waiting for all of it.
        patience_s = 2 * events / rate + spare_s
        got = self._result(patience_s)
        sent = self.publisher.answer(patience_s)
        after = self.cpu()
        faults = [*got["wrong"], *sent["errors"]]
        # What is late is waited for, for it must not come in the next load.
        late = got["received"] < events
        acked = self._acked(acked_before + events, LATE_WAIT_S if late else ACKED_S) - acked_before
        if not (events == sent["stored"] == got["received"] == acked):
            counts = f"stored {sent['stored']}, received {got['received']}, acked {acked}"
            faults.append(f"of {events} events at {rate:,.0f}/s: {counts}")
        if got["lost_connections"]:
            faults.append(f"{got['lost_connections']} connections were lost")
        if self._profile is not None:
            self._show_commands(times_before, events)
        return Load(
            events=events,
            rate=rate,
            seconds=(got["reached_ns"] - sent["began_ns"]) / 1e9,
            latency_ms=got["latency_ms"],
            cpu_ns={name: after[name] - before[name] for name in after},
            faults=faults,
        )

    def _result(self, patience_s: float) -> dict[str, Any]:
        self.client.tell("result", timeout_s=patience_s)
        return self.client.answer(patience_s + 5)

    def _acked(self, wanted: int, wait_s: float) -> int:
        """What is acked, once it is as much as wanted or stays at less."""
        deadline = time.monotonic() + wait_s
        acked = self.raw.acked(self.users)
        while acked < wanted and time.monotonic() < deadline:
            time.sleep(0.02)
            acked = self.raw.acked(self.users)
        return acked

    def _show_commands(self, before: dict[str, tuple[int, int]], events: int) -> None:
        after = self.raw.command_times()
        spent = {
            name: (calls - before.get(name, (0, 0))[0], usec - before.get(name, (0, 0))[1])
            for name, (calls, usec) in after.items()
        }
        print("what the server's commands cost (those in scripts count in evalsha too):")
        for name, (calls, usec) in sorted(spent.items(), key=lambda item: -item[1][1])[:16]:
            print(f"  {name:20} {calls / events:6.2f} calls and {usec / events:6.2f} us an event")
