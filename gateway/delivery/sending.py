"""What users send to agents, on its way to the store, and the open questions that are asked of a device again.

The commands of a connection are stored in their order, one after the other; those of many go together. One that the
store can not take waits, and its client is told when that is too long.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

import msgpack

from eventbus import wire
from eventbus.clock import Clock, seconds
from eventbus.commands.answering import user_answer
from eventbus.commands.command import ANSWER, check_command, pick_question, ref_word, refused_answer
from eventbus.errors import EventBusError, RateLimited, RunClosed, StoreError, StoreUnavailable
from eventbus.ids import ENTRY_ZERO, ConnectionId, EntryId, UserId
from eventbus.jsonvalue import unpack
from eventbus.store import Store
from eventbus.store.inbound import Answered, CommandRefusal, NewCommand, QuestionRecord
from gateway.counters import Counters
from gateway.delivery.room import Place, Room
from gateway.transport.payload import Payload, payload_of

if TYPE_CHECKING:
    from gateway.sessions.session import Session

__all__ = ["Sender", "room_of_commands"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_AT_CAP: Final = "as many commands wait as are kept, and no agent has handled one of them; try again later"

WAITING_MAX: Final = 64
"""Most commands of one connection that wait for the store."""
WAITING_BYTES_MAX: Final = 64 * 1024 * 1024
"""Most that the commands of all connections may weigh while they wait; one more is refused."""
LANE_BYTES: Final = 1024 * 1024
"""What those of a lane may weigh all the same, when others have filled the room."""
COMMAND_BYTES: Final = 500
"""What a command that waits weighs beside its data, about."""
FULL_MS: Final = 1_000
"""So long a user whose commands are at the cap is refused without a look."""
BATCH_MAX: Final = 256
"""Most connections whose commands, or whose questions, are looked after at once."""
PAUSE_MS: Final = 100
"""First wait after the store failed; doubles up to `PAUSE_MAX_MS`."""
PAUSE_MAX_MS: Final = 1_000


@dataclass(slots=True)
class _Wait:
    """One command to come; `since_ms` is monotonic. The data is held as it goes to the store: as a dictionary it would
    weigh many times what its client sent. `frame` has none.
    """

    session: Session
    frame: wire.Send
    data: bytes
    since_ms: int

    @property
    def size_bytes(self) -> int:
        """What it weighs, about."""
        return len(self.data) + COMMAND_BYTES


def room_of_commands() -> Room:
    """For the commands of all lanes of a node."""
    return Room(WAITING_BYTES_MAX, LANE_BYTES)


class Sender:
    """The commands of the sessions of one lane, also of those that are gone, and what agents ask them.

    Args:
        store: where they go.
        clock: the node's.
        counters: what the node counts.
        store_wait_ms: so long may a command wait before its client is told.
        room: for the commands of all lanes; its own when absent.
    """

    def __init__(
        self, store: Store, clock: Clock, counters: Counters, *, store_wait_ms: int, room: Room | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._counters = counters
        self._store_wait_ms = store_wait_ms
        self._lines: dict[ConnectionId, deque[_Wait]] = {}
        self._asking: dict[Session, None] = {}
        self._full: dict[UserId, int] = {}
        self._place = Place(room or room_of_commands())
        self._reminding = 0
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        return f"<Sender waiting={self.waiting} asking={len(self._asking)}>"

    @property
    def waiting(self) -> int:
        """How many commands wait for the store or are under way."""
        return sum(len(line) for line in self._lines.values())

    @property
    def is_busy(self) -> bool:
        """Whether something waits or is under way, commands or questions."""
        return bool(self._lines or self._asking or self._reminding)

    def take(self, session: Session, frame: wire.Send) -> None:
        """Judges a command and puts it on its way; the client is answered when it is stored, or refused."""
        try:
            check_command(frame.type, frame.data)
        except EventBusError as error:
            self._refuse(session, frame, error)
            return
        wait = _Wait(session, replace(frame, data={}), msgpack.packb(frame.data), self._clock.monotonic_ms())
        line = self._lines.get(session.connection_id, ())
        if len(line) >= WAITING_MAX or not self._place.take(wait.size_bytes):
            busy = RateLimited(
                f"{len(line)} commands of this connection, and {self._place.held_by_all} bytes of all, wait for the"
                " store already; send this one again later"
            )
            self._refuse(session, frame, busy)
            return
        self._lines.setdefault(session.connection_id, deque()).append(wait)
        self._idle.clear()
        self._wanted.set()

    def ask_again(self, session: Session) -> None:
        """Sends the questions that are open to a client that has caught up: a device may have missed or lost them."""
        self._asking[session] = None
        self._wanted.set()

    async def flush(self, timeout_ms: int) -> bool:
        """Waits until nothing waits for the store any more. Returns False when that takes longer."""
        try:
            async with asyncio.timeout(seconds(timeout_ms)):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Stores what waits until it is cancelled."""
        pause_ms = PAUSE_MS
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            lines = list(islice(self._lines.items(), BATCH_MAX))
            sessions = list(islice(self._asking, BATCH_MAX))
            for session in sessions:
                del self._asking[session]
            self._reminding = len(sessions)
            done = await asyncio.gather(*(self._store_next(line) for _, line in lines), self._remind_all(sessions))
            self._reminding = 0
            for connection, line in lines:
                # Who has more to say has it after the others: those who never fall silent would keep them waiting.
                del self._lines[connection]
                if line:
                    self._lines[connection] = line
            if not self._lines:
                self._idle.set()
            if self._lines or self._asking:
                self._wanted.set()
            if all(done):
                pause_ms = PAUSE_MS
            else:
                await asyncio.sleep(seconds(pause_ms))
                pause_ms = min(2 * pause_ms, PAUSE_MAX_MS)

    # --- commands ---------------------------------------------------------------------------------------------------

    async def _store_next(self, line: deque[_Wait]) -> bool:
        """Stores the first command of a line. Returns whether the store answered."""
        wait = line[0]
        try:
            entry = await self._stored(wait)
        except StoreError as error:
            self._counters.store_errors[error.code] += 1
            late = self._clock.monotonic_ms() - wait.since_ms >= self._store_wait_ms
            if error.retryable and not late:
                return False
            if isinstance(error, StoreUnavailable):
                error = StoreUnavailable("the store is away, and it is not known whether this is stored")
            self._refuse(wait.session, wait.frame, error)
        except EventBusError as error:
            self._refuse(wait.session, wait.frame, error)
        except Exception:
            # One command that does what it must not is no reason for the node to stop taking others.
            logger.exception(
                "a command could not be handled",
                extra={"user": wait.session.user, "session": wait.session.session_id, "type": wait.frame.type},
            )
            self._refuse(wait.session, wait.frame, EventBusError("the node could not handle this"))
        else:
            self._counters.commands_stored[_known(wait.frame.type)] += 1
            if wait.session.is_open:
                wait.session.send(wire.Sent(ref=wait.frame.ref, id=entry))
        line.popleft()
        self._place.give_back(wait.size_bytes)
        return True

    async def _stored(self, wait: _Wait) -> EntryId:
        """Raises: EventBusError, why it is not stored."""
        frame = wait.frame
        if frame.type == ANSWER:
            return await self._answered(wait)
        session = wait.session
        self._check_full(session.user)
        command = NewCommand(
            user=session.user,
            session=session.session_id,
            type=frame.type,
            data=wait.data,
            ref=ref_word(frame.ref),
            run=frame.run,
            thread=frame.thread,
        )
        result = await self._store.send_command(command)
        if result is CommandRefusal.FULL:
            self._forget_full()
            self._full[session.user] = self._clock.monotonic_ms() + FULL_MS
            raise RateLimited(_AT_CAP)
        if result is CommandRefusal.RUN_CLOSED:
            raise RunClosed(f"the run {frame.run} is completed")
        return result.id

    def _check_full(self, user: UserId) -> None:
        """Raises: RateLimited: the user's commands were at the cap just now. Looking for room among them is dear, and
        a client that floods must not have the store do it for each frame.
        """
        if user in self._full:
            self._forget_full()
            if user in self._full:
                raise RateLimited(_AT_CAP)

    def _forget_full(self) -> None:
        now_ms = self._clock.monotonic_ms()
        self._full = {known: until_ms for known, until_ms in self._full.items() if until_ms > now_ms}

    async def _answered(self, wait: _Wait) -> EntryId:
        user, frame = wait.session.user, wait.frame
        data = unpack(wait.data)
        name = data["question"]
        record = pick_question(await self._store.questions(user), name, frame.run)
        if record is None:
            raise refused_answer(Answered.UNKNOWN_QUESTION, name)
        answer = user_answer(
            record,
            user,
            wait.session.session_id,
            data["answer"],
            ref=ref_word(frame.ref),
            now_ms=self._clock.now_ms(),
        )
        outcome = await self._store.answer(answer)
        if outcome.result is not Answered.ACCEPTED:
            raise refused_answer(outcome.result, name)
        return outcome.entry or ENTRY_ZERO

    def _refuse(self, session: Session, frame: wire.Send, error: EventBusError) -> None:
        self._counters.frames_refused[error.code] += 1
        if session.is_open:
            session.send(wire.ErrorFrame(code=error.code, message=str(error), ref=frame.ref))

    # --- questions --------------------------------------------------------------------------------------------------

    async def _remind_all(self, sessions: Sequence[Session]) -> bool:
        """Sends sessions the questions that are open. Returns whether the store answered.

        Few users are asked anything, and thousands of sessions may come at once: a look for each in one write.
        """
        sessions = [session for session in sessions if session.is_open]
        if not sessions:
            return True
        answers: Sequence[bool | StoreError]
        try:
            answers = await self._store.have_questions([session.user for session in sessions])
        except StoreError as error:
            answers = [error] * len(sessions)
        for session, answer in zip(sessions, answers, strict=True):
            if isinstance(answer, StoreError):
                self._missed(session, answer)
        asked = [session for session, answer in zip(sessions, answers, strict=True) if answer is True]
        done = await asyncio.gather(*(self._remind(session) for session in asked))
        return all(done) and not any(isinstance(answer, StoreError) for answer in answers)

    def _missed(self, session: Session, error: StoreError) -> None:
        self._counters.store_errors[error.code] += 1
        if error.retryable and not session.is_closed:
            self._asking[session] = None

    async def _remind(self, session: Session) -> bool:
        """Sends a session the questions that are open. Returns whether the store answered; if not, they are due still.

        A question of a run that is completed is not asked any more: its agent may have died before it could say so.
        """
        try:
            if session.is_open:
                session.remind(await self._open_questions(session), self._clock.now_ms())
        except StoreError as error:
            self._missed(session, error)
            return False
        except Exception:
            # One user's questions are no reason for the node to stop looking after those of others.
            logger.exception(
                "open questions could not be asked again", extra={"user": session.user, "session": session.session_id}
            )
        return True

    async def _open_questions(self, session: Session) -> Sequence[tuple[EntryId, Payload]]:
        user = session.user
        asked = [record for record in await self._store.questions(user) if record.is_open and record.entry is not None]
        if not asked:
            return ()
        runs = list(dict.fromkeys(record.run for record in asked))
        known = dict(zip(runs, await _all(self._store.run(user, run) for run in runs), strict=True))

        def is_asked(record: QuestionRecord) -> bool:
            run = known[record.run]
            return run is None or run.fields.get("state") != "completed"

        entries = await _all(
            self._store.entry(user, record.entry) for record in asked if record.entry is not None and is_asked(record)
        )
        found = [(entry.id, payload_of(user, entry.id, entry.body)) for entry in entries if entry is not None]
        # What somebody else wrote into the stream is no question; it ends as a dead letter where it is read.
        return [(entry, payload) for entry, payload in found if isinstance(payload, Payload)]


async def _all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """The answers to some calls of the store, which leave in one write."""
    return await asyncio.gather(*calls)


def _known(type: str) -> str:
    """A command's type for the counts; an application's own are many."""
    return type if type in ("cancel", "answer", "message") else "other"
