"""Token streams through what goes wrong: a node killed in the midst, a store that is away, a killed agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from eventbus import Bus, Chunk, Subscriber
from eventbus.ids import ENTRY_ZERO, EventId, RunId, UserId
from eventbus.store import Append
from eventbus.store.running import RunStep
from eventbus.store.texts import TextPiece
from tests.support.installation import USER, Installation, NewInstallation
from tests.support.proxy import Proxy
from tests.support.subscribing import running_node, token
from tests.support.waiting import until

pytestmark = pytest.mark.requirement("R19")

WORDS = [f"wörd{number} 👩‍🚀 " for number in range(1_500)]
TEXT = "".join(WORDS)


class Reader:
    """An application that puts text together; a repeat or a hole fails the test."""

    def __init__(self) -> None:
        self.text: dict[str, str] = {}
        self.final: set[str] = set()
        self.events: list[dict[str, Any]] = []
        self.nodes = 0

    def take(self, chunk: Chunk) -> None:
        assert chunk.stream not in self.final
        assert chunk.offset == len(self.text.get(chunk.stream, "")), "a repeat or a hole"
        self.text[chunk.stream] = self.text.get(chunk.stream, "") + chunk.text
        if chunk.final:
            self.final.add(chunk.stream)

    @asynccontextmanager
    async def at(self, url: str, token: str | Callable[[], str], **options: Any) -> AsyncIterator[Subscriber]:
        async with Subscriber(url, token=token, session="desk", on_text=self.take, **options) as subscriber:
            following = asyncio.create_task(self._follow(subscriber))
            await until(lambda: subscriber.state == "live", 20_000, lambda: f"{subscriber} is live")
            yield subscriber
        await following

    async def _follow(self, subscriber: Subscriber) -> None:
        async for delivery in subscriber:
            if delivery.event.type == "agent_text":
                self.events.append(dict(delivery.event.data))


async def write(stream: Any, words: list[str], pace_s: float = 0.001) -> None:
    for word in words:
        await stream.write(word)
        await asyncio.sleep(pace_s)  # real time: an agent writes at the pace of its model


async def killed(installation: Installation, reader: Reader, *, during: str) -> None:
    """Kills the client's node while text flows, or between a part of it and its end."""
    async with installation.bus.run(user=USER, agent="writer") as run, run.stream() as stream:
        first = asyncio.create_task(write(stream, WORDS[:700]))
        await until(lambda: len(reader.text.get("text", "")) > 1_000, 20_000, "the text flows")
        if during == "the text":
            old, _ = installation.switch()
            old.child.kill()
            await first
            await write(stream, WORDS[700:])
        else:
            await first
            await write(stream, WORDS[700:])
            old, _ = installation.switch()
            old.child.kill()


@pytest.mark.slow
@pytest.mark.requirement("R2")
@pytest.mark.parametrize("during", ["the text", "its end"])
@pytest.mark.parametrize("wire_format", ["json", "msgpack"])
async def test_a_node_killed_in_the_midst_costs_no_character_and_repeats_none(
    new_installation: NewInstallation, wire_format: str, during: str
) -> None:
    installation = await new_installation(nodes=2)
    reader = Reader()
    async with reader.at(installation.url, installation.token(), format=wire_format):
        await killed(installation, reader, during=during)
        await until(lambda: reader.final and reader.events, 20_000, "the end of the text")
    assert reader.text == {"text": TEXT}
    assert reader.events == [{"stream": "text", "text": TEXT}]


@pytest.mark.requirement("R2")
async def test_a_store_that_is_away_for_a_second_costs_an_agent_no_word(server_url: str) -> None:
    reader = Reader()
    store = Proxy(int(server_url.rpartition(":")[2].partition("/")[0]))
    async with (
        running_node(server_url, "n1") as node,
        store,
        Bus(f"redis://127.0.0.1:{store.port}") as bus,
        reader.at(f"http://127.0.0.1:{node.port}", token),
    ):
        async with bus.run(user="ann", agent="writer") as run, run.stream() as stream:
            await write(stream, WORDS[:300])
            await until(lambda: reader.text.get("text"))
            store.refuse()
            store.cut()
            await write(stream, WORDS[300:1_000])
            assert len(reader.text["text"]) < len("".join(WORDS[:1_000])), "what was written meanwhile waits"
            store.heal()
            await write(stream, WORDS[1_000:])
        await until(lambda: reader.final, 20_000, "the end of the text")
    assert reader.text == {"text": TEXT}


@pytest.mark.requirement("R2")
@pytest.mark.parametrize("lost", [b"EVALSHA", b"XRANGE"])
async def test_lost_answers_of_the_store_are_asked_for_again(server_url: str, lost: bytes) -> None:
    """Between the agent and its store, and between the node and its."""
    reader = Reader()
    port = int(server_url.rpartition(":")[2].partition("/")[0])
    async with Proxy(port) as of_agent, Proxy(port) as of_node:
        url = f"redis://127.0.0.1:{of_node.port}"
        async with (
            running_node(url, "n1") as node,
            Bus(f"redis://127.0.0.1:{of_agent.port}") as bus,
            reader.at(f"http://127.0.0.1:{node.port}", token),
        ):
            async with bus.run(user="ann", agent="writer") as run, run.stream() as stream:
                for part in range(5):
                    await write(stream, WORDS[part * 300 : part * 300 + 150])
                    trap = (of_agent if lost == b"EVALSHA" else of_node).cut_before_reply(lost)
                    await write(stream, WORDS[part * 300 + 150 : part * 300 + 300])
                    await asyncio.wait_for(trap.wait(), 10)
            await until(lambda: reader.final, 20_000, "the end of the text")
    assert reader.text == {"text": TEXT}


@pytest.mark.requirement("R16")
async def test_what_a_killed_agent_wrote_becomes_an_event_when_a_node_closes_its_run(server_url: str) -> None:
    """The process is gone: its lease runs out, and what it streamed is kept as partial."""
    reader = Reader()
    user, run = UserId("ann"), RunId("run_killed")
    async with running_node(server_url, "n1") as node, reader.at(f"http://127.0.0.1:{node.port}", token):
        fields = {"state": "running", "agent": "writer", "user": "ann", "started_ms": "1"}
        step = RunStep(run=run, seq=1, owner="dead", lease_ms=300, fields=fields, watch={})
        async with Bus(server_url) as bus:
            await bus.publish(user="ann", type="note", data={})
        body = (await node.store.history(user, ENTRY_ZERO, 1)).entries[0].body
        piece = TextPiece(user=user, run=run, stream="text", thread=None, offset=0, text="Half a sen")
        # Both leave in one write: the lease is not to run out in between, however slow the machine is.
        await asyncio.gather(
            node.store.append([Append(user=user, event=EventId("started"), body=body, step=step)]),
            node.store.append_text(piece),
        )
        await until(lambda: reader.text.get("text") == "Half a sen", 10_000)
        await until(lambda: reader.final, 20_000, "the run is closed")
        await until(lambda: reader.events, 10_000)
        assert reader.events == [{"stream": "text", "text": "Half a sen", "partial": True}]
        (index,) = await node.store.open_texts([user])
        assert list(index) == []  # type: ignore[arg-type]
