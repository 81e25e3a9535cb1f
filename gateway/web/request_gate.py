"""Counts each HTTP request before anything else is done for it."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from eventbus.errors import RateLimited
from gateway.web.common import error_answer
from gateway.web.quotas import Quotas

__all__ = ["RequestGate"]

NOT_COUNTED: Final = frozenset({"/healthz", "/readyz"})
"""What load balancers ask for, who are one address for all."""


class RequestGate:
    """ASGI middleware; a request above the limit of its address is answered with 429.

    Args:
        app: what answers the others.
        quotas: the limits.
    """

    def __init__(self, app: ASGIApp, quotas: Quotas) -> None:
        self._app = app
        self._quotas = quotas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if scope["type"] == "http" and client is not None and scope["path"] not in NOT_COUNTED:
            try:
                self._quotas.count_request(client[0])
            except RateLimited as error:
                await error_answer(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
