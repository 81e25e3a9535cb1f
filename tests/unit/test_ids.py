"""Identifiers: their forms, and that none passes for another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus.errors import InvalidField
from eventbus.ids import (
    ENTRY_ZERO,
    EntryId,
    EventId,
    connection_id_from,
    entry_order,
    event_id_from,
    event_id_time_ms,
    parse_entry_id,
    parse_event_id,
    parse_node_name,
    parse_run_id,
    parse_session_id,
    parse_thread_id,
    parse_user_id,
    run_id_from,
    session_id_from,
)

Parse = Callable[..., str]

GOOD: list[tuple[Parse, str]] = [
    (parse_user_id, "a"),
    (parse_user_id, "auth0|Ann.B+c@example.org:1-2_3"),
    (parse_user_id, "u" * 128),
    (parse_user_id, "runner"),
    (parse_session_id, "tab-1_A"),
    (parse_session_id, "s" * 64),
    (parse_thread_id, "thread_1"),
    (parse_thread_id, "a.b:c-d"),
    (parse_thread_id, "t" * 128),
    (parse_run_id, "run_1"),
    (parse_run_id, "job:7"),
    (parse_event_id, "e" * 64),
    (parse_event_id, "order.7:paid_-"),
    (parse_node_name, "node-1.eu_2"),
    (parse_entry_id, "0-0"),
    (parse_entry_id, "1732190000000-12"),
    (parse_entry_id, "18446744073709551615-18446744073709551615"),
]

BAD: list[tuple[Parse, object]] = [
    (parse_user_id, ""),
    (parse_user_id, "u" * 129),
    (parse_user_id, "a b"),
    (parse_user_id, "a/b"),
    (parse_user_id, "a\n"),
    (parse_user_id, "\u00e9"),
    (parse_user_id, 7),
    (parse_user_id, None),
    (parse_user_id, b"ann"),
    (parse_session_id, "s" * 65),
    (parse_session_id, "a.b"),
    (parse_session_id, ""),
    (parse_thread_id, "a|b"),
    (parse_thread_id, ""),
    (parse_run_id, "a b"),
    (parse_run_id, "r" * 129),
    (parse_event_id, "e" * 65),
    (parse_event_id, "a@b"),
    (parse_node_name, "a:b"),
    (parse_entry_id, "1"),
    (parse_entry_id, "1-"),
    (parse_entry_id, "01-0"),
    (parse_entry_id, "-1-0"),
    (parse_entry_id, "1-0 "),
    (parse_entry_id, "\u0661-0"),
    (parse_entry_id, "18446744073709551616-0"),
    (parse_entry_id, "0-18446744073709551616"),
    (parse_entry_id, "9" * 21 + "-0"),
    (parse_entry_id, 1.5),
]


@pytest.mark.parametrize("parse,text", GOOD)
def test_an_id_of_the_right_form_is_taken_as_it_is(parse: Parse, text: str) -> None:
    assert parse(text) == text


@pytest.mark.parametrize("parse,value", BAD)
def test_an_id_of_a_wrong_form_is_refused_with_its_field(parse: Parse, value: object) -> None:
    with pytest.raises(InvalidField) as caught:
        parse(value, "some.field")
    assert caught.value.field == "some.field"
    assert len(str(caught.value)) < 200


@pytest.mark.requirement("R21")
@pytest.mark.parametrize(
    "parse,value,kind",
    [
        (parse_user_id, "run_019ab3c1", "run"),
        (parse_user_id, "thread_1", "thread"),
        (parse_thread_id, "run_019ab3c1", "run"),
        (parse_run_id, "thread_1", "thread"),
    ],
)
def test_an_id_of_another_kind_is_refused_and_named(parse: Parse, value: str, kind: str) -> None:
    with pytest.raises(InvalidField, match=f"looks like a {kind} id"):
        parse(value)


@pytest.mark.requirement("R21")
def test_a_run_id_that_is_made_is_never_a_user_id() -> None:
    run = run_id_from(1_732_190_000_000, bytes(10))
    assert parse_run_id(run) == run
    with pytest.raises(InvalidField):
        parse_user_id(run)


def test_entry_ids_are_ordered_by_number_and_not_as_text() -> None:
    entries = [EntryId("10-0"), EntryId("9-11"), EntryId("9-2"), ENTRY_ZERO]
    assert sorted(entries, key=entry_order) == ["0-0", "9-2", "9-11", "10-0"]


@given(now_ms=st.integers(0, 2**48 - 1), random=st.binary(min_size=10, max_size=16))
def test_a_made_event_id_is_a_uuid7_that_tells_its_time(now_ms: int, random: bytes) -> None:
    event = event_id_from(now_ms, random)
    assert parse_event_id(event) == event
    assert event_id_time_ms(event) == now_ms
    assert event[14] == "7"
    assert event[19] in "89ab"


@given(times=st.lists(st.integers(0, 2**48 - 1), min_size=2, max_size=2, unique=True), random=st.binary(min_size=10))
def test_event_ids_sort_by_their_time(times: list[int], random: bytes) -> None:
    early, late = sorted(times)
    assert event_id_from(early, b"\xff" * 10) < event_id_from(late, random)


def test_the_random_bits_of_an_event_id_all_matter() -> None:
    made = {event_id_from(7, (1 << bit).to_bytes(10, "big")) for bit in range(80)}
    # Six of the eighty bits are the version and the variant.
    assert len(made | {event_id_from(7, bytes(10))}) == 75


@pytest.mark.parametrize(
    "text", ["order-7", "019ab3c1-1111-4222-8333-123456789abc", "019AB3C1-1111-7222-8333-123456789ABC"]
)
def test_an_event_id_of_another_form_tells_no_time(text: str) -> None:
    assert event_id_time_ms(EventId(text)) is None


@given(random=st.binary(min_size=16, max_size=32))
def test_connection_and_session_ids_hold_all_of_128_random_bits(random: bytes) -> None:
    assert connection_id_from(random) == random[:16].hex()
    assert parse_session_id(session_id_from(random)) == random[:16].hex()
