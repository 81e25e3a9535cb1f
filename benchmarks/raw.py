"""A connection to the server with nothing around it: the floor is measured with it, and the server is asked by it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, Self
from urllib.parse import urlsplit

import hiredis

from eventbus.config import StoreSettings
from eventbus.ids import UserId
from eventbus.store.command import pack
from eventbus.store.keys import Keys

__all__ = ["Raw"]


class Raw:
    """A blocking connection.

    Args:
        url: `redis://host:port/0`.
    """

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname, address.port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def pipeline(self, commands: Sequence[tuple[str | bytes | int, ...]]) -> list[Any]:
        """Send commands in one write and read their answers; an error that is an answer stands for it."""
        self._socket.sendall(b"".join(map(pack, commands)))
        answers: list[Any] = []
        while len(answers) < len(commands):
            answer = self._reader.gets()
            while answer is not False:
                answers.append(answer)
                answer = self._reader.gets()
            if len(answers) < len(commands):
                data = self._socket.recv(1 << 18)
                if not data:
                    raise ConnectionError("the server has closed the connection")
                self._reader.feed(data)
        return answers

    def acked(self, users: int) -> int:
        """How many entries the sessions of the first `users` users have read and acked, as the server has it."""
        settings = StoreSettings()
        keys = Keys(settings.namespace, settings.partitions)
        total = 0
        for start in range(0, users, 1000):
            names = [UserId(f"user{number}") for number in range(start, min(users, start + 1000))]
            for groups in self.pipeline([("XINFO", "GROUPS", keys.user(name).stream) for name in names]):
                for flat in groups if isinstance(groups, list) else ():
                    group = dict(zip(flat[::2], flat[1::2], strict=True))
                    total += int(group[b"entries-read"] or 0) - int(group[b"pending"])
        return total

    def command_times(self) -> dict[str, tuple[int, int]]:
        """Calls and microseconds of each command so far."""
        (text,) = self.pipeline([("INFO", "commandstats")])
        times = {}
        for line in text.decode().splitlines():
            name, _, rest = line.partition(":")
            if name.startswith("cmdstat_"):
                stats = dict(part.split("=") for part in rest.split(","))
                times[name.removeprefix("cmdstat_")] = (int(stats["calls"]), int(stats["usec"]))
        return times

    def memory_bytes(self) -> int:
        """What the server has allocated."""
        (text,) = self.pipeline([("INFO", "memory")])
        return int(next(line for line in text.decode().splitlines() if line.startswith("used_memory:")).split(":")[1])
