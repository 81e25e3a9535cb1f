"""What waits to be written to one socket, and the frames it is made of. Pure: transports and clocks are arguments.

A server's frames are not masked, so a frame is built once and shared by all who get it. A connection collects its
frames in an `Outbox` and joins them once a turn of the loop: the system call is what a push costs, not the frame.
`Outbox.observe` tells how much waits and for how long nothing of it went away, by which a node recognises a slow
consumer.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import pack
from typing import Final

__all__ = [
    "Backlog",
    "Outbox",
    "TOO_LARGE",
    "binary_frame",
    "close_frame",
    "frame_size",
    "ping_frame",
    "pong_frame",
    "text_frame",
]

CONTROL_BYTES_MAX: Final = 125
"""The longest payload of a control frame. Source: RFC 6455, section 5.5."""

TOO_LARGE: Final = -1
"""What `frame_size` answers for a frame above the limit."""

_TEXT: Final = 0x81
_BINARY: Final = 0x82
_CLOSE: Final = 0x88
_PING: Final = 0x89
_PONG: Final = 0x8A
_MASK_BYTES: Final = 4
# Codes that name an absence and never stand in a frame. Source: RFC 6455, section 7.4.1.
_UNSENDABLE: Final = frozenset({1004, 1005, 1006, 1015})


def text_frame(payload: bytes) -> bytes:
    """Wrap a payload of UTF-8 into one whole text frame of a server. Source: RFC 6455, section 5.2."""
    return _frame(_TEXT, payload)


def binary_frame(payload: bytes) -> bytes:
    """Wrap a payload into one whole binary frame of a server. Source: RFC 6455, section 5.2."""
    return _frame(_BINARY, payload)


def ping_frame(payload: bytes = b"") -> bytes:
    """Build a ping.

    Raises:
        ValueError: the payload has more than 125 bytes.

    Source: RFC 6455, section 5.5.2.
    """
    return _control_frame(_PING, payload)


def pong_frame(payload: bytes = b"") -> bytes:
    """Build the answer to a ping: its payload again.

    Raises:
        ValueError: the payload has more than 125 bytes.

    Source: RFC 6455, section 5.5.3.
    """
    return _control_frame(_PONG, payload)


def close_frame(code: int | None, reason: str = "") -> bytes:
    """Build a close frame.

    Args:
        code: 1000 to 4999, without those that name an absence; None gives the empty frame.
        reason: short text; what does not fit into 123 bytes of UTF-8 is cut off between characters.

    Raises:
        ValueError: the code may not stand in a frame.

    Source: RFC 6455, section 5.5.1.
    """
    if code is None:
        return _control_frame(_CLOSE, b"")
    if not 1000 <= code <= 4999 or code in _UNSENDABLE:
        raise ValueError(f"close code {code} may not stand in a close frame; use 1000 to 4999")
    text = reason.encode("utf-8", "replace")[: CONTROL_BYTES_MAX - 2].decode("utf-8", "ignore")
    return _control_frame(_CLOSE, pack("!H", code) + text.encode())


def frame_size(data: bytes, start: int, payload_max: int) -> int:
    """Tell how many bytes the client's frame that begins at `start` has, header and mask included.

    Only the length is read; whether the frame is legal is for the parser, which gets whole frames by this. A frame
    without a mask is answered with the size of its header, so that the parser sees the violation before the payload
    comes.

    Args:
        data: what was received.
        start: where the frame begins.
        payload_max: the longest payload allowed, in bytes.

    Returns:
        The size in bytes; 0 when the header is not complete; `TOO_LARGE` when the payload is above the limit.

    Source: RFC 6455, section 5.2.
    """
    available = len(data) - start
    if available < 2:
        return 0
    second = data[start + 1]
    length = second & 0x7F
    header = 2
    if length > CONTROL_BYTES_MAX:
        header = 4 if length == CONTROL_BYTES_MAX + 1 else 10
        if available < header:
            return 0
        length = int.from_bytes(data[start + 2 : start + header], "big")
    if not second & 0x80:
        return header
    return TOO_LARGE if length > payload_max else header + _MASK_BYTES + length


def _frame(first: int, payload: bytes) -> bytes:
    length = len(payload)
    if length <= CONTROL_BYTES_MAX:
        return pack("!BB", first, length) + payload
    if length < 65536:
        return pack("!BBH", first, 126, length) + payload
    return pack("!BBQ", first, 127, length) + payload


def _control_frame(first: int, payload: bytes) -> bytes:
    if len(payload) > CONTROL_BYTES_MAX:
        raise ValueError(f"a control frame carries at most {CONTROL_BYTES_MAX} bytes, not {len(payload)}")
    return pack("!BB", first, len(payload)) + payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What waits for one client.

    Attributes:
        waiting_bytes: written by nobody yet, in the outbox and in the transport's buffer. The kernel's share is small
            and not counted.
        stalled_ms: for how long nothing of it went away; 0 when nothing waits.
    """

    waiting_bytes: int
    stalled_ms: int


class Outbox:
    """The frames of one connection that wait for the end of the loop's turn, or for room in its transport.

    Attributes:
        queued_bytes: the bytes of the waiting frames.
    """

    __slots__ = ("_drained_bytes", "_frames", "_progress_ms", "_taken_bytes", "queued_bytes")

    def __init__(self, now_ms: int) -> None:
        self._frames: list[bytes] = []
        self.queued_bytes = 0
        self._taken_bytes = 0
        self._drained_bytes = 0
        self._progress_ms = now_ms

    def __bool__(self) -> bool:
        return bool(self._frames)

    def append(self, frame: bytes) -> None:
        """Let a frame wait."""
        self._frames.append(frame)
        self.queued_bytes += len(frame)

    def take(self) -> bytes:
        """Give all that waits as one piece, to be handed to the transport; empty when nothing waits."""
        frames = self._frames
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        frames.clear()
        self._taken_bytes += len(data)
        self.queued_bytes = 0
        return data

    def drop(self) -> int:
        """Forget what waits: the connection ends, and what was not acked comes again on the next.

        Returns:
            How many bytes were forgotten.
        """
        dropped, self.queued_bytes = self.queued_bytes, 0
        self._frames.clear()
        return dropped

    def observe(self, transport_bytes: int, now_ms: int) -> Backlog:
        """Look whether something went away since the last look; called regularly, by whoever watches for slow
        consumers.

        Args:
            transport_bytes: what the transport holds of that which was taken.
            now_ms: monotonic.

        Returns:
            The backlog. `stalled_ms` counts from the last look that saw progress, so it is late by one interval at
            most.
        """
        waiting = self.queued_bytes + transport_bytes
        drained = self._taken_bytes - transport_bytes
        if not waiting or drained != self._drained_bytes:
            self._drained_bytes = drained
            self._progress_ms = now_ms
        return Backlog(waiting_bytes=waiting, stalled_ms=now_ms - self._progress_ms)
