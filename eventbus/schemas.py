"""What the data of an event must hold, by its type. Pure.

The five critical events of an agent's run always have a schema, and so have the other types that the library itself
sends. Further types are free, and can be given one. `Schemas.export` gives them all as JSON Schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from types import MappingProxyType
from typing import Any, Final

from eventbus.errors import InvalidEvent

__all__ = ["BUILT_IN_TYPES", "CRITICAL_TYPES", "Check", "Schema", "Schemas", "check_critical"]

Check = Callable[[Mapping[str, Any]], None]
"""Judges the data of an event. Raises: InvalidEvent with the path of what is wrong (`data.text`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """A schema that needs no code. More fields than it names are allowed.

    Attributes:
        strings: required, and not blank.
        optional_strings: not blank where they are given.
        texts: required strings that may be blank.
        values: required, with any value.
        objects: JSON objects where they are given.
        lists: JSON arrays where they are given.
        integers: whole numbers from 0 where they are given.
        one_of: exactly one of these is given, with any value.
        at_most_one_of: at most one of these is given.
        words: required, one of the words listed for each.
    """

    strings: tuple[str, ...] = ()
    optional_strings: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    integers: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    at_most_one_of: tuple[str, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __call__(self, data: Mapping[str, Any]) -> None:
        """Judge the data of an event. Raises: InvalidEvent."""
        for name in (*self.strings, *self.texts, *self.values):
            if name not in data:
                raise InvalidEvent(f"data.{name}", "is missing")
        for name in (*self.strings, *self.optional_strings):
            if name in data:
                _not_blank(data[name], name)
        self._check_kinds(data)
        self._check_choices(data)
        for name, words in self.words.items():
            if name not in data:
                raise InvalidEvent(f"data.{name}", "is missing")
            if data[name] not in words:
                raise InvalidEvent(f"data.{name}", f"must be one of {', '.join(words)}")

    def _check_kinds(self, data: Mapping[str, Any]) -> None:
        for name in self.texts:
            _is_string(data[name], name)
        for name in self.objects:
            if name in data and not isinstance(data[name], Mapping):
                raise InvalidEvent(f"data.{name}", f"must be a JSON object, not {type(data[name]).__name__}")
        for name in self.lists:
            if name in data and not isinstance(data[name], list | tuple):
                raise InvalidEvent(f"data.{name}", f"must be a JSON array, not {type(data[name]).__name__}")
        for name in self.integers:
            if name in data and (type(data[name]) is not int or data[name] < 0):
                raise InvalidEvent(f"data.{name}", f"must be a whole number from 0, not {data[name]!r:.40}")

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


def _is_string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise InvalidEvent(f"data.{name}", f"must be a string, not {type(value).__name__}")
    return value


def _not_blank(given: object, name: str) -> None:
    value = _is_string(given, name)
    if not value or value.isspace():
        raise InvalidEvent(f"data.{name}", "must not be blank")


# `result` may be any JSON value and `error` is text: what a tool or an agent gives back is the application's own.
_CRITICAL: Final[Mapping[str, Schema]] = MappingProxyType(
    {
        "agent_started": Schema(strings=("agent",)),
        "agent_thinking": Schema(strings=("text",)),
        "tool_executing": Schema(strings=("tool",), optional_strings=("call_id",), objects=("arguments",)),
        "tool_completed": Schema(strings=("tool",), optional_strings=("call_id", "error"), one_of=("result", "error")),
        "agent_completed": Schema(optional_strings=("error",), words={"outcome": ("success", "failed", "cancelled")}),
    }
)

CRITICAL_TYPES: Final = tuple(_CRITICAL)
"""The five types that tell of a run, in the order in which a run sends them."""

_BUILT_IN: Final[Mapping[str, Schema]] = MappingProxyType(
    {
        **_CRITICAL,
        "agent_question": Schema(strings=("question", "text"), lists=("options",), integers=("deadline_ms",)),
        "agent_answered": Schema(
            strings=("question",),
            values=("answer",),
            optional_strings=("session",),
            words={"by": ("user", "deadline")},
        ),
        "agent_text": Schema(strings=("stream",), texts=("text",)),
    }
)

BUILT_IN_TYPES: Final = tuple(_BUILT_IN)
"""All types that the library itself sends; their schemas always hold."""


def check_critical(event_type: str, data: Mapping[str, Any]) -> None:
    """Judge the data of a type that the library itself sends; data of another type is always good.

    Raises:
        InvalidEvent: `field` is the path of what is wrong.
    Source: docs/protocol.md, section 3.
    """
    check = _BUILT_IN.get(event_type)
    if check is not None:
        check(data)


class Schemas:
    """The schemas that an application checks its events by: the library's, and its own."""

    __slots__ = ("_own",)

    def __init__(self) -> None:
        self._own: dict[str, Check] = {}

    def __repr__(self) -> str:
        return f"<Schemas {', '.join(sorted({*_BUILT_IN, *self._own}))}>"

    def register(self, event_type: str, schema: Check) -> None:
        """Give a type a schema, instead of one registered before. A type of the library keeps its own beside it.

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

    def export(self) -> dict[str, dict[str, Any]]:
        """Every schema as JSON Schema 2020-12, by event type: of the `data` of an event, for other languages and tools.

        Returns:
            The library's types, then the application's by name. A schema that is a function says nothing but that the
            data is an object, with a `$comment`: code can not be expressed.
        """
        exported = {}
        for event_type in (*_BUILT_IN, *sorted(set(self._own) - set(_BUILT_IN))):
            checks = [check for check in (_BUILT_IN.get(event_type), self._own.get(event_type)) if check is not None]
            parts = [json_schema(check) if isinstance(check, Schema) else dict(_CODE) for check in checks]
            body = parts[0] if len(parts) == 1 else {"type": "object", "allOf": parts}
            exported[event_type] = {"$schema": DIALECT, "title": event_type, **body}
        return exported


# --- as JSON Schema ---------------------------------------------------------------------------------------------------

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_CODE: Final = MappingProxyType({"type": "object", "$comment": "judged by code of the application"})
# What Python calls a blank, spelt out: `\s` is another set in each language.
_NOT_BLANK: Final = r"[^\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"


def json_schema(schema: Schema) -> dict[str, Any]:
    """A schema as JSON Schema 2020-12: it takes what the schema takes, and refuses what it refuses."""
    word = {"type": "string", "pattern": _NOT_BLANK}
    properties: dict[str, Any] = {name: {} for name in (*schema.values, *schema.one_of, *schema.at_most_one_of)}
    properties |= {name: dict(word) for name in (*schema.strings, *schema.optional_strings)}
    properties |= {name: {"type": "string"} for name in schema.texts}
    properties |= {name: {"type": "object"} for name in schema.objects}
    properties |= {name: {"type": "array"} for name in schema.lists}
    properties |= {name: {"type": "integer", "minimum": 0} for name in schema.integers}
    properties |= {name: {"enum": list(words)} for name, words in schema.words.items()}
    made: dict[str, Any] = {"type": "object", "properties": properties}
    if required := [*schema.strings, *schema.texts, *schema.values, *schema.words]:
        made["required"] = required
    if schema.one_of:
        made["oneOf"] = [{"required": [name]} for name in schema.one_of]
    if pairs := list(combinations(schema.at_most_one_of, 2)):
        made["not"] = {"anyOf": [{"required": list(pair)} for pair in pairs]}
    return made
