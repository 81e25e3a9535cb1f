"""The admin port: metrics, liveness, what operators do, and their console. A listener of its own, loopback by default.

What answers is the same whether it is a node that asks itself or a parent that asks its workers: an `Overview`.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from eventbus.clock import Clock, SystemClock
from eventbus.errors import Forbidden
from eventbus.inspection import Timing
from gateway.access.auth import Authenticator
from gateway.access.loopback import is_for_this_machine, is_loopback
from gateway.admin.acting import acting_routes
from gateway.admin.looking import looking_routes
from gateway.admin.revocations import AdminAccess, operator_of, revocation_routes
from gateway.config import NodeSettings, load_authenticator
from gateway.console import feed_route, page_routes
from gateway.metrics import Snapshot, exposition
from gateway.transport.handshake import Decision, Reject, UpgradeRequest
from gateway.transport.listener import Listener, serve
from gateway.web.routes import EXCEPTION_HANDLERS, answer

__all__ = ["Overview", "admin_authenticator", "make_admin_app", "serve_admin"]


class Overview(Protocol):
    """Who is asked."""

    async def figures(self) -> Snapshot:
        """What is measured now; bounded in time."""

    def processes(self) -> Sequence[Mapping[str, object]]:
        """The processes behind the port, one object each: `node`, `pid`, `state`."""


class _NoSockets:
    """Nobody gets a socket on the admin port."""

    def decide(self, request: UpgradeRequest) -> Decision:
        message = "no socket on the admin port; connect to the port for clients"
        return Reject(status=HTTPStatus.NOT_FOUND, code="not_found", message=message)


class _Doorman:
    """Lets in who may: everybody when the port is for this machine alone, else a token with the scope `admin`."""

    def __init__(self, authenticator: Authenticator | None, clock: Clock, access: AdminAccess | None) -> None:
        self._authenticator = authenticator
        self._clock = clock
        self._access = access

    def check_place(self, request: Request) -> None:
        """Checks that a port for this machine alone is asked for as that. Raises: Forbidden."""
        if self._authenticator is None and not is_for_this_machine(request.headers.get("host")):
            raise Forbidden("this port is for this machine alone: ask for it as localhost or by its address")

    def check(self, request: Request) -> None:
        """Raises: AuthError, Forbidden."""
        self.check_place(request)
        if self._authenticator is None:
            return
        identity = operator_of(request, self._authenticator, self._clock.now_ms())
        if self._access is not None:
            self._access.check_reader(identity)


def make_admin_app(
    overview: Overview,
    *,
    authenticator: Authenticator | None,
    clock: Clock | None = None,
    access: AdminAccess | None = None,
    settings: NodeSettings | None = None,
) -> Starlette:
    """Make the HTTP side of the admin port.

    Args:
        overview: who is asked.
        authenticator: verifies the token that looking needs; None when the port is for this machine alone.
        clock: for the tokens.
        access: to what operators do, which needs a token in any case; None when nothing can be done here.
        settings: of the installation; None when operators neither look nor act here.
    """
    doorman = _Doorman(authenticator, clock or SystemClock(), access)

    async def metrics(request: Request) -> Response:
        doorman.check(request)
        body, media_type = exposition(await overview.figures(), request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": media_type, "Cache-Control": "no-store"})

    async def health(request: Request) -> Response:
        processes = list(overview.processes()) if authenticator is None else []
        return answer({"status": "alive"} | ({"processes": processes} if processes else {}))

    return Starlette(
        routes=[
            Route("/metrics", metrics, methods=["GET"]),
            Route("/healthz", health, methods=["GET"]),
            *([] if access is None else revocation_routes(access)),
            *([] if access is None or settings is None else operator_routes(access, settings)),
            *([] if access is None or settings is None else page_routes(doorman.check_place)),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
    )


def operator_routes(access: AdminAccess, settings: NodeSettings) -> list[Route]:
    """The routes on which operators look and act."""
    delivery = settings.delivery
    timing = Timing(ack_timeout_ms=delivery.ack_timeout_ms, max_wait_ms=delivery.max_wait_ms, jitter=delivery.jitter)
    partitions = settings.store.partitions
    return [
        *looking_routes(access, settings.store, timing, settings.tiers),
        *acting_routes(access, partitions),
        feed_route(access, partitions=partitions),
    ]


def admin_authenticator(settings: NodeSettings) -> Authenticator | None:
    """Who verifies tokens on the admin port; None when the port is for this machine alone and needs none.

    Raises:
        ConfigError: a key can not be used.
    """
    return None if is_loopback(settings.listen.admin_host) else load_authenticator(settings)


async def serve_admin(app: Starlette, sockets: Sequence[socket.socket], *, clock: Clock | None = None) -> Listener:
    """Serve the admin port on bound sockets, which `Listener.stop` closes.

    Raises:
        OSError: somebody else listens there by now.
    """
    return await serve(app, _NoSockets(), sockets=sockets, clock=clock)
