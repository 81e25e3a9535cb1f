"""What websockets does for the node: the head of an upgrade request is checked, bytes are unmasked, and frames that are
not of the plain sort are parsed and judged. No other module of the node knows websockets.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, cast

from websockets.exceptions import (
    HeaderLineTooLong,
    PayloadTooBig,
    ProtocolError,
    RequestLineTooLong,
    TooManyHeaders,
)
from websockets.frames import Frame, Opcode
from websockets.frames import apply_mask as unmask  # type: ignore[attr-defined] # the fast one, where there is one
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from eventbus.errors import CloseCode
from gateway.transport.handshake import Reject, Subprotocol

__all__ = [
    "EMPTY_CLOSE",
    "Broken",
    "Frame",
    "FrameParser",
    "Handshake",
    "Opcode",
    "PeerClose",
    "read_handshake",
    "unmask",
]

# websockets logs payloads at DEBUG and each connection at INFO; neither is wanted in a node's log.
_parser_log: Final = logging.getLogger(f"{__name__}.parser")
_parser_log.setLevel(logging.WARNING)

EMPTY_CLOSE: Final = 1005
"""The code of a close frame that has none. Source: RFC 6455, section 7.1.5."""
_CONTROL_BYTES_MAX: Final = 125


@dataclass(frozen=True, slots=True)
class PeerClose:
    """The peer's close frame."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The peer broke the rules: what its socket is closed with."""

    code: CloseCode
    reason: str


class FrameParser:
    """Parses whole frames, one call each, and knows between them what of a fragmented message came.

    Args:
        limit: most bytes of a message.
    """

    __slots__ = ("_limit", "_protocol")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # A control frame between fragments counts against this limit, so the exact one is kept by who joins them.
        self._protocol = ServerProtocol(state=State.OPEN, max_size=limit + _CONTROL_BYTES_MAX, logger=_parser_log)

    def receive(self, data: bytes) -> Iterator[Frame | PeerClose | Broken]:
        """What a frame's bytes are; nothing comes behind a `Broken`."""
        protocol = self._protocol
        protocol.receive_data(data)
        error = protocol.parser_exc
        if error is not None:
            yield _verdict(error, self._limit)
            return
        for event in protocol.events_received():
            frame = cast(Frame, event)
            if frame.opcode is Opcode.CLOSE:
                close = protocol.close_rcvd
                yield PeerClose(EMPTY_CLOSE, "") if close is None else PeerClose(int(close.code), close.reason)
            else:
                yield frame


def _verdict(error: Exception, limit: int) -> Broken:
    """The close code and reason for what the parser found."""
    if isinstance(error, PayloadTooBig):
        return Broken(CloseCode.FRAME_TOO_LARGE, f"a message is longer than {limit} bytes")
    if isinstance(error, UnicodeDecodeError):
        return Broken(CloseCode.INVALID_DATA, "invalid UTF-8")
    return Broken(CloseCode.PROTOCOL_ERROR, str(error) if isinstance(error, ProtocolError) else "unreadable frame")


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshake:
    """A well-formed upgrade request as read from its head.

    Attributes:
        path: without the query.
        query: what stands behind the question mark.
        headers: names in lower case; repeated values joined.
        offered: the subprotocols in the client's order.
    """

    path: str
    query: str
    headers: dict[str, str]
    offered: tuple[str, ...]
    _response: Response = field(repr=False)

    def accepted(self, subprotocol: Subprotocol) -> bytes:
        """The 101 response; the subprotocol is named when the client offered it."""
        if subprotocol in self.offered:
            self._response.headers["Sec-WebSocket-Protocol"] = subprotocol.value
        return self._response.serialize()


def read_handshake(head: bytes) -> Handshake | Reject:
    """Check the head of an upgrade request. Extensions are not negotiated: compression costs more than it saves here.

    Args:
        head: the request with the empty line that ends it, and nothing behind.

    Returns:
        The handshake, or the refusal that fits what is wrong with the head.

    Source: RFC 6455, section 4.2.1.
    """
    parser = ServerProtocol(logger=_parser_log)
    parser.receive_data(head)
    events = parser.events_received()
    if not events:
        too_long = isinstance(parser.handshake_exc, RequestLineTooLong | HeaderLineTooLong | TooManyHeaders)
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if too_long else HTTPStatus.BAD_REQUEST
        return Reject(status=status, code="bad_request", message="the head of the request cannot be read")
    request = cast(Request, events[0])
    response = parser.accept(request)
    if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
        status = HTTPStatus(response.status_code)
        allow = (("Allow", "GET"),) if status is HTTPStatus.METHOD_NOT_ALLOWED else ()
        return Reject(status=status, code="bad_handshake", message=str(parser.handshake_exc), headers=allow)
    headers: dict[str, str] = {}
    for name, value in request.headers.raw_items():
        name = name.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    path, _, query = request.path.partition("?")
    offered = tuple(part for item in headers.get("sec-websocket-protocol", "").split(",") if (part := item.strip()))
    return Handshake(path=path, query=query, headers=headers, offered=offered, _response=response)
