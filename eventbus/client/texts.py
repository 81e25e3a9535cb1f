"""Token streams for the application of a subscriber: chunks in order, without repeats and without holes.

They go beside the events: whoever is slow with text holds no event up, and its chunks of one stream become one.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Self

from eventbus.errors import CallbackFailed, EventBusError, SubscriberError
from eventbus.event import Event
from eventbus.frames import Text
from eventbus.text import TEXT_EVENT, Chunk, Texts

__all__ = ["Chunk", "TextFeed"]


class TextFeed:
    """What `Subscriber.texts` is: iterate over it, or give the subscriber an `on_text`. One of the two, by one task.

    Args:
        on_text: called with each chunk, and awaited before the next one.
        report: told of what fails.
    """

    def __init__(
        self,
        on_text: Callable[[Chunk], object] | None,
        report: Callable[[EventBusError, BaseException | None], None],
    ) -> None:
        self._on_text = on_text
        self._report = report
        self._texts = Texts()
        self._wanted = on_text is not None
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._over = False

    def want(self) -> Self:
        """From now on somebody takes the chunks. Raises: SubscriberError, when `on_text` does."""
        if self._on_text is not None:
            raise SubscriberError("`on_text` gets the chunks already; give none to iterate over `texts`")
        self._wanted = True
        return self

    # --- from the node ------------------------------------------------------------------------------------------------

    def frame(self, frame: Text) -> None:
        """A part of a stream came."""
        if self._wanted:
            self._texts.came(frame.run, frame.stream, frame.offset, frame.text, final=frame.final)
            self._told()

    def event(self, event: Event) -> None:
        """An event came; one with the whole text of a stream brings what is missing of it."""
        if self._wanted and event.type == TEXT_EVENT and event.run is not None:
            self._texts.completed(event.run, event.data)
            self._told()

    def _told(self) -> None:
        while (left_out := self._texts.overflowing()) is not None:
            what = f"text of stream {left_out.stream!r} of run {left_out.run} from {left_out.offset} on is left out"
            self._report(CallbackFailed(f"{what}: the application is too far behind; its event has all of it"), None)
        if self._texts:
            self._arrived.set()

    # --- to the application -------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        """The next chunk. A cancelled call takes nothing.

        Raises:
            StopAsyncIteration: the subscriber is closed.
        """
        while not self._over:
            chunk = self._texts.take()
            if chunk is not None:
                return chunk
            self._arrived.clear()
            await self._arrived.wait()
        raise StopAsyncIteration

    def begin(self) -> None:
        """The subscriber opens."""
        if self._on_text is not None:
            self._task = asyncio.create_task(self._hand_out(self._on_text), name="eventbus:texts")

    def end(self) -> None:
        """The subscriber is over: no chunk is handed out any more."""
        self._over = True
        self._arrived.set()

    async def aclose(self) -> None:
        """Waits for the callback to end, which is cancelled."""
        self.end()
        task = self._task
        if task is None or task is asyncio.current_task():
            return
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            self._report(CallbackFailed("a defect ended the handing out of texts"), error)

    async def _hand_out(self, on_text: Callable[[Chunk], object]) -> None:
        async for chunk in self:
            try:
                result = on_text(chunk)
                if inspect.isawaitable(result):
                    await result
            except Exception as error:
                told = str(error) or type(error).__name__
                self._report(CallbackFailed(f"on_text failed: {told}"), error)
