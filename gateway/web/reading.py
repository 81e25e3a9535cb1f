"""Routes that only read: past events and threads, confirmations, presence. Source: docs/protocol.md, section 6."""

from __future__ import annotations

from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from eventbus.confirmation import Confirmation
from eventbus.event import envelope_json, parse_event_type
from eventbus.history import Wanted, read_history, read_threads
from eventbus.ids import ENTRY_ZERO, parse_entry_id, parse_event_id, parse_run_id, parse_thread_id
from eventbus.inspection.lookup import confirmations_of
from gateway.access.auth import Scope
from gateway.web.common import BadRequest, Services, UnknownEvent, answer, identify, user_asked_for

__all__ = ["read_confirmations", "read_events", "read_presence", "read_threads_of"]

HISTORY_MAX: Final = 500
HISTORY_DEFAULT: Final = 100


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
    user = user_asked_for(request, identity)
    event = parse_event_id(request.path_params["id"])
    found = await confirmations_of(node.store, user, event)
    if found is None:
        # An event of somebody else is as unknown as one that never was.
        raise UnknownEvent(f"no event {event} is stored (any more)")
    return answer({"confirmations": [_confirmation(one) for one in found]})


async def read_threads_of(node: Services, request: Request) -> Response:
    """`GET /v1/threads`: the caller's own threads, the one with the newest event first."""
    identity = await identify(node, request, Scope.SUBSCRIBE)
    query = request.query_params
    page = await read_threads(node.store, identity.user, before=query.get("before"), limit=_limit(query.get("limit")))
    threads = [{"thread": record.thread, "last_ms": record.last_ms} for record in page.threads]
    return answer({"threads": threads} | ({"next": page.next} if page.next is not None else {}))


async def read_presence(node: Services, request: Request) -> Response:
    """`GET /v1/presence`: the caller's own live sessions; a publisher or admin names the user."""
    identity = await identify(node, request)
    page = await node.store.online(user_asked_for(request, identity))
    sessions = [{"session": one.session, "node": one.node, "last_seen_ms": one.last_seen_ms} for one in page.sessions]
    return answer({"online": bool(sessions), "sessions": sessions})


def _confirmation(one: Confirmation) -> dict[str, object]:
    told: dict[str, object] = {"session": one.session, "level": one.level.value, "time_ms": one.time_ms}
    return told if one.note is None else {**told, "note": one.note}


def _limit(text: str | None) -> int:
    if text is None:
        return HISTORY_DEFAULT
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= HISTORY_MAX):
        raise BadRequest("limit", f"{text[:40]!r} is not a whole number from 1 to {HISTORY_MAX}")
    return int(text)
