"""Runs, leases and deadlines in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from eventbus.errors import StoreError
from eventbus.ids import EntryId, RunId, UserId, entry_order
from eventbus.store import Append
from eventbus.store.figures import thread_place
from eventbus.store.running import (
    OPERATOR_EVENTS_LIFE_MS,
    DueRecord,
    Lease,
    OperatorEvent,
    RunRecord,
    RunRequest,
    RunStep,
    Settlement,
    StepOrder,
    out_of_order,
    run_completed,
    run_taken,
)
from eventbus.testing.memory_base import MemoryBase
from eventbus.testing.memory_state import MemoryRun, UserState
from eventbus.testing.memory_stream import entry_id

__all__ = ["MemoryRuns"]

_LOOKED_THROUGH: Final = 1_000


class MemoryRuns(MemoryBase):
    """The part of a `MemoryStore` for `eventbus.store.running`."""

    # --- with an append ---------------------------------------------------------------------------------------------

    def _step_refused(self, event: Append, step: RunStep) -> EntryId | StoreError | None:
        """Why a step is not taken: its event was stored before (where), or it is not the next one."""
        run = self._known_run(event.user, step.run)
        fields = {} if run is None else run.fields
        last, holder, state = int(fields.get("seq", "0")), fields.get("owner", ""), fields.get("state")
        if holder == step.owner and step.seq <= last:
            return self._stored_before(self._user(event.user), event) or EntryId(fields["entry"])
        if state == "completed":
            return run_completed(step)
        if holder not in ("", step.owner):
            return run_taken(step)
        if step.seq <= last or (step.seq != last + 1 and step.order is StepOrder.NEXT):
            return out_of_order(step, last)
        return None

    def _stored_before(self, user: UserState, event: Append) -> EntryId | None:
        stream = user.opened_stream()
        for order in reversed(stream.after((0, 0))[-_LOOKED_THROUGH:]):
            if event.event.encode() in (stream.body(order) or b""):
                return entry_id(order)
        return None

    def _noted(self, event: Append, entry: EntryId, now_ms: int) -> None:
        """Write what a stored event changes beside its stream."""
        user, due = self._user(event.user), self._partition(event.user).due
        self._partition(event.user).count("stored", event.type)
        if event.thread is not None:
            user.threads[event.thread] = thread_place(entry)
        if event.demand is not None:
            member = f"demand {event.user} {entry} {event.demand.level.value}"
            due[member] = now_ms + event.demand.within_ms
        if event.step is not None:
            self._take_step(event.user, event.step, entry, now_ms)

    def _take_step(self, name: UserId, step: RunStep, entry: EntryId, now_ms: int) -> None:
        due, member = self._partition(name).due, f"run {name} {step.run} "
        run = self._known_run(name, step.run) or MemoryRun()
        self._user(name).runs[step.run] = run
        last = int(run.fields.get("seq", "0"))
        if step.seq != last + 1:
            told = {"kind": "order", "user": name, "run": step.run, "after_seq": str(last), "seq": str(step.seq)}
            self._partition(name).operators.record(told, now_ms)
        fields = {"state": "running", **run.fields, "user": name, "seq": str(step.seq), "owner": step.owner}
        fields |= {"lease_ms": str(step.lease_ms), "entry": entry, **step.fields}
        for gone in step.gone:
            fields.pop(gone, None)
        run.write(fields, entry_order(entry))
        run.until_ms = now_ms + self.settings.retention_ms
        for watched, ms in step.watch.items():
            due[member + watched] = now_ms + ms
        for met in step.unwatch:
            # One that has passed stays: it was missed, whoever comes to see it.
            if due.get(member + met, 0) >= now_ms:
                del due[member + met]
        for watched, ms in step.by.items():
            if now_ms > ms and f"breach:{watched}" not in fields:
                due[member + watched] = ms
        if step.lease_ms:
            due[member + "lease"] = now_ms + step.lease_ms
        else:
            due.pop(member + "lease", None)

    def _known_run(self, user: UserId, run: RunId) -> MemoryRun | None:
        known = self._user(user).runs.get(run)
        return known if known is not None and self.clock.now_ms() < known.until_ms else None

    # --- calls ------------------------------------------------------------------------------------------------------

    async def request_run(self, request: RunRequest) -> bool:
        """See `RunStore.request_run`."""
        async with self._call():
            if self._known_run(request.user, request.run) is not None:
                return False
            now_ms = self.clock.now_ms()
            run = self._user(request.user).runs[request.run] = MemoryRun()
            fields = {"user": request.user, "seq": "0", "owner": "", "state": "requested", "requested_ms": str(now_ms)}
            last = self._user(request.user).opened_stream().last
            run.write({**fields, **request.fields}, last)
            run.until_ms = now_ms + self.settings.retention_ms
            for name, ms in request.watch.items():
                self._partition(request.user).due[f"run {request.user} {request.run} {name}"] = now_ms + ms
            return True

    async def renew_leases(self, leases: Sequence[Lease]) -> Sequence[bool | StoreError]:
        """See `RunStore.renew_leases`."""
        try:
            async with self._call():
                return [self._renew(lease) for lease in leases]
        except StoreError as error:
            return [error] * len(leases)

    def _renew(self, lease: Lease) -> bool:
        run = self._known_run(lease.user, lease.run)
        if run is None:
            return True
        if run.fields.get("owner", "") != lease.owner or run.fields["state"] == "completed":
            return False
        self._hold(lease, run)
        return True

    async def claim_run(self, lease: Lease, held_by: str) -> RunRecord | None:
        """See `RunStore.claim_run`."""
        async with self._call():
            run = self._known_run(lease.user, lease.run)
            if run is None or run.fields["state"] == "completed":
                return None
            if run.fields.get("owner", "") not in (held_by, lease.owner):
                return None
            run.fields |= {"owner": lease.owner, "lease_ms": str(lease.lease_ms)}
            self._hold(lease, run)
            return RunRecord(user=lease.user, run=lease.run, fields=dict(run.fields))

    def _hold(self, lease: Lease, run: MemoryRun) -> None:
        now_ms = self.clock.now_ms()
        run.until_ms = now_ms + self.settings.retention_ms
        self._partition(lease.user).due[f"run {lease.user} {lease.run} lease"] = now_ms + lease.lease_ms

    async def run(self, user: UserId, run: RunId) -> RunRecord | None:
        """See `RunStore.run`."""
        async with self._call():
            known = self._known_run(user, run)
            return None if known is None else RunRecord(user=user, run=run, fields=dict(known.fields))

    async def runs(self, cursor: str, count: int) -> tuple[Sequence[RunRecord], str]:
        """See `RunStore.runs`."""
        async with self._call():
            named = [(user, run) for user, state in sorted(self._users.items()) for run in state.runs]
            start = int(cursor or "0")
            page = named[start : start + count]
            found = [
                RunRecord(user=user, run=run, fields=dict(known.fields))
                for user, run in page
                if (known := self._known_run(user, run)) is not None
            ]
            following = start + len(page)
            return found, str(following) if following < len(named) else ""

    async def due(self, partitions: Sequence[int], count: int) -> Sequence[Sequence[DueRecord] | StoreError]:
        """See `RunStore.due`."""
        try:
            async with self._call():
                return [self._due(number)[:count] for number in partitions]
        except StoreError as error:
            return [error] * len(partitions)

    def _due(self, number: int) -> list[DueRecord]:
        now_ms, partition = self.clock.now_ms(), self._partitions.get(number)
        watched = [] if partition is None else sorted((ms, member) for member, ms in partition.due.items())
        return [
            DueRecord(partition=number, member=member, due_ms=ms, now_ms=now_ms)
            for ms, member in watched
            if ms <= now_ms
        ]

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[int | StoreError]:
        """See `RunStore.settle`."""
        try:
            async with self._call():
                return [self._settle_one(settlement) for settlement in settlements]
        except StoreError as error:
            return [error] * len(settlements)

    def _settle_one(self, settlement: Settlement) -> int:
        partition = self._partitions.get(settlement.due.partition)
        if partition is None or partition.due.get(settlement.due.member) != settlement.due.due_ms:
            return 0
        now_ms = self.clock.now_ms()
        del partition.due[settlement.due.member]
        for member, ms in settlement.watch.items():
            partition.due[member] = now_ms + ms
        run = None if settlement.run is None else self._known_run(*settlement.run)
        if run is not None:
            run.fields |= settlement.fields
            for name, count in settlement.counts.items():
                run.fields[name] = str(int(run.fields.get(name, "0")) + count)
        if settlement.announce:
            announced = partition.operators.record(dict(settlement.announce), now_ms)
            if settlement.webhook:
                partition.due[f"webhook {announced} 1"] = now_ms
        return now_ms

    async def operator_events(self, partition: int, after: EntryId, count: int) -> Sequence[OperatorEvent]:
        """See `RunStore.operator_events`."""
        async with self._call():
            known = self._partitions.get(partition)
            if known is None:
                return []
            known.operators.forget_before(self.clock.now_ms() - OPERATOR_EVENTS_LIFE_MS)
            return [
                OperatorEvent(id=entry_id(order), partition=partition, time_ms=order[0], fields=fields)
                for order, fields in known.operators.page(after, count)
            ]

    async def operator_partitions(self) -> Sequence[int]:
        """See `RunStore.operator_partitions`."""
        async with self._call():
            return [number for number, partition in sorted(self._partitions.items()) if partition.operators]
