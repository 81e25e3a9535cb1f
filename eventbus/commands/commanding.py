"""The agent's side of commands: what users send, as it comes. Owned by a `Bus`.

For all users whom somebody of the bus listens to there is one task. It looks for those who cancel runs, whenever it is
told that something came, and renews what is being worked on. Whoever reads commands asks the store itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol, TypeVar
from weakref import WeakSet, ref

from eventbus.clock import Clock
from eventbus.commands.command import CANCEL, reason_of
from eventbus.commands.reader import HOLD_MS, Commands
from eventbus.errors import EventBusError, StoreError
from eventbus.ids import ENTRY_ZERO, RunId, SessionId, UserId
from eventbus.jsonvalue import unpack
from eventbus.publishing.retries import RetryPolicy
from eventbus.retried import retried
from eventbus.store import Store
from eventbus.store.inbound import (
    Following,
    Told,
)
from eventbus.timers import Cancellable, Timers

__all__ = ["Commanding", "Watched"]

_log = logging.getLogger("eventbus.commands")

T = TypeVar("T")

_PAGE: Final = 500
_AGAIN_MS: Final = 500
"""After the store failed, runs that may be cancelled are looked after again so much later."""


class Watched(Protocol):
    """A run that its user may cancel."""

    @property
    def id(self) -> RunId:
        """The run id."""

    def addressed(self) -> None:
        """The user has sent something to it. Called in the event loop, perhaps more than once."""

    def cancel(self, reason: str, session: SessionId) -> None:
        """The user has cancelled it. Called in the event loop, perhaps more than once."""


class _Line:
    """What a bus has to do with one user."""

    __slots__ = ("after", "following", "readers", "runs", "waits")

    def __init__(self) -> None:
        self.runs: dict[RunId, Watched] = {}
        self.readers: WeakSet[Commands] = WeakSet()
        self.waits: set[asyncio.Event] = set()
        self.after = ENTRY_ZERO
        self.following: Following | None = None

    @property
    def is_wanted(self) -> bool:
        return bool(self.runs or self.readers or self.waits)


class Commanding:
    """The users whom a bus listens to.

    Args:
        store: where commands are.
        clock: monotonic time.
        timers: where waits go.
        policy: of calls that are tried again.
        deadline_ms: within which such a call succeeds or fails.
    """

    def __init__(self, store: Store, clock: Clock, timers: Timers, policy: RetryPolicy, deadline_ms: int) -> None:
        self.store: Final = store
        self._clock = clock
        self._timers = timers
        self._policy = policy
        self._deadline_ms = deadline_ms
        self._lines: dict[UserId, _Line] = {}
        self._dirty: dict[UserId, None] = {}
        self._stale: list[ref[Commands]] = []
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._alarm: Cancellable | None = None
        self.is_closed = False

    def __repr__(self) -> str:
        runs = sum(len(line.runs) for line in self._lines.values())
        return f"<Commanding users={len(self._lines)} runs={runs}>"

    async def aclose(self) -> None:
        """End everything: iterators stop. May be repeated."""
        self.is_closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._alarm is not None:
            self._alarm.cancel()
        for user, line in list(self._lines.items()):
            for reader in list(line.readers):
                reader.close()
            for rung in line.waits:
                rung.set()
            self._lines.pop(user, None)
            if line.following is not None:
                line.following.close()

    # --- who listens --------------------------------------------------------------------------------------------------

    def watch(self, user: UserId, run: Watched) -> None:
        """Have a run told when its user cancels it, also when that is before now."""
        line = self._line(user)
        line.runs[run.id] = run
        line.after = ENTRY_ZERO
        if line.following is not None:
            self._look(user)

    def unwatch(self, user: UserId, run: Watched) -> None:
        """The run is over. May be repeated."""
        line = self._lines.get(user)
        if line is not None and line.runs.get(run.id) is run:
            del line.runs[run.id]
            self._tidy(user, line)

    def joined(self, reader: Commands) -> None:
        """Somebody reads commands."""
        line = self._line(reader.user)
        line.readers.add(reader)

    def left(self, reader: Commands) -> None:
        """Nobody reads them any more."""
        line = self._lines.get(reader.user)
        if line is not None:
            line.readers.discard(reader)
            self._tidy(reader.user, line)

    @contextmanager
    def listening(self, user: UserId, rung: asyncio.Event) -> Iterator[None]:
        """Have an event set whenever something came from a user."""
        line = self._line(user)
        line.waits.add(rung)
        try:
            yield
        finally:
            line.waits.discard(rung)
            self._tidy(user, line)

    def check_open(self) -> None:
        """Raises: EventBusError: the bus is closed."""
        if self.is_closed:
            raise EventBusError("the bus is closed")

    def _line(self, user: UserId) -> _Line:
        self.check_open()
        line = self._lines.get(user)
        if line is None:
            line = self._lines[user] = _Line()
            line.following = self.store.follow(user, _Ear(self))
        return line

    def _tidy(self, user: UserId, line: _Line) -> None:
        if not line.is_wanted and self._lines.get(user) is line:
            del self._lines[user]
            if line.following is not None:
                line.following.close()

    # --- what happens -------------------------------------------------------------------------------------------------

    def heard(self, user: UserId, what: Told) -> None:
        """The store says that something happened."""
        line = self._lines.get(user)
        if line is None or what is Told.PRESENCE:
            return
        if not line.is_wanted:
            self._tidy(user, line)  # its last reader was dropped without a word
            return
        for rung in line.waits:
            rung.set()
        if what is Told.ANSWER:
            return
        for reader in list(line.readers):
            reader.ring()
        if what is Told.ANYTHING:
            # Perhaps another server, whose ids run behind: everything is looked at again.
            line.after = ENTRY_ZERO
        if line.runs:
            self._look(user)

    def _look(self, user: UserId) -> None:
        self._dirty[user] = None
        self._work()

    def _work(self) -> None:
        self._wanted.set()
        if self._task is None and not self.is_closed:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="eventbus:commands")

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            users, self._dirty = list(self._dirty), {}
            readers = [reader for found in self._stale if (reader := found()) is not None]
            self._stale.clear()
            await asyncio.gather(*(self._see(user) for user in users), *(self._renew(reader) for reader in readers))

    async def _see(self, user: UserId) -> None:
        """Look through the new commands of a user for those that cancel a run."""
        while (line := self._lines.get(user)) is not None and line.runs:
            after = line.after
            try:
                page = await self.store.sent_commands(user, after, _PAGE)
            except StoreError as error:
                _log.info("commands of %s are looked for again: %s", user, error)
                self._again(user)
                return
            for record in page:
                run = line.runs.get(record.run) if record.run is not None else None
                if run is None:
                    continue
                run.addressed()
                if record.type == CANCEL:
                    run.cancel(reason_of(unpack(record.data)), record.session)
            # A run that came meanwhile has set it back.
            if line.after == after and page:
                line.after = page[-1].id
            elif line.after != after:
                continue
            if len(page) < _PAGE:
                return

    def _again(self, user: UserId) -> None:
        self._dirty[user] = None
        if self._alarm is None:
            self._alarm = self._timers.call_later(_AGAIN_MS, self._rang)

    def _rang(self) -> None:
        self._alarm = None
        self._wanted.set()

    # --- what is held -------------------------------------------------------------------------------------------------

    def renew_later(self, reader: Commands) -> None:
        """Have what a reader holds renewed in time. A reader that is garbage is not: its commands go to another."""
        if reader.is_renewed:
            return
        reader.is_renewed = True
        weak = ref(reader)

        def due() -> None:
            if (found := weak()) is None:
                return
            found.is_renewed = False
            if found.held and not self.is_closed:
                self._stale.append(weak)
                self._work()

        self._timers.call_later(HOLD_MS // 3, due)

    async def _renew(self, reader: Commands) -> None:
        held = reader.held
        try:
            await self.store.hold_commands(reader.user, reader.group, held, 0)
        except StoreError as error:
            _log.info("commands of %s may come again: %s", reader.user, error)
        self.renew_later(reader)

    # --- small things -------------------------------------------------------------------------------------------------

    def now_ms(self) -> int:
        """Monotonic time."""
        return self._clock.monotonic_ms()

    async def insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call of the store that is safe to repeat. Raises: StoreError, after the deadline."""
        return await retried(call, self._policy, self._clock, self._timers, self._deadline_ms)

    async def wait(self, rung: asyncio.Event, timeout_ms: int) -> None:
        """Wait for an event, or until the time is over; it is set then too."""
        timer = self._timers.call_later(timeout_ms, rung.set)
        try:
            await rung.wait()
        finally:
            timer.cancel()


class _Ear:
    """The follower of a user; what it hears is the bus's."""

    __slots__ = ("_commanding",)

    def __init__(self, commanding: Commanding) -> None:
        self._commanding = commanding

    def told(self, user: UserId, what: Told) -> None:
        self._commanding.heard(user, what)
