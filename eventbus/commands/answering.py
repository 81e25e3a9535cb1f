"""Answers to questions, made with the event that tells of them."""

from __future__ import annotations

from typing import Any

from eventbus.commands.command import NO_DEFAULT, Question, Settled, answered_event_id
from eventbus.event import make_event
from eventbus.ids import SessionId, UserId
from eventbus.publishing.making import append_of
from eventbus.store.inbound import Answer, AnsweredBy, QuestionRecord

__all__ = ["default_answer", "user_answer"]


def user_answer(
    record: QuestionRecord, user: UserId, session: SessionId, answer: Any, *, ref: str, now_ms: int
) -> Answer:
    """A user's answer to a question.

    Args:
        record: the question, as `InboundStore.questions` gives it.
        user: who answers.
        session: from which device.
        answer: any JSON value.
        ref: names the request: the same one again is the same answer.
        now_ms: Unix milliseconds.

    Raises:
        InvalidEvent: the answer can not be told in an event.
    """
    settled = Settled(answer=answer, by=AnsweredBy.USER, session=session, ref=ref)
    return _answer(record, user, settled, answer, now_ms)


def default_answer(record: QuestionRecord, user: UserId, *, now_ms: int) -> Answer:
    """What a question comes to when its deadline has passed: its default, or no answer at all."""
    default = Question.of(record.body).default
    if default is NO_DEFAULT:
        settled = Settled(answer=None, by=AnsweredBy.DEADLINE, is_answered=False)
    else:
        settled = Settled(answer=default, by=AnsweredBy.DEADLINE)
    return _answer(record, user, settled, settled.answer, now_ms)


def _answer(record: QuestionRecord, user: UserId, settled: Settled, answer: Any, now_ms: int) -> Answer:
    event = make_event(
        id=answered_event_id(record.run, record.question),
        type="agent_answered",
        user=user,
        time_ms=now_ms,
        data=settled.data(record.question),
        # Of one that is settled nothing is told but that: its event is stored already.
        thread=Question.of(record.body).thread if record.body else None,
        run=record.run,
    )
    return Answer(
        event=append_of(event),
        run=record.run,
        question=record.question,
        by=settled.by,
        choice=answer if isinstance(answer, str) else None,
        settled=settled.packed(),
    )
