"""Asking around: Sentinels for the primary, the servers of a Cluster for the map of its slots."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final

from eventbus.errors import StoreBusy, StoreError, StoreUnavailable
from eventbus.store.answers import facts_of
from eventbus.store.connection import ask
from eventbus.store.endpoint import Endpoint
from eventbus.store.topology import Address, SlotMap
from eventbus.store.translate import Refused, translate

__all__ = ["find_primary", "is_primary", "read_map"]

# How many servers are asked at once: one that is cut off, or was frozen, tells of a cluster that is no more.
_ASKED: Final = 5
_PATIENCE_S: Final = 1.0


async def find_primary(
    sentinels: Sequence[Endpoint], service: str, *, timeout_s: float, told_by: Endpoint | None = None
) -> tuple[int, Address]:
    """Where the primary is, by the Sentinel that has seen the latest change among most of them.

    For a second or two after a failover the other Sentinels still name the old primary; a frozen one that is back
    believes them.

    Args:
        sentinels: whom to ask, all at once.
        service: the name under which they know it.
        timeout_s: longest wait for an answer.
        told_by: who has told of a change, and is to be heard.

    Returns:
        The number of the change (each failover has a higher one), and the primary.

    Raises:
        StoreUnavailable: none answered, or none knows a service of that name.
    Cancellation closes the connections. Redis: SENTINEL GET-MASTER-ADDR-BY-NAME,
    SENTINEL MASTER (`config-epoch`; its address is the old one until every replica follows the new).
    """
    problems: list[str] = []
    best: tuple[int, Address] | None = None
    answered = 0
    words = (("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service), ("SENTINEL", "MASTER", service))
    async with aclosing(_answers(sentinels, words, min(timeout_s, _PATIENCE_S))) as answers:
        async for sentinel, answer in answers:
            told_by = None if sentinel is told_by else told_by
            found, facts = (answer, None) if isinstance(answer, StoreError) else answer
            if not isinstance(found, list) or len(found) != 2 or not isinstance(facts, list):
                wrong = found if isinstance(found, Exception) else facts
                problems.append(f"{sentinel}: {wrong if isinstance(wrong, Exception) else 'knows no such service'}")
                continue
            answered += 1
            epoch = int(dict(zip(facts[::2], facts[1::2], strict=False)).get(b"config-epoch", 0))
            if best is None or epoch > best[0]:
                best = (epoch, Address(host=found[0].decode(), port=int(found[1])))
            if 2 * answered > len(sentinels) and told_by is None:
                break  # the rest may be frozen
    if best is not None:
        return best
    raise StoreUnavailable(f"no Sentinel names a primary of the service {service!r}: {'; '.join(problems)}")


async def is_primary(server: Endpoint, *, timeout_s: float) -> bool:
    """Whether a server says of itself that it is a primary; not if it does not answer. Redis: INFO, `role`."""
    try:
        (info,) = await ask(server, ("INFO", "replication"), timeout_s=min(timeout_s, _PATIENCE_S))
    except StoreError:
        return False
    return not isinstance(info, Refused) and facts_of(info, "").get("role") == "master"


async def read_map(servers: Sequence[Endpoint], *, timeout_s: float) -> tuple[int, SlotMap, list[Address]]:
    """The map of a Cluster, by the server that has seen the latest change among a few.

    Args:
        servers: those known, in any order.
        timeout_s: longest wait for their answers.

    Returns:
        The number of the latest change that the server knew of, the map, and where all servers are, replicas too: whom
        to ask the next time.

    Raises:
        StoreUnavailable: none answered, or none is in a cluster.
    Cancellation closes the connections. Redis: CLUSTER SLOTS, CLUSTER INFO.
    """
    asked = random.sample(servers, min(len(servers), _ASKED))
    best: tuple[tuple[bool, int], SlotMap, list[Address]] | None = None
    error: StoreError = StoreUnavailable("no server of the Cluster is known")
    words = (("CLUSTER", "SLOTS"), ("CLUSTER", "INFO"))
    answered = 0
    async with aclosing(_answers(asked, words, min(timeout_s, _PATIENCE_S))) as answers:
        async for server, answer in answers:
            if isinstance(answer, StoreError):
                error = answer
                continue
            answered += 1
            slots, info = answer
            if isinstance(slots, Refused) or isinstance(info, Refused):
                error = translate(slots if isinstance(slots, Refused) else info)
                continue
            facts = facts_of(info, "")
            # A server that sees no majority may be the one that is cut off.
            trusted = facts.get("cluster_state") == "ok"
            epoch = int(facts.get("cluster_current_epoch", "0"))
            try:
                told = ((trusted, epoch), SlotMap.from_slots(slots, server.address), _servers(slots, server.address))
            except ValueError as problem:
                error = StoreUnavailable(f"{server} gives no map: {problem}")
                continue
            if best is None or told[0] > best[0]:
                best = told
            if best[0][0] and 2 * answered > len(asked):
                break  # the rest may be frozen
    if best is None:
        raise error
    if not best[1].primaries:
        raise StoreBusy("Redis can not answer now: no server of the Cluster has a slot")
    return best[0][1], best[1], best[2]


def _servers(slots: Any, asked: Address) -> list[Address]:
    nodes = [node for line in slots for node in line[2:] if node[0]]
    return sorted({Address(host=node[0].decode() or asked.host, port=node[1]) for node in nodes})


async def _answers(
    servers: Sequence[Endpoint], words: tuple[tuple[str, ...], ...], timeout_s: float
) -> AsyncGenerator[tuple[Endpoint, list[Any] | StoreError], None]:
    """What each server says, as the answers come."""

    async def one(server: Endpoint) -> tuple[Endpoint, list[Any] | StoreError]:
        try:
            return server, await ask(server, *words, timeout_s=timeout_s)
        except StoreError as error:
            return server, error

    tasks = [asyncio.create_task(one(server), name="eventbus-finding") for server in servers]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
