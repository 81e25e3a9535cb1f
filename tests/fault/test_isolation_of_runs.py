"""Nothing of a user's runs is another's: not the text as it grows, the commands, the questions, the confirmations, the
threads, or who is online. All users share one partition here, and all their names.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import pytest

from eventbus import Bus
from eventbus.config import Settings, StoreSettings
from tests.support.load.hostile import Hostile, token_of
from tests.support.load.world import NewWorld, Node
from tests.support.waiting import until

# A key, a member or a message that were split at one of these would be another's.
VICTIMS = ["a", "a:run-1", "a|b", "a+b@c", "a:b", "b", "-", "1-0"]
MALLORY = "a:"
RUN, THREAD, QUESTION, STREAM, SESSION, REF = "run-1", "thread-1", "q1", "text", "tab", "same"
TOKENS = 150
_NAME = re.compile(r"[A-Za-z0-9_.:-]+").fullmatch

pytestmark = pytest.mark.requirement("R22")


def _secret(user: str) -> str:
    return f"<only for {user}>"


class _Agent:
    """A user's agent: it streams, asks, and notes what its user says."""

    def __init__(self, bus: Bus, user: str) -> None:
        self.user = user
        self.said: list[tuple[str, str]] = []
        self.answer: object = None
        self.cancelled = False
        self.asks = asyncio.Event()
        self._bus = bus
        self._rest = asyncio.Event()

    async def work(self) -> None:
        """One run, with names that all others use too."""
        secret = _secret(self.user)
        async with self._bus.run(user=self.user, thread=THREAD, agent="worker", run=RUN, on_cancel="flag") as run:
            await run.publish("load", {"text": secret})
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(run))
                async with run.tool("search", {"for": secret}, call_id="call"), run.stream(STREAM) as stream:
                    for number in range(TOKENS):
                        await stream.write(f"{secret}{number} ")
                        if number % 10 == 0:
                            await asyncio.sleep(0)
                        if number == TOKENS // 2:
                            self.asks.set()
                            self.answer = await run.ask(secret, question=QUESTION, timeout_ms=60_000)
                await until(lambda: ("stop", self.user) in self.said, 30_000, f"{self.user} stops")
            self.cancelled = bool(run.cancelled)

    async def _listen(self, run: Any) -> None:
        async for command in run.commands():
            self.said.append((command.type, command.data["from"]))
            if command.type == "stop":
                return


def _texts(device: Hostile) -> str:
    """What the device has of the token stream, put together by offset."""
    text = ""
    for frame in device.frames:
        if frame["op"] == "text":
            assert (frame["run"], frame["stream"]) == (RUN, STREAM)
            assert frame["offset"] <= len(text), "a hole"
            text = text[: frame["offset"]] + frame["text"]
    return text


async def _device(user: str, node: Node, session: str = SESSION, **hello: Any) -> Hostile:
    device = Hostile({"op": "hello", "session": session, "start": "earliest", **hello})
    await device.connect(node, token_of(user))
    assert device.open.is_set()
    return device


async def _attack(node: Node, entries: Sequence[str]) -> Hostile:
    """Mallory names everything that the others have; what bears the same name as something of mallory's own means
    that.
    """
    device = await _device(MALLORY, node, cursor=entries[0], start="cursor")
    link = device.link
    assert link is not None
    for victim in (victim for victim in VICTIMS if _NAME(victim)):
        for run in (f"{victim}:{RUN}", f"{RUN}:{victim}", victim):
            link.send({"op": "send", "type": "cancel", "data": {}, "run": run, "ref": REF})
            link.send({"op": "send", "type": "message", "data": {"text": "x", "from": MALLORY}, "run": run, "ref": REF})
            link.send({"op": "filter", "filter": {"runs": [run], "threads": [THREAD]}, "ref": "f"})
    link.send({"op": "filter", "filter": {}, "ref": "f"})
    for level in ("received", "displayed", "confirmed"):
        answer = await device.ask({"op": "ack", "ids": entries, "level": level}, "acked")
        assert answer.get("count", 0) == 0, f"an ack released what is another's: {answer}"
    for question in ("q2", f"{RUN} {QUESTION}", f"q:{VICTIMS[0]}"):
        data = {"question": question, "answer": "mallory's"}
        answer = await device.ask({"op": "send", "type": "answer", "data": data, "run": RUN}, "sent")
        assert answer["op"] == "error", answer
    return device


async def _look_around(node: Node, events: Mapping[str, str]) -> str:
    """All that mallory's token gets over HTTP."""
    heard = []
    async with httpx.AsyncClient(
        base_url=f"http://{node.address}", headers={"Authorization": f"Bearer {token_of(MALLORY)}"}
    ) as client:
        for victim, event in events.items():
            for path, query in (
                ("/v1/threads", {"user": victim}),
                ("/v1/events", {"user": victim, "run": RUN, "thread": THREAD}),
                (f"/v1/events/{event}/confirmations", {"user": victim}),
                (f"/v1/events/{event}/confirmations", {}),
                ("/v1/presence", {"user": victim}),
                ("/v1/presence", {}),
            ):
                answer = await client.get(path, params=query)
                assert answer.status_code in (200, 400, 403, 404), answer.text
                if path == "/v1/presence" and answer.status_code == 200:
                    assert [one["session"] for one in answer.json()["sessions"]] == [SESSION]
                if path.endswith("confirmations"):
                    assert answer.status_code in (403, 404), answer.text
                heard.append(answer.text)
    return "\n".join(heard)


async def test_users_who_share_all_names_hear_and_change_nothing_of_each_other(new_world: NewWorld) -> None:
    world = new_world(partitions=1)
    one, two = await world.start_nodes("one", "two")
    settings = Settings(store=StoreSettings(partitions=1))
    users = [*VICTIMS, MALLORY]
    async with Bus(world.server.url, settings=settings) as bus, asyncio.TaskGroup() as group:
        receipts = await bus.publish(users=users, type="load", data={"text": "for all"}, id="e1", thread=THREAD)
        assert [receipt.duplicate for receipt in receipts.values()] == [False] * len(users)
        private = {user: await bus.publish(user=user, type="load", data={"text": _secret(user)}) for user in users}
        devices = {user: await _device(user, (one, two)[n % 2]) for n, user in enumerate(VICTIMS)}
        agents = {user: _Agent(bus, user) for user in users}
        working = [group.create_task(agent.work()) for agent in agents.values()]
        for agent in agents.values():
            await agent.asks.wait()
        # Two streams may give one id in the same millisecond: that one is mallory's own.
        entries = sorted({private[user].entry for user in VICTIMS} - {private[MALLORY].entry, receipts[MALLORY].entry})
        assert entries
        attackers = [await _attack(one, entries)]
        mine = attackers[0]
        # The same name as everybody's: it means mallory's own, and nothing else.
        await until(lambda: QUESTION in _asked(mine), 10_000, "mallory is asked")
        said = {"question": QUESTION, "answer": _secret(MALLORY)}
        assert (await mine.ask({"op": "send", "type": "answer", "data": said, "run": RUN}, "sent"))["op"] == "sent"
        assert (await mine.ask({"op": "send", "type": "cancel", "data": {}, "run": RUN}, "sent"))["op"] == "sent"
        await mine.ask({"op": "send", "type": "stop", "data": {"from": MALLORY}, "run": RUN}, "sent")
        await until(lambda: agents[MALLORY].answer is not None, 10_000, "mallory's question is answered")
        assert [agents[user].answer for user in VICTIMS] == [None] * len(VICTIMS)

        heard = await _look_around(two, {user: private[user].event for user in VICTIMS})
        for user in VICTIMS:
            await _say_all(user, devices[user])
        await asyncio.wait_for(asyncio.gather(*working), 60)
        for user, device in devices.items():
            await until(_has_all(device, user), 20_000, f"{user} has the text")

        for user in VICTIMS:
            assert agents[user].answer == f"of {user}"
            assert agents[user].said == [("message", user), ("stop", user)], "a command of another, or one too few"
            assert not agents[user].cancelled
            told = await bus.confirmations(private[user])
            assert {(one.session, one.level.value) for one in told} <= {(SESSION, "received")}
        assert agents[MALLORY].cancelled

        heard += json.dumps([frame for device in attackers for frame in device.frames])
        for user in VICTIMS:
            everything = json.dumps(devices[user].frames)
            assert _secret(user) in everything
            for other in users:
                assert other == user or _secret(other) not in everything, f"{user} heard of {other}"
            assert _secret(user) not in heard, f"mallory heard of {user}"
        for device in (*attackers, *devices.values()):
            assert not device.over.is_set(), f"closed with {device.code}"
            await device.close()


def _asked(device: Hostile) -> list[str]:
    return [item["event"]["data"]["question"] for item in device.events if item["event"]["type"] == "agent_question"]


def _has_all(device: Hostile, user: str) -> Callable[[], bool]:
    whole = "".join(f"{_secret(user)}{number} " for number in range(TOKENS))
    return lambda: _texts(device) == whole


async def _say_all(user: str, device: Hostile) -> None:
    """Acks what came, and says to the agent what it waits for; all with one `ref`, as all others do."""
    link = device.link
    assert link is not None
    link.send({"op": "ack", "ids": [item["id"] for item in device.events]})
    await until(lambda: QUESTION in _asked(device), 10_000, f"{user} is asked")
    for number, (kind, data) in enumerate(
        (
            ("message", {"text": "hello", "from": user}),
            ("answer", {"question": QUESTION, "answer": f"of {user}"}),
            ("stop", {"from": user}),
        )
    ):
        link.send({"op": "send", "type": kind, "data": data, "run": RUN, "ref": f"{REF}{number}"})
    await until(
        lambda: {f"{REF}{n}" for n in range(3)} <= {f.get("ref") for f in device.frames if f["op"] == "sent"},
        10_000,
        lambda: f"{user}: {[f for f in device.frames if f['op'] == 'error']}",
    )
