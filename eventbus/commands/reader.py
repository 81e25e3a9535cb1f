"""Commands of a user as an asynchronous iterator: what `Run.commands` and `Bus.commands` give."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from eventbus.commands.command import CANCEL
from eventbus.errors import EventBusError, InvalidField, StoreError
from eventbus.ids import EntryId, RunId, SessionId, ThreadId, UserId, entry_order
from eventbus.jsonvalue import unpack
from eventbus.store.inbound import COMMANDS_MAX, POLL_MS, CommandRecord, TakeCommands

if TYPE_CHECKING:
    from eventbus.commands.commanding import Commanding

__all__ = ["HOLD_MS", "MAX_DELIVERIES", "Command", "Commands"]

_log = logging.getLogger("eventbus.commands")

HOLD_MS: Final = 30_000
"""A command whose worker says nothing for so long is read again."""
MAX_DELIVERIES: Final = 5
"""A command that was read so often, and never acked, becomes a dead letter."""
_NACKS_MAX: Final = 500


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

        A cancelled call leaves open whether it comes again.
        Source: docs/commands.md.
        """
        await self._commands._ack(self.id)

    async def nack(self, delay_ms: int = 1_000) -> None:
        """It could not be handled: it comes again, at most `MAX_DELIVERIES` times in all.

        Args:
            delay_ms: how much later, at most `HOLD_MS`.

        Raises:
            InvalidField: the delay is out of range.
            StoreError: the store does not answer; it comes again all the same, but later.

        So it does after a cancelled call.
        Source: docs/commands.md.
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
        """Begin; nothing is read before a command is asked for."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave: the command in hand is acked when the block ended well, nacked at once when it raised, and left to its
        time when it was cancelled. A store that does not answer is logged, and the command comes again.
        """
        in_hand = self._in_hand
        try:
            if in_hand is not None and kind is None:
                await self._ack(in_hand)
            elif in_hand is not None and issubclass(kind or Exception, Exception):
                await self._nack(in_hand, 0)
        except StoreError as failed:
            _log.warning(
                "command %s of %s will come again: %s",
                in_hand,
                self.user,
                failed,
                extra={"entry": in_hand, "user": self.user},
            )
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
        self._nacked_due = [*self._nacked_due[-_NACKS_MAX:], commanding.now_ms() + delay_ms + 10]
        call = partial(commanding.store.hold_commands, self.user, self.group, [command], HOLD_MS - delay_ms)
        await commanding.insist(call)

    def _let_go(self, command: EntryId) -> None:
        if command in self._held:
            self._held.remove(command)
        if self._in_hand == command:
            self._in_hand = None
