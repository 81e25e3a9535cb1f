"""The capacity model against a server that is filled with something else than what its coefficients were made of."""

from __future__ import annotations

import pytest

from benchmarks.capacity import Bytes, Load, redis_bytes
from benchmarks.footprint import Fill, filled_bytes

pytestmark = pytest.mark.requirement("R33")


@pytest.mark.parametrize(
    "fill",
    [
        Fill(users=200, events=40, body_bytes=300, sessions=1, acked=True),
        Fill(users=100, events=30, body_bytes=700, sessions=3, acked=True),
        Fill(users=300, events=10, body_bytes=2_000),
    ],
    ids=["one session", "three sessions", "nobody there"],
)
def test_what_an_installation_takes_in_redis_is_what_the_model_says_within_10_percent(
    server_url: str, fill: Fill
) -> None:
    """What the server has allocated in all, with its tables and without buffers, within 25 %: see docs/capacity.md."""
    size = Bytes.read()
    taken = filled_bytes(server_url, fill)
    load = Load(
        users=fill.users,
        # All of them within the time for which their ids are remembered.
        events_per_user_hour=float(fill.events),
        retention_hours=1.0,
        event_bytes=fill.body_bytes,
        sessions=fill.sessions,
        records=fill.acked,
        dedupe_ms=1_800_000,
    )
    said = redis_bytes(load, size)
    if not fill.sessions:
        said -= fill.users * (size.session - size.further_session)
    assert taken.keys == pytest.approx(said, rel=0.10)
    assert taken.allocated == pytest.approx(said, rel=0.25)
