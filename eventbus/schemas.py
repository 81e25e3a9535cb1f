"""What the data of an event must hold, by its type. Pure.

The five critical events of an agent's run always have a schema. Other types are free, and can be given one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from eventbus.errors import InvalidEvent

__all__ = ["CRITICAL_TYPES", "Check", "Schema", "Schemas", "check_critical"]

Check = Callable[[Mapping[str, Any]], None]
"""Judges the data of an event. Raises: InvalidEvent with the path of what is wrong (`data.text`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """A schema that needs no code. More fields than it names are allowed.

    Attributes:
        strings: required, and not blank.
        optional_strings: not blank where they are given.
        objects: JSON objects where they are given.
        one_of: exactly one of these is given, with any value.
        at_most_one_of: at most one of these is given.
        words: required, one of the words listed for each.
    """

    strings: tuple[str, ...] = ()
    optional_strings: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    at_most_one_of: tuple[str, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __call__(self, data: Mapping[str, Any]) -> None:
        """Judge the data of an event. Raises: InvalidEvent."""
        for name in self.strings:
            if name not in data:
                raise InvalidEvent(f"data.{name}", "is missing")
            _not_blank(data[name], name)
        for name in self.optional_strings:
            if name in data:
                _not_blank(data[name], name)
        for name in self.objects:
            if name in data and not isinstance(data[name], Mapping):
                raise InvalidEvent(f"data.{name}", f"must be a JSON object, not {type(data[name]).__name__}")
        self._check_choices(data)
        for name, words in self.words.items():
            if name not in data:
                raise InvalidEvent(f"data.{name}", "is missing")
            if data[name] not in words:
                raise InvalidEvent(f"data.{name}", f"must be one of {', '.join(words)}")

    def _check_choices(self, data: Mapping[str, Any]) -> None:
        if self.one_of:
            given = [name for name in self.one_of if name in data]
            if not given:
                raise InvalidEvent(f"data.{self.one_of[0]}", f"exactly one of {', '.join(self.one_of)} must be given")
            if len(given) > 1:
                raise InvalidEvent(f"data.{given[1]}", f"only one of {', '.join(self.one_of)} may be given")
        given = [name for name in self.at_most_one_of if name in data]
        if len(given) > 1:
            raise InvalidEvent(f"data.{given[1]}", f"only one of {', '.join(self.at_most_one_of)} may be given")


def _not_blank(value: object, name: str) -> None:
    if not isinstance(value, str):
        raise InvalidEvent(f"data.{name}", f"must be a string, not {type(value).__name__}")
    if not value or value.isspace():
        raise InvalidEvent(f"data.{name}", "must not be blank")


# `result` may be any JSON value and `error` is text: what a tool or an agent gives back is the application's own.
_CRITICAL: Final[Mapping[str, Check]] = MappingProxyType(
    {
        "agent_started": Schema(strings=("agent",)),
        "agent_thinking": Schema(strings=("text",)),
        "tool_executing": Schema(strings=("tool",), optional_strings=("call_id",), objects=("arguments",)),
        "tool_completed": Schema(strings=("tool",), optional_strings=("call_id", "error"), one_of=("result", "error")),
        "agent_completed": Schema(optional_strings=("error",), words={"outcome": ("success", "failed", "cancelled")}),
    }
)

CRITICAL_TYPES: Final = tuple(_CRITICAL)
"""The types whose schemas always hold, in the order in which a run sends them."""


def check_critical(event_type: str, data: Mapping[str, Any]) -> None:
    """Judge the data of one of the five critical types; data of another type is always good.

    Raises:
        InvalidEvent: `field` is the path of what is wrong.
    Source: docs/protocol.md, section 3.
    """
    check = _CRITICAL.get(event_type)
    if check is not None:
        check(data)


class Schemas:
    """The schemas that an application checks its events by: the five critical ones, and its own."""

    __slots__ = ("_own",)

    def __init__(self) -> None:
        self._own: dict[str, Check] = {}

    def __repr__(self) -> str:
        return f"<Schemas {', '.join(sorted({*_CRITICAL, *self._own}))}>"

    def register(self, event_type: str, schema: Check) -> None:
        """Give a type a schema, instead of one that was registered before. A critical type keeps its own beside it.

        Args:
            event_type: the type of event.
            schema: a `Schema`, or a function that raises `InvalidEvent("data....", "what is wrong")`.
        """
        self._own[event_type] = schema

    def check(self, event_type: str, data: Mapping[str, Any]) -> None:
        """Judge the data of an event.

        Raises:
            InvalidEvent: `field` is the path of what is wrong.
        """
        check_critical(event_type, data)
        own = self._own.get(event_type)
        if own is not None:
            own(data)
