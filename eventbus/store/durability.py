"""What a returned publish promises beyond the primary's memory."""

from __future__ import annotations

import asyncio
from typing import Final

from eventbus.errors import NotReplicated, StoreError, StoreMisconfigured
from eventbus.store.answers import nothing, settings_of
from eventbus.store.batcher import Batcher, Command
from eventbus.store.keys import Keys, PartitionKeys

__all__ = ["Durable"]

# The mark that is written before each WAIT; its life only tidies up.
_MARK_LIFE_MS: Final = 60_000


class Durable:
    """Asks replicas and settings whether what was stored is safe.

    Args:
        url: the server.
        link: the data connection.
        keys: the names.
        timeout_ms: longest wait for a connection or an answer, beside what WAIT itself may take.
        replicas: how many must have the data.
        replicated_timeout_ms: longest wait for them.
    """

    def __init__(
        self, url: str, link: Batcher, keys: Keys, *, timeout_ms: int, replicas: int, replicated_timeout_ms: int
    ) -> None:
        # WAIT holds up its whole connection, so it has one of its own (D12).
        self._waiting = Batcher(url, timeout_ms=timeout_ms + replicated_timeout_ms, name="eventbus-wait")
        self._link = link
        self._keys = keys
        self._replicas = replicas
        self._timeout_ms = replicated_timeout_ms
        self._next: asyncio.Future[StoreError | None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._fsync_checked = ""

    async def aclose(self) -> None:
        """Close the connection; waits under way end with `StoreUnavailable`."""
        await self._waiting.aclose()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def replicas_missing(self, partition: PartitionKeys) -> StoreError | None:
        """Wait for the replicas to have everything that was stored before this call.

        Returns:
            None when enough of them have it, else the error that says so. WAIT bounds the loss of a failover and does
            not exclude it.
        Redis: WAIT. Calls that come while one is under way share the next one. Cancellation leaves the others alone.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        answer = self._next
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._ask(partition), name="eventbus-wait-batch")
        return await asyncio.shield(answer)

    async def _ask(self, partition: PartitionKeys) -> None:
        while self._next is not None:
            asked, self._next = self._next, None
            # WAIT looks at the last write of its own connection. This one comes after all that the callers stored, a
            # duplicate's first publish too, and the replicas take writes in order.
            mark: Command[None] = Command(("SET", partition.replicated, "1", "PX", _MARK_LIFE_MS), nothing)
            wait: Command[int] = Command(("WAIT", self._replicas, self._timeout_ms), lambda reply, _primary: int(reply))
            marked, waited = self._waiting.execute(mark), self._waiting.execute(wait)
            written, had = await marked, await waited
            error: StoreError | None = None
            if isinstance(written, StoreError):
                error = written
            elif isinstance(had, StoreError):
                error = had
            elif had < self._replicas:
                error = NotReplicated(
                    f"stored, but {had} of {self._replicas} replicas had it within {self._timeout_ms} ms;"
                    " publish again under the same event id"
                )
            asked.set_result(error)

    async def fsync_missing(self) -> StoreError | None:
        """Whether the server writes to its disk before it answers; looked up once a server. Redis: CONFIG GET."""
        if self._fsync_checked and self._fsync_checked == self._link.primary:
            return None
        answer = await self._link.execute(
            Command(("CONFIG", "GET", "append*"), lambda reply, primary: (settings_of(reply, primary), primary))
        )
        if isinstance(answer, StoreError):
            return answer
        found, primary = answer
        if found.get("appendonly") != "yes" or found.get("appendfsync") != "always":
            return StoreMisconfigured(
                f"durability fsync needs appendonly yes and appendfsync always; the server has appendonly"
                f" {found.get('appendonly')} and appendfsync {found.get('appendfsync')}"
            )
        self._fsync_checked = primary
        return None
