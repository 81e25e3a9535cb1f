"""The table of metrics: complete, well named, read, added up, written for Prometheus, documented."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from eventbus.breaker import BreakerState
from eventbus.ids import NodeName
from eventbus.publishing.receipt import PublishStatistics
from eventbus.store import GapReason
from gateway.counters import Counters
from gateway.metrics import (
    METRICS,
    LoopLag,
    Measured,
    MetricType,
    Snapshot,
    exposition,
    kept_for_good,
    merged,
    metrics_page,
    pack,
    snapshot,
    unpack,
)
from gateway.tally import Tallied
from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
CONNECTED = {"connections": 2, "primaries": 1, "primaries_reached": 1, "slots_away": 0}
_FORBIDDEN_LABELS = {"user", "session", "run", "thread", "connection", "event", "entry", "address"}


def statistics(**given: object) -> PublishStatistics:
    names = {one.name for one in dataclasses.fields(PublishStatistics)}
    values: dict[str, object] = {**dict.fromkeys(names, 0), "breaker": BreakerState.CLOSED, **given}
    return PublishStatistics(**values)  # type: ignore[arg-type]


@dataclass
class FakeNode:
    """A node as the table reads it."""

    name: NodeName = field(default=NodeName("n1"))
    counters: Counters = field(default_factory=Counters)
    started_ms: int = 1_700_000_000_500
    connections: int = 3
    sessions: int = 2
    users: int = 1
    draining: bool = False
    store_failed_ms: int = 0
    problem: str | None = None
    watch_late_ms: int = 1_500
    webhook_breaker: BreakerState = BreakerState.CLOSED
    publishing: PublishStatistics = field(default_factory=statistics)
    lag: LoopLag = field(default_factory=LoopLag)
    waiting: Mapping[str, int] = field(default_factory=lambda: {"reads": 4, "attaches": 5})
    tallied: Tallied | None = None
    link: Mapping[str, int] = field(default_factory=lambda: CONNECTED)
    handshakes_waiting: int = 0
    traces_left_out: int = 0

    def not_ready(self) -> str | None:
        return self.problem


def scraped(figures: Snapshot) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What Prometheus reads: name and labels -> value."""
    body, media_type = exposition(figures)
    assert media_type.startswith("text/plain")
    families = text_string_to_metric_families(body.decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_every_counter_of_a_node_is_a_metric_under_its_own_name() -> None:
    rows = {metric.name for metric in METRICS if metric.type is not MetricType.GAUGE}
    assert {one.name for one in dataclasses.fields(Counters)} <= rows


def test_names_units_and_labels_follow_the_rules() -> None:
    assert len({metric.full_name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", metric.name)
        assert re.fullmatch(r"eventbus_[a-z_]+", metric.full_name)
        assert not metric.name.endswith(("_ms", "_total", "_milliseconds"))
        assert not _FORBIDDEN_LABELS & set(metric.labels)
        assert metric.help.endswith(".")
        assert not metric.known or len(metric.labels) == 1


@pytest.mark.requirement("R29")
def test_figures_of_a_node_are_scraped() -> None:
    node = FakeNode(problem="deaf", store_failed_ms=9, publishing=statistics(breaker=BreakerState.OPEN, retries=7))
    node.counters.events_delivered = 12
    node.counters.gaps["trimmed"] += 2
    node.counters.connections_closed[4001] += 6
    node.counters.run_breaches["thinking"] += 3
    found = scraped(snapshot(node))
    assert found["eventbus_events_delivered_total", ()] == 12
    assert found["eventbus_gaps_total", (("reason", "trimmed"),)] == 2
    assert found["eventbus_connections_closed_total", (("code", "4001"),)] == 6
    assert found["eventbus_run_breaches_total", (("deadline", "thinking"),)] == 3
    assert found["eventbus_run_breaches_total", (("deadline", "agent"),)] == 0
    assert found["eventbus_watch_late_seconds", (("node", "n1"),)] == 1.5
    assert found["eventbus_webhook_breaker", (("node", "n1"), ("state", "closed"))] == 1
    assert found["eventbus_connections", ()] == 3
    assert found["eventbus_backlog", (("kind", "attaches"),)] == 5
    assert found["eventbus_ready", (("node", "n1"),)] == 0
    assert found["eventbus_store_up", (("node", "n1"),)] == 0
    assert found["eventbus_publish_retries_total", ()] == 7
    assert found["eventbus_publish_breaker", (("node", "n1"), ("state", "open"))] == 1
    assert found["eventbus_publish_breaker", (("node", "n1"), ("state", "closed"))] == 0
    assert found["eventbus_start_time_seconds", (("node", "n1"),)] == 1_700_000_000.5
    assert found["eventbus_resident_memory_bytes", (("node", "n1"),)] > 1_000_000
    assert found["eventbus_cpu_seconds_total", (("node", "n1"),)] > 0


@pytest.mark.requirement("R29", "R32")
def test_a_part_of_the_store_that_is_away_shows_beside_the_rest_that_answers() -> None:
    found = scraped(snapshot(FakeNode(link={"primaries": 4, "primaries_reached": 3, "slots_away": 4_096})))
    assert found["eventbus_store_up", (("node", "n1"),)] == 1
    assert found["eventbus_store_primaries", (("node", "n1"),)] == 4
    assert found["eventbus_store_primaries_reached", (("node", "n1"),)] == 3
    assert found["eventbus_store_away_ratio", (("node", "n1"),)] == 0.25


def test_a_store_without_connections_has_no_primaries_to_tell_of() -> None:
    assert "eventbus_store_away_ratio" not in {name for name, _ in scraped(snapshot(FakeNode(link={})))}


def test_a_healthy_node_is_ready_and_its_store_up() -> None:
    found = scraped(snapshot(FakeNode()))
    assert found["eventbus_ready", (("node", "n1"),)] == 1
    assert found["eventbus_store_up", (("node", "n1"),)] == 1
    assert found["eventbus_draining", (("node", "n1"),)] == 0


@pytest.mark.requirement("R29")
def test_a_counter_that_never_rose_is_there_with_zero_so_that_its_first_rise_is_seen() -> None:
    found = scraped(snapshot(FakeNode()))
    for reason in GapReason:
        assert found["eventbus_gaps_total", (("reason", reason),)] == 0
    assert found["eventbus_events_redelivered_total", ()] == 0


def test_figures_of_several_nodes_are_added_and_those_by_node_stand_side_by_side() -> None:
    one, two = FakeNode(), FakeNode(name=NodeName("n2"), problem="deaf")
    one.counters.gaps["trimmed"] = 1
    two.counters.gaps["trimmed"] = 2
    found = scraped(merged([snapshot(one), snapshot(two)]))
    assert found["eventbus_gaps_total", (("reason", "trimmed"),)] == 3
    assert found["eventbus_connections", ()] == 6
    assert found["eventbus_ready", (("node", "n1"),)] == 1
    assert found["eventbus_ready", (("node", "n2"),)] == 0


def test_what_remains_of_an_ended_process_are_its_counters() -> None:
    node = FakeNode()
    node.counters.events_acked = 5
    kept = kept_for_good(snapshot(node))
    assert kept["eventbus_events_acked_total", ()] == 5
    assert ("eventbus_connections", ()) not in kept
    assert not [labels for (_, labels) in kept if "n1" in labels]


def test_a_snapshot_survives_its_journey_as_json() -> None:
    figures = snapshot(FakeNode())
    assert unpack(pack(figures)) == figures


def test_openmetrics_is_spoken_when_it_is_asked_for() -> None:
    body, media_type = exposition(snapshot(FakeNode()), "application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_metrics_of_the_parent_are_written_only_where_there_is_one() -> None:
    alone, _ = exposition(snapshot(FakeNode()))
    assert b"eventbus_worker_up" not in alone
    with_parent, _ = exposition(merged([snapshot(FakeNode()), {("eventbus_worker_up", ("n1",)): 1.0}]))
    assert b'eventbus_worker_up{node="n1"} 1.0' in with_parent


async def test_loop_lag_tells_the_worst_delay_to_all_who_ask() -> None:
    lag = LoopLag()
    assert lag.worst_s == 0
    lag.start()
    try:
        deadline_s = asyncio.get_running_loop().time() + 0.25
        while asyncio.get_running_loop().time() < deadline_s:
            pass  # nothing else can run
        assert 0.1 <= lag.worst_s < 5
        await until(lambda: asyncio.get_running_loop().time() > deadline_s + 0.15)
        assert 0.1 <= lag.worst_s < 5
    finally:
        lag.stop()


def test_the_page_of_metrics_is_up_to_date() -> None:
    """When this fails: python -m gateway.metrics > docs/metrics.md."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert page == metrics_page()
    for metric in METRICS:
        assert f"| `{metric.full_name}` |" in page


def test_the_page_is_printed_by_its_module() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "gateway.metrics"]
    made = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True, timeout=30)
    assert made.stdout == metrics_page()


def test_a_client_that_closes_with_any_number_makes_no_label_of_it() -> None:
    """Else one client could make four thousand series, and 1011, which is never sent, would look like a defect."""
    node = FakeNode()
    for code in (1011, 3999, 4321, 4001):
        node.counters.connections_closed[code] += 1
    found = scraped(snapshot(node))
    assert found["eventbus_connections_closed_total", (("code", "other"),)] == 3
    assert found["eventbus_connections_closed_total", (("code", "4001"),)] == 1
    assert ("eventbus_connections_closed_total", (("code", "1011"),)) not in found


def as_measured(node: FakeNode) -> Measured:
    """Holds the fake against the Protocol, for mypy."""
    return node
