"""Who gets a socket: origin, load, limits, token, in this order. The only I/O is a ticket, which Redis burns.

In a storm they wait for their turn before any of this (`gateway.transport.lobby`), and most of those who can not wait
are turned away by the first bytes of their request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from typing import Final, Protocol

import orjson

from eventbus.clock import Clock
from eventbus.errors import AuthError, CloseCode, EventBusError, Forbidden, RateLimited
from eventbus.store import Store
from gateway.access.admission import Admission, Entry
from gateway.access.auth import Authenticator, Identity, Scope, require_scope
from gateway.access.identities import identity_from_claims
from gateway.access.limits import AddressConnections, HandshakeLimit, is_within, limited_address
from gateway.access.origin import check_origin
from gateway.access.proxy import client_address
from gateway.access.token_source import TokenWay, find_token
from gateway.config import NodeSettings
from gateway.counters import Counters
from gateway.sessions.session import Host, Session
from gateway.transport.handshake import CONNECT_PATH, Accept, AcceptThenClose, Decision, Reject, UpgradeRequest

__all__ = ["Doorkeeper", "Openness"]

RETRY_AFTER_MS: Final = 2_000

_STORM: Final = "too many clients come at once"


class Openness(Protocol):
    """Whether the node takes connections now."""

    @property
    def draining(self) -> bool:
        """It is about to end."""

    @property
    def store_is_down(self) -> bool:
        """It has no working store, for too long."""

    @property
    def connections(self) -> int:
        """How many it has."""

    @property
    def attaching(self) -> int:
        """How many sessions wait for Redis to open them."""


class Doorkeeper:
    """Decides about upgrades.

    Attributes:
        admission: how many come in at a time.
    """

    def __init__(
        self,
        settings: NodeSettings,
        *,
        host: Host,
        openness: Openness,
        store: Store,
        authenticator: Authenticator,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._settings = settings
        self._host = host
        self._openness = openness
        self._store = store
        self._authenticator = authenticator
        self._clock = clock
        self._counters = counters
        limits = settings.limits
        self.admission = Admission(limits.handshakes_per_second, limits.attaches_waiting, clock.monotonic_ms())
        self._handshakes = HandshakeLimit(settings.limits.handshakes_per_address)
        # More of them would be refused by their rate when their turn has come.
        self.waits_of_one = settings.limits.handshakes_per_address
        self._addresses = AddressConnections(settings.limits.connections_per_address)

    # --- the door (`gateway.transport.lobby`) -------------------------------------------------------------------------

    def enters(self, waiting: int) -> Entry:
        """See `Door.enters`."""
        return self.admission.enter(waiting, self._openness.attaching, self._clock.monotonic_ms())

    def next_enters(self) -> bool:
        """See `Door.next_enters`."""
        return self.admission.take(self._openness.attaching, self._clock.monotonic_ms())

    def row(self, head: bytes, peer: str) -> str | None:
        """See `Door.row`."""
        trusted = self._settings.listen.trusted_proxies
        client = client_address(peer, _forwarded(head), lambda address: is_within(address, trusted))
        return limited_address(client, trusted)

    def away(self, head: bytes) -> Reject | None:
        """See `Door.away`."""
        if b"\norigin:" in head.lower():
            return None
        return self._reject(503, "overloaded", _STORM, self.admission.come_back_ms(self._clock.monotonic_ms()))

    def away_request(self, request: UpgradeRequest) -> Decision:
        """See `Door.away_request`. A foreign page learns no more than that it is one."""
        foreign = self._foreign(request)
        if foreign is not None:
            return foreign
        come_back_ms = self.admission.come_back_ms(self._clock.monotonic_ms())
        return self._turn_away(request, 503, "overloaded", _STORM, CloseCode.OVERLOADED, come_back_ms)

    # --- the decision -----------------------------------------------------------------------------------------------

    def decide(self, request: UpgradeRequest) -> Decision | Awaitable[Decision]:
        """Decides about one request. Source: docs/protocol.md, sections 1 and 7."""
        refusal = self._foreign(request) or self._refused_for_load(request)
        if refusal is not None:
            return refusal
        try:
            source = find_token(list(request.headers.items()), request.offered, request.query)
            if source.way is TokenWay.TICKET:
                return self._by_ticket(request, source.value or "")
            identity = None
            if source.value is not None:
                identity = self._authenticator.verify(source.value, self._clock.now_ms())
                self._host.check_revoked(identity)
                require_scope(identity, Scope.SUBSCRIBE)
        except AuthError as error:
            return self._reject(401, error.reason, str(error))
        except Forbidden as error:
            return self._reject(403, error.code, str(error))
        return self._accept(request, identity)

    def _foreign(self, request: UpgradeRequest) -> Reject | None:
        if check_origin(request.origin, request.header("host"), self._settings.listen.allowed_origins):
            return None
        return self._reject(403, "forbidden_origin", f"the origin {request.origin!r} is not on the allow-list")

    def _refused_for_load(self, request: UpgradeRequest) -> Decision | None:
        openness = self._openness
        if openness.draining:
            return self._turn_away(request, 503, "draining", "the node is draining", CloseCode.DRAINING)
        if openness.store_is_down:
            return self._turn_away(
                request, 503, "store_unavailable", "the node has no working store", CloseCode.STORE_UNAVAILABLE
            )
        if openness.connections >= self._settings.limits.max_connections:
            message = f"the node has {openness.connections} connections, its limit"
            return self._turn_away(request, 503, "overloaded", message, CloseCode.OVERLOADED)
        try:
            self._handshakes.check(self._row(request), self._clock.monotonic_ms())
        except RateLimited as error:
            return self._rate_limited(request, error)
        # A socket has had its turn in the lobby; a response that stands for one has not.
        if request.path != CONNECT_PATH and not self.next_enters():
            come_back_ms = self.admission.come_back_ms(self._clock.monotonic_ms())
            return self._turn_away(request, 503, "overloaded", _STORM, CloseCode.OVERLOADED, come_back_ms)
        return None

    async def _by_ticket(self, request: UpgradeRequest, ticket: str) -> Decision:
        try:
            claims = await self._store.take_ticket(ticket)
            if claims is None:
                return self._reject(401, "bad_ticket", "the ticket is unknown, used, or older than 60 s")
            identity = identity_from_claims(orjson.loads(claims))
            # The token may have been revoked since the ticket was made of it.
            self._host.check_revoked(identity)
        except AuthError as error:
            return self._reject(401, error.reason, str(error))
        except EventBusError as error:
            return self._turn_away(request, 503, error.code, str(error), CloseCode.STORE_UNAVAILABLE)
        return self._accept(request, identity)

    def _accept(self, request: UpgradeRequest, identity: Identity | None) -> Decision:
        address = self._row(request)
        try:
            self._addresses.add(address)
        except RateLimited as error:
            return self._rate_limited(request, error)
        return Accept(handler=Session(self._host, identity, left=lambda: self._addresses.remove(address)))

    def _row(self, request: UpgradeRequest) -> str | None:
        return limited_address(request.client, self._settings.listen.trusted_proxies)

    def _rate_limited(self, request: UpgradeRequest, error: RateLimited) -> Decision:
        return self._turn_away(request, 429, error.code, str(error), CloseCode.RATE_LIMITED, error.retry_after_ms)

    def _reject(self, status: int, code: str, message: str, retry_after_ms: int = RETRY_AFTER_MS) -> Reject:
        self._counters.connections_refused[code] += 1
        headers: tuple[tuple[str, str], ...] = ()
        if status in (429, 503):
            headers = (("Retry-After", str(-(-retry_after_ms // 1000))),)
        elif status == 401:
            headers = (("WWW-Authenticate", "Bearer"),)
        return Reject(status=status, code=code, message=message, headers=headers)

    def _turn_away(
        self,
        request: UpgradeRequest,
        status: int,
        code: str,
        message: str,
        close: CloseCode,
        retry_after_ms: int = RETRY_AFTER_MS,
    ) -> Decision:
        """A browser can not read a status: it is let in and sent away with a close code."""
        if request.origin is None:
            return self._reject(status, code, message, retry_after_ms)
        self._counters.connections_refused[code] += 1
        # Who is to come back in a storm has a time of its own; else the client's own waits are as good.
        come_back_ms = retry_after_ms if close is CloseCode.OVERLOADED else None
        return AcceptThenClose(code=int(close), reason=message, come_back_ms=come_back_ms)


def _forwarded(head: bytes) -> Iterator[tuple[str, str]]:
    """The lines of a head that say for whom a proxy speaks."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"x-forwarded-for":
            yield "x-forwarded-for", value.decode("latin-1")
