"""Runs for threads: `with bus.run(...) as run:`, with calls that wait. Made by `eventbus.blocking.Bus.run`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Self, TypeVar

from eventbus import runs, streaming
from eventbus.blocking.commands import Cancelled, Commands
from eventbus.commands.reader import Commands as AsyncCommands
from eventbus.confirmation import Sessions
from eventbus.errors import EventBusError
from eventbus.event import Level, Require
from eventbus.events import Outcome
from eventbus.ids import EventId, RunId, ThreadId, UserId
from eventbus.publishing.receipt import Receipt
from eventbus.runs.confirmations import RunConfirmation
from eventbus.text import DEFAULT_STREAM

__all__ = ["Call", "Run", "TextStream", "Tool", "each"]

T = TypeVar("T")
R = TypeVar("R")
"""A receipt whose `wait` blocks."""


class Call(Protocol):
    """Runs a coroutine in the bus's event loop and waits for it."""

    def __call__(self, work: Coroutine[Any, Any, T], /) -> T: ...


def each(call: Call, items: AsyncIterator[T]) -> Generator[T, None, None]:
    """The items as they come, each waited for."""

    async def following() -> T | None:
        return await anext(items, None)

    async def closed() -> None:
        if isinstance(items, AsyncGenerator):
            await items.aclose()

    try:
        while (item := call(following())) is not None:
            yield item
    finally:
        with suppress(EventBusError):  # the bus is closed, and with it whatever this one held
            call(closed())


class _Ending:
    """What a run and a call of a tool have in common: both end with what was found, or with words for the user."""

    _inner: runs.Run | runs.Tool

    def __repr__(self) -> str:
        return f"<blocking {self._inner!r}>"

    @property
    def result(self) -> Any:
        """What it gave, any JSON value; set it before the end."""
        return self._inner.result

    @result.setter
    def result(self, value: Any) -> None:
        self._inner.result = value

    @property
    def error(self) -> str | None:
        """Set it to words for the user, and a run ends as `failed` with them, a tool's call with them as its error."""
        return self._inner.error

    @error.setter
    def error(self, words: str | None) -> None:
        self._inner.error = words


class Run(_Ending, Generic[R]):
    """`eventbus.Run` for a `with` statement; threads may share it. Interrupted, it ends as `failed`."""

    _inner: runs.Run

    def __init__(self, inner: runs.Run, call: Call, receipt: Callable[[Receipt], R]) -> None:
        self._inner = inner
        self._call = call
        self._receipt = receipt

    @property
    def inner(self) -> runs.Run:
        """The run itself, whose calls belong to the bus's event loop."""
        return self._inner

    @property
    def id(self) -> RunId:
        """The run id."""
        return self._inner.id

    @property
    def agent(self) -> str:
        """The agent's name."""
        return self._inner.agent

    @property
    def parent(self) -> RunId | None:
        """The run that this one works for."""
        return self._inner.parent

    @property
    def user(self) -> UserId:
        """Whose run it is."""
        return self._inner.user

    @property
    def thread(self) -> ThreadId | None:
        """The thread in which it belongs."""
        return self._inner.thread

    @property
    def receipts(self) -> tuple[R, ...]:
        """The receipts of the events that are known to be stored, oldest first."""
        return tuple(self._receipt(receipt) for receipt in self._inner.receipts)

    @property
    def outcome(self) -> Outcome | None:
        """How it ended, None before."""
        return self._inner.outcome

    @property
    def cancelled(self) -> Cancelled:
        """Whether the user has cancelled the run. Nothing interrupts a thread: look at it, or call `check`."""
        return Cancelled(self._inner.cancelled)

    def __enter__(self) -> Self:
        """Send `agent_started`, or go on with a run that is resumed: with the errors of entering an `eventbus.Run`."""
        self._call(self._inner.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """End the run and wait until all of it is stored: with the errors of leaving an `eventbus.Run`."""
        return self._call(self._inner.__aexit__(kind, error, trace))

    def check(self) -> None:
        """Raise `RunCancelled` when the user has cancelled the run; it ends the `with` block without more."""
        self._inner.check()

    def commands(self) -> Commands:
        """What the user sends to this run: `for command in run.commands(): ...`, else as `eventbus.Run.commands`."""
        return Commands(self._commands, self._call)

    async def _commands(self) -> AsyncCommands:
        return self._inner.commands()

    def ask(self, text: str, **about: Any) -> Any:
        """Ask the user, and wait for the answer: as `eventbus.Run.ask`, with its arguments and errors."""
        return self._call(self._inner.ask(text, **about))

    def thinking(self, text: str, **more: Any) -> EventId:
        """Tell the user what the agent thinks: as `eventbus.Run.thinking`, with its arguments and errors."""
        return self._call(self._inner.thinking(text, **more))

    def publish(
        self, type: str, data: Mapping[str, Any], *, require: Require | Mapping[str, Any] | None = None
    ) -> EventId:
        """Send an event of another type inside the run: as `eventbus.Run.publish`, with its arguments and errors."""
        return self._call(self._inner.publish(type, data, require=require))

    def tool(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        call_id: str | None = None,
        public_error: runs.PublicError | None = None,
    ) -> Tool:
        """A call of a tool, for a `with` statement: as `eventbus.Run.tool`, with its arguments and errors."""
        return Tool(self._inner.tool(name, arguments, call_id=call_id, public_error=public_error), self._call)

    def child(self, *, agent: str, run: str | None = None, public_error: runs.PublicError | None = None) -> Run[R]:
        """A run of an agent that works for this one: as `eventbus.Run.child`, with its arguments and errors."""
        return Run(self._inner.child(agent=agent, run=run, public_error=public_error), self._call, self._receipt)

    def stream(self, name: str = DEFAULT_STREAM) -> TextStream:
        """Text for the user as it is made, for a `with` statement: as `eventbus.Run.stream`, with its errors."""
        return TextStream(self._inner.stream(name), self._call)

    def flush(self) -> None:
        """Wait until every event so far is stored: as `eventbus.Run.flush`, with its errors."""
        self._call(self._inner.flush())

    def confirmations(
        self, *, level: Level | str = Level.RECEIVED, sessions: Sessions = "any", timeout_ms: int = 60_000
    ) -> Generator[RunConfirmation, None, None]:
        """The confirmations of the run's events as they come: `for one in run.confirmations(): ...`, else as
        `eventbus.Run.confirmations`, with its arguments and errors.
        """

        async def made() -> AsyncIterator[RunConfirmation]:
            return self._inner.confirmations(level=level, sessions=sessions, timeout_ms=timeout_ms)

        return each(self._call, self._call(made()))

    def receipt(self, event: EventId) -> R:
        """Wait until an event of this run is stored, and return its receipt: as `eventbus.Run.receipt`, with its
        errors.
        """
        return self._receipt(self._call(self._inner.receipt(event)))


class TextStream:
    """`eventbus.TextStream` for a `with` statement; threads may share it."""

    def __init__(self, inner: streaming.TextStream, call: Call) -> None:
        self._inner = inner
        self._call = call
        self.name: Final = inner.name

    def __repr__(self) -> str:
        return f"<blocking {self._inner!r}>"

    @property
    def text(self) -> str:
        """What was written so far."""
        return self._inner.text

    def __enter__(self) -> Self:
        """Begin; nothing is stored before something is written."""
        self._call(self._inner.__aenter__())
        return self

    def write(self, text: str) -> None:
        """Take text: as `eventbus.TextStream.write`, with its errors."""
        self._call(self._inner.write(text))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the stream and hand its event over: with the errors of leaving an `eventbus.TextStream`."""
        self._call(self._inner.__aexit__(kind, error, trace))


class Tool(_Ending):
    """`eventbus.Tool` for a `with` statement."""

    _inner: runs.Tool

    def __init__(self, inner: runs.Tool, call: Call) -> None:
        self._inner = inner
        self._call = call
        self.name: Final = inner.name

    @property
    def call_id(self) -> str | None:
        """Names the call within the run; None until it is entered when none was given."""
        return self._inner.call_id

    def __enter__(self) -> Self:
        """Send `tool_executing`: with the errors of entering an `eventbus.Tool`."""
        self._call(self._inner.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send `tool_completed`: with the errors of leaving an `eventbus.Tool`."""
        self._call(self._inner.__aexit__(kind, error, trace))
