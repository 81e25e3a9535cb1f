"""`/admin/v1/revocations`: what is revoked, and revoking more. Source: docs/protocol.md, section 7."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from eventbus import revoking
from eventbus.clock import Clock, SystemClock
from eventbus.errors import AuthError
from eventbus.store import Store
from eventbus.store.redis_store import RedisStore
from gateway.access.auth import Authenticator, Identity, Scope, require_scope
from gateway.access.revocations import Revocations
from gateway.access.token_source import TokenWay, find_token
from gateway.config import NodeSettings, load_authenticator
from gateway.counters import Counters
from gateway.rotation import Rotation
from gateway.web.common import BadRequest, answer, read_body

__all__ = ["AdminAccess", "operator_of", "revocation_routes", "watched_revocations"]

logger = logging.getLogger(__name__)

BODY_BYTES_MAX: Final = 16_384


class AdminAccess:
    """Who may do something on the admin port, and the store that it is done in.

    Args:
        store: where it is done.
        revocations: what is revoked, tokens of operators too.
        authenticator: verifies their tokens.
        clock: for the tokens.

    All but the revocations are attributes too.
    """

    def __init__(self, store: Store, revocations: Revocations, authenticator: Authenticator, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self._revocations = revocations
        self.authenticator = authenticator

    def identify(self, request: Request) -> Identity:
        """Finds and verifies the token of an operator; without one nothing is done, wherever the request comes from.

        Raises:
            AuthError: there is none, or it is not good.
            Forbidden: it lacks the scope `admin`.
            StoreUnavailable: nobody knows whether it is revoked.
        """
        identity = operator_of(request, self.authenticator, self.clock.now_ms())
        self._revocations.check(identity)
        return identity

    def check_reader(self, identity: Identity) -> None:
        """Checks that the token of who only looks is not known to be revoked: metrics are shown with the store away.

        Raises:
            AuthError: it is.
        """
        self._revocations.known.check(identity, None, self.clock.now_ms())


def operator_of(request: Request, authenticator: Authenticator, now_ms: int) -> Identity:
    """Finds and verifies the token of an operator.

    Raises:
        AuthError: there is none, or it is not good.
        Forbidden: it lacks the scope `admin`.
    """
    source = find_token(request.headers.items(), (), "")
    if source.value is None or source.way is not TokenWay.HEADER:
        raise AuthError("no token: give one of scope admin as `Authorization: Bearer <jwt>`", reason="no_token")
    identity = authenticator.verify(source.value, now_ms)
    require_scope(identity, Scope.ADMIN)
    return identity


def revocation_routes(access: AdminAccess) -> list[Route]:
    """Make the routes."""

    async def make(request: Request) -> Response:
        identity = access.identify(request)
        body = await read_body(request, BODY_BYTES_MAX)
        try:
            asked = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise BadRequest("body", f"is not JSON: {error.msg} at character {error.pos}") from None
        if not isinstance(asked, dict):
            raise BadRequest("body", "must be an object")
        wanted = revoking.revocation_asked_for(asked, by=identity.user)
        made = await revoking.revoke(access.store, wanted)
        logger.info("%s revoked a %s", identity.user, made.subject.kind)
        return answer(revoking.described(made), 201)

    async def show(request: Request) -> Response:
        access.identify(request)
        found = await revoking.revocations(access.store, access.clock.now_ms())
        return answer({"revocations": [revoking.described(one) for one in found]})

    path = "/admin/v1/revocations"
    return [Route(path, make, methods=["POST"]), Route(path, show, methods=["GET"])]


@asynccontextmanager
async def watched_revocations(settings: NodeSettings, clock: Clock | None = None) -> AsyncIterator[AdminAccess]:
    """Access for a process that runs no node, with a store and a list of its own until the end.

    Raises:
        ConfigError: a key can not be used.
    """
    clock = clock or SystemClock()
    authenticator = load_authenticator(settings)
    store = RedisStore(settings.redis_url, settings.store)
    revocations = Revocations(store, clock, Counters())
    rotation = Rotation(settings, [authenticator], Counters())
    watching = [
        asyncio.create_task(revocations.run(), name="admin:revocations"),
        asyncio.create_task(rotation.run(), name="admin:rotation"),
    ]
    try:
        yield AdminAccess(store, revocations, authenticator, clock)
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await store.aclose()
