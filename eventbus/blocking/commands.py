"""Commands and cancels for threads: what `eventbus.blocking` gives of `eventbus.commands.reader`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

from eventbus.commands import reader as command_reader
from eventbus.ids import EntryId, RunId, SessionId, ThreadId, UserId
from eventbus.runs import inbound as run_inbound

__all__ = ["Cancelled", "Command", "Commands"]

T = TypeVar("T")


class Call(Protocol):
    """Runs a coroutine in the bus's event loop and waits for it."""

    def __call__(self, work: Coroutine[Any, Any, T], /) -> T: ...


class Cancelled:
    """Whether the user has cancelled a run. True in a condition once that is so; any thread may look."""

    __slots__ = ("_inner",)

    def __init__(self, inner: run_inbound.Cancelled) -> None:
        self._inner = inner

    def __repr__(self) -> str:
        return f"<blocking {self._inner!r}>"

    def __bool__(self) -> bool:
        return self._inner.is_set()

    def is_set(self) -> bool:
        """Whether it is so."""
        return self._inner.is_set()

    @property
    def reason(self) -> str:
        """In words, empty before."""
        return self._inner.reason

    @property
    def session(self) -> SessionId | None:
        """From which device, None before."""
        return self._inner.session


class Command:
    """`eventbus.commands.reader.Command` with calls that wait."""

    def __init__(self, inner: command_reader.Command, call: Call) -> None:
        self._inner = inner
        self._call = call
        self.id: Final[EntryId] = inner.id
        self.type: Final[str] = inner.type
        self.data: Final[Mapping[str, Any]] = inner.data
        self.user: Final[UserId] = inner.user
        self.session: Final[SessionId] = inner.session
        self.thread: Final[ThreadId | None] = inner.thread
        self.run: Final[RunId | None] = inner.run
        self.time_ms: Final[int] = inner.time_ms
        self.attempts: Final[int] = inner.attempts

    def __repr__(self) -> str:
        return f"<blocking {self._inner!r}>"

    def ack(self) -> None:
        """It is handled, and does not come again. Asking for the next one does this too."""
        self._call(self._inner.ack())

    def nack(self, delay_ms: int = 1_000) -> None:
        """It could not be handled: it comes again, as `eventbus.Command.nack` says."""
        self._call(self._inner.nack(delay_ms))


class Commands:
    """`for command in run.commands(): ...`, else as `eventbus.commands.reader.Commands`. One thread at a time."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, command_reader.Commands]], call: Call) -> None:
        self._inner = call(make())
        self._call = call

    def __repr__(self) -> str:
        return f"<blocking {self._inner!r}>"

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Command:
        """The next command; asking for it acks the one before. Waits as long as the run, or the bus, is open."""
        found = self._call(self._next())
        if found is None:
            raise StopIteration
        return Command(found, self._call)

    async def _next(self) -> command_reader.Command | None:
        # A future can not carry StopAsyncIteration.
        return await anext(self._inner, None)

    def __enter__(self) -> Self:
        """Begin; nothing is read before a command is asked for."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave: the command in hand is acked when the block ended well, and nacked at once when it raised."""
        self._call(self._inner.__aexit__(kind, error, trace))
