"""What a WebSocket upgrade asks for and what may be answered. Pure: the shells are `upgrade`, `listener` and
`websocket`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from gateway.transport.sockets import Handler

__all__ = [
    "CONNECT_PATH",
    "Accept",
    "AcceptThenClose",
    "Decision",
    "Gatekeeper",
    "Reject",
    "Subprotocol",
    "UpgradeRequest",
    "choose_subprotocol",
]

CONNECT_PATH: Final = "/v1/connect"


class Subprotocol(StrEnum):
    """How frames are encoded on a connection. Source: docs/protocol.md, section 1."""

    JSON = "eventbus.v1.json"
    MSGPACK = "eventbus.v1.msgpack"


_SPOKEN: Final = {member.value: member for member in Subprotocol}


def choose_subprotocol(offered: Sequence[str]) -> Subprotocol | None:
    """Choose how frames are encoded: the first offer that the node speaks.

    A subprotocol that carries a bearer token is an offer like any other that is not spoken: it is never chosen, so
    never echoed.

    Args:
        offered: the client's subprotocols in its order.

    Returns:
        The choice, JSON when nothing was offered; None when only others were offered, which is HTTP 400.

    Source: docs/protocol.md, section 1.
    """
    if not offered:
        return Subprotocol.JSON
    return next((_SPOKEN[name] for name in offered if name in _SPOKEN), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeRequest:
    """A well-formed request to open a socket at `/v1/connect`.

    Attributes:
        path: without the query.
        query: what stands behind the question mark, still encoded; it may hold a ticket, so it never goes to a log.
        headers: names in lower case; values of a repeated header are joined by `, `.
        offered: the client's subprotocols in its order, the one with the bearer token included.
        subprotocol: the one chosen of them.
        peer: the address that the connection, or its PROXY header, came from.
        client: the address of the client itself, behind trusted proxies; the peer when there are none.
        scheme: `http` or `https`, as the client used it.
    """

    path: str
    query: str
    headers: Mapping[str, str]
    offered: tuple[str, ...]
    subprotocol: Subprotocol
    peer: str
    client: str
    scheme: str

    def header(self, name: str) -> str | None:
        """The value of a header by its name in lower case."""
        return self.headers.get(name)

    @property
    def origin(self) -> str | None:
        """The page's origin; None means that no browser asks."""
        return self.headers.get("origin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """Open the socket; `handler` gets all that comes, and its `on_close` in any case."""

    handler: Handler


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptThenClose:
    """Open the socket and close it at once: a browser can read a close code, and no status.

    Attributes:
        code: the close code.
        reason: short text.
        come_back_ms: what a `goaway` before the close tells the client to wait; None leaves that to the client.
    """

    code: int
    reason: str
    come_back_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Answer in HTTP, with the body `{"error": {"code", "message"}}`, and close."""

    status: int
    code: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()


Decision = Accept | AcceptThenClose | Reject


class Gatekeeper(Protocol):
    """Decides who gets a socket."""

    def decide(self, request: UpgradeRequest) -> Decision | Awaitable[Decision]:
        """Decide at once, or, where that needs I/O, by an awaitable.

        The awaitable is bounded in time and cancelled when the client leaves; what it holds is its own to release
        then. A handler that was given away by `Accept` gets its `on_close` in any case, without an `on_open` when the
        client has gone.

        Raises:
            EventBusError: becomes a 503 with its code; the request counts as refused.
        """
        ...
