"""The publisher's side of token streams, over a store in memory and a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from eventbus import Bus, InvalidEvent, RunMisused, Settings
from eventbus.config import PublishSettings
from eventbus.errors import RunClosed, StoreFull, StoreMisconfigured
from eventbus.ids import ENTRY_ZERO, RunId, UserId
from eventbus.runs.closing import close_run
from eventbus.store.texts import TextAnswer, TextPage, TextPiece, TextRead
from eventbus.streaming import TextStream, texts_left
from eventbus.testing import ManualClock, MemoryStore
from tests.support.waiting import until

pytestmark = pytest.mark.requirement("R19")

ANN = UserId("ann")


class World:
    """A bus over a store in memory; time stands until it is moved."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(clock=self.clock)

    def bus(self, **publish: Any) -> Bus:
        return Bus(store=self.store, clock=self.clock, settings=Settings(publish=PublishSettings(**publish)))

    async def pass_time(self, ms: int) -> None:
        """In small steps, so that what begins to wait meanwhile is also due."""
        for _ in range(0, ms, 50):
            await self.clock.pass_time(50)

    async def pieces(self, run: str) -> list[tuple[int, str]]:
        (page,) = await self.store.read_texts([TextRead(user=ANN, run=RunId(run), after=ENTRY_ZERO, count=1_000)])
        assert isinstance(page, TextPage)
        return [(delta.offset, delta.text) for delta in page.deltas]

    async def open(self) -> list[str]:
        (index,) = await self.store.open_texts([ANN])
        assert not isinstance(index, Exception)
        return [found.stream for found in index]

    def texts(self) -> list[dict[str, Any]]:
        return [dict(event.data) for event in self.store.published("ann") if event.type == "agent_text"]

    async def left(self, stream: TextStream, error: BaseException | None = None) -> None:
        """Leaves a stream while time goes on."""
        leaving = asyncio.ensure_future(stream.__aexit__(type(error) if error else None, error, None))
        for _ in range(200):
            if leaving.done():
                break
            await self.clock.pass_time(100)
        await leaving


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.store.aclose()


async def test_words_leave_together_when_the_first_has_waited(world: World) -> None:
    async with world.bus() as bus, bus.run(user="ann", agent="a") as run:
        stream = await run.stream().__aenter__()
        for word in ("one ", "two ", "three"):
            await stream.write(word)
            await world.clock.pass_time(5)
        assert await world.pieces(run.id) == []
        await world.clock.pass_time(6)
        assert await world.pieces(run.id) == [(0, "one two three")]
        await stream.write("!")
        await world.clock.pass_time(25)
        assert await world.pieces(run.id) == [(0, "one two three"), (13, "!")]
        await world.left(stream)
    assert world.texts() == [{"stream": "text", "text": "one two three!"}]
    assert await world.open() == []


async def test_a_full_piece_leaves_at_once(world: World) -> None:
    async with world.bus(text_flush_bytes=4) as bus, bus.run(user="ann", agent="a") as run, run.stream() as stream:
        await stream.write("1234")
        await until(lambda: world.pieces(run.id))


class Watched(MemoryStore):
    """Writes down what is done to a stream, and whether its event was stored by then."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[tuple[str, int]] = []

    def _texts(self) -> int:
        return sum(event.type == "agent_text" for event in self.published("ann"))

    async def append_text(self, piece: TextPiece) -> TextAnswer:
        answer = await super().append_text(piece)
        self.seen.append(("last" if piece.last else "piece", self._texts()))
        return answer

    async def close_texts(self, user: UserId, run: RunId, streams: Sequence[str] | None = None) -> int:
        self.seen.append(("close", self._texts()))
        return await super().close_texts(user, run, streams)


async def test_the_event_follows_the_last_piece_and_then_the_stream_is_closed() -> None:
    store = Watched(clock=ManualClock())
    async with Bus(store=store) as bus, bus.run(user="ann", agent="a") as run, run.stream() as stream:
        await stream.write("abc")
    assert [what for what, _ in store.seen] == ["last", "close"]
    assert store.seen[0] == ("last", 0), "the event is not stored before the text is"
    assert [event.type for event in store.published("ann")] == ["agent_started", "agent_text", "agent_completed"]
    await store.aclose()


async def test_a_store_that_is_away_costs_no_word_and_writing_goes_on(world: World) -> None:
    async with world.bus() as bus, bus.run(user="ann", agent="a") as run:
        stream = await run.stream().__aenter__()
        await stream.write("one ")
        await world.clock.pass_time(25)
        world.store.fail()
        for word in ("two ", "three "):
            await stream.write(word)
            await world.pass_time(500)
        world.store.heal()
        await world.pass_time(5_000)
        assert "".join(text for _, text in await world.pieces(run.id)) == "one two three "
        await world.left(stream)
    assert world.texts() == [{"stream": "text", "text": "one two three "}]


async def test_lost_answers_are_asked_for_again_and_nothing_is_stored_twice(world: World) -> None:
    async with world.bus() as bus, bus.run(user="ann", agent="a") as run:
        stream = await run.stream().__aenter__()
        for word in ("one ", "two ", "three "):
            world.store.lose_replies(calls=2)
            await stream.write(word)
            await world.pass_time(3_000)
        assert [offset for offset, _ in await world.pieces(run.id)] == [0, 4, 8]
        await world.left(stream)


async def test_a_store_that_lost_its_data_gets_the_whole_text_again(world: World) -> None:
    async with world.bus() as bus, bus.run(user="ann", agent="a") as run:
        stream = await run.stream().__aenter__()
        await stream.write("one ")
        await world.clock.pass_time(25)
        world.store.flush()
        await stream.write("two")
        await world.clock.pass_time(25)
        await until(lambda: world.pieces(run.id))
        assert await world.pieces(run.id) == [(0, "one two")]
        await world.left(stream)


async def test_a_store_that_stays_away_leaves_the_text_to_its_event(world: World) -> None:
    async with world.bus(publish_deadline_ms=2_000, run_lease_ms=600_000) as bus:
        run = await bus.run(user="ann", agent="a").__aenter__()
        stream = await run.stream().__aenter__()
        await stream.write("abc")
        world.store.fail()
        await world.left(stream)
        world.store.heal()
        leaving = asyncio.ensure_future(run.__aexit__(None, None, None))
        for _ in range(100):
            await world.clock.pass_time(50)
        await leaving
    assert world.texts() == [{"stream": "text", "text": "abc"}]


@pytest.mark.parametrize("error", [RuntimeError("no"), asyncio.CancelledError()])
async def test_what_ends_the_agent_leaves_what_it_wrote_as_partial(world: World, error: BaseException) -> None:
    async def agent() -> None:
        async with world.bus() as bus, bus.run(user="ann", agent="a") as run, run.stream() as stream:
            await stream.write("Half a sen")
            raise error

    with pytest.raises(type(error)):
        await agent()
    assert world.texts() == [{"stream": "text", "text": "Half a sen", "partial": True}]
    assert world.store.published("ann")[-1].type == "agent_completed"
    assert await world.open() == []


async def test_cancelling_the_end_of_a_stream_does_not_take_its_event_away(world: World) -> None:
    async with world.bus() as bus, bus.run(user="ann", agent="a") as run:
        stream = await run.stream().__aenter__()
        await stream.write("abc")
        world.store.hang()
        leaving = asyncio.ensure_future(stream.__aexit__(None, None, None))
        await asyncio.sleep(0)
        for _ in range(3):
            leaving.cancel()
            await asyncio.sleep(0)
        world.store.resume()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    assert world.texts() == [{"stream": "text", "text": "abc"}]


async def test_a_stream_in_which_nothing_was_written_leaves_nothing(world: World) -> None:
    async with world.bus() as bus, bus.run(user="ann", agent="a") as run, run.stream() as stream:
        await stream.write("")
    assert world.texts() == []
    assert await world.pieces(run.id) == []


async def test_streams_of_a_run_have_names_of_their_own(world: World) -> None:
    async with world.bus() as bus, bus.run(user="ann", agent="a") as run:
        async with run.stream() as one, run.stream() as two, run.stream("notes") as notes:
            for number, stream in enumerate((one, two, notes)):
                await stream.write(str(number))
        assert [stream.name for stream in (one, two, notes)] == ["text", "text_2", "notes"]
        with pytest.raises(InvalidEvent):
            run.stream("no name")
    assert {data["stream"]: data["text"] for data in world.texts()} == {"text": "0", "text_2": "1", "notes": "2"}


async def test_a_stream_that_nobody_left_ends_with_its_run(world: World) -> None:
    async with world.bus() as bus, bus.run(user="ann", agent="a") as run, run.child(agent="b") as child:
        for one in (run, child):
            stream = await one.stream().__aenter__()
            await stream.write(one.agent)
    assert sorted(data["text"] for data in world.texts()) == ["a", "b"]
    assert await world.open() == []


async def test_misuse_is_told(world: World) -> None:
    async with world.bus(max_event_bytes=1_000) as bus, bus.run(user="ann", agent="a") as run:
        stream = run.stream()
        with pytest.raises(RunMisused):
            await stream.write("too early")
        async with stream:
            with pytest.raises(RunMisused):
                await stream.__aenter__()
            await stream.write("x" * 800)
            with pytest.raises(InvalidEvent, match="leave it"):
                await stream.write("x" * 100)
        with pytest.raises(RunMisused):
            await stream.write("too late")
    assert world.texts() == [{"stream": "text", "text": "x" * 800}]


async def test_a_store_that_refuses_text_for_good_is_told_to_who_writes_on(world: World) -> None:
    async with world.bus() as bus, bus.run(user="ann", agent="a") as run:
        stream = await run.stream().__aenter__()
        await stream.write("abc")
        world.store.fail(StoreMisconfigured("no such script"), calls=1)
        await world.clock.pass_time(25)
        with pytest.raises(StoreMisconfigured):
            await stream.write("def")
        await world.left(stream)
    assert world.texts() == [{"stream": "text", "text": "abc"}], "the event has what was taken"


async def test_a_full_store_is_waited_for(world: World) -> None:
    async with world.bus() as bus, bus.run(user="ann", agent="a") as run:
        stream = await run.stream().__aenter__()
        world.store.fail(StoreFull("no memory"), calls=3)
        await stream.write("abc")
        await world.pass_time(5_000)
        assert await world.pieces(run.id) == [(0, "abc")]
        await world.left(stream)


@pytest.mark.requirement("R16")
async def test_what_a_dead_process_wrote_becomes_an_event_of_its_closed_run_once(world: World) -> None:
    async with world.bus() as bus:
        run = await bus.run(user="ann", agent="a", thread="trip").__aenter__()
        stream = await run.stream().__aenter__()
        await stream.write("Half a sen")
        await world.clock.pass_time(25)
        await run.flush()
        assert await texts_left(world.store, ANN, run.id) == {"text": "Half a sen"}
        record = await world.store.run(ANN, run.id)
        assert record is not None
        assert await close_run(world.store, world.clock, record)
        assert await close_run(world.store, world.clock, record), "safe to repeat"
        assert world.texts() == [{"stream": "text", "text": "Half a sen", "partial": True}]
        (event,) = [event for event in world.store.published("ann") if event.type == "agent_text"]
        assert (event.run, event.thread) == (run.id, "trip")
        assert await world.open() == []
        await stream.write("tence")
        await world.clock.pass_time(25)
        with pytest.raises(RunClosed):
            await stream.write("!")
        with pytest.raises(RunClosed):
            await world.left(stream)
        with pytest.raises(RunClosed):
            await run.__aexit__(None, None, None)
    assert len(world.texts()) == 1


@pytest.mark.requirement("R16")
async def test_the_text_that_a_dead_process_left_is_forgotten_only_when_its_event_is_stored() -> None:
    """Else the death of the process that resumes the run, between the two, would cost the text."""
    store = Watched(clock=ManualClock())
    async with Bus(store=store) as first, Bus(store=store) as second:
        old = await first.run(user="ann", agent="a").__aenter__()
        piece = TextPiece(user=ANN, run=old.id, stream="text", thread=None, offset=0, text="Half a sen")
        await old.flush()
        await store.append_text(piece)
        async with second.run(user="ann", agent="a", run=old.id, resume=True):
            assert store.seen == [("piece", 0), ("close", 1)]
        with pytest.raises(RunClosed):
            await old.__aexit__(None, None, None)
    await store.aclose()


@pytest.mark.requirement("R16")
async def test_whoever_resumes_a_run_sends_what_was_left_and_streams_under_another_name(world: World) -> None:
    async with world.bus() as first, world.bus() as second:
        old = await first.run(user="ann", agent="a").__aenter__()
        stream = await old.stream().__aenter__()
        await stream.write("Half a sen")
        await world.clock.pass_time(25)
        await old.flush()
        async with second.run(user="ann", agent="a", run=old.id, resume=True) as run:
            assert world.texts() == [{"stream": "text", "text": "Half a sen", "partial": True}]
            async with run.stream() as again:
                await again.write("A whole sentence")
            assert again.name != "text"
        with pytest.raises(RunClosed):
            await world.left(stream)
        with pytest.raises(RunClosed):
            await old.__aexit__(None, None, None)
    assert [data["text"] for data in world.texts()] == ["Half a sen", "A whole sentence"]
    assert await world.open() == []
