"""The `send` frame over real sockets and a real server: stored before it is answered, refused with its ref."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from eventbus.ids import ENTRY_ZERO, EntryId, RunId, UserId
from eventbus.store.inbound import COMMANDS_MAX, Ask, NewCommand, QuestionState
from eventbus.store.redis_store import RedisStore
from gateway.node import Node
from tests.support.servers import freeze, thaw
from tests.support.waiting import until
from tests.support.wire_client import MSGPACK, Nodes, WireClient, opened, token_of, wired

pytestmark = pytest.mark.requirement("R20")

ALICE = UserId("alice")
RUN = RunId("run_1")


async def stored(node: Node, user: str = "alice") -> list[tuple[str, Any, str | None, str | None]]:
    """Type, data, run and thread of the commands that the store has."""
    found = await node.store.sent_commands(UserId(user), ENTRY_ZERO, 2_000)
    return [(record.type, msgpack.unpackb(record.data), record.run, record.thread) for record in found]


async def ask(node: Node, question: str = "q1", *, run: RunId = RUN, **more: Any) -> None:
    """An agent has asked, and its question is stored."""
    from eventbus.commands.command import Question

    options = more.pop("options", ())
    body = Question(text="Which one?", options=options).packed()
    fields: dict[str, Any] = {"timeout_ms": 60_000, **more}
    asked = await node.store.ask(Ask(user=ALICE, run=run, question=question, body=body, options=options, **fields))
    assert asked is not None
    receipt = await node.bus.publish(
        user=ALICE, type="agent_question", data={"question": question, "text": "Which one?"}, run=run
    )
    await node.store.question_published(ALICE, run, question, EntryId(receipt.entry))


async def asked_again(client: WireClient) -> list[dict[str, Any]]:
    """The next questions that are sent."""
    frame = await client.expect("events")
    assert {item["event"]["type"] for item in frame["events"]} == {"agent_question"}
    found: list[dict[str, Any]] = frame["events"]
    return found


async def test_a_command_is_stored_before_it_is_answered(nodes_on_each: Nodes) -> None:
    node = await nodes_on_each.start()
    async with opened(node) as client:
        await client.expect("caught_up")
        client.send("send", type="message", data={"text": "go on"}, ref="r1", run=RUN, thread="t1")
        first = await client.expect("sent", ref="r1")
        assert await stored(node) == [("message", {"text": "go on"}, "run_1", "t1")]
        client.send("send", type="app.own", data={}, ref=7)
        second = await client.expect("sent", ref=7)
        assert [record.id for record in await node.store.sent_commands(ALICE, ENTRY_ZERO, 10)] == [
            first["id"],
            second["id"],
        ]
        assert set(second) == {"op", "ref", "id"}


async def test_a_command_comes_over_messagepack_too(node: Node) -> None:
    async with wired(node, token_of(), subprotocol=MSGPACK) as client:
        await client.hello(session="tab")
        await client.expect("caught_up")
        client.send("send", type="cancel", data={"reason": "too slow"}, ref="r1", run=RUN)
        await client.expect("sent", ref="r1")
    assert await stored(node) == [("cancel", {"reason": "too slow"}, "run_1", None)]


async def test_a_command_that_is_sent_again_over_another_node_is_stored_once(nodes: Nodes) -> None:
    one, two = await nodes.start("n1"), await nodes.start("n2")
    ids = []
    for node in (one, two):
        async with opened(node) as client:
            await client.until_op("caught_up")
            client.send("send", type="message", data={"text": "a"}, ref="r1")
            ids.append((await client.until_op("sent"))["id"])
    assert ids[0] == ids[1]
    assert len(await stored(one)) == 1


async def test_commands_of_a_session_are_stored_in_their_order(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        for number in range(50):
            client.send("send", type="message", data={"text": f"{number}"}, ref=number)
        refs = [(await client.expect("sent"))["ref"] for _ in range(50)]
    assert refs == list(range(50))
    assert [data["text"] for _, data, _, _ in await stored(node)] == [f"{number}" for number in range(50)]


@pytest.mark.parametrize(
    "type, data, field",
    [
        ("message", {}, "data.text"),
        ("message", {"text": " "}, "data.text"),
        ("message", {"text": 7}, "data.text"),
        ("cancel", {"reason": ""}, "data.reason"),
        ("cancel", {"reason": "x" * 1_001}, "data.reason"),
        ("answer", {"answer": 1}, "data.question"),
        ("answer", {"question": "q 1", "answer": 1}, "data.question"),
        ("answer", {"question": "q1"}, "data.answer"),
        ("answer", {"question": "q1", "answer": "x" * 17_000}, "data.answer"),
    ],
)
async def test_a_command_of_a_wrong_form_is_refused_with_its_ref_and_its_field(
    node: Node, type: str, data: dict[str, Any], field: str
) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        client.send("send", type=type, data=data, ref="r1")
        error = await client.expect("error", code="invalid_command", ref="r1")
        assert error["message"].startswith(f"{field}: ")
        await client.nothing_more()
    assert await stored(node) == []


@pytest.mark.requirement("R22")
async def test_a_command_never_reaches_the_run_of_another_user(node: Node) -> None:
    async with opened(node, "mallory") as client:
        await client.expect("caught_up")
        client.send("send", type="cancel", data={}, ref="r1", run=RUN)
        await client.expect("sent", ref="r1")
    assert await stored(node) == []
    assert await stored(node, "mallory") == [("cancel", {}, "run_1", None)]


@pytest.mark.requirement("R22")
async def test_an_answer_never_reaches_the_question_of_another_user(node: Node) -> None:
    await ask(node)
    async with opened(node, "mallory") as client:
        await client.expect("caught_up")
        client.send("send", type="answer", data={"question": "q1", "answer": "tea"}, ref="r1", run=RUN)
        await client.expect("error", code="unknown_question", ref="r1")
        await client.nothing_more()
    (record,) = await node.store.questions(ALICE)
    assert record.is_open


async def test_commands_beyond_the_cap_are_refused(node: Node) -> None:
    for number in range(COMMANDS_MAX):
        command = NewCommand(user=ALICE, session="x", type="message", data=b"\x80", ref=f"{number}")  # type: ignore[arg-type]
        await node.store.send_command(command)
    async with opened(node) as client:
        await client.expect("caught_up")
        client.send("send", type="message", data={"text": "a"}, ref="r1")
        await client.expect("error", code="rate_limited", ref="r1")
        await client.nothing_more()


async def test_a_store_that_is_away_is_told_with_the_ref_when_the_wait_is_over(nodes: Nodes, new_server: Any) -> None:
    server = new_server()
    node = await nodes.start(url=server.url, store_wait_ms=300, redis_timeout_ms=200)
    async with opened(node) as client:
        await client.expect("caught_up")
        server.kill()
        client.send("send", type="message", data={"text": "a"}, ref="r1")
        await client.expect("error", code="store_unavailable", ref="r1")
        await client.nothing_more()


async def test_a_command_waits_for_a_store_that_comes_back(nodes: Nodes, new_server: Any) -> None:
    server = new_server(appendonly=True)
    node = await nodes.start(url=server.url, redis_timeout_ms=500)
    async with opened(node) as client:
        await client.expect("caught_up")
        freeze(server.pid)
        client.send("send", type="message", data={"text": "a"}, ref="r1")
        client.send("send", type="message", data={"text": "b"}, ref="r2")
        await until(lambda: node.sending.waiting == 2)
        thaw(server.pid)
        refs = [(await client.until_op("sent"))["ref"] for _ in range(2)]
    assert refs == ["r1", "r2"]
    assert [data["text"] for _, data, _, _ in await stored(node)] == ["a", "b"]


async def test_an_answer_is_accepted_once_and_told_to_every_device(nodes: Nodes) -> None:
    one, two = await nodes.start("n1"), await nodes.start("n2")
    await ask(one, options=("tea", "soup"))
    async with opened(one, start="earliest") as phone, opened(two, session="desk", start="earliest") as desk:
        for client in (phone, desk):
            (question,) = await client.events(1)
            assert question["event"]["data"] == {"question": "q1", "text": "Which one?"}
            await client.expect("caught_up")
        phone.send("send", type="answer", data={"question": "q1", "answer": "beer"}, ref="r1")
        await phone.expect("error", code="bad_answer", ref="r1")
        phone.send("send", type="answer", data={"question": "q1", "answer": "tea"}, ref="r2")
        seen = [await phone.next(), await phone.next()]
        (sent,) = [frame for frame in seen if frame["op"] == "sent"]
        ((told,),) = [frame["events"] for frame in seen if frame["op"] == "events"]
        assert sent["id"] == told["id"]
        assert told["event"]["type"] == "agent_answered"
        assert told["event"]["run"] == RUN
        assert told["event"]["data"] == {"question": "q1", "answer": "tea", "by": "user", "session": "tab"}
        (elsewhere,) = await desk.events(1)
        assert elsewhere["event"] == told["event"]
        desk.send("send", type="answer", data={"question": "q1", "answer": "tea"}, ref="r1")
        await desk.expect("error", code="already_answered", ref="r1")
        desk.send("send", type="answer", data={"question": "q2", "answer": "tea"}, ref="r2")
        await desk.expect("error", code="unknown_question", ref="r2")
        # The same request again: its `sent` may have been lost.
        phone.send("send", type="answer", data={"question": "q1", "answer": "tea"}, ref="r2")
        assert (await phone.expect("sent", ref="r2"))["id"] == sent["id"]
    (record,) = await one.store.questions(ALICE)
    assert record.state is QuestionState.ANSWERED


async def test_an_answer_after_the_deadline_is_refused(node: Node) -> None:
    await ask(node, timeout_ms=1)
    await until(_late(node))
    async with opened(node) as client:
        await client.expect("caught_up")
        client.send("send", type="answer", data={"question": "q1", "answer": "tea"}, ref="r1")
        await client.expect("error", code="question_closed", ref="r1")


def _late(node: Node) -> Any:
    async def late() -> bool:
        (record,) = await node.store.questions(ALICE)
        return not record.is_open

    return late


async def test_an_open_question_is_asked_of_every_device_until_it_is_answered(nodes: Nodes) -> None:
    """It survives a refresh, and an ack."""
    one, two = await nodes.start("n1"), await nodes.start("n2")
    await ask(one)
    async with opened(one, start="earliest") as client:
        (question,) = await client.events(1)
        client.send("ack", ids=[question["id"]], ref="a1")
        await client.until_op("acked")
    for node, session, start in ((two, "tab", None), (one, "new", "new"), (one, "old", "earliest")):
        async with opened(node, session=session, **({} if start is None else {"start": start})) as client:
            if start == "earliest":
                (again,) = await client.events(1)
                await client.expect("caught_up")
                await client.nothing_more()
            else:
                await client.until_op("caught_up")
                (again,) = await asked_again(client)
            assert again["id"] == question["id"]
            assert again["event"] == question["event"]
            assert (again["delivery"] > 1) == (start != "earliest")
    async with opened(one) as client:
        await client.until_op("caught_up")
        await asked_again(client)
        client.send("send", type="answer", data={"question": "q1", "answer": 7}, ref="r1")
        await client.until_op("sent")
    async with opened(two, session="late", start="new") as client:
        await client.expect("caught_up")
        await until(lambda: not two.sending.is_busy)
        await client.nothing_more()


async def test_a_question_whose_run_is_over_is_not_asked_again(nodes: Nodes) -> None:
    """Its agent was killed, and a node has closed its run."""
    node = await nodes.start()
    async with node.bus.run(user="alice", agent="a", run=RUN):
        await ask(node)
    store = node.store
    assert isinstance(store, RedisStore)
    async with opened(node, start="new") as client:
        await client.expect("caught_up")
        await until(lambda: not node.sending.is_busy)
        await client.nothing_more()
        client.send("send", type="answer", data={"question": "q1", "answer": 7}, ref="r1")
        await client.expect("error", code="question_closed", ref="r1")
        client.send("send", type="cancel", data={}, ref="r2", run=RUN)
        await client.expect("error", code="run_closed", ref="r2")
