"""All of it at once: runs with tools, text, questions, cancels, messages, demands and any-events, while nodes fail.

Two nodes, thirty runs of six users, two devices each. One node is killed while text flows; the other is frozen while
questions are open, its devices go elsewhere, and it thaws. In the end the books of agents, devices and store agree.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from eventbus import Bus, Chunk, Event, Run, Subscriber
from eventbus.errors import AlreadyAnswered
from eventbus.ids import RunId, UserId
from eventbus.inspection import run_timeline
from eventbus.rates import STATES, Rates
from eventbus.store.keys import Keys
from eventbus.store.redis_store import RedisStore
from eventbus.watched import operator_events
from tests.fault.test_any import looking
from tests.support.installation import Installation, NewInstallation
from tests.support.proxy import Proxy
from tests.support.waiting import until

pytestmark = [
    pytest.mark.requirement("R1", "R2", "R13", "R14", "R16", "R18", "R19", "R20"),
    pytest.mark.timeout(150),
]

USERS = [UserId(f"user{number}") for number in range(6)]
RUNS, TOOLS, WORDS, JOBS = 30, 3, 120, 2
DEVICES = ("phone", "desk")
KEYS = Keys("eb", 1024)


class Plan:
    """What one run does."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.run = RunId(f"run_{number}")
        self.user = USERS[number % len(USERS)]
        self.is_cancelled = number % 5 == 0
        self.has_unseen = number % 3 == 0
        self.words = [f"{number}:{word} wörd 👩‍🚀 " for word in range(WORDS)]

    @property
    def text(self) -> str:
        return "".join(self.words)

    @property
    def outcome(self) -> str:
        return "cancelled" if self.is_cancelled else "success"

    @property
    def events(self) -> Counter[str]:
        """How many events of each type it has."""
        once = ("agent_started", "agent_thinking", "agent_text", "ticket", "agent_question", "agent_answered")
        return Counter(
            {
                **dict.fromkeys((*once, "agent_completed"), 1),
                **dict.fromkeys(("tool_executing", "tool_completed"), TOOLS),
                "unseen": int(self.has_unseen),
            }
        )


PLANS = {plan.run: plan for plan in map(Plan, range(RUNS))}


class Gates:
    """What the harm does is told here, so that the runs are in the midst of things when it strikes."""

    def __init__(self) -> None:
        self.killed, self.frozen, self.thawed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.answers: dict[RunId, str] = {}
        self.outcomes: dict[RunId, str | None] = {}
        self.told: dict[RunId, str] = {}


class Agent:
    """One run, as its plan says."""

    def __init__(self, bus: Bus, plan: Plan, gates: Gates) -> None:
        self._bus = bus
        self._plan = plan
        self._gates = gates

    async def work(self) -> None:
        plan, gates = self._plan, self._gates
        thread = f"thread_{plan.number % 2}"
        async with self._bus.run(user=plan.user, agent="planner", thread=thread, run=plan.run) as run:
            await run.thinking("of everything at once")
            await asyncio.gather(*(self._tool(run, number) for number in range(TOOLS)))
            await self._write(run)
            ticket = await run.publish("ticket", {"run": run.id}, require={"level": "confirmed", "within_ms": 60_000})
            if plan.has_unseen:
                await run.publish("unseen", {}, require={"level": "confirmed", "within_ms": 300})
            await asyncio.gather(
                *(self._bus.publish(user=plan.user, type="job", data={}, deliver="any") for _ in range(JOBS))
            )
            await gates.frozen.wait()
            gates.answers[plan.run] = await run.ask("Which?", options=DEVICES, question="which")
            if plan.is_cancelled:
                await asyncio.Event().wait()
            async for command in run.commands():
                gates.told[plan.run] = command.data["text"]
                await command.ack()
                break
            await (await run.receipt(ticket)).wait("confirmed", timeout_ms=30_000)
            await gates.thawed.wait()
        gates.outcomes[plan.run] = run.outcome

    async def _tool(self, run: Run, number: int) -> None:
        async with run.tool(f"tool-{number}", {"number": number}) as tool:
            await asyncio.sleep(0.01 * number)  # real time: tools that end one after the other
            tool.result = number

    async def _write(self, run: Run) -> None:
        async with run.stream() as stream:
            for number, word in enumerate(self._plan.words):
                if number == WORDS // 2:
                    await self._gates.killed.wait()
                await stream.write(word)
                await asyncio.sleep(0.005)  # real time: the pace of a model


class Device:
    """One session of a user: it writes down what it is handed, and does what the user does.

    Attributes:
        book: the events, in order.
        texts: the text of each run, put together of its chunks.
        accepted: the runs whose question it answered, and was first.
    """

    def __init__(self, user: UserId, session: str) -> None:
        self.user = user
        self.session = session
        self.book: list[Event] = []
        self.texts: dict[str, str] = {}
        self.finals: Counter[str] = Counter()
        self.accepted: set[str] = set()
        self.refused: set[str] = set()
        self._deeds: asyncio.TaskGroup | None = None

    def take(self, chunk: Chunk) -> None:
        assert chunk.offset == len(self.texts.get(chunk.run, "")), "a repeat or a hole"
        self.texts[chunk.run] = self.texts.get(chunk.run, "") + chunk.text
        self.finals[chunk.run] += chunk.final

    async def follow(self, subscriber: Subscriber) -> None:
        async with asyncio.TaskGroup() as deeds:
            async for delivery in subscriber:
                event = delivery.event
                self.book.append(event)
                if event.type == "ticket" and self.session == "phone":
                    await delivery.confirm("got it")
                elif event.type == "agent_thinking" and self.session == "desk":
                    await delivery.displayed()
                elif event.type == "agent_question":
                    deeds.create_task(self._answer(subscriber, event))
                elif event.type == "agent_answered" and self.session == "phone":
                    deeds.create_task(self._go_on(subscriber, event))

    async def _answer(self, subscriber: Subscriber, event: Event) -> None:
        try:
            await subscriber.answer(event.data["question"], self.session, run=event.run)
        except AlreadyAnswered:
            self.refused.add(event.run or "")
        else:
            self.accepted.add(event.run or "")

    async def _go_on(self, subscriber: Subscriber, event: Event) -> None:
        assert event.run is not None
        if PLANS[event.run].is_cancelled:
            await subscriber.send("cancel", {"reason": "enough"}, run=event.run)
        else:
            await subscriber.send("message", {"text": f"to {event.run}"}, run=event.run)

    def of(self, run: str) -> list[Event]:
        return [event for event in self.book if event.run == run]


class World:
    """The installation, with a network of its own before each node."""

    def __init__(self, installation: Installation, desks: Proxy) -> None:
        self.installation = installation
        self.bus = installation.bus
        self.desks = desks
        self.devices = [Device(user, session) for user in USERS for session in DEVICES]
        self.gates = Gates()

    def subscriber(self, device: Device) -> Subscriber:
        phones = self.installation.url
        url = phones if device.session == "phone" else f"http://127.0.0.1:{self.desks.port}"
        token = self.installation.token(user=device.user)
        return Subscriber(url, token, session=device.session, start="earliest", on_text=device.take)

    async def harm(self) -> None:
        """Kills the phones' node while text flows, starts it anew, and freezes the desks' while questions are asked."""
        installation, gates = self.installation, self.gates
        one, two = installation.nodes
        wanted = sum(len(plan.text) for plan in PLANS.values()) // 5
        await until(
            lambda: sum(sum(map(len, device.texts.values())) for device in self.devices) > wanted, 20_000, "text flows"
        )
        installation.proxy.aim(two.port)
        one.child.kill()
        gates.killed.set()
        await installation.restart(one)
        await until(one.ready, 20_000, "the killed node is back")
        two.child.freeze()
        try:
            gates.frozen.set()
            for proxy in (installation.proxy, self.desks):
                proxy.aim(one.port)
                proxy.cut()
            messages = sum(not plan.is_cancelled for plan in PLANS.values())
            await until(
                lambda: len(gates.answers) == RUNS and len(gates.told) == messages,
                20_000,
                lambda: f"all are answered and told; answers: {gates.answers}, messages: {gates.told}",
            )
        finally:
            two.child.thaw()
        gates.thawed.set()

    async def stands(self) -> int:
        """How many deliveries are owed to the devices, by the store."""
        owed = 0
        for user in USERS:
            for group in await self.installation.redis.xinfo_groups(KEYS.user(user).stream):
                owed += group["pending"] + (group["lag"] or 0)
        return owed


@asynccontextmanager
async def world_of(installation: Installation) -> AsyncIterator[World]:
    async with Proxy(installation.nodes[1].port) as desks:
        yield World(installation, desks)


def own(world: World) -> Counter[tuple[str, str]]:
    """What must have been counted over all users, by the books of agents and devices."""
    found: Counter[tuple[str, str]] = Counter()
    for plan in PLANS.values():
        for kind, count in plan.events.items():
            found["stored", kind] += count
    found["stored", "job"] = RUNS * JOBS
    for device in world.devices:
        for event in device.book:
            if event.type == "job":
                continue  # who was first is the store's to say; see below
            found["received", event.type] += 1
            found["displayed", event.type] += (device.session, event.type) in {
                ("phone", "ticket"),
                ("desk", "agent_thinking"),
            }
            found["confirmed", event.type] += (device.session, event.type) == ("phone", "ticket")
    # Each is received by one session, and released for the others.
    found["received", "job"] = RUNS * JOBS
    found["released", "job"] = RUNS * JOBS * (len(DEVICES) - 1)
    return +found


def counted(rates: Rates) -> Counter[tuple[str, str]]:
    return +Counter({(state, kind): getattr(found, state) for kind, found in rates.by_type.items() for state in STATES})


@pytest.mark.slow
async def test_runs_with_all_that_they_can_do_are_whole_when_one_node_is_killed_and_one_frozen(
    new_installation: NewInstallation,
) -> None:
    installation = await new_installation(nodes=2, watch_ms=100, node_heartbeat_ms=500)
    async with world_of(installation) as world:
        await _lived_through(world)
        _runs_are_whole_at_every_device(world)
        _questions_have_one_answer_each(world)
        async with looking(installation) as store:
            await _the_store_agrees(store)
        await _counts_are_those_of_the_books(world)


async def _lived_through(world: World) -> None:
    """All of it, until every run has ended and nothing is owed to anybody."""
    subscribers = {device: world.subscriber(device) for device in world.devices}
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for device, subscriber in subscribers.items():
            await stack.enter_async_context(subscriber)
            group.create_task(device.follow(subscriber))
        await until(lambda: all(one.state == "live" for one in subscribers.values()), 10_000, "all devices are live")
        agents = [group.create_task(Agent(world.bus, plan, world.gates).work()) for plan in PLANS.values()]
        await world.harm()
        await asyncio.wait(agents)

        async def nothing() -> bool:
            return await world.stands() == 0

        await until(nothing, 20_000, "nothing is pending or unread")
        await until(
            lambda: all(len(device.finals) == RUNS // len(USERS) for device in world.devices), 10_000, "ends of texts"
        )
        for subscriber in subscribers.values():
            await subscriber.close()


def _runs_are_whole_at_every_device(world: World) -> None:
    assert world.gates.outcomes == {plan.run: plan.outcome for plan in PLANS.values()}
    assert world.gates.told == {run: f"to {run}" for run, plan in PLANS.items() if not plan.is_cancelled}
    for device in world.devices:
        assert {event.user for event in device.book} == {device.user}
        assert len({event.id for event in device.book}) == len(device.book), "each once"
        for run, plan in PLANS.items():
            events = device.of(run)
            if plan.user != device.user:
                assert not events
                continue
            # The store itself tells of the answer, in the step that takes it: that event has no number.
            numbers = [event.seq for event in events if event.type != "agent_answered"]
            assert numbers == list(range(1, len(events))), f"{run} at {device.session}"
            assert Counter(event.type for event in events) == +plan.events
            assert (events[0].type, events[-1].type) == ("agent_started", "agent_completed")
            assert events[-1].data["outcome"] == plan.outcome
            [whole] = [event.data for event in events if event.type == "agent_text"]
            assert whole == {"stream": "text", "text": plan.text}
            assert device.texts[run] == plan.text
            assert device.finals[run] == 1
    for user in USERS:
        jobs = {e.id for device in world.devices if device.user == user for e in device.book if e.type == "job"}
        assert len(jobs) == JOBS * RUNS // len(USERS), "somebody worked at each"


def _questions_have_one_answer_each(world: World) -> None:
    for run, plan in PLANS.items():
        mine = [device for device in world.devices if device.user == plan.user]
        [winner] = [device.session for device in mine if run in device.accepted]
        assert [run in device.refused for device in mine] == [device.session != winner for device in mine]
        assert world.gates.answers[run] == winner
        for device in mine:
            [answered] = [event.data for event in device.of(run) if event.type == "agent_answered"]
            assert answered == {"question": "which", "answer": winner, "by": "user", "session": winner}


async def _the_store_agrees(store: RedisStore) -> None:
    for run, plan in PLANS.items():
        timeline = await run_timeline(store, plan.user, run)
        assert timeline is not None
        assert (timeline.state, timeline.outcome) == ("completed", plan.outcome)
        assert (timeline.problems, timeline.open_calls) == ((), ())
        assert Counter(event.type for event in timeline.events) == +plan.events
        assert [question for question in await store.questions(plan.user) if question.is_open] == []

    # Told once each, though two nodes watch, one of which died and one slept.
    unseen = {(plan.user, run) for run, plan in PLANS.items() if plan.has_unseen}

    async def missed() -> bool:
        return len(await operator_events(store, kind="missed_confirmation")) >= len(unseen)

    await until(missed, 10_000, "each demand that was missed is told")
    told = [(row.fields["user"], row.fields["run"]) for row in await operator_events(store, kind="missed_confirmation")]
    assert sorted(told) == sorted(unseen)
    for kind in ("run_abandoned", "order"):
        assert await operator_events(store, kind=kind) == []


async def _counts_are_those_of_the_books(world: World) -> None:
    wanted = own(world)

    async def of_users() -> Counter[tuple[str, str]]:
        found: Counter[tuple[str, str]] = Counter()
        for user in USERS:
            rates = await world.bus.rates(user=user)
            assert rates.exact
            found += counted(rates)
        return found

    async def agree() -> bool:
        return await of_users() == wanted and counted(await world.bus.rates()) == wanted

    try:
        await until(agree, 10_000)
    except AssertionError:
        assert await of_users() == wanted
        assert counted(await world.bus.rates()) == wanted
        raise
