"""Limits of a node: bounded tables, patience with bursts, and nobody limited for another's sake."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from eventbus.errors import RateLimited
from gateway.access.limits import (
    AddressConnections,
    AddressRate,
    FrameLimit,
    FrameVerdict,
    HandshakeLimit,
    TokenBucket,
    is_within,
    limited_address,
)

PROXIES = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


# --- the bucket -----------------------------------------------------------------------------------------------------
def test_a_bucket_begins_full_and_gives_no_more_than_it_has() -> None:
    bucket = TokenBucket(rate=5, capacity=3, now_ms=0)
    assert [bucket.take(0) for _ in range(4)] == [True, True, True, False]
    assert repr(bucket) == "<TokenBucket 0 of 3 at 5/s>"


def test_a_bucket_fills_at_its_rate_without_losing_fractions() -> None:
    bucket = TokenBucket(rate=3, capacity=1_000, now_ms=0)
    assert bucket.take(0, 1_000)
    for now_ms in range(1, 10_001):
        bucket.level(now_ms)
    assert bucket.level(10_000) == 30


def test_a_bucket_never_holds_more_than_its_capacity() -> None:
    bucket = TokenBucket(rate=5, capacity=3, now_ms=0)
    assert bucket.level(10**12) == 3


def test_a_clock_that_runs_backwards_gives_nothing() -> None:
    bucket = TokenBucket(rate=1, capacity=1, now_ms=10_000)
    assert bucket.take(10_000)
    assert not bucket.take(5_000)
    assert not bucket.take(10_999)
    assert bucket.take(11_000)


def test_the_wait_is_exactly_as_long_as_needed() -> None:
    bucket = TokenBucket(rate=3, capacity=10, now_ms=0)
    assert bucket.wait_ms(0) == 0
    bucket.take(0, 10)
    wait_ms = bucket.wait_ms(0)
    assert wait_ms == 334
    assert not bucket.take(wait_ms - 1)
    assert bucket.take(wait_ms)


def test_more_than_the_capacity_is_waited_for_as_the_capacity() -> None:
    assert TokenBucket(rate=1, capacity=2, now_ms=0).wait_ms(0, tokens=5) == 0


# --- client frames --------------------------------------------------------------------------------------------------
@pytest.mark.requirement("R23")
def test_ten_seconds_worth_of_frames_may_come_at_once_and_the_next_waits() -> None:
    limit = FrameLimit(20, now_ms=0)
    assert [limit.take(0) for _ in range(200)] == [FrameVerdict.READ] * 200
    assert limit.take(0) is FrameVerdict.PAUSE
    assert limit.resume_in_ms(0) == 1_000
    assert [limit.take(1_000) for _ in range(20)] == [FrameVerdict.READ] * 20
    assert limit.take(1_000) is FrameVerdict.PAUSE


@pytest.mark.requirement("R23")
def test_a_client_that_keeps_flooding_is_closed_after_30_seconds_and_not_before() -> None:
    limit = FrameLimit(20, now_ms=0)
    now_ms, verdict, first_pause_ms = 0, FrameVerdict.READ, None
    while verdict is not FrameVerdict.CLOSE:
        verdict = limit.take(now_ms)
        if verdict is FrameVerdict.PAUSE:
            first_pause_ms = now_ms if first_pause_ms is None else first_pause_ms
            now_ms += limit.resume_in_ms(now_ms)
        assert now_ms <= 60_000
    assert first_pause_ms == 0
    assert 30_000 <= now_ms < 32_000


def test_a_burst_far_above_the_rate_is_worked_off_without_a_close() -> None:
    """A client back from a tunnel acks 600 events one by one: 200 at once, the rest at the rate, and it stays."""
    limit = FrameLimit(20, now_ms=0)
    now_ms, left = 0, 600
    while left:
        verdict = limit.take(now_ms)
        assert verdict is not FrameVerdict.CLOSE
        if verdict is FrameVerdict.PAUSE:
            now_ms += limit.resume_in_ms(now_ms)
        else:
            left -= 1
    assert now_ms == 20_000


def test_bursts_with_rest_between_them_never_close() -> None:
    limit = FrameLimit(20, now_ms=0)
    for burst in range(20):
        now_ms = burst * 10_000
        verdicts = {limit.take(now_ms) for _ in range(201)}
        assert verdicts == {FrameVerdict.READ, FrameVerdict.PAUSE}


def test_a_client_at_its_rate_is_never_paused() -> None:
    limit = FrameLimit(20, now_ms=0)
    assert {limit.take(now_ms) for now_ms in range(0, 600_000, 50)} == {FrameVerdict.READ}


# --- handshakes -----------------------------------------------------------------------------------------------------
@pytest.mark.requirement("R23")
def test_one_address_gets_its_handshakes_a_second_and_is_told_when_to_come_back() -> None:
    limit = HandshakeLimit(200)
    for _ in range(200):
        limit.check("192.0.2.1", 0)
    with pytest.raises(RateLimited) as caught:
        limit.check("192.0.2.1", 0)
    assert caught.value.retry_after_ms >= 1_000
    limit.check("192.0.2.2", 0)
    limit.check("192.0.2.1", 5)


def test_the_table_of_handshakes_is_bounded_under_a_storm_of_addresses() -> None:
    limit = HandshakeLimit(1, addresses_max=100)
    for number in range(10_000):
        limit.check(f"address-{number}", 0)
        assert len(limit) <= 100


def test_a_full_table_forgets_the_longest_unseen_address_first() -> None:
    limit = HandshakeLimit(1, addresses_max=2)
    limit.check("a", 0)
    limit.check("b", 0)
    with pytest.raises(RateLimited):
        limit.check("a", 1)
    limit.check("c", 2)
    with pytest.raises(RateLimited):
        limit.check("a", 3)


def test_quiet_addresses_leave_the_table() -> None:
    limit = HandshakeLimit(10)
    for number in range(50):
        limit.check(f"address-{number}", 0)
    for step in range(30):
        limit.check("other", 60_000 + step * 1_000)
    assert len(limit) == 1


def test_zero_switches_the_limit_of_handshakes_off() -> None:
    limit = HandshakeLimit(0)
    for _ in range(1_000):
        limit.check("192.0.2.1", 0)
    assert len(limit) == 0


@pytest.mark.requirement("R23")
def test_the_clients_of_a_shared_proxy_are_never_limited_as_one() -> None:
    handshakes, connections = HandshakeLimit(1), AddressConnections(1)
    unnamed = limited_address("10.0.0.1", PROXIES)
    for _ in range(100):
        handshakes.check(unnamed, 0)
        connections.add(unnamed)
    for number in range(100):
        named = limited_address(f"198.51.100.{number}", PROXIES)
        handshakes.check(named, 0)
        connections.add(named)
    connections.remove(unnamed)
    assert len(connections) == 100


# --- connections ----------------------------------------------------------------------------------------------------
@pytest.mark.requirement("R23")
def test_one_address_has_its_number_of_connections_and_gets_the_next_when_one_closes() -> None:
    connections = AddressConnections(2)
    connections.add("a")
    connections.add("a")
    with pytest.raises(RateLimited):
        connections.add("a")
    connections.add("b")
    connections.remove("a")
    connections.add("a")


def test_an_address_without_connections_takes_no_room() -> None:
    connections = AddressConnections(5)
    connections.add("a")
    connections.add("a")
    connections.remove("a")
    assert len(connections) == 1
    connections.remove("a")
    assert len(connections) == 0


def test_zero_switches_the_limit_of_connections_off() -> None:
    connections = AddressConnections(0)
    for _ in range(100):
        connections.add("a")
    connections.remove("a")
    assert len(connections) == 0


# --- addresses ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "client, row",
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::9", "2001:db8:1:2::/64"),
        ("10.1.2.3", None),  # a trusted proxy that named nobody
        ("::ffff:10.1.2.3", None),
        ("fd00::1", None),
        ("", None),  # a Unix socket
        ("garbage", None),
    ],
)
def test_a_client_is_counted_by_its_address_and_a_shared_proxy_not_at_all(client: str, row: str | None) -> None:
    assert limited_address(client, PROXIES) == row


def test_without_trusted_proxies_every_address_is_a_client() -> None:
    assert limited_address("10.1.2.3", ()) == "10.1.2.3"


def test_an_address_lies_in_a_network_or_in_none() -> None:
    assert is_within("10.255.255.255", PROXIES)
    assert is_within("::ffff:10.0.0.1", PROXIES)
    assert is_within("fd12::1", PROXIES)
    assert not is_within("11.0.0.0", PROXIES)
    assert not is_within("garbage", PROXIES)
    assert not is_within("10.0.0.1", ())


# --- bytes, and what an address does ----------------------------------------------------------------------------------


@pytest.mark.requirement("R23")
def test_bytes_of_frames_are_limited_beside_their_number() -> None:
    limit = FrameLimit(1_000, now_ms=0, bytes_per_second=100, max_frame_bytes=500)
    assert [limit.take(0, 400) for _ in range(3)] == [FrameVerdict.READ, FrameVerdict.READ, FrameVerdict.PAUSE]
    wait_ms = limit.resume_in_ms(0, 400)
    assert wait_ms == 2_000, "200 of the 400 bytes are there"
    assert limit.take(wait_ms - 1, 400) is FrameVerdict.PAUSE
    assert limit.take(wait_ms, 400) is FrameVerdict.READ


@pytest.mark.requirement("R23")
def test_the_longest_frame_has_room_in_the_slowest_tier() -> None:
    limit = FrameLimit(1, now_ms=0, bytes_per_second=1, max_frame_bytes=65_536)
    assert limit.take(0, 65_536) is FrameVerdict.READ
    assert limit.take(0, 1) is FrameVerdict.PAUSE


@pytest.mark.requirement("R23")
def test_who_sends_too_many_bytes_for_30_s_is_closed() -> None:
    limit = FrameLimit(1_000, now_ms=0, bytes_per_second=1_000, max_frame_bytes=1_000)
    verdicts = [limit.take(now_ms, 300) for now_ms in range(0, 40_000, 100)]
    assert verdicts[-1] is FrameVerdict.CLOSE
    first_pause = verdicts.index(FrameVerdict.PAUSE) * 100
    assert verdicts.index(FrameVerdict.CLOSE) * 100 - first_pause == 30_000


@pytest.mark.requirement("R23")
def test_an_address_may_do_ten_seconds_worth_at_once_and_then_as_much_a_second() -> None:
    rate = AddressRate(10, "requests")
    for _ in range(100):
        rate.check("192.0.2.1", 0)
    with pytest.raises(RateLimited, match="more than 10 requests a second") as refused:
        rate.check("192.0.2.1", 0, 20)
    assert refused.value.retry_after_ms == 2_000
    rate.check("192.0.2.2", 0)
    rate.check("192.0.2.1", 2_000, 20)


def test_more_at_once_than_the_table_gives_takes_all_of_it() -> None:
    rate = AddressRate(10, "events")
    rate.check("192.0.2.1", 0, 500)
    with pytest.raises(RateLimited):
        rate.check("192.0.2.1", 0)


def test_addresses_that_ask_no_more_leave_the_table() -> None:
    rate = AddressRate(10, "requests")
    for number in range(50):
        rate.check(f"192.0.2.{number}", 0)
    for _ in range(30):
        rate.check("198.51.100.1", 20_000)
    assert len(rate) == 1
