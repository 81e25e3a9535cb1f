"""The scripts of commands and questions as typed functions: what goes in, and what the answer means."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from eventbus.config import StoreSettings
from eventbus.errors import StoreError, StreamFull
from eventbus.ids import EntryId, RunId, SessionId, ThreadId, UserId
from eventbus.store.answers import nothing, whole
from eventbus.store.command import Argument, Command
from eventbus.store.commands import Commands
from eventbus.store.inbound import (
    COMMANDS_MAX,
    COMMANDS_MAX_BYTES,
    QUESTIONS_MAX,
    Answer,
    Answered,
    AnswerOutcome,
    Ask,
    CommandRecord,
    CommandRefusal,
    CommandStored,
    NewCommand,
    QuestionRecord,
    QuestionState,
    TakeCommands,
)
from eventbus.store.keys import Keys
from eventbus.store.scripts import script

__all__ = [
    "ack_commands",
    "answer",
    "ask",
    "asked",
    "close_inbound",
    "have_questions",
    "hold_commands",
    "questions",
    "request_field",
    "send_command",
    "sent_commands",
    "take_commands",
]


def _evalsha(name: str, *words: Argument) -> tuple[Argument, ...]:
    found = script(name)
    return ("EVALSHA", found.sha, len(found.keys), *words)


def request_field(command: NewCommand) -> bytes:
    """16 bytes that stand for a request of a user's session. Two NULs: an event's field has one (D13)."""
    text = f"{command.user}\0{command.session}\0{command.ref}"
    return blake2b(text.encode(), digest_size=16).digest()


def send_command(keys: Keys, settings: StoreSettings, command: NewCommand) -> Command[CommandStored | CommandRefusal]:
    """Store a command."""
    named = keys.user(command.user)
    partition = named.partition
    # A script has its keys whether it needs them or not: without a run any of the partition will do.
    run_key = named.commands if command.run is None else keys.run(command.user, command.run)

    def parse(reply: Any, _primary: str) -> CommandStored | CommandRefusal:
        outcome = reply[0]
        if outcome in (b"stored", b"duplicate"):
            return CommandStored(EntryId(reply[1].decode()), outcome == b"duplicate")
        return CommandRefusal(outcome.decode())

    words = (
        request_field(command),
        named.channel,
        settings.dedupe_ms,
        settings.retention_ms,
        COMMANDS_MAX,
        COMMANDS_MAX_BYTES,
        command.session,
        command.type,
        command.data,
        command.run or "",
        command.thread or "",
    )
    used = (named.commands, partition.bucket_even, partition.bucket_odd, run_key)
    return Command(_evalsha("command", *used, *words), parse, scripted=True)


def take_commands(keys: Keys, settings: StoreSettings, request: TakeCommands) -> Command[list[CommandRecord]]:
    """Read commands for a group."""
    named = keys.user(request.user)
    words = (
        request.user,
        request.group,
        request.run or "",
        request.count,
        request.idle_ms,
        request.max_deliveries,
        settings.retention_ms,
        settings.dead_letter_ttl_ms,
    )
    return Command(
        _evalsha("take_commands", named.commands, named.partition.dead, *words),
        lambda reply, _primary: [_record(raw[0], raw[2], attempts=raw[1]) for raw in reply],
        scripted=True,
    )


def _record(entry: bytes, flat: Any, *, attempts: int = 0) -> CommandRecord:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    run, thread = fields.get(b"run"), fields.get(b"thread")
    return CommandRecord(
        id=EntryId(entry.decode()),
        session=SessionId(fields[b"session"].decode()),
        type=fields[b"type"].decode(),
        data=fields[b"data"],
        run=None if run is None else RunId(run.decode()),
        thread=None if thread is None else ThreadId(thread.decode()),
        attempts=attempts,
    )


def ack_commands(keys: Keys, user: UserId, group: str, commands: list[EntryId]) -> Command[int]:
    """Commands are handled."""
    return Command(("XACK", keys.user(user).commands, group, *commands), whole)


def hold_commands(keys: Keys, user: UserId, group: str, commands: list[EntryId], idle_ms: int) -> Command[None]:
    """Commands count as read so long ago; what is acked stays acked."""
    words: tuple[Argument, ...] = (
        "XCLAIM", keys.user(user).commands, group, "c", 0, *commands, "IDLE", idle_ms, "JUSTID",
    )  # fmt: skip
    return Command(words, nothing)


def sent_commands(keys: Keys, user: UserId, after: EntryId, count: int) -> Command[list[CommandRecord]]:
    """Commands that are kept."""
    return Command(
        ("XRANGE", keys.user(user).commands, f"({after}", "+", "COUNT", count),
        lambda reply, _primary: [_record(raw[0], raw[1]) for raw in reply],
    )


def ask(keys: Keys, settings: StoreSettings, asked: Ask) -> Command[QuestionRecord | None]:
    """Open a question."""
    words = (asked.run, asked.question, asked.body, asked.timeout_ms or 0, settings.retention_ms, QUESTIONS_MAX)
    return Command(
        _evalsha("ask", keys.user(asked.user).questions, *words, *asked.options),
        lambda reply, _primary: _question(reply[0], reply[1]) if len(reply) > 1 else None,
        scripted=True,
    )


def _question(now_ms: int, raw: Any) -> QuestionRecord:
    field, created_ms, deadline_ms, state, entry, body, settled = raw
    run, _, question = field.decode().partition(" ")
    return QuestionRecord(
        run=RunId(run),
        question=question,
        state=QuestionState(state.decode()),
        created_ms=created_ms,
        deadline_ms=deadline_ms or None,
        entry=EntryId(entry.decode()) if entry else None,
        body=body,
        settled=settled,
        now_ms=now_ms,
    )


def asked(keys: Keys, user: UserId, run: RunId, question: str, entry: EntryId) -> Command[None]:
    """Write down which event asks a question."""
    return Command(_evalsha("asked", keys.user(user).questions, run, question, entry), nothing, scripted=True)


def questions(keys: Keys, user: UserId) -> Command[list[QuestionRecord]]:
    """The questions that are kept."""

    def parse(reply: Any, _primary: str) -> list[QuestionRecord]:
        now_ms, *found = reply
        return sorted((_question(now_ms, raw) for raw in found), key=lambda record: record.created_ms)

    return Command(_evalsha("questions", keys.user(user).questions), parse, scripted=True)


def have_questions(keys: Keys, user: UserId) -> Command[bool]:
    """Whether any question is kept."""
    return Command(("EXISTS", keys.user(user).questions), lambda reply, _primary: reply == 1)


def answer(keys: Keys, commands: Commands, given: Answer) -> Command[AnswerOutcome]:
    """Settle a question."""
    user = given.event.user
    named = keys.user(user)
    # The event is stored as append.lua does it, with the same keys and arguments before those of the answer.
    used, stored = commands.of_event(given.event)

    def parse(reply: Any, _primary: str) -> AnswerOutcome | StoreError:
        outcome = reply[0].decode()
        if outcome == "full":
            return StreamFull(f"the stream of {user} holds {reply[1]} entries that sessions still need; answer later")
        if outcome == "accepted":
            return AnswerOutcome(Answered.ACCEPTED, entry=EntryId(reply[1].decode()) if reply[1] else None)
        return AnswerOutcome(Answered(outcome), left_ms=reply[1] if outcome == "early" else 0)

    words = (
        given.run,
        given.question,
        given.by.value,
        "other" if given.choice is None else "text",
        given.choice or "",
        given.settled,
        named.channel,
    )
    every_key = (*commands.shared_keys(given.event), *used, named.questions, keys.run(user, given.run))
    return Command(_evalsha("answer", *every_key, *commands.append_limits, *stored, *words), parse, scripted=True)


def close_inbound(keys: Keys, user: UserId, run: RunId) -> Command[int]:
    """A run is over."""
    named = keys.user(user)
    return Command(_evalsha("close_inbound", named.commands, named.questions, run), whole, scripted=True)
