"""Connections that are no sockets have a bound, all together and by address; sockets are not counted among them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from tests.support.loops import on_both_loops
from tests.support.raw_websocket import Door, RawClient, connected, listening, upgrade_head
from tests.support.waiting import until

pytestmark = [pytest.mark.requirement("R23"), pytest.mark.requirement("R9")]

GET = b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n"


def itself(address: str) -> str:
    return address


@on_both_loops
async def test_who_has_waited_longest_for_a_request_makes_room_for_the_next() -> None:
    async with AsyncExitStack() as stack, listening(Door(), connections_max=3) as listener:
        slow: list[RawClient] = []
        for number in range(5):
            client = await stack.enter_async_context(connected(listener.port))
            client.write(b"GET /slow HTTP/1.1\r\n")
            slow.append(client)
            await until(lambda number=number: listener.places == min(number + 1, 3))  # type: ignore[misc]
        assert [await client.read_all() for client in slow[:2]] == [b"", b""]
        assert len(listener.heads) == 3
        honest = await stack.enter_async_context(connected(listener.port))
        honest.write(GET)
        assert (await honest.response())[0] == 404


@on_both_loops
async def test_one_connection_more_than_an_address_may_have_is_a_429_and_one_that_goes_makes_room() -> None:
    async with AsyncExitStack() as stack, listening(Door(), row=itself, per_address=2) as listener:
        held = [await stack.enter_async_context(connected(listener.port)) for _ in range(2)]
        await until(lambda: listener.places == 2)
        third = await stack.enter_async_context(connected(listener.port))
        status, head, body = await third.response()
        assert (status, b"rate_limited" in body) == (429, True)
        assert "retry-after: 5" in head.lower()
        held[0].cut()
        await until(lambda: listener.places == 1)
        fourth = await stack.enter_async_context(connected(listener.port))
        fourth.write(GET)
        assert (await fourth.response())[0] == 404


@on_both_loops
async def test_sockets_take_no_place_of_requests() -> None:
    async with AsyncExitStack() as stack, listening(Door(), row=itself, per_address=2, connections_max=2) as listener:
        for _ in range(6):
            client = await stack.enter_async_context(connected(listener.port))
            await client.upgrade()
        await until(lambda: listener.places == 0)
        assert len(listener.addresses) == 0
        assert len(listener.sockets.connections) == 6


@on_both_loops
async def test_a_kept_alive_connection_that_becomes_a_socket_gives_its_place_back() -> None:
    async with listening(Door(), row=itself, per_address=1) as listener, connected(listener.port) as client:
        client.write(GET)
        assert (await client.response())[0] == 404
        assert listener.places == 1
        client.write(upgrade_head())
        assert (await client.head()).startswith("HTTP/1.1 101 ")
        assert (listener.places, len(listener.addresses)) == (0, 0)


@pytest.mark.parametrize(
    "words", [b"GET", b"\x16\x03\x01garbage", b"POST /x HTTP/1.1\r\ncontent-length: 9\r\n\r\nhalf"]
)
@on_both_loops
async def test_places_come_back_however_a_connection_ends(words: bytes) -> None:
    bounds = {"head_timeout_ms": 50, "body_timeout_ms": 50, "keep_alive_ms": 50}
    async with listening(Door(), row=itself, per_address=50, **bounds) as listener:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(listener.port)) for _ in range(20)]
            for client in clients:
                client.write(words)
            for client in clients[:10]:
                client.cut()
            await asyncio.gather(*(client.read_all() for client in clients[10:]))
            await until(lambda: (listener.places, len(listener.addresses)) == (0, 0))
        assert not listener.heads


@on_both_loops
async def test_a_place_behind_a_trusted_proxy_is_that_of_its_client() -> None:
    def row(address: str) -> str | None:
        return None if address == "127.0.0.1" else address

    options = {"row": row, "per_address": 1, "trusted_proxy": lambda address: address == "127.0.0.1"}
    async with AsyncExitStack() as stack, listening(Door(), **options) as listener:

        async def ask(client: str) -> int:
            raw = await stack.enter_async_context(connected(listener.port))
            raw.write(b"PROXY TCP4 %s 192.0.2.99 1 2\r\n" % client.encode(), GET)
            return (await raw.response())[0]

        assert [await ask("192.0.2.1"), await ask("192.0.2.1"), await ask("192.0.2.2")] == [404, 429, 404]
