"""The deadlines of a tier: one checked hierarchy, with a sentence where it is broken."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from eventbus import Bus
from eventbus.breach import OperatorKind
from eventbus.config import Settings, Tier, TierTable
from eventbus.errors import ConfigError, ConfirmationTimeout
from eventbus.testing import ManualClock, MemoryStore
from gateway.config import NodeSettings, WatchSettings

FOUR: dict[str, Any] = {
    "agent_timeout_ms": 30_000,
    "connection_timeout_ms": 40_000,
    "live_sessions": 1,
    "frames_per_second": 1,
}
WITHIN = ("started_within_ms", "thinking_within_ms", "executing_within_ms", "completed_within_ms")


def from_file(tmp_path: Path, content: object) -> TierTable:
    file = tmp_path / "tiers.json"
    file.write_text(json.dumps(content))
    return Settings.from_env({"EVENTBUS_TIERS_FILE": str(file)}).tiers


@pytest.mark.requirement("R17")
@pytest.mark.requirement("R24")
def test_every_built_in_tier_has_the_usual_deadlines() -> None:
    for tier in TierTable().tiers:
        assert [getattr(tier, name) for name in WITHIN] == [1_000, 2_000, 3_000, 5_000]
        assert tier.confirmation_timeout_ms == tier.agent_timeout_ms


@pytest.mark.requirement("R24")
@pytest.mark.parametrize("name", [*WITHIN, "confirmation_timeout_ms"])
def test_a_deadline_above_the_agent_timeout_stops_the_start_with_both_values(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_file(tmp_path, {"pro": {name: 45_001}})
    message = str(caught.value)
    assert message.startswith("tier 'pro': ")
    assert name in message
    assert "45001" in message
    assert "agent_timeout_ms, which is 45000" in message
    assert getattr(from_file(tmp_path, {"pro": {name: 45_000}})["pro"], name) == 45_000


@pytest.mark.requirement("R24")
def test_a_shorter_agent_timeout_shortens_the_deadlines_that_are_not_given(tmp_path: Path) -> None:
    tier = from_file(tmp_path, {"free": {"agent_timeout_ms": 2_500, "started_within_ms": 700}})["free"]
    assert [getattr(tier, name) for name in WITHIN] == [700, 2_000, 2_500, 2_500]
    assert tier.confirmation_timeout_ms == 2_500


@pytest.mark.parametrize("value", [0, -1, "soon", 1.5, True, None])
def test_a_deadline_that_is_no_time_is_refused_by_its_name(tmp_path: Path, value: object) -> None:
    with pytest.raises(ConfigError, match="thinking_within_ms"):
        from_file(tmp_path, {"gold": {**FOUR, "thinking_within_ms": value}})


def test_a_tier_is_checked_also_where_it_is_made() -> None:
    with pytest.raises(ConfigError, match="started_within_ms is 30001"):
        Tier(name="gold", **FOUR, started_within_ms=30_001)


# --- the settings of the watch --------------------------------------------------------------------------------------

SECRET = "s" * 32


def refusal(**env: str) -> str:
    with pytest.raises(ConfigError) as caught:
        NodeSettings.from_env({f"EVENTBUS_{name}": value for name, value in env.items()})
    return str(caught.value)


@pytest.mark.requirement("R13")
def test_a_webhook_without_a_secret_stops_the_start() -> None:
    assert "EVENTBUS_WEBHOOK_SECRET is not" in refusal(WEBHOOK_URL="https://alerts.example.org/hook")


@pytest.mark.parametrize("url", ["alerts.example.org", "ftp://example.org", "http://", "https://a:0/", "http://a\nb/"])
def test_a_webhook_that_is_no_address_stops_the_start_and_is_not_shown(url: str) -> None:
    message = refusal(WEBHOOK_URL=url, WEBHOOK_SECRET=SECRET)
    assert "EVENTBUS_WEBHOOK_URL" in message
    assert url not in message.replace("https://alerts.example.org/hook", "")


def test_the_failure_of_the_webhook_is_not_posted_to_it() -> None:
    assert "webhook_failed" in refusal(WEBHOOK_KINDS="missed_deadline,webhook_failed")
    assert "must be" in refusal(WEBHOOK_KINDS="late")


def test_waits_of_the_webhook_keep_their_order() -> None:
    assert "2000" in refusal(WEBHOOK_RETRY_BASE_MS="2000", WEBHOOK_RETRY_MAX_MS="1999")


def test_a_webhook_is_off_unless_it_is_configured_and_its_secret_is_never_shown(tmp_path: Path) -> None:
    assert WatchSettings().webhook_url is None
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    env = {"EVENTBUS_WEBHOOK_URL": "https://h/t0ken", "EVENTBUS_WEBHOOK_SECRET_FILE": str(file)}
    watch = NodeSettings.from_env(env).watch
    assert watch.webhook_secret == SECRET.encode()
    assert OperatorKind.WEBHOOK_FAILED not in watch.webhook_kinds
    assert SECRET not in repr(watch)
    assert "t0ken" not in repr(watch)


@pytest.mark.requirement("R24")
async def test_a_wait_for_a_confirmation_that_gives_no_time_has_that_of_the_default_tier(tmp_path: Path) -> None:
    clock = ManualClock()
    tiers = from_file(tmp_path, {"free": {"confirmation_timeout_ms": 7_000}})
    async with Bus(settings=Settings(tiers=tiers), store=MemoryStore(clock=clock), clock=clock) as bus:
        receipt = await bus.publish(user="ada", type="note", data={})
        waiting = asyncio.ensure_future(receipt.wait("displayed"))
        begin_ms = clock.monotonic_ms()
        while not waiting.done():
            clock.advance(100)
            await asyncio.sleep(0)
        with pytest.raises(ConfirmationTimeout, match="7000 ms"):
            await waiting
        assert 7_000 <= clock.monotonic_ms() - begin_ms < 8_000
