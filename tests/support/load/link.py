"""A lean WebSocket client connection: the handshake, whole text frames, pings answered. JSON in, JSON out.

It shares no code with the node, and hands on everything that comes, so what it reports can be believed.
"""

from __future__ import annotations

import asyncio
from struct import pack, unpack_from
from typing import Any, Protocol

import orjson

_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10
_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ABNORMAL = 1006


class LinkOwner(Protocol):
    """Who is told."""

    def link_open(self, link: Link) -> None:
        """The handshake is through."""

    def link_frame(self, link: Link, frame: dict[str, Any]) -> None:
        """A frame of the protocol came."""

    def link_over(self, link: Link, code: int, reason: str) -> None:
        """The connection is over: a close code, an HTTP status, or 1006."""


class Link(asyncio.Protocol):
    """One connection; make it with `loop.create_connection`.

    Attributes:
        heard: loop time of the last bytes.
    """

    def __init__(self, owner: LinkOwner, token: str, path: str = "/v1/connect") -> None:
        self._owner = owner
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {_KEY}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: eventbus.v1.json\r\n"
            f"Authorization: Bearer {token}\r\n\r\n"
        ).encode()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._open = False
        self._code, self._reason = ABNORMAL, ""
        self.over = False
        self.heard = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.heard = self._loop.time()
        self._buffer += data
        if not self._open:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            status = int(head.split(b" ", 2)[1])
            if status != 101:
                self._code, self._reason = status, rest.decode(errors="replace")[:200]
                self.abort()
                return
            self._open, self._buffer = True, rest
            self._owner.link_open(self)
        self._frames()

    def _frames(self) -> None:
        buffer, at = self._buffer, 0
        while len(buffer) - at >= 2 and not self.over:
            opcode, length, size = buffer[at] & 0x0F, buffer[at + 1], 2
            if length == 126:
                if len(buffer) - at < 4:
                    break
                (length,), size = unpack_from("!H", buffer, at + 2), 4
            elif length == 127:
                if len(buffer) - at < 10:
                    break
                (length,), size = unpack_from("!Q", buffer, at + 2), 10
            end = at + size + length
            if len(buffer) < end:
                break
            assert buffer[at] & 0xF0 == 0x80, "a node sends whole frames without extensions"
            self._frame(opcode, buffer[at + size : end])
            at = end
        self._buffer = buffer[at:]

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == _TEXT:
            self._owner.link_frame(self, orjson.loads(payload))
        elif opcode == _PING:
            self._write(_PONG, payload)
        elif opcode == _CLOSE:
            if len(payload) >= 2:
                self._code, self._reason = int.from_bytes(payload[:2]), payload[2:].decode(errors="replace")
            self._write(_CLOSE, payload[:2])
            if self._transport is not None:
                self._transport.close()

    def send(self, frame: dict[str, Any]) -> None:
        """Sends a frame of the protocol; nothing happens when the connection is over."""
        self._write(_TEXT, orjson.dumps(frame))

    def send_raw(self, payload: bytes) -> None:
        """Sends a text frame as it stands."""
        self._write(_TEXT, payload)

    def _write(self, opcode: int, payload: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        length = len(payload)
        head = (
            bytes([0x80 | opcode, 0x80 | length]) if length < 126 else bytes([0x80 | opcode, 0xFE]) + pack("!H", length)
        )
        # The mask key 0 is a legal one and leaves the payload as it is.
        self._transport.write(head + b"\0\0\0\0" + payload)

    def pause(self) -> None:
        """Reads nothing any more."""
        if self._transport is not None and not self.over:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Reads again."""
        if self._transport is not None and not self.over:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Ends the connection without a word."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over:
            self.over = True
            self._owner.link_over(self, self._code, self._reason)
