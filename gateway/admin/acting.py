"""What operators do on the admin port: `POST /admin/v1/actions`. Source: docs/admin.md.

Without `confirm` nothing is done: the answer says what would be. With it the action is carried out, if it still
concerns as many items as the caller confirms.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from eventbus import inspection
from eventbus.inspection import Actions, Planned
from gateway.admin.revocations import AdminAccess
from gateway.web.common import BadRequest, answer, read_body

__all__ = ["acting_routes"]

logger = logging.getLogger(__name__)

BODY_BYTES_MAX: Final = 65_536
SHOWN_MAX: Final = 100
AT_ONCE: Final = 4
"""Actions under way at a time: one more waits."""


def acting_routes(access: AdminAccess, partitions: int) -> list[Route]:
    """Make the routes.

    Args:
        access: who may act, and on what.
        partitions: of the installation.
    """
    turns = asyncio.Semaphore(AT_ONCE)

    async def act(request: Request) -> Response:
        identity = access.identify(request)
        given = await _given(request)
        confirm = given.pop("confirm", None)
        if confirm is not None and type(confirm) is not int:
            raise BadRequest("confirm", "must be the count that the plan told")
        asked = inspection.action_asked_for(given)
        actions = Actions(access.store, by=f"api:{identity.user}", partitions=partitions)
        async with turns:
            planned = await actions.plan(asked)
            if confirm is None:
                return answer({"planned": _plan(planned)})
            if confirm != planned.count:
                concerned = "1 item is" if planned.count == 1 else f"{planned.count} items are"
                error = {
                    "code": "not_confirmed",
                    "message": f"{concerned} concerned, not {confirm}: look at the plan again",
                }
                return answer({"error": error, "planned": _plan(planned)}, 409)
            done = await actions.carry_out(planned)
        logger.warning(
            "an operator did something to %d items",
            planned.count,
            extra={"by": identity.user, "action": str(asked.action), "operation": done.operation},
        )
        return answer({"operation": done.operation, "results": done.results, "left": done.left})

    return [Route("/admin/v1/actions", act, methods=["POST"])]


async def _given(request: Request) -> dict[str, Any]:
    body = await read_body(request, BODY_BYTES_MAX)
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest("body", f"is not JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(given, dict):
        raise BadRequest("body", "must be an object")
    return given


def _plan(planned: Planned) -> dict[str, object]:
    return {
        "action": planned.asked.action,
        "about": planned.asked.about(),
        "count": planned.count,
        "items": planned.items[:SHOWN_MAX],
        "more": planned.more,
        "notes": planned.notes,
    }
