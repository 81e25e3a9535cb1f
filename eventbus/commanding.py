"""The agent's side of commands: what users send, as it comes. Owned by a `Bus`.

For all users whom somebody of the bus listens to there is one task. It looks for those who cancel runs, whenever it is
told that something came, and renews what is being worked on. Whoever reads commands asks the store itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar
from weakref import WeakSet, ref

from eventbus.clock import Clock
from eventbus.command import CANCEL, reason_of
from eventbus.errors import EventBusError, InvalidField, StoreError
from eventbus.ids import ENTRY_ZERO, EntryId, RunId, SessionId, ThreadId, UserId, entry_order
from eventbus.jsonvalue import unpack
from eventbus.retried import retried
from eventbus.retries import RetryPolicy
from eventbus.store import Store
from eventbus.store.inbound import (
    COMMANDS_MAX,
    POLL_MS,
    CommandRecord,
    Following,
    TakeCommands,
    Told,
)
from eventbus.timers import Cancellable, Timers

__all__ = ["HOLD_MS", "MAX_DELIVERIES", "Command", "Commanding", "Commands", "Watched"]

_log = logging.getLogger("eventbus.commands")

T = TypeVar("T")

HOLD_MS: Final = 30_000
"""A command whose worker says nothing for so long is read again."""
MAX_DELIVERIES: Final = 5
"""A command that was read so often, and never acked, becomes a dead letter."""
_PAGE: Final = 500
_AGAIN_MS: Final = 500
"""After the store failed, runs that may be cancelled are looked after again so much later."""


class Watched(Protocol):
    """A run that its user may cancel."""

    @property
    def id(self) -> RunId:
        """The run id."""

    def cancel(self, reason: str, session: SessionId) -> None:
        """The user has cancelled it. Called in the event loop, perhaps more than once."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Command:
    """What a user sent to an agent.

    Attributes:
        id: names it for good: whoever must not do a thing twice keeps the ids of what was done.
        type: what it wants: `message`, or a word of the application.
        data: its data.
        user: who sent it.
        session: from which device.
        thread: where it belongs, None for nowhere.
        run: for which run, None for none.
        time_ms: when it was stored, Unix milliseconds.
        attempts: how often it was read, this time included.
    """

    id: EntryId
    type: str
    data: Mapping[str, Any]
    user: UserId
    session: SessionId
    thread: ThreadId | None
    run: RunId | None
    time_ms: int
    attempts: int
    _commands: Commands

    async def ack(self) -> None:
        """It is handled, and does not come again. Asking for the next one does this too.

        Raises:
            StoreError: the store does not answer; it may come again.
        """
        await self._commands._ack(self.id)

    async def nack(self, delay_ms: int = 1_000) -> None:
        """It could not be handled: it comes again, at most `MAX_DELIVERIES` times in all.

        Args:
            delay_ms: how much later, at most `HOLD_MS`.

        Raises:
            InvalidField: the delay is out of range.
            StoreError: the store does not answer; it comes again all the same, but later.
        """
        await self._commands._nack(self.id, delay_ms)


class Commands:
    """Commands of a user, as an asynchronous iterator: `async for command in run.commands(): ...`.

    Asking for the next command acks the one before. One that is left without (`break`, an exception) comes again when
    nobody has renewed it for `HOLD_MS`; used as `async with bus.commands(...) as commands:` it is acked when the block
    ends well, and nacked at once when it raises. At least once: a worker that dies before its ack leaves the command to
    another.

    Attributes:
        user: whose commands.
        run: for which run, None for those of none.
        group: the consumer group.
        is_renewed: whether a timer is set for what is held.
    """

    def __init__(self, commanding: Commanding, user: UserId, group: str, run: RunId | None) -> None:
        self.user: Final = user
        self.group: Final = group
        self.run: Final = run
        self._commanding = commanding
        self._rung = asyncio.Event()
        self._held: deque[EntryId] = deque()
        self._buffer: deque[CommandRecord] = deque()
        self._in_hand: EntryId | None = None
        self._begun = False
        self._nacked_due: list[int] = []  # when what was nacked comes again; monotonic
        self._ended = False
        self._asking = False
        self.is_renewed = False

    def __repr__(self) -> str:
        return f"<Commands of {self.user} group={self.group!r} held={len(self._held)}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Command:
        """The next command; asking for it acks the one before.

        Raises:
            StoreError: the store does not answer.
            StopAsyncIteration: the run, or the bus, is over.

        A cancelled call has acked the one before and takes nothing that would not come again.
        """
        if self._asking:
            raise EventBusError("one task at a time reads commands of an iterator; make one for each task")
        self._asking = True
        try:
            if self._in_hand is not None:
                await self._ack(self._in_hand)
            return await self._next()
        finally:
            self._asking = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        in_hand = self._in_hand
        try:
            if in_hand is not None and kind is None:
                await self._ack(in_hand)
            elif in_hand is not None and issubclass(kind or Exception, Exception):
                await self._nack(in_hand, 0)
        except StoreError as failed:
            _log.warning("command %s of %s will come again: %s", in_hand, self.user, failed)
        finally:
            self.close()

    def close(self) -> None:
        """End it: whoever waits for the next command is told that there is none. Safe to repeat."""
        self._ended = True
        self._held.clear()
        self._buffer.clear()
        self._in_hand = None
        self._commanding.left(self)
        self._rung.set()

    # --- what the bus calls -------------------------------------------------------------------------------------------

    def ring(self) -> None:
        """Something came."""
        self._rung.set()

    @property
    def held(self) -> list[EntryId]:
        """What is to be renewed."""
        return list(self._held)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _next(self) -> Command:
        while True:
            while self._buffer:
                record = self._buffer.popleft()
                if record.run is not None and record.type == CANCEL:
                    await self._ack(record.id)  # the run knows already
                    continue
                self._in_hand = record.id
                return self._command(record)
            if self._ended or self._commanding.is_closed:
                raise StopAsyncIteration
            self._rung.clear()
            self._commanding.joined(self)
            if not await self._take():
                await self._commanding.wait(self._rung, self._wait_ms())

    def _wait_ms(self) -> int:
        now_ms = self._commanding.now_ms()
        self._nacked_due = [due_ms for due_ms in self._nacked_due if due_ms > now_ms]
        return min([POLL_MS, *(due_ms - now_ms for due_ms in self._nacked_due)])

    async def _take(self) -> bool:
        # A run has one reader: what an earlier one of it left is this one's at once. The workers of an inbox take one
        # command at a time, so that none lies with a busy worker while another has nothing to do.
        is_first = not self._begun and self.run is not None
        request = TakeCommands(
            user=self.user,
            group=self.group,
            run=self.run,
            count=COMMANDS_MAX if is_first else 1,
            idle_ms=0 if is_first else HOLD_MS,
            max_deliveries=MAX_DELIVERIES,
        )
        commanding = self._commanding
        records = await commanding.insist(partial(commanding.store.take_commands, request))
        self._begun = True
        if not self._ended:
            self._buffer += records
            self._held += [record.id for record in records]
            if records:
                commanding.renew_later(self)
        return bool(records)

    def _command(self, record: CommandRecord) -> Command:
        return Command(
            id=record.id,
            type=record.type,
            data=unpack(record.data),
            user=self.user,
            session=record.session,
            thread=record.thread,
            run=record.run,
            time_ms=entry_order(record.id)[0],
            attempts=record.attempts,
            _commands=self,
        )

    async def _ack(self, command: EntryId) -> None:
        commanding = self._commanding
        await commanding.insist(partial(commanding.store.ack_commands, self.user, self.group, [command]))
        self._let_go(command)

    async def _nack(self, command: EntryId, delay_ms: int) -> None:
        if type(delay_ms) is not int or not 0 <= delay_ms <= HOLD_MS:
            raise InvalidField("delay_ms", f"must be a whole number from 0 to {HOLD_MS}, not {delay_ms!r}")
        self._let_go(command)
        commanding = self._commanding
        # A little later than the store counts, by whose clock it is due.
        self._nacked_due = [*self._nacked_due[-_PAGE:], commanding.now_ms() + delay_ms + 10]
        call = partial(commanding.store.hold_commands, self.user, self.group, [command], HOLD_MS - delay_ms)
        await commanding.insist(call)

    def _let_go(self, command: EntryId) -> None:
        if command in self._held:
            self._held.remove(command)
        if self._in_hand == command:
            self._in_hand = None


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

    def _line(self, user: UserId) -> _Line:
        if self.is_closed:
            raise EventBusError("the bus is closed")
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
                if run is not None and record.type == CANCEL:
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
