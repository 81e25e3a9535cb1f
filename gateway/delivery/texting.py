"""Token streams on a node: read once a run, sent to every session that follows.

As the reader does, it works in cycles, in each lane of the store: what has gathered leaves in one write, and the next
cycle begins when that is answered. So a stream that is fast is read in larger steps, and costs a read a cycle, not a
read a piece.

A wake-up may be lost: after each (re)subscription the index of every user who is here is read, and the runs from their
beginning; and while streams are open here, every few seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from eventbus import wire
from eventbus.clock import seconds
from eventbus.errors import StoreError
from eventbus.ids import RunId, ThreadId, UserId
from eventbus.store.texts import OpenText, TextPage, TextRead, TextStore
from eventbus.text import TEXT_EVENT
from gateway.counters import Counters
from gateway.delivery.lanes import Lanes, run_together
from gateway.delivery.texts import Part, RunTexts, Texts
from gateway.transport.framing import Framing

if TYPE_CHECKING:
    from gateway.sessions.session import Session

__all__ = ["Texting"]

logger = logging.getLogger(__name__)

READS_MAX: Final = 256
"""Most runs, and most indexes, that one cycle reads; the others go first in the next."""
PIECES_MAX: Final = 1_000
"""Most pieces of a run that one cycle reads."""
PAUSE_MS: Final = 100
"""How long a cycle waits after the store failed."""
SWEEP_MS: Final = 5_000


class Texting:
    """The token streams of a node.

    Args:
        store: where they are.
        counters: what the node counts.
        held_bytes: most text that is held, about; beyond it text is read again for those who lag.
        sweep_ms: how often open streams are looked after when nothing is heard of them.
    """

    def __init__(self, store: TextStore, counters: Counters, *, held_bytes: int, sweep_ms: int = SWEEP_MS) -> None:
        self._store = store
        self._counters = counters
        self._most_bytes = held_bytes
        self._sweep_ms = sweep_ms
        self._texts: Texts[Session] = Texts(wants=_wants, may_want=_may_want, is_ready=_is_ready)
        self._lanes = Lanes(store, lambda: _Lane(self._texts, store, counters, self._serve))

    def __repr__(self) -> str:
        return f"<Texting {self._texts!r} dirty={sum(len(lane.dirty) for lane in self._lanes.all)}>"

    @property
    def held_bytes(self) -> int:
        """What the text that is held takes, about."""
        return self._texts.held_bytes

    @property
    def open_streams(self) -> int:
        """How many streams are followed that have not ended."""
        return self._texts.open_streams

    # --- what sessions and channels say -------------------------------------------------------------------------------

    def follow(self, session: Session) -> None:
        """The session has caught up: it is sent what is open, and everything from now on."""
        self._texts.join(session.user, session)
        self._look(session.user)

    def leave(self, session: Session) -> None:
        """The session is over; one that never followed is no error."""
        self._texts.leave(session.user, session)

    def filtered(self, session: Session) -> None:
        """The session's filter is another: it is sent what it takes now and did not take before."""
        self._look(session.user)
        self.ready(session)

    def ready(self, session: Session) -> None:
        """The session can be sent something again."""
        for run in self._texts.of_user(session.user):
            self._serve(run, session)

    def came(self, user: UserId, run: RunId) -> None:
        """A stream of the run has grown or ended."""
        followed = self._texts.follow(user, run)
        if followed is not None:
            self._read(followed)

    def subscribed(self) -> None:
        """Messages may have been missed, perhaps with a failover: everything is looked at anew."""
        for run in list(self._texts.runs):
            self._texts.again(run)
            self._read(run)
        for user in self._texts.users:
            self._look(user)

    def _read(self, run: RunTexts) -> None:
        self._lanes.of(run.user).read(run)

    def _look(self, user: UserId) -> None:
        self._lanes.of(user).look(user)

    # --- the cycles ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs the cycles of all lanes until it is cancelled."""
        await run_together(lane.run(self._shrink) for lane in self._lanes.all)

    def _shrink(self) -> None:
        self._texts.shrink(self._most_bytes)

    async def run_sweep(self) -> None:
        """Looks after the streams that are open here, again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(seconds(self._sweep_ms))
            self.sweep()

    def sweep(self) -> None:
        """Looks after the streams that are open here: a message may have been lost, or a publisher."""
        for run in list(self._texts.runs):
            if run.streams:
                self._read(run)
                self._look(run.user)

    # --- sending ------------------------------------------------------------------------------------------------------

    def _serve(self, run: RunTexts, only: Session | None = None) -> None:
        parts, missing = self._texts.owed(run, only)
        frames: dict[tuple[int, Framing], bytes] = {}
        for session, part in parts:
            key = id(part), session.framing
            frame = frames.get(key)
            if frame is None:
                frame = frames[key] = _frame(part, session.framing)
            self._counters.text_frames += 1
            session.connection.send(frame)
        if missing:
            self._texts.again(run)
            self._read(run)


class _Lane:
    """The cycles of one lane.

    Args:
        texts: of all lanes.
        store: where they are.
        counters: what the node counts.
        serve: sends what followers of a run are owed.

    Attributes:
        dirty: the runs to be read.
    """

    def __init__(
        self, texts: Texts[Session], store: TextStore, counters: Counters, serve: Callable[[RunTexts], None]
    ) -> None:
        self._texts = texts
        self._store = store
        self._counters = counters
        self._serve = serve
        self._unsure: dict[UserId, None] = {}
        self._wanted = asyncio.Event()
        self.dirty: dict[RunTexts, None] = {}

    def read(self, run: RunTexts) -> None:
        """The run is read in the next cycle."""
        self.dirty[run] = None
        self._wanted.set()

    def look(self, user: UserId) -> None:
        """The index of the user's streams is read in the next cycle."""
        self._unsure[user] = None
        self._wanted.set()

    async def run(self, after: Callable[[], None]) -> None:
        """Runs cycles until it is cancelled; `after` is called at the end of each."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            answered = await self._cycle()
            after()
            if not answered:
                self._wanted.set()
                await asyncio.sleep(seconds(PAUSE_MS))

    async def _cycle(self) -> bool:
        """One write to the store and its answers. Returns whether the store answered."""
        users = list(self._unsure)[:READS_MAX]
        runs = [run for run in list(self.dirty)[:READS_MAX] if self._texts.run(run.user, run.run) is run]
        for user in users:
            del self._unsure[user]
        for run in list(self.dirty)[:READS_MAX]:
            # Taken off as the read is written: a message that comes from here on marks it again.
            del self.dirty[run]
        if self.dirty or self._unsure:
            self._wanted.set()
        begun = [run.begun for run in runs]
        reads = [TextRead(user=run.user, run=run.run, after=run.cursor, count=PIECES_MAX) for run in runs]
        self._counters.text_reads += len(reads)
        pages, indexes = await asyncio.gather(self._read_pages(reads), self._read_indexes(users))
        # What no time heals (somebody else wrote into a log) is left to its event: others do not wait for it.
        answered = True
        for run, number, page in zip(runs, begun, pages, strict=True):
            if isinstance(page, StoreError):
                self._failed(page)
                if page.retryable:
                    answered = False
                    self.read(run)
            elif run.begun == number:
                self._took(run, page)
        # After the pages: only what is read from here on shows the end of a stream that the index does not name.
        for user, index in zip(users, indexes, strict=True):
            if isinstance(index, StoreError):
                self._failed(index)
                if index.retryable:
                    answered = False
                    self.look(user)
            else:
                for run in self._texts.opened(user, index):
                    self.read(run)
        return answered

    async def _read_pages(self, reads: Sequence[TextRead]) -> Sequence[TextPage | StoreError]:
        try:
            return await self._store.read_texts(reads) if reads else ()
        except StoreError as error:
            return [error] * len(reads)

    async def _read_indexes(self, users: Sequence[UserId]) -> Sequence[Sequence[OpenText] | StoreError]:
        try:
            return await self._store.open_texts(users) if users else ()
        except StoreError as error:
            return [error] * len(users)

    def _failed(self, error: StoreError) -> None:
        self._counters.store_errors[error.code] += 1
        logger.debug("the store failed: %s", error)

    def _took(self, run: RunTexts, page: TextPage) -> None:
        if self._texts.took(run, page.deltas, more=page.more):
            self._texts.again(run)
            self.read(run)
            return
        if page.more:
            self.read(run)
        self._serve(run)


def _frame(part: Part, framing: Framing) -> bytes:
    return framing.frame(
        wire.Text(run=part.run, stream=part.stream, offset=part.offset, text=part.text, final=part.final)
    )


def _wants(session: Session, run: RunId, thread: ThreadId | None) -> bool:
    return session.filter is None or session.filter.matches(TEXT_EVENT, thread, run)


def _may_want(session: Session, run: RunId) -> bool:
    wanted = session.filter
    return wanted is None or (
        (wanted.types is None or TEXT_EVENT in wanted.types) and (wanted.runs is None or run in wanted.runs)
    )


def _is_ready(session: Session) -> bool:
    # Text that a client does not read is not queued: it gets all of it in one frame when it reads again.
    return session.is_open and session.connection.writable
