"""The text of a stream on its way to the store, and what a follower makes of what comes."""

from __future__ import annotations

import pytest

from eventbus.errors import InvalidEvent
from eventbus.ids import RunId
from eventbus.schemas import Schemas
from eventbus.text import (
    KNOWN_STREAMS,
    PENDING_CODE_POINTS,
    TEXT_EVENT,
    Chunk,
    Outgoing,
    Piece,
    Texts,
    free_name,
    parse_stream,
    text_data,
)

pytestmark = pytest.mark.requirement("R19")

RUN = RunId("run_1")
ROCKET = "👩‍🚀"


def outgoing(flush_ms: int = 20, flush_bytes: int = 10, max_bytes: int = 1_000) -> Outgoing:
    return Outgoing("text", flush_ms=flush_ms, flush_bytes=flush_bytes, max_bytes=max_bytes)


@pytest.mark.parametrize("name", ["", "a" * 65, "two words", "a/b", "ä", None, 7])
def test_a_name_of_a_stream_that_is_none_is_refused_with_its_field(name: object) -> None:
    with pytest.raises(InvalidEvent) as refused:
        parse_stream(name)
    assert refused.value.field == "stream"


def test_a_second_stream_of_a_name_gets_a_number() -> None:
    assert free_name("text", ()) == "text"
    assert free_name("text", {"text"}) == "text_2"
    assert free_name("text", {"text", "text_2"}) == "text_3"
    assert parse_stream(free_name("a" * 64, {"a" * 64})) == "a" * 62 + "_2"


def test_the_events_data_keeps_its_schema_whatever_the_text() -> None:
    for text in ("words", " ", "\n"):
        Schemas().check(TEXT_EVENT, text_data("text", text, partial=True))
    assert text_data("text", "a", partial=False) == {"stream": "text", "text": "a"}
    assert text_data("text", "a", partial=True)["partial"] is True


# --- on its way out ---------------------------------------------------------------------------------------------------


def test_a_piece_leaves_when_its_first_character_has_waited_long_enough() -> None:
    out = outgoing()
    assert out.due_ms(0) is None
    out.write("a", 100)
    out.write("b", 115)
    assert [out.due_ms(now) for now in (100, 115, 119, 120, 500)] == [20, 5, 1, 0, 0]
    assert out.take() == Piece(0, "ab", last=False)


def test_a_full_piece_waits_for_nothing() -> None:
    out = outgoing()
    out.write("123456789", 100)
    assert out.due_ms(100) == 20
    out.write("ä", 100)
    assert out.is_full
    assert out.due_ms(100) == 0


def test_offsets_count_code_points_and_not_bytes() -> None:
    out = outgoing()
    out.write(f"Grüße {ROCKET}", 0)
    piece = out.take()
    out.has_stored(piece, 9)
    out.write("!", 0)
    assert out.take() == Piece(9, "!", last=False)


def test_what_is_written_while_a_piece_is_under_way_waits_for_its_own_time() -> None:
    out = outgoing()
    out.write("a", 0)
    piece = out.take()
    out.write("b", 50)
    out.has_stored(piece, 1)
    assert out.due_ms(60) == 10
    assert out.take() == Piece(1, "b", last=False)


def test_a_piece_whose_fate_is_unknown_goes_again_with_what_came_meanwhile() -> None:
    out = outgoing()
    out.write("a", 0)
    assert out.take() == Piece(0, "a", last=False)
    assert out.due_ms(30) == 0, "nobody stored it, so it is due at once"
    out.write("b", 40)
    assert out.take() == Piece(0, "ab", last=False)


def test_the_store_may_ask_for_any_of_it_again() -> None:
    out = outgoing()
    for part in ("one ", "two ", "three"):
        out.write(part, 0)
        out.has_stored(out.take(), len(out))
    assert out.due_ms(0) is None
    out.wanted_from(4)
    assert out.due_ms(0) == 0
    assert out.take() == Piece(4, "two three", last=False)


def test_the_last_piece_goes_at_once_also_when_it_is_empty() -> None:
    out = outgoing()
    out.write("abc", 0)
    out.has_stored(out.take(), 3)
    out.close()
    assert out.due_ms(0) == 0
    last = out.take()
    assert last == Piece(3, "", last=True)
    out.has_stored(last, 3)
    assert out.is_done
    assert out.due_ms(0) is None


def test_a_last_piece_that_the_store_wants_elsewhere_is_not_the_end() -> None:
    out = outgoing()
    out.write("abc", 0)
    out.close()
    out.take()
    out.wanted_from(1)
    assert not out.is_done
    assert out.take() == Piece(1, "bc", last=True)


def test_a_stream_in_which_nothing_was_written_has_nothing_to_store() -> None:
    out = outgoing()
    out.write("", 0)
    out.close()
    assert out.is_done


def test_text_that_its_event_could_not_carry_is_refused_and_nothing_of_it_taken() -> None:
    out = outgoing(max_bytes=10)
    out.write("12345678", 0)
    with pytest.raises(InvalidEvent, match="8 bytes, 4 more are above the 10") as refused:
        out.write("éé", 0)
    assert refused.value.field == "text"
    out.write("é", 0)
    assert out.text == "12345678é"


@pytest.mark.parametrize("wrong", [b"bytes", None, 7, "half \ud83d"])
def test_what_is_no_text_is_refused(wrong: object) -> None:
    out = outgoing()
    with pytest.raises(InvalidEvent):
        out.write(wrong, 0)  # type: ignore[arg-type]
    assert len(out) == 0


# --- at a follower ----------------------------------------------------------------------------------------------------


def came(texts: Texts, offset: int, text: str, *, final: bool = False, stream: str = "text") -> bool:
    return texts.came(RUN, stream, offset, text, final=final)


def taken(texts: Texts) -> list[tuple[str, int, str, bool]]:
    found = []
    while (chunk := texts.take()) is not None:
        found.append((chunk.stream, chunk.offset, chunk.text, chunk.final))
    return found


def test_parts_are_handed_out_as_they_come() -> None:
    texts = Texts()
    for offset, part in ((0, "ab"), (2, "cd")):
        assert came(texts, offset, part)
        assert taken(texts) == [("text", offset, part, False)]
    assert came(texts, 4, "", final=True)
    assert taken(texts) == [("text", 4, "", True)]


def test_what_a_follower_has_is_dropped_and_the_rest_of_a_part_taken() -> None:
    texts = Texts()
    came(texts, 0, "Grü")
    came(texts, 0, "Grü")
    assert taken(texts) == [("text", 0, "Grü", False)]
    came(texts, 0, f"Grüße {ROCKET}")
    came(texts, 2, "ü")
    assert taken(texts) == [("text", 3, f"ße {ROCKET}", False)]


def test_a_part_behind_a_hole_is_not_taken_until_another_fills_it() -> None:
    texts = Texts()
    came(texts, 0, "ab")
    assert not came(texts, 4, "ef")
    assert came(texts, 2, "cdef")
    assert taken(texts) == [("text", 0, "abcdef", False)]


def test_the_event_completes_a_stream_and_nothing_follows_it() -> None:
    texts = Texts()
    came(texts, 0, "ab")
    assert texts.completed(RUN, {"stream": "text", "text": "abcd"})
    assert taken(texts) == [("text", 0, "abcd", True)]
    assert texts.completed(RUN, {"stream": "text", "text": "abcd"})
    came(texts, 2, "cd", final=True)
    came(texts, 0, "abcd")
    assert taken(texts) == []


def test_the_event_of_a_stream_that_was_never_seen_brings_all_of_it() -> None:
    texts = Texts()
    texts.completed(RUN, {"stream": "text", "text": "abcd", "partial": True})
    assert taken(texts) == [("text", 0, "abcd", True)]


@pytest.mark.parametrize("data", [{}, {"stream": "text"}, {"text": "a"}, {"stream": 1, "text": "a"}])
def test_an_event_that_is_none_of_a_stream_changes_nothing(data: dict[str, object]) -> None:
    texts = Texts()
    assert not texts.completed(RUN, data)
    assert not texts


def test_streams_and_runs_are_kept_apart() -> None:
    texts = Texts()
    came(texts, 0, "a")
    came(texts, 0, "b", stream="other")
    texts.came(RunId("run_2"), "text", 0, "c", final=False)
    assert [chunk[2] for chunk in taken(texts)] == ["a", "b", "c"]


def test_chunks_of_a_stream_that_wait_become_one() -> None:
    texts = Texts()
    for number in range(1_000):
        came(texts, number, "x")
    came(texts, 1_000, "", final=True)
    assert taken(texts) == [("text", 0, "x" * 1_000, True)]


def test_streams_that_are_known_are_bounded_and_the_longest_untouched_is_forgotten() -> None:
    texts = Texts()
    for number in range(KNOWN_STREAMS + 1):
        came(texts, 0, "a", stream=f"s{number}")
        taken(texts)
    came(texts, 0, "a", stream=f"s{KNOWN_STREAMS}")
    assert taken(texts) == []
    came(texts, 0, "a", stream="s0")
    assert taken(texts) == [("s0", 0, "a", False)], "forgotten, so it is new"


def test_text_that_an_application_does_not_take_is_let_go_and_brought_by_its_event() -> None:
    texts = Texts()
    part = "x" * (PENDING_CODE_POINTS // 4)
    for number in range(4):
        came(texts, 0, part, stream=f"s{number}")
    assert texts.overflowing() is None
    came(texts, 0, "y", stream="s4")
    left_out = texts.overflowing()
    assert left_out is not None
    assert (left_out.stream, left_out.offset) == ("s0", 0)
    assert texts.overflowing() is None
    assert not came(texts, len(part), "more", stream="s0"), "it does not begin where the application stands"
    taken(texts)
    texts.completed(RUN, {"stream": "s0", "text": part + "more"})
    assert taken(texts) == [("s0", 0, part + "more", True)]


def test_a_chunk_says_what_it_is() -> None:
    chunk = Chunk(run=RUN, stream="text", offset=0, text="a")
    assert not chunk.final
