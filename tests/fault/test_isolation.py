"""No user receives another's event, nor learns that it exists, whatever a client says."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from typing import Any

import httpx
import pytest

from eventbus.ids import UserId
from eventbus.tokens import make_token
from tests.support.load.hostile import Hostile, token_of
from tests.support.load.link import Link
from tests.support.load.plans import Mode
from tests.support.load.world import SECRET, Clients, NewWorld, Node, World

VICTIMS = [f"victim{number}" for number in range(20)]
MALLORY = "mallory"


def _forged(token: str, **claims: Any) -> str:
    """The token with other claims under the signature that it has."""
    head, body, signature = token.split(".")
    said = json.loads(base64.urlsafe_b64decode(body + "=="))
    return ".".join(
        (head, base64.urlsafe_b64encode(json.dumps({**said, **claims}).encode()).rstrip(b"=").decode(), signature)
    )


def _unsigned(user: str) -> str:
    head, body = {"alg": "none"}, {"sub": user, "exp": int(time.time()) + 600}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (head, body)]
    return ".".join((*parts, ""))


def _worth_stealing(world: World, victims: list[Clients]) -> list[tuple[str, str]]:
    """Event and entry of what was sent lately to each victim: most of it waits for an ack right now."""
    log = world.publishers[0].log.read()
    # Two streams may give one id in the same millisecond: those would be mallory's own, and a publisher that was held
    # up gives all of them one. What was answered last tells up to which moment all of mallory's are known.
    own = [log.entries[event] for event in log.answered[MALLORY]]
    if not own:
        return []
    known_ms = int(own[-1].partition("-")[0])
    found: list[tuple[str, str]] = []
    for seen in [clients.seen(*name) for clients in victims for name in clients.names]:
        lately = [one.received for one in seen.deliveries[-20:]]
        good = [one for one in lately if one.entry not in own and int(one.entry.partition("-")[0]) < known_ms]
        found += [(one.event, one.entry) for one in good[-3:]]
    return found


async def _attack(world: World, node: Node, seen: list[tuple[str, str]]) -> list[Hostile]:
    """Mallory opens sessions under the victims' session names and cursors, and acks and nacks their entries."""
    foreign = [entry for _, entry in seen]
    assert foreign
    attackers: list[Hostile] = []
    epochs = await world.redis.mget([world.keys.user(UserId(victim)).partition.epoch for victim in VICTIMS])
    for number, (event, entry) in enumerate(seen):
        hello: dict[str, Any] = {"op": "hello", "session": ("tab", VICTIMS[number % 20], f"own{number}")[number % 3]}
        if number % 2:
            hello |= {"cursor": entry, "epoch": epochs[number % 20]}
        else:
            hello |= {"start": "earliest"}
        if number % 4 == 3:
            hello["filter"] = {"types": ["load"]}
        hostile = Hostile(hello)
        attackers.append(hostile)
        await hostile.connect(node, token_of(MALLORY))
        if not hostile.open.is_set():
            continue
        link = hostile.link
        assert link is not None
        answer = await hostile.ask({"op": "ack", "ids": foreign}, "acked")
        assert answer.get("count", 0) == 0, f"acks of foreign entries released something: {answer}"
        link.send({"op": "nack", "id": entry, "delay_ms": 0})
        link.send({"op": "working", "ids": foreign[:10]})
        link.send({"op": "filter", "filter": {"runs": [event]}, "ref": "f"})
        link.send({"op": "refresh", "token": _forged(token_of(MALLORY), sub=VICTIMS[0])})
    return attackers


@pytest.mark.slow
@pytest.mark.requirement("R22")
async def test_hostile_clients_under_load_get_and_change_nothing_of_others(new_world: NewWorld) -> None:
    world = new_world(ack_timeout_ms=300_000)
    one, two = await world.start_nodes("one", "two")
    # Half of the victims ack as they go, half not before the attack is over: there is always something to steal.
    release = world.server.directory / "release"
    patient: dict[str, Any] = {"silence_ms": 20_000, "hello_ms": 20_000}
    victims = [
        await world.start_clients(VICTIMS[:10], ack_delay_ms=(200, 500), **patient),
        await world.start_clients(VICTIMS[10:], mode=Mode.HOLD, release=str(release), **patient),
    ]
    publishing = await world.start_publisher([*VICTIMS, MALLORY], 4_200, rate=700)
    attackers: list[Hostile] = []
    for count in (700, 1_400, 2_100, 2_800):
        await world.published_at_least(publishing, count)
        pending = await world.pending()
        assert sum(pending.values()) > 0
        seen = await world.wait(lambda: _worth_stealing(world, victims), 20_000, "there is something to steal")
        random.shuffle(seen)
        for node in (one, two):
            attackers += await _attack(world, node, seen[:12])
    release.touch()

    report = await world.settled()
    world.assert_good(report)
    assert report.repeated == 0, "a foreign nack or takeover made an event come again"
    assert not any(clients.closes for clients in victims), "a victim's connection was taken over"

    own = set(publishing.log.answered[MALLORY])
    opened = [hostile for hostile in attackers if hostile.open.is_set()]
    assert len(opened) > 20
    assert any(hostile.events for hostile in opened)
    for hostile in attackers:
        await hostile.close()
        for item in hostile.events:
            assert item["event"]["user"] == MALLORY
            assert item["event"]["id"] in own
    heard = json.dumps([frame for hostile in attackers for frame in hostile.frames if frame["op"] != "error"])
    assert "victim" not in heard.replace('"session": "victim', ""), "a frame names another user's event"


@pytest.mark.requirement("R22")
@pytest.mark.requirement("R23")
async def test_nobody_gets_in_as_another_by_a_forged_token_or_by_asking_over_http(new_world: NewWorld) -> None:
    world = new_world()
    (node,) = await world.start_nodes("one")
    await world.start_clients(VICTIMS[:3])
    publishing = await world.start_publisher(VICTIMS[:3], 30)
    await world.settled()
    mallory = token_of(MALLORY)
    tokens = {
        "forged": _forged(mallory, sub=VICTIMS[0]),
        "unsigned": _unsigned(VICTIMS[0]),
        "expired": make_token(user=VICTIMS[0], secret=SECRET.encode(), now_ms=1_000_000_000_000),
        "other key": make_token(
            user=VICTIMS[0], secret=b"another secret of at least 32 bytes", now_ms=time.time_ns() // 10**6
        ),
    }
    for name, token in tokens.items():
        hostile = Hostile({"op": "hello", "session": "tab"})
        await hostile.connect(node, token)
        assert hostile.over.is_set(), f"a token that is {name} was let in"
        assert hostile.code == 401

    event = publishing.log.answered[VICTIMS[0]][0]
    async with httpx.AsyncClient(base_url=f"http://{node.address}") as client:
        for name, token in tokens.items():
            answer = await client.get("/v1/events", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 401, f"{name}: {answer.text}"
        mine = {"Authorization": f"Bearer {mallory}"}
        for query in ("", f"?user={VICTIMS[0]}", f"?cursor={publishing.log.entries[event]}", f"?run={event}"):
            answer = await client.get(f"/v1/events{query}", headers=mine)
            assert answer.status_code in (200, 400)
            assert not answer.json().get("events"), answer.text
            assert "victim0." not in answer.text
        forged = {"user": VICTIMS[0], "type": "load", "data": {}}
        answer = await client.post("/v1/events", json=forged, headers=mine)
        assert answer.status_code == 403, "a token without the scope publishes for nobody"
        answer = await client.post("/v1/tickets", headers=mine)
        ticket = answer.json()["ticket"]
    guess = Hostile({"op": "hello", "session": "tab"})
    link = guess.link = Link(guess, "", path=f"/v1/connect?ticket={ticket[:-1]}x")
    await asyncio.get_running_loop().create_connection(lambda: link, "127.0.0.1", node.port)
    async with asyncio.timeout(10):
        await guess.over.wait()
    assert guess.code == 401


@pytest.mark.requirement("R22")
async def test_a_pinned_token_opens_its_own_session_alone(new_world: NewWorld) -> None:
    world = new_world()
    (node,) = await world.start_nodes("one")
    hostile = Hostile({"op": "hello", "session": "tab"})
    await hostile.connect(node, token_of(MALLORY, session="phone"))
    async with asyncio.timeout(10):
        await hostile.over.wait()
    assert hostile.code == 4502


@pytest.mark.requirement("R22")
@pytest.mark.requirement("R23")
async def test_a_session_can_not_be_refreshed_into_another_users(new_world: NewWorld) -> None:
    """The other user's token is a good one."""
    world = new_world()
    (node,) = await world.start_nodes("one")
    await world.start_clients(VICTIMS[:1])
    hostile = Hostile({"op": "hello", "session": "mine", "start": "earliest"})
    await hostile.connect(node, token_of(MALLORY))
    assert hostile.link is not None
    hostile.link.send({"op": "refresh", "token": token_of(VICTIMS[0])})
    await world.start_publisher(VICTIMS[:1], 10)
    async with asyncio.timeout(10):
        await hostile.over.wait()
    assert hostile.code == 4502
    assert not hostile.events
    world.assert_good(await world.settled())
