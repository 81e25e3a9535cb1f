"""`Subscriber.send` against a node whose every frame a test writes: kept until answered, sent again under its ref."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eventbus.client.sends import MAX_UNANSWERED, Sends, make_send
from eventbus.errors import (
    AlreadyAnswered,
    BadAnswer,
    CommandRefused,
    InvalidCommand,
    InvalidField,
    NodeFault,
    QuestionClosed,
    SendTimeout,
    SubscriberError,
    UnknownQuestion,
)
from eventbus.frames import ErrorFrame, Sent
from eventbus.ids import EntryId
from eventbus.subscriber import Subscriber
from tests.support.subscribing import Log, ScriptedNode

pytestmark = pytest.mark.requirement("R20")


async def test_a_command_is_sent_and_its_id_returned() -> None:
    async with ScriptedNode() as node, Subscriber(node.url, "t") as subscriber:
        peer = await node.peer()
        await peer.greet()
        sending = asyncio.create_task(subscriber.send("message", {"text": "a"}, run="run_1", thread="t1"))
        frame = await peer.frame("send")
        assert {**frame, "ref": ""} == {
            "op": "send",
            "type": "message",
            "data": {"text": "a"},
            "ref": "",
            "run": "run_1",
            "thread": "t1",
        }
        assert not sending.done()
        await peer.send("sent", ref=frame["ref"], id="17-3")
        assert await sending == "17-3"


async def test_a_command_without_an_answer_is_sent_again_under_its_ref_on_the_next_connection() -> None:
    async with ScriptedNode() as node, Subscriber(node.url, "t", random=lambda: 0.0) as subscriber:
        first = await node.peer()
        await first.greet()
        sendings = [asyncio.create_task(subscriber.send("message", {"text": text})) for text in ("a", "b", "c")]
        frames = [await first.frame("send", number) for number in (1, 2, 3)]
        await first.send("sent", ref=frames[1]["ref"], id="17-2")
        await sendings[1]
        first.cut()
        second = await node.peer(2)
        await second.greet(resumed=True)
        await second.frame("send", 2)
        assert second.all("send") == [frames[0], frames[2]]
        for number, frame in enumerate(second.all("send")):
            await second.send("sent", ref=frame["ref"], id=f"17-{number}")
        assert await asyncio.gather(*sendings) == ["17-0", "17-2", "17-1"]


async def test_a_command_waits_for_the_first_connection() -> None:
    async with ScriptedNode() as node, Subscriber(node.url, "t") as subscriber:
        sending = asyncio.create_task(subscriber.send("cancel", run="run_1"))
        peer = await node.peer()
        await peer.frame("hello")
        assert peer.all("send") == []
        await peer.greet()
        frame = await peer.frame("send")
        assert frame["data"] == {}
        await peer.send("sent", ref=frame["ref"], id="17-3")
        await sending


@pytest.mark.parametrize(
    "code, kind",
    [
        ("already_answered", AlreadyAnswered),
        ("unknown_question", UnknownQuestion),
        ("question_closed", QuestionClosed),
        ("bad_answer", BadAnswer),
    ],
)
async def test_an_answer_that_is_not_accepted_raises_why(code: str, kind: type[Exception]) -> None:
    async with ScriptedNode() as node, Subscriber(node.url, "t") as subscriber:
        peer = await node.peer()
        await peer.greet()
        answering = asyncio.create_task(subscriber.answer("q1", "tea", run="run_1"))
        frame = await peer.frame("send")
        assert (frame["type"], frame["data"], frame["run"]) == ("answer", {"question": "q1", "answer": "tea"}, "run_1")
        await peer.send("error", code=code, message="so it is", ref=frame["ref"])
        with pytest.raises(kind, match="so it is"):
            await answering


async def test_a_command_that_is_refused_raises_with_the_code_and_is_reported_to_nobody_else() -> None:
    log = Log()
    async with ScriptedNode() as node, Subscriber(node.url, "t", on_error=log.errors.append) as subscriber:
        peer = await node.peer()
        await peer.greet()
        sending = asyncio.create_task(subscriber.send("message", {"text": "a"}))
        frame = await peer.frame("send")
        await peer.send("error", code="rate_limited", message="too many", ref="another")
        await peer.send("error", code="rate_limited", message="too many", ref=frame["ref"])
        with pytest.raises(CommandRefused) as refused:
            await sending
        assert refused.value.refused_with == "rate_limited"
        assert [type(error) for error in log.errors] == [NodeFault]


async def test_a_command_that_nobody_answers_raises_in_time_and_is_not_sent_again() -> None:
    async with ScriptedNode() as node, Subscriber(node.url, "t", random=lambda: 0.0) as subscriber:
        first = await node.peer()
        await first.greet()
        with pytest.raises(SendTimeout):
            await subscriber.send("message", {"text": "a"}, timeout_ms=50)
        first.cut()
        second = await node.peer(2)
        await second.greet(resumed=True)
        sending = asyncio.create_task(subscriber.send("message", {"text": "b"}))
        frame = await second.frame("send")
        assert frame["data"] == {"text": "b"}
        await second.send("sent", ref=frame["ref"], id="17-3")
        await sending


async def test_closing_ends_the_wait() -> None:
    async with ScriptedNode() as node:
        subscriber = Subscriber(node.url, "t")
        async with subscriber:
            peer = await node.peer()
            await peer.greet()
            sending = asyncio.create_task(subscriber.send("message", {"text": "a"}))
            await peer.frame("send")
        with pytest.raises(SubscriberError, match="closed"):
            await sending
        with pytest.raises(SubscriberError, match="open"):
            await subscriber.send("message", {"text": "a"})


@pytest.mark.parametrize(
    "about, kind",
    [
        ({"type": "message", "data": {}}, InvalidCommand),
        ({"type": "Message", "data": {"text": "a"}}, InvalidField),
        ({"type": "a", "data": {"x": object()}}, InvalidCommand),
        ({"type": "a", "data": {"x": "y" * 70_000}}, InvalidCommand),
        ({"type": "a", "run": "thread_1"}, InvalidField),
        ({"type": "a", "thread": "run_1"}, InvalidField),
        ({"type": "a", "timeout_ms": 0}, InvalidField),
    ],
)
async def test_a_command_of_a_wrong_form_is_refused_where_it_is_made(
    about: dict[str, Any], kind: type[Exception]
) -> None:
    async with ScriptedNode() as node, Subscriber(node.url, "t") as subscriber:
        with pytest.raises(kind):
            await subscriber.send(**about)


def test_more_than_may_wait_are_refused() -> None:
    sends = Sends("s")
    for _ in range(MAX_UNANSWERED):
        sends.add(make_send("a", {}, ref=sends.next_ref(), run=None, thread=None))
    with pytest.raises(SubscriberError):
        sends.add(make_send("a", {}, ref=sends.next_ref(), run=None, thread=None))
    assert len(sends) == MAX_UNANSWERED


def test_what_is_answered_is_sent_no_more() -> None:
    sends = Sends("s")
    refs = [sends.next_ref() for _ in range(3)]
    for ref in refs:
        sends.add(make_send("a", {}, ref=ref, run=None, thread=None))
    assert sends
    assert sends.answered(Sent(ref=refs[0], id=EntryId("17-3")))
    assert not sends.answered(Sent(ref=refs[0], id=EntryId("17-3")))
    assert not sends.answered(ErrorFrame(code="x", message="y"))
    sends.forget(refs[1])
    assert [frame.ref for frame in iter(lambda: sends.next(0), None)] == [refs[2]]
    sends.reconnected(0)
    assert [frame.ref for frame in iter(lambda: sends.next(0), None)] == [refs[2]]
    assert (sends.result(refs[0]), sends.result(refs[0]), sends.result(refs[2])) == ("17-3", None, None)


def test_a_command_is_not_sent_again_when_a_node_may_have_forgotten_its_ref() -> None:
    sends = Sends("s")
    sent, waiting = (sends.next_ref() for _ in range(2))
    sends.add(make_send("a", {}, ref=sent, run=None, thread=None))
    assert [frame.ref for frame in iter(lambda: sends.next(1_000), None)] == [sent]
    sends.add(make_send("a", {}, ref=waiting, run=None, thread=None))
    sends.reconnected(110_999)
    assert [frame.ref for frame in iter(lambda: sends.next(110_999), None)] == [sent, waiting]
    sends.reconnected(111_000)
    assert [frame.ref for frame in iter(lambda: sends.next(111_000), None)] == [waiting], "it was never sent before"
    assert sends.answered(Sent(ref=sent, id=EntryId("17-3"))), "a late answer counts"
