"""Looks at the servers behind a store, for `eventbus doctor`: of a Cluster at each primary, also while one is away.

What is made of their answers is in `eventbus.doctor.server_checks`.
"""

from __future__ import annotations

from typing import Final

from eventbus.clock import Clock
from eventbus.config import Settings
from eventbus.doctor.server_checks import (
    Check,
    CheckState,
    judge_nodes,
    judge_partitions,
    judge_servers,
)
from eventbus.errors import StoreError
from eventbus.store import Store

__all__ = ["look_at_nodes", "look_at_servers"]

_ADVICE: Final = "Bring that server back, or promote its replica: what it holds is out of reach until then."


async def look_at_servers(store: Store, settings: Settings, clock: Clock) -> list[Check]:
    """Judge the servers, and whether each partition is answered for.

    Args:
        store: which may not have been asked anything yet.
        settings: what publishers were promised.
        clock: this machine's.

    Raises:
        StoreError: no server answers.
    """
    partitions = range(settings.store.partitions)
    try:
        await store.ping()  # the connection stands: the next answer shows the round trip alone
        asked_ms = clock.monotonic_ms()
        infos = await store.infos()
    except StoreError as error:
        answers = await store.partition_figures(partitions)
        if all(isinstance(one, StoreError) for one in answers):
            raise
        away = Check(check="servers", state=CheckState.PROBLEM, found=str(error), advice=_ADVICE)
        return [away, judge_partitions(answers)]
    round_trip_ms = clock.monotonic_ms() - asked_ms
    checks = judge_servers(infos, settings, now_ms=clock.now_ms(), round_trip_ms=round_trip_ms)
    if len(infos) > 1:
        checks.append(judge_partitions(await store.partition_figures(partitions)))
    return checks


async def look_at_nodes(store: Store) -> Check:
    """Judge the nodes; where the server that knows of them is away, that is the problem."""
    try:
        return judge_nodes(await store.nodes())
    except StoreError as error:
        found = f"can not be looked at: {error}"
        return Check(check="nodes", state=CheckState.PROBLEM, found=found, advice=_ADVICE)
