"""What `data` may hold, and how a wrong part of it is named."""

from __future__ import annotations

import enum
import tracemalloc
from collections import OrderedDict
from types import MappingProxyType
from typing import Any, NamedTuple

import msgpack
import pytest

from eventbus.errors import InvalidField
from eventbus.jsonvalue import MAX_DEPTH, MAX_INTEGER, parsed_object, plain_object, plain_value, unpack

SMALL = 1000


def refusal(value: object, max_bytes: int = SMALL) -> InvalidField:
    with pytest.raises(InvalidField) as caught:
        plain_object(value, "data", max_bytes=max_bytes)
    return caught.value


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


class Point(NamedTuple):
    x: int
    y: int


class Word(enum.StrEnum):
    ONE = "one"


class Number(enum.IntEnum):
    TWO = 2


class Decimal(float):
    pass


class Listy(list[object]):
    pass


def test_an_object_is_copied_into_plain_values() -> None:
    value = MappingProxyType(
        {
            "text": "caf\u00e9 \U0001f600",
            "word": Word.ONE,
            "number": Number.TWO,
            "decimal": Decimal(1.5),
            "pair": (1, 2.5),
            "list": Listy([None, True, False, {}]),
            "map": OrderedDict(a=1),
            "": "",
        }
    )
    copy = plain_object(value, "data", max_bytes=SMALL)
    assert copy == {
        "text": "caf\u00e9 \U0001f600",
        "word": "one",
        "number": 2,
        "decimal": 1.5,
        "pair": [1, 2.5],
        "list": [None, True, False, {}],
        "map": {"a": 1},
        "": "",
    }
    kinds = {name: type(part) for name, part in copy.items()}
    assert kinds["word"] is str
    assert kinds["number"] is int
    assert kinds["decimal"] is float
    assert kinds["list"] is list
    assert kinds["map"] is dict


def test_what_happens_to_the_original_later_does_not_matter() -> None:
    inner = [1]
    copy = plain_object({"a": inner}, "data", max_bytes=SMALL)
    inner.append(2)
    assert copy == {"a": [1]}


@pytest.mark.parametrize(
    "value,path,problem",
    [
        ({"text": "\ud800"}, "data.text", "lone surrogate at character 0"),
        ({"a": {"b": ["x", "ok\udfff"]}}, "data.a.b[1]", "lone surrogate at character 2"),
        ({"\ud800": 1}, "data.'\\ud800'", "lone surrogate"),
        ({"n": MAX_INTEGER + 1}, "data.n", "beyond 2**53"),
        ({"n": -MAX_INTEGER - 1}, "data.n", "beyond 2**53"),
        ({"items": [0, 1, 2, {"x": float("nan")}]}, "data.items[3].x", "is nan"),
        ({"x": float("-inf")}, "data.x", "is -inf"),
        ({"x": {1: 2}}, "data.x", "has the key 1 of type int"),
        ({b"x": 2}, "data", "has the key b'x' of type bytes"),
        ({"x": b"raw"}, "data.x", "of type bytes"),
        ({"x": {1, 2}}, "data.x", "of type set"),
        ({"x": object()}, "data.x", "of type object"),
        ({"x": msgpack.ExtType(1, b"a")}, "data.x", "of type ExtType"),
        ({"x": msgpack.Timestamp(1)}, "data.x", "of type Timestamp"),
        ({"x": Point(1, 2)}, "data.x", "of type Point"),
        ({"": b""}, "data.''", "of type bytes"),
        ({"k" * 50: b""}, "data.'" + "k" * 39 + "...", "of type bytes"),
        ({"new\nline": b""}, "data.'new\\nline'", "of type bytes"),
        ({Word.ONE: b""}, "data.one", "of type bytes"),
    ],
)
def test_a_wrong_part_is_named_by_its_path(value: object, path: str, problem: str) -> None:
    error = refusal(value)
    assert error.field == path
    assert problem in error.problem


@pytest.mark.parametrize("value", [[], "text", None, 3, [("a", 1)]])
def test_only_an_object_is_an_object(value: object) -> None:
    error = refusal(value)
    assert error.field == "data"
    assert "must be a JSON object" in error.problem


def test_integers_are_taken_to_two_to_the_53() -> None:
    value = {"least": -MAX_INTEGER, "most": MAX_INTEGER}
    assert plain_object(value, "data", max_bytes=SMALL) == value


def test_nesting_is_taken_to_64_and_the_path_of_a_deeper_one_is_cut() -> None:
    assert plain_object(nested(MAX_DEPTH), "data", max_bytes=SMALL) == nested(MAX_DEPTH)
    error = refusal(nested(MAX_DEPTH + 1))
    assert "64 deep" in error.problem
    assert error.field == "data" + ".a" * 8 + "..."


def test_an_object_that_holds_itself_is_refused() -> None:
    value: dict[str, Any] = {}
    value["self"] = value
    assert "64 deep" in refusal(value).problem


def test_a_small_object_that_unfolds_to_a_huge_one_is_refused_at_once() -> None:
    value: list[object] = ["x"]
    for _ in range(50):
        value = [value, value]
    assert "more values than fit into 1000 bytes" in refusal({"x": value}).problem


def test_the_size_is_judged_as_messagepack() -> None:
    value = {"text": "x" * 100}
    size = len(msgpack.packb(value))
    assert plain_object(value, "data", max_bytes=size) == value
    error = refusal(value, size - 1)
    assert error.field == "data"
    assert f"takes {size} bytes as MessagePack, and {size - 1} are allowed" in error.problem


@pytest.mark.parametrize("value", [1e20, -1e20, float(2**53 + 2)])
def test_an_integer_that_a_parser_rounded_is_refused(value: float) -> None:
    assert plain_object({"x": value}, "data", max_bytes=SMALL) == {"x": value}
    with pytest.raises(InvalidField, match=r"data\.x: is beyond 2\*\*53"):
        parsed_object({"x": value}, "data", max_bytes=SMALL)


def test_fractions_and_whole_floats_of_a_parser_are_taken() -> None:
    value = {"x": [1.5, -0.0, 3.0, float(2**53), 1e-300]}
    assert parsed_object(value, "data", max_bytes=SMALL) == value
    with pytest.raises(InvalidField, match=r"is inf"):
        parsed_object({"x": float("inf")}, "data", max_bytes=SMALL)


def test_a_value_alone_is_judged_by_the_same_rules() -> None:
    assert plain_value((1, "a", None), "extra", max_bytes=SMALL) == [1, "a", None]
    with pytest.raises(InvalidField) as caught:
        plain_value([b""], "extra", max_bytes=SMALL)
    assert caught.value.field == "extra[0]"


# --- MessagePack ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, {"a": [1, "x", b"y"]}, [0] * 1024, [0] * 1025, [[0] * 70_000], "x" * 100_000])
def test_messagepack_reads_back_however_long_its_lists_are(value: object) -> None:
    assert unpack(msgpack.packb(value)) == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x92\x01",
        b"\x01\x02",
        b"\x91" * 2000,
        b"\xa1\xff",
        b"\x81\x01\x01",
        b"\xdd\x00\x00\xf0\x00" * 500,
        b"\xdd\xff\xff\xff\xff",
        b"\xc7\x0c\xff" + b"\xff" * 12,
    ],
)
def test_what_is_not_one_whole_messagepack_object_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the texts are the decoder's
        unpack(body)


@pytest.mark.requirement("R23")
def test_no_room_is_made_for_what_a_list_only_says_it_holds() -> None:
    body = b"\xdd\x00\x00\xf0\x00" * 500 + bytes(60_000)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="ends too early"):
            unpack(body)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * 1024 * 1024
