"""The token streams of one run: their names, those that are open, and what a process that is gone has left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any

from eventbus.errors import EventBusError, InvalidEvent
from eventbus.ids import RunId
from eventbus.runs.hold import RunContext
from eventbus.streaming import TextStream, texts_left
from eventbus.text import AROUND_BYTES, free_name, parse_stream, text_data

__all__ = ["RunStreams"]


class RunStreams:
    """Makes the streams of a run and ends those that nobody left.

    Args:
        context: of the run.
        run: its id.
        owe: hands the data of an event `agent_text` over, to be sent in the run; returns what is wrong with it.
    """

    def __init__(
        self, context: RunContext, run: RunId, owe: Callable[[Mapping[str, Any]], InvalidEvent | None]
    ) -> None:
        self._context = context
        self._run = run
        self._owe = owe
        self._names: set[str] = set()
        self._end = ""
        self._open: list[TextStream] = []

    def make(self, name: str) -> TextStream:
        """A stream of that name, with a number behind it where the run had one before. Raises: InvalidEvent."""
        context = self._context
        name = free_name(parse_stream(name)[: 64 - len(self._end)] + self._end, self._names)
        self._names.add(name)
        stream = TextStream(
            context.services.texts,
            user=context.user,
            run=self._run,
            thread=context.thread,
            name=name,
            max_bytes=max(1, context.services.max_event_bytes - AROUND_BYTES),
            owe=self._owe,
            left=self._open.remove,
        )
        self._open.append(stream)
        return stream

    async def leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> BaseException | None:
        """End the streams that are open, for their run ends. Returns what went wrong; never raises."""
        failed: BaseException | None = None
        for stream in tuple(self._open):
            try:
                await stream.__aexit__(kind, error, trace)
            except (EventBusError, asyncio.CancelledError) as raised:
                failed = failed or raised
        return failed

    async def take_over(self, seq: int, stored: Callable[[], Awaitable[None]]) -> None:
        """The run is resumed: what its old process wrote and did not send whole is sent as it is.

        Args:
            seq: of the run's last event now. It stands in the names of the streams from here on: a name that the old
                process used names a stream that has ended.
            stored: returns when all that was handed over is in the store.

        Raises:
            RunClosed, PublishTimeout, ...: what `stored` does.
            StoreError: the store does not answer.
        """
        context, services = self._context, self._context.services
        left = await services.insist(lambda: texts_left(services.store, context.user, self._run))
        for name, text in left.items():
            self._owe(text_data(name, text, partial=True))
        await stored()  # only then are they ended: should this process die before, the next one finds them
        await services.insist(lambda: services.store.close_texts(context.user, self._run))
        self._end = f".{seq}"
