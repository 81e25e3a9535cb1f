"""What `eventbus doctor` makes of a server's settings and of the nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from eventbus.config import PublishSettings, Settings
from eventbus.doctor.server_checks import (
    Check,
    CheckState,
    judge_nodes,
    judge_partitions,
    judge_server,
    judge_servers,
)
from eventbus.errors import StoreUnavailable
from eventbus.ids import NodeName
from eventbus.store import Durability, NodeRecord, StoreInfo

NOW_MS = 1_750_000_000_000
MIB = 1024 * 1024
GOOD_SETTINGS = {
    "maxmemory": "0",
    "maxmemory-policy": "noeviction",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "stream-node-max-bytes": "1024",
    "client-output-buffer-limit": "normal 0 0 0 slave 268435456 67108864 60 pubsub 268435456 67108864 60",
    "timeout": "0",
    "maxclients": "10000",
}
GOOD_FACTS = {
    "loading": "0",
    "role": "master",
    "aof_enabled": "1",
    "aof_last_write_status": "ok",
    "aof_last_bgrewrite_status": "ok",
    "rdb_last_bgsave_status": "ok",
    "connected_clients": "3",
}
OK, WARNING, PROBLEM = CheckState.OK, CheckState.WARNING, CheckState.PROBLEM


def server(settings: dict[str, str] | None = None, facts: dict[str, str] | None = None, **fields: Any) -> StoreInfo:
    values: dict[str, Any] = {
        "kind": "valkey",
        "version": "9.1.2",
        "primary": "p",
        "time_ms": NOW_MS,
        "memory_bytes": MIB,
        "replicas": 1,
        "settings": {**GOOD_SETTINGS, **(settings or {})},
        "facts": {**GOOD_FACTS, **(facts or {})},
    }
    return StoreInfo(**(values | fields))


def judged(info: StoreInfo, durability: Durability = Durability.MEMORY, **clock: int) -> dict[str, Check]:
    settings = Settings(publish=PublishSettings(durability=durability))
    checks = judge_server(info, settings, **{"now_ms": NOW_MS, "round_trip_ms": 0, **clock})
    assert len({check.check for check in checks}) == len(checks)
    return {check.check: check for check in checks}


def test_a_good_server_has_nothing_but_ok() -> None:
    checks = judged(server())
    assert {check.state for check in checks.values()} == {OK}
    assert set(checks) == {
        "version",
        "maxmemory-policy",
        "memory",
        "appendonly",
        "appendfsync",
        "persistence",
        "stream-node-max-bytes",
        "client-output-buffer-limit pubsub",
        "replicas",
        "clock",
    }


@pytest.mark.parametrize(
    "kind, version, state",
    [
        ("redis", "7.0.15", OK),
        ("redis", "6.2.9", PROBLEM),
        ("redis", "10.0", OK),
        ("valkey", "8.0.0", OK),
        ("valkey", "7.2.5", PROBLEM),
        ("memory", "0", WARNING),
    ],
)
def test_the_version_is_one_that_has_what_the_scripts_need(kind: str, version: str, state: CheckState) -> None:
    assert judged(server(kind=kind, version=version))["version"].state is state


@pytest.mark.parametrize(
    "setting, value, check, state",
    [
        ("maxmemory-policy", "allkeys-lru", "maxmemory-policy", PROBLEM),
        ("maxmemory-policy", "volatile-ttl", "maxmemory-policy", PROBLEM),
        ("maxmemory", str(2 * MIB), "memory", OK),
        ("maxmemory", str(MIB + MIB // 10), "memory", WARNING),
        ("maxmemory", str(MIB), "memory", PROBLEM),
        ("appendfsync", "always", "appendfsync", OK),
        ("appendfsync", "no", "appendfsync", WARNING),
        ("stream-node-max-bytes", "4096", "stream-node-max-bytes", WARNING),
        ("stream-node-max-bytes", "0", "stream-node-max-bytes", WARNING),
        ("timeout", "10", "timeout", WARNING),
        ("maxclients", "3", "maxclients", WARNING),
        (
            "client-output-buffer-limit",
            "normal 0 0 0 pubsub 33554432 8388608 60",
            "client-output-buffer-limit pubsub",
            WARNING,
        ),
        ("client-output-buffer-limit", "pubsub 0 0 0", "client-output-buffer-limit pubsub", OK),
    ],
)
def test_a_setting_that_costs_events_is_told_with_what_to_do(
    setting: str, value: str, check: str, state: CheckState
) -> None:
    found = judged(server({setting: value}))[check]
    assert found.state is state
    assert bool(found.advice) == (state is not OK)


@pytest.mark.parametrize("replicas, state", [(0, PROBLEM), (1, WARNING)])
def test_a_server_without_its_file_loses_events_with_a_restart(replicas: int, state: CheckState) -> None:
    checks = judged(server({"appendonly": "no"}, replicas=replicas))
    assert checks["appendonly"].state is state
    assert "appendfsync" not in checks


@pytest.mark.parametrize(
    "facts",
    [{"aof_last_write_status": "err"}, {"aof_last_bgrewrite_status": "err"}, {"loading": "1"}],
)
def test_a_server_that_can_not_write_is_a_problem(facts: dict[str, str]) -> None:
    assert judged(server(facts=facts))["persistence"].state is PROBLEM


def test_a_failed_snapshot_matters_only_where_there_are_snapshots() -> None:
    failed = {"rdb_last_bgsave_status": "err"}
    assert judged(server(facts=failed))["persistence"].state is OK
    assert judged(server({"save": "3600 1"}, failed))["persistence"].state is PROBLEM


def test_what_publishers_are_promised_the_server_must_keep() -> None:
    assert judged(server(), Durability.FSYNC)["appendfsync"].state is PROBLEM
    assert judged(server({"appendfsync": "always"}), Durability.FSYNC)["appendfsync"].state is OK
    assert judged(server(replicas=0), Durability.REPLICATED)["replicas"].state is PROBLEM
    assert judged(server(replicas=0))["replicas"].state is WARNING


def test_a_replica_is_no_place_to_publish_to() -> None:
    assert judged(server(facts={"role": "slave"}))["replicas"].state is PROBLEM


def test_settings_that_may_not_be_read_are_told_once() -> None:
    checks = judged(replace(server(), settings={}))
    assert checks["settings"].state is WARNING
    assert "maxmemory-policy" not in checks
    assert checks["appendonly"].state is OK  # INFO tells it too


@pytest.mark.parametrize(
    "ahead_ms, round_trip_ms, state",
    [
        (0, 0, OK),
        (900, 0, OK),
        (-1_500, 0, WARNING),
        (1_500, 0, WARNING),
        # The answer took so long that the clocks may be equal.
        (1_500, 4_000, OK),
        (400_000, 0, PROBLEM),
        (-400_000, 0, PROBLEM),
    ],
)
def test_the_clocks_difference_is_judged_beyond_the_doubt_of_the_round_trip(
    ahead_ms: int, round_trip_ms: int, state: CheckState
) -> None:
    info = server(time_ms=NOW_MS + ahead_ms - round_trip_ms // 2)
    assert judged(info, round_trip_ms=round_trip_ms)["clock"].state is state


def node(name: str, state: str = "ready", version: str = "1") -> NodeRecord:
    return NodeRecord(node=NodeName(name), address="h:1", version=version, state=state, started_ms=1, figures={})


@pytest.mark.parametrize(
    "nodes, state",
    [
        ([], WARNING),
        ([node("a")], OK),
        ([node("a"), node("b", "draining")], OK),
        ([node("a"), node("b", "not_ready")], WARNING),
        ([node("a", "not_ready")], PROBLEM),
        ([node("a"), node("b", version="2")], WARNING),
    ],
)
def test_nodes_are_judged_together(nodes: list[NodeRecord], state: CheckState) -> None:
    assert judge_nodes(nodes).state is state


def test_many_nodes_make_no_endless_line() -> None:
    assert "and 480 more" in judge_nodes([node(f"n{number:03}") for number in range(500)]).found


# --- a Cluster --------------------------------------------------------------------------------------------------------


def judged_all(*infos: StoreInfo) -> dict[str, Check]:
    checks = judge_servers(infos, Settings(), now_ms=NOW_MS, round_trip_ms=0)
    assert len({check.check for check in checks}) == len(checks)
    return {check.check: check for check in checks}


@pytest.mark.requirement("R27", "R32")
def test_of_a_cluster_the_worst_primary_counts_and_is_named() -> None:
    bad = server({"maxmemory-policy": "allkeys-lru"}, address="10.0.0.2:6379")
    found = judged_all(server(address="10.0.0.1:6379"), bad, server(address="10.0.0.3:6379"))
    policy = found["maxmemory-policy"]
    assert (policy.state, policy.found) == (PROBLEM, "allkeys-lru (10.0.0.2:6379)")
    assert policy.advice
    assert (found["appendonly"].state, found["appendonly"].found) == (OK, "yes")


def test_the_memory_of_each_primary_is_held_against_its_own_limit() -> None:
    limited = [server({"maxmemory": str(10 * MIB)}, memory_bytes=used * MIB, address=f"p{used}") for used in (4, 5, 6)]
    memory = judged_all(*limited)["memory"]
    assert memory.state is OK
    assert [f"(p{used})" in memory.found for used in (4, 5, 6)] == [True] * 3


def test_partitions_for_which_nobody_answers_are_a_problem() -> None:
    assert judge_partitions([object()] * 3).state is OK
    check = judge_partitions([object(), StoreUnavailable("CLUSTERDOWN Hash slot not served"), object()])
    assert (check.state, "1 of 3" in check.found, "not served" in check.found) == (PROBLEM, True, True)
