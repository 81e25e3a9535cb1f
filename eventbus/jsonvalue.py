"""What a JSON object of the bus may hold, checked and copied in one walk; and MessagePack from whatever bytes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

import msgpack

from eventbus.errors import InvalidField

__all__ = ["MAX_DEPTH", "MAX_INTEGER", "parsed_object", "plain_object", "plain_value", "unpack"]

MAX_DEPTH: Final = 64
"""Objects and arrays inside one another, the outermost object counted."""

MAX_INTEGER: Final = 2**53
"""Beyond it a double, and so every JavaScript client, rounds."""

_ITEMS_BELIEVED: Final = 1024
_KEY_SHOWN: Final = 40
_PATH_PARTS_SHOWN: Final = 8


class _Problem(Exception):
    """What is wrong with a value; the path grows on the way out, so that a good value pays nothing for it."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.parts: list[str] = []

    def path(self, root: str) -> str:
        """The path from the root, the outermost part first; a deep one is cut."""
        parts = self.parts[::-1]
        end = "..." if len(parts) > _PATH_PARTS_SHOWN else ""
        return root + "".join(parts[:_PATH_PARTS_SHOWN]) + end


class _Walk:
    """One walk over one value: how many values it may still meet."""

    __slots__ = ("max_bytes", "values_left")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        # A value takes a byte at the least. Without this bound an object that holds one list many times over, many
        # levels deep, would be walked for ever before its size could be known.
        self.values_left = max_bytes

    def value(self, value: object, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            return _string(value)  # type: ignore[arg-type]
        if value is None or kind is bool:
            return value
        if kind is int:
            return _integer(value)  # type: ignore[arg-type]
        if kind is float:
            return self.number(value)  # type: ignore[arg-type]
        if kind is dict or isinstance(value, Mapping):
            return self.members(value, depth + 1)  # type: ignore[arg-type]
        # A named tuple means more than its items, and a MessagePack extension is one: only plain tuples are arrays.
        if kind is tuple or isinstance(value, list):
            return self.items(value, depth + 1)  # type: ignore[arg-type]
        if isinstance(value, str):
            return _string(str.__str__(value))
        if isinstance(value, int):
            return _integer(int(value))
        if isinstance(value, float):
            return self.number(float(value))
        raise _Problem(f"is of type {kind.__name__}, which JSON does not know")

    def number(self, value: float) -> float:
        if not isfinite(value):
            raise _Problem(f"is {value}, which JSON does not know")
        return value

    def enter(self, size: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _Problem(f"is nested more than {MAX_DEPTH} deep")
        self.values_left -= size
        if self.values_left < 0:
            raise _Problem(f"holds more values than fit into {self.max_bytes} bytes")

    def members(self, value: Mapping[Any, object], depth: int) -> dict[str, Any]:
        self.enter(len(value), depth)
        result: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise _Problem(f"has the key {_shown(key)} of type {type(key).__name__}; keys are strings")
            try:
                result[_string(str.__str__(key))] = self.value(item, depth)
            except _Problem as problem:
                problem.parts.append("." + _shown_key(key))
                raise
        return result

    def items(self, value: list[object] | tuple[object, ...], depth: int) -> list[Any]:
        self.enter(len(value), depth)
        result: list[Any] = []
        for index, item in enumerate(value):
            try:
                result.append(self.value(item, depth))
            except _Problem as problem:
                problem.parts.append(f"[{index}]")
                raise
        return result


class _ParsedWalk(_Walk):
    """A walk over what a JSON parser made: an integer too large for it has become a float, its digits gone."""

    __slots__ = ()

    def number(self, value: float) -> float:
        if abs(value) > MAX_INTEGER and isfinite(value) and value.is_integer():
            raise _Problem(_TOO_LARGE)
        return super().number(value)


_TOO_LARGE: Final = "is beyond 2**53, where JavaScript rounds; give it as a string"


def _string(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _Problem(f"holds a lone surrogate at character {error.start}, which UTF-8 can not carry") from None
    return value


def _integer(value: int) -> int:
    if not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise _Problem(_TOO_LARGE)
    return value


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= _KEY_SHOWN else text[:_KEY_SHOWN] + "..."


def _shown_key(key: str) -> str:
    if len(key) <= _KEY_SHOWN and key and key.isascii() and key.isprintable():
        return key
    return _shown(key)


def plain_object(value: object, field: str, *, max_bytes: int) -> dict[str, Any]:
    """Check a JSON object and copy it into plain dicts, lists, strings and numbers.

    Args:
        value: what a caller gave. Tuples count as arrays, other mappings as objects.
        field: the path of the value, for the error.
        max_bytes: the most it may take as MessagePack.

    Raises:
        InvalidField: it is no object, or something in it breaks a rule; `field` is the path (`data.items[3].x`).
    Source: docs/protocol.md, section 3.
    """
    return _checked(_Walk(max_bytes), value, field)


def parsed_object(value: object, field: str, *, max_bytes: int) -> dict[str, Any]:
    """`plain_object` for what was parsed from JSON: a whole number beyond 2**53 is refused as a float, too."""
    return _checked(_ParsedWalk(max_bytes), value, field)


def plain_value(value: object, field: str, *, max_bytes: int) -> Any:
    """Check and copy any JSON value, its size not looked at but for the number of values. Raises: InvalidField."""
    try:
        return _Walk(max_bytes).value(value, 0)
    except _Problem as problem:
        raise InvalidField(problem.path(field), problem.problem) from None


def _checked(walk: _Walk, value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidField(field, f"must be a JSON object, not {type(value).__name__}")
    try:
        result = walk.members(value, 1)
    except _Problem as problem:
        raise InvalidField(problem.path(field), problem.problem) from None
    size = len(msgpack.packb(result))
    if size > walk.max_bytes:
        raise InvalidField(field, f"takes {size} bytes as MessagePack, and {walk.max_bytes} are allowed")
    return result


def unpack(body: bytes) -> Any:
    """Decode MessagePack from whatever bytes, in time and space bounded by their number.

    Raises:
        ValueError: it is not one whole MessagePack object. Its text may be empty; the class then tells what is wrong.
    """
    try:
        # The decoder makes room for all that a list says it holds, 500 levels deep, before it sees that nothing comes:
        # 64 KiB of headers cost 27 ms. Lists of this size cost 2, and are all that most messages hold.
        return msgpack.unpackb(body, max_array_len=_ITEMS_BELIEVED)
    except ValueError:
        pass
    # Walked over without making anything, to see that what the lists say is true.
    walker = msgpack.Unpacker(max_buffer_size=max(len(body), 1))
    walker.feed(body)
    try:
        walker.skip()
        return msgpack.unpackb(body)
    except msgpack.OutOfData:
        raise ValueError("it ends too early") from None
