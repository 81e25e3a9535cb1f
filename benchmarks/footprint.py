"""What an installation takes in Redis, in bytes: filled as nodes and publishers fill it, and read off the server.

Bytes are the same on a busy machine as on an idle one. So these coefficients are measured anew wherever the tests run,
and the model of `benchmarks.capacity` is held against a server that holds something else than what they were made of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from benchmarks.capacity import Bytes
from benchmarks.events import padding
from benchmarks.raw import Raw
from eventbus.clock import SystemClock, new_event_id
from eventbus.config import StoreSettings
from eventbus.errors import StoreError
from eventbus.event import encode_envelope, make_event
from eventbus.ids import ConnectionId, NodeName, SessionId, UserId
from eventbus.store import AckRequest, Append, Attach, Attached, AttachMode, EntryFacts, Fence, ReadRequest, Start
from eventbus.store.keys import Keys
from eventbus.store.redis_store import RedisStore

__all__ = ["Fill", "Taken", "filled_bytes", "measure"]

T = TypeVar("T")

FACTS: Final = EntryFacts("bench", False, False)
USERS: Final = 400
ROUNDS: Final = 24
PARTITIONS: Final = 4
"""Few, so that what a partition takes by itself does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """What a server is filled with.

    Attributes:
        users: how many.
        events: of each user; one of each user at a time, as they come in life.
        body_bytes: the envelope of an event.
        sessions: of each user; all of them are live.
        acked: whether they read and ack each event as it comes; else they read none.
    """

    users: int = USERS
    events: int = 1
    body_bytes: int = 300
    sessions: int = 0
    acked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What came by a fill, in bytes.

    Attributes:
        keys: what all keys take: exact.
        allocated: what the server has allocated besides buffers: with its tables, which grow by doubling.
    """

    keys: int
    allocated: int


def filled_bytes(url: str, fill: Fill) -> Taken:
    """Empty the server, fill it, and return what came by it."""
    with Raw(url) as raw:
        raw.pipeline([("FLUSHALL", "SYNC")])
        return asyncio.run(_fill(raw, url, fill))


def measure(url: str) -> Bytes:
    """Measure the coefficients on a server, which is emptied."""

    def each(**fill: int | bool) -> float:
        return filled_bytes(url, Fill(**fill)).keys / USERS  # type: ignore[arg-type] # the fields as they are named

    events = ROUNDS - 4
    first = each(events=4)
    more = each(events=ROUNDS)
    dedupe = _dedupe_bytes(url)
    large = each(events=ROUNDS, body_bytes=1_300)
    one = each(events=ROUNDS, sessions=1)
    two = each(events=ROUNDS, sessions=2)
    acked = each(events=ROUNDS, sessions=1, acked=True)
    by_body = (large - more) / ROUNDS / 1_000
    event = (more - first) / events - dedupe - 300 * by_body
    return Bytes(
        user=round(first - 4 * (event + dedupe + 300 * by_body)),
        event=max(0, round(event)),  # short ones share a node of the stream, so that the line may begin below nothing
        event_byte=round(by_body, 2),
        dedupe=round(dedupe),
        session=round(one - more),
        further_session=round(two - one),
        ack=round((acked - one) / ROUNDS),
    )


def _dedupe_bytes(url: str) -> float:
    """What the server takes for an event id that it remembers, in the installation that stands there."""
    keys = Keys(StoreSettings().namespace, PARTITIONS)
    names = [name for number in range(PARTITIONS) for name in _buckets(keys, number)]
    with Raw(url) as raw:
        taken = raw.pipeline([("MEMORY", "USAGE", name, "SAMPLES", 0) for name in names])
        counts = raw.pipeline([("HLEN", name) for name in names])
    return float(sum(one or 0 for one in taken) / sum(counts))


def _buckets(keys: Keys, number: int) -> tuple[str, str]:
    partition = keys.partition(number)
    return partition.bucket_even, partition.bucket_odd


async def _fill(raw: Raw, url: str, fill: Fill) -> Taken:
    settings = StoreSettings(partitions=PARTITIONS)
    store = RedisStore(url, settings)
    clock = SystemClock()
    users = [UserId(f"user{number:06}") for number in range(fill.users)]
    fences = [
        Fence(user=user, session=SessionId(f"session-{number:02}"), connection=ConnectionId(f"{number:032x}"))
        for user in users
        for number in range(fill.sessions)
    ]
    pad = padding(fill.body_bytes)
    try:
        # Whatever a server, its scripts and its partitions take once.
        await store.append([_event(clock, UserId(f"warm{number}"), pad) for number in range(32)])
        before = _look(raw)
        for attached in await asyncio.gather(*(store.attach(_attach(fence)) for fence in fences)):
            assert isinstance(attached, Attached), attached
        for _ in range(fill.events):
            _good(await store.append([_event(clock, user, pad) for user in users]))
            if fill.acked:
                await _ack(store, fences)
        after = _look(raw)
        return Taken(keys=after.keys - before.keys, allocated=after.allocated - before.allocated)
    finally:
        await store.aclose()


def _look(raw: Raw) -> Taken:
    """What is taken now: the keys exactly, for `used_memory` moves by megabytes with buffers that come and go."""
    names, text = raw.pipeline([("KEYS", "*"), ("INFO", "memory")])
    found = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
    passing = ("mem_clients_normal", "mem_clients_slaves", "mem_aof_buffer", "mem_replication_backlog")
    allocated = int(found["used_memory"]) - sum(int(found.get(name, 0)) for name in passing)
    taken = raw.pipeline([("MEMORY", "USAGE", name, "SAMPLES", 0) for name in names])
    return Taken(keys=sum(one or 0 for one in taken), allocated=allocated)


async def _ack(store: RedisStore, fences: Sequence[Fence]) -> None:
    reads = _good(await store.read_new([ReadRequest(fence=fence, count=16) for fence in fences]))
    acks = [
        AckRequest(
            user=fence.user,
            session=fence.session,
            entries=[entry.id for entry in read.entries],
            facts=[FACTS] * len(read.entries),
            connection=fence.connection,
        )
        for fence, read in zip(fences, reads, strict=True)
    ]
    assert sum(_good(await store.ack_many(acks))) == len(fences)


def _attach(fence: Fence) -> Attach:
    return Attach(
        fence=fence,
        node=NodeName("node-1"),
        mode=AttachMode.OPEN,
        start=Start.EARLIEST,
        cursor=None,
        epoch=None,
        live_limit=100,
        known_limit=400,
    )


def _event(clock: SystemClock, user: UserId, pad: str) -> Append:
    name = new_event_id(clock)
    data = {"t": 10**15, "n": 1, "pad": pad}
    event = make_event(id=name, type="bench", user=user, time_ms=clock.now_ms(), data=data)
    return Append(user=user, event=name, body=encode_envelope(event), type="bench")


def _good(answers: Sequence[T | StoreError]) -> list[T]:
    good = [answer for answer in answers if not isinstance(answer, StoreError)]
    assert len(good) == len(answers), [answer for answer in answers if isinstance(answer, StoreError)][:1]
    return good
