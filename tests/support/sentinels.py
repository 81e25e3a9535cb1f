"""A primary, a replica and three Sentinels on the loopback, and what happens to such sets."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from eventbus.embedded import EmbeddedServer, ServerBinary, tied
from tests.support.clusters import refuse_replicas, replication_settings
from tests.support.places import Place
from tests.support.ports import free_port
from tests.support.resp import Refused, ask, info
from tests.support.servers import ServerPool, freeze, thaw
from tests.support.waiting import until_blocking

MASTER = "bus"
_QUORUM = 2
_MOST_MS = 20_000


class Sentinel:
    """One Sentinel process; it writes its own configuration, so a restart goes on with what it knew."""

    def __init__(self, directory: Path, binary: ServerBinary, port: int, lines: Sequence[str]) -> None:
        directory.mkdir(parents=True)
        self.port = port
        self._binary = binary
        self._directory = directory
        self._config = directory / "sentinel.conf"
        self._config.write_text("\n".join((f"port {port}", "bind 127.0.0.1", f"dir {directory}", *lines)) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, *words: str | bytes | int) -> Any:
        """As `resp.ask`."""
        return ask(self.port, *words)

    def start(self) -> None:
        """Starts it; returns when it answers."""
        command = tied([str(self._binary.path), str(self._config), "--sentinel"], signal.SIGTERM)
        with (self._directory / "sentinel.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def answers() -> bool:
            with contextlib.suppress(OSError):
                return bool(self.ask("PING") == b"PONG")
            return False

        until_blocking(answers, _MOST_MS, f"the Sentinel on {self.port} answers")
        with contextlib.suppress(Refused):
            # By default Sentinels look for replicas every ten seconds, and tell each other every two.
            self.ask("SENTINEL", "DEBUG", "INFO-PERIOD", 500, "PUBLISH-PERIOD", 200, "PING-PERIOD", 200)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class SentinelSet:
    """One primary, one replica and three Sentinels that watch them: made, harmed and mended.

    Args:
        directory: where all of them have theirs.
        binary: the server program.
        down_after_ms: after so long without a sign a server counts as down.
        extra: further arguments of both servers.
        appendonly: whether the servers have files.
    """

    def __init__(
        self,
        directory: Path,
        binary: ServerBinary,
        *,
        down_after_ms: int = 1_000,
        extra: Sequence[str] = (),
        appendonly: bool = True,
    ) -> None:
        self.servers = [
            EmbeddedServer(
                directory / f"server-{number}",
                binary=binary,
                port=free_port(),
                appendonly=appendonly,
                extra=(*replication_settings(), "--replica-priority", str(10 * (number + 1)), *extra),
            )
            for number in range(2)
        ]
        lines = (
            f"sentinel monitor {MASTER} 127.0.0.1 {self.servers[0].port} {_QUORUM}",
            f"sentinel down-after-milliseconds {MASTER} {down_after_ms}",
            f"sentinel failover-timeout {MASTER} 4000",
        )
        self.sentinels = [Sentinel(directory / f"sentinel-{number}", binary, free_port(), lines) for number in range(3)]

    @property
    def url(self) -> str:
        """Where clients ask who is primary."""
        return "redis+sentinel://" + ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels) + f"/{MASTER}/0"

    def start(self) -> None:
        """Starts all; returns when each Sentinel knows both servers and the other Sentinels."""
        first, second = self.servers
        first.start()
        second.start()
        ask(second.port, "REPLICAOF", "127.0.0.1", first.port)
        for sentinel in self.sentinels:
            sentinel.start()
        self.wait_ok()

    def kill_all(self) -> None:
        """SIGKILL to every process, frozen ones too."""
        for sentinel in self.sentinels:
            sentinel.kill()
        for server in self.servers:
            server.kill()

    @property
    def primary(self) -> EmbeddedServer:
        """The server that most Sentinels call the primary."""
        ports = [int(one.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)[1]) for one in self.sentinels]
        port = max(set(ports), key=ports.count)
        return next(server for server in self.servers if server.port == port)

    @property
    def place(self) -> Place:
        """Where the data lies, whoever is primary at the time."""
        return Place(lambda: [self.primary.url], lambda _key: self.primary.url)

    @property
    def replica(self) -> EmbeddedServer:
        """The other one."""
        primary = self.primary
        return next(server for server in self.servers if server is not primary)

    def wait_ok(self, timeout_ms: int = _MOST_MS) -> None:
        """Waits until all Sentinels agree, see each other, and the replica is in step."""

        def ok() -> bool:
            ports = set()
            for one in self.sentinels:
                reply = one.ask("SENTINEL", "MASTER", MASTER)
                told = dict(zip(reply[::2], reply[1::2], strict=True))
                if told[b"num-other-sentinels"] != b"2" or told[b"num-slaves"] != b"1" or told[b"flags"] != b"master":
                    return False
                ports.add(int(told[b"port"]))
            if len(ports) != 1:
                return False
            for server in self.servers:
                found = info(server.port, "replication")
                if found["role"] == ("slave" if server.port in ports else "master"):
                    return False
                if found["role"] == "slave" and found["master_link_status"] != "up":
                    return False
            return True

        def settled() -> bool:
            with contextlib.suppress(OSError, Refused):
                return ok()
            return False

        until_blocking(settled, timeout_ms, "the Sentinels and their servers are in order")

    def promoted(self, server: EmbeddedServer, timeout_ms: int = _MOST_MS) -> int:
        """Waits until a server is the primary in its own eyes. Returns the moment, `time.monotonic_ns` in ms."""

        def primary() -> bool:
            with contextlib.suppress(OSError, Refused):
                return info(server.port, "replication")["role"] == "master"
            return False

        until_blocking(primary, timeout_ms, "the replica is promoted")
        return time.monotonic_ns() // 1_000_000

    def fail_over(self) -> int:
        """SENTINEL FAILOVER: returns when the replica is the primary, as `promoted`."""
        replica = self.replica
        self.sentinels[0].ask("SENTINEL", "FAILOVER", MASTER)
        return self.promoted(replica)

    def refuse_replicas(self) -> None:
        """The replica is cut off, and nobody notices."""
        refuse_replicas(self.primary.port)

    def freeze(self, server: EmbeddedServer) -> None:
        """A server stands still."""
        freeze(server.pid)

    def thaw(self, server: EmbeddedServer) -> None:
        """Ends `freeze`."""
        thaw(server.pid)


NewSentinels = Callable[..., SentinelSet]


@pytest.fixture
def new_sentinels(tmp_path: Path, server_pool: ServerPool) -> Iterator[NewSentinels]:
    """Makes and starts sets of the test's own: `new_sentinels(kind="redis", down_after_ms=500)`."""
    made: list[SentinelSet] = []

    def make(kind: str | None = None, **settings: Any) -> SentinelSet:
        binary = server_pool.preferred() if kind is None else server_pool.binary(kind)
        sentinels = SentinelSet(tmp_path / f"sentinels-{len(made)}", binary, **settings)
        made.append(sentinels)
        sentinels.start()
        return sentinels

    yield make
    for sentinels in made:
        sentinels.kill_all()
