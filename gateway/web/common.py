"""What all routes share: what they need of a node, who asks, how they answer. Source: docs/protocol.md, section 6."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from eventbus.bus import Bus
from eventbus.clock import Clock
from eventbus.errors import (
    AuthError,
    EventBusError,
    Forbidden,
    InvalidField,
    PartialPublish,
    RateLimited,
    StoreError,
    StoreFull,
    StreamFull,
    TypePaused,
)
from eventbus.ids import UserId, parse_user_id
from eventbus.publishing.receipt import Receipt
from eventbus.store import Store
from gateway.access.auth import Authenticator, Identity, Scope, require_scope
from gateway.access.identities import identity_from_claims
from gateway.access.token_source import TokenWay, find_token
from gateway.config import NodeSettings
from gateway.counters import Counters
from gateway.sessions.host import SessionSettings
from gateway.sessions.hub import Hub
from gateway.sessions.session import Session
from gateway.transport.handshake import Gatekeeper
from gateway.transport.sockets import Sockets
from gateway.web.quotas import Quotas

__all__ = [
    "EXCEPTION_HANDLERS",
    "RETRY_AFTER_S",
    "BadRequest",
    "Services",
    "UnknownEvent",
    "answer",
    "error_answer",
    "identify",
    "read_body",
    "result_of",
    "user_asked_for",
]

RETRY_AFTER_S: Final = 1


class Services(Protocol):
    """What the routes need of a node."""

    store: Store
    clock: Clock
    counters: Counters
    authenticator: Authenticator
    node_settings: NodeSettings
    settings: SessionSettings
    quotas: Quotas
    hub: Hub[Session]

    @property
    def bus(self) -> Bus:
        """The node's publisher."""

    @property
    def doorkeeper(self) -> Gatekeeper:
        """Who decides who gets a connection."""

    @property
    def sockets(self) -> Sockets:
        """The open connections of the node, once it accepts any."""

    @property
    def store_ahead_ms(self) -> int:
        """How far the store's clock is ahead of this machine's."""

    def check_revoked(self, identity: Identity) -> None:
        """Checks that a token is not revoked. Raises: AuthError, StoreUnavailable."""

    def not_ready(self) -> str | None:
        """Why no new connection should come here; None when it may."""


class TooLarge(EventBusError):
    """A body is longer than the node takes."""

    code = "body_too_large"


class UnknownEvent(EventBusError):
    """No such event is stored for the user."""

    code = "not_found"


class BadTicket(AuthError):
    """A ticket is unknown, used, or too old."""


class BadRequest(InvalidField):
    """A parameter of a request is wrong."""

    code = "bad_request"


_STATUS: Final[Sequence[tuple[type[EventBusError], int]]] = (
    (AuthError, 401),
    (Forbidden, 403),
    (InvalidField, 400),
    (TooLarge, 413),
    (UnknownEvent, 404),
    (RateLimited, 429),
    (TypePaused, 409),
    (StreamFull, 503),
    (StoreFull, 503),
    (StoreError, 503),
)


# --- answers --------------------------------------------------------------------------------------------------------


def answer(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response that no cache keeps."""
    return Response(
        orjson.dumps(content),
        status_code=status,
        media_type="application/json",
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **(headers or {})},
    )


def error_answer(error: EventBusError, extra: Mapping[str, object] | None = None) -> Response:
    """The response of an error: `{"error": {"code", "message", "field"?, "index"?}}` with the fitting status."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    body: dict[str, object] = {"code": getattr(error, "reason", error.code), "message": str(error)}
    if isinstance(error, InvalidField):
        body["field"] = error.field
        if error.index is not None:
            body["index"] = error.index
    headers = {}
    if isinstance(error, RateLimited):
        headers["Retry-After"] = str(-(-error.retry_after_ms // 1000))
    elif status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    elif status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return answer({"error": body, **(extra or {})}, status, headers)


async def _bus_error(request: Request, error: Exception) -> Response:
    if isinstance(error, PartialPublish):
        known = [result_of(result) for result in error.results]
        return error_answer(error, {"results": known})
    return error_answer(error) if isinstance(error, EventBusError) else await _defect(request, error)


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    codes = {404: "not_found", 405: "method_not_allowed"}
    message = {404: f"nothing is at {request.url.path}", 405: f"{request.method} is not for {request.url.path}"}
    body = {"code": codes.get(status, "http_error"), "message": message.get(status, "the request can not be answered")}
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return answer({"error": body}, status, headers)


async def _defect(request: Request, error: Exception) -> Response:
    # Starlette logs the traceback; the client gets none of it.
    return answer({"error": {"code": "internal", "message": "the node failed; the request may be tried again"}}, 500)


EXCEPTION_HANDLERS: Final[Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]]] = {
    HTTPException: _http_error,
    EventBusError: _bus_error,
    Exception: _defect,
}


# --- who asks, and for what -----------------------------------------------------------------------------------------


async def identify(node: Services, request: Request, scope: Scope | None = None) -> Identity:
    """Finds and verifies the token or ticket of a request; without `scope`, what it allows is for the caller to see.

    Raises:
        AuthError: there is none, or it is not good.
        Forbidden: it lacks the scope.
    """
    source = find_token(request.headers.items(), (), request.url.query)
    if source.way is TokenWay.TICKET:
        claims = await node.store.take_ticket(source.value or "")
        if claims is None:
            raise BadTicket("the ticket is unknown, used, or older than 60 s", reason="bad_ticket")
        identity = identity_from_claims(orjson.loads(claims))
    elif source.value is None:
        raise AuthError("no token: give it as `Authorization: Bearer <jwt>`", reason="no_token")
    else:
        identity = node.authenticator.verify(source.value, node.clock.now_ms())
    node.check_revoked(identity)
    if scope is not None:
        require_scope(identity, scope)
    return identity


def user_asked_for(request: Request, identity: Identity) -> UserId:
    """Whose things a request is about: the caller's own, or with `?user=` those of whom a publisher or admin names.

    Raises:
        Forbidden: the token's scope does not allow it.
        InvalidField: `user` is none.
    """
    other = request.query_params.get("user")
    if other is None:
        require_scope(identity, Scope.SUBSCRIBE)
        return identity.user
    user = parse_user_id(other)
    if not {Scope.PUBLISH, Scope.ADMIN} & set(identity.scopes):
        raise Forbidden("`user` needs a token with the scope publish or admin")
    return user


async def read_body(request: Request, max_bytes: int, count: Callable[[int], None] = lambda _more: None) -> bytes:
    """Reads a body, bounded.

    Args:
        request: whose.
        max_bytes: the bound.
        count: told of the bytes of each part before it is kept; what it raises ends the reading.

    Raises:
        TooLarge: the body is; as soon as it is known.
        BadRequest: the client left.
    """
    declared = request.headers.get("content-length")
    if declared is not None and declared.isdigit() and int(declared) > max_bytes:
        raise TooLarge(f"the body has {declared} bytes, at most {max_bytes} are taken")
    chunks = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                raise TooLarge(f"the body has more than {max_bytes} bytes, which are the most that are taken")
            count(len(chunk))
            chunks.append(chunk)
    except ClientDisconnect:
        raise BadRequest("body", "ended before it was complete") from None
    return b"".join(chunks)


def result_of(result: object) -> dict[str, object]:
    """One result of a batch of publishes, as it is answered."""
    if isinstance(result, Receipt):
        return {"id": result.event, "entry": result.entry, "duplicate": result.duplicate}
    code = result.code if isinstance(result, EventBusError) else "internal"
    return {"error": {"code": code, "message": str(result)}}
