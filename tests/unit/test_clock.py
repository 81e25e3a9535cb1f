"""Time and chance enter through `eventbus.clock` alone."""

from __future__ import annotations

import re
import time

from eventbus.clock import (
    Clock,
    SystemClock,
    new_connection_id,
    new_epoch,
    new_event_id,
    new_session_id,
    seconds,
)
from eventbus.ids import event_id_time_ms, parse_event_id, parse_session_id


class FixedClock:
    def now_ms(self) -> int:
        return 1_763_700_000_123

    def monotonic_ms(self) -> int:
        return 5


def test_wall_time_is_in_unix_milliseconds() -> None:
    before = int(time.time() * 1000) - 1
    now = SystemClock().now_ms()
    assert before <= now <= int(time.time() * 1000) + 1


def test_monotonic_time_is_in_milliseconds_and_never_runs_backwards() -> None:
    clock: Clock = SystemClock()
    before = int(time.monotonic() * 1000) - 1
    readings = [clock.monotonic_ms() for _ in range(1_000)]
    assert readings == sorted(readings)
    assert before <= readings[0]
    assert readings[-1] <= int(time.monotonic() * 1000) + 1


def test_milliseconds_become_seconds_in_one_place() -> None:
    assert seconds(1_500) == 1.5
    assert seconds(0) == 0.0


def test_a_new_event_id_carries_the_clocks_time_as_a_lowercase_uuid7() -> None:
    event = new_event_id(FixedClock())
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", event)
    assert event_id_time_ms(event) == 1_763_700_000_123
    assert parse_event_id(event) == event


def test_new_ids_never_repeat() -> None:
    clock = FixedClock()
    for made in (
        {new_event_id(clock) for _ in range(1_000)},
        {new_connection_id() for _ in range(1_000)},
        {new_session_id() for _ in range(1_000)},
        {new_epoch() for _ in range(1_000)},
    ):
        assert len(made) == 1_000


def test_a_connection_id_is_128_bits_and_a_session_id_is_a_valid_one() -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", new_connection_id())
    assert parse_session_id(new_session_id())
    assert re.fullmatch(r"[0-9a-f]{16}", new_epoch())
