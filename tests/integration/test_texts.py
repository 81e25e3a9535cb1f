"""Token streams through a real server: two nodes, three sessions, joiners, laggards, and what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import redis

from eventbus import Bus, Chunk, Subscriber
from eventbus.ids import UserId
from gateway.node import Node
from tests.support.proxy import Proxy
from tests.support.subscribing import running_node, token
from tests.support.waiting import until
from tests.support.wire_client import Nodes, opened

pytestmark = pytest.mark.requirement("R19")

ANN = UserId("ann")
WORDS = [f"wörd{number} 👩‍🚀 " for number in range(300)]
TEXT = "".join(WORDS)


class Reader:
    """An application that puts text together as it is handed out."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.texts: dict[tuple[str, str], str] = {}
        self.final: set[tuple[str, str]] = set()
        self.events: list[dict[str, Any]] = []

    def take(self, chunk: Chunk) -> None:
        key = chunk.run, chunk.stream
        assert key not in self.final
        assert chunk.offset == len(self.texts.get(key, "")), "a repeat or a hole"
        self.chunks.append(chunk)
        self.texts[key] = self.texts.get(key, "") + chunk.text
        if chunk.final:
            self.final.add(key)

    async def follow(self, subscriber: Subscriber) -> None:
        async for delivery in subscriber:
            if delivery.event.type == "agent_text":
                self.events.append(dict(delivery.event.data))

    @asynccontextmanager
    async def at(self, port: int, session: str, **options: Any) -> AsyncIterator[Subscriber]:
        given = {"token": token, "session": session, "on_text": self.take, "random": lambda: 0.001, **options}
        async with Subscriber(f"http://127.0.0.1:{port}", **given) as subscriber:
            following = asyncio.create_task(self.follow(subscriber))
            await until(lambda: subscriber.state == "live", 10_000, lambda: f"{subscriber} is live")
            yield subscriber
        await following

    async def has(self, text: str, count: int = 1) -> None:
        def all_there() -> bool:
            return list(self.texts.values()) == [text] * count and len(self.final) == count

        await until(all_there, 10_000, lambda: f"the whole text; have {[len(one) for one in self.texts.values()]}")

    async def has_event(self) -> None:
        await until(lambda: self.events, 10_000, "the event with the text")


async def test_three_sessions_on_two_nodes_see_the_text_grow_and_get_its_event(redis_url: str) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(running_node(redis_url, "n1"))
        two = await stack.enter_async_context(running_node(redis_url, "n2"))
        bus = await stack.enter_async_context(Bus(redis_url))
        readers = [Reader() for _ in range(3)]
        for reader, node, name in zip(readers, (one, one, two), ("desk", "phone", "tv"), strict=True):
            wire = "msgpack" if name == "phone" else "json"
            await stack.enter_async_context(reader.at(node.port, name, format=wire))
        async with bus.run(user="ann", agent="writer", thread="t1") as run, run.stream() as stream:
            await stream.write(WORDS[0])
            await until(lambda: all(reader.texts for reader in readers), message="it is seen while it grows")
            for word in WORDS[1:]:
                await stream.write(word)
                await asyncio.sleep(0)
        for reader in readers:
            await reader.has(TEXT)
            await reader.has_event()
            assert reader.events == [{"stream": "text", "text": TEXT}]
            assert len(reader.chunks) > 1
        await until(
            lambda: not one.texting.held_bytes and not two.texting.held_bytes, message="nodes hold nothing more"
        )


async def test_who_comes_late_gets_everything_so_far_in_one_frame(nodes: Nodes) -> None:
    node = await nodes.start()
    async with Bus(nodes.url) as bus, bus.run(user="alice", agent="writer") as run, run.stream() as stream:
        for word in WORDS:
            await stream.write(word)
            await asyncio.sleep(0.0005)  # real time: an agent writes at the pace of its model
        await until(lambda: nodes_have(nodes.url, "alice", len(TEXT)), message="all of it is stored")
        async with opened(node, start="new") as client:
            await client.until_op("caught_up")
            await client.expect("text", run=run.id, stream="text", offset=0, text=TEXT, final=None)
            await stream.write("more")
            await client.expect("text", offset=len(TEXT), text="more", final=None)


async def test_the_final_frame_comes_before_the_event_when_nothing_is_in_the_way(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        async with node.bus.run(user="alice", agent="writer") as run:
            await client.until_op("events")
            async with run.stream("answer") as stream:
                await stream.write("Hello")
                await client.expect("text", stream="answer", offset=0, text="Hello")
            await client.expect("text", stream="answer", offset=5, text="", final=True)
            frame = await client.until_op("events")
            assert frame["events"][0]["event"]["type"] == "agent_text"


async def test_an_exception_sends_what_came_so_far_as_partial(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")

        async def agent() -> None:
            async with node.bus.run(user="alice", agent="writer") as run, run.stream() as stream:
                await stream.write("Half a sen")
                raise RuntimeError("out of words")

        with pytest.raises(RuntimeError):
            await agent()
        await until_completed(client)
        frames = [frame for frame in client.seen if frame["op"] == "events"]
        texts = [
            item["event"]["data"] for frame in frames for item in frame["events"] if "text" in item["event"]["data"]
        ]
        assert texts == [{"stream": "text", "text": "Half a sen", "partial": True}]


async def test_a_filter_keeps_text_away_until_it_lets_it_through(nodes: Nodes) -> None:
    node = await nodes.start()
    async with opened(node, filter={"threads": ["other"]}) as client, Bus(nodes.url) as bus:
        await client.expect("caught_up")
        async with bus.run(user="alice", agent="writer", thread="t1") as run, run.stream() as stream:
            await stream.write("secret")
            await until(lambda: nodes_have(nodes.url, "alice", 6))
            client.send("filter", filter={"threads": ["t1"]})
            await client.expect("filtered")
            await client.until_op("text")
            assert client.seen[-1]["text"] == "secret"


@pytest.mark.requirement("R22")
async def test_a_run_of_one_id_shows_each_user_only_the_own_text(nodes: Nodes) -> None:
    node = await nodes.start()
    async with opened(node, user="alice") as hers, opened(node, user="bob") as his, Bus(nodes.url) as bus:
        for client in (hers, his):
            await client.expect("caught_up")
        async with (
            bus.run(user="alice", agent="writer", run="same") as one,
            bus.run(user="bob", agent="writer", run="same") as two,
            one.stream() as first,
            two.stream() as second,
        ):
            await first.write("for alice")
            await second.write("for bob")
            await hers.until_op("text")
            await his.until_op("text")
        for client, word in ((hers, "alice"), (his, "bob")):
            await until_completed(client)
            texts = "".join(frame["text"] for frame in client.seen if frame["op"] == "text")
            assert texts == f"for {word}"


async def test_who_does_not_read_is_sent_one_frame_with_all_of_it_when_it_reads_again(server_url: str) -> None:
    slow, quick = Reader(), Reader()
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(running_node(server_url, "n1"))
        proxy = await stack.enter_async_context(Proxy(node.port))
        bus = await stack.enter_async_context(Bus(server_url))
        await stack.enter_async_context(slow.at(proxy.port, "slow"))
        await stack.enter_async_context(quick.at(node.port, "quick"))
        block = "x" * 4_000
        async with bus.run(user="ann", agent="writer") as run:
            proxy.to_client.stall()
            for number in range(30):
                async with run.stream(f"s{number}") as stream:
                    for _ in range(50):
                        await stream.write(block)
            await until(lambda: len(quick.final) == 30, 20_000, "the quick one has everything")
            lagging = [session for session in node.hub if not session.connection.writable]
            assert lagging, "the slow one is behind"
            assert lagging[0].connection.buffered_bytes < 8_000_000
            proxy.to_client.flow()
        await slow.has(block * 50, 30)
        assert len(slow.chunks) < len(quick.chunks)


async def test_one_read_a_node_serves_all_its_sessions(server_url: str) -> None:
    async def reads(sessions: int) -> tuple[int, int, int]:
        with redis.Redis.from_url(server_url) as client:
            client.flushall()
        async with AsyncExitStack() as stack:
            node = await stack.enter_async_context(running_node(server_url, f"n{sessions}"))
            bus = await stack.enter_async_context(Bus(server_url))
            readers = [Reader() for _ in range(sessions)]
            for number, reader in enumerate(readers):
                await stack.enter_async_context(reader.at(node.port, f"s{number}"))
            before = node.counters.text_reads
            with redis.Redis.from_url(server_url) as client:
                client.config_resetstat()
            async with bus.run(user="ann", agent="writer") as run, run.stream() as stream:
                for word in WORDS:
                    await stream.write(word)
                    await asyncio.sleep(0.001)  # real time: pieces leave by the clock
            for reader in readers:
                await reader.has(TEXT)
            with redis.Redis.from_url(server_url) as client:
                stats: Any = client.info("commandstats")
            calls = {name: int(stats[f"cmdstat_{name}"]["calls"]) for name in ("xrange", "xadd")}
            return node.counters.text_reads - before, calls["xrange"], calls["xadd"]

    for sessions in (1, 3):
        found, ranges, stored = await reads(sessions)
        # 300 words in 300 ms and more, a piece each 20 ms: about as many reads as pieces. Those are stored, and events.
        assert found <= 1.5 * stored + 5, f"{sessions} sessions cost what one costs"
        assert ranges <= 2 * found + 20, "and a read is one command"


def nodes_have(url: str, user: str, length: int) -> bool:
    """Whether the store has so much of the user's one open stream."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        values: Any = [client.hvals(key) for key in client.scan_iter(f"eb:*:v:{user}")]
    return any(value.split(" ")[0] == str(length) for found in values for value in found)


async def until_completed(client: Any) -> None:
    while True:
        frame = await client.until_op("events")
        if any(item["event"]["type"] == "agent_completed" for item in frame["events"]):
            return
