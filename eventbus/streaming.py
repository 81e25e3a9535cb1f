"""Token streams of a run, the publisher's side: `async with run.stream() as stream: await stream.write(token)`.

Writing only fills a buffer; one task a stream stores it, a piece at a time, for as long as the store takes. The whole
text is kept until the stream is left, so whatever the store has lost can be sent again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from eventbus.clock import Clock
from eventbus.errors import EventBusError, InvalidEvent, RunClosed, RunMisused, StoreError
from eventbus.ids import ENTRY_ZERO, RunId, ThreadId, UserId
from eventbus.publishing.retries import RetryPolicy
from eventbus.store.texts import TextAnswer, TextOutcome, TextPiece, TextRead, TextStore
from eventbus.text import Outgoing, Piece, text_data
from eventbus.timers import Timers

__all__ = ["TextStream", "TextWay", "texts_left"]

_log = logging.getLogger("eventbus.streaming")

_PAGE: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TextWay:
    """How the text of a bus's runs gets to the store.

    Attributes:
        store: where to.
        clock: monotonic time.
        timers: where waits go.
        policy: what is tried again, and when.
        flush_ms: so long the first character of a piece waits for more.
        flush_bytes: a piece of so many bytes waits for nothing.
        deadline_ms: so long the end of a stream waits for the store; what it has not by then is in the event alone.
        is_closed: whether the bus is: nothing is stored any more.
    """

    store: TextStore
    clock: Clock
    timers: Timers
    policy: RetryPolicy
    flush_ms: int
    flush_bytes: int
    deadline_ms: int
    is_closed: Callable[[], bool] = lambda: False


class TextStream:
    """Text that a run gives piece by piece, made by `Run.stream`.

    Leaving it stores what is left, sends the event `agent_text` with the whole text, and ends the stream. When an
    exception passes through, what was written so far is sent all the same, with `partial: true`.

    Args:
        way: to the store.
        user: whose run it is.
        run: the run.
        thread: where it belongs.
        name: unique in the run.
        max_bytes: most that the text may have in UTF-8.
        owe: hands the data of the event over to the run, which sends it; returns what is wrong with it.
        left: called when the stream has ended.

    Attributes:
        name: of the stream.
    """

    def __init__(
        self,
        way: TextWay,
        *,
        user: UserId,
        run: RunId,
        thread: ThreadId | None,
        name: str,
        max_bytes: int,
        owe: Callable[[Mapping[str, Any]], InvalidEvent | None],
        left: Callable[[TextStream], object] = lambda _: None,
    ) -> None:
        self.name: Final = name
        self._way = way
        self._user = user
        self._run = run
        self._thread = thread
        self._out = Outgoing(name, flush_ms=way.flush_ms, flush_bytes=way.flush_bytes, max_bytes=max_bytes)
        self._owe = owe
        self._told_left = left
        self._nudge = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._failure: EventBusError | None = None
        self._left = False

    def __repr__(self) -> str:
        return f"<TextStream {self._out!r} of run {self._run}>"

    @property
    def text(self) -> str:
        """What was written so far."""
        return self._out.text

    async def __aenter__(self) -> Self:
        """Begin; nothing is stored before something is written, and nothing waited for.

        Raises:
            RunMisused: it was entered before.
        """
        if self._sender is not None:
            raise RunMisused("a token stream is entered once: make another with `run.stream(...)`")
        self._sender = asyncio.create_task(self._send(), name=f"eventbus-text-{self.name}")
        return self

    async def write(self, text: str) -> None:
        """Take text. Returns at once: it leaves with what else is written within a few milliseconds.

        While the store is away it is kept here, and stored when the store is back.

        Args:
            text: of any length, also a part of a word.

        Raises:
            InvalidEvent: it is no text, or the whole does not fit into an event (`EVENTBUS_MAX_EVENT_BYTES`).
            RunMisused: the stream was not entered, or is over.
            RunClosed: the run was closed: this process was taken for dead.
            StoreError: the store refuses text for good.
            EventBusError: the bus is closed.

        Whenever it raises, it has taken nothing. Cancelled, it has taken the text.
        """
        if self._sender is None or self._left:
            raise RunMisused("write inside `async with run.stream() as stream:`")
        if self._failure is not None:
            raise self._failure
        if self._way.is_closed():
            raise EventBusError("the bus is closed")
        was_empty = self._out.due_ms(0) is None
        self._out.write(text, self._way.clock.monotonic_ms())
        if was_empty:
            self._nudge.set()
        if self._out.is_full:
            self._nudge.set()
            await asyncio.sleep(0)  # an agent that writes without waiting for anything must let its text go

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the stream. Cancelled, it does so all the same, within the publish deadline.

        Raises:
            RunClosed: the block ended well, and the run was closed meanwhile: the text is in no event.
            InvalidEvent: the block ended well, and the run's schemas refuse the event with the text.
        """
        if self._left:
            return
        self._left = True
        ending = asyncio.create_task(self._end(partial=error is not None), name=f"eventbus-text-end-{self.name}")
        cancelled: asyncio.CancelledError | None = None
        while not ending.done():
            try:
                await asyncio.wait({ending})
            except asyncio.CancelledError as again:
                cancelled = again
        problem = ending.result()
        if cancelled is not None and not isinstance(error, asyncio.CancelledError):
            raise cancelled
        if problem is not None and error is None:
            raise problem

    # --- storing ------------------------------------------------------------------------------------------------------

    async def _send(self) -> None:
        """Store what is written until all of it is stored, or can never be."""
        out, clock = self._out, self._way.clock
        failures = 0
        while not out.is_done:
            due_ms = out.due_ms(clock.monotonic_ms())
            if due_ms is None:
                await self._nudge.wait()
                self._nudge.clear()
            elif due_ms > 0:
                await self._nudged_or_after(due_ms)
            else:
                piece = out.take()
                try:
                    answer = await self._store(piece)
                except StoreError as error:
                    failures += 1
                    wait_ms = self._way.policy.wait_ms(error, failures)
                    if wait_ms is None:
                        _log.error("the text of a run can not be stored: %s", error, extra={"run": self._run})
                        self._failure = error
                        return
                    _log.info("the text of a run is tried again in %d ms: %s", wait_ms, error, extra={"run": self._run})
                    await self._after(wait_ms)
                    continue
                failures = 0
                self._failure = self._judged(piece, answer)
                if self._failure is not None:
                    return

    async def _store(self, piece: Piece) -> TextAnswer:
        return await self._way.store.append_text(
            TextPiece(
                user=self._user,
                run=self._run,
                stream=self.name,
                thread=self._thread,
                offset=piece.offset,
                text=piece.text,
                last=piece.last,
            )
        )

    def _judged(self, piece: Piece, answer: TextAnswer) -> EventBusError | None:
        out = self._out
        match answer.outcome:
            case TextOutcome.STORED | TextOutcome.DUPLICATE:
                out.has_stored(piece, answer.length)
            case TextOutcome.ELSEWHERE if answer.length <= len(out):
                out.wanted_from(answer.length)
            case TextOutcome.ELSEWHERE:
                return RunMisused(f"another process writes to the stream {self.name!r} of run {self._run}")
            case TextOutcome.ENDED | TextOutcome.RUN_CLOSED:
                return RunClosed(
                    f"run {self._run} was closed, so its stream {self.name!r} takes nothing more: the run had shown no"
                    " sign of life, or its id is used twice"
                )
        return None

    async def _nudged_or_after(self, ms: int) -> None:
        timer = self._way.timers.call_later(ms, self._nudge.set)
        try:
            await self._nudge.wait()
        finally:
            timer.cancel()
        self._nudge.clear()

    async def _after(self, ms: int) -> None:
        rung = asyncio.Event()
        timer = self._way.timers.call_later(ms, rung.set)
        try:
            await rung.wait()
        finally:
            timer.cancel()

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _end(self, *, partial: bool) -> EventBusError | None:
        """Store what is left, hand the event over, take the stream off the index. Returns what went wrong."""
        sender = self._sender
        if sender is None:
            return None
        out, way = self._out, self._way
        end_ms = way.clock.monotonic_ms() + way.deadline_ms
        out.close()
        self._nudge.set()
        try:
            await self._until(sender, 0 if way.is_closed() else way.deadline_ms)
            if len(out) == 0:
                return None
            if isinstance(self._failure, RunClosed):
                return self._failure
            if not out.is_done:
                _log.warning(
                    "the store has %d of %d characters of a text, only the event has them all",
                    out.stored,
                    len(out),
                    extra={"run": self._run, "stream": self.name},
                )
            # After the last piece: whoever sees the event has been sent the text before it, or gets it with it.
            problem = self._owe(text_data(self.name, out.text, partial=partial))
            await self._close(end_ms)
            return problem
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            self._told_left(self)

    async def _until(self, sender: asyncio.Task[None], ms: int) -> None:
        late = asyncio.Event()
        timer = self._way.timers.call_later(ms, late.set)
        waiting = asyncio.ensure_future(late.wait())
        try:
            await asyncio.wait({sender, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            waiting.cancel()

    async def _close(self, end_ms: int) -> None:
        failures = 0
        while True:
            try:
                await self._way.store.close_texts(self._user, self._run, [self.name])
                return
            except StoreError as error:
                failures += 1
                wait_ms = self._way.policy.wait_ms(error, failures)
                if wait_ms is None or self._way.clock.monotonic_ms() + wait_ms >= end_ms:
                    # It stays on the index for the retention, and whoever comes late is sent it beside the event.
                    _log.info("stream %r of run %s stays open: %s", self.name, self._run, error)
                    return
                await self._after(wait_ms)


async def texts_left(store: TextStore, user: UserId, run: RunId) -> dict[str, str]:
    """The text of the streams that a run has open: what its process wrote before it died.

    Returns:
        By the name of the stream; of one that lacks a piece nothing.

    Raises:
        StoreError: the store does not answer.
    """
    (index,) = await store.open_texts([user])
    if isinstance(index, StoreError):
        raise index
    texts = {found.stream: "" for found in index if found.run == run}
    after, more = ENTRY_ZERO, bool(texts)
    while more:
        (page,) = await store.read_texts([TextRead(user=user, run=run, after=after, count=_PAGE)])
        if isinstance(page, StoreError):
            raise page
        for delta in page.deltas:
            after = delta.id
            if delta.stream in texts and delta.offset <= len(texts[delta.stream]):
                texts[delta.stream] += delta.text[len(texts[delta.stream]) - delta.offset :]
        more = page.more
    return _known_whole(texts, {found.stream: found.length for found in index if found.run == run})


def _known_whole(texts: Mapping[str, str], lengths: Mapping[str, int]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if text and len(text) >= lengths[name]}
