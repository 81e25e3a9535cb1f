"""A client of Server-Sent Events that reads when the test says so, and keeps what an EventSource would."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import orjson

READ_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `id` and `retry_ms` are None where it says nothing of them."""

    event: str
    data: dict[str, Any]
    id: str | None
    retry_ms: int | None


class SseClient:
    """One response.

    Attributes:
        status: of the response.
        headers: names in lower case.
        comments: how many comments came.
        seen: the messages so far.
        last_event_id: what an EventSource would say when it comes back.
        body: of a response that is no event stream.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._lines = b""
        self._over = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self.comments = 0
        self.seen: list[Message] = []
        self.last_event_id: str | None = None
        self.body: Any = None

    async def begin(self, head: bytes) -> None:
        """Asks, and reads the head of the answer."""
        self._writer.write(head)
        async with asyncio.timeout(READ_TIMEOUT_S):
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        for line in lines[1:]:
            name, _, value = line.partition(": ")
            if name:
                self.headers[name.lower()] = value
        if not head.startswith(b"HEAD") and self.headers.get("content-type") == "application/json":
            self.body = orjson.loads(await self._reader.readexactly(int(self.headers["content-length"])))

    async def next(self) -> Message:
        """The next message; the end of the response fails the test."""
        message = await self._next()
        assert message is not None, f"the response ended after {self.seen[-3:]}"
        return message

    async def expect(self, event: str, **data: Any) -> Message:
        """The next message, which must be of this type and have these fields."""
        message = await self.next()
        assert message.event == event, message
        assert {name: message.data.get(name) for name in data} == data, message
        return message

    async def until_event(self, event: str) -> Message:
        """The next message of this type; others before it are only kept."""
        while (message := await self.next()).event != event:
            pass
        return message

    async def deliveries(self, count: int) -> list[dict[str, Any]]:
        """The next `count` events; another message fails the test."""
        return [(await self.delivery()) for _ in range(count)]

    async def delivery(self) -> dict[str, Any]:
        """The next event: `{id, delivery, event}`."""
        message = await self.expect("events")
        (item,) = message.data["events"]
        assert message.id == item["id"]
        found: dict[str, Any] = item
        return found

    async def until_comments(self, count: int) -> None:
        """Reads until so many comments have come; a message fails the test."""
        while self.comments < count:
            line = await self._line()
            assert line in (b":", b""), line

    async def until_closed(self) -> Message:
        """The last message; checks that the response ends behind it."""
        message = await self.until_event("close")
        assert await self._next() is None, "something came behind the last message"
        return message

    async def gone(self) -> None:
        """Waits until the connection ends, however it does."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            async with asyncio.timeout(READ_TIMEOUT_S):
                while await self._reader.read(65_536):
                    pass

    async def _next(self) -> Message | None:
        fields: dict[str, str] = {}
        while (line := await self._line()) is not None:
            if line == b"":
                if "data" in fields:
                    return self._keep(fields)
                fields.clear()
            elif not line.startswith(b":"):
                name, _, value = line.decode().partition(": ")
                assert name not in fields, "a field is there twice"
                fields[name] = value
        assert not fields, f"the response ended within a message: {fields}"
        return None

    def _keep(self, fields: dict[str, str]) -> Message:
        assert set(fields) <= {"event", "data", "id", "retry"}, fields
        retry = fields.get("retry")
        data = orjson.loads(fields["data"])
        message = Message(fields["event"], data, fields.get("id"), None if retry is None else int(retry))
        self.seen.append(message)
        if message.id is not None:
            self.last_event_id = message.id
        return message

    async def _line(self) -> bytes | None:
        while (end := self._lines.find(b"\n")) < 0:
            chunk = await self._chunk()
            if chunk is None:
                assert not self._lines, f"the response ended within a line: {self._lines!r}"
                return None
            self._lines += chunk
        line, self._lines = self._lines[:end], self._lines[end + 1 :]
        if line.startswith(b":"):
            self.comments += 1
        return line

    async def _chunk(self) -> bytes | None:
        """The next piece of the body; None at its end."""
        if self._over:
            return None
        async with asyncio.timeout(READ_TIMEOUT_S):
            if "content-length" in self.headers:
                self._over = True
                return await self._reader.readexactly(int(self.headers["content-length"]))
            assert self.headers["transfer-encoding"] == "chunked"
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            data = await self._reader.readexactly(size + 2)
        self._over = size == 0
        return data[:-2] or None


@asynccontextmanager
async def sse(
    port: int,
    token: str | None = None,
    *,
    query: str = "?session=tab",
    method: str = "GET",
    deaf: bool = False,
    **headers: str | None,
) -> AsyncIterator[SseClient]:
    """A response of `/v1/sse`; `_` in names of headers is `-`.

    Args:
        port: of the node on this machine.
        token: goes into the Authorization header.
        query: of the URL.
        method: of the request.
        deaf: little is taken before the test reads.
        headers: further ones; None leaves one out.
    """
    fields: dict[str, str | None] = {"host": f"127.0.0.1:{port}", "accept": "text/event-stream", **headers}
    if token is not None:
        fields["authorization"] = f"Bearer {token}"
    lines = [
        f"{method} /v1/sse{query} HTTP/1.1",
        *(f"{key.replace('_', '-')}: {fields[key]}" for key in fields if fields[key]),
    ]
    sock = socket.socket()
    sock.setblocking(False)
    if deaf:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=2_048 if deaf else 2**16)
    client = SseClient(reader, writer)
    try:
        await client.begin("\r\n".join(lines).encode() + b"\r\n\r\n")
        yield client
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()
