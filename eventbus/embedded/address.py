"""Where a server listens: a port of the loopback or a Unix socket, in the words of its command line, of its clients
and of the kernel.
"""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from eventbus.embedded.programs import EmbeddedServerError

__all__ = ["Address", "Listen", "Port", "UnixSocket", "free_port"]

# sun_path is 108 bytes on Linux and 104 on macOS, with the closing NUL.
_LONGEST_SOCKET_PATH_BYTES = 103
_REQUEST_TIMEOUT_MS = 250


class Listen(Enum):
    """Where an embedded server listens; nothing but this machine can reach either."""

    TCP = "tcp"
    UNIX_SOCKET = "unix_socket"


class Address(ABC):
    """One of both."""

    @property
    @abstractmethod
    def words(self) -> tuple[str, ...]:
        """The command line arguments of a server that listens there."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The address for clients."""

    @abstractmethod
    def connect(self, timeout_ms: int) -> socket.socket:
        """Opens a connection that blocks for at most `timeout_ms` a call; raises OSError."""

    def answers(self, pid: int) -> bool:
        """Whether our process, and not a stranger on the same port, answers a PING."""
        try:
            with self.connect(_REQUEST_TIMEOUT_MS) as connection, connection.makefile("rwb") as stream:
                stream.write(b"PING\r\n")
                stream.flush()
                answer = stream.readline()
                if answer.startswith(b"-NOAUTH"):
                    return True
                # While the file is read it is -LOADING.
                if not answer.startswith(b"+PONG"):
                    return False
                stream.write(b"INFO server\r\n")
                stream.flush()
                header = stream.readline()
                if not header.startswith(b"$"):
                    return False
                return f"process_id:{pid}\r\n".encode() in stream.read(int(header[1:]))
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Port(Address):
    """A TCP port of 127.0.0.1."""

    number: int

    @property
    def words(self) -> tuple[str, ...]:
        return "--port", str(self.number), "--bind", "127.0.0.1"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.number}/0"

    def connect(self, timeout_ms: int) -> socket.socket:
        return _connect(socket.AF_INET, ("127.0.0.1", self.number), timeout_ms)


@dataclass(frozen=True, slots=True)
class UnixSocket(Address):
    """A Unix socket that only the server's user may open (mode 700).

    Raises:
        EmbeddedServerError: The path is longer than the kernel takes.
    """

    path: Path

    def __post_init__(self) -> None:
        length_bytes = len(os.fsencode(self.path))
        if length_bytes > _LONGEST_SOCKET_PATH_BYTES:
            raise EmbeddedServerError(
                f"{self.path} has {length_bytes} bytes; a Unix socket's path has "
                f"{_LONGEST_SOCKET_PATH_BYTES} at most. Use a shorter directory, or TCP."
            )

    @property
    def words(self) -> tuple[str, ...]:
        return "--port", "0", "--unixsocket", str(self.path), "--unixsocketperm", "700"

    @property
    def url(self) -> str:
        return f"unix://{self.path}?db=0"

    def connect(self, timeout_ms: int) -> socket.socket:
        return _connect(socket.AF_UNIX, str(self.path), timeout_ms)


def _connect(family: socket.AddressFamily, address: str | tuple[str, int], timeout_ms: int) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_ms / 1000)
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has right now; another process may take it before a server does."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
