"""What a look at all that waits costs an operator and the server: `python -m benchmarks.inspection --users 100000`.

Fills a server of its own with users who have a stream and a session that is away, of whom some have an event waiting,
and times the overview, pages of those who wait, and one user's page.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable

import click

from benchmarks.processes import cpu_ns
from eventbus import inspection
from eventbus.clock import SystemClock, new_event_id
from eventbus.embedded import EmbeddedServer
from eventbus.event import encode_envelope, make_event
from eventbus.ids import ENTRY_ZERO, ConnectionId, NodeName, SessionId, UserId
from eventbus.inspection import Timing
from eventbus.inspection.lookup import partition_of
from eventbus.store import Append, Attach, AttachMode, Fence, Start
from eventbus.store.redis_store import RedisStore

__all__ = ["fill", "main"]

BATCH = 500
ROUNDS = 9


async def fill(store: RedisStore, users: int, waiting: int) -> list[UserId]:
    """Gives so many users a session that is away and a stream; something waits for the first `waiting` of them."""
    names = [UserId(f"user-{number}") for number in range(users)]
    clock = SystemClock()
    for start in range(0, users, BATCH):
        some = names[start : start + BATCH]
        fences = [Fence(user=user, session=SessionId("tab"), connection=ConnectionId("c" * 32)) for user in some]
        await asyncio.gather(*(store.attach(_request(fence)) for fence in fences))
        await asyncio.gather(*(store.detach(fence, ENTRY_ZERO) for fence in fences))
    for start in range(0, waiting, BATCH):
        await store.append([_event(user, clock) for user in names[start : min(start + BATCH, waiting)]])
    return names


def _request(fence: Fence) -> Attach:
    return Attach(
        fence=fence,
        node=NodeName("bench"),
        mode=AttachMode.OPEN,
        start=Start.EARLIEST,
        cursor=None,
        epoch=None,
        live_limit=10,
        known_limit=40,
    )


def _event(user: UserId, clock: SystemClock) -> Append:
    event = make_event(id=new_event_id(clock), type="note", user=user, time_ms=clock.now_ms(), data={"text": "x" * 200})
    return Append(user=user, event=event.id, body=encode_envelope(event), type="note")


async def _timed(server_pid: int, name: str, look: Callable[[], Awaitable[object]]) -> None:
    """Looks some times, and prints how long it took and the CPU time of this process and of the server."""
    took = []
    own_ns, server_ns = time.process_time_ns(), cpu_ns(server_pid)
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        await look()
        took.append((time.perf_counter() - begin) * 1_000)
    own_ms = (time.process_time_ns() - own_ns) / 1e6 / ROUNDS
    server_ms = (cpu_ns(server_pid) - server_ns) / 1e6 / ROUNDS
    wall = f"median {statistics.median(took):8.1f} ms  best {min(took):8.1f} ms  most {max(took):8.1f} ms"
    click.echo(f"{name:26}  {wall}  CPU {own_ms:6.1f} ms, of the server {server_ms:6.1f} ms")


async def _measure(server: EmbeddedServer, users: int, waiting: int) -> None:
    store = RedisStore(server.url, command_timeout_ms=60_000)
    partitions = store.keys.partitions
    try:
        begin = time.perf_counter()
        names = await fill(store, users, waiting)
        click.echo(f"{users:,} users, {waiting:,} of them waiting, made in {time.perf_counter() - begin:.1f} s")
        await _timed(server.pid, "overview", lambda: inspection.overview(store, partitions=partitions))
        for count in (10, 100, 500):
            await _timed(
                server.pid,
                f"first page of {count} users",
                lambda count=count: inspection.pending_of_users(  # type: ignore[misc]
                    store, Timing(), partitions=partitions, count=count
                ),
            )
        page = await inspection.pending_of_users(store, Timing(), partitions=partitions, count=500)
        if page.cursor:
            await _timed(
                server.pid,
                "a later page of 100 users",
                lambda: inspection.pending_of_users(
                    store, Timing(), partitions=partitions, cursor=page.cursor, count=100
                ),
            )
        user = names[0]
        await _timed(
            server.pid,
            "one user's page",
            lambda: inspection.user_page(
                store, user, Timing(), partitions=partitions, partition=partition_of(user, partitions)
            ),
        )
    finally:
        await store.aclose()


@click.command(help=__doc__)
@click.option("--users", default=100_000, show_default=True, help="Users with a stream.")
@click.option("--waiting", default=10_000, show_default=True, help="Of them, those for whom an event waits.")
def main(users: int, waiting: int) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as directory, EmbeddedServer(directory) as server:
        asyncio.run(_measure(server, users, min(waiting, users)))


if __name__ == "__main__":
    main()
