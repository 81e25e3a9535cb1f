"""Commands and questions: their forms, and what is made of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus.commands.command import (
    CANCELLED_BY_USER,
    MAX_ANSWER_BYTES,
    NO_DEFAULT,
    Question,
    Settled,
    answered_event_id,
    check_command,
    parse_question,
    pick_question,
    plain_command_data,
    reason_of,
    ref_word,
    refused_answer,
)
from eventbus.errors import AlreadyAnswered, BadAnswer, InvalidCommand, InvalidField, QuestionClosed, UnknownQuestion
from eventbus.ids import EntryId, RunId, SessionId, ThreadId, parse_event_id
from eventbus.store.inbound import Answered, AnsweredBy, QuestionRecord, QuestionState

pytestmark = pytest.mark.requirement("R20")

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def refused_field(kind: str, data: dict[str, Any]) -> str | None:
    """The field for which a command is refused; None when it is taken."""
    try:
        check_command(kind, data)
    except InvalidCommand as refused:
        return refused.field
    return None


@pytest.mark.parametrize(
    "kind, data",
    [
        ("cancel", {}),
        ("cancel", {"reason": "enough", "more": 1}),
        ("message", {"text": "hello"}),
        ("answer", {"question": "q1", "answer": None}),
        ("answer", {"question": "q:1.a-b_c", "answer": {"a": [1]}}),
        ("answer", {"question": "q1", "answer": "x" * (MAX_ANSWER_BYTES - 3)}),
        ("app.own", {}),
        ("app.own", {"text": 7, "reason": 8}),
    ],
)
def test_a_command_of_its_form_is_taken(kind: str, data: dict[str, Any]) -> None:
    assert refused_field(kind, data) is None


@pytest.mark.parametrize(
    "kind, data, field",
    [
        ("cancel", {"reason": None}, "data.reason"),
        ("cancel", {"reason": "\t"}, "data.reason"),
        ("message", {"text": None}, "data.text"),
        ("answer", {"question": 7, "answer": 1}, "data.question"),
        ("answer", {"question": "x" * 65, "answer": 1}, "data.question"),
        ("answer", {"question": "ä", "answer": 1}, "data.question"),
        ("answer", {"question": "q1", "answer": "x" * MAX_ANSWER_BYTES}, "data.answer"),
    ],
)
def test_a_command_of_another_form_is_refused_with_its_field(kind: str, data: dict[str, Any], field: str) -> None:
    assert refused_field(kind, data) == field


def test_data_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidCommand):
        plain_command_data([1])
    assert plain_command_data({"a": (1, 2)}) == {"a": [1, 2]}


@pytest.mark.parametrize("data", [{}, {"reason": ""}, {"reason": 7}, {"reason": None}])
def test_a_cancel_always_has_words(data: dict[str, Any]) -> None:
    """A command may have been stored by another version, which judged it otherwise."""
    assert reason_of(data) == CANCELLED_BY_USER
    assert reason_of({"reason": "enough"}) == "enough"


def test_refs_of_different_types_are_different_words() -> None:
    assert len({ref_word(ref) for ref in (1, "1", "i1", "s1", -1)}) == 5


@given(default=JSON, options=st.lists(st.text("ab ", min_size=1).filter(str.strip), max_size=3, unique=True))
def test_a_question_is_kept_as_it_was_asked(default: Any, options: list[str]) -> None:
    question = Question(text="Which?", options=tuple(options), default=default, thread=ThreadId("t"))
    assert Question.of(question.packed()) == question
    bare = Question(text="Which?")
    assert Question.of(bare.packed()) == bare
    assert bare.default is NO_DEFAULT


@given(answer=JSON)
def test_an_answer_is_kept_as_it_was_given(answer: Any) -> None:
    settled = Settled(answer=answer, by=AnsweredBy.USER, session=SessionId("phone"), ref="s1")
    assert Settled.of(settled.packed()) == settled
    assert settled.packed() == Settled.of(settled.packed()).packed(), "a repeated answer is known by its bytes"
    late = Settled(answer=None, by=AnsweredBy.DEADLINE, is_answered=False)
    assert Settled.of(late.packed()) == late


def test_the_events_say_what_clients_need() -> None:
    question = Question(text="Which?", options=("a", "b"), default="a")
    assert question.data("q1", 17) == {
        "question": "q1",
        "text": "Which?",
        "options": ["a", "b"],
        "deadline_ms": 17,
        "default": "a",
    }
    assert Question(text="Which?", default=None).data("q1", None) == {
        "question": "q1",
        "text": "Which?",
        "default": None,
    }
    given_by = Settled(answer="a", by=AnsweredBy.USER, session=SessionId("phone"), ref="s1")
    assert given_by.data("q1") == {"question": "q1", "answer": "a", "by": "user", "session": "phone"}
    assert Settled(answer=7, by=AnsweredBy.DEADLINE).data("q1") == {"question": "q1", "answer": 7, "by": "deadline"}


def test_the_event_of_an_answer_has_one_id_for_a_question() -> None:
    ids = {answered_event_id(RunId(run), name) for run, name in (("a", "b"), ("a", "c"), ("ab", ""), ("", "ab"))}
    assert len(ids) == 4
    assert answered_event_id(RunId("a"), "b") in ids
    for event in ids:
        parse_event_id(event)


@pytest.mark.parametrize("options", [7, b"ab", {"a": 1}, [None]])
def test_options_are_a_list_of_texts(options: object) -> None:
    with pytest.raises(InvalidField, match="options"):
        parse_question("Which?", options, NO_DEFAULT, None)


def record(run: str, state: QuestionState, created_ms: int, *, deadline_ms: int | None = None) -> QuestionRecord:
    return QuestionRecord(
        run=RunId(run),
        question="q1",
        state=state,
        created_ms=created_ms,
        deadline_ms=deadline_ms,
        entry=EntryId("17-3"),
        body=b"",
        settled=b"",
        now_ms=100,
    )


def test_an_answer_means_the_question_of_its_run_else_the_open_one_else_the_newest() -> None:
    old = record("a", QuestionState.OPEN, 1)
    late = record("b", QuestionState.OPEN, 2, deadline_ms=100)
    done = record("c", QuestionState.ANSWERED, 3)
    assert pick_question([old, late, done], "q1", None) == old
    assert pick_question([late, done], "q1", None) == done
    assert pick_question([late], "q1", None) == late
    assert pick_question([old, late, done], "q1", RunId("b")) == late
    assert pick_question([old, late, done], "q1", RunId("d")) is None
    assert pick_question([old, late, done], "q2", None) is None


def test_a_question_is_open_until_its_deadline() -> None:
    assert record("a", QuestionState.OPEN, 1, deadline_ms=101).is_open
    assert not record("a", QuestionState.OPEN, 1, deadline_ms=100).is_open
    assert not record("a", QuestionState.CLOSED, 1).is_open


def test_each_refusal_has_an_error_of_its_own() -> None:
    found = {
        result: type(refused_answer(result, "q1"))
        for result in Answered
        if result not in (Answered.ACCEPTED, Answered.EARLY)
    }
    assert found == {
        Answered.ALREADY_ANSWERED: AlreadyAnswered,
        Answered.UNKNOWN_QUESTION: UnknownQuestion,
        Answered.QUESTION_CLOSED: QuestionClosed,
        Answered.BAD_ANSWER: BadAnswer,
    }
    assert {kind.code for kind in found.values()} == {result.value for result in found}
