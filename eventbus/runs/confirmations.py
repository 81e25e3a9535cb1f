"""The confirmations of a run's events as they come: an iterator that ends when the run has ended and all is confirmed.

It looks at the user's records and events after waits that grow from 20 to 250 ms and begin anew with each confirmation.
Records are read before events: what is on record was stored before, so the event of each record is known then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from eventbus.clock import Clock
from eventbus.confirmation import Confirmation, Goal, Standing
from eventbus.errors import ConfirmationTimeout, InvalidEvent, InvalidField, StoreError
from eventbus.event import peek
from eventbus.ids import (
    ENTRY_ZERO,
    EntryId,
    EventId,
    RunId,
    UserId,
    entry_order,
    event_id_time_ms,
    parse_run_id,
    parse_user_id,
)
from eventbus.looks import Looks
from eventbus.publishing.receipt import Receipt
from eventbus.runs import Run
from eventbus.store import ConfirmationRecord, Store, StoredEntry

__all__ = ["RunConfirmation", "RunConfirmations", "Subject", "subject_of"]

FIRST_PAUSE_MS: Final = 20
LONGEST_PAUSE_MS: Final = 250
_ENTRIES: Final = 100
_RECORDS: Final = 500
_CLOCKS_APART_MS: Final = 300_000
_COMPLETED: Final = "agent_completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfirmation(Confirmation):
    """A session confirmed an event of a run.

    Attributes:
        event: its event id.
        entry: its entry id.
        type: its type; empty where only its receipt is known.
    """

    event: EventId
    entry: EntryId
    type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whose confirmations are wanted.

    Attributes:
        user: whose events.
        run: the run; None where the events are given.
        receipts: the events, where they are given.
        begin: an entry id below all of them.
    """

    user: UserId
    run: RunId | None
    receipts: Sequence[Receipt]
    begin: EntryId


def subject_of(run: Run | Receipt | Iterable[Receipt] | str, user: str | None) -> Subject:
    """What was given to `Bus.run_confirmations`. Raises: InvalidField."""
    if isinstance(run, Run):
        return Subject(user=run.user, run=run.id, receipts=(), begin=_begin(run.id, run.receipts))
    if isinstance(run, str):
        if user is None:
            raise InvalidField("user", "is missing: a run is looked for among the events of its user")
        run_id = parse_run_id(run)
        return Subject(user=parse_user_id(user), run=run_id, receipts=(), begin=_begin(run_id, ()))
    given: object = run
    if isinstance(given, Receipt):
        given = [given]
    receipts = list(given) if isinstance(given, Iterable) else []
    if not isinstance(given, Iterable) or not all(isinstance(receipt, Receipt) for receipt in receipts):
        raise InvalidField("run", f"must be a run, a run id, or receipts, not {run!r}"[:120])
    users = {receipt.user for receipt in receipts}
    if len(users) != 1:
        raise InvalidField("run", f"must be a run, a run id, or receipts of one user; these are of {len(users)} users")
    return Subject(user=users.pop(), run=None, receipts=receipts, begin=_begin(None, receipts))


class _Watched:
    """An event of the run."""

    __slots__ = ("event", "standing", "told", "type")

    def __init__(self, event: EventId, entry: EntryId, event_type: str) -> None:
        self.event = event
        self.type = event_type
        self.standing = Standing(entry)
        self.told: set[tuple[str, str]] = set()

    def add(self, record: ConfirmationRecord) -> list[RunConfirmation]:
        """Take a record in. Returns what it adds: each session and level once."""
        self.standing.add(record)
        new = [one for one in self.standing.all() if (one.session, one.level) not in self.told]
        self.told.update((one.session, one.level) for one in new)
        return [
            RunConfirmation(
                event=self.event,
                entry=self.standing.entry,
                type=self.type,
                session=one.session,
                level=one.level,
                time_ms=one.time_ms,
                note=one.note,
            )
            for one in new
        ]


class RunConfirmations(AsyncIterator[RunConfirmation]):
    """`async for confirmation in bus.run_confirmations(run): ...`. It holds nothing that would have to be closed.

    Args:
        store: where the records are.
        clock: monotonic time.
        looks: the waits of the bus.
        subject: whose confirmations.
        goal: what each event has to reach.
        timeout_ms: the longest wait, from the first call on.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        looks: Looks,
        subject: Subject,
        *,
        goal: Goal,
        timeout_ms: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self._looks = looks
        self._user = subject.user
        self._run = subject.run
        self._begin = subject.begin
        self._goal = goal
        self._timeout_ms = timeout_ms
        self._end_ms: int | None = None
        self._events: dict[EventId, _Watched] = {}
        self._by_entry: dict[EntryId, _Watched] = {}
        for receipt in subject.receipts:
            self._watch(receipt.event, receipt.entry, "")
        self._completed = self._run is None
        self._seen = self._read = self._begin
        self._came: deque[RunConfirmation] = deque()
        self._all: list[RunConfirmation] = []
        self._pause_ms = FIRST_PAUSE_MS
        self._failure: StoreError | None = None
        self._over = False

    def __repr__(self) -> str:
        what = self._run or "events"
        return f"<RunConfirmations of {what} events={len(self._events)} completed={self._completed}>"

    @property
    def is_over(self) -> bool:
        """Whether the run has ended and each of its events has what was asked for."""
        return self._completed and all(one.standing.meets(self._goal) for one in self._events.values())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RunConfirmation:
        """The next one.

        Raises:
            ConfirmationTimeout: the time is over; `confirmations` has all that came.
            EventBusError: the bus is closed.
        A store that is away is waited for. Cancelled, nothing is missed: one may go on.
        """
        if self._end_ms is None:
            self._end_ms = self._clock.monotonic_ms() + self._timeout_ms
        while not self._came:
            if self._over:
                raise StopAsyncIteration
            self._looks.check()
            try:
                await self._look()
            except StoreError as error:
                self._failed(error)
            if self._came:
                break
            self._over = self.is_over
            if not self._over:
                await self._wait(self._end_ms)
        return self._came.popleft()

    async def _wait(self, end_ms: int) -> None:
        left_ms = end_ms - self._clock.monotonic_ms()
        if left_ms <= 0:
            missing = sum(not one.standing.meets(self._goal) for one in self._events.values())
            run = "the run is completed" if self._completed else "the run is not completed"
            raise ConfirmationTimeout(
                f"within {self._timeout_ms} ms: {run}, and {missing} of {len(self._events)} events are not"
                f" {self._goal.level} by {self._goal.count}; `confirmations` has what there is, and one may ask again",
                tuple(self._all),
            ) from self._failure
        await self._looks.pause(asyncio.Event(), min(self._pause_ms, left_ms))
        self._pause_ms = min(2 * self._pause_ms, LONGEST_PAUSE_MS)

    def _failed(self, error: StoreError) -> None:
        # Another server may answer next, whose ids run behind: everything is read again, and told once all the same.
        self._failure = error
        self._seen = self._read = self._begin
        self._completed = self._run is None

    async def _look(self) -> None:
        records, read_to = await self._new_records()
        if not self._completed:
            await self._new_events()
        self._failure, self._read = None, read_to
        for record in records:
            for entry in record.entries:
                watched = self._by_entry.get(entry)
                if watched is not None:
                    self._tell(watched.add(record))

    def _tell(self, new: Sequence[RunConfirmation]) -> None:
        if new:
            self._pause_ms = FIRST_PAUSE_MS
        self._came += new
        self._all += new

    async def _new_records(self) -> tuple[list[ConfirmationRecord], EntryId]:
        """The records that were not taken in yet, and up to where they go."""
        records: list[ConfirmationRecord] = []
        after = self._read
        while True:
            page = await self._store.confirmations(self._user, after, _RECORDS)
            records += [record for _, record in page]
            after = page[-1][0] if page else after
            if len(page) < _RECORDS:
                return records, after

    async def _new_events(self) -> None:
        """All that is stored by now: what follows the end of the run is no longer looked at."""
        needle = (self._run or "").encode()
        while True:
            page = await self._store.history(self._user, self._seen, _ENTRIES)
            for entry in page.entries:
                self._seen = entry.id
                if needle in entry.body:
                    self._take(entry)
            if not page.more or not page.entries:
                return

    def _take(self, entry: StoredEntry) -> None:
        try:
            head = peek(entry.body)
        except InvalidEvent:
            return
        if head.run == self._run and head.user == self._user:
            self._watch(EventId(head.id), entry.id, head.type)
            self._completed = self._completed or head.type == _COMPLETED

    def _watch(self, event: EventId, entry: EntryId, event_type: str) -> None:
        watched = self._events.get(event)
        if watched is None:
            watched = self._events[event] = _Watched(event, entry, event_type)
        elif watched.standing.entry != entry:
            # A failover took it back, and its publisher sent it again: the same event under another entry id.
            watched.standing = Standing(entry)
        self._by_entry[entry] = watched


def _begin(run: RunId | None, receipts: Sequence[Receipt]) -> EntryId:
    """An entry id below the events: by the first of them, or by the time in a run id that the library made.

    Receipts of a run may be those of its newest events only, so the earlier of the two counts.
    """
    times = [entry_order(receipt.entry)[0] for receipt in receipts]
    if run is not None:
        digits = run.removeprefix("run_")
        dashed = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
        made_ms = event_id_time_ms(EventId(dashed))
        times.append(0 if made_ms is None else made_ms - _CLOCKS_APART_MS)
    ms = min(times)
    return EntryId(f"{ms - 1}-{2**64 - 1}") if ms > 0 else ENTRY_ZERO
