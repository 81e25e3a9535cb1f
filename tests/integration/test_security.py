"""R22, R23: what an attacker tries at the doors of a node, and keys that change while it runs."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jws
from joserfc.jwk import ECKey

from gateway.access.keys import decode_base64url
from gateway.access.token_source import BEARER_SUBPROTOCOL
from gateway.node import Node
from tests.support.raw_websocket import TEXT, connected, upgrade_head
from tests.support.stalls import within
from tests.support.waiting import until
from tests.support.wire_client import JSON, Nodes, bearer, opened, publish, refused, token_of, wired

pytestmark = pytest.mark.requirement("R23")

WITHIN_MS = 2_000


def at(node: Node) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{node.port}")


# --- keys that change -------------------------------------------------------------------------------------------------


class Signer:
    """An issuer with a key of its own."""

    def __init__(self, kid: str) -> None:
        self.kid = kid
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self._key = ECKey.import_key(pem)

    @property
    def public(self) -> dict[str, Any]:
        return {**self._key.as_dict(private=False), "kid": self.kid, "use": "sig"}

    def token(self, user: str = "alice") -> str:
        claims = decode_base64url(token_of(user, scopes=("subscribe", "publish")).split(".")[1])
        return jws.serialize_compact({"alg": "ES256", "kid": self.kid, "typ": "JWT"}, claims, self._key)


def write_keys(file: Path, *signers: Signer) -> None:
    """Replaces the file at once, as whoever rotates keys should."""
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps({"keys": [signer.public for signer in signers]}))
    fresh.replace(file)


async def accepted(node: Node, token: str) -> bool:
    async with at(node) as http:
        return (await http.get("/v1/events", headers={"Authorization": bearer(token)})).status_code == 200


async def test_keys_are_rotated_while_nodes_run_and_a_key_that_goes_takes_its_connections_with_it(
    nodes: Nodes, tmp_path: Path
) -> None:
    file = tmp_path / "jwks.json"
    old, new = Signer("2026-10"), Signer("2026-11")
    write_keys(file, old)
    both = [await nodes.start(name, jwt_jwks_file=file, jwt_reload_ms=100) for name in ("n1", "n2")]
    async with AsyncExitStack() as stack:
        stays = [await stack.enter_async_context(wired(node, token_of("bob"))) for node in both]
        for number, client in enumerate(stays):
            await client.hello(session=f"bob{number}")
        struck = [await stack.enter_async_context(wired(node, old.token())) for node in both]
        for number, client in enumerate(struck):
            await client.hello(session=f"tab{number}")
        assert not await accepted(both[0], new.token())

        write_keys(file, old, new)
        for node in both:
            async with within(WITHIN_MS / 1_000):
                await until(lambda node=node: accepted(node, new.token()))  # type: ignore[misc]
            assert await accepted(node, old.token()), "side by side, nobody is turned away"
        async with at(both[0]) as http:
            made = await http.post("/v1/tickets", headers={"Authorization": bearer(old.token())})
        ticket = made.json()["ticket"]

        write_keys(file, new)
        async with within(WITHIN_MS / 1_000):
            closes = [await client.until_closed() for client in struck]
        assert [close.code for close in closes] == [4004, 4004], "they come back with a token of the new key"
        for node in both:
            assert not await accepted(node, old.token())
            status, _, error = await refused(node, authorization=bearer(old.token()))
            assert (status, error["code"]) == (401, "unknown_key")
        status, _, error = await refused(both[1], f"/v1/connect?ticket={ticket}")
        assert (status, error["code"]) == (401, "unknown_key"), "a ticket lives no longer than the key of its token"
        for client in stays:
            await client.until_op("caught_up")
            await client.nothing_more()


async def test_a_key_file_that_is_broken_for_a_while_turns_nobody_away(nodes: Nodes, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    signer = Signer("one")
    write_keys(file, signer)
    node = await nodes.start(jwt_jwks_file=file, jwt_reload_ms=50)
    async with wired(node, signer.token()) as client:
        await client.hello(session="tab")
        file.write_text('{"keys": [')
        await until(lambda: node.counters.key_reloads["failed"] >= 2)
        assert await accepted(node, signer.token())
        await client.until_op("caught_up")
        await client.nothing_more()


# --- tokens and tickets -----------------------------------------------------------------------------------------------


async def test_a_public_key_as_a_shared_secret_and_no_algorithm_at_all_let_nobody_in(
    nodes: Nodes, tmp_path: Path
) -> None:
    file = tmp_path / "jwks.json"
    signer = Signer("one")
    write_keys(file, signer)
    node = await nodes.start(jwt_jwks_file=file)
    header, body, signature = signer.token().split(".")
    claims = decode_base64url(body)

    def word(value: bytes) -> str:
        return urlsafe_b64encode(value).rstrip(b"=").decode()

    forged = []
    for secret in (orjson.dumps(signer.public), signer.public["x"].encode(), b""):
        head = word(orjson.dumps({"alg": "HS256", "kid": "one", "typ": "JWT"}))
        forged.append(f"{head}.{body}." + word(hmac.new(secret, f"{head}.{body}".encode(), hashlib.sha256).digest()))
    for alg in ("none", "None", "NONE", "nOnE", ""):
        forged += [f"{word(orjson.dumps({'alg': alg}))}.{body}.{end}" for end in ("", signature)]
    stolen = word(claims.replace(b'"alice"', b'"admin"'))
    forged += [f"{header}.{stolen}.{signature}", f"{header}.{body}", f"{header}.{body}.{signature}.{signature}"]
    embedded = orjson.dumps({"alg": "ES256", "jwk": Signer("mine").public, "kid": "mine"})
    forged += [f"{word(embedded)}.{body}.{signature}"]
    for token in forged:
        for headers in (
            {"authorization": bearer(token)},
            {"sec_websocket_protocol": f"{JSON}, {BEARER_SUBPROTOCOL}{word(token.encode())}"},
        ):
            status, _, error = await refused(node, **headers)
            assert status == 401, token
            assert set(error) == {"code", "message"}
            assert body not in error["message"]


async def test_of_ten_uses_of_a_ticket_on_two_nodes_at_once_one_succeeds(nodes: Nodes) -> None:
    both = [await nodes.start("n1"), await nodes.start("n2")]
    async with at(both[0]) as http:
        made = await http.post("/v1/tickets", headers={"Authorization": bearer(token_of())})
    path = f"/v1/connect?ticket={made.json()['ticket']}"

    async def use(node: Node) -> bool:
        async with connected(node.port) as raw:
            raw.write(upgrade_head(path))
            return (await raw.head()).startswith("HTTP/1.1 101 ")

    assert sum(await asyncio.gather(*(use(both[number % 2]) for number in range(10)))) == 1


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_a_user_publishes_on_all_nodes_together_no_more_than_the_tier_allows(
    nodes: Nodes, tmp_path: Path
) -> None:
    tiers = tmp_path / "tiers.json"
    tiers.write_text(json.dumps({"free": {"publishes_per_second": 1}}))
    both = [await nodes.start(name, tiers_file=tiers) for name in ("n1", "n2")]
    service = {"Authorization": bearer(token_of("service", scopes=("publish",)))}
    other = {"Authorization": bearer(token_of("other", scopes=("publish",)))}

    async def post(node: Node, count: int, headers: dict[str, str] = service) -> httpx.Response:
        batch = [{"type": "note", "user": "alice", "data": {"n": number}} for number in range(count)]
        async with at(node) as http:
            return await http.post("/v1/events", json=batch, headers=headers)

    assert (await post(both[0], 300)).status_code == 202
    assert (await post(both[1], 199)).status_code == 202
    answer = await post(both[1], 100)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited")
    assert 90 <= int(answer.headers["Retry-After"]) <= 100
    assert (await post(both[0], 100, other)).status_code == 202
    async with at(both[0]) as http:
        kept = await http.get("/v1/events?limit=500", headers={"Authorization": bearer(token_of())})
        rest = await http.get(
            f"/v1/events?limit=500&cursor={kept.json()['cursor']}", headers={"Authorization": bearer(token_of())}
        )
    assert len(kept.json()["events"]) + len(rest.json()["events"]) == 599, "what was refused is not stored"


async def test_requests_above_the_limit_of_an_address_are_a_429_and_health_is_always_told(nodes: Nodes) -> None:
    node = await nodes.start(requests_per_address=2, allowed_origins="https://app.example.org")
    origin = {"Origin": "https://app.example.org"}
    async with at(node) as http:
        answers = [await http.get("/v1/events", headers=origin) for _ in range(25)]
        assert {answer.status_code for answer in answers[:20]} == {401}
        last = answers[-1]
        assert (last.status_code, last.json()["error"]["code"]) == (429, "rate_limited")
        assert int(last.headers["Retry-After"]) >= 1
        assert last.headers["Access-Control-Allow-Origin"] == origin["Origin"], "a page can read why"
        assert (await http.get("/healthz")).status_code == 200
        # A stranger's word for another address changes nothing.
        spoofed = await http.get("/v1/events", headers={"X-Forwarded-For": "203.0.113.7"})
        assert spoofed.status_code == 429


async def test_bodies_that_are_held_open_leave_the_node_within_its_bound(nodes: Nodes) -> None:
    node = await nodes.start(max_bodies_bytes=100_000, max_body_bytes=60_000)
    headers = f"authorization: {bearer(token_of('service', scopes=('publish',)))}\r\ncontent-length: 50000\r\n"
    head = f"POST /v1/events HTTP/1.1\r\nhost: x\r\n{headers}\r\n".encode()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(node.port)) for _ in range(10)]
        for client in clients:
            client.write(head, b" " * 40_000)
        await until(lambda: node.counters.requests_limited["bodies"] >= 8)
        assert node.quotas.bodies_bytes <= 100_000
    await until(lambda: node.quotas.bodies_bytes == 0)


async def test_bytes_of_frames_above_the_tier_are_read_later_and_none_is_lost(nodes: Nodes, tmp_path: Path) -> None:
    tiers = tmp_path / "tiers.json"
    tiers.write_text(json.dumps({"free": {"bytes_per_second": 20_000, "frames_per_second": 1_000}}))
    node = await nodes.start(tiers_file=tiers)
    async with opened(node) as client:
        await client.expect("caught_up")
        padding = "x" * 49_900
        for number in range(5):
            client.raw.frame(TEXT, orjson.dumps({"op": "ping", "ref": f"p{number}", "padding": padding}))
        begin_ms = node.clock.monotonic_ms()
        for number in range(5):
            await client.expect("pong", ref=f"p{number}")
        # 200,000 bytes are there at once, and 50,000 more take two and a half seconds.
        assert node.clock.monotonic_ms() - begin_ms > 1_500


# --- what a client names and is not its own ---------------------------------------------------------------------------


@pytest.mark.requirement("R22")
async def test_a_session_of_the_same_name_is_another_users_own(nodes: Nodes) -> None:
    node = await nodes.start()
    async with opened(node, "alice", session="tab") as alice:
        await alice.expect("caught_up")
        (entry,) = await publish(node, "for alice")
        (event,) = await alice.events(1)
        async with opened(node, "mallory", session="tab", start="earliest") as mallory:
            await mallory.expect("caught_up")
            mallory.send("ack", ids=[entry], ref="a")
            assert (await mallory.expect("acked"))["count"] == 0
            mallory.send("nack", id=entry, delay_ms=0)
            mallory.send("ack", ids=[entry], level="confirmed", note="mine", ref="b")
            assert (await mallory.expect("acked"))["count"] == 0
            await mallory.nothing_more()
            async with at(node) as http:
                headers = {"Authorization": bearer(token_of("mallory"))}
                known = await http.get(f"/v1/events/{event['event']['id']}/confirmations", headers=headers)
                never = await http.get("/v1/events/never-was/confirmations", headers=headers)
                ack = {"op": "ack", "session": "tab", "ids": [entry]}
                released = await http.post("/v1/acks", json=ack, headers=headers)
        assert known.status_code == never.status_code == 404
        assert (
            known.json()["error"]["message"].replace(event["event"]["id"], "never-was")
            == (never.json()["error"]["message"])
        )
        assert released.status_code != 200 or released.json()["count"] == 0
        alice.send("ack", ids=[entry], ref="mine")
        assert (await alice.expect("acked"))["count"] == 1, "still pending: nobody else could ack it"


CRLF = "x\r\nSet-Cookie: stolen=1\r\n\r\n<script>alert(1)</script>"


async def test_line_breaks_in_names_end_up_in_no_header(nodes: Nodes) -> None:
    node = await nodes.start()
    quoted = "x%0d%0aSet-Cookie:%20stolen=1%0d%0a%0d%0a%3Cscript%3E"
    token = bearer(token_of("alice", scopes=("subscribe", "publish")))
    paths = [f"/{quoted}", f"/client/{quoted}", f"/v1/events?cursor={quoted}", f"/v1/events?thread={quoted}"]
    paths += [f"/v1/events/{quoted}/confirmations", f"/v1/sse?session={quoted}"]
    async with at(node) as http:
        for path in paths:
            answer = await http.get(path, headers={"Authorization": token})
            assert answer.status_code in (400, 401, 404), path
            assert "set-cookie" not in answer.headers
            assert answer.headers["content-type"] == "application/json"
        answer = await http.post(
            "/v1/events", json={"type": CRLF, "user": "alice", "data": {}}, headers={"Authorization": token}
        )
        assert (answer.status_code, answer.json()["error"]["field"]) == (400, "type")
    status, head, error = await refused(node, f"/v1/connect?ticket={quoted}")
    assert (status, "set-cookie" in head, error["code"]) == (401, False, "malformed")
    async with wired(node, token_of()) as client:
        client.send("hello", session=CRLF)
        assert (await client.next())["code"] == "bad_frame"
        close = await client.until_closed()
        assert (close.code, "\r" in close.reason, "\n" in close.reason) == (4500, False, False)


@pytest.mark.parametrize(
    "origin",
    ["null", "https://app.example.org.evil.example", "https://evil.example/https://app.example.org", "file://"]
    + ["https://app.example.org:444", "http://app.example.org", "https://app.example.org@evil.example", "*"]
    + ["https://xapp.example.org", "https://app.example.org, https://evil.example", "https://app.example.org\tx", ""],
)
async def test_a_page_of_an_origin_that_only_looks_allowed_gets_no_socket_and_no_answer_to_read(
    nodes: Nodes, origin: str
) -> None:
    node = await nodes.start(allowed_origins="https://app.example.org")
    status, _, error = await refused(node, origin=origin, authorization=bearer(token_of()))
    assert (status, error["code"]) == (403, "forbidden_origin")
    async with at(node) as http:
        headers = {"Origin": origin, "Authorization": bearer(token_of())}
        answer = await http.get("/v1/events", headers=headers)
        assert "access-control-allow-origin" not in answer.headers
        sse = await http.get("/v1/sse?session=tab", headers=headers)
        assert sse.status_code == 403
    assert (await at_allowed(node)) == 101


async def at_allowed(node: Node) -> int:
    async with connected(node.port) as raw:
        raw.write(upgrade_head(origin="HTTPS://APP.example.org:443", authorization=bearer(token_of())))
        return int((await raw.head()).split(" ")[1])


async def test_two_origins_in_one_request_are_refused(nodes: Nodes) -> None:
    node = await nodes.start(allowed_origins="https://app.example.org")
    head = upgrade_head(origin="https://app.example.org", authorization=bearer(token_of()))
    async with connected(node.port) as raw:
        raw.write(head[:-2] + b"Origin: https://evil.example\r\n\r\n")
        assert (await raw.response())[0] in (400, 403)
