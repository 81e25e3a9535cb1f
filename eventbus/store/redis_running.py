"""Runs, leases and deadlines on Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, TypeVar

from eventbus.errors import StoreError
from eventbus.ids import EntryId, RunId, UserId
from eventbus.store import run_commands as commands
from eventbus.store.answers import whole
from eventbus.store.command import Command
from eventbus.store.linked import Linked
from eventbus.store.running import DueRecord, Lease, OperatorEvent, RunRecord, RunRequest, Settlement

__all__ = ["RedisRuns"]

T = TypeVar("T")

# Rounds of SCAN in one call: most keys are no runs.
_SCAN_ROUNDS: Final = 100


class RedisRuns(Linked):
    """The part of a `RedisStore` for `eventbus.store.running`."""

    async def request_run(self, request: RunRequest) -> bool:
        """See `RunStore.request_run`."""
        return await self._call(commands.request_run(self.keys, self.settings, request))

    async def renew_leases(self, leases: Sequence[Lease]) -> Sequence[bool | StoreError]:
        """See `RunStore.renew_leases`. One script call a lease, all in one write."""
        return await self._all([commands.renew_lease(self.keys, self.settings, lease) for lease in leases])

    async def claim_run(self, lease: Lease, held_by: str) -> RunRecord | None:
        """See `RunStore.claim_run`."""
        return await self._call(commands.claim_run(self.keys, self.settings, lease, held_by))

    async def run(self, user: UserId, run: RunId) -> RunRecord | None:
        """See `RunStore.run`."""
        return await self._call(self._read_run(user, run))

    async def runs(self, cursor: str, count: int) -> tuple[Sequence[RunRecord], str]:
        """See `RunStore.runs`."""
        at = cursor
        for _ in range(_SCAN_ROUNDS):
            keys, at = await self._scan(at, "MATCH", self.keys.run_pattern(), "COUNT", max(10, count), "TYPE", "hash")
            named = [name for key in keys if (name := self.keys.run_of(key)) is not None]
            answers = await self._all([self._read_run(*name) for name in named])
            for answer in answers:
                if isinstance(answer, StoreError):
                    raise answer
            found = [answer for answer in answers if isinstance(answer, RunRecord)]
            if found or not at:
                return found, at
        return [], at

    async def due(self, partitions: Sequence[int], count: int) -> Sequence[Sequence[DueRecord] | StoreError]:
        """See `RunStore.due`. One script call a partition, all in one write."""
        return await self._all([commands.due(self.keys, number, count) for number in partitions])

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[int | StoreError]:
        """See `RunStore.settle`. One script call each, all in one write."""
        return await self._all([commands.settle(self.keys, settlement) for settlement in settlements])

    async def operator_events(self, partition: int, after: EntryId, count: int) -> Sequence[OperatorEvent]:
        """See `RunStore.operator_events`."""
        key = self.keys.partition(partition).operators
        return await self._call(
            Command(
                ("XRANGE", key, f"({after}", "+", "COUNT", count),
                lambda reply, _primary: [commands.operator_event(partition, raw) for raw in reply],
            )
        )

    async def operator_partitions(self) -> Sequence[int]:
        """See `RunStore.operator_partitions`. One XLEN a partition, all in one write."""
        numbers = range(self.keys.partitions)
        lengths = await self._all(
            [Command(("XLEN", self.keys.partition(number).operators), whole) for number in numbers]
        )
        for length in lengths:
            if isinstance(length, StoreError):
                raise length
        return [number for number, length in zip(numbers, lengths, strict=True) if length]

    def _read_run(self, user: UserId, run: RunId) -> Command[RunRecord | None]:
        return Command(
            ("HGETALL", self.keys.run(user, run)), lambda reply, _primary: commands.record_of(user, run, reply)
        )

    async def _all(self, made: Sequence[Command[T]]) -> list[T | StoreError]:
        """The answers to commands of one write, in order."""
        futures: list[asyncio.Future[T | StoreError]] = [self.link.execute(command) for command in made]
        return [await future for future in futures]
