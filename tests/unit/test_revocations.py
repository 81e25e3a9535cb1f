"""What a node does with what is revoked: who is let in, who is closed, and what is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from eventbus import revoking
from eventbus.clock import SystemClock
from eventbus.errors import AuthError, InvalidField, SessionRevoked, StoreUnavailable
from eventbus.ids import ENTRY_ZERO, SessionId, UserId
from eventbus.store import Attach, Attached, AttachRefused
from eventbus.store.revoking import Revocation, Revoke, Subject
from eventbus.testing import ManualClock, MemoryStore
from eventbus.tokens import make_token
from gateway.access.revocations import LOOK_MS, Revocations, RevokedList
from gateway.admin.port import make_admin_app
from gateway.admin.revocations import AdminAccess
from gateway.counters import Counters
from gateway.metrics import Snapshot
from gateway.transport.handshake import Accept, Decision, Reject, Subprotocol, UpgradeRequest
from gateway.web.routes import make_app
from tests.support.bench import SECRET, Bench, identity_of
from tests.support.waiting import until

ADA = UserId("ada")
TAB, PHONE = SessionId("tab"), SessionId("phone")
NOW_MS = 1_763_700_000_000
HOUR_MS = 3_600_000

pytestmark = pytest.mark.requirement("R23")


def revocation(*, at_ms: int = NOW_MS, until_ms: int = NOW_MS + HOUR_MS, **subject: Any) -> Revocation:
    return Revocation(subject=Subject(**subject), reason="", by="", number=1, revoked_ms=at_ms, until_ms=until_ms)


def struck(found: Revocation, *, session: SessionId | None = None, now_ms: int = NOW_MS, **claims: Any) -> bool:
    """Whether it strikes a token of Ada, used for a session."""
    known = RevokedList()
    known.add(found)
    return known.find(identity_of("ada", **claims), session, now_ms) is not None


# --- whom a revocation strikes ----------------------------------------------------------------------------------------


def test_a_revoked_token_is_struck_whenever_it_was_issued_and_no_other_is() -> None:
    found = revocation(jti="t1")
    assert struck(found, jti="t1", issued_ms=NOW_MS + 5_000)
    assert struck(found, jti="t1")
    assert not struck(found, jti="t2")
    assert not struck(found)


@pytest.mark.parametrize("issued_ms, hit", [(NOW_MS, True), (NOW_MS + 1, False), (None, True)])
def test_a_revoked_user_is_struck_with_tokens_issued_before_or_nobody_knows_when(
    issued_ms: int | None, hit: bool
) -> None:
    assert struck(revocation(user=ADA), issued_ms=issued_ms) is hit
    assert not struck(revocation(user=UserId("bob")), issued_ms=issued_ms)


@pytest.mark.parametrize("issued_ms, hit", [(NOW_MS, True), (NOW_MS + 1, False), (None, True)])
def test_a_revoked_session_is_struck_where_it_is_used_or_the_token_is_bound_to_it(
    issued_ms: int | None, hit: bool
) -> None:
    found = revocation(user=ADA, session=TAB)
    assert struck(found, session=TAB, issued_ms=issued_ms) is hit
    known = RevokedList()
    known.add(found)
    bound = replace(identity_of("ada"), session=TAB, issued_ms=issued_ms)
    assert (known.find(bound, None, NOW_MS) is not None) is hit
    assert not struck(found, session=PHONE)
    assert not struck(found)


def test_another_users_session_of_the_same_name_is_not_struck() -> None:
    known = RevokedList()
    known.add(revocation(user=ADA, session=TAB))
    assert known.find(identity_of("bob"), TAB, NOW_MS) is None


def test_a_revocation_that_has_ended_strikes_nobody() -> None:
    assert not struck(revocation(jti="t1"), jti="t1", now_ms=NOW_MS + HOUR_MS)


def test_the_errors_tell_a_revoked_token_from_a_revoked_session() -> None:
    known = RevokedList()
    known.add(revocation(user=ADA, session=TAB))
    with pytest.raises(SessionRevoked) as ended:
        known.check(identity_of("ada"), TAB, NOW_MS)
    assert ended.value.close_code == 4506
    with pytest.raises(AuthError) as bound:
        known.check(replace(identity_of("ada"), session=TAB), None, NOW_MS)
    assert (bound.value.reason, bound.value.close_code) == ("token_revoked", 4501)


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_what_is_known_already_is_not_new_and_the_sternest_of_two_counts() -> None:
    known = RevokedList()
    first = revocation(user=ADA)
    assert known.add(first)
    assert not known.add(first)
    # Another server's clock is behind, and it remembers for longer.
    assert known.add(replace(first, revoked_ms=NOW_MS - 500, until_ms=NOW_MS + 2 * HOUR_MS))
    assert known.find(identity_of("ada", issued_ms=NOW_MS - 100), None, NOW_MS + HOUR_MS + 1) is not None
    assert len(known) == 1


def test_the_list_is_bounded_and_loses_what_ends_first() -> None:
    known = RevokedList(most=2)
    for number in (3, 1, 2):
        known.add(revocation(jti=f"t{number}", until_ms=NOW_MS + number))
    known.forget(NOW_MS)
    assert len(known) == 2
    assert known.find(identity_of("ada", jti="t1"), None, NOW_MS) is None
    assert known.find(identity_of("ada", jti="t3"), None, NOW_MS) is not None
    known.forget(NOW_MS + 2)
    assert len(known) == 1


# --- reading the store ------------------------------------------------------------------------------------------------


async def revoke(store: MemoryStore, **subject: Any) -> Revocation:
    return await store.revoke(Revoke(subject=Subject(**subject)))


async def test_nobody_is_let_in_before_the_revocations_were_read() -> None:
    clock = ManualClock()
    read = Revocations(MemoryStore(clock=clock), clock, Counters())
    with pytest.raises(StoreUnavailable):
        read.check(identity_of())
    assert read.problem() is not None
    await read.load()
    read.check(identity_of())
    assert read.problem() is None


async def test_what_could_not_be_read_for_too_long_is_a_problem_but_not_when_the_node_itself_stood_still() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    read = Revocations(store, clock, Counters())
    await read.load()
    store.fail()
    clock.advance(3_001)
    with pytest.raises(StoreUnavailable):
        await read.load()
    assert read.unread_ms() == 3_001
    assert read.problem() is not None
    read.stood_still(3_001)
    assert read.problem() is None
    clock.advance(3_001)
    store.heal()
    await read.load()
    assert read.problem() is None


async def test_what_is_new_is_told_once_and_what_was_lost_by_the_store_is_still_obeyed() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    told: list[str] = []
    read = Revocations(store, clock, Counters(), struck=lambda fresh: told.extend(one.subject.name for one in fresh))
    await revoke(store, jti="t1")
    await read.load()
    await read.load()
    assert told == ["jti t1"]
    store.flush()
    await revoke(store, jti="t2")
    await read.load()
    assert told == ["jti t1", "jti t2"]
    with pytest.raises(AuthError):
        read.check(identity_of(jti="t1"))


async def test_what_was_read_before_a_failure_is_told_and_the_rest_comes_with_the_next_look() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    told: list[str] = []
    read = Revocations(store, clock, Counters(), struck=lambda fresh: told.extend(one.subject.name for one in fresh))
    for number in range(501):
        await revoke(store, jti=f"t{number}")
    store.lose_replies(calls=2)
    with pytest.raises(StoreUnavailable):
        await read.load()
    store.heal()
    await read.load()
    assert len(told) == len(read.known) == 501


async def test_a_message_makes_the_node_look_at_once() -> None:
    store = MemoryStore()
    told: list[str] = []
    read = Revocations(
        store, SystemClock(), Counters(), struck=lambda fresh: told.extend(one.subject.name for one in fresh)
    )
    looking = asyncio.create_task(read.run())
    await read.loaded.wait()
    await revoke(store, jti="t1")
    read.look_at_once()
    # The next look of its own would come a second after the first.
    await until(lambda: told == ["jti t1"], LOOK_MS // 2)
    calls = store.calls
    for _ in range(50):
        await asyncio.sleep(0)
    assert store.calls <= calls + 1, "one message is one look"
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def test_a_node_looks_again_after_a_look_that_failed() -> None:
    store = MemoryStore()
    store.fail(calls=1)
    read = Revocations(store, SystemClock(), counters := Counters())
    looking = asyncio.create_task(read.run())
    await until(lambda: counters.store_errors["store_unavailable"] == 1)
    assert not read.loaded.is_set()
    await until(read.loaded.is_set, 2 * LOOK_MS)
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


# --- the doors of a node ----------------------------------------------------------------------------------------------


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench(clock=ManualClock()) as made:
        yield made


def token(bench: Bench, user: str = "ada", **claims: Any) -> str:
    return make_token(user=user, secret=SECRET.encode(), now_ms=bench.clock.now_ms(), **claims)


async def ask(bench: Bench, *, query: str = "", **headers: str) -> Decision:
    request = UpgradeRequest(
        path="/v1/connect", query=query, headers=headers, offered=(), subprotocol=Subprotocol.JSON,
        peer="192.0.2.1", client="192.0.2.1", scheme="http",
    )  # fmt: skip
    decision = bench.node.doorkeeper.decide(request)
    return decision if isinstance(decision, Accept | Reject) else await decision  # type: ignore[misc]


async def revoked(bench: Bench, **subject: Any) -> None:
    """Revokes, and lets the node read it. Tokens say when they were issued in whole seconds."""
    await bench.pass_time(1_000)
    await revoke(bench.store, **subject)
    await bench.node.revocations.load()
    await bench.settle()


async def test_a_revoked_token_opens_no_socket_and_a_newer_one_does(bench: Bench) -> None:
    old = token(bench)
    assert isinstance(await ask(bench, authorization=f"Bearer {old}"), Accept)
    await revoked(bench, user=ADA)
    refused = await ask(bench, authorization=f"Bearer {old}")
    assert isinstance(refused, Reject)
    assert (refused.status, refused.code) == (401, "token_revoked")
    await bench.pass_time(1_000)
    assert isinstance(await ask(bench, authorization=f"Bearer {token(bench)}"), Accept)


async def test_a_ticket_of_a_token_that_was_revoked_meanwhile_opens_nothing(bench: Bench) -> None:
    transport = httpx.ASGITransport(make_app(bench.node))
    async with httpx.AsyncClient(transport=transport, base_url="http://bus") as http:
        headers = {"Authorization": f"Bearer {token(bench, jti='t1')}"}
        tickets = [(await http.post("/v1/tickets", headers=headers)).json()["ticket"] for _ in range(3)]
        assert isinstance(await ask(bench, query=f"ticket={tickets[0]}"), Accept)
        await revoked(bench, jti="t1")
        refused = await ask(bench, query=f"ticket={tickets[1]}")
        assert isinstance(refused, Reject)
        assert (refused.status, refused.code) == (401, "token_revoked")
        answer = await http.get("/v1/events", params={"ticket": tickets[2]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "token_revoked")


async def test_a_ticket_of_a_token_that_was_issued_later_opens_a_socket(bench: Bench) -> None:
    await revoked(bench, user=ADA)
    await bench.pass_time(1_000)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app(bench.node)), base_url="http://bus") as http:
        made = await http.post("/v1/tickets", headers={"Authorization": f"Bearer {token(bench)}"})
    assert isinstance(await ask(bench, query=f"ticket={made.json()['ticket']}"), Accept)


@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "/v1/tickets"),
        ("POST", "/v1/events"),
        ("GET", "/v1/events"),
        ("GET", "/v1/events/e1/confirmations"),
        ("GET", "/v1/threads"),
        ("GET", "/v1/presence"),
        ("GET", "/v1/sse"),
        ("POST", "/v1/acks"),
    ],
)
async def test_no_route_takes_a_revoked_token(bench: Bench, method: str, path: str) -> None:
    headers = {"Authorization": f"Bearer {token(bench, scopes=['subscribe', 'publish', 'admin'])}"}
    await revoked(bench, user=ADA)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app(bench.node)), base_url="http://bus") as http:
        answer = await http.request(method, path, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "token_revoked")


async def test_a_token_that_is_revoked_between_handshake_and_hello_opens_no_session(bench: Bench) -> None:
    client = bench.connect("ada", issued_ms=bench.clock.now_ms())
    await revoked(bench, user=ADA)
    client.say("hello", session="tab")
    await bench.settle()
    assert client.close_code() == 4501
    assert client.ops() == ["error"]


async def test_a_revoked_token_in_hello_is_closed_with_4501(bench: Bench) -> None:
    old = token(bench)
    await revoked(bench, user=ADA)
    client = bench.connect("ada")
    client.session.identity = None
    client.say("hello", token=old)
    assert client.close_code() == 4501


async def test_a_revoked_session_is_refused_to_older_tokens_and_other_sessions_are_not(bench: Bench) -> None:
    issued_ms = bench.clock.now_ms()
    await revoked(bench, user=ADA, session=TAB)
    for session, issued, code in ((TAB, issued_ms, 4506), (PHONE, issued_ms, None), (TAB, issued_ms + 2_000, None)):
        client = bench.connect("ada", issued_ms=issued)
        client.say("hello", session=session)
        await bench.settle()
        assert client.close_code() == code


async def test_a_token_that_was_revoked_does_not_refresh(bench: Bench) -> None:
    client = await bench.open("ada")
    old = token(bench, jti="t1")
    await revoked(bench, jti="t1")
    assert client.close_code() is None
    client.say("refresh", token=old)
    assert client.close_code() == 4501


# --- live connections -------------------------------------------------------------------------------------------------


async def opened(bench: Bench, user: str, session: str, **identity: Any) -> Any:
    client = bench.connect(user, issued_ms=bench.clock.now_ms(), **identity)
    client.say("hello", session=session)
    await bench.settle()
    assert client.ops()[0] == "welcome"
    return client


@pytest.mark.parametrize(
    "subject, codes",
    [
        ({"jti": "t1"}, [4501, None, None]),
        ({"user": ADA}, [4501, 4501, None]),
        ({"user": ADA, "session": PHONE}, [None, 4506, None]),
    ],
)
async def test_a_revocation_closes_those_whom_it_strikes_and_nobody_else(
    bench: Bench, subject: dict[str, Any], codes: list[int | None]
) -> None:
    clients = [
        await opened(bench, "ada", "tab", jti="t1"),
        await opened(bench, "ada", "phone", jti="t2"),
        await opened(bench, "bob", "phone", jti="t3"),
    ]
    await revoked(bench, **subject)
    assert [client.close_code() for client in clients] == codes
    assert len(bench.node.hub) == codes.count(None)
    await bench.publish(user="bob")
    assert len(clients[2].events()) == 1


async def test_a_connection_that_got_a_newer_token_in_time_stays(bench: Bench) -> None:
    client = await opened(bench, "ada", "tab")
    await bench.pass_time(1_000)
    await revoke(bench.store, user=ADA)
    await bench.pass_time(1_000)
    client.say("refresh", token=token(bench))
    assert client.ops()[-1] == "refreshed"
    await bench.node.revocations.load()
    assert client.close_code() is None


class SlowStore(MemoryStore):
    """Answers attaches when `gate` is set."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.gate = asyncio.Event()

    async def attach(self, request: Attach) -> Attached | AttachRefused:
        await self.gate.wait()
        return await super().attach(request)


async def test_an_attach_that_is_answered_after_the_revocation_opens_nothing() -> None:
    clock = ManualClock()
    store = SlowStore(clock)
    async with Bench(store, clock) as bench:
        client = bench.connect("ada", issued_ms=clock.now_ms())
        client.say("hello", session="tab")
        await bench.settle()
        await revoked(bench, user=ADA)
        assert client.close_code() == 4501
        store.gate.set()
        await bench.settle()
        assert client.ops() == []
        assert await bench.live("ada") is None


async def test_what_was_acked_before_the_revocation_is_stored(bench: Bench) -> None:
    client = await opened(bench, "ada", "tab")
    entries = await bench.publish(2, user="ada")
    client.say("ack", ids=[entries[0]])
    await revoked(bench, user=ADA)
    assert client.close_code() == 4501
    assert await bench.pending("ada") == [entries[1]]


async def test_a_revoked_session_is_ended_in_the_store(bench: Bench) -> None:
    client = await opened(bench, "ada", "tab")
    await bench.publish(2, user="ada")
    await bench.pass_time(1_000)
    await revoking.revoke(bench.store, Revoke(subject=Subject(user=ADA, session=TAB)))
    await bench.node.revocations.load()
    await bench.settle()
    assert client.close_code() == 4506
    assert await bench.store.sessions(ADA) == []
    levels = [record.level for _, record in await bench.store.confirmations(ADA, ENTRY_ZERO, 100)]
    assert levels == ["expired"]


# --- asking for it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked, field",
    [
        ({}, "user"),
        ({"session": "tab"}, "user"),
        ({"jti": ""}, "jti"),
        ({"jti": "x" * 257}, "jti"),
        ({"jti": 17}, "jti"),
        ({"jti": "t1", "user": "ada"}, "jti"),
        ({"user": "run_1"}, "user"),
        ({"user": "ada", "session": "a b"}, "session"),
        ({"user": "ada", "reason": "x" * 257}, "reason"),
        ({"user": "ada", "reason": 1}, "reason"),
        ({"user": "ada", "expires_ms": 1}, "expires_ms"),
        ({"jti": "t1", "expires_ms": "soon"}, "expires_ms"),
        ({"jti": "t1", "expires_ms": -1}, "expires_ms"),
        ({"jti": "t1", "until": 1}, "until"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused_with_its_field(asked: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        revoking.revocation_asked_for(asked)
    assert caught.value.field == field


class Overview:
    """Nothing is measured here."""

    async def figures(self) -> Snapshot:
        return {}

    def processes(self) -> list[dict[str, object]]:
        return []


@pytest.fixture
async def admin(bench: Bench) -> AsyncIterator[httpx.AsyncClient]:
    """The admin port of a node, on loopback."""
    node = bench.node
    access = AdminAccess(node.store, node.revocations, node.authenticator, node.clock)
    app = make_admin_app(Overview(), authenticator=None, access=access)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://admin") as client:
        yield client


PATH = "/admin/v1/revocations"


def operator(bench: Bench, **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(bench, 'root-1', scopes=['admin'], **claims)}"}


async def test_an_operator_revokes_and_sees_what_is_revoked(bench: Bench, admin: httpx.AsyncClient) -> None:
    client = await opened(bench, "ada", "tab", jti="t1")
    expires_ms = bench.clock.now_ms() + HOUR_MS
    asked = {"jti": "t1", "reason": "leaked", "expires_ms": expires_ms}
    answer = await admin.post(PATH, json=asked, headers=operator(bench))
    assert answer.status_code == 201
    made = {
        "kind": "jti", "jti": "t1", "user": None, "session": None, "reason": "leaked", "by": "root-1",
        "revoked_ms": answer.json()["revoked_ms"], "until_ms": expires_ms,
    }  # fmt: skip
    assert answer.json() == made
    assert (await admin.get(PATH, headers=operator(bench))).json() == {"revocations": [made]}
    await bench.node.revocations.load()
    assert client.close_code() == 4501


async def test_nothing_is_revoked_or_shown_without_a_good_token_of_an_operator_on_loopback_either(
    bench: Bench, admin: httpx.AsyncClient
) -> None:
    now_ms = bench.clock.now_ms()
    wanted = [
        ({}, 401, "no_token"),
        ({"Authorization": f"Bearer {token(bench, scopes=['publish', 'subscribe'])}"}, 403, "forbidden"),
        ({"Authorization": "Bearer a.b.c"}, 401, "malformed"),
    ]
    for headers, status, code in wanted:
        for method in ("GET", "POST"):
            answer = await admin.request(
                method, PATH, headers=headers, json={"user": "bob"} if method == "POST" else None
            )
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert await revoking.revocations(bench.store, now_ms) == []


async def test_a_revoked_operator_revokes_nobody(bench: Bench, admin: httpx.AsyncClient) -> None:
    headers = operator(bench, jti="boss")
    await revoked(bench, jti="boss")
    answer = await admin.post(PATH, json={"user": "bob"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "token_revoked")


@pytest.mark.parametrize("body, field", [("{", "body"), ("[]", "body"), ('{"user": 1}', "user")])
async def test_a_bad_request_names_its_field(bench: Bench, admin: httpx.AsyncClient, body: str, field: str) -> None:
    answer = await admin.post(PATH, content=body, headers=operator(bench))
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)


async def test_an_operator_is_told_that_the_store_is_away(bench: Bench, admin: httpx.AsyncClient) -> None:
    bench.store.fail()
    answer = await admin.post(PATH, json={"user": "ada"}, headers=operator(bench))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
    bench.store.heal()
