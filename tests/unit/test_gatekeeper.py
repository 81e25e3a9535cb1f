"""Who gets a socket: origin, load, limits, token, in this order."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest

from eventbus.store import Ticket
from eventbus.testing import ManualClock
from eventbus.tokens import make_token
from gateway.access.admission import Entry
from gateway.access.identities import claims_of
from gateway.sessions.gatekeeper import Doorkeeper
from gateway.transport.handshake import Accept, AcceptThenClose, Decision, Reject, Subprotocol, UpgradeRequest
from tests.support.bench import SECRET, Bench, identity_of

PAGE = {"origin": "http://bus.example", "host": "bus.example"}


class Door:
    """A doorkeeper, and how open its node says it is."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.draining = False
        self.store_is_down = False
        self.connections = 0
        self.attaching = 0
        self.keeper = Doorkeeper(
            bench.node.node_settings,
            host=bench.node,
            openness=self,
            store=bench.store,
            authenticator=bench.node.authenticator,
            clock=bench.clock,
            counters=bench.node.counters,
        )

    async def ask(
        self, *, client: str = "192.0.2.1", query: str = "", path: str = "/v1/connect", **headers: str
    ) -> Decision:
        request = UpgradeRequest(
            path=path,
            query=query,
            headers=headers,
            offered=(),
            subprotocol=Subprotocol.JSON,
            peer=client,
            client=client,
            scheme="http",
        )
        decision = self.keeper.decide(request)
        return await decision if inspect.isawaitable(decision) else decision

    def token(self, user: str = "alice", **claims: Any) -> str:
        now_ms = self.bench.clock.now_ms()
        return "Bearer " + make_token(user=user, secret=SECRET.encode(), now_ms=now_ms, **claims)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench(clock=ManualClock(), handshakes_per_address=3, connections_per_address=2) as made:
        yield made


@pytest.fixture
def door(bench: Bench) -> Door:
    return Door(bench)


def refusal(decision: Decision) -> tuple[int, str, str | None]:
    assert isinstance(decision, Reject), decision
    headers = dict(decision.headers)
    return decision.status, decision.code, headers.get("Retry-After")


@pytest.mark.requirement("R23")
async def test_a_good_token_gets_a_session_of_its_user(door: Door) -> None:
    decision = await door.ask(authorization=door.token("ann"))
    assert isinstance(decision, Accept)
    assert decision.handler.identity.user == "ann"  # type: ignore[attr-defined]


async def test_without_a_token_the_hello_has_to_bring_it(door: Door) -> None:
    decision = await door.ask()
    assert isinstance(decision, Accept)
    assert decision.handler.identity is None  # type: ignore[attr-defined]


@pytest.mark.requirement("R23")
async def test_a_foreign_page_is_refused_before_anything_else_is_looked_at(door: Door) -> None:
    door.draining = True
    for _ in range(5):
        assert refusal(await door.ask(origin="http://evil.example", host="bus.example"))[:2] == (
            403,
            "forbidden_origin",
        )
    # It cost the address none of its handshakes.
    door.draining = False
    assert isinstance(await door.ask(authorization=door.token()), Accept)


@pytest.mark.parametrize(
    "state, code, close",
    [("draining", "draining", 4001), ("store_is_down", "store_unavailable", 4005)],
)
async def test_a_node_that_takes_nobody_says_503_and_to_a_browser_a_close_code(
    door: Door, state: str, code: str, close: int
) -> None:
    setattr(door, state, True)
    assert refusal(await door.ask(authorization=door.token())) == (503, code, "2")
    browser = await door.ask(authorization=door.token(), **PAGE)
    assert isinstance(browser, AcceptThenClose)
    assert browser.code == close
    assert door.bench.node.counters.connections_refused[code] == 2


async def test_a_full_node_is_overloaded(door: Door) -> None:
    door.connections = 50_000
    assert refusal(await door.ask(authorization=door.token()))[:2] == (503, "overloaded")
    browser = await door.ask(authorization=door.token(), **PAGE)
    assert isinstance(browser, AcceptThenClose)
    assert browser.code == 4007


@pytest.mark.requirement("R23")
async def test_handshakes_above_the_rate_of_an_address_are_refused_until_time_has_passed(door: Door) -> None:
    for _ in range(3):
        assert refusal(await door.ask(authorization="Bearer x"))[0] == 401
    assert refusal(await door.ask(authorization=door.token())) == (429, "rate_limited", "1")
    browser = await door.ask(authorization=door.token(), **PAGE)
    assert isinstance(browser, AcceptThenClose)
    assert browser.code == 4006
    # Another address is not kept waiting.
    assert isinstance(await door.ask(client="192.0.2.2", authorization=door.token()), Accept)
    door.bench.clock.advance(1_000)
    assert isinstance(await door.ask(authorization=door.token()), Accept)


@pytest.mark.requirement("R23")
async def test_connections_of_an_address_are_counted_until_they_are_gone(door: Door) -> None:
    first, second = await door.ask(), await door.ask()
    assert isinstance(first, Accept)
    assert isinstance(second, Accept)
    assert refusal(await door.ask()) == (429, "rate_limited", "5")
    first.handler.on_close(1006, "")
    door.bench.clock.advance(1_000)
    assert isinstance(await door.ask(), Accept)


@pytest.mark.requirement("R23")
async def test_a_refused_token_takes_no_place_among_the_connections(door: Door) -> None:
    for _ in range(5):
        door.bench.clock.advance(1_000)
        assert refusal(await door.ask(authorization="Bearer nonsense"))[0] == 401
    door.bench.clock.advance(1_000)
    assert isinstance(await door.ask(), Accept)


@pytest.mark.requirement("R23")
async def test_a_bad_token_and_a_missing_scope_are_told_apart(door: Door) -> None:
    bad = await door.ask(authorization="Bearer nonsense")
    assert refusal(bad)[:2] == (401, "malformed")
    assert isinstance(bad, Reject)
    assert ("WWW-Authenticate", "Bearer") in bad.headers
    assert refusal(await door.ask(authorization=door.token(scopes=("publish",))))[:2] == (403, "forbidden")


@pytest.mark.requirement("R23")
async def test_a_ticket_is_exchanged_once_for_what_its_token_said(door: Door, bench: Bench) -> None:
    identity = identity_of("ann", session="pinned", tier="pro", expires_ms=4_000_000_000_000)
    await bench.store.put_ticket(Ticket(ticket="t" * 32, claims=claims_of(identity), life_ms=60_000))
    decision = await door.ask(query="ticket=" + "t" * 32)
    assert isinstance(decision, Accept)
    assert decision.handler.identity == identity  # type: ignore[attr-defined]
    assert refusal(await door.ask(query="ticket=" + "t" * 32))[:2] == (401, "bad_ticket")


@pytest.mark.requirement("R25")
async def test_a_ticket_that_the_store_can_not_look_up_is_a_503(door: Door, bench: Bench) -> None:
    bench.store.fail()
    assert refusal(await door.ask(query="ticket=" + "t" * 32)) == (503, "store_unavailable", "2")
    bench.store.heal()


async def test_clients_behind_a_trusted_proxy_that_names_none_are_not_limited_as_one() -> None:
    async with Bench(clock=ManualClock(), handshakes_per_address=1, trusted_proxies="10.0.0.0/8") as bench:
        door = Door(bench)
        for _ in range(5):
            assert isinstance(await door.ask(client="10.1.2.3"), Accept)


HEAD = b"GET /v1/connect HTTP/1.1\r\nHost: bus.example\r\n"


def _busy(door: Door) -> None:
    door.attaching = 1_000_000


@pytest.mark.requirement("R23")
async def test_who_waits_for_a_turn_is_counted_by_the_address_that_the_limits_count() -> None:
    async with Bench(clock=ManualClock(), handshakes_per_address=7, trusted_proxies="10.0.0.0/8") as bench:
        door = Door(bench).keeper
        head = b"GET /v1/connect HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 198.51.100.9, 192.0.2.7\r\n\r\n"
        assert door.waits_of_one == 7
        assert door.row(head, "203.0.113.5") == "203.0.113.5", "who is no proxy speaks for nobody else"
        assert door.row(head, "10.0.0.1") == "192.0.2.7"
        assert door.row(b"GET / HTTP/1.1\r\n\r\n", "10.0.0.1") is None
        assert door.row(b"GET / HTTP/1.1\r\nx-forwarded-for: \xff\r\n\r\n", "10.0.0.1") is None


@pytest.mark.requirement("R10")
async def test_in_a_storm_who_can_not_wait_gets_a_503_with_a_time_by_the_first_bytes(door: Door) -> None:
    _busy(door)
    assert door.keeper.enters(0) is Entry.WAIT
    assert door.keeper.enters(1_000_000) is Entry.AWAY
    assert not door.keeper.next_enters()
    reject = door.keeper.away(HEAD + b"\r\n")
    assert reject is not None
    status, code, wait = refusal(reject)
    assert (status, code) == (503, "overloaded")
    assert 1 <= int(wait or 0) <= 15
    assert door.keeper.away(HEAD + b"ORIGIN: http://bus.example\r\n\r\n") is None, "a browser can not read that"


@pytest.mark.requirement("R10")
async def test_in_a_storm_a_browser_is_told_by_a_goaway_and_a_foreign_page_by_a_403(door: Door) -> None:
    def asked(**headers: str) -> Decision:
        peer = "192.0.2.1"
        return door.keeper.away_request(
            UpgradeRequest(
                path="/v1/connect",
                query="",
                headers=headers,
                offered=(),
                subprotocol=Subprotocol.JSON,
                peer=peer,
                client=peer,
                scheme="http",
            )
        )

    told = asked(**PAGE)
    assert isinstance(told, AcceptThenClose)
    assert told.code == 4007
    assert told.come_back_ms is not None
    assert 1_000 <= told.come_back_ms <= 15_000
    assert refusal(asked(origin="http://evil.example", host="bus.example"))[:2] == (403, "forbidden_origin")


@pytest.mark.requirement("R10")
async def test_a_response_that_stands_for_a_socket_has_its_turn_too(door: Door) -> None:
    _busy(door)
    assert isinstance(await door.ask(authorization=door.token()), Accept), "a socket has had its turn in the lobby"
    assert refusal(await door.ask(path="/v1/sse", authorization=door.token()))[:2] == (503, "overloaded")
