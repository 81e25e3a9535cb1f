"""The capacity model: what grows with what, and a page that says what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks.capacity import PAGE, PARTITIONS, Bytes, Costs, Load, plan, redis_bytes, stored_events, tables
from benchmarks.report import insert
from benchmarks.roles import ROOT

pytestmark = pytest.mark.requirement("R33")

SIZE, COSTS = Bytes.read(), Costs.read()
MILLION = Load(users=1_000_000)


def test_the_page_has_the_tables_that_the_model_makes() -> None:
    page = PAGE.read_text()
    assert insert(page, tables(SIZE, COSTS)) == page, "python -m benchmarks capacity --write"


def test_twice_the_users_need_twice_of_everything() -> None:
    one, two = plan(MILLION, SIZE, COSTS), plan(replace(MILLION, users=2_000_000), SIZE, COSTS)
    for name in ("redis_bytes", "client_bits", "redis_bits", "rate", "node_processes", "primaries"):
        assert getattr(two, name) == pytest.approx(2 * getattr(one, name), rel=0.06), name


def test_memory_of_redis_grows_with_what_is_kept_and_not_with_the_peak() -> None:
    one = redis_bytes(MILLION, SIZE)
    assert redis_bytes(replace(MILLION, peak=10.0), SIZE) == one
    assert redis_bytes(replace(MILLION, retention_hours=12.0), SIZE) == pytest.approx(one / 2, rel=0.02)
    assert redis_bytes(replace(MILLION, known=3.0), SIZE) == pytest.approx(3 * one, rel=0.02)
    assert redis_bytes(replace(MILLION, records=False), SIZE) < one
    capped = replace(MILLION, events_per_user_hour=10_000.0)
    assert stored_events(capped) == 10_000


def test_an_event_that_more_sessions_get_costs_nodes_and_redis_more_and_publishers_nothing() -> None:
    one, three = plan(MILLION, SIZE, COSTS), plan(replace(MILLION, sessions=3), SIZE, COSTS)
    assert three.node_processes >= 2.9 * one.node_processes
    assert three.publisher_cores == one.publisher_cores
    assert three.client_bits == pytest.approx(3 * one.client_bits)


def test_a_small_installation_survives_the_loss_of_a_node() -> None:
    needs = plan(Load(users=100), SIZE, COSTS)
    assert (needs.node_processes, needs.node_machines, needs.primaries) == (2, 2, 1)


def test_ten_million_users_fit_into_the_partitions_when_an_hour_is_kept() -> None:
    needs = plan(Load(users=10_000_000, retention_hours=1.0, records=False), SIZE, COSTS)
    assert needs.primaries < PARTITIONS / 2


def test_the_command_answers_as_json() -> None:
    command = [sys.executable, "-m", "benchmarks", "capacity", "--users", "5000", "--json"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(told.stdout)["node_processes"] == plan(Load(users=5_000), SIZE, COSTS).node_processes
