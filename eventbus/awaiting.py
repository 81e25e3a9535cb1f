"""Waiting for confirmations: one reader for each user for whom somebody waits, however many those are.

A reader asks for the user's new records after waits that grow from 20 to 250 ms and begin anew with each record that
somebody waited for. It reads from the oldest event that is waited for on, so what was confirmed before counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Final

from eventbus.clock import Clock
from eventbus.confirmation import Confirmation, Goal, Standing
from eventbus.errors import ConfirmationTimeout, EventBusError, StoreBusy, StoreError
from eventbus.ids import ENTRY_ZERO, EntryId, SessionId, UserId, entry_order
from eventbus.store import Store
from eventbus.timers import Timers

__all__ = ["Awaiting"]

logger = logging.getLogger(__name__)

WAITS_MAX: Final = 10_000
"""Most waits of a bus at once; one more raises."""
FIRST_PAUSE_MS: Final = 20
LONGEST_PAUSE_MS: Final = 250
SESSIONS_MS: Final = 1_000
"""How often it is looked which sessions are still live."""
_PAGE: Final = 500
_PAGES_MAX: Final = 40


class _Wait:
    """One caller. `required` are the sessions that have to confirm, once they are known."""

    __slots__ = ("error", "failure", "goal", "required", "rung", "standing")

    def __init__(self, entry: EntryId, goal: Goal) -> None:
        self.standing = Standing(entry)
        self.goal = goal
        self.required: frozenset[SessionId] | None = None if goal.all_live else frozenset()
        self.rung = asyncio.Event()
        self.failure: StoreError | None = None
        self.error: Exception | None = None

    @property
    def is_met(self) -> bool:
        return self.required is not None and self.standing.meets(self.goal, self.required)


class Awaiting:
    """The waits of a bus.

    Args:
        store: where the records are.
        clock: monotonic time.
        timers: where its waits go.
    """

    def __init__(self, store: Store, clock: Clock, timers: Timers) -> None:
        self._store = store
        self._clock = clock
        self._timers = timers
        self._lines: dict[UserId, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waits = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<Awaiting waits={self._waits} users={len(self._lines)}>"

    async def wait(self, user: UserId, entry: EntryId, goal: Goal, timeout_ms: int) -> list[Confirmation]:
        """Wait until enough sessions have confirmed an entry.

        Returns:
            A confirmation of the level for each session that gave it.

        Raises:
            ConfirmationTimeout: not enough came in time.
            StoreBusy: too many wait already.
            EventBusError: the bus is closed.
        A cancelled call leaves nothing behind.
        """
        if self._closed:
            raise EventBusError("the bus is closed")
        if self._waits >= WAITS_MAX:
            raise StoreBusy(f"{self._waits} calls wait for confirmations already")
        wait = _Wait(entry, goal)
        line = self._lines.get(user)
        if line is None or line.task.done():  # one that a defect has ended answers nobody
            line = self._lines[user] = _Line(self._store, self._clock, self._timers, user)
            line.task = asyncio.create_task(line.run(), name="eventbus:confirmations")
            self._tasks.add(line.task)
            line.task.add_done_callback(self._tasks.discard)
        line.join(wait)
        self._waits += 1
        timer = self._timers.call_later(timeout_ms, wait.rung.set)
        try:
            await wait.rung.wait()
        finally:
            timer.cancel()
            self._waits -= 1
            line.leave(wait)
            if not line and self._lines.get(user) is line:
                del self._lines[user]
                line.task.cancel()
        return _result(wait, timeout_ms)

    async def aclose(self) -> None:
        """End all waits: they raise. May be repeated."""
        self._closed = True
        for line in self._lines.values():
            line.fail(EventBusError("the bus was closed while a confirmation was waited for"))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _result(wait: _Wait, timeout_ms: int) -> list[Confirmation]:
    level, confirmations = wait.goal.level, wait.standing.at(wait.goal.level)
    if wait.is_met:
        return confirmations
    if wait.error is not None:
        raise wait.error
    raise ConfirmationTimeout(
        f"within {timeout_ms} ms {len(confirmations)} sessions have {level} entry {wait.standing.entry};"
        f" waited for: {'all that are live' if wait.goal.all_live else wait.goal.count}."
        " `confirmations` has what there is; the event goes on being delivered, and one may wait again",
        wait.standing.all(),
    ) from wait.failure


class _Line:
    """The reader of one user's records, while somebody waits for one."""

    task: asyncio.Task[None]

    def __init__(self, store: Store, clock: Clock, timers: Timers, user: UserId) -> None:
        self._store = store
        self._clock = clock
        self._timers = timers
        self._user = user
        self._waits: dict[EntryId, list[_Wait]] = {}
        self._after: EntryId | None = None
        self._wake = asyncio.Event()
        self._pause_ms = FIRST_PAUSE_MS
        self._sessions_due_ms = 0

    def __bool__(self) -> bool:
        return bool(self._waits)

    def _all(self) -> Iterator[_Wait]:
        return (wait for waits in list(self._waits.values()) for wait in list(waits))

    def join(self, wait: _Wait) -> None:
        """One more waits; what was recorded since its entry is read (again)."""
        entry = wait.standing.entry
        self._waits.setdefault(entry, []).append(wait)
        start = _start(entry)
        if self._after is None or entry_order(start) < entry_order(self._after):
            self._after = start
        self._pause_ms = FIRST_PAUSE_MS
        self._sessions_due_ms = 0
        self._wake.set()

    def leave(self, wait: _Wait) -> None:
        """It waits no more."""
        waits = self._waits[wait.standing.entry]
        waits.remove(wait)
        if not waits:
            del self._waits[wait.standing.entry]

    def fail(self, error: Exception) -> None:
        """None of them will be answered."""
        for wait in self._all():
            wait.error = error
            wait.rung.set()

    async def run(self) -> None:
        """Reads until it is cancelled."""
        try:
            while True:
                self._wake.clear()
                try:
                    await self._look()
                except StoreError as error:
                    self._failed(error)
                await self._pause()
        except Exception as error:
            logger.exception("a defect ended the reader of confirmations")
            self.fail(error)

    def _failed(self, error: StoreError) -> None:
        # Another server may answer next, whose ids run behind: everything is read again.
        for wait in self._all():
            wait.failure = error
        self._after = min((_start(entry) for entry in self._waits), key=entry_order, default=None)

    async def _look(self) -> None:
        await self._read()
        if any(wait.goal.all_live and not wait.is_met for wait in self._all()):
            await self._look_who_is_live()
        for wait in self._all():
            wait.failure = None
            if wait.is_met:
                wait.rung.set()

    async def _read(self) -> None:
        for _ in range(_PAGES_MAX):
            after = self._after
            if after is None:
                return
            page = await self._store.confirmations(self._user, after, _PAGE)
            for _, record in page:
                for entry in record.entries:
                    for wait in self._waits.get(entry, ()):
                        wait.standing.add(record)
                        self._pause_ms = FIRST_PAUSE_MS
            # Whoever joined meanwhile may have set it back.
            if page and self._after == after:
                self._after = page[-1][0]
            if len(page) < _PAGE:
                return

    async def _look_who_is_live(self) -> None:
        now_ms = self._clock.monotonic_ms()
        unknown = any(wait.required is None for wait in self._all())
        if not unknown and now_ms < self._sessions_due_ms:
            return
        self._sessions_due_ms = now_ms + SESSIONS_MS
        live = [record for record in await self._store.sessions(self._user) if record.live is not None]
        for wait in self._all():
            if not wait.goal.all_live:
                continue
            if wait.required is None:
                # One that was made later than the event was stored may have begun behind it.
                stored_ms = entry_order(wait.standing.entry)[0]
                wait.required = frozenset(record.session for record in live if record.created_ms <= stored_ms)
            else:
                wait.required &= {record.session for record in live}

    async def _pause(self) -> None:
        timer = self._timers.call_later(self._pause_ms, self._wake.set)
        self._pause_ms = min(2 * self._pause_ms, LONGEST_PAUSE_MS)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()


def _start(entry: EntryId) -> EntryId:
    """Below every record of an entry: those are written after it, by the same clock."""
    ms, _ = entry_order(entry)
    return EntryId(f"{ms - 1}-{2**64 - 1}") if ms else ENTRY_ZERO
