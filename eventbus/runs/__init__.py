"""Runs: what an agent does, told to its user as it happens. Made by `Bus.run`.

The state machine is `eventbus.run`, the way from its moves to events `eventbus.runs.moving`. Everything between a move
and the handing over of its events is one turn of the event loop, so tasks may share a run.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from eventbus import events
from eventbus.confirmation import Sessions
from eventbus.errors import InvalidEvent, InvalidField, RunCancelled, RunMisused, RunTimeout
from eventbus.event import Require
from eventbus.events import CallId, Outcome
from eventbus.fields import Level, parse_integer
from eventbus.ids import EventId, RunId, ThreadId, UserId, parse_run_id, run_id_from
from eventbus.publishing.making import demand_of
from eventbus.publishing.receipt import Receipt
from eventbus.run import AGENT_FAILED, UNSENDABLE, Complete, Emit, Phase, Start, Think
from eventbus.runs.hold import MAX_RECEIPTS, RunContext, RunHold
from eventbus.runs.inbound import FromUser, OnCancel, RunInbound, on_cancel_of
from eventbus.runs.moving import RunMoves
from eventbus.runs.streams import RunStreams
from eventbus.runs.timeout import TOOK_TOO_LONG, OnTimeout, RunTimer, on_timeout_of
from eventbus.runs.tools import PublicError, Tool, check_public_error, public_words, words_of
from eventbus.streaming import TextStream
from eventbus.text import DEFAULT_STREAM, TEXT_EVENT
from eventbus.watch import MAX_CALL_ID

if TYPE_CHECKING:
    from eventbus.runs.confirmations import RunConfirmations

__all__ = ["MAX_RECEIPTS", "PublicError", "Run", "RunContext", "Tool"]

_log = logging.getLogger("eventbus.runs")


class Run(FromUser):
    """A run of an agent: `async with bus.run(user=..., agent=...) as run:`.

    Entering it sends `agent_started`. Leaving it ends the tools and child runs that are still open, sends
    `agent_completed` and waits until everything is stored. An exception passes on after that: `CancelledError` ends the
    run as `cancelled`, any other as `failed`. Where the user has cancelled the run, and nobody else its task, the
    `CancelledError` ends with the block, and `outcome` says so.

    A run is its process's for a lease (`EVENTBUS_RUN_LEASE_MS`), renewed as long as the process lives. When that is
    killed, a node ends the run as `failed`.

    Calls return when their event is on its way, in the order of the calls. That one could not be stored is raised by
    the next call, which has done nothing then, or at the end of the run; what is not stored is sent again in its order.

    Attributes:
        id: the run id.
        agent: the agent's name.
        parent: the run that this one works for, None for a run of its own.
        result: what the agent found, any JSON value; set it before the end.
        error: set it to words for the user, and the run ends as `failed` with them.
        outcome: how it ended, None before.
    """

    def __init__(
        self,
        context: RunContext,
        *,
        agent: str,
        run: str | None = None,
        parent: Run | None = None,
        public_error: PublicError | None = None,
        requested_ms: int | None = None,
        resume: bool = False,
        on_cancel: OnCancel | str = OnCancel.TASK,
        on_timeout: OnTimeout | str = OnTimeout.MARK,
    ) -> None:
        events.agent_started(agent=agent)  # refused here rather than when it is entered
        try:
            given = None if run is None else parse_run_id(run)
            if requested_ms is not None:
                parse_integer(requested_ms, "requested_ms", 1)
        except InvalidField as error:
            raise InvalidEvent(error.field, error.problem) from None
        if resume and given is None:
            raise InvalidEvent("run", "is missing: a run is resumed by its id")
        self.id: Final[RunId] = given or run_id_from(context.services.clock.now_ms(), secrets.token_bytes(10))
        self.agent: Final = agent
        self.parent: Final = None if parent is None else parent.id
        self.result: Any = None
        self.error: str | None = None
        self.outcome: Outcome | None = None
        self._context = context
        self._on_cancel = on_cancel_of(on_cancel)
        self._inbound = RunInbound(
            context.services.commanding,
            context.services.clock,
            user=context.user,
            run=self.id,
            thread=context.thread,
            on_cancel=self._on_cancel,
        )
        timers, run_ms = context.services.timers, context.limits.run_ms
        self._timer = RunTimer(self.id, timers, on_timeout_of(on_timeout), run_ms)
        self._hold: RunHold = RunHold(
            context,
            self.id,
            agent=agent,
            requested_ms=requested_ms,
            above=None if parent is None else parent._hold,
        )
        self._resumes = resume
        self._spent_ms = 0
        self._above = parent
        self._public_error = check_public_error(public_error)
        self._moves = RunMoves(context, self._hold, self._inbound, self._timer)
        self._children: list[Run] = []
        self._family: list[Run] = [self] if parent is None else parent._family
        self._streams = RunStreams(context, self.id, self._owe_text)

    def __repr__(self) -> str:
        state = self._moves.state
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
        return tuple(self._hold.receipts)

    def confirmations(
        self, *, level: Level | str = Level.RECEIVED, sessions: Sessions = "any", timeout_ms: int = 60_000
    ) -> RunConfirmations:
        """The confirmations of the run's events as they come, from inside the run or after it: as
        `Bus.run_confirmations`, with its arguments, iterator and errors.

        Raises:
            RunMisused: the run was not made by a bus.
        Source: docs/publishing.md.
        """
        confirmations = self._context.services.confirmations
        if confirmations is None:
            raise RunMisused("the run is not one of a bus's")
        return confirmations(self, level=level, sessions=sessions, timeout_ms=timeout_ms)

    # --- the life of a run --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Send `agent_started`, or go on with the run where its last process left it, once what that one left open is
        stored as ended. Cancelled before that, the run has not begun and owes nothing.

        Raises:
            RunClosed: a run that was to be resumed is completed, or others resume it.
            PublishTimeout, StoreError: a run was to be resumed and the store does not answer.
        """
        if self._above is not None and not self._above._moves.is_open:
            raise RunMisused(
                "the run above has not started or is over: enter a child run inside `async with` of its parent"
            )
        if not await self._resumed():
            await self._moves.do(Start(agent=self.agent, parent=self.parent))
        self._hold.begin()
        if self._above is not None:
            self._above._children.append(self)
            self._family.append(self)
        self._inbound.enter()
        self._timer.enter(self._spent_ms)
        return self

    async def _resumed(self) -> bool:
        """Take the run over if that was asked for and it has begun; what its old process left open ends."""
        if not self._resumes or self._moves.state.phase is not Phase.NEW:
            return False
        record = await self._hold.resume()
        if record is None:
            return False
        if self._timer.on_timeout is OnTimeout.CANCEL:
            self._spent_ms = await self._hold.spent_ms(record)
        self._moves.take_over(record)
        await self._streams.take_over(self._moves.state.seq, self.flush)
        return True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """End the run. Cancelled, it waits for what is owed all the same: at most the publish deadline for token
        streams that are open, and as long again for the events.

        Returns:
            Whether the exception ends here: it is the user's cancel of this run.

        Raises:
            InvalidEvent: the block ended well, and `result` is no JSON value or too large: the run ended as failed.
            RunTimeout: the run took longer than its tier allows, and was to be ended then.
            PublishTimeout, RunClosed, ...: the block ended well, and events could not be stored within the deadline, or
                the run is another's. Where the block raised, its own exception passes on and these are logged.
        Source: docs/publishing.md.
        """
        ends_here = self._inbound.leave(error)
        ended_by = self._timer.leave(error)
        late: BaseException | None = None
        for run in self._with_children():  # streams that nobody else left
            late = await run._streams.leave(kind, error, trace) or late
        if await self._leave(ended_by or late, passes_on=not ends_here):
            await self._inbound.close()
        if ended_by is not None and ended_by is not error:
            raise ended_by from error
        if late is not None and error is None:
            raise late
        return ends_here

    async def _leave(self, error: BaseException | None, *, passes_on: bool) -> bool:
        """Returns whether the end is stored: else whoever closes the run tidies up behind it, and nobody waits here
        for a store that is away once more.
        """
        problem = self._end(error)
        if not passes_on:
            error = None
        if self._above is not None:
            if problem is not None and error is None:
                raise problem
            return True  # the run above waits for what is not stored yet
        try:
            failure = await self._context.line.settle() or self._hold.lost
        finally:
            self._release()
        if failure is not None and error is not None:
            # The agent's own exception passes on; this one must not take its place.
            _log.error(
                "run %s: events could not be stored: %s", self.id, failure, extra={"run": self.id, "user": self.user}
            )
        elif failure is not None:
            raise failure
        elif problem is not None and error is None:
            raise problem
        return failure is None

    def _release(self) -> None:
        """The leases of the run and of those below it: what is not stored now never will be."""
        for run in self._family:
            run._hold.release()

    def _end(self, error: BaseException | None) -> InvalidEvent | None:
        """Make the last events and hand them over, without waiting. Returns what is wrong with the result."""
        if self._above is not None and self in self._above._children:
            self._above._children.remove(self)
        if not self._moves.is_open:
            return None  # ended with the run above it
        for child in tuple(self._children):
            child._abandon(error)
        outcome, words = self._judged(error)
        self.outcome = outcome
        result = self.result if outcome is Outcome.SUCCESS else None
        return self._moves.owe(
            Complete(outcome=outcome, result=result, error=words),
            instead=Complete(outcome=Outcome.FAILED, error=UNSENDABLE),
        )

    def _judged(self, error: BaseException | None) -> tuple[Outcome, str | None]:
        if error is None:
            words = words_of(self.error)
            return (Outcome.SUCCESS, None) if words is None else (Outcome.FAILED, words)
        if isinstance(error, asyncio.CancelledError | RunCancelled):
            return Outcome.CANCELLED, words_of(self.error) or words_of(self.cancelled.reason)
        if isinstance(error, RunTimeout) and error.run == self.id:
            _log.warning("%s", error, extra={"run": self.id, "user": self.user})
            return Outcome.FAILED, words_of(self.error) or TOOK_TOO_LONG
        _log.error(
            "run %s of agent %r failed",
            self.id,
            self.agent,
            exc_info=error,
            extra={"run": self.id, "user": self.user, "agent": self.agent},
        )
        return Outcome.FAILED, words_of(self.error) or public_words(self._public_error, error) or AGENT_FAILED

    def _abandon(self, error: BaseException | None) -> None:
        """End a child run that is open when the run above it ends."""
        for child in tuple(self._children):
            child._abandon(error)
        cancelled = isinstance(error, asyncio.CancelledError | RunCancelled)
        self.outcome = Outcome.CANCELLED if cancelled else Outcome.FAILED
        completed = Complete(outcome=Outcome.CANCELLED) if cancelled else _LEFT
        self._moves.owe(completed, instead=completed)
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
            RunClosed: it is another's: a node closed it after its lease was lost, or another process resumed it.
            PublishTimeout, ...: an earlier event of the run could not be stored yet; this one was not taken.

        Cancelled, nothing was sent.
        """
        return await self._moves.do(Think(text=text, more=more))

    async def publish(
        self, type: str, data: Mapping[str, Any], *, require: Require | Mapping[str, Any] | None = None
    ) -> EventId:
        """Send an event of another type inside the run; it takes a `seq` like the others.

        Args:
            type: any but the five critical types, which the run sends itself.
            data: a JSON object.
            require: a demanded confirmation: `{"level": "displayed", "within_ms": 5000}`.

        Returns, Raises: as `thinking`. Cancelled, nothing was sent.
        Source: docs/publishing.md.
        """
        return await self._moves.do(Emit(type=type, data=data), demand_of(require))

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

        Returns:
            The call, which begins when it is entered.

        Raises:
            InvalidEvent: `field` names what is wrong.
        Source: docs/publishing.md.
        """
        events.tool_executing(tool=name, call_id=call_id, arguments=arguments)
        if call_id is not None and len(call_id) > MAX_CALL_ID:
            raise InvalidEvent("data.call_id", f"has {len(call_id)} characters, and {MAX_CALL_ID} are allowed")
        call = None if call_id is None else CallId(call_id)
        return Tool(self, name, arguments, call, check_public_error(public_error))

    def child(self, *, agent: str, run: str | None = None, public_error: PublicError | None = None) -> Run:
        """A run of an agent that works for this one: a run id and a `seq` of its own, and `parent` in its first event.

        Args:
            agent: the agent's name, not blank.
            run: its run id; made when absent.
            public_error: as for `Bus.run`.

        Returns:
            The run, to be entered inside this one's block.

        Raises:
            InvalidEvent: `field` names what is wrong.
        Source: docs/publishing.md.
        """
        return Run(
            self._context,
            agent=agent,
            run=run,
            parent=self,
            public_error=public_error,
            on_cancel=self._on_cancel,
            on_timeout=self._timer.on_timeout,
        )

    def stream(self, name: str = DEFAULT_STREAM) -> TextStream:
        """Text for the user as it is made: `async with run.stream() as stream: await stream.write(token)`.

        The user's sessions see it grow; leaving it sends the event `agent_text` with the whole text.

        Args:
            name: tells streams of the run apart, `[A-Za-z0-9_.:-]{1,64}`; a second one of a name gets a number behind
                it, and so does one of a run that was resumed: `TextStream.name` says which.

        Raises:
            InvalidEvent: it is no name.
            RunMisused: the run has not started, or is over.
        Source: docs/texts.md.
        """
        if not self._moves.is_open:
            raise RunMisused("text is streamed by a run that is open: stream inside `async with bus.run(...)`")
        return self._streams.make(name)

    def _with_children(self) -> list[Run]:
        return [self, *(run for child in self._children for run in child._with_children())]

    def _owe_text(self, data: Mapping[str, Any]) -> InvalidEvent | None:
        if not self._moves.is_open:
            return None  # the run was left before its stream
        return self._moves.owe(Emit(type=TEXT_EVENT, data=data), instead=Emit(type=TEXT_EVENT, data=data))

    async def flush(self) -> None:
        """Wait until every event so far is stored, those of other runs of the family too.

        Raises:
            PublishTimeout, ...: one could not be stored; it is sent again.
            RunClosed: the run is another's, or over: what is not stored yet never will be.

        A cancelled call leaves them on their way.
        """
        self._inbound.check_loop()
        await self._context.line.flush()
        self._hold.check()

    async def receipt(self, event: EventId) -> Receipt:
        """Wait until an event of this run is stored, to wait for its confirmations: `await receipt.wait("displayed")`.

        Args:
            event: what `thinking` or `publish` returned.

        Raises:
            RunMisused: it is no event of this run, or not one of its newest `MAX_RECEIPTS`.
            PublishTimeout, RunClosed, ...: as `flush`.
        Safe to cancel.
        """
        await self.flush()
        found = next((receipt for receipt in reversed(self._hold.receipts) if receipt.event == event), None)
        if found is None:
            raise RunMisused(f"no receipt of an event {event!r} is known: give what a call of this run returned")
        return found


_LEFT: Final = Complete(outcome=Outcome.FAILED, error="the run above ended before the agent was done")
