"""One primary of three is away, from all nodes or from one: its users wait, or are served elsewhere."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from eventbus.errors import CloseCode
from eventbus.ids import RunId, UserId
from eventbus.store.keys import Keys
from eventbus.store.texts import TextPiece
from gateway.node import Node
from tests.support.clusters import NewCluster
from tests.support.waiting import until
from tests.support.wire_client import Nodes, opened, publish

pytestmark = [pytest.mark.requirement("R2"), pytest.mark.requirement("R32")]

AWAY_S = 6
# What an event, a command and a piece of text may take together; a call to the primary that is away takes 5 s.
ROUND_MS = 2_000


def piece(user: str, number: int) -> TextPiece:
    return TextPiece(
        user=UserId(user), run=RunId("run_1"), stream="text", thread=None, offset=2 * number, text="ab", last=False
    )


@pytest.mark.slow
@pytest.mark.requirement("R30")
async def test_nodes_stay_ready_and_serve_the_users_of_the_other_primaries(new_cluster: NewCluster) -> None:
    """It is the primary of the revocations, which every node reads each second."""
    cluster = new_cluster()
    keys = Keys("eb", 1024)
    lost = cluster.owner(keys.revoked.records)
    replica = cluster.replica(lost)
    users = [f"user{number}" for number in range(40)]
    away = next(user for user in users if cluster.owner(keys.user(UserId(user)).stream) is lost)
    others = {cluster.owner(keys.user(UserId(user)).stream): user for user in users}
    del others[lost]
    async with Nodes(cluster.url) as nodes, httpx.AsyncClient(timeout=5) as http:
        made = [await nodes.start(f"n{number}", ready_probe_ms=500) for number in range(2)]
        first, second = others.values()
        async with opened(made[0], away) as waiting, opened(made[0], first) as one, opened(made[1], second) as two:
            clients = {first: one, second: two}
            for client in (waiting, one, two):
                await client.until_op("caught_up")
            cluster.freeze(replica)
            cluster.freeze(lost)
            late = [
                asyncio.create_task(publish(made[0], "late", user=away)),
                asyncio.create_task(made[0].store.append_text(piece(away, 0))),
            ]
            waiting.send("send", type="message", data={"text": "late"}, ref="late")
            until_s, number, slowest_ms = time.monotonic() + AWAY_S, 0, 0
            while time.monotonic() < until_s:
                for node in made:
                    answer = await http.get(f"http://127.0.0.1:{node.port}/readyz")
                    assert answer.status_code == 200, answer.text
                begin = time.monotonic()
                for (user, client), node in zip(clients.items(), made, strict=True):
                    await publish(node, "now", user=user)
                    await client.until_op("events")
                    client.send("send", type="message", data={"text": "now"}, ref=number)
                    await client.until_op("sent")
                    await node.store.append_text(piece(user, number))
                    await client.until_op("text")
                slowest_ms = max(slowest_ms, int((time.monotonic() - begin) * 1000))
                number += 1
                await asyncio.sleep(0.1)  # real time: how a load balancer looks
            print(f"{number} rounds, the slowest of {slowest_ms} ms")  # noqa: T201
            for node in made:
                told = node.link_statistics()
                assert (told["primaries"], told["primaries_reached"]) == (3, 2)
                assert 5_400 < told["slots_away"] < 5_500, "a third of 16,384"
            assert slowest_ms <= ROUND_MS
            cluster.thaw(lost)
            cluster.thaw(replica)
            await asyncio.wait_for(asyncio.gather(*late, return_exceptions=True), 30)
            await waiting.until_op("sent")
            await until(lambda: all(len(node.readiness.proven) == node.readiness.parts for node in made))
            await until(lambda: all(node.link_statistics()["slots_away"] == 0 for node in made))


@pytest.mark.soak
@pytest.mark.requirement("R30")
async def test_a_node_that_is_cut_off_alone_leaves_the_load_balancer_and_comes_back(new_cluster: NewCluster) -> None:
    """One primary closes its connections and takes no new ones of this node; all others reach it."""
    cluster = new_cluster()
    keys = Keys("eb", 1024)
    for member in cluster.members:
        member.ask("ACL", "SETUSER", "cut", "on", ">word", "~*", "&*", "+@all")
    users = [f"user{number}" for number in range(40)]
    owners = {user: cluster.owner(keys.user(UserId(user)).stream) for user in users}
    list_owner = cluster.owner(keys.nodes)
    theirs = next(user for user, owner in owners.items() if owner is not list_owner)
    lost = owners[theirs]
    other = next(user for user, owner in owners.items() if owner is not lost)
    async with Nodes(cluster.url) as nodes, httpx.AsyncClient(timeout=5) as http:
        alone = await nodes.start("alone", url=cluster.url.replace("://", "://cut:word@"), ready_probe_ms=500)
        well = await nodes.start("well", ready_probe_ms=500)

        async def status(node: Node) -> int:
            return (await http.get(f"http://127.0.0.1:{node.port}/readyz")).status_code

        async with opened(alone, theirs) as stranded, opened(alone, other) as served:
            for client in (stranded, served):
                await client.until_op("caught_up")
            lost.ask("ACL", "SETUSER", "cut", "off")
            lost.ask("CLIENT", "KILL", "USER", "cut")

            async def has_left() -> bool:
                assert await status(well) == 200
                return await status(alone) == 503

            await until(has_left, 40_000, "the node has left")
            assert (await stranded.until_closed()).code == CloseCode.STORE_UNAVAILABLE
            async with opened(well, theirs) as again:
                await publish(alone, "here", user=other)
                await served.until_op("events")
                await publish(well, "there", user=theirs)
                await again.until_op("events")
            lost.ask("ACL", "SETUSER", "cut", "on")

            async def is_back() -> bool:
                return await status(alone) == 200

            await until(is_back, 20_000, "the node is back")
