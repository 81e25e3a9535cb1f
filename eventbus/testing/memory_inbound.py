"""Commands and questions in memory."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgpack

from eventbus.commands.answering import user_answer
from eventbus.commands.command import ANSWER, check_command, pick_question, plain_command_data, refused_answer
from eventbus.errors import RateLimited, RunClosed, StoreError
from eventbus.fields import parse_event_type
from eventbus.ids import (
    ENTRY_ZERO,
    EntryId,
    EventId,
    NodeName,
    RunId,
    UserId,
    entry_order,
    parse_run_id,
    parse_session_id,
    parse_thread_id,
    parse_user_id,
)
from eventbus.store import Append, Appended, DeadLetterRecord
from eventbus.store.inbound import (
    COMMANDS_MAX,
    COMMANDS_MAX_BYTES,
    QUESTIONS_MAX,
    Answer,
    Answered,
    AnsweredBy,
    AnswerOutcome,
    Ask,
    CommandRecord,
    CommandRefusal,
    CommandStored,
    Follower,
    Following,
    NewCommand,
    QuestionRecord,
    QuestionState,
    TakeCommands,
    Told,
    run_group,
)
from eventbus.testing.memory_base import MemoryBase
from eventbus.testing.memory_state import CommandGroup, Inbound
from eventbus.testing.memory_stream import Order, Pending, entry_id

__all__ = ["MemoryInbound"]


class _Followed:
    """That a follower is told."""

    __slots__ = ("_forget",)

    def __init__(self, forget: Callable[[], object]) -> None:
        self._forget = forget

    def close(self) -> None:
        self._forget()

    async def aclose(self) -> None:
        self._forget()


class MemoryInbound(MemoryBase, ABC):
    """The part of a `MemoryStore` for `eventbus.store.inbound`. Its subscription never breaks, and never polls."""

    _requests = 0

    @abstractmethod
    def _append(self, event: Append) -> Appended | StoreError:
        """Store an event, as `Store.append` does for each."""

    def _inbound(self, user: UserId) -> Inbound:
        inbound = self._user(user).inbound
        inbound.commands.forget_before(self.clock.now_ms() - self.settings.retention_ms)
        return inbound

    # --- what a test's user does ------------------------------------------------------------------------------------

    async def user_sends(
        self,
        user: str,
        type: str,
        data: Mapping[str, Any] | None = None,
        *,
        run: str | None = None,
        thread: str | None = None,
        session: str = "device",
    ) -> EntryId:
        """A user sends a command, as a client would over a node. Returns its id.

        Raises:
            InvalidField: an argument has not its form.
            RunClosed: the run is completed.
            RateLimited: too many commands wait.
        """
        plain = plain_command_data({} if data is None else data)
        check_command(parse_event_type(type, "type"), plain)
        self._requests += 1
        result = await self.send_command(
            NewCommand(
                user=parse_user_id(user),
                session=parse_session_id(session),
                type=type,
                data=msgpack.packb(plain),
                ref=f"of a test: {self._requests}",
                run=None if run is None else parse_run_id(run),
                thread=None if thread is None else parse_thread_id(thread),
            )
        )
        if result is CommandRefusal.RUN_CLOSED:
            raise RunClosed(f"the run {run} is completed")
        if result is CommandRefusal.FULL:
            raise RateLimited("as many commands wait as are kept")
        return result.id

    async def user_answers(
        self, user: str, question: str, answer: Any, *, run: str | None = None, session: str = "device"
    ) -> None:
        """A user answers a question of an agent, as a client would over a node.

        Raises:
            AnswerRefused: as its subclasses say: `UnknownQuestion`, `AlreadyAnswered`, `QuestionClosed`, `BadAnswer`.
            InvalidField: an argument has not its form.
        """
        check_command(ANSWER, {"question": question, "answer": answer})
        asker, who = None if run is None else parse_run_id(run), parse_user_id(user)
        record = pick_question(await self.questions(who), question, asker)
        if record is None:
            raise refused_answer(Answered.UNKNOWN_QUESTION, question)
        self._requests += 1
        ref, now_ms = f"of a test: {self._requests}", self.clock.now_ms()
        given = user_answer(record, who, parse_session_id(session), answer, ref=ref, now_ms=now_ms)
        outcome = await self.answer(given)
        if outcome.result is not Answered.ACCEPTED:
            raise refused_answer(outcome.result, question)

    # --- following --------------------------------------------------------------------------------------------------

    def follow(self, user: UserId, follower: Follower) -> Following:
        """See `InboundStore.follow`."""
        followers = self._followers.setdefault(user, [])
        followers.append(follower)
        asyncio.get_running_loop().call_soon(follower.told, user, Told.ANYTHING)

        def forget() -> None:
            if follower in followers:
                followers.remove(follower)

        return _Followed(forget)

    # --- commands ---------------------------------------------------------------------------------------------------

    async def send_command(self, command: NewCommand) -> CommandStored | CommandRefusal:
        """See `InboundStore.send_command`."""
        async with self._call():
            now_ms = self.clock.now_ms()
            partition, inbound = self._partition(command.user), self._inbound(command.user)
            bucket = now_ms // self.settings.dedupe_ms
            request = EventId(f"{command.session}\0{command.ref}")
            if known := partition.first_entry(command.user, request, bucket):
                partition.remember(command.user, request, bucket, known)
                return CommandStored(known, duplicate=True)
            if command.run is not None and self._is_over(command.user, command.run):
                return CommandRefusal.RUN_CLOSED
            if _is_full(inbound, command):
                inbound.forget_handled()
                if _is_full(inbound, command):
                    return CommandRefusal.FULL
            record = CommandRecord(
                id=ENTRY_ZERO,  # given by the log
                session=command.session,
                type=command.type,
                data=command.data,
                run=command.run,
                thread=command.thread,
                attempts=0,
            )
            entry = inbound.record(record, now_ms)
            partition.remember(command.user, request, bucket, entry)
            self._tell_followers(command.user, Told.COMMAND)
            return CommandStored(entry, duplicate=False)

    def _is_over(self, user: UserId, run: RunId) -> bool:
        known = self._user(user).runs.get(run)
        return known is not None and known.fields.get("state") == "completed"

    async def take_commands(self, request: TakeCommands) -> Sequence[CommandRecord]:
        """See `InboundStore.take_commands`."""
        async with self._call():
            inbound, now_ms = self._inbound(request.user), self.clock.now_ms()
            group = inbound.groups.setdefault(request.group, CommandGroup())
            taken: list[CommandRecord] = []
            idle = [
                order for order in sorted(group.pending) if group.pending[order].sent_ms + request.idle_ms <= now_ms
            ]
            for order in idle[: request.count]:
                pending, record = group.pending[order], inbound.at(order)
                if record is None:
                    del group.pending[order]
                elif pending.attempts >= request.max_deliveries:
                    del group.pending[order]
                    self._give_up(request.user, order, record, pending.attempts, now_ms)
                else:
                    pending.attempts += 1
                    pending.sent_ms = now_ms
                    taken.append(replace(record, id=entry_id(order), attempts=pending.attempts))
            for order, record in inbound.commands.page(entry_id(group.position), len(inbound.commands)):
                if len(taken) >= request.count:
                    break
                group.position = order
                if record.run == request.run:
                    group.pending[order] = Pending(1, now_ms)
                    taken.append(replace(record, id=entry_id(order), attempts=1))
            return taken

    def _give_up(self, user: UserId, order: Order, record: CommandRecord, attempts: int, now_ms: int) -> None:
        entry = entry_id(order)
        letter = DeadLetterRecord(
            id=ENTRY_ZERO,  # given by the log
            partition=self._number(user),
            user=user,
            session=record.session,
            entry=entry,
            event=EventId(f"command:{entry}"),
            type=record.type,
            reason="command_not_acked",
            attempts=attempts,
            node=NodeName("agent"),
            time_ms=now_ms,
            body=record.data,
        )
        self._partition(user).dead.record(letter, now_ms)

    async def ack_commands(self, user: UserId, group: str, ids: Sequence[EntryId]) -> int:
        """See `InboundStore.ack_commands`."""
        async with self._call():
            known = self._inbound(user).groups.get(group)
            if known is None:
                return 0
            return sum(known.pending.pop(entry_order(entry), None) is not None for entry in ids)

    async def hold_commands(self, user: UserId, group: str, ids: Sequence[EntryId], idle_ms: int) -> None:
        """See `InboundStore.hold_commands`."""
        async with self._call():
            known = self._inbound(user).groups.get(group)
            for entry in ids:
                pending = None if known is None else known.pending.get(entry_order(entry))
                if pending is not None:
                    pending.sent_ms = self.clock.now_ms() - idle_ms

    async def sent_commands(self, user: UserId, after: EntryId, count: int) -> Sequence[CommandRecord]:
        """See `InboundStore.sent_commands`."""
        async with self._call():
            return [
                replace(record, id=entry_id(order)) for order, record in self._inbound(user).commands.page(after, count)
            ]

    # --- questions --------------------------------------------------------------------------------------------------

    async def ask(self, ask: Ask) -> QuestionRecord | None:
        """See `InboundStore.ask`."""
        async with self._call():
            now_ms, questions = self.clock.now_ms(), self._inbound(ask.user).questions
            known = questions.get((ask.run, ask.question))
            if known is not None:
                return replace(known[0], now_ms=now_ms)
            for oldest_ms in (now_ms - self.settings.retention_ms, now_ms):
                if len(questions) < QUESTIONS_MAX:
                    break
                for name, (record, _) in list(questions.items()):
                    if not replace(record, now_ms=now_ms).is_open and record.created_ms <= oldest_ms:
                        del questions[name]
            if len(questions) >= QUESTIONS_MAX:
                return None
            record = QuestionRecord(
                run=ask.run,
                question=ask.question,
                state=QuestionState.OPEN,
                created_ms=now_ms,
                deadline_ms=None if ask.timeout_ms is None else now_ms + ask.timeout_ms,
                entry=None,
                body=ask.body,
                settled=b"",
                now_ms=now_ms,
            )
            questions[ask.run, ask.question] = record, tuple(ask.options)
            return record

    async def question_published(self, user: UserId, run: RunId, question: str, entry: EntryId) -> None:
        """See `InboundStore.question_published`."""
        async with self._call():
            questions = self._inbound(user).questions
            if (run, question) in questions:
                record, options = questions[run, question]
                questions[run, question] = replace(record, entry=entry), options

    async def questions(self, user: UserId) -> Sequence[QuestionRecord]:
        """See `InboundStore.questions`."""
        async with self._call():
            now_ms = self.clock.now_ms()
            found = [replace(record, now_ms=now_ms) for record, _ in self._inbound(user).questions.values()]
            return [
                record if record.state is QuestionState.OPEN else replace(record, body=b"", settled=b"")
                for record in found
            ]

    async def have_questions(self, users: Sequence[UserId]) -> Sequence[bool | StoreError]:
        """See `InboundStore.have_questions`."""
        async with self._call():
            return [bool(self._inbound(user).questions) for user in users]

    async def answer(self, answer: Answer) -> AnswerOutcome:
        """See `InboundStore.answer`."""
        async with self._call():
            return self._answer(answer)

    def _answer(self, answer: Answer) -> AnswerOutcome:
        now_ms, user = self.clock.now_ms(), answer.event.user
        questions = self._inbound(user).questions
        if (answer.run, answer.question) not in questions:
            return AnswerOutcome(Answered.UNKNOWN_QUESTION)
        record, options = questions[answer.run, answer.question]
        if record.state is QuestionState.ANSWERED:
            if record.settled != answer.settled:
                return AnswerOutcome(Answered.ALREADY_ANSWERED)
            bucket = now_ms // self.settings.dedupe_ms
            return AnswerOutcome(
                Answered.ACCEPTED, entry=self._partition(user).first_entry(user, answer.event.event, bucket)
            )
        if record.state is not QuestionState.OPEN or self._is_over(user, answer.run):
            return AnswerOutcome(Answered.QUESTION_CLOSED)
        is_late = record.deadline_ms is not None and record.deadline_ms <= now_ms
        if answer.by is AnsweredBy.DEADLINE and not is_late:
            return AnswerOutcome(Answered.EARLY, left_ms=(record.deadline_ms or now_ms) - now_ms)
        if answer.by is AnsweredBy.USER and is_late:
            return AnswerOutcome(Answered.QUESTION_CLOSED)
        if answer.by is AnsweredBy.USER and options and answer.choice not in options:
            return AnswerOutcome(Answered.BAD_ANSWER)
        stored = self._append(answer.event)
        if isinstance(stored, StoreError):
            raise stored
        settled = replace(record, state=QuestionState.ANSWERED, settled=answer.settled)
        questions[answer.run, answer.question] = settled, options
        self._tell_followers(user, Told.ANSWER)
        return AnswerOutcome(Answered.ACCEPTED, entry=stored.entry)

    async def close_inbound(self, user: UserId, run: RunId) -> None:
        """See `InboundStore.close_inbound`."""
        async with self._call():
            inbound = self._inbound(user)
            inbound.groups.pop(run_group(run), None)
            inbound.commands[:] = [item for item in inbound.commands if item[1].run != run]
            for name, (record, options) in inbound.questions.items():
                if name[0] == run and record.state is QuestionState.OPEN:
                    inbound.questions[name] = replace(record, state=QuestionState.CLOSED), options


def _is_full(inbound: Inbound, command: NewCommand) -> bool:
    taken_bytes = sum(len(record.data) for _, record in inbound.commands)
    return len(inbound.commands) >= COMMANDS_MAX or taken_bytes + len(command.data) > COMMANDS_MAX_BYTES
