"""What a run hears from its user: that it is cancelled, commands, answers. A part of `eventbus.runs.Run`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import partial
from secrets import token_hex
from typing import Any, Final, Protocol

from eventbus.clock import Clock
from eventbus.commands.answering import default_answer
from eventbus.commands.command import (
    NO_DEFAULT,
    Question,
    Settled,
    parse_question,
    parse_question_id,
)
from eventbus.commands.commanding import Commanding
from eventbus.commands.reader import Commands
from eventbus.errors import (
    AnswerTimeout,
    InvalidEvent,
    InvalidField,
    QuestionClosed,
    RunCancelled,
    RunMisused,
    StoreError,
    StoreUnavailable,
    TooManyQuestions,
)
from eventbus.ids import EventId, RunId, SessionId, ThreadId, UserId
from eventbus.publishing.receipt import Receipt
from eventbus.store.inbound import (
    Answered,
    Ask,
    QuestionRecord,
    QuestionState,
    run_group,
)

__all__ = ["Cancelled", "FromUser", "OnCancel", "RunInbound", "on_cancel_of"]

_log = logging.getLogger("eventbus.runs")

QUESTION_TIMEOUT_MS: Final = 60_000
MAX_QUESTION_TIMEOUT_MS: Final = 24 * 3_600_000
_LOOK_MS: Final = 5_000


class OnCancel(StrEnum):
    """What becomes of a run that its user cancels: its task is cancelled, or `run.cancelled` is set and no more."""

    TASK = "task"
    FLAG = "flag"


class Cancelled:
    """Whether the user has cancelled a run. True in a condition once that is so.

    Attributes:
        reason: in words, empty before.
        session: from which device, None before.
    """

    __slots__ = ("_event", "reason", "session")

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason = ""
        self.session: SessionId | None = None

    def __repr__(self) -> str:
        return f"<Cancelled {self.reason!r}>" if self else "<Cancelled: no>"

    def __bool__(self) -> bool:
        return self._event.is_set()

    def is_set(self) -> bool:
        """Whether it is so."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Wait until it is so. Safe to cancel."""
        await self._event.wait()

    def set(self, reason: str, session: SessionId) -> None:
        """It is so; the first reason counts."""
        if not self:
            self.reason, self.session = reason, session
            self._event.set()


class AskingRun(Protocol):
    """What a question needs of its run."""

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """Of its events that are stored."""

    async def publish(self, type: str, data: Mapping[str, Any]) -> EventId:
        """Sends an event of the run."""

    async def flush(self) -> None:
        """Waits until all its events are stored."""


class RunInbound:
    """One run's ear.

    Args:
        commanding: of the bus.
        clock: the wall clock.
        user: whose run it is.
        run: its id.
        thread: where it belongs.
        on_cancel: what becomes of it when it is cancelled.

    Attributes:
        cancelled: whether it is.
    """

    def __init__(
        self,
        commanding: Commanding,
        clock: Clock,
        *,
        user: UserId,
        run: RunId,
        thread: ThreadId | None,
        on_cancel: OnCancel,
    ) -> None:
        self.id: Final = run
        self.cancelled: Final = Cancelled()
        self._commanding = commanding
        self._clock = clock
        self._user = user
        self._thread = thread
        self._on_cancel = on_cancel
        self._task: asyncio.Task[Any] | None = None
        self._cancels_before = 0
        self._has_cancelled_task = False
        self._is_used = False
        self._readers: list[Commands] = []
        self._is_open = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def enter(self) -> None:
        """The run has begun, in the task that calls this."""
        self._is_open = True
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._cancels_before = 0 if self._task is None else self._task.cancelling()
        self._commanding.watch(self._user, self)

    def addressed(self) -> None:
        """See `Watched.addressed`: it goes with the run, also when that never reads it."""
        self._is_used = True

    def cancel(self, reason: str, session: SessionId) -> None:
        """See `Watched.cancel`."""
        self._is_used = True
        if not self._is_open or self.cancelled:
            return
        self.cancelled.set(reason, session)
        if self._on_cancel is OnCancel.TASK and self._task is not None:
            self._has_cancelled_task = True
            self._task.cancel(reason)

    def leave(self, error: BaseException | None) -> bool:
        """The run's block has ended: nothing cancels it any more.

        Returns:
            Whether `error` is the user's cancel, and nobody else's: then it goes no further.
        """
        self._is_open = False
        self._commanding.unwatch(self._user, self)
        for reader in self._readers:
            reader.close()
        task, self._task = self._task, None
        is_ours = False
        if self._has_cancelled_task and task is not None:
            # As asyncio.timeout does: somebody else may have cancelled the task meanwhile, and that passes on.
            is_ours = task.uncancel() <= self._cancels_before and isinstance(error, asyncio.CancelledError)
        return is_ours or (isinstance(error, RunCancelled) and error.run == self.id)

    async def close(self) -> None:
        """The run is stored to its end: what was sent to it goes, its open questions are closed."""
        if not self._is_used:
            return
        store = self._commanding.store
        try:
            await self._commanding.insist(partial(store.close_inbound, self._user, self.id))
        except StoreError as error:
            # Nobody reads them, and they go with the retention; answers are refused, for the run is completed.
            _log.info("commands of run %s are left: %s", self.id, error)

    def check(self) -> None:
        """Raises: RunCancelled: the user has cancelled the run."""
        if self.cancelled:
            raise RunCancelled(self.cancelled.reason, run=self.id)

    def check_loop(self) -> None:
        """Raises: RunMisused: the run was entered in another event loop, whose thread alone may use it."""
        if self._loop is not None and asyncio.get_running_loop() is not self._loop:
            raise RunMisused(
                "this run belongs to another event loop: use it there, or eventbus.blocking.Bus in threads"
            )

    def commands(self) -> Commands:
        """What the user sends to this run. Raises: RunMisused, when it is not open."""
        if not self._is_open:
            raise RunMisused("commands come to a run that is open: read them inside `async with bus.run(...)`")
        self._is_used = True
        for reader in self._readers:
            reader.close()
        self._readers.clear()
        reader = Commands(self._commanding, self._user, run_group(self.id), self.id)
        self._readers.append(reader)
        return reader

    # --- questions ----------------------------------------------------------------------------------------------------

    async def ask(
        self,
        run: AskingRun,
        text: str,
        *,
        options: Sequence[str] | None,
        default: Any,
        timeout_ms: int,
        question: str | None,
    ) -> Any:
        """See `FromUser.ask`."""
        if not self._is_open:
            raise RunMisused("a question is asked by a run that is open: ask inside `async with bus.run(...)`")
        try:
            asked = parse_question(text, options, default, self._thread)
            name = f"q_{token_hex(8)}" if question is None else parse_question_id(question)
            if type(timeout_ms) is not int or not 1 <= timeout_ms <= MAX_QUESTION_TIMEOUT_MS:
                raise InvalidField("timeout_ms", f"must be a whole number from 1 to {MAX_QUESTION_TIMEOUT_MS}")
        except InvalidField as error:
            raise InvalidEvent(error.field, error.problem) from None
        self.check_loop()
        self._is_used = True
        call = Ask(
            user=self._user,
            run=self.id,
            question=name,
            body=asked.packed(),
            timeout_ms=timeout_ms,
            options=asked.options,
        )
        rung = asyncio.Event()
        with self._commanding.listening(self._user, rung):
            return await self._answered(run, call, rung)

    async def _answered(self, run: AskingRun, call: Ask, rung: asyncio.Event) -> Any:
        name = call.question
        while True:
            self._commanding.check_open()  # its end rings too
            rung.clear()
            record = await self._asked(call)
            if record.entry is None and record.is_open:
                await self._publish(run, record)
                continue
            if record.state is QuestionState.ANSWERED:
                return _given(Settled.of(record.settled), name)
            if record.state is QuestionState.CLOSED:
                raise QuestionClosed(f"the question {name!r} was closed before it was answered")
            wait_ms = _LOOK_MS
            if record.deadline_ms is not None:
                left_ms = record.deadline_ms - record.now_ms
                wait_ms = min(wait_ms, left_ms) if left_ms > 0 else await self._settle(record)
            if wait_ms > 0:
                await self._commanding.wait(rung, wait_ms)

    async def _asked(self, call: Ask) -> QuestionRecord:
        """The question as it stands; it is opened when it is not there."""
        store = self._commanding.store
        record = await self._commanding.insist(partial(store.ask, call))
        if record is None:
            raise TooManyQuestions(f"too many questions of {self._user} are open: ask again when some are answered")
        return record

    async def _publish(self, run: AskingRun, record: QuestionRecord) -> None:
        """Tell the user. A process that dies before it is written down tells it again, under the same name."""
        data = Question.of(record.body).data(record.question, record.deadline_ms)
        event = await run.publish("agent_question", data)
        await run.flush()
        entry = next((receipt.entry for receipt in reversed(run.receipts) if receipt.event == event), None)
        if entry is None:
            raise StoreUnavailable("it is not known where the question is stored")
        store = self._commanding.store
        call = partial(store.question_published, self._user, self.id, record.question, entry)
        await self._commanding.insist(call)

    async def _settle(self, record: QuestionRecord) -> int:
        """The deadline has passed: the default is the answer, if no user's was accepted before.

        Returns:
            How long to wait before the question is looked at again: not at all, as a rule.
        """
        answer = default_answer(record, self._user, now_ms=self._clock.now_ms())
        outcome = await self._commanding.insist(partial(self._commanding.store.answer, answer))
        return max(1, outcome.left_ms) if outcome.result is Answered.EARLY else 0


def _given(settled: Settled, question: str) -> Any:
    if not settled.is_answered:
        raise AnswerTimeout(f"nobody answered the question {question!r} in time, and it has no default")
    return settled.answer


class FromUser:
    """What a run hears from its user, as its agent uses it."""

    _inbound: RunInbound

    @property
    def cancelled(self) -> Cancelled:
        """Whether the user has cancelled the run: `if run.cancelled: ...`, `await run.cancelled.wait()`."""
        return self._inbound.cancelled

    def check(self) -> None:
        """For work that nothing can interrupt: call it now and then.

        Raises:
            RunCancelled: the user has cancelled the run. It ends the run's block without more, as the cancellation of
                its task does.
        """
        self._inbound.check()

    def commands(self) -> Commands:
        """What the user sends to this run: `async for command in run.commands(): ...`. Ends with the run.

        Asking for the next one acks the one before; what was not acked comes again, also to the process that resumes
        the run. One reader at a time: a second call ends the first iterator and takes over what it has not acked. A
        `cancel` does not come here, see `cancelled`.

        Raises:
            RunMisused: the run is not open.
        Source: docs/commands.md.
        """
        return self._inbound.commands()

    async def ask(
        self: Any,
        text: str,
        *,
        options: Sequence[str] | None = None,
        default: Any = NO_DEFAULT,
        timeout_ms: int = QUESTION_TIMEOUT_MS,
        question: str | None = None,
    ) -> Any:
        """Ask the user, and wait for the answer. Every device is asked until one answer is accepted.

        Args:
            text: the question, not blank.
            options: what may be answered; anything, when absent.
            default: the answer when the deadline passes, one of the options if there are any.
            timeout_ms: milliseconds until the deadline, from 1 to a day's.
            question: names the question in its run, `[A-Za-z0-9_.:-]{1,64}`. Asked again under its name, also by the
                process that resumes the run, it is the same question: what was answered is returned at once.

        Returns:
            The answer, any JSON value; one of the options if there are any.

        Raises:
            AnswerTimeout: the deadline has passed, and there is no default.
            InvalidEvent: `field` names what is wrong.
            QuestionClosed: the question was closed, by the end of the run.
            TooManyQuestions: too many of the user's questions are open.
            RunMisused: the run is not open.
            StoreError: the store does not answer, for longer than the publish deadline.
            EventBusError: the bus was closed meanwhile.

        Cancelled, the question stays open until the run ends.
        Source: docs/commands.md.
        """
        inbound: RunInbound = self._inbound
        return await inbound.ask(self, text, options=options, default=default, timeout_ms=timeout_ms, question=question)


def on_cancel_of(value: str) -> OnCancel:
    """Read an argument. Raises: InvalidEvent."""
    try:
        return OnCancel(value)
    except ValueError:
        raise InvalidEvent("on_cancel", f"must be one of {', '.join(OnCancel)}, not {value!r}") from None
