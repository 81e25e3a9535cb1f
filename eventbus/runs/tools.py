"""Calls of tools in a run, and what the user is told of an error. Made by `Run.tool`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from eventbus.errors import InvalidEvent, RunMisused
from eventbus.events import CallId
from eventbus.run import TOOL_CANCELLED, TOOL_FAILED

if TYPE_CHECKING:
    from eventbus.runs import Run

__all__ = ["PublicError", "Tool", "check_public_error", "public_words", "words_of"]

_log = logging.getLogger("eventbus.runs")

PublicError = str | Callable[[BaseException], str | None]
"""What the user is told of an error: words, or what makes them of the exception (None or blank: the library's own)."""


class Tool:
    """A call of a tool, made by `Run.tool`: entering it sends `tool_executing`, leaving it `tool_completed`.

    An exception passes on; the user is told of it in words that give nothing away, and the log has it in full.

    Attributes:
        run: the run in which it is called.
        name: the tool's name.
        call_id: names the call within the run; None until it is entered when none was given.
        result: what it gave, any JSON value; set it before the end.
        error: set it to words for the user, and the call ends with them as its error.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        arguments: Mapping[str, Any] | None,
        call_id: CallId | None,
        public_error: PublicError | None,
    ) -> None:
        self.run: Final = run
        self.name: Final = name
        self.call_id = call_id
        self.result: Any = None
        self.error: str | None = None
        self._arguments = arguments
        self._public_error = public_error
        self._entered = False

    def __repr__(self) -> str:
        return f"<Tool {self.name!r} {self.call_id} of run {self.run.id}>"

    async def __aenter__(self) -> Self:
        """Send `tool_executing`. Cancelled, the call has not begun and owes nothing.

        Raises:
            RunMisused: it was entered before, or the run is not open.
            RunClosed, PublishTimeout, ...: as `Run.thinking`.
        """
        if self._entered:
            raise RunMisused("a call of a tool is entered once: make another with `run.tool(...)`")
        self._entered = True
        self.call_id = await self.run._moves.begin_call(self.name, self._arguments, self.call_id)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send `tool_completed`, without waiting, so nothing can be cancelled. That it could not be stored is told by
        the run.

        Raises:
            InvalidEvent: the block ended well, and `result` can not be sent: the call has ended with an error.
        """
        words = self._judged(error)
        problem = None if self.call_id is None else self.run._moves.end_call(self.call_id, self.result, words)
        if problem is not None and error is None:
            raise problem

    def _judged(self, error: BaseException | None) -> str | None:
        words = words_of(self.error)
        if error is None:
            return words
        if isinstance(error, asyncio.CancelledError):
            return words or TOOL_CANCELLED
        _log.error(
            "tool %r (%s) of run %s failed",
            self.name,
            self.call_id,
            self.run.id,
            exc_info=error,
            extra={"run": self.run.id, "tool": self.name, "call_id": self.call_id},
        )
        return words or public_words(self._public_error, error) or TOOL_FAILED


def words_of(text: object) -> str | None:
    """Words for the user, if they are any."""
    return text if isinstance(text, str) and text.strip() else None


def check_public_error(public_error: PublicError | None) -> PublicError | None:
    """Judge an argument. Raises: InvalidEvent."""
    if public_error is None or callable(public_error) or isinstance(public_error, str):
        return public_error
    raise InvalidEvent("public_error", f"must be words or a function of the exception, not {public_error!r}"[:120])


def public_words(public_error: PublicError | None, error: BaseException) -> str | None:
    """What the application wants the user to be told of an error, None where it leaves that to the library."""
    if not callable(public_error):
        return words_of(public_error)
    try:
        return words_of(public_error(error))
    except Exception:  # an error while telling of an error: the library's own words do
        _log.exception("public_error failed")
        return None
