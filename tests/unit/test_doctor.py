"""The doctor's tries, over a store in memory that works, fails or is deaf."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from eventbus.clock import SystemClock
from eventbus.config import Settings, StoreSettings
from eventbus.doctor import DOCTOR_USER, short_lived, try_node, try_readiness, try_store
from eventbus.doctor.server_checks import Check, CheckState
from eventbus.doctor.servers import look_at_nodes, look_at_servers
from eventbus.errors import StoreError, StoreMisconfigured, StoreUnavailable
from eventbus.store import Appended, NodeRecord, StoreInfo
from eventbus.store.waiting import PartitionFigures
from eventbus.testing import MemoryStore


async def tried(store: MemoryStore) -> Check:
    (check,) = await try_store(store, SystemClock())
    return check


async def test_a_store_that_works_is_ok_and_keeps_no_session_of_the_try() -> None:
    store = MemoryStore()
    check = await tried(store)
    assert (check.state, check.advice) == (CheckState.OK, "")
    assert list(await store.sessions(DOCTOR_USER)) == []
    assert list(await store.dead_letter_partitions()) == []


async def test_tries_side_by_side_do_not_disturb_each_other() -> None:
    store = MemoryStore()
    checks = await asyncio.gather(*(tried(store) for _ in range(20)))
    assert {check.state for check in checks} == {CheckState.OK}


class _Failing(MemoryStore):
    """A store whose call of one name is refused."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._refused = name

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name == object.__getattribute__(self, "_refused"):
            return _refuse
        return super().__getattribute__(name)


async def _refuse(*_arguments: object, **_more: object) -> None:
    raise StoreMisconfigured("NOPERM no rights")


@pytest.mark.parametrize(
    "call, step",
    [
        ("listen", "subscribe"),
        ("attach", "attach"),
        ("append", "append"),
        ("read_new", "read"),
        ("read_pending", "pending"),
        ("redeliver", "redelivery"),
        ("ack", "ack"),
        ("dead_letter", "dead-letter"),
        ("heartbeat", "renew"),
        ("probe", "probe"),
        ("detach", "detach"),
        ("put_ticket", "ticket"),
        ("users", "look"),
    ],
)
async def test_a_right_that_is_missing_is_told_with_the_step_that_needs_it(call: str, step: str) -> None:
    check = await tried(_Failing(call))
    assert check.state is CheckState.PROBLEM
    assert step in check.found.partition(":")[0]
    assert "NOPERM" in check.found
    assert check.advice


class _Forgetful(MemoryStore):
    """A store that says that it has stored, and has not."""

    async def append(self, events: Any, durability: Any = None) -> list[Appended | StoreError]:
        made = list(await super().append(events))
        self.trim(DOCTOR_USER, 0)
        return made


async def test_an_event_that_is_stored_and_not_there_is_a_problem() -> None:
    check = await tried(_Forgetful())
    assert check.state is CheckState.PROBLEM
    assert "not among what was read" in check.found


async def test_the_try_shortens_no_life_that_others_share() -> None:
    usual = StoreSettings()
    short = short_lived(usual)
    assert (short.dedupe_ms, short.dead_letter_ttl_ms) == (usual.dedupe_ms, usual.dead_letter_ttl_ms)
    assert short.retention_ms < usual.retention_ms
    assert short.session_ttl_ms <= short.retention_ms
    smallest = StoreSettings(retention_ms=1_000)
    assert short_lived(smallest).retention_ms == 1_000


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port of this machine on which nobody listens, and which nobody else can take."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


async def test_a_node_that_nobody_runs_does_not_answer(silent_port: int) -> None:
    check = await try_readiness(f"ws://127.0.0.1:{silent_port}/v1/connect")
    assert (check.state, check.check) == (CheckState.PROBLEM, "readyz")
    assert "does not answer" in check.found


async def test_a_path_through_no_node_ends_in_time(silent_port: int) -> None:
    url = f"http://127.0.0.1:{silent_port}"
    check = await try_node(url, lambda user: "token", MemoryStore(), SystemClock(), timeout_ms=200)
    assert check.state is CheckState.PROBLEM
    assert "within 200 ms" in check.found


# --- a Cluster of which one primary is away ---------------------------------------------------------------------------


class _PartAway(MemoryStore):
    """Of every three partitions the server of one does not answer."""

    away = 3

    async def infos(self) -> Sequence[StoreInfo]:
        raise StoreUnavailable("no connection to 10.0.0.3:6379")

    async def partition_figures(self, partitions: Sequence[int]) -> Sequence[PartitionFigures | StoreError]:
        answers = await super().partition_figures(partitions)
        return [StoreUnavailable("away") if number % self.away == 0 else one for number, one in enumerate(answers)]

    async def nodes(self) -> Sequence[NodeRecord]:
        raise StoreUnavailable("no connection to 10.0.0.3:6379")


@pytest.mark.requirement("R27", "R32")
async def test_while_one_primary_is_away_the_doctor_says_which_and_for_how_many_partitions() -> None:
    store = _PartAway()
    servers, partitions = await look_at_servers(store, Settings(), SystemClock())
    assert (servers.check, servers.state, "10.0.0.3:6379" in servers.found) == ("servers", CheckState.PROBLEM, True)
    assert (partitions.state, "342 of 1,024" in partitions.found) == (CheckState.PROBLEM, True)
    nodes = await look_at_nodes(store)
    assert (nodes.state, "can not be looked at" in nodes.found) == (CheckState.PROBLEM, True)


async def test_where_no_server_answers_nothing_is_judged() -> None:
    store = _PartAway()
    store.away = 1
    with pytest.raises(StoreUnavailable):
        await look_at_servers(store, Settings(), SystemClock())
