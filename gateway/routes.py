"""HTTP beside the socket: tickets, events, health, the JavaScript client. Source: docs/protocol.md, section 6."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from eventbus.bus import Bus
from eventbus.clock import Clock, new_event_id
from eventbus.confirmation import Confirmation
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
)
from eventbus.event import Event, envelope_json, event_from_object, parse_event_type
from eventbus.history import Wanted, read_history
from eventbus.ids import (
    ENTRY_ZERO,
    parse_entry_id,
    parse_event_id,
    parse_run_id,
    parse_thread_id,
    parse_user_id,
)
from eventbus.lookup import confirmations_of
from eventbus.receipt import Receipt
from eventbus.store import Store, Ticket
from gateway.auth import Authenticator, Identity, Scope, TokenWay, find_token, require_scope
from gateway.config import NodeSettings
from gateway.counters import Counters
from gateway.identities import claims_of, identity_from_claims

__all__ = ["EXCEPTION_HANDLERS", "Services", "answer", "client_file", "make_app"]

EVENTS_MAX: Final = 500
HISTORY_MAX: Final = 500
HISTORY_DEFAULT: Final = 100
KEY_CHARACTERS_MAX: Final = 255
TICKET_LIFE_MS: Final = 60_000
RETRY_AFTER_S: Final = 1
_CLIENT_FILES: Final = frozenset(
    {"eventbus-client.js", "eventbus-client.d.ts", "eventbus-tabs.js", "eventbus-tabs.d.ts"}
)


class Services(Protocol):
    """What the routes need of a node."""

    store: Store
    clock: Clock
    counters: Counters
    authenticator: Authenticator
    node_settings: NodeSettings

    @property
    def bus(self) -> Bus:
        """The node's publisher."""

    @property
    def store_ahead_ms(self) -> int:
        """How far the store's clock is ahead of this machine's."""

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
    (StreamFull, 503),
    (StoreFull, 503),
    (StoreError, 503),
)


def make_app(node: Services, *, routes: Sequence[Route] = ()) -> Starlette:
    """Make the HTTP side of a node.

    Args:
        node: what it works with.
        routes: further ones (the demo's page).
    """
    handlers: list[tuple[str, str, Callable[[Services, Request], Awaitable[Response]]]] = [
        ("/v1/tickets", "POST", make_ticket),
        ("/v1/events", "POST", publish_events),
        ("/v1/events", "GET", read_events),
        ("/v1/events/{id}/confirmations", "GET", read_confirmations),
        ("/healthz", "GET", health),
        ("/readyz", "GET", readiness),
        ("/client.js", "GET", client_js),
        ("/client.d.ts", "GET", client_types),
        ("/client/{name}", "GET", client_module),
    ]
    return Starlette(
        routes=[
            *(Route(path, _bound(node, handler), methods=[method]) for path, method, handler in handlers),
            *routes,
        ],
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=list(node.node_settings.listen.allowed_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type", "Idempotency-Key"],
                expose_headers=["Retry-After"],
                max_age=600,
            )
        ],
        exception_handlers=EXCEPTION_HANDLERS,
    )


def _bound(
    node: Services, handler: Callable[[Services, Request], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await handler(node, request)

    return endpoint


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
        known = [_result(result) for result in error.results]
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


# --- who asks -------------------------------------------------------------------------------------------------------


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
    if scope is not None:
        require_scope(identity, scope)
    return identity


async def make_ticket(node: Services, request: Request) -> Response:
    """`POST /v1/tickets`."""
    identity = await identify(node, request, Scope.SUBSCRIBE)
    tail, epoch = await node.store.tail(identity.user)
    now_ms = node.clock.now_ms()
    life_ms = max(1, min(TICKET_LIFE_MS, identity.expires_ms - now_ms))
    ticket = secrets.token_urlsafe(24)
    await node.store.put_ticket(Ticket(ticket=ticket, claims=claims_of(identity), life_ms=life_ms))
    return answer({"ticket": ticket, "expires_ms": now_ms + life_ms, "cursor": tail, "epoch": epoch})


# --- events ---------------------------------------------------------------------------------------------------------


async def publish_events(node: Services, request: Request) -> Response:
    """`POST /v1/events`: one event or a list; refused as a whole when one is bad."""
    identity = await identify(node, request, Scope.PUBLISH)
    body = await read_body(request, node.node_settings.limits.max_body_bytes)
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest("body", f"is not JSON: {error.msg} at character {error.pos}") from None
    objects = parsed if isinstance(parsed, list) else [parsed]
    if not 1 <= len(objects) <= EVENTS_MAX:
        raise BadRequest("body", f"holds {len(objects)} events: 1 to {EVENTS_MAX} may be given")
    key = _idempotency_key(request, identity)
    events = [_event(node, obj, index, key, isinstance(parsed, list)) for index, obj in enumerate(objects)]
    receipts = await node.bus.publish_many(events)
    node.counters.events_published += len(receipts)
    return answer({"results": [_result(receipt) for receipt in receipts]}, 202)


def _idempotency_key(request: Request, identity: Identity) -> str | None:
    """What makes ids of the request's own; two callers may use the same key."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= KEY_CHARACTERS_MAX:
        raise BadRequest("Idempotency-Key", f"has {len(key)} characters: 1 to {KEY_CHARACTERS_MAX} may be given")
    return f"{identity.user}\0{key}"


def _event(node: Services, obj: object, index: int, key: str | None, in_list: bool) -> Event:
    if key is None:
        event_id = new_event_id(node.clock)
    else:
        # The key may be longer and of other characters than an event id: its hash is an event id.
        event_id = hashlib.blake2b(f"{key}\0{index}".encode(), digest_size=16).hexdigest()  # type: ignore[assignment]
    now_ms = node.clock.now_ms()
    return event_from_object(
        obj,
        default_id=event_id,
        default_time_ms=now_ms,
        now_ms=now_ms + node.store_ahead_ms,
        index=index if in_list else None,
        max_event_bytes=node.node_settings.publish.max_event_bytes,
    )


def _result(result: object) -> dict[str, object]:
    if isinstance(result, Receipt):
        return {"id": result.event, "entry": result.entry, "duplicate": result.duplicate}
    code = result.code if isinstance(result, EventBusError) else "internal"
    return {"error": {"code": code, "message": str(result)}}


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Reads a body, bounded. Raises: TooLarge, as soon as it is known."""
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
            chunks.append(chunk)
    except ClientDisconnect:
        raise BadRequest("body", "ended before it was complete") from None
    return b"".join(chunks)


async def read_events(node: Services, request: Request) -> Response:
    """`GET /v1/events`: the caller's own retained events, oldest first."""
    identity = await identify(node, request, Scope.SUBSCRIBE)
    query = request.query_params
    after = parse_entry_id(query["cursor"], "cursor") if "cursor" in query else ENTRY_ZERO
    limit = _limit(query.get("limit"))
    wanted = Wanted(
        user=identity.user,
        type=parse_event_type(query["type"]) if "type" in query else None,
        thread=parse_thread_id(query["thread"]) if "thread" in query else None,
        run=parse_run_id(query["run"]) if "run" in query else None,
    )
    page = await read_history(node.store, wanted, after=after, limit=limit)
    events = b",".join(
        b'{"id":"%s","event":%s}' % (entry.id.encode(), envelope_json(entry.body)) for entry in page.entries
    )
    tail = {"cursor": page.cursor, "epoch": page.epoch} | ({"next": page.cursor} if page.more else {})
    # The events are spliced in as they were encoded; what follows is the rest of the object.
    body = b'{"events":[' + events + b"]," + orjson.dumps(tail)[1:]
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})


async def read_confirmations(node: Services, request: Request) -> Response:
    """`GET /v1/events/{id}/confirmations`: of one of the caller's own events; a publisher or admin names the user."""
    identity = await identify(node, request)
    if (other := request.query_params.get("user")) is None:
        require_scope(identity, Scope.SUBSCRIBE)
        user = identity.user
    else:
        user = parse_user_id(other)
        if not {Scope.PUBLISH, Scope.ADMIN} & set(identity.scopes):
            raise Forbidden("`user` needs a token with the scope publish or admin")
    event = parse_event_id(request.path_params["id"])
    found = await confirmations_of(node.store, user, event)
    if found is None:
        # An event of somebody else is as unknown as one that never was.
        raise UnknownEvent(f"no event {event} is stored (any more)")
    return answer({"confirmations": [_confirmation(one) for one in found]})


def _confirmation(one: Confirmation) -> dict[str, object]:
    told: dict[str, object] = {"session": one.session, "level": one.level.value, "time_ms": one.time_ms}
    return told if one.note is None else {**told, "note": one.note}


def _limit(text: str | None) -> int:
    if text is None:
        return HISTORY_DEFAULT
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= HISTORY_MAX):
        raise BadRequest("limit", f"{text[:40]!r} is not a whole number from 1 to {HISTORY_MAX}")
    return int(text)


# --- health and files -----------------------------------------------------------------------------------------------


async def health(node: Services, request: Request) -> Response:
    """`GET /healthz`: the process answers."""
    return answer({"status": "alive"})


async def readiness(node: Services, request: Request) -> Response:
    """`GET /readyz`: a write, a wake-up and a read through Redis came back within the last seconds."""
    problem = node.not_ready()
    if problem is None:
        return answer({"status": "ready"})
    return answer({"error": {"code": "not_ready", "message": problem}}, 503, {"Retry-After": str(RETRY_AFTER_S)})


def client_file(name: str) -> Path:
    """Where a file of the JavaScript client is: beside the node in an installed wheel, in `clients/js` in a
    checkout.
    """
    here = Path(__file__).resolve().parent
    installed = here / "static" / name
    return installed if installed.exists() else here.parent / "clients" / "js" / name


async def client_js(node: Services, request: Request) -> Response:
    """`GET /client.js`: the JavaScript client."""
    return _file("eventbus-client.js", "text/javascript")


async def client_types(node: Services, request: Request) -> Response:
    """`GET /client.d.ts`: its types."""
    return _file("eventbus-client.d.ts", "text/plain")


async def client_module(node: Services, request: Request) -> Response:
    """`GET /client/NAME`: the client's files under their own names, by which they import each other."""
    name = str(request.path_params["name"])
    if name not in _CLIENT_FILES:
        raise HTTPException(404)
    return _file(name, "text/javascript" if name.endswith(".js") else "text/plain")


def _file(name: str, media_type: str) -> Response:
    path = client_file(name)
    if not path.exists():
        raise HTTPException(404)
    headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "Access-Control-Allow-Origin": "*"}
    return FileResponse(path, media_type=media_type, headers=headers)
