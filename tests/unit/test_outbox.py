"""The frames of a server, and what waits for one connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from gateway.transport.outbox import (
    TOO_LARGE,
    Outbox,
    binary_frame,
    close_frame,
    frame_size,
    ping_frame,
    pong_frame,
    text_frame,
)
from tests.support.raw_websocket import client_frame

LENGTHS = [0, 1, 125, 126, 127, 65535, 65536, 70000]


@pytest.mark.parametrize("length", LENGTHS)
def test_data_frames_are_what_the_websockets_library_builds(length: int) -> None:
    payload = b"x" * length
    assert text_frame(payload) == Frame(Opcode.TEXT, payload).serialize(mask=False)
    assert binary_frame(payload) == Frame(Opcode.BINARY, payload).serialize(mask=False)


@pytest.mark.parametrize("payload", [b"", b"1", b"x" * 125])
def test_control_frames_are_what_the_websockets_library_builds(payload: bytes) -> None:
    assert ping_frame(payload) == Frame(Opcode.PING, payload).serialize(mask=False)
    assert pong_frame(payload) == Frame(Opcode.PONG, payload).serialize(mask=False)


def test_control_frame_above_125_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="126"):
        ping_frame(b"x" * 126)


def test_close_frame_carries_code_and_reason() -> None:
    assert close_frame(4001, "draining") == b"\x88\x0a\x0f\xa1draining"
    assert close_frame(None) == b"\x88\x00"


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 5000])
def test_close_code_that_may_not_stand_in_a_frame_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match=str(code)):
        close_frame(code)


@given(st.text(max_size=200))
def test_close_reason_fits_and_stays_valid_utf8(reason: str) -> None:
    frame = close_frame(4001, reason)
    assert len(frame) <= 127
    assert reason.encode("utf-8", "replace").decode().startswith(frame[4:].decode())


def test_close_reason_of_a_lone_surrogate_is_sent_as_a_question_mark() -> None:
    assert close_frame(4001, "a\ud800b")[4:] == b"a?b"


@pytest.mark.parametrize("length", LENGTHS)
def test_size_of_a_frame_is_known_once_its_length_is_there(length: int) -> None:
    frame = client_frame(1, b"x" * length)
    header = len(frame) - length - 4
    for cut in range(header):
        assert frame_size(frame[:cut], 0, 100_000) == 0
    assert frame_size(frame[:header], 0, 100_000) == len(frame)
    assert frame_size(b"abc" + frame + b"behind", 3, 100_000) == len(frame)


def test_size_above_the_limit_is_told_before_the_payload_comes() -> None:
    frame = client_frame(1, b"x" * 1001)
    assert frame_size(frame[:4], 0, 1001) == len(frame)
    assert frame_size(frame[:4], 0, 1000) == TOO_LARGE
    assert frame_size(b"\x81\xff" + b"\xff" * 8, 0, 65536) == TOO_LARGE


def test_frame_without_a_mask_is_handed_on_before_its_payload() -> None:
    assert frame_size(b"\x81\x7d", 0, 65536) == 2
    assert frame_size(b"\x81\x7f" + b"\xff" * 8, 0, 65536) == 10


def test_outbox_gives_all_frames_as_one_piece_in_order() -> None:
    outbox = Outbox(0)
    assert not outbox
    for frame in (b"one", b"two", b"three"):
        outbox.append(frame)
    assert outbox
    assert outbox.queued_bytes == 11
    assert outbox.take() == b"onetwothree"
    assert outbox.queued_bytes == 0
    assert outbox.take() == b""


def test_dropped_frames_are_counted_and_gone() -> None:
    outbox = Outbox(0)
    outbox.append(b"12345")
    assert outbox.drop() == 5
    assert outbox.take() == b""
    assert outbox.queued_bytes == 0


def test_backlog_counts_what_waits_here_and_in_the_transport() -> None:
    outbox = Outbox(0)
    outbox.append(b"x" * 10)
    outbox.take()
    outbox.append(b"x" * 5)
    assert outbox.observe(7, 0).waiting_bytes == 12


@pytest.mark.requirement("R9")
def test_stall_grows_only_while_nothing_goes_away() -> None:
    outbox = Outbox(0)
    assert outbox.observe(0, 5_000).stalled_ms == 0
    outbox.append(b"x" * 100)
    outbox.take()
    outbox.observe(100, 6_000)
    assert outbox.observe(100, 9_000).stalled_ms == 4_000  # since the last look at which nothing waited
    outbox.append(b"x" * 50)  # more that waits is no progress
    assert outbox.observe(100, 10_000).stalled_ms == 5_000
    outbox.take()
    assert outbox.observe(150, 11_000).stalled_ms == 6_000
    assert outbox.observe(149, 12_000).stalled_ms == 0  # one byte went
    assert outbox.observe(149, 13_000).stalled_ms == 1_000
    assert outbox.observe(0, 14_000).stalled_ms == 0


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=20), st.just(None)), max_size=50))
def test_no_byte_is_lost_or_counted_twice(steps: list[bytes | None]) -> None:
    outbox, given_bytes, taken = Outbox(0), b"", b""
    for step in steps:
        if step is None:
            taken += outbox.take()
        else:
            given_bytes += step
            outbox.append(step)
        assert outbox.queued_bytes == len(given_bytes) - len(taken)
    assert taken + outbox.take() == given_bytes
