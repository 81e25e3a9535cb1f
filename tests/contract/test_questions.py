"""Questions of agents: opened once, one answer accepted, with the event that tells of it or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eventbus.config import StreamFullPolicy
from eventbus.errors import StreamFull
from eventbus.ids import EntryId, EventId, RunId, ThreadId, UserId
from eventbus.store import Append, RunStep
from eventbus.store.inbound import (
    QUESTIONS_MAX,
    Answer,
    Answered,
    AnsweredBy,
    AnswerOutcome,
    Ask,
    QuestionRecord,
    QuestionState,
    Told,
)
from tests.contract.conftest import MakeWorld
from tests.contract.test_commands import Heard
from tests.contract.timely import timely
from tests.contract.worlds import ALICE, World

RUN, OTHER_RUN = RunId("run_1"), RunId("run_2")
BOB = UserId("bob")

pytestmark = pytest.mark.requirement("R20")


async def ask(
    world: World,
    question: str = "q1",
    *,
    run: RunId = RUN,
    timeout_ms: int | None = None,
    options: tuple[str, ...] = (),
    user: UserId = ALICE,
) -> QuestionRecord:
    asked = await world.store.ask(
        Ask(user=user, run=run, question=question, body=b"asked", timeout_ms=timeout_ms, options=options)
    )
    assert asked is not None
    return asked


async def answer(
    world: World,
    choice: str | None = "tea",
    question: str = "q1",
    *,
    by: AnsweredBy = AnsweredBy.USER,
    run: RunId = RUN,
    user: UserId = ALICE,
    settled: str = "",
) -> AnswerOutcome:
    event = Append(
        user=user,
        event=EventId(f"answered-{run}-{question}"),
        body=f"answered {question}".encode(),
        type="agent_answered",
        thread=ThreadId("trip"),
    )
    kept = (settled or f"by {by} {choice}").encode()
    return await world.store.answer(Answer(event=event, run=run, question=question, by=by, choice=choice, settled=kept))


async def only(world: World, user: UserId = ALICE) -> QuestionRecord:
    (record,) = await world.store.questions(user)
    return record


async def test_a_question_is_kept_as_it_was_asked(world: World) -> None:
    asked = await ask(world, timeout_ms=60_000, options=("tea", "soup"))
    record = await only(world)

    assert (record.run, record.question, record.body, record.entry) == (RUN, "q1", b"asked", None)
    assert (record.state, record.is_open, record.settled) == (QuestionState.OPEN, True, b"")
    assert record.deadline_ms == asked.deadline_ms == asked.created_ms + 60_000
    await world.store.question_published(ALICE, RUN, "q1", EntryId("17-3"))
    await world.store.question_published(ALICE, RUN, "q2", EntryId("17-4"))
    assert (await only(world)).entry == "17-3"


async def test_a_question_that_is_asked_again_stays_as_it_is(world: World) -> None:
    first = await ask(world, timeout_ms=60_000, options=("tea",))
    await world.pass_time(5)
    again = await ask(world, timeout_ms=1_000)

    assert (again.created_ms, again.deadline_ms) == (first.created_ms, first.deadline_ms)
    assert again.now_ms > first.now_ms
    assert (await answer(world, "soup")).result is Answered.BAD_ANSWER


async def test_an_accepted_answer_is_stored_with_its_event_and_both_are_told(world: World) -> None:
    heard = Heard()
    following = world.store.follow(ALICE, heard)
    await heard.until(Told.ANYTHING)
    await ask(world)

    outcome = await answer(world)

    assert outcome.result is Answered.ACCEPTED
    assert await world.retained() == ["answered q1"]
    stored = await world.store.entry(ALICE, outcome.entry or EntryId("0-1"))
    assert stored is not None
    record = await ask(world)
    assert (record.state, record.settled, record.is_open) == (QuestionState.ANSWERED, b"by user tea", False)
    record = await only(world)
    assert (record.state, record.settled, record.body) == (QuestionState.ANSWERED, b"", b"")
    await heard.until(Told.ANSWER)
    following.close()


async def test_it_is_known_who_was_asked_anything(world: World) -> None:
    await ask(world)
    assert list(await world.store.have_questions([ALICE, BOB, ALICE])) == [True, False, True]
    assert list(await world.store.have_questions([])) == []


async def test_one_of_two_answers_is_accepted(world: World) -> None:
    for number in range(50):
        await ask(world, f"q{number}")
        outcomes = await asyncio.gather(
            answer(world, "tea", f"q{number}"), answer(world, "soup", f"q{number}"), answer(world, None, f"q{number}")
        )
        found = sorted(outcome.result for outcome in outcomes)
        assert found == [Answered.ACCEPTED, Answered.ALREADY_ANSWERED, Answered.ALREADY_ANSWERED]
    assert await world.retained() == [f"answered q{number}" for number in range(50)]


async def test_the_same_answer_again_is_accepted_again_and_stored_once(world: World) -> None:
    """The client did not hear of it, and sends it again under its ref."""
    await ask(world)
    first = await answer(world)
    again = await answer(world)

    assert again == first
    assert await world.retained() == ["answered q1"]


async def test_an_answer_must_be_one_of_the_options(world: World) -> None:
    await ask(world, options=("tea", "soup"))

    assert (await answer(world, "beer")).result is Answered.BAD_ANSWER
    assert (await answer(world, "")).result is Answered.BAD_ANSWER
    assert (await answer(world, None)).result is Answered.BAD_ANSWER
    assert (await answer(world, "soup")).result is Answered.ACCEPTED


async def test_anything_is_an_answer_where_there_are_no_options(world: World) -> None:
    await ask(world)
    assert (await answer(world, None)).result is Answered.ACCEPTED


async def test_a_question_that_nobody_asked_takes_no_answer(world: World) -> None:
    await ask(world)

    assert (await answer(world, question="q2")).result is Answered.UNKNOWN_QUESTION
    assert (await answer(world, run=OTHER_RUN)).result is Answered.UNKNOWN_QUESTION
    assert (await answer(world, user=BOB)).result is Answered.UNKNOWN_QUESTION
    assert await world.retained() == []
    assert (await only(world)).is_open


async def test_two_runs_may_give_a_question_one_name(world: World) -> None:
    await ask(world)
    await ask(world, run=OTHER_RUN)
    assert (await answer(world, "tea")).result is Answered.ACCEPTED
    assert (await answer(world, "soup", run=OTHER_RUN)).result is Answered.ACCEPTED


@timely
async def test_a_late_answer_is_refused_and_only_the_deadline_settles_it(make_world: MakeWorld) -> None:
    world = await make_world()
    await ask(world, timeout_ms=50, options=("tea",))
    early = await answer(world, by=AnsweredBy.DEADLINE)
    assert early.result is Answered.EARLY
    assert 0 < early.left_ms <= 50

    await world.pass_time(60)

    assert not (await only(world)).is_open
    assert (await answer(world, "tea")).result is Answered.QUESTION_CLOSED
    # The default need not be one of the options.
    assert (await answer(world, "whatever", by=AnsweredBy.DEADLINE)).result is Answered.ACCEPTED
    assert (await answer(world, "tea")).result is Answered.ALREADY_ANSWERED


async def test_a_completed_run_takes_no_answer(world: World) -> None:
    await ask(world)
    step = RunStep(run=RUN, seq=1, owner="", lease_ms=0, fields={"state": "completed"})
    await world.append(Append(user=ALICE, event=EventId("done"), body=b"done", step=step))

    assert (await answer(world)).result is Answered.QUESTION_CLOSED


async def test_a_run_that_is_over_closes_its_own_questions(world: World) -> None:
    await ask(world, "q1")
    await ask(world, "q2")
    await ask(world, "q1", run=OTHER_RUN)
    await answer(world, question="q2")

    await world.store.close_inbound(ALICE, RUN)

    found = {(record.run, record.question): record.state for record in await world.store.questions(ALICE)}
    assert found == {
        (RUN, "q1"): QuestionState.CLOSED,
        (RUN, "q2"): QuestionState.ANSWERED,
        (OTHER_RUN, "q1"): QuestionState.OPEN,
    }
    assert (await answer(world)).result is Answered.QUESTION_CLOSED


async def test_an_answer_whose_event_does_not_fit_is_not_accepted(make_world: Any) -> None:
    from tests.contract.worlds import fence_of

    world: World = await make_world(max_stream_entries=2, stream_full_policy=StreamFullPolicy.REJECT)
    fence = fence_of("c1")
    await world.open(fence)
    entries = await world.publish("a", "b")
    await ask(world)

    with pytest.raises(StreamFull):
        await answer(world)
    assert (await only(world)).is_open

    await world.received(fence)
    await world.ack(fence, *entries)
    assert (await answer(world)).result is Answered.ACCEPTED


async def test_questions_beyond_the_cap_take_the_place_of_those_that_are_settled(world: World) -> None:
    for number in range(QUESTIONS_MAX):
        await ask(world, f"q{number}")
    refused = await world.store.ask(Ask(user=ALICE, run=RUN, question="more", body=b"", timeout_ms=None))
    assert refused is None

    await answer(world, question="q7")
    await world.pass_time(2)
    await ask(world, "more")
    kept = [record.question for record in await world.store.questions(ALICE)]
    assert len(kept) == QUESTIONS_MAX
    assert "q7" not in kept
