"""The client's half of WebSocket framing, as little of it as a benchmark needs. Pure.

Lean, so that the harness costs less than what it measures: a frame is masked with zeros, which the protocol allows and
which saves the client the work while the node unmasks all the same; frames are not fragmented, for no node sends such.
"""

from __future__ import annotations

from base64 import b64encode
from struct import pack

__all__ = ["PING", "TEXT", "client_frame", "next_frame", "pong_frame", "upgrade_request"]

TEXT = 0x81
PING = 0x89

_PONG = 0x8A
_ZEROS = b"\0\0\0\0"


def upgrade_request(host: str, token: str) -> bytes:
    """The request for a WebSocket with the JSON subprotocol."""
    key = b64encode(bytes(16)).decode()
    return (
        f"GET /v1/connect HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: eventbus.v1.json\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    ).encode()


def client_frame(payload: bytes, first: int = TEXT) -> bytes:
    """A whole frame of a client, masked with zeros. Source: RFC 6455, section 5.2."""
    size = len(payload)
    if size < 126:
        return bytes((first, 0x80 | size)) + _ZEROS + payload
    if size < 65536:
        return bytes((first, 0xFE)) + pack("!H", size) + _ZEROS + payload
    return bytes((first, 0xFF)) + pack("!Q", size) + _ZEROS + payload


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping."""
    return client_frame(payload, _PONG)


def next_frame(data: bytes, start: int) -> tuple[int, int, int]:
    """Find the server's frame that begins at `start`.

    Returns:
        Its first byte, where its payload begins and where it ends; `(0, 0, 0)` when it is not all there.
    """
    available = len(data) - start
    if available < 2:
        return 0, 0, 0
    size, body = data[start + 1], start + 2
    if size == 126:
        if available < 4:
            return 0, 0, 0
        size, body = int.from_bytes(data[start + 2 : start + 4]), start + 4
    elif size == 127:
        if available < 10:
            return 0, 0, 0
        size, body = int.from_bytes(data[start + 2 : start + 10]), start + 10
    end = body + size
    return (data[start], body, end) if end <= len(data) else (0, 0, 0)
