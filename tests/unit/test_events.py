"""The typed builders of the five critical events: what they give, and what they refuse by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eventbus import Bus
from eventbus.errors import InvalidEvent
from eventbus.events import (
    Outcome,
    TypedEvent,
    agent_completed,
    agent_started,
    agent_thinking,
    tool_completed,
    tool_executing,
)
from eventbus.schemas import CRITICAL_TYPES
from eventbus.testing import ManualClock, MemoryStore

pytestmark = pytest.mark.requirement("R15")

MADE: list[tuple[TypedEvent, str, dict[str, Any]]] = [
    (agent_started(agent="planner", model="m"), "agent_started", {"agent": "planner", "model": "m"}),
    (agent_thinking(text="Hm"), "agent_thinking", {"text": "Hm"}),
    (tool_executing(tool="search"), "tool_executing", {"tool": "search"}),
    (
        tool_executing(tool="search", call_id="c", arguments={"q": "x"}),
        "tool_executing",
        {"tool": "search", "call_id": "c", "arguments": {"q": "x"}},
    ),
    (tool_completed(tool="search", result=None), "tool_completed", {"tool": "search", "result": None}),
    (
        tool_completed(tool="search", call_id="c", error="no"),
        "tool_completed",
        {"tool": "search", "call_id": "c", "error": "no"},
    ),
    (
        agent_completed(outcome=Outcome.SUCCESS, result=[1]),
        "agent_completed",
        {"outcome": "success", "result": [1]},
    ),
    (
        agent_completed(outcome="failed", error="no"),
        "agent_completed",
        {"outcome": "failed", "error": "no"},
    ),
]


@pytest.mark.parametrize("made, event_type, data", MADE)
def test_a_builder_gives_type_and_data_and_leaves_out_what_was_not_given(
    made: TypedEvent, event_type: str, data: dict[str, Any]
) -> None:
    assert made == (event_type, data)


def test_there_is_a_builder_for_each_critical_type() -> None:
    assert {event_type for _, event_type, _ in MADE} == set(CRITICAL_TYPES)


REFUSED: list[tuple[Callable[[], TypedEvent], str]] = [
    (lambda: agent_started(agent=""), "data.agent"),
    (lambda: agent_started(agent=" \n"), "data.agent"),
    (lambda: agent_thinking(text=7), "data.text"),  # type: ignore[arg-type]
    (lambda: agent_thinking(text="\t"), "data.text"),
    (lambda: tool_executing(tool=""), "data.tool"),
    (lambda: tool_executing(tool="t", call_id=" "), "data.call_id"),
    (lambda: tool_executing(tool="t", call_id="run_1"), "data.call_id"),
    (lambda: tool_completed(tool="t", call_id="thread_1", result=1), "data.call_id"),
    (lambda: tool_executing(tool="t", arguments=[1]), "data.arguments"),  # type: ignore[arg-type]
    (lambda: tool_executing(tool="t", arguments={"x": object()}), "data.arguments.x"),
    (lambda: tool_completed(tool="t"), "data.result"),
    (lambda: tool_completed(tool="t", result=1, error="no"), "data.error"),
    (lambda: tool_completed(tool="t", error=""), "data.error"),
    (lambda: agent_completed(outcome="done"), "data.outcome"),
    (lambda: agent_completed(outcome="success", result=float("nan")), "data.result"),
    (lambda: agent_thinking(text="x" * 300_000), "data"),
]


@pytest.mark.parametrize("make, field", REFUSED)
def test_a_bad_event_is_refused_where_it_is_made_and_the_field_is_named(
    make: Callable[[], TypedEvent], field: str
) -> None:
    with pytest.raises(InvalidEvent) as caught:
        make()
    assert caught.value.field == field


def test_what_happens_to_the_callers_object_later_does_not_matter() -> None:
    arguments = {"q": ["x"]}
    made = tool_executing(tool="search", arguments=arguments)
    arguments["q"].append("y")
    assert made.data["arguments"] == {"q": ["x"]}


async def test_a_typed_event_is_published_without_a_run() -> None:
    async with Bus(store=MemoryStore(), clock=ManualClock()) as bus:
        kind, data = agent_thinking(text="Looking at your calendar")
        receipt = await bus.publish(user="ada", type=kind, data=data)
    assert receipt.attempts == 1
