"""The five critical events of an agent's run as typed builders: each gives the type and the data of an event. Pure.

What is wrong is refused where it is made, with the field named. They serve without a run too:
`kind, data = agent_thinking(text="...")`, then `bus.publish(user=..., type=kind, data=data)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple, NewType

from eventbus.errors import InvalidEvent, InvalidField
from eventbus.event import MAX_EVENT_BYTES
from eventbus.jsonvalue import plain_object
from eventbus.schemas import check_critical

__all__ = [
    "CallId",
    "Outcome",
    "TypedEvent",
    "agent_completed",
    "agent_started",
    "agent_thinking",
    "tool_completed",
    "tool_executing",
]

CallId = NewType("CallId", str)
"""Names one call of a tool within its run."""


class Outcome(StrEnum):
    """How a run ended."""

    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TypedEvent(NamedTuple):
    """The type of an event and its data, judged and copied."""

    type: str
    data: dict[str, Any]


_LEFT_OUT: Final[Any] = object()


def agent_started(*, agent: str, **more: Any) -> TypedEvent:
    """An agent has begun.

    Args:
        agent: its name, not blank.
        more: further fields of the data.

    Raises:
        InvalidEvent: `field` names what is wrong (`data.agent`).
    Source: docs/protocol.md, section 3.
    """
    return _made("agent_started", {"agent": agent, **more})


def agent_thinking(*, text: str, **more: Any) -> TypedEvent:
    """What the agent thinks, in words for the user: `text`, not blank. Raises: InvalidEvent."""
    return _made("agent_thinking", {"text": text, **more})


def tool_executing(
    *, tool: str, call_id: str | None = None, arguments: Mapping[str, Any] | None = None, **more: Any
) -> TypedEvent:
    """A tool begins.

    Args:
        tool: its name, not blank.
        call_id: names this call within its run.
        arguments: a JSON object that the user may see.
        more: further fields of the data.

    Raises:
        InvalidEvent: `field` names what is wrong; the id of a run or of a thread is no call id.
    """
    return _made("tool_executing", {"tool": tool, **_given(call_id=call_id, arguments=arguments), **more})


def tool_completed(
    *, tool: str, call_id: str | None = None, result: Any = _LEFT_OUT, error: str | None = None, **more: Any
) -> TypedEvent:
    """A tool has ended: with a `result` (any JSON value, null too) or an `error`, one of the two.

    Args:
        tool: its name, as it was given when it began.
        call_id: the call that has ended.
        result: what it gave.
        error: what went wrong, in words for the user.
        more: further fields of the data.

    Raises:
        InvalidEvent: `field` names what is wrong.
    """
    ended = {} if result is _LEFT_OUT else {"result": result}
    return _made("tool_completed", {"tool": tool, **_given(call_id=call_id), **ended, **_given(error=error), **more})


def agent_completed(
    *, outcome: Outcome | str, result: Any = _LEFT_OUT, error: str | None = None, **more: Any
) -> TypedEvent:
    """An agent has ended.

    Args:
        outcome: `success`, `failed` or `cancelled`.
        result: what it found, any JSON value.
        error: what went wrong, in words for the user.
        more: further fields of the data.

    Raises:
        InvalidEvent: `field` names what is wrong.
    """
    ended = {} if result is _LEFT_OUT else {"result": result}
    word = outcome.value if isinstance(outcome, Outcome) else outcome
    return _made("agent_completed", {"outcome": word, **ended, **_given(error=error), **more})


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _made(event_type: str, data: dict[str, Any]) -> TypedEvent:
    try:
        plain = plain_object(data, "data", max_bytes=MAX_EVENT_BYTES)
    except InvalidField as error:
        raise InvalidEvent(error.field, error.problem) from None
    check_critical(event_type, plain)
    call_id = plain.get("call_id")
    if isinstance(call_id, str) and call_id.startswith(("run_", "thread_")):
        kind = call_id.partition("_")[0]
        raise InvalidEvent("data.call_id", f"{call_id[:40]!r} looks like a {kind} id; give the id of the tool's call")
    return TypedEvent(event_type, plain)
