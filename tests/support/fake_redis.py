"""A server that speaks Redis's protocol and says what the test tells it: what no real one says when it is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Self

import hiredis

from eventbus.store.topology import SLOTS, Address

__all__ = ["FakeRedis", "FakeSentinel", "map_of"]

Words = list[bytes]


class FakeRedis:
    """Listens on a free port of the loopback address.

    Attributes:
        run_id, replication_id, role, mode: what INFO tells.
        map: the answer to CLUSTER SLOTS.
        epoch, own_epoch: of the cluster and of this primary, in CLUSTER INFO.
        errors: what the next commands with a key are refused with.
        log: the commands that came, but for those of a greeting.
        silent: it answers nothing more.
        slow: it keeps its answers back, until `release`.
        connections: how many were made.
        numbers_told: how often CLUSTER INFO was asked.
    """

    def __init__(self, run_id: str, *, role: str = "master", mode: str = "standalone") -> None:
        self.run_id, self.role, self.mode = run_id, role, mode
        self.replication_id = ""
        self.map: Sequence[Any] = ()
        self.epoch = self.own_epoch = 1
        self.errors: list[str] = []
        self.log: list[Words] = []
        self.silent = False
        self.slow = False
        self.numbers_told = 0
        self._kept_back: list[tuple[asyncio.StreamWriter, bytes]] = []
        self.connections = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._listening: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def address(self) -> Address:
        return Address(host="127.0.0.1", port=self._port)

    @property
    def url(self) -> str:
        return f"redis://{self.address}/0"

    def names(self) -> list[str]:
        """The names of the commands that came."""
        return [words[0].decode() for words in self.log]

    async def start(self) -> None:
        """Listen; again on the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)
        self._writers.clear()
        self._listening.clear()
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    def release(self) -> None:
        """Give the answers that were kept back, and no longer be slow."""
        self.slow = False
        for writer, answer in self._kept_back:
            writer.write(answer)
        self._kept_back.clear()

    def push(self, *words: str | int) -> None:
        """Say something on all subscriptions."""
        for writer in self._listening:
            writer.write(_packed(list(words)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self.connections += 1
        parser = hiredis.Reader()
        try:
            while data := await reader.read(65_536):
                parser.feed(data)
                words = parser.gets()
                while words is not False:
                    answer = self._answer(words, writer)
                    if self.slow:
                        self._kept_back.append((writer, answer))
                    elif not self.silent:
                        writer.write(answer)
                    words = parser.gets()
        except ConnectionError:
            pass

    def _answer(self, words: Words, writer: asyncio.StreamWriter) -> bytes:
        match [word.upper() for word in words[:2]]:
            case [b"SCRIPT", b"LOAD"] | [b"CLIENT", b"SETNAME"] | [b"AUTH", _] | [b"SELECT", _]:
                return b"+OK\r\n"
            case [b"PING", *_]:
                return b"+PONG\r\n"
            case [b"INFO", *_]:
                replication = f"role:{self.role}\r\nmaster_replid:{self.replication_id}\r\n"
                return _packed(f"run_id:{self.run_id}\r\nredis_mode:{self.mode}\r\n{replication}")
            case [b"CLUSTER", b"SLOTS"]:
                return _packed(self.map)
            case [b"CLUSTER", b"INFO"]:
                self.numbers_told += 1
                epochs = f"cluster_current_epoch:{self.epoch}\r\ncluster_my_epoch:{self.own_epoch}\r\n"
                return _packed(f"cluster_state:ok\r\n{epochs}")
        self.log.append(words)
        if words[0] == b"ASKING":
            return b"+OK\r\n"
        if self.errors:
            return f"-{self.errors.pop(0)}\r\n".encode()
        if words[0] in (b"SUBSCRIBE", b"SSUBSCRIBE"):
            self._listening.append(writer)
            return b"".join(_packed([words[0].decode().lower(), word.decode(), 1]) for word in words[1:])
        return self.answer(words)

    def answer(self, words: Words) -> bytes:
        """The answer to a command with a key: who gave it."""
        return _packed(self.run_id)


class FakeSentinel(FakeRedis):
    """A Sentinel that names a primary, and counts failovers."""

    def __init__(self) -> None:
        super().__init__("sentinel", mode="sentinel")
        self.primary: Callable[[], Address] = lambda: self.address
        self.failovers = 0

    def answer(self, words: Words) -> bytes:
        named = self.primary()
        if words[2] != b"main":
            return b"-ERR No such master with that name\r\n" if words[1] == b"MASTER" else b"*-1\r\n"
        if words[1] == b"MASTER":
            return _packed(["name", "main", "config-epoch", str(self.failovers)])
        return _packed([named.host, str(named.port)])


def map_of(*owners: FakeRedis) -> Sequence[Any]:
    """The answer to CLUSTER SLOTS of servers that share the slots equally."""
    share = SLOTS // len(owners)
    bounds = [(n * share, SLOTS - 1 if n == len(owners) - 1 else (n + 1) * share - 1) for n in range(len(owners))]
    return [
        [low, high, [owner.address.host, owner.address.port, owner.run_id]]
        for (low, high), owner in zip(bounds, owners, strict=True)
    ]


def _packed(value: Any) -> bytes:
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, str):
        raw = value.encode()
        return b"$%d\r\n%s\r\n" % (len(raw), raw)
    return b"*%d\r\n" % len(value) + b"".join(map(_packed, value))
