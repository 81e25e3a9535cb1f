"""HTTP beside the socket: tickets, events, health, the JavaScript client. Source: docs/protocol.md, section 6."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from eventbus.clock import new_event_id
from eventbus.event import Event, event_from_object
from eventbus.store import Ticket
from gateway.access.auth import Identity, Scope
from gateway.access.identities import claims_of
from gateway.web.acking import Acking
from gateway.web.common import (
    EXCEPTION_HANDLERS,
    RETRY_AFTER_S,
    BadRequest,
    Services,
    answer,
    error_answer,
    identify,
    read_body,
    result_of,
)
from gateway.web.reading import read_confirmations, read_events, read_presence, read_threads_of
from gateway.web.request_gate import RequestGate
from gateway.web.sse import open_sse

__all__ = ["EXCEPTION_HANDLERS", "Services", "answer", "client_file", "error_answer", "make_app"]

EVENTS_MAX: Final = 500
KEY_CHARACTERS_MAX: Final = 255
TICKET_LIFE_MS: Final = 60_000
_CLIENT_FILES: Final = frozenset(
    {"eventbus-client.js", "eventbus-client.d.ts", "eventbus-tabs.js", "eventbus-tabs.d.ts"}
)


def make_app(node: Services, *, routes: Sequence[Route] = ()) -> Starlette:
    """Make the HTTP side of a node.

    Args:
        node: what it works with.
        routes: further ones (the demo's page).
    """
    handlers: list[tuple[str, str, Callable[[Services, Request], Awaitable[Response]]]] = [
        ("/v1/connect", "GET", no_upgrade),
        ("/v1/tickets", "POST", make_ticket),
        ("/v1/events", "POST", publish_events),
        ("/v1/events", "GET", read_events),
        ("/v1/events/{id}/confirmations", "GET", read_confirmations),
        ("/v1/threads", "GET", read_threads_of),
        ("/v1/presence", "GET", read_presence),
        ("/v1/sse", "GET", open_sse),
        ("/v1/acks", "POST", Acking().take),
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
                allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
                expose_headers=["Retry-After"],
                max_age=600,
            ),
            # Within CORS, so that a page can read why it was refused.
            Middleware(RequestGate, quotas=node.quotas),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
    )


def _bound(
    node: Services, handler: Callable[[Services, Request], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await handler(node, request)

    return endpoint


async def no_upgrade(node: Services, request: Request) -> Response:
    """`GET /v1/connect` that is no WebSocket handshake, or was one before it came by a proxy.

    Source: RFC 9110, section 15.5.22.
    """
    message = (
        "this is the address of a WebSocket, and the request has not `Connection: Upgrade` and `Upgrade: websocket`;"
        " where a proxy stands before the node, it must pass both on"
    )
    return answer(
        {"error": {"code": "upgrade_required", "message": message}},
        426,
        {"Connection": "Upgrade", "Upgrade": "websocket"},
    )


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
    with node.quotas.holding() as meter:
        body = await read_body(request, node.node_settings.limits.max_body_bytes, meter.add)
        return await _publish(node, request, identity, body)


async def _publish(node: Services, request: Request, identity: Identity, body: bytes) -> Response:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest("body", f"is not JSON: {error.msg} at character {error.pos}") from None
    objects = parsed if isinstance(parsed, list) else [parsed]
    if not 1 <= len(objects) <= EVENTS_MAX:
        raise BadRequest("body", f"holds {len(objects)} events: 1 to {EVENTS_MAX} may be given")
    client = None if request.client is None else request.client.host
    tier = node.node_settings.tiers[identity.tier]
    begun_ms = node.clock.monotonic_ms()
    await node.quotas.count_publish(identity, tier, client, len(objects), len(body))
    key = _idempotency_key(request, identity)
    events = [_event(node, obj, index, key, isinstance(parsed, list)) for index, obj in enumerate(objects)]
    # A store that is away is asked for the allowance first: the deadline is for both.
    asked_ms = node.clock.monotonic_ms() - begun_ms
    deadline_ms = max(1, node.node_settings.publish.publish_deadline_ms - asked_ms)
    receipts = await node.bus.publish_many(events, deadline_ms=deadline_ms)
    node.counters.events_published += len(receipts)
    return answer({"results": [result_of(receipt) for receipt in receipts]}, 202)


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
    here = Path(__file__).resolve().parents[1]
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
