"""Commands, answers and cancels while nodes and agents are killed: what was `sent` arrives, once by its id."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from eventbus import Bus, Subscriber
from eventbus.errors import AlreadyAnswered
from eventbus.ids import EntryId
from eventbus.subscriber import Delivery
from tests.support.commanded import RUN
from tests.support.installation import USER, Installation, NewInstallation, Node
from tests.support.processes import Child
from tests.support.waiting import until

pytestmark = [pytest.mark.requirement("R20"), pytest.mark.timeout(120)]

COMMANDS, ROUNDS = 300, 200


def agent(installation: Installation, mode: str) -> Child:
    """A process of `tests.support.commanded`; its lease outlives its restart."""
    env = {"EVENTBUS_REDIS_URL": installation.server.url, "EVENTBUS_RUN_LEASE_MS": "60000"}
    return installation.processes.python("-m", "tests.support.commanded", mode, env=env)


def device(installation: Installation, session: str, node: Node | None = None) -> Subscriber:
    url = installation.url if node is None else node.url
    return Subscriber(url, installation.token, session=session)


async def _read(bus: Bus, run: str, into: list[tuple[EntryId, str]]) -> None:
    async with bus.run(user=USER, agent="a", run=run) as working:
        async for command in working.commands():
            if command.type == "stop":
                await command.ack()
                return
            into.append((command.id, command.data["text"]))


@pytest.mark.slow
async def test_commands_that_were_sent_arrive_though_nodes_are_killed(new_installation: NewInstallation) -> None:
    installation = await new_installation(nodes=2)
    arrived: list[tuple[EntryId, str]] = []
    sent: list[tuple[EntryId, str]] = []
    async with device(installation, "phone") as phone, asyncio.TaskGroup() as group:
        group.create_task(_read(installation.bus, "run-1", arrived))
        killing = group.create_task(_kill_each(installation, sent))
        for number in range(COMMANDS):
            text = f"m{number}"
            sent.append((await phone.send("message", {"text": text}, run="run-1"), text))
        await killing
        await phone.send("stop", {}, run="run-1")

    assert arrived == sent, "each once, in the order in which they were sent"


async def _kill_each(installation: Installation, sent: list[tuple[EntryId, str]]) -> None:
    """Kills the node that the client is at, as soon as it has said `sent`; and then the other."""
    for count in (50, 120, 190):
        await until(lambda count=count: len(sent) >= count, 30_000)  # type: ignore[misc]
        old, _ = installation.switch()
        old.child.kill()
        await installation.restart(old)


@pytest.mark.slow
async def test_a_command_that_a_killed_agent_held_comes_to_its_restart(new_installation: NewInstallation) -> None:
    installation = await new_installation(nodes=1)
    holding = agent(installation, "hold")
    await holding.line("^inside$")
    async with device(installation, "phone") as phone:
        await phone.send("message", {"text": "first"}, run=RUN)
        await phone.send("message", {"text": "second"}, run=RUN)
        await holding.line("^holds first 1$")
        holding.kill()
        await phone.send("message", {"text": "stop"}, run=RUN)
    reading = agent(installation, "read")
    assert await reading.wait() == 0
    inside, first, second, *rest = reading.stdout.splitlines()
    assert (inside, first, *rest) == ("inside", "got first 2", "got stop 1", "ended success ")
    # It may have been read together with the first.
    assert second in ("got second 1", "got second 2")


async def test_an_answer_to_a_killed_agent_is_told_to_every_device_and_to_its_restart(
    new_installation: NewInstallation,
) -> None:
    installation = await new_installation(nodes=2)
    asking = agent(installation, "ask")
    one, two = installation.nodes
    async with device(installation, "phone", one) as phone, device(installation, "desk", two) as desk:
        async for delivery in phone:
            if delivery.event.type == "agent_question":
                break
        asking.kill()
        entry = await phone.answer("q1", "b", run=RUN)
        one.child.kill()
        async for delivery in desk:
            if delivery.event.type == "agent_answered":
                assert delivery.entry == entry
                assert delivery.event.data == {"question": "q1", "answer": "b", "by": "user", "session": "phone"}
                break
    again = agent(installation, "ask-again")
    await again.line("^answer b$")
    assert await again.wait() == 0


@pytest.mark.slow
async def test_a_question_is_asked_again_of_a_device_that_comes_after_its_node_was_killed(
    new_installation: NewInstallation,
) -> None:
    """It survives the refresh of a page that has acked it, the agent's restart, and the node."""
    installation = await new_installation(nodes=2)
    asking = agent(installation, "ask")
    one, two = installation.nodes
    async with device(installation, "phone", one) as phone:
        question = await _question(phone)
    one.child.kill()
    asking.kill()
    again = agent(installation, "ask-again")
    await again.line("^inside$")
    async with device(installation, "phone", two) as phone:
        reloaded = await _question(phone)
        assert reloaded.event == question.event
        assert reloaded.redelivered
        await phone.answer("q1", "a", run=RUN)
    await again.line("^answer a$")
    assert await again.wait() == 0


async def _question(subscriber: Subscriber) -> Delivery:
    async with asyncio.timeout(20):
        async for delivery in subscriber:
            if delivery.event.type == "agent_question":
                return delivery
    raise AssertionError("the subscriber ended")


async def test_a_cancel_that_was_sent_ends_the_run_of_a_restarted_agent(new_installation: NewInstallation) -> None:
    installation = await new_installation(nodes=2)
    working = agent(installation, "work")
    await working.line("^inside$")
    working.kill()
    one, two = installation.nodes
    async with device(installation, "phone", one) as phone:
        await phone.send("cancel", {"reason": "no more"}, run=RUN)
        one.child.kill()
    again = agent(installation, "work-again")
    assert await again.wait() == 0
    assert again.stdout.splitlines()[-1] == "ended cancelled no more"
    async with device(installation, "desk", two) as desk:
        async for delivery in desk:
            if delivery.event.type == "agent_completed":
                assert delivery.event.data == {"outcome": "cancelled", "error": "no more"}
                break


@pytest.mark.soak
async def test_of_two_devices_that_answer_at_the_same_moment_one_is_accepted(new_installation: NewInstallation) -> None:
    """Round after round over two nodes, one of which is killed in the midst."""
    installation = await new_installation(nodes=2)
    one, two = installation.nodes
    async with device(installation, "phone", one) as phone, device(installation, "desk", two) as desk:
        devices = {"phone": phone, "desk": desk}
        told: dict[str, dict[str, list[str]]] = {name: {} for name in devices}
        following = [asyncio.create_task(_follow(devices[name], told[name])) for name in devices]
        accepted: Counter[str] = Counter()
        async with installation.bus.run(user=USER, agent="a") as run:
            for number in range(ROUNDS):
                question = f"q{number}"
                asking = asyncio.create_task(run.ask("Who?", question=question))
                await until(lambda: all(question in seen for seen in told.values()), 20_000)  # noqa: B023
                if number == ROUNDS // 2:
                    two.child.kill()
                results = dict(
                    zip(
                        devices,
                        await asyncio.gather(
                            *(each.answer(question, name, run=run.id) for name, each in devices.items()),
                            _restarted(installation, two, number),
                            return_exceptions=True,
                        ),
                        strict=False,
                    )
                )
                winners = [name for name, result in results.items() if isinstance(result, str)]
                assert [type(result) for result in results.values() if not isinstance(result, str)] == [AlreadyAnswered]
                assert [await asking] == winners
                accepted[winners[0]] += 1
                await until(lambda: all(seen[question] for seen in told.values()), 20_000)  # noqa: B023
                assert [seen[question] for seen in told.values()] == [winners, winners]
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
    assert sum(accepted.values()) == ROUNDS
    assert all(len(answers) == 1 for seen in told.values() for answers in seen.values())


async def _restarted(installation: Installation, node: Node, number: int) -> None:
    if number == ROUNDS // 2:
        await installation.restart(node)


async def _follow(subscriber: Subscriber, told: dict[str, list[str]]) -> None:
    """Writes down the questions, and the answers that were told of each."""
    async for delivery in subscriber:
        data = delivery.event.data
        if delivery.event.type == "agent_question":
            told.setdefault(data["question"], [])
        elif delivery.event.type == "agent_answered":
            told[data["question"]].append(data["answer"])
