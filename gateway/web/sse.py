"""`GET /v1/sse`: a session over Server-Sent Events, for clients that have no WebSocket.

The session is the same, with its window, redeliveries, takeover, gaps and drain; what differs is the connection under
it: an HTTP response without an end, which is written and never read. Who gets one is decided as for a socket. The
status waits for the store, so that a refusal is one; a browser, which can not read it, gets a response that says why
and ends. Whether the other side is still there is for the kernel to find out (TCP_USER_TIMEOUT), by what it
acknowledges.

Source: docs/protocol.md, section 9.
"""

from __future__ import annotations

import asyncio
import contextlib
from enum import Enum
from http import HTTPStatus
from typing import Final, Protocol, cast

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from eventbus import wire
from eventbus.clock import seconds
from eventbus.errors import AuthError, CloseCode, EventBusError
from gateway.sessions.host import SessionSettings
from gateway.sessions.session import Session
from gateway.transport.framing import COMMENT, SSE, Framing, close_message, is_ended
from gateway.transport.handshake import Accept, AcceptThenClose, Reject, Subprotocol, UpgradeRequest
from gateway.transport.http_connection import CARRIER
from gateway.transport.outbox import Backlog, Outbox
from gateway.transport.sockets import Handler, Sockets
from gateway.web.common import Services, answer
from gateway.web.sse_request import hello_of

__all__ = ["Carrier", "SseConnection", "open_sse"]

COMMENT_MS: Final = 10_000
"""Most time between two comments. Less than the 15 s that are promised, for a loop may be late."""

RETRY_MS: Final = 2_000
"""How long a browser waits that was refused, where nothing else is known."""

_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store, no-transform",
    "X-Content-Type-Options": "nosniff",
    "X-Accel-Buffering": "no",  # nginx would gather messages
    "Connection": "close",
}

_STATUS: Final = {
    CloseCode.RATE_LIMITED: (HTTPStatus.TOO_MANY_REQUESTS, "too_many_sessions"),
    CloseCode.DRAINING: (HTTPStatus.SERVICE_UNAVAILABLE, "draining"),
    CloseCode.STORE_UNAVAILABLE: (HTTPStatus.SERVICE_UNAVAILABLE, "store_unavailable"),
    CloseCode.OVERLOADED: (HTTPStatus.SERVICE_UNAVAILABLE, "overloaded"),
    CloseCode.TOKEN_EXPIRED: (HTTPStatus.UNAUTHORIZED, "token_expired"),
    CloseCode.UNAUTHENTICATED: (HTTPStatus.UNAUTHORIZED, "unauthenticated"),
    CloseCode.FORBIDDEN: (HTTPStatus.FORBIDDEN, "forbidden"),
    CloseCode.SUPERSEDED: (HTTPStatus.CONFLICT, "superseded"),
    CloseCode.SESSION_ENDED: (HTTPStatus.GONE, "session_ended"),
}
"""What a session that ended before it opened is answered."""

_CLOSE: Final = {
    "draining": CloseCode.DRAINING,
    "store_unavailable": CloseCode.STORE_UNAVAILABLE,
    "overloaded": CloseCode.OVERLOADED,
    "rate_limited": CloseCode.RATE_LIMITED,
    "too_many_sessions": CloseCode.RATE_LIMITED,
}
"""What a browser is told of a refusal that it may try again."""


class Carrier(Protocol):
    """The HTTP connection under a response."""

    @property
    def write_paused(self) -> bool:
        """Whether the other side is behind with reading."""

    @property
    def buffered_bytes(self) -> int:
        """What was written and is not in the kernel yet."""

    def begin_endless(self, unanswered_ms: int) -> None:
        """The response has no end: who reads it too slowly is judged here, and a peer that acknowledges nothing for so
        long is gone.
        """

    async def written(self) -> None:
        """Waits until the other side reads again; returns too when it has gone."""

    def abort(self) -> None:
        """Drops the connection."""


class _State(Enum):
    OPEN = "open"
    CLOSING = "closing"  # the last message waits
    ENDED = "ended"  # the connection is going or gone


class SseConnection:
    """One open response: what a socket is to a session. It has no incoming side, and one task, that of its request.

    Args:
        sockets: the node's connections, of which it is one.
        carrier: what it is written to.
        handler: the session.
        client: the address of the client.
        comment_ms: time between two comments.
    """

    subprotocol: Final = Subprotocol.JSON
    framing: Final[Framing] = SSE

    def __init__(self, sockets: Sockets, carrier: Carrier, handler: Handler, *, client: str, comment_ms: int) -> None:
        self.client = client
        self._sockets = sockets
        self._carrier = carrier
        self._handler = handler
        self._comment_ms = comment_ms
        self._state = _State.OPEN
        self._outbox = Outbox(sockets.clock.monotonic_ms())
        self._wanted = asyncio.Event()
        self._gone = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._closing: tuple[int, str] | None = None
        sockets.connections.add(self)

    def __repr__(self) -> str:
        return f"<SseConnection {self.client} {self._state.value}, {self.buffered_bytes} bytes waiting>"

    # What the session and the node call.

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return self._state is _State.OPEN

    @property
    def writable(self) -> bool:
        """Whether it makes sense to send more now; `Handler.on_writable` tells when it does again."""
        return self._state is _State.OPEN and not self._carrier.write_paused

    @property
    def buffered_bytes(self) -> int:
        """What waits to be written, here and in the transport."""
        return 0 if self._state is _State.ENDED else self._outbox.queued_bytes + self._carrier.buffered_bytes

    @property
    def last_received_ms(self) -> int:
        """Now: nothing ever comes, and silence is judged by the kernel."""
        return self._sockets.clock.monotonic_ms()

    def send(self, frame: bytes) -> None:
        """Queue a message for the next turn of the loop; dropped when no longer open."""
        if self._state is not _State.OPEN:
            return
        self._outbox.append(frame)
        self._wanted.set()
        if self._outbox.queued_bytes > self._sockets.settings.max_queued_bytes:
            self.close(CloseCode.SLOW_CONSUMER, f"{self._outbox.drop()} bytes waiting")

    def ping(self) -> None:
        """Nothing: comments have their own time."""

    def backlog(self, now_ms: int) -> Backlog:
        """Look how much waits and since when nothing went away."""
        return self._outbox.observe(0 if self._state is _State.ENDED else self._carrier.buffered_bytes, now_ms)

    def pause_reading(self) -> None:
        """Nothing is read."""

    def resume_reading(self) -> None:
        """Nothing is read."""

    def close(self, code: int, reason: str = "") -> None:
        """Send what is queued and a last message, and end the response, in bounded time; without effect when closing.

        What is queued for a client that does not read is dropped.
        """
        if self._state is not _State.OPEN:
            return
        if self._carrier.write_paused:
            self._outbox.drop()
        self._state = _State.CLOSING
        self._closing = (int(code), reason)
        self._outbox.append(close_message(code, reason))
        self._wanted.set()
        delay = seconds(self._sockets.settings.close_timeout_ms)
        self._timer = self._sockets.loop.call_later(delay, self._carrier.abort)

    def abort(self) -> None:
        """Drop the connection without a word."""
        if self._state is not _State.ENDED:
            self._state = _State.ENDED
            self._wanted.set()
            self._carrier.abort()

    # What the request calls.

    def lost(self) -> None:
        """The client has hung up, or the transport is gone."""
        self._state = _State.ENDED
        self._gone.set()
        self._wanted.set()

    async def first(self) -> tuple[int, str] | None:
        """Waits until there is something to send, or the session has ended before that.

        Returns:
            Why it ended; None when it is open. Cancellation changes nothing.
        """
        await self._wanted.wait()
        return self._closing

    async def write(self, send: Send) -> None:
        """Writes what comes, and comments, until the connection ends; the response has begun.

        After the last message the transport still has to be rid of it, which is bounded by the timer of the close.

        Cancellation leaves the response without its end.
        """
        comment_s = seconds(self._comment_ms)
        due_s = self._sockets.loop.time() + comment_s
        while True:
            await self._wait(due_s)
            if self._state is _State.ENDED:
                await self._gone.wait()
                return
            is_last = self._state is _State.CLOSING
            if not is_last and self._sockets.loop.time() >= due_s:
                self._outbox.append(COMMENT)
                due_s = self._sockets.loop.time() + comment_s
            await send({"type": "http.response.body", "body": self._outbox.take(), "more_body": not is_last})
            if is_last:
                self._timer = None
                return
            if self._carrier.write_paused:
                await self._carrier.written()
                if self.writable:
                    self._handler.on_writable()

    async def _wait(self, due_s: float) -> None:
        if not self._outbox and self._state is _State.OPEN:
            self._wanted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due_s):
                    await self._wanted.wait()

    def finish(self) -> None:
        """The request is over, however it ended; the session is told."""
        self._state = _State.ENDED
        if self._timer is not None:
            self._timer.cancel()
        self._outbox.drop()
        self._sockets.forget(self)
        self._handler.on_close(*(self._closing or (int(CloseCode.ABNORMAL), "")))


# --- the route ------------------------------------------------------------------------------------------------------


async def open_sse(node: Services, request: Request) -> Response:
    """`GET /v1/sse`.

    Raises:
        InvalidField: the query is none.
        AuthError: there is no good token.
    """
    if request.method != "GET":
        raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED)
    last = request.headers.get("last-event-id")
    if is_ended(last):
        return Response(status_code=HTTPStatus.NO_CONTENT)
    hello = hello_of(request.query_params, last)
    upgrade = _as_upgrade(request)
    decision = node.doorkeeper.decide(upgrade)
    if not isinstance(decision, Accept | AcceptThenClose | Reject):
        decision = await decision
    if not isinstance(decision, Accept):
        return _refused(request, decision)
    session = cast(Session, decision.handler)
    if session.identity is None:
        session.on_close(CloseCode.UNAUTHENTICATED, "no token")
        raise AuthError("no token: give it as `Authorization: Bearer <jwt>` or as a ticket", reason="no_token")
    return _SseResponse(node, request, session, hello)


def _as_upgrade(request: Request) -> UpgradeRequest:
    """The request as the doorkeeper wants it: as one that asks for a socket."""
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    client = request.client.host if request.client else ""
    return UpgradeRequest(
        path=request.url.path,
        query=request.url.query,
        headers=headers,
        offered=(),
        subprotocol=Subprotocol.JSON,
        peer=client,
        client=client,
        scheme=request.url.scheme,
    )


def _is_browser(request: Request) -> bool:
    """Whether the client can not read a status. A page's request to its own host has no `Origin`."""
    return "origin" in request.headers or "sec-fetch-mode" in request.headers


def _refused(request: Request, decision: AcceptThenClose | Reject) -> Response:
    if isinstance(decision, AcceptThenClose):
        return _closed_at_once(decision.code, decision.reason, decision.come_back_ms or RETRY_MS)
    headers = dict(decision.headers)
    code = _CLOSE.get(decision.code)
    if code is not None and _is_browser(request):
        wait = headers.get("Retry-After", "")
        return _closed_at_once(code, decision.message, 1_000 * int(wait) if wait.isdigit() else RETRY_MS)
    return answer({"error": {"code": decision.code, "message": decision.message}}, decision.status, headers)


def _closed_at_once(code: int, reason: str, retry_ms: int) -> Response:
    return Response(close_message(code, reason, retry_ms=retry_ms), headers=_HEADERS)


class _SseResponse(Response):
    """The response that is a session's connection."""

    def __init__(self, node: Services, request: Request, session: Session, hello: wire.Hello) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._node = node
        self._request = request
        self._session = session
        self._hello = hello

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        session, settings = self._session, self._node.settings
        carrier: Carrier = scope["extensions"][CARRIER]
        client = self._request.client
        connection = SseConnection(
            self._node.sockets,
            carrier,
            session,
            client=client.host if client else "",
            comment_ms=min(COMMENT_MS, settings.liveness.heartbeat_ms),
        )
        watch = asyncio.ensure_future(_until_gone(receive))
        watch.add_done_callback(lambda _: connection.lost())
        try:
            self._open(connection)
            closed = await connection.first()
            if closed is not None:
                await self._ended_early(*closed)(scope, receive, send)
            else:
                if connection.is_open:
                    carrier.begin_endless(_unanswered_ms(session, settings))
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await connection.write(send)
        finally:
            connection.finish()
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    def _open(self, connection: SseConnection) -> None:
        session = self._session
        session.on_open(connection)
        try:
            session.open(self._hello)
        except EventBusError as error:
            session.close(error.close_code or CloseCode.PROTOCOL_VIOLATION, str(error))
            raise

    def _ended_early(self, code: int, reason: str) -> Response:
        known = _STATUS.get(cast(CloseCode, code), (HTTPStatus.SERVICE_UNAVAILABLE, "overloaded"))
        status, word = known
        retry = (("Retry-After", str(RETRY_MS // 1_000)),) if status in (429, 503) else ()
        return _refused(self._request, Reject(status=status, code=word, message=reason, headers=retry))


def _unanswered_ms(session: Session, settings: SessionSettings) -> int:
    """The silence that ends a socket. Source: docs/protocol.md, section 4."""
    return max(settings.liveness.heartbeat_ms * 5 // 2, session.opening.tier.connection_timeout_ms)


async def _until_gone(receive: Receive) -> None:
    """Returns when the client has hung up. What it sends is not looked at."""
    while (await receive())["type"] != "http.disconnect":
        pass
