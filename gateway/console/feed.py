"""`GET /admin/v1/live`: what the console is kept up to date with, as Server-Sent Events in a response without an end.

The messages: `figures` (as `GET /admin/v1/overview`, with rates by type, latency and the way to Redis), `told` (events
for operators, the newest last; first those of the last day), `problem` (Redis does not answer; what was sent before is
old), `end` (nothing more comes, and why). A token that has expired or was revoked ends it within seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from eventbus.clock import seconds
from eventbus.errors import AuthError, EventBusError, Forbidden, RateLimited, StoreError
from gateway.admin.revocations import AdminAccess
from gateway.console.figures import Figures
from gateway.transport.http_connection import CARRIER

__all__ = ["FEEDS_MAX", "feed_route"]

_TICK_MS: Final = 1_000
FEEDS_MAX: Final = 32
"""Open feeds of a port: one more is refused."""

_TOLD_AT_ONCE: Final = 50
_COMMENT_TICKS: Final = 10
"""A comment after so many ticks without a message: the page takes a longer silence for a dead connection."""

_HEADERS: Final = {
    "Cache-Control": "no-store, no-transform",
    "X-Content-Type-Options": "nosniff",
    "X-Accel-Buffering": "no",  # nginx would gather messages
}


def feed_route(access: AdminAccess, *, partitions: int) -> Route:
    """Make the route.

    Args:
        access: who may look, and at what.
        partitions: of the installation.
    """
    figures = Figures(access.store, access.clock, partitions=partitions)
    open_feeds = 0

    async def live(request: Request) -> Response:
        access.identify(request)
        if open_feeds >= FEEDS_MAX:
            raise RateLimited(f"{open_feeds} consoles are open here, the most there may be")
        return StreamingResponse(counted(request), media_type="text/event-stream", headers=_HEADERS)

    async def counted(request: Request) -> AsyncIterator[bytes]:
        nonlocal open_feeds
        open_feeds += 1
        try:
            async for message in _messages(request, access, figures):
                yield message
        finally:
            open_feeds -= 1

    return Route("/admin/v1/live", live, methods=["GET"])


async def _messages(request: Request, access: AdminAccess, figures: Figures) -> AsyncIterator[bytes]:
    number, told_id, problem, silent = 0, None, "", 0
    while not _is_stopping(request):
        silent += 1
        try:
            access.identify(request)
            look = await figures.newest()
        except (AuthError, Forbidden) as error:
            yield _message("end", _object(error))
            return
        except StoreError as error:
            if str(error) != problem:
                problem, silent = str(error), 0
                yield _message("problem", _object(error))
        else:
            if look.number != number or problem:
                number, problem, silent = look.number, "", 0
                yield _message("figures", look.figures)
                ids = [one["id"] for one in look.told]
                # What is kept is bounded: when the last one known has left, all of it is new.
                news = look.told[ids.index(told_id) + 1 if told_id in ids else 0 :]
                if news or told_id is None:
                    yield _message("told", news[-_TOLD_AT_ONCE:])
                told_id = ids[-1] if ids else ""
        if silent >= _COMMENT_TICKS:
            silent = 0
            yield b":\n\n"
        await asyncio.sleep(seconds(_TICK_MS))
    yield _message("end", {"code": "stopping", "message": "the node stops: the console is there again when it is"})


def _is_stopping(request: Request) -> bool:
    """Whether the port is being closed: a response without an end would hold that up."""
    carrier = request.scope.get("extensions", {}).get(CARRIER)
    return carrier is not None and carrier.is_stopping


def _object(error: EventBusError) -> dict[str, str]:
    return {"code": error.code, "message": str(error)}


def _message(kind: str, data: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps(data))
