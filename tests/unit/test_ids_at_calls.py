"""Ids of different kinds are never mixed up: a call refuses another kind of id, names the field, and sends nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from eventbus import Bus
from eventbus.clock import SystemClock
from eventbus.errors import InvalidField
from eventbus.event import decode_envelope
from eventbus.ids import ENTRY_ZERO, UserId
from eventbus.runs import Run
from eventbus.testing import MemoryStore
from tests.support.scripted_store import ScriptedStore

ADA = "ada"
RUN, THREAD = "run_1", "thread_1"
NOTE: dict[str, Any] = {"type": "note", "data": {}}

Call = Callable[[Bus, Run], Awaitable[object] | object]

WRONG: dict[str, tuple[Call, str]] = {
    "publish: a run as user": (lambda bus, _: bus.publish(user=RUN, **NOTE), "user"),
    "publish: a thread as user": (lambda bus, _: bus.publish(user=THREAD, **NOTE), "user"),
    "publish: a run among users": (lambda bus, _: bus.publish(users=[ADA, RUN], **NOTE), "users[1]"),
    "publish: a run as thread": (lambda bus, _: bus.publish(user=ADA, thread=RUN, **NOTE), "thread"),
    "publish: a thread as run": (lambda bus, _: bus.publish(user=ADA, run=THREAD, **NOTE), "run"),
    "publish_many: a run as user": (lambda bus, _: bus.publish_many([{"user": RUN, **NOTE}]), "user"),
    "publish_many: a thread as run": (lambda bus, _: bus.publish_many([{"user": ADA, "run": THREAD, **NOTE}]), "run"),
    "run: a run as user": (lambda bus, _: bus.run(user=RUN, agent="a"), "user"),
    "run: a run as thread": (lambda bus, _: bus.run(user=ADA, agent="a", thread=RUN), "thread"),
    "run: a thread as run": (lambda bus, _: bus.run(user=ADA, agent="a", run=THREAD), "run"),
    "request_run: a thread as user": (lambda bus, _: bus.request_run(user=THREAD, agent="a"), "user"),
    "request_run: a thread as run": (lambda bus, _: bus.request_run(user=ADA, agent="a", run=THREAD), "run"),
    "child: a thread as run": (lambda _, run: run.child(agent="a", run=THREAD), "run"),
    "tool: a run as call": (lambda _, run: run.tool("search", call_id=RUN), "data.call_id"),
    "tool: a thread as call": (lambda _, run: run.tool("search", call_id=THREAD), "data.call_id"),
    "commands: a run as user": (lambda bus, _: bus.commands(user=RUN), "user"),
    "confirmations: a run as user": (lambda bus, _: bus.confirmations("e1", user=RUN), "user"),
    "run_confirmations: a thread as run": (lambda bus, _: bus.run_confirmations(THREAD, user=ADA), "run"),
    "run_confirmations: a run as user": (lambda bus, _: bus.run_confirmations(RUN, user=RUN), "user"),
    "online: a run as user": (lambda bus, _: bus.online(RUN), "user"),
    "presence: a thread as user": (lambda bus, _: bus.presence(THREAD), "user"),
    "threads: a run as user": (lambda bus, _: bus.threads(RUN), "user"),
    "history: a run as user": (lambda bus, _: bus.history(RUN), "user"),
    "history: a run as thread": (lambda bus, _: bus.history(ADA, thread=RUN), "thread"),
    "history: a thread as run": (lambda bus, _: bus.history(ADA, run=THREAD), "run"),
    "rates: a run as user": (lambda bus, _: bus.rates(user=RUN), "user"),
    "rates: a thread as run": (lambda bus, _: bus.rates(user=ADA, run=THREAD), "run"),
}


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    async with Bus(store=ScriptedStore()) as made:
        yield made


@pytest.mark.requirement("R21")
@pytest.mark.parametrize("name", WRONG)
async def test_an_id_of_another_kind_is_refused_at_the_call_and_nothing_is_sent(name: str, bus: Bus) -> None:
    call, field = WRONG[name]
    run = bus.run(user=ADA, agent="a")
    before = bus.statistics()

    async def called() -> None:
        result = call(bus, run)
        if isinstance(result, Awaitable):
            await result

    with pytest.raises(InvalidField) as caught:
        await called()
    assert caught.value.field == field
    assert name.partition("a ")[2].split()[0] in caught.value.problem, "it says what was given instead"
    assert bus.statistics() == before


@pytest.mark.requirement("R21")
async def test_only_the_user_routes_whatever_thread_and_run_are_called() -> None:
    store = ScriptedStore()
    async with Bus(store=store) as bus:
        await bus.publish(user="ada", thread="bob", run="cyd", id="one", **NOTE)
        async with bus.run(user="ada", agent="dan", thread="bob", run="cyd"):
            pass
    assert set(store.streams) == {"ada"}


@pytest.mark.requirement("R15")
async def test_the_time_of_an_event_is_when_the_call_was_made() -> None:
    store, spans = MemoryStore(), list[int]()

    def begin() -> None:
        spans.append(SystemClock().now_ms())

    async with Bus(store=store) as bus:
        begin()
        await bus.publish(user=ADA, **NOTE)
        begin()
        await bus.publish(users=[ADA, "bob"], **NOTE)
        begin()
        async with bus.run(user=ADA, agent="a") as run:
            begin()
            await run.thinking("hm")
            begin()
            async with run.tool("search") as tool:
                tool.result = 1
                begin()
            begin()
        begin()
        page = await store.history(UserId(ADA), ENTRY_ZERO, 100)
    times = [decode_envelope(entry.body).time_ms for entry in page.entries]
    types = [decode_envelope(entry.body).type for entry in page.entries]
    assert types == [
        "note",
        "note",
        "agent_started",
        "agent_thinking",
        "tool_executing",
        "tool_completed",
        "agent_completed",
    ]
    for time_ms, begun_ms, ended_ms in zip(times, spans[:-1], spans[1:], strict=True):
        assert begun_ms <= time_ms <= ended_ms
