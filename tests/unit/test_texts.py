"""What a node holds of token streams, what it owes to whom, and how it reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from eventbus.client.texts import TextFeed
from eventbus.errors import EventBusError, StoreError, StoreMisconfigured, SubscriberError
from eventbus.event import make_event
from eventbus.frames import Text
from eventbus.ids import ENTRY_ZERO, EntryId, RunId, ThreadId, UserId
from eventbus.store.texts import OpenText, TextDelta, TextPage, TextPiece, TextRead
from eventbus.testing import MemoryStore
from eventbus.text import Chunk
from gateway.delivery.texts import Part, RunTexts, StreamText, Texts
from gateway.node import Node
from tests.support.waiting import until
from tests.support.wire_client import Nodes, opened

pytestmark = pytest.mark.requirement("R19")

ANN = UserId("ann")
RUN = RunId("run_1")


@dataclass(eq=False)
class Follower:
    """A session as `Texts` sees it."""

    name: str
    ready: bool = True
    thread: str | None = None
    parts: list[Part] = field(default_factory=list)


def delta(number: int, offset: int, text: str, *, last: bool = False, stream: str = "text") -> TextDelta:
    thread = ThreadId("trip") if offset == 0 else None
    entry = EntryId(f"{number * 1_000}-0")
    return TextDelta(id=entry, stream=stream, offset=offset, text=text, last=last, thread=thread)


class World:
    """A node's texts, with followers that write down what they are sent."""

    def __init__(self) -> None:
        self.texts: Texts[Follower] = Texts(
            wants=lambda follower, run, thread: follower.thread in (None, thread),
            may_want=lambda follower, run: True,
            is_ready=lambda follower: follower.ready,
        )

    def join(self, name: str, **of: Any) -> Follower:
        follower = Follower(name, **of)
        self.texts.join(ANN, follower)
        return follower

    def run(self) -> RunTexts:
        run = self.texts.follow(ANN, RUN)
        assert run is not None
        return run

    def read(self, *deltas: TextDelta, more: bool = False) -> bool:
        """Reads pieces and sends. Returns whether it is all to be read again."""
        run = self.run()
        return self.texts.took(run, deltas, more=more) or self.send()

    def send(self, only: Follower | None = None) -> bool:
        parts, missing = self.texts.owed(self.run(), only)
        for follower, part in parts:
            follower.parts.append(part)
        return missing


def told(follower: Follower) -> list[tuple[int, str, bool]]:
    return [(part.offset, part.text, part.final) for part in follower.parts]


# --- one stream -------------------------------------------------------------------------------------------------------


def test_a_stream_gives_its_text_from_any_place() -> None:
    stream = StreamText(None)
    for number, (offset, text) in enumerate(((0, "Grü"), (3, "ße "), (6, "👩👧👦"))):
        stream.take(delta(number, offset, text))
    whole = "Grüße 👩👧👦"
    places = (0, 2, 3, 5, 8, 9, 99)
    assert [stream.since(offset) for offset in places] == [whole[offset:] for offset in places]


def test_a_piece_that_was_stored_again_adds_what_is_new() -> None:
    stream = StreamText(None)
    stream.take(delta(1, 0, "abc"))
    assert stream.take(delta(2, 0, "abcdef")) == 3
    assert stream.take(delta(3, 0, "abc")) == 0
    assert stream.since(0) == "abcdef"


def test_a_stream_with_a_hole_is_left_to_its_event() -> None:
    stream = StreamText(None)
    stream.take(delta(1, 0, "abc"))
    stream.take(delta(2, 5, "f"))
    assert not stream.whole


# --- who is owed what -------------------------------------------------------------------------------------------------


def test_followers_at_one_place_are_sent_one_part() -> None:
    world = World()
    one, two = world.join("one"), world.join("two")
    world.read(delta(1, 0, "ab"))
    world.read(delta(2, 2, "cd"), delta(3, 4, "ef"))
    assert told(one) == told(two) == [(0, "ab", False), (2, "cdef", False)]
    assert [one is two for one, two in zip(one.parts, two.parts, strict=True)] == [True, True]


def test_who_comes_late_gets_everything_so_far_in_one_part() -> None:
    world = World()
    world.join("early")
    world.read(delta(1, 0, "ab"))
    world.read(delta(2, 2, "cd"))
    late = world.join("late")
    world.send()
    world.read(delta(3, 4, "ef"))
    assert told(late) == [(0, "abcd", False), (4, "ef", False)]


def test_who_lags_is_sent_nothing_and_then_all_of_it_with_the_end() -> None:
    world = World()
    slow, quick = world.join("slow"), world.join("quick")
    world.read(delta(1, 0, "ab"))
    slow.ready = False
    world.read(delta(2, 2, "cd"))
    world.read(delta(3, 4, "ef", last=True))
    assert told(slow) == [(0, "ab", False)]
    assert told(quick) == [(0, "ab", False), (2, "cd", False), (4, "ef", True)]
    slow.ready = True
    world.send(slow)
    assert told(slow)[1:] == [(2, "cdef", True)]
    assert world.texts.held_bytes == 0, "nobody needs it any more"


def test_a_stream_that_ended_is_not_sent_to_who_comes_afterwards() -> None:
    world = World()
    slow = world.join("slow", ready=False)
    world.read(delta(1, 0, "ab", last=True))
    late = world.join("late")
    slow.ready = True
    world.send()
    assert told(slow) == [(0, "ab", True)]
    assert told(late) == []


def test_a_first_reading_leaves_out_what_ended_long_before() -> None:
    world = World()
    one = world.join("one")
    world.read(delta(1, 0, "old", last=True, stream="old"), more=True)
    world.read(delta(9, 0, "new"), delta(10, 0, "short", last=True, stream="short"))
    assert [(part.stream, part.text) for part in one.parts] == [("text", "new"), ("short", "short")]


def test_nothing_is_sent_before_a_run_was_read_to_its_end_for_the_first_time() -> None:
    world = World()
    one = world.join("one")
    world.read(delta(1, 0, "ab"), more=True)
    assert told(one) == []
    world.read(delta(2, 2, "cd"))
    assert told(one) == [(0, "abcd", False)]


def test_text_that_was_let_go_is_read_again_for_who_lags_behind_it() -> None:
    world = World()
    slow, quick = world.join("slow", ready=False), world.join("quick")
    world.read(delta(1, 0, "ab"))
    world.texts.shrink(0)
    assert world.texts.held_bytes == 0
    assert not world.read(delta(2, 2, "cd")), "who does not read now wants nothing"
    slow.ready = True
    assert world.send(slow), "it lacks what is held no longer"
    world.texts.again(world.run())
    world.read(delta(1, 0, "ab"), delta(2, 2, "cd"))
    assert told(slow) == [(0, "abcd", False)]
    assert told(quick) == [(0, "ab", False), (2, "cd", False)]


def test_a_run_that_is_longer_than_what_may_be_held_is_read_to_its_end() -> None:
    """Its first part is not let go while the others are read: it would have to be read again, for ever."""
    world = World()
    one = world.join("one")
    for number in range(1, 4):
        world.read(delta(number, 2 * number - 2, "ab"), more=number < 3)
        world.texts.shrink(1)
    assert told(one) == [(0, "ababab", False)]
    assert world.texts.held_bytes == 0


def test_what_was_touched_last_is_let_go_last() -> None:
    world = World()
    world.join("one")
    other = world.texts.follow(ANN, RunId("run_2"))
    assert other is not None
    world.texts.took(other, [delta(1, 0, "xxxx")], more=False)
    world.read(delta(1, 0, "yyyy"))
    world.texts.shrink(4)
    assert (other.held_bytes, world.run().held_bytes) == (0, 4)


def test_a_hole_has_the_run_read_again_once() -> None:
    world = World()
    one = world.join("one")
    world.read(delta(1, 0, "ab"))
    assert world.read(delta(3, 4, "ef")), "the piece before it may have come later"
    world.texts.again(world.run())
    assert not world.read(delta(1, 0, "ab"), delta(2, 2, "cd"), delta(3, 4, "ef"))
    assert told(one) == [(0, "ab", False), (2, "cdef", False)]


def test_a_hole_that_stays_is_not_read_again_and_again() -> None:
    world = World()
    one = world.join("one")
    world.read(delta(1, 0, "ab"))
    assert world.read(delta(3, 4, "ef"))
    world.texts.again(world.run())
    assert not world.read(delta(1, 0, "ab"), delta(3, 4, "ef"))
    assert not world.read(delta(4, 6, "gh"))
    assert told(one) == [(0, "ab", False)], "the rest comes with the event"


def test_a_filter_decides_by_the_thread_of_the_run() -> None:
    world = World()
    here, elsewhere = world.join("here", thread="trip"), world.join("elsewhere", thread="home")
    world.read(delta(1, 0, "ab"))
    assert (told(here), told(elsewhere)) == ([(0, "ab", False)], [])
    elsewhere.thread = "trip"
    world.send(elsewhere)
    assert told(elsewhere) == [(0, "ab", False)]


def test_a_run_that_nobody_may_want_is_not_followed() -> None:
    texts: Texts[Follower] = Texts(
        wants=lambda *_: True, may_want=lambda follower, run: run != RUN, is_ready=lambda _: True
    )
    texts.join(ANN, Follower("one"))
    assert texts.follow(ANN, RUN) is None
    assert texts.follow(UserId("bob"), RunId("run_2")) is None
    assert texts.follow(ANN, RunId("run_2")) is not None


def test_with_the_last_follower_of_a_user_go_the_users_runs() -> None:
    world = World()
    one, two = world.join("one"), world.join("two")
    world.read(delta(1, 0, "ab"))
    world.texts.leave(ANN, one)
    assert list(world.texts.runs)
    world.texts.leave(ANN, two)
    world.texts.leave(ANN, two)
    assert list(world.texts.runs) == []
    assert world.texts.held_bytes == 0


def test_a_run_that_the_index_does_not_name_is_forgotten_when_it_was_read_to_its_end() -> None:
    world = World()
    one = world.join("one")
    world.read(delta(1, 0, "ab"))
    assert world.texts.opened(ANN, [_open(2)]) == [world.run()]
    world.send()
    assert world.texts.run(ANN, RUN) is not None
    (run,) = world.texts.opened(ANN, [])
    world.texts.took(run, [], more=True)
    world.texts.owed(run)
    assert world.texts.run(ANN, RUN) is run, "not before it was read to its end"
    world.texts.took(run, [], more=False)
    world.texts.owed(run)
    assert world.texts.run(ANN, RUN) is None
    assert told(one) == [(0, "ab", False)]


def _open(length: int) -> OpenText:
    return OpenText(run=RUN, stream="text", length=length, entry=ENTRY_ZERO, ended=False)


# --- the cycles of a node ---------------------------------------------------------------------------------------------


def piece(offset: int, text: str, *, last: bool = False, run: str = "run_1") -> TextPiece:
    return TextPiece(
        user=UserId("alice"), run=RunId(run), stream="text", thread=None, offset=offset, text=text, last=last
    )


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    store = MemoryStore()
    yield store
    await store.aclose()


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    async with Nodes("redis://127.0.0.1:1") as made:
        yield made


async def test_a_piece_of_which_no_message_came_is_found_by_the_sweep(store: MemoryStore, nodes: Nodes) -> None:
    node = await nodes.start(store=store)
    async with opened(node) as client:
        await client.expect("caught_up")
        await store.append_text(piece(0, "ab"))
        await client.expect("text", offset=0, text="ab")
        store.lose_live(UserId("alice"))  # nobody is told
        await store.append_text(piece(2, "cd", last=True))
        await store.close_texts(UserId("alice"), RUN)
        node.texting.sweep()
        await client.expect("text", offset=2, text="cd", final=True)
        await until(lambda: not list(store_runs(node)))


async def test_after_a_new_subscription_everything_is_looked_at_and_nothing_sent_twice(
    store: MemoryStore, nodes: Nodes
) -> None:
    node = await nodes.start(store=store)
    async with opened(node) as client:
        await client.expect("caught_up")
        await store.append_text(piece(0, "ab"))
        await client.expect("text", offset=0, text="ab")
        store.lose_live(UserId("alice"))
        await store.append_text(piece(2, "cd"))
        await store.append_text(piece(0, "new", run="run_2"))
        node.hearing.subscribed()
        found = [await client.until_op("text") for _ in range(2)]
        assert sorted((frame["run"], frame["offset"], frame["text"]) for frame in found) == [
            ("run_1", 2, "cd"),
            ("run_2", 0, "new"),
        ]


async def test_reads_that_fail_are_made_again(store: MemoryStore, nodes: Nodes) -> None:
    node = await nodes.start(store=store)
    async with opened(node) as client:
        await client.expect("caught_up")
        await store.append_text(piece(0, "ab"))
        await client.expect("text", offset=0, text="ab")
        await store.append_text(piece(2, "cd"))
        store.fail(calls=2)
        await client.until_op("text")
        assert client.seen[-1]["text"] == "cd"


class BadLog(MemoryStore):
    """A store in which somebody else wrote into the log of `run_bad`."""

    async def read_texts(self, reads: Sequence[TextRead]) -> Sequence[TextPage | StoreError]:
        pages = await super().read_texts(reads)
        bad = StoreMisconfigured("an answer of Redis makes no sense")
        return [bad if read.run == "run_bad" else page for read, page in zip(reads, pages, strict=True)]


async def test_a_log_that_can_not_be_read_is_left_to_its_event_and_holds_nobody_up(nodes: Nodes) -> None:
    node = await nodes.start(store=BadLog())
    async with opened(node) as client:
        await client.expect("caught_up")
        await node.store.append_text(piece(0, "xx", run="run_bad"))
        await until(lambda: node.counters.store_errors["store_misconfigured"])
        reads = node.counters.text_reads
        for number in range(5):
            await node.store.append_text(piece(2 * number, "ab"))
            await client.expect("text", offset=2 * number, text="ab")
        assert node.counters.text_reads <= reads + 5, "it is not read again and again"


async def test_a_node_that_may_hold_little_still_gives_everybody_everything(store: MemoryStore, nodes: Nodes) -> None:
    node = await nodes.start(store=store, text_held_bytes=16_384)
    async with opened(node) as early:
        await early.expect("caught_up")
        for number in range(10):
            await store.append_text(piece(number * 4_000, "x" * 4_000))
            await early.until_op("text")
        await until(lambda: node.texting.held_bytes <= 16_384)
        async with opened(node, session="late", start="new") as late:
            await late.until_op("caught_up")
            frame = await late.until_op("text")
            assert (frame["offset"], len(frame["text"])) == (0, 40_000)
        assert "".join(frame["text"] for frame in early.seen if frame["op"] == "text") == "x" * 40_000


def store_runs(node: Node) -> Sequence[object]:
    """What a node holds of token streams."""
    return [node.texting.open_streams] if node.texting.open_streams else []


# --- what an application is handed ------------------------------------------------------------------------------------


def frame(offset: int, text: str, *, final: bool = False) -> Text:
    return Text(run=RUN, stream="text", offset=offset, text=text, final=final)


def event_of(text: str) -> Any:
    data = {"stream": "text", "text": text}
    return make_event(id="e1", type="agent_text", user="ann", time_ms=1, data=data, run=RUN)


async def test_chunks_come_one_after_the_other_and_each_is_awaited() -> None:
    got: list[Chunk] = []
    free = asyncio.Event()

    async def on_text(chunk: Chunk) -> None:
        got.append(chunk)
        await free.wait()

    errors: list[EventBusError] = []
    feed = TextFeed(on_text, lambda error, _: errors.append(error))
    feed.begin()
    feed.frame(frame(0, "a"))
    await until(lambda: got)
    for number in range(1, 5):
        feed.frame(frame(number, "b"))
    free.set()
    await until(lambda: len(got) == 2)
    feed.event(event_of("abbbbc"))
    await until(lambda: len(got) == 3)
    assert [(chunk.offset, chunk.text, chunk.final) for chunk in got] == [
        (0, "a", False),
        (1, "bbbb", False),
        (5, "c", True),
    ]
    with pytest.raises(SubscriberError):
        feed.want()
    await feed.aclose()
    assert not errors


async def test_a_callback_that_fails_is_reported_and_the_next_chunk_comes() -> None:
    got: list[str] = []
    errors: list[EventBusError] = []

    def on_text(chunk: Chunk) -> None:
        got.append(chunk.text)
        if chunk.text == "a":
            raise ValueError("no")

    feed = TextFeed(on_text, lambda error, _: errors.append(error))
    feed.begin()
    feed.frame(frame(0, "a"))
    await until(lambda: got)
    feed.frame(frame(1, "b"))
    await until(lambda: len(got) == 2)
    assert [str(error) for error in errors] == ["on_text failed: no"]
    await feed.aclose()


async def test_who_iterates_gets_the_chunks_until_the_subscriber_is_closed() -> None:
    feed = TextFeed(None, lambda *_: None)
    feed.frame(frame(0, "nobody wants this"))
    wanted = feed.want()
    feed.frame(frame(0, "ab"))
    assert (await anext(wanted)).text == "ab"
    waiting = asyncio.ensure_future(anext(wanted))
    await asyncio.sleep(0)
    feed.end()
    with pytest.raises(StopAsyncIteration):
        await waiting
