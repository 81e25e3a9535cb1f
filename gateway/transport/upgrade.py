"""From the head of an upgrade request to an open socket, or to a refusal.

The decision may need I/O. Meanwhile a bounded number of bytes is kept for the socket, the wait has a bound, and a
client that leaves takes the decision with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import orjson

from eventbus.clock import seconds
from eventbus.errors import CloseCode, EventBusError
from eventbus.wire import GoAway, GoAwayReason
from gateway.access.proxy import Trusted, client_address, forwarded_scheme
from gateway.transport.handshake import (
    CONNECT_PATH,
    Accept,
    AcceptThenClose,
    Decision,
    Gatekeeper,
    Reject,
    Subprotocol,
    UpgradeRequest,
    choose_subprotocol,
)
from gateway.transport.rfc6455 import Handshake, read_handshake
from gateway.transport.sockets import NOBODY, Sockets
from gateway.transport.websocket import Connection

__all__ = ["Route", "Upgrades", "http_response", "linger"]

_log: Final = logging.getLogger(__name__)
_RETRY: Final = (("Retry-After", "1"),)


def http_response(reject: Reject) -> bytes:
    """Build the HTTP response of a refusal, which closes the connection. Source: docs/protocol.md, section 6."""
    body = orjson.dumps({"error": {"code": reject.code, "message": reject.message}})
    status = HTTPStatus(reject.status)
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Date: {formatdate(usegmt=True)}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in reject.headers),
    ]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


class _Linger(asyncio.Protocol):
    """Reads until the peer hangs up: closing a socket with unread bytes resets it, and the answer would be lost."""

    __slots__ = ("_timer",)

    def __init__(self, timer: asyncio.TimerHandle) -> None:
        self._timer = timer

    def data_received(self, data: bytes) -> None:
        """Ignored."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()


def linger(loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, answer: bytes, timeout_ms: int) -> None:
    """Write a last answer and close, so that the peer gets to read it; bounded in time."""
    if transport.is_closing():
        return
    transport.set_protocol(_Linger(loop.call_later(seconds(timeout_ms), transport.abort)))
    transport.write(answer)
    if transport.can_write_eof():
        transport.write_eof()
        transport.resume_reading()
    else:  # TLS knows no half-close
        transport.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How a connection came here.

    Attributes:
        peer: the address that it, or its PROXY header, came from.
        scheme: `http` or `https`.
    """

    peer: str
    scheme: str


class Upgrades:
    """The handshakes of a listener.

    Attributes:
        sockets: where the connections go.
        pending: the handshakes whose decision is awaited.
    """

    def __init__(self, sockets: Sockets, gatekeeper: Gatekeeper, trusted: Trusted, decision_timeout_ms: int) -> None:
        self.sockets = sockets
        self.gatekeeper = gatekeeper
        self.trusted = trusted
        self.decision_timeout_ms = decision_timeout_ms
        self.pending: set[_Pending] = set()

    def begin(
        self,
        transport: asyncio.Transport,
        head: bytes,
        early: bytes,
        route: Route,
        *,
        decide: Callable[[UpgradeRequest], Decision | Awaitable[Decision]] | None = None,
    ) -> None:
        """Answer an upgrade request; the transport has another protocol afterwards.

        Args:
            transport: that of the connection.
            head: the request with the empty line that ends it.
            early: what came behind it; kept for the socket, and not answered before the 101.
            route: how the connection came here.
            decide: instead of the gatekeeper.
        """
        request = self._read(head, route)
        if isinstance(request, Reject):
            self.refuse(transport, request)
            return
        handshake, upgrade = request
        try:
            decision = (decide or self.gatekeeper.decide)(upgrade)
        except Exception as error:
            decision = _refusal(error)
        if isinstance(decision, Accept | AcceptThenClose | Reject):
            self.settle(transport, decision, handshake, upgrade, early)
        else:
            _Pending(self, transport, handshake, upgrade, early).wait(decision)

    def settle(
        self,
        transport: asyncio.Transport,
        decision: Decision,
        handshake: Handshake,
        request: UpgradeRequest,
        early: bytes,
    ) -> None:
        """Do what was decided."""
        if isinstance(decision, Reject):
            self.refuse(transport, decision)
            return
        if transport.is_closing():
            if isinstance(decision, Accept):
                _tell_gone(decision)
            return
        transport.write(handshake.accepted(request.subprotocol))
        if isinstance(decision, Accept):
            Connection(self.sockets, transport, decision.handler, request).open(early)
        else:
            connection = Connection(self.sockets, transport, NOBODY, request)
            connection.open(early)
            if decision.come_back_ms is not None:
                away = GoAway(reason=GoAwayReason.REBALANCE, reconnect_after_ms=decision.come_back_ms)
                connection.send(connection.framing.frame(away))
            connection.close(decision.code, decision.reason)

    def refuse(self, transport: asyncio.Transport, reject: Reject) -> None:
        """Answer in HTTP and close."""
        linger(self.sockets.loop, transport, http_response(reject), self.sockets.settings.close_timeout_ms)

    async def stop(self) -> None:
        """Cancel the decisions that are awaited; their clients get a 503. Cancellation leaves the rest to the loop."""
        tasks = [task for pending in list(self.pending) if (task := pending.cancel()) is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _read(self, head: bytes, route: Route) -> tuple[Handshake, UpgradeRequest] | Reject:
        handshake = read_handshake(head)
        if isinstance(handshake, Reject):
            return handshake
        if handshake.path != CONNECT_PATH:
            message = f"no socket here; connect to {CONNECT_PATH}"
            return Reject(status=HTTPStatus.NOT_FOUND, code="not_found", message=message)
        subprotocol = choose_subprotocol(handshake.offered)
        if subprotocol is None:
            message = f"offer one of the subprotocols {', '.join(Subprotocol)}"
            return Reject(status=HTTPStatus.BAD_REQUEST, code="unknown_subprotocol", message=message)
        headers = handshake.headers
        return handshake, UpgradeRequest(
            path=handshake.path,
            query=handshake.query,
            headers=headers,
            offered=handshake.offered,
            subprotocol=subprotocol,
            peer=route.peer,
            client=client_address(route.peer, headers.items(), self.trusted),
            scheme=forwarded_scheme(route.scheme, route.peer, headers.items(), self.trusted),
        )


class _Pending(asyncio.Protocol):
    """A handshake whose decision is awaited."""

    __slots__ = ("_early", "_handshake", "_request", "_settled", "_task", "_timer", "_transport", "_upgrades")

    def __init__(
        self,
        upgrades: Upgrades,
        transport: asyncio.Transport,
        handshake: Handshake,
        request: UpgradeRequest,
        early: bytes,
    ) -> None:
        self._upgrades = upgrades
        self._transport = transport
        self._handshake = handshake
        self._request = request
        self._early = bytearray(early)
        self._settled = False
        self._task: asyncio.Future[Decision] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def wait(self, decision: Awaitable[Decision]) -> None:
        upgrades = self._upgrades
        loop = upgrades.sockets.loop
        self._transport.set_protocol(self)
        upgrades.pending.add(self)
        self._timer = loop.call_later(seconds(upgrades.decision_timeout_ms), self._late)
        self._task = asyncio.ensure_future(decision)
        self._task.add_done_callback(self._decided)

    def cancel(self) -> asyncio.Future[Decision] | None:
        """Give up, because the node stops."""
        self._settle(Reject(status=503, code="shutting_down", message="the node stops", headers=_RETRY))
        if self._task is not None:
            self._task.cancel()
        return self._task

    def data_received(self, data: bytes) -> None:
        self._early += data
        # More than a frame before the answer is nothing that a client needs; the kernel holds the rest back.
        if len(self._early) > self._upgrades.sockets.settings.max_frame_bytes:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settled = True
        if self._task is not None:
            self._task.cancel()

    def _late(self) -> None:
        message = "the decision about this connection took too long"
        self._settle(Reject(status=503, code="handshake_timeout", message=message, headers=_RETRY))
        if self._task is not None:
            self._task.cancel()

    def _decided(self, task: asyncio.Future[Decision]) -> None:
        self._upgrades.pending.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if task.cancelled():
            self._settle(Reject(status=503, code="cancelled", message="the decision was given up", headers=_RETRY))
            return
        error = task.exception()
        decision = task.result() if error is None else _refusal(error)
        if not self._settled:
            self._settle(decision)
        elif isinstance(decision, Accept):
            _tell_gone(decision)

    def _settle(self, decision: Decision) -> None:
        if self._settled:
            return
        self._settled = True
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self._upgrades.settle(self._transport, decision, self._handshake, self._request, bytes(self._early))


def _refusal(error: BaseException) -> Reject:
    """What a gatekeeper raised, as an answer that tells nothing of the inside."""
    if isinstance(error, EventBusError):
        return Reject(status=503, code=error.code, message=str(error), headers=_RETRY)
    _log.error("the gatekeeper failed", exc_info=error)
    return Reject(status=500, code="internal", message="the node could not decide; this is a defect of the node")


def _tell_gone(accept: Accept) -> None:
    """Tell a handler whose client left before the handshake was done."""
    try:
        accept.handler.on_close(CloseCode.ABNORMAL, "")
    except Exception:
        _log.exception("on_close of %r failed", accept.handler)
