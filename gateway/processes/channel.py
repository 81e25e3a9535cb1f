"""What a parent and its worker tell each other: JSON objects, one a line, over a pair of sockets that nobody else has.

The parent's end closes with the parent, however it ended: that is how a worker learns that it is alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from typing import Any, Final, Self

import orjson

__all__ = ["Channel"]

LINE_BYTES_MAX: Final = 4 * 1024 * 1024


class Channel:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, sock: socket.socket) -> Self:
        """Take a socket over. Cancellation leaves it to the caller."""
        sock.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=LINE_BYTES_MAX)
        return cls(reader, writer)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; into nothing when the other end has gone."""
        if not self._writer.is_closing():
            self._writer.write(orjson.dumps(message) + b"\n")

    async def receive(self) -> dict[str, Any] | None:
        """Wait for a message. Returns None when the other end has gone. Cancellation loses nothing."""
        try:
            line = await self._reader.readline()
        except (OSError, ValueError):  # ValueError: a line beyond the limit, which no other end of ours sends
            return None
        if not line.endswith(b"\n"):
            return None
        message = orjson.loads(line)
        return message if isinstance(message, dict) else None

    async def aclose(self) -> None:
        """Close this end."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
