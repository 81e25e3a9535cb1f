"""What a returned publish promises beyond the primary's memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from eventbus.errors import NotReplicated, StoreError, StoreMisconfigured
from eventbus.store.answers import server_of, settings_of
from eventbus.store.command import Command
from eventbus.store.keys import Keys, PartitionKeys
from eventbus.store.links import Links

__all__ = ["Durable"]

# The mark that is written before each WAIT; its life only tidies up.
_MARK_LIFE_MS: Final = 60_000


class _Wait:
    """The waits for the replicas of one primary: one under way, and those that share the next."""

    __slots__ = ("next", "task")

    def __init__(self) -> None:
        self.next: asyncio.Future[StoreError | str] | None = None
        self.task: asyncio.Task[None] | None = None


class Durable:
    """Asks replicas and settings whether what was stored is safe.

    Args:
        url: the installation.
        links: the data connections.
        keys: the names.
        timeout_ms: longest wait for a connection or an answer, beside what WAIT itself may take.
        replicas: how many must have the data.
        replicated_timeout_ms: longest wait for them.
    """

    def __init__(
        self, url: str, links: Links, keys: Keys, *, timeout_ms: int, replicas: int, replicated_timeout_ms: int
    ) -> None:
        # WAIT holds up its whole connection, so it has one of its own to each primary (D12), made when it is needed.
        self._waiting = Links(url, timeout_ms=timeout_ms + replicated_timeout_ms, name="eventbus-wait", eager=False)
        self._links = links
        self._keys = keys
        self._replicas = replicas
        self._timeout_ms = replicated_timeout_ms
        self._waits: dict[str, _Wait] = {}
        self._fsync_checked: set[str] = set()

    async def aclose(self) -> None:
        """Close the connections; waits under way end with `StoreUnavailable`."""
        await self._waiting.aclose()
        tasks = [wait.task for wait in self._waits.values() if wait.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def replicas_missing(self, stored: Sequence[tuple[int, str]]) -> Sequence[StoreError | None]:
        """Wait for the replicas to have everything that was stored before this call.

        Args:
            stored: partition and primary of each event.

        Returns:
            For each None when enough replicas have it, else the error that says so. WAIT bounds the loss of a failover
            and does not exclude it.
        Redis: WAIT. Calls that come while one is under way share the next one. Cancellation leaves the others alone.
        """
        # One partition stands for all of its primary: replicas take writes in order, whatever the keys.
        first = {primary: number for number, primary in reversed(stored)}
        found = dict(zip(first, await asyncio.gather(*(self._ask(*one) for one in first.items())), strict=True))
        return [found[primary] for _, primary in stored]

    async def _ask(self, primary: str, number: int) -> StoreError | None:
        wait = self._waits.setdefault(primary, _Wait())
        if wait.next is None:
            wait.next = asyncio.get_running_loop().create_future()
        asked = wait.next
        if wait.task is None or wait.task.done():
            wait.task = asyncio.get_running_loop().create_task(
                self._run(wait, primary, self._keys.partition(number)), name="eventbus-wait-batch"
            )
        answer = await asyncio.shield(asked)
        return answer if isinstance(answer, StoreError) else None

    async def _run(self, wait: _Wait, primary: str, partition: PartitionKeys) -> None:
        while wait.next is not None:
            asked, wait.next = wait.next, None
            asked.set_result(await self._wait(primary, partition))
        self._waits.pop(primary, None)

    async def _wait(self, primary: str, partition: PartitionKeys) -> StoreError | str:
        """The primary whose replicas have it all, or an error."""
        # WAIT looks at the last write of its own connection. This one comes after all that the callers stored, a
        # duplicate's first publish too, and the replicas take writes in order. Both go by one key, over one connection,
        # unless a primary changes between them: so each says who answered.
        key = partition.replicated
        mark: Command[str] = Command(("SET", key, "1", "PX", _MARK_LIFE_MS), lambda _reply, by: by)
        wait: Command[tuple[int, str]] = Command(
            ("WAIT", self._replicas, self._timeout_ms), lambda reply, by: (int(reply), by), key=key
        )
        marked, waited = self._waiting.execute(mark), self._waiting.execute(wait)
        written, had = await marked, await waited
        if isinstance(written, StoreError):
            return written
        if isinstance(had, StoreError):
            return had
        if not server_of(written) == server_of(had[1]) == server_of(primary):
            return NotReplicated(
                "stored, but the primary has changed before its replicas could be asked; publish again under the same"
                " event id"
            )
        if had[0] < self._replicas:
            return NotReplicated(
                f"stored, but {had[0]} of {self._replicas} replicas had it within {self._timeout_ms} ms;"
                " publish again under the same event id"
            )
        return primary

    def is_fsync_known(self, partitions: Sequence[int]) -> bool:
        """Whether `fsync_missing` need not ask a server."""
        primaries = (self._links.primary_of(self._keys.partition(number).replicated) for number in partitions)
        return all(primary in self._fsync_checked for primary in primaries)

    async def fsync_missing(self, partitions: Sequence[int]) -> StoreError | None:
        """Whether the servers of these partitions write to their disks before they answer; looked up once a server.

        Redis: CONFIG GET.
        """
        for number in partitions:
            key = self._keys.partition(number).replicated
            if self._links.primary_of(key) in self._fsync_checked:
                continue
            answer = await self._links.execute(
                Command(("CONFIG", "GET", "append*"), lambda reply, by: (settings_of(reply, by), by), key=key)
            )
            if isinstance(answer, StoreError):
                return answer
            found, primary = answer
            if found.get("appendonly") != "yes" or found.get("appendfsync") != "always":
                return StoreMisconfigured(
                    f"durability fsync needs appendonly yes and appendfsync always; the server has appendonly"
                    f" {found.get('appendonly')} and appendfsync {found.get('appendfsync')}"
                )
            self._fsync_checked.add(primary)
        return None
