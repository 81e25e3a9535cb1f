"""Token streams in the store: pieces in order and once, an index of what is open, a word to the nodes."""

from __future__ import annotations

import pytest

from eventbus.ids import ENTRY_ZERO, EventId, NodeName, RunId, SessionId, ThreadId, UserId
from eventbus.store import Append, RunStep
from eventbus.store.texts import TEXT_LIFE_MS, TextOutcome, TextPage, TextPiece, TextRead
from tests.contract.test_channels import Ear
from tests.contract.worlds import ALICE, NODE, OTHER_NODE, World, fence_of, stored
from tests.support.waiting import until

pytestmark = pytest.mark.requirement("R19")

BOB = UserId("bob")
RUN, OTHER_RUN = RunId("run_1"), RunId("run_2")
THREAD = ThreadId("trip")


def piece(offset: int, text: str, *, last: bool = False, stream: str = "text", **of: object) -> TextPiece:
    named: dict[str, object] = {"user": ALICE, "run": RUN, "thread": THREAD, **of}
    return TextPiece(offset=offset, text=text, last=last, stream=stream, **named)  # type: ignore[arg-type]


async def append(world: World, *pieces: TextPiece) -> list[tuple[TextOutcome, int]]:
    answers = [await world.store.append_text(one) for one in pieces]
    return [(answer.outcome, answer.length) for answer in answers]


async def page_of(world: World, run: RunId = RUN, user: UserId = ALICE, **read: object) -> TextPage:
    asked: dict[str, object] = {"after": ENTRY_ZERO, "count": 1000, **read}
    (page,) = await world.store.read_texts([TextRead(user=user, run=run, **asked)])  # type: ignore[arg-type]
    assert isinstance(page, TextPage), page
    return page


async def deltas_of(world: World, run: RunId = RUN, user: UserId = ALICE) -> list[tuple[str, int, str, bool]]:
    page = await page_of(world, run, user)
    return [(delta.stream, delta.offset, delta.text, delta.last) for delta in page.deltas]


async def open_of(world: World, user: UserId = ALICE) -> dict[tuple[RunId, str], tuple[int, bool]]:
    (index,) = await world.store.open_texts([user])
    assert not isinstance(index, Exception)
    return {(found.run, found.stream): (found.length, found.ended) for found in index}


async def test_pieces_are_stored_in_order_and_their_ends_are_the_length(world: World) -> None:
    answers = await append(world, piece(0, "Grüße "), piece(6, "an 👩‍🚀"), piece(12, "", last=True))
    assert answers == [(TextOutcome.STORED, 6), (TextOutcome.STORED, 12), (TextOutcome.STORED, 12)]
    assert await deltas_of(world) == [
        ("text", 0, "Grüße ", False),
        ("text", 6, "an 👩‍🚀", False),
        ("text", 12, "", True),
    ]


async def test_the_first_piece_tells_the_thread_and_the_others_do_not(world: World) -> None:
    await append(world, piece(0, "a"), piece(1, "b"))
    assert [delta.thread for delta in (await page_of(world)).deltas] == [THREAD, None]


async def test_a_repeated_piece_is_stored_once(world: World) -> None:
    answers = await append(world, piece(0, "abc"), piece(0, "abc"), piece(3, "def"), piece(0, "abc"), piece(3, "def"))
    stored_once = [(TextOutcome.STORED, 3), (TextOutcome.DUPLICATE, 3), (TextOutcome.STORED, 6)]
    assert answers == [*stored_once, (TextOutcome.DUPLICATE, 6), (TextOutcome.DUPLICATE, 6)]
    assert len(await deltas_of(world)) == 2


async def test_a_piece_behind_a_hole_is_refused_and_told_where_the_stream_ends(world: World) -> None:
    await append(world, piece(0, "abc"))
    assert await append(world, piece(5, "x")) == [(TextOutcome.ELSEWHERE, 3)]
    assert await append(world, piece(5, "x", stream="other")) == [(TextOutcome.ELSEWHERE, 0)]


async def test_a_piece_that_overlaps_is_asked_for_from_the_end_of_the_stream(world: World) -> None:
    await append(world, piece(0, "abc"))
    assert await append(world, piece(0, "abcdef")) == [(TextOutcome.ELSEWHERE, 3)]
    assert await append(world, piece(3, "def")) == [(TextOutcome.STORED, 6)]


async def test_after_a_loss_of_the_data_the_whole_text_is_asked_for(world: World) -> None:
    await append(world, piece(0, "abc"))
    await world.power.flush()
    assert await append(world, piece(3, "def")) == [(TextOutcome.ELSEWHERE, 0)]
    assert await append(world, piece(0, "abcdef")) == [(TextOutcome.STORED, 6)]


async def test_nothing_follows_the_last_piece_and_the_last_may_be_repeated(world: World) -> None:
    answers = await append(world, piece(0, "abc", last=True), piece(0, "abc", last=True), piece(3, "", last=True))
    assert answers == [(TextOutcome.STORED, 3), (TextOutcome.DUPLICATE, 3), (TextOutcome.DUPLICATE, 3)]
    assert await append(world, piece(3, "x")) == [(TextOutcome.ENDED, 3)]
    assert len(await deltas_of(world)) == 1


async def test_an_empty_piece_that_is_not_the_last_leaves_nothing(world: World) -> None:
    assert await append(world, piece(0, "")) == [(TextOutcome.DUPLICATE, 0)]
    assert await deltas_of(world) == []


async def test_the_index_names_what_is_open_until_it_is_closed(world: World) -> None:
    await append(world, piece(0, "abc"), piece(0, "x", stream="two"), piece(0, "yy", run=OTHER_RUN, last=True))
    assert await open_of(world) == {(RUN, "text"): (3, False), (RUN, "two"): (1, False), (OTHER_RUN, "text"): (2, True)}
    assert await world.store.close_texts(ALICE, RUN, ["text", "never"]) == 1
    assert await open_of(world) == {(RUN, "two"): (1, False), (OTHER_RUN, "text"): (2, True)}
    assert await world.store.close_texts(ALICE, OTHER_RUN) == 1
    assert await open_of(world) == {(RUN, "two"): (1, False)}


async def test_closing_ends_a_stream_that_had_no_last_piece_and_no_other(world: World) -> None:
    await append(world, piece(0, "abc"), piece(0, "x", stream="two", last=True))
    assert await world.store.close_texts(ALICE, RUN) == 2
    assert await deltas_of(world) == [("text", 0, "abc", False), ("two", 0, "x", True), ("text", 3, "", True)]
    assert await world.store.close_texts(ALICE, RUN) == 0


async def test_runs_of_two_users_with_one_id_do_not_meet(world: World) -> None:
    """R22: the text of a run is its user's."""
    await append(world, piece(0, "hers"), piece(0, "his", user=BOB))
    assert await deltas_of(world) == [("text", 0, "hers", False)]
    assert await deltas_of(world, user=BOB) == [("text", 0, "his", False)]
    assert await world.store.close_texts(BOB, RUN) == 1
    assert await open_of(world) == {(RUN, "text"): (4, False)}


async def test_pieces_are_read_in_pages_behind_a_cursor_for_many_runs_at_once(world: World) -> None:
    await append(world, *(piece(number, "a") for number in range(5)), piece(0, "b", run=OTHER_RUN))
    first = await page_of(world, count=3)
    assert ([delta.offset for delta in first.deltas], first.more) == ([0, 1, 2], True)
    rest, other, none = await world.store.read_texts(
        [
            TextRead(user=ALICE, run=RUN, after=first.deltas[-1].id, count=3),
            TextRead(user=ALICE, run=OTHER_RUN, after=ENTRY_ZERO, count=3),
            TextRead(user=ALICE, run=RunId("run_3"), after=ENTRY_ZERO, count=3),
        ]
    )
    assert isinstance(rest, TextPage)
    assert ([delta.offset for delta in rest.deltas], rest.more) == ([3, 4], False)
    assert isinstance(other, TextPage)
    assert [delta.text for delta in other.deltas] == ["b"]
    assert none == TextPage(deltas=(), more=False)


async def test_each_node_with_a_live_session_of_the_user_is_told_and_no_other(world: World) -> None:
    ears: dict[str, TextEar] = {}
    listening = []
    for node in (NODE, OTHER_NODE, NodeName("node-3")):
        ears[node] = TextEar()
        listening.append(await world.store.listen(node, ears[node]))
    await until(lambda: all(ear.subscriptions for ear in ears.values()))
    await world.open(fence_of("c1"), node=NODE)
    await world.open(fence_of("c2", session=SessionId("desk")), node=NODE)
    await world.open(fence_of("c3", session=SessionId("tv")), node=OTHER_NODE)
    await world.open(fence_of("c4", BOB), node=NodeName("node-3"))
    await append(world, piece(0, "abc"), piece(0, "abc"))
    await world.store.close_texts(ALICE, RUN)
    await until(lambda: len(ears[NODE].texts) >= 2 and len(ears[OTHER_NODE].texts) >= 2)
    for node in (NODE, OTHER_NODE):
        assert ears[node].texts == [(ALICE, RUN), (ALICE, RUN)], "once for the piece, once for the end"
    assert ears["node-3"].texts == []
    for one in listening:
        await one.aclose()


async def test_a_completed_run_takes_no_text(world: World) -> None:
    for seq, state in ((1, "running"), (2, "completed")):
        step = RunStep(run=RUN, seq=seq, owner="me", lease_ms=0, fields={"state": state})
        (answer,) = await world.append(Append(user=ALICE, event=EventId(f"e{seq}"), body=b"body", step=step))
        stored(answer)
        if seq == 1:
            assert await append(world, piece(0, "abc")) == [(TextOutcome.STORED, 3)]
    assert await append(world, piece(3, "x")) == [(TextOutcome.RUN_CLOSED, 3)]
    assert await append(world, piece(0, "abc")) == [(TextOutcome.DUPLICATE, 3)], "what was stored before was stored"
    assert await append(world, piece(0, "x", stream="new")) == [(TextOutcome.RUN_CLOSED, 0)]


@pytest.mark.parametrize("world_kind", ["memory"], indirect=False)
async def test_a_new_stream_of_a_run_clears_what_ended_long_ago(world: World) -> None:
    """Ten minutes of the store's clock, which only the store in memory has to give."""
    await append(world, piece(0, "old", last=True))
    await world.store.close_texts(ALICE, RUN)
    await world.pass_time(TEXT_LIFE_MS - 1_000)
    await append(world, piece(0, "two", stream="two"))
    assert [stream for stream, *_ in await deltas_of(world)] == ["text", "two"]
    await world.store.close_texts(ALICE, RUN)
    await world.pass_time(TEXT_LIFE_MS - 1_000)
    await append(world, piece(0, "three", stream="three"))
    assert [stream for stream, *_ in await deltas_of(world)] == ["two", "two", "three"]


class TextEar(Ear):
    """Notes what is told of texts."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[tuple[UserId, RunId]] = []

    def text_came(self, user: UserId, run: RunId) -> None:
        self.texts.append((user, run))
