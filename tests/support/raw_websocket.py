"""A WebSocket client that can do everything wrong, and what stands on the other side of it: handlers and transports."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from struct import pack
from typing import Any

from gateway.transport.handshake import Accept, Decision, Gatekeeper, Subprotocol, UpgradeRequest
from gateway.transport.listener import Listener, ListenerSettings, serve
from gateway.transport.websocket import Connection

TEXT, BINARY, CONT, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
READ_TIMEOUT_S = 10.0
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def client_frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, rsv: int = 0) -> bytes:
    """Build one frame as a client sends it, legal or not."""
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if masked else 0
    length = len(payload)
    if length < 126:
        head += bytes([bit | length])
    elif length < 65536:
        head += pack("!BH", bit | 126, length)
    else:
        head += pack("!BQ", bit | 127, length)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    repeated = (mask * (length // 4 + 1))[:length]
    return head + mask + (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(length, "big")


def split_server_frames(data: bytes) -> list[tuple[int, bytes]]:
    """Cut what a server sent into (opcode, payload); each is one whole frame, not masked, with no reserved bit."""
    frames, at = [], 0
    while at < len(data):
        assert data[at] & 0xF0 == 0x80
        length, size = data[at + 1], 2
        if length == 126:
            length, size = int.from_bytes(data[at + 2 : at + 4], "big"), 4
        elif length == 127:
            length, size = int.from_bytes(data[at + 2 : at + 10], "big"), 10
        frames.append((data[at] & 0x0F, data[at + size : at + size + length]))
        assert at + size + length <= len(data), "an incomplete frame"
        at += size + length
    return frames


def upgrade_head(path: str = "/v1/connect", *, method: str = "GET", **headers: str | None) -> bytes:
    """The head of an upgrade request; a header given as None is left out, `_` in names is `-`."""
    fields: dict[str, str | None] = {
        "host": "localhost",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-key": KEY,
        "sec-websocket-version": "13",
    }
    fields.update({name.replace("_", "-").lower(): value for name, value in headers.items()})
    lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value is not None]
    return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode()


class RawClient:
    """A TCP connection with helpers for HTTP and WebSocket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def write(self, *pieces: bytes) -> None:
        self.writer.write(b"".join(pieces))

    def frame(self, opcode: int, payload: bytes = b"", **how: Any) -> None:
        self.write(client_frame(opcode, payload, **how))

    async def head(self) -> str:
        """The head of a response."""
        async with asyncio.timeout(READ_TIMEOUT_S):
            return (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")

    async def response(self) -> tuple[int, str, bytes]:
        """A response with a content-length: status, head, body."""
        head = await self.head()
        length = next((int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:")), 0)
        async with asyncio.timeout(READ_TIMEOUT_S):
            body = await self.reader.readexactly(length)
        return int(head.split(" ")[1]), head, body

    async def upgrade(self, path: str = "/v1/connect", **headers: str | None) -> str:
        """Open the socket; the head of the 101."""
        self.write(upgrade_head(path, method="GET", **headers))
        head = await self.head()
        assert head.startswith("HTTP/1.1 101 "), head
        return head

    async def read_frame(self) -> tuple[int, bytes]:
        """The next frame: opcode and payload."""
        async with asyncio.timeout(READ_TIMEOUT_S):
            first, length = await self.reader.readexactly(2)
            assert first & 0xF0 == 0x80
            if length == 126:
                length = int.from_bytes(await self.reader.readexactly(2), "big")
            elif length == 127:
                length = int.from_bytes(await self.reader.readexactly(8), "big")
            return first & 0x0F, await self.reader.readexactly(length)

    async def read_close(self) -> tuple[int | None, str]:
        """Skip to the close frame: its code and reason."""
        while True:
            opcode, payload = await self.read_frame()
            if opcode == CLOSE:
                return (int.from_bytes(payload[:2], "big"), payload[2:].decode()) if payload else (None, "")

    async def read_all(self) -> bytes:
        """Everything until the server hangs up; empty when it reset the connection."""
        async with asyncio.timeout(READ_TIMEOUT_S):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    def cut(self) -> None:
        """Reset the connection."""
        self.writer.transport.abort()


@asynccontextmanager
async def connected(port: int, **options: Any) -> AsyncIterator[RawClient]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


class Recorder:
    """A handler that writes down what it gets."""

    def __init__(self, react: Callable[[Connection, bytes], None] | None = None) -> None:
        self.connection: Connection | None = None
        self.messages: list[bytes] = []
        self.closes: list[tuple[int, str]] = []
        self.writable = 0
        self.react = react

    @property
    def open(self) -> Connection:
        assert self.connection is not None
        return self.connection

    def on_open(self, connection: Connection) -> None:
        assert self.connection is None
        self.connection = connection

    def on_message(self, payload: bytes) -> None:
        assert isinstance(payload, bytes)
        assert not self.closes
        self.messages.append(payload)
        if self.react is not None:
            self.react(self.open, payload)

    def on_writable(self) -> None:
        self.writable += 1

    def on_close(self, code: int, reason: str) -> None:
        self.closes.append((code, reason))


class Door:
    """A gatekeeper that lets everybody in, to a recorder of their own."""

    def __init__(self, react: Callable[[Connection, bytes], None] | None = None) -> None:
        self.requests: list[UpgradeRequest] = []
        self.handlers: list[Recorder] = []
        self._react = react

    def decide(self, request: UpgradeRequest) -> Decision:
        self.requests.append(request)
        self.handlers.append(Recorder(self._react))
        return Accept(handler=self.handlers[-1])


async def no_application(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI application of tests that want none."""
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def listening(gatekeeper: Gatekeeper, app: Any = no_application, **settings: Any) -> AsyncIterator[Listener]:
    """A listener on a free port; its connections are gone at the end."""
    listener = await serve(app, gatekeeper, settings=ListenerSettings(**settings))
    try:
        yield listener
    finally:
        await listener.stop()
        for connection in list(listener.sockets.connections):
            connection.abort()
        assert await listener.sockets.wait_closed(5_000)


class FakeTransport(asyncio.Transport):
    """A transport whose peer reads when the test says so."""

    def __init__(self, *, buffer: bool = False) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.buffered = 0
        self.ended: str | None = None
        self.eof = False
        self.reading = True
        self.buffering = buffer

    def write(self, data: Any) -> None:
        assert not self.eof
        assert data
        self.writes.append(bytes(data))
        if self.buffering:
            self.buffered += len(data)

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.ended is not None

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def abort(self) -> None:
        self.ended = "aborted"

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        return split_server_frames(b"".join(self.writes))


def request(subprotocol: Subprotocol = Subprotocol.JSON) -> UpgradeRequest:
    """An upgrade request as the listener makes it."""
    return UpgradeRequest(
        path="/v1/connect",
        query="",
        headers={},
        offered=(subprotocol.value,),
        subprotocol=subprotocol,
        peer="192.0.2.1",
        client="192.0.2.1",
        scheme="http",
    )
