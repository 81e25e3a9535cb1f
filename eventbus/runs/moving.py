"""A run's moves: each becomes events, which are handed over in the same turn of the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from eventbus.clock import new_event_id
from eventbus.errors import InvalidEvent
from eventbus.event import Event, Require, make_event
from eventbus.events import CallId
from eventbus.ids import EventId
from eventbus.run import (
    UNSENDABLE,
    Move,
    Owed,
    Phase,
    RunState,
    ToolEnd,
    ToolStart,
    next_call_id,
    resumed,
    step,
)
from eventbus.runs.hold import RunContext, RunHold
from eventbus.runs.inbound import RunInbound
from eventbus.runs.timeout import RunTimer
from eventbus.schemas import Schemas
from eventbus.store.running import RunRecord
from eventbus.watch import open_calls, seq_of

__all__ = ["RunMoves"]


class RunMoves:
    """Where a run stands in its state machine, and the way from a move to its events.

    Args:
        context: of the run.
        hold: takes the events.
        inbound: knows whether the run is used where it was entered.
        timer: knows whether its time is over.
    """

    def __init__(self, context: RunContext, hold: RunHold, inbound: RunInbound, timer: RunTimer) -> None:
        self._context: Final = context
        self._hold: Final = hold
        self._inbound: Final = inbound
        self._timer: Final = timer
        self.state = RunState()
        """Where the run stands."""

    @property
    def is_open(self) -> bool:
        """Whether it has begun and has not ended."""
        return self.state.phase is Phase.STARTED

    async def do(self, move: Move, require: Require | None = None) -> EventId:
        """Make a move of the agent's: all of it, or nothing and an error. Cancelled, nothing was done.

        Returns:
            The id of its last event.

        Raises:
            InvalidEvent, RunMisused: the move is none that can be made.
            RunClosed, PublishTimeout, ...: as `Run.thinking`.
        """
        time_ms = self._now_ms()
        await self._context.line.room()
        return self._do_now(move, time_ms, require)

    async def begin_call(self, tool: str, arguments: Mapping[str, Any] | None, call_id: CallId | None) -> CallId:
        """A tool is called. Returns its call id; cancelled, the call has not begun. Raises: as `do`."""
        # A tool that waits for room has no id yet: another may begin meanwhile. Its time is that of its entering.
        time_ms = self._now_ms()
        await self._context.line.room()
        call_id = next_call_id(self.state) if call_id is None else call_id
        self._do_now(ToolStart(call_id=call_id, tool=tool, arguments=arguments), time_ms)
        return call_id

    def end_call(self, call_id: CallId, result: Any, error: str | None) -> InvalidEvent | None:
        """A tool is done. Returns what is wrong with its result."""
        if call_id not in self.state.open:
            return None  # it ended with the run
        return self.owe(
            ToolEnd(call_id=call_id, result=result, error=error), instead=ToolEnd(call_id=call_id, error=UNSENDABLE)
        )

    def owe(self, move: Move, *, instead: Move) -> InvalidEvent | None:
        """Make a move that is owed: it always comes, with `instead` where its own events can not be made.

        Returns:
            Why they can not.
        """
        time_ms = self._now_ms()
        problem = None
        try:
            state, owed = step(self.state, move)
            made = [self._event(one, time_ms, self._context.services.schemas) for one in owed]
        except InvalidEvent as error:
            problem = error
            state, owed = step(self.state, instead)
            # The application's own schemas can not refuse what is owed.
            made = [self._event(one, time_ms, None) for one in owed]
        self._take(state, made)
        return problem

    def take_over(self, record: RunRecord) -> None:
        """Go on where the run's last process left it; what that one left open ends."""
        state, owed = resumed(seq_of(record), open_calls(record))
        time_ms = self._now_ms()
        self._take(state, [self._event(one, time_ms, None) for one in owed])

    def _now_ms(self) -> int:
        return self._context.services.clock.now_ms()

    def _do_now(self, move: Move, time_ms: int, require: Require | None = None) -> EventId:
        self._inbound.check_loop()
        self._context.line.check()
        self._hold.check()
        self._timer.check()
        state, owed = step(self.state, move)
        made = [self._event(one, time_ms, self._context.services.schemas, require) for one in owed]
        self._take(state, made)
        return made[-1].id

    def _take(self, state: RunState, made: list[Event]) -> None:
        self.state = state
        over = state.phase is Phase.COMPLETED
        for event in made:
            self._hold.put(event, last=over and event is made[-1])

    def _event(self, owed: Owed, time_ms: int, schemas: Schemas | None, require: Require | None = None) -> Event:
        made = make_event(
            id=new_event_id(self._context.services.clock),
            type=owed.type,
            user=self._context.user,
            time_ms=time_ms,
            data=owed.data,
            thread=self._context.thread,
            run=self._hold.id,
            seq=owed.seq,
            require=require,
            max_event_bytes=self._context.services.max_event_bytes,
            schemas=schemas,
        )
        self._context.services.check_demand(made)
        return made
