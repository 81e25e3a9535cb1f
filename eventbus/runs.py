"""Runs: what an agent does, told to its user as it happens. Made by `Bus.run`.

The state machine is `eventbus.run`. Here are time, ids and the way to the publisher. Everything between a move of the
state machine and the handing over of its events is one turn of the event loop, so tasks may share a run.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from eventbus import events
from eventbus.clock import Clock, new_event_id
from eventbus.errors import InvalidEvent, InvalidField, RunMisused
from eventbus.event import Event, Require, make_event
from eventbus.events import CallId, Outcome
from eventbus.ids import EventId, RunId, ThreadId, UserId, parse_run_id, parse_thread_id, parse_user_id, run_id_from
from eventbus.receipt import Receipt
from eventbus.run import (
    AGENT_FAILED,
    TOOL_CANCELLED,
    TOOL_FAILED,
    UNSENDABLE,
    Complete,
    Emit,
    Move,
    Owed,
    Phase,
    RunState,
    Start,
    Think,
    ToolEnd,
    ToolStart,
    next_call_id,
    step,
)
from eventbus.runline import RunLine
from eventbus.schemas import Schemas

__all__ = ["MAX_RECEIPTS", "PublicError", "Run", "RunContext", "Tool"]

_log = logging.getLogger("eventbus.runs")

PublicError = str | Callable[[BaseException], str | None]
"""What the user is told of an error: words, or what makes them of the exception (None or blank: the library's own)."""
MAX_RECEIPTS: Final = 10_000
"""So many receipts a run keeps, the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What a run shares with the runs below it.

    Attributes:
        line: the way to the publisher; one for all, so that their events keep the order in which things happened.
        clock: where the time comes from.
        schemas: what the data of the application's own types must hold.
        max_event_bytes: the most that the data of an event may take as MessagePack.
        user: whose run it is.
        thread: where it belongs.
    """

    line: RunLine
    clock: Clock
    schemas: Schemas
    max_event_bytes: int
    user: UserId
    thread: ThreadId | None

    @classmethod
    def of(
        cls, line: RunLine, *, clock: Clock, schemas: Schemas, max_event_bytes: int, user: str, thread: str | None
    ) -> Self:
        """Judge the ids. Raises: InvalidEvent, naming `user` or `thread`."""
        try:
            return cls(
                line=line,
                clock=clock,
                schemas=schemas,
                max_event_bytes=max_event_bytes,
                user=parse_user_id(user),
                thread=None if thread is None else parse_thread_id(thread),
            )
        except InvalidField as error:
            raise InvalidEvent(error.field, error.problem) from None


class Run:
    """A run of an agent: `async with bus.run(user=..., agent=...) as run:`.

    Entering it sends `agent_started`. Leaving it ends the tools and child runs that are still open, sends
    `agent_completed` and waits until everything is stored. An exception passes on after that: `CancelledError` ends the
    run as `cancelled`, any other as `failed`.

    Calls return when their event is on its way, in the order of the calls. That one could not be stored is raised by
    the next call, which has done nothing then, or at the end of the run; what is not stored is sent again in its order.

    Attributes:
        id: the run id.
        agent: the agent's name.
        parent: the run that this one works for, None for a run of its own.
        result: what the agent found, any JSON value; set it before the end.
        error: set it to words for the user, and the run ends as `failed` with them.
    """

    def __init__(
        self,
        context: RunContext,
        *,
        agent: str,
        run: str | None = None,
        parent: Run | None = None,
        public_error: PublicError | None = None,
    ) -> None:
        events.agent_started(agent=agent)  # refused here rather than when it is entered
        try:
            given = None if run is None else parse_run_id(run)
        except InvalidField as error:
            raise InvalidEvent(error.field, error.problem) from None
        self.id: Final[RunId] = given or run_id_from(context.clock.now_ms(), secrets.token_bytes(10))
        self.agent: Final = agent
        self.parent: Final = None if parent is None else parent.id
        self.result: Any = None
        self.error: str | None = None
        self._context = context
        self._above = parent
        self._public_error = public_error
        self._state = RunState()
        self._children: list[Run] = []
        self._receipts: deque[Receipt] = deque(maxlen=MAX_RECEIPTS)

    def __repr__(self) -> str:
        state = self._state
        return f"<Run {self.id} of {self.agent!r} {state.phase} seq={state.seq} open_tools={len(state.open)}>"

    @property
    def user(self) -> UserId:
        """Whose run it is."""
        return self._context.user

    @property
    def thread(self) -> ThreadId | None:
        """The thread in which it belongs."""
        return self._context.thread

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """The receipts of the events that are known to be stored, oldest first; at most `MAX_RECEIPTS`."""
        return tuple(self._receipts)

    # --- the life of a run --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Send `agent_started`. Cancelled, the run has not begun and owes nothing."""
        if self._above is not None and self._above._state.phase is not Phase.STARTED:
            raise RunMisused(
                "the run above has not started or is over: enter a child run inside `async with` of its parent"
            )
        await self._do(Start(agent=self.agent, parent=self.parent))
        if self._above is not None:
            self._above._children.append(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run. Cancelled, it waits for what is owed all the same, at most the publish deadline."""
        problem = self._end(error)
        if self._above is not None:
            if problem is not None and error is None:
                raise problem
            return  # the run above waits for what is not stored yet
        failure = await self._context.line.settle()
        if failure is not None and error is not None:
            # The agent's own exception passes on; this one must not take its place.
            _log.error("run %s: events could not be stored: %s", self.id, failure)
        elif failure is not None:
            raise failure
        elif problem is not None and error is None:
            raise problem

    def _end(self, error: BaseException | None) -> InvalidEvent | None:
        """Make the last events and hand them over, without waiting. Returns what is wrong with the result."""
        if self._above is not None and self in self._above._children:
            self._above._children.remove(self)
        if self._state.phase is not Phase.STARTED:
            return None  # ended with the run above it
        for child in tuple(self._children):
            child._abandon(error)
        outcome, words = self._judged(error)
        result = self.result if outcome is Outcome.SUCCESS else None
        return self._owe(
            Complete(outcome=outcome, result=result, error=words),
            instead=Complete(outcome=Outcome.FAILED, error=UNSENDABLE),
        )

    def _judged(self, error: BaseException | None) -> tuple[Outcome, str | None]:
        if error is None:
            words = _words(self.error)
            return (Outcome.SUCCESS, None) if words is None else (Outcome.FAILED, words)
        if isinstance(error, asyncio.CancelledError):
            return Outcome.CANCELLED, _words(self.error)
        _log.error("run %s of agent %r failed", self.id, self.agent, exc_info=error)
        return Outcome.FAILED, _words(self.error) or _public(self._public_error, error) or AGENT_FAILED

    def _abandon(self, error: BaseException | None) -> None:
        """End a child run that is open when the run above it ends."""
        for child in tuple(self._children):
            child._abandon(error)
        cancelled = isinstance(error, asyncio.CancelledError)
        completed = Complete(outcome=Outcome.CANCELLED) if cancelled else _LEFT
        self._owe(completed, instead=completed)
        if self._above is not None:
            self._above._children.remove(self)

    # --- what happens in it -------------------------------------------------------------------------------------------

    async def thinking(self, text: str, **more: Any) -> EventId:
        """Tell the user what the agent thinks (`agent_thinking`).

        Args:
            text: words for the user, not blank.
            more: further fields of the event's data.

        Returns:
            The event id.

        Raises:
            InvalidEvent: `field` names what is wrong; nothing was sent.
            RunMisused: the run has not started, or is over.
            PublishTimeout, ...: an earlier event of the run could not be stored yet; this one was not taken.

        Cancelled, nothing was sent.
        """
        return await self._do(Think(text=text, more=more))

    async def publish(self, type: str, data: Mapping[str, Any], *, require: Require | None = None) -> EventId:
        """Send an event of another type inside the run; it takes a `seq` like the others.

        Args:
            type: any but the five critical types, which the run sends itself.
            data: a JSON object.
            require: a demanded confirmation.

        Returns, Raises: as `thinking`.
        """
        return await self._do(Emit(type=type, data=data), require)

    def tool(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        call_id: str | None = None,
        public_error: PublicError | None = None,
    ) -> Tool:
        """A call of a tool: `async with run.tool("search", {"query": "..."}) as tool: tool.result = ...`.

        Args:
            name: the tool's name, not blank.
            arguments: a JSON object that the user may see.
            call_id: names the call within the run; made when absent.
            public_error: what the user is told when it fails; without it "the tool failed".

        Raises:
            InvalidEvent: `field` names what is wrong.
        """
        events.tool_executing(tool=name, call_id=call_id, arguments=arguments)
        return Tool(self, name, arguments, None if call_id is None else CallId(call_id), public_error)

    def child(self, *, agent: str, run: str | None = None, public_error: PublicError | None = None) -> Run:
        """A run of an agent that works for this one: a run id and a `seq` of its own, and `parent` in its first event.

        Args:
            agent: the agent's name, not blank.
            run: its run id; made when absent.
            public_error: as for `Bus.run`.
        """
        return Run(self._context, agent=agent, run=run, parent=self, public_error=public_error)

    async def flush(self) -> None:
        """Wait until every event so far is stored, those of other runs of the family too.

        Raises:
            PublishTimeout, ...: one could not be stored; it is sent again.

        A cancelled call leaves them on their way.
        """
        await self._context.line.flush()

    # --- from moves to events -----------------------------------------------------------------------------------------

    async def _do(self, move: Move, require: Require | None = None) -> EventId:
        """Make a move of the agent's: all of it, or nothing and an error."""
        time_ms = self._context.clock.now_ms()
        await self._context.line.room()
        return self._do_now(move, time_ms, require)

    def _do_now(self, move: Move, time_ms: int, require: Require | None = None) -> EventId:
        self._context.line.check()
        state, owed = step(self._state, move)
        made = [self._event(one, time_ms, self._context.schemas, require) for one in owed]
        self._take(state, made)
        return made[-1].id

    async def _begin_call(self, tool: str, arguments: Mapping[str, Any] | None, call_id: CallId | None) -> CallId:
        # A tool that waits for room has no id yet: another may begin meanwhile.
        await self._context.line.room()
        call_id = next_call_id(self._state) if call_id is None else call_id
        self._do_now(ToolStart(call_id=call_id, tool=tool, arguments=arguments), self._context.clock.now_ms())
        return call_id

    def _end_call(self, call_id: CallId, result: Any, error: str | None) -> InvalidEvent | None:
        if call_id not in self._state.open:
            return None  # it ended with the run
        return self._owe(
            ToolEnd(call_id=call_id, result=result, error=error), instead=ToolEnd(call_id=call_id, error=UNSENDABLE)
        )

    def _owe(self, move: Move, *, instead: Move) -> InvalidEvent | None:
        """Make a move that is owed: it always comes, with `instead` where its own events can not be made."""
        time_ms = self._context.clock.now_ms()
        problem = None
        try:
            state, owed = step(self._state, move)
            made = [self._event(one, time_ms, self._context.schemas) for one in owed]
        except InvalidEvent as error:
            problem = error
            state, owed = step(self._state, instead)
            # The application's own schemas can not refuse what is owed.
            made = [self._event(one, time_ms, None) for one in owed]
        self._take(state, made)
        return problem

    def _take(self, state: RunState, made: list[Event]) -> None:
        self._state = state
        for event in made:
            self._context.line.put(event, self._receipts.append)

    def _event(self, owed: Owed, time_ms: int, schemas: Schemas | None, require: Require | None = None) -> Event:
        return make_event(
            id=new_event_id(self._context.clock),
            type=owed.type,
            user=self._context.user,
            time_ms=time_ms,
            data=owed.data,
            thread=self._context.thread,
            run=self.id,
            seq=owed.seq,
            require=require,
            max_event_bytes=self._context.max_event_bytes,
            schemas=schemas,
        )


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
        """Send `tool_executing`. Cancelled, the call has not begun and owes nothing."""
        if self._entered:
            raise RunMisused("a call of a tool is entered once: make another with `run.tool(...)`")
        self._entered = True
        self.call_id = await self.run._begin_call(self.name, self._arguments, self.call_id)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send `tool_completed`, without waiting. That it could not be stored is told by the run."""
        words = self._judged(error)
        problem = None if self.call_id is None else self.run._end_call(self.call_id, self.result, words)
        if problem is not None and error is None:
            raise problem

    def _judged(self, error: BaseException | None) -> str | None:
        words = _words(self.error)
        if error is None:
            return words
        if isinstance(error, asyncio.CancelledError):
            return words or TOOL_CANCELLED
        _log.error("tool %r (%s) of run %s failed", self.name, self.call_id, self.run.id, exc_info=error)
        return words or _public(self._public_error, error) or TOOL_FAILED


_LEFT: Final = Complete(outcome=Outcome.FAILED, error="the run above ended before the agent was done")


def _words(text: object) -> str | None:
    """Words for the user, if they are any."""
    return text if isinstance(text, str) and text.strip() else None


def _public(public_error: PublicError | None, error: BaseException) -> str | None:
    if not callable(public_error):
        return _words(public_error)
    try:
        return _words(public_error(error))
    except Exception:  # an error while telling of an error: the library's own words do
        _log.exception("public_error failed")
        return None
