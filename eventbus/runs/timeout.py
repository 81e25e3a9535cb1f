"""The end of a run that takes too long, where its publisher wants one: `bus.run(..., on_timeout="cancel")` (R24).

A node marks such a run whatever is chosen here (`eventbus.breach`); only the run's own process can end it.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Any, Final

from eventbus.errors import InvalidEvent, RunTimeout
from eventbus.ids import RunId
from eventbus.timers import Cancellable, Timers

__all__ = ["TOOK_TOO_LONG", "OnTimeout", "RunTimer", "on_timeout_of"]

TOOK_TOO_LONG: Final = "the run took too long"
"""What the user is told."""


class OnTimeout(StrEnum):
    """What becomes of a run past its agent timeout: a mark for operators and no more, or its task is cancelled too."""

    MARK = "mark"
    CANCEL = "cancel"


def on_timeout_of(value: str) -> OnTimeout:
    """Read an argument. Raises: InvalidEvent."""
    try:
        return OnTimeout(value)
    except ValueError:
        raise InvalidEvent("on_timeout", f"must be one of {', '.join(OnTimeout)}, not {value!r}") from None


class RunTimer:
    """Cancels the task that entered a run when the run's time is over.

    Args:
        run: which.
        timers: where waits go.
        on_timeout: with `MARK` nothing is done here.
        timeout_ms: how long the run may take.
    """

    def __init__(self, run: RunId, timers: Timers, on_timeout: OnTimeout, timeout_ms: int) -> None:
        self.on_timeout: Final = on_timeout
        self._run = run
        self._timers = timers
        self._timeout_ms = timeout_ms
        self._timer: Cancellable | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancels_before = 0
        self._has_cancelled_task = False
        self._is_over = False

    def enter(self, spent_ms: int = 0) -> None:
        """The run has begun, in the task that calls this.

        Args:
            spent_ms: how long it had been running in a process before, when it is resumed.
        """
        if self.on_timeout is OnTimeout.MARK:
            return
        self._task = asyncio.current_task()
        self._cancels_before = 0 if self._task is None else self._task.cancelling()
        self._timer = self._timers.call_later(max(0, self._timeout_ms - spent_ms), self._ring)

    def check(self) -> None:
        """For an agent that goes on although it was cancelled, or whose thread nothing can interrupt.

        Raises:
            RunTimeout: the run's time is over.
        """
        if self._is_over:
            raise self._error()

    def leave(self, error: BaseException | None) -> BaseException | None:
        """The run's block has ended: nothing cancels it any more.

        Returns:
            What ended it: a `RunTimeout` in place of a cancellation that came from here and from nobody else.
        """
        if self._timer is not None:
            self._timer.cancel()
        task, self._task = self._task, None
        if self._has_cancelled_task and task is not None:
            # As asyncio.timeout does: somebody else may have cancelled the task meanwhile, and that passes on.
            is_ours = task.uncancel() <= self._cancels_before and isinstance(error, asyncio.CancelledError)
            if is_ours:
                return self._error()
        return error

    def _error(self) -> RunTimeout:
        return RunTimeout(f"run {self._run} was not done within its {self._timeout_ms} ms", run=self._run)

    def _ring(self) -> None:
        self._is_over = True
        # The task of an entry that is long over belongs to a thread; its next call is told.
        if self._task is not None and not self._task.done():
            self._has_cancelled_task = True
            self._task.cancel(TOOK_TOO_LONG)
