"""The waits of redelivery, and the settings behind them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus.errors import ConfigError
from eventbus.ids import EntryId
from eventbus.redelivery import MAX_NACK_DELAY_MS, RedeliveryPolicy, ack_wait_ms, nack_wait_ms

ENTRY = EntryId("1732190000000-0")
PLAIN = RedeliveryPolicy(ack_timeout_ms=1_000, nack_wait_ms=100, max_wait_ms=5_000, jitter=0)


@pytest.mark.requirement("R3")
def test_ack_waits_double_up_to_the_longest() -> None:
    assert [ack_wait_ms(PLAIN, attempts, ENTRY) for attempts in range(1, 6)] == [1_000, 2_000, 4_000, 5_000, 5_000]


@pytest.mark.requirement("R3")
def test_nack_waits_double_up_to_the_longest() -> None:
    waits = [nack_wait_ms(PLAIN, nacks, ENTRY, None) for nacks in range(1, 8)]
    assert waits == [100, 200, 400, 800, 1_600, 3_200, 5_000]


@pytest.mark.parametrize("asked_ms, waits_ms", [(0, 0), (1, 1), (3_600_000, 3_600_000), (10**12, MAX_NACK_DELAY_MS)])
def test_nack_that_asks_for_a_delay_gets_it_up_to_an_hour(asked_ms: int, waits_ms: int) -> None:
    assert nack_wait_ms(RedeliveryPolicy(), 1, ENTRY, asked_ms) == waits_ms


def test_first_wait_is_never_shorter_than_the_ack_timeout_even_above_the_longest_wait() -> None:
    policy = RedeliveryPolicy(ack_timeout_ms=600_000, max_wait_ms=300_000, jitter=0)
    assert ack_wait_ms(policy, 1, ENTRY) == ack_wait_ms(policy, 9, ENTRY) == 600_000


@given(attempts=st.integers(1, 10**9), entry=st.integers(0, 2**63), jitter=st.floats(0, 1))
def test_jitter_adds_at_most_its_share_and_is_the_same_each_time(attempts: int, entry: int, jitter: float) -> None:
    policy = RedeliveryPolicy(ack_timeout_ms=1_000, max_wait_ms=8_000, jitter=jitter)
    wait_ms = ack_wait_ms(policy, attempts, EntryId(f"{entry}-0"))
    base_ms = min(1_000 * 2 ** min(attempts - 1, 20), 8_000)
    assert base_ms <= wait_ms <= base_ms * (1 + jitter)
    assert wait_ms == ack_wait_ms(policy, attempts, EntryId(f"{entry}-0"))


def test_jitter_spreads_what_stalled_together() -> None:
    policy = RedeliveryPolicy(ack_timeout_ms=10_000)
    waits = {ack_wait_ms(policy, 1, EntryId(f"{1732190000000 + ms}-0")) for ms in range(1_000)}
    assert len(waits) > 500
    assert max(waits) - min(waits) > 1_800


@pytest.mark.requirement("R3")
@pytest.mark.parametrize(
    "field, value",
    [
        ("ack_timeout_ms", 0),
        ("nack_wait_ms", 0),
        ("max_wait_ms", -1),
        ("max_deliveries", 2),
        ("jitter", -0.1),
        ("jitter", 1.1),
    ],
)
def test_setting_that_makes_no_sense_is_refused_with_its_name(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field) as raised:
        RedeliveryPolicy(**{field: value})  # type: ignore[arg-type]
    assert raised.value.field == field


def test_defaults_are_good() -> None:
    assert RedeliveryPolicy().max_deliveries >= 3
