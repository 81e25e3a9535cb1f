"""Commands from a user to an agent, and questions of an agent to a user: their forms and judgements. Pure.

Source: docs/protocol.md, sections 2 and 3; the guide is docs/commands.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import msgpack

from eventbus.errors import (
    AlreadyAnswered,
    AnswerRefused,
    BadAnswer,
    InvalidCommand,
    InvalidField,
    QuestionClosed,
    UnknownQuestion,
)
from eventbus.event import MAX_EVENT_BYTES
from eventbus.frames import Ref
from eventbus.ids import EventId, RunId, SessionId, ThreadId
from eventbus.jsonvalue import plain_object, plain_value, unpack
from eventbus.store.inbound import Answered, AnsweredBy, QuestionRecord

__all__ = [
    "ANSWER",
    "CANCEL",
    "CANCELLED_BY_USER",
    "MAX_ANSWER_BYTES",
    "MAX_OPTIONS",
    "MAX_REASON_CHARACTERS",
    "MESSAGE",
    "NO_DEFAULT",
    "Question",
    "Settled",
    "answered_event_id",
    "check_command",
    "parse_question",
    "parse_question_id",
    "pick_question",
    "plain_command_data",
    "reason_of",
    "ref_word",
    "refused_answer",
]

CANCEL: Final = "cancel"
"""Ends a run: `{reason?}`."""
ANSWER: Final = "answer"
"""Answers a question: `{question, answer}`."""
MESSAGE: Final = "message"
"""Words for the agent: `{text}`."""

MAX_REASON_CHARACTERS: Final = 1_000
MAX_QUESTION_ID_CHARACTERS: Final = 64
MAX_QUESTION_CHARACTERS: Final = 10_000
MAX_OPTIONS: Final = 64
MAX_OPTION_CHARACTERS: Final = 256
MAX_ANSWER_BYTES: Final = 16_384
"""As MessagePack: the answers of a user are kept together, and read together."""
CANCELLED_BY_USER: Final = "the user cancelled the run"
"""The words of a cancel that gives no reason."""

NO_DEFAULT: Final[Any] = object()
"""A question without an answer for its deadline."""

_QUESTION_ID: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:-")


def _words(value: object, field: str, most: int) -> str:
    if not isinstance(value, str):
        raise InvalidField(field, f"must be a string, not {type(value).__name__}")
    if not value.strip():
        raise InvalidField(field, "must not be blank")
    if len(value) > most:
        raise InvalidField(field, f"has {len(value)} characters, and {most} are allowed")
    return value


def parse_question_id(value: object, field: str = "question") -> str:
    """Check what names a question within its run: `[A-Za-z0-9_.:-]{1,64}`. Raises: InvalidField."""
    text = _words(value, field, MAX_QUESTION_ID_CHARACTERS)
    if not _QUESTION_ID.issuperset(text):
        raise InvalidField(field, f"{text!r} does not match [A-Za-z0-9_.:-]{{1,64}}")
    return text


# --- commands ---------------------------------------------------------------------------------------------------------


def check_command(type: str, data: Mapping[str, Any]) -> None:
    """Judge the data of a command whose type the library knows; that of another type may be any object.

    Raises:
        InvalidCommand: `field` is the path of what is wrong (`data.text`).
    """
    try:
        if type == CANCEL and "reason" in data:
            _words(data["reason"], "data.reason", MAX_REASON_CHARACTERS)
        elif type == MESSAGE:
            _words(_member(data, "text"), "data.text", MAX_EVENT_BYTES)
        elif type == ANSWER:
            parse_question_id(_member(data, "question"), "data.question")
            size = len(msgpack.packb(_member(data, "answer")))
            if size > MAX_ANSWER_BYTES:
                raise InvalidField("data.answer", f"takes {size} bytes, and {MAX_ANSWER_BYTES} are allowed")
    except InvalidField as error:
        raise InvalidCommand(error.field, error.problem) from None


def _member(data: Mapping[str, Any], name: str) -> Any:
    if name not in data:
        raise InvalidField(f"data.{name}", "is missing")
    return data[name]


def reason_of(data: Mapping[str, Any]) -> str:
    """Why a run was cancelled, in words for everybody who sees its end."""
    reason = data.get("reason")
    return reason if isinstance(reason, str) and reason.strip() else CANCELLED_BY_USER


def ref_word(ref: Ref) -> str:
    """A client's name of a request as a word: the number 1 and the text "1" are two."""
    return f"i{ref}" if isinstance(ref, int) else f"s{ref}"


# --- questions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What an agent asks.

    Attributes:
        text: the question, in words for the user.
        options: what may be answered; empty: anything.
        default: the answer at the deadline, any JSON value; `NO_DEFAULT` for none.
        thread: where it belongs.
    """

    text: str
    options: tuple[str, ...] = ()
    default: Any = NO_DEFAULT
    thread: ThreadId | None = None

    def packed(self) -> bytes:
        """As the store keeps it."""
        fields: dict[str, Any] = {"text": self.text, "options": self.options}
        if self.default is not NO_DEFAULT:
            fields["default"] = self.default
        if self.thread is not None:
            fields["thread"] = self.thread
        body: bytes = msgpack.packb(fields)
        return body

    @classmethod
    def of(cls, body: bytes) -> Question:
        """Read what the store keeps."""
        fields = unpack(body)
        return cls(
            text=fields["text"],
            options=tuple(fields["options"]),
            default=fields.get("default", NO_DEFAULT),
            thread=fields.get("thread"),
        )

    def data(self, question: str, deadline_ms: int | None) -> dict[str, Any]:
        """The data of the event that asks it, `agent_question`."""
        data: dict[str, Any] = {"question": question, "text": self.text}
        if self.options:
            data["options"] = list(self.options)
        if deadline_ms is not None:
            data["deadline_ms"] = deadline_ms
        if self.default is not NO_DEFAULT:
            data["default"] = self.default
        return data


def parse_question(text: object, options: object, default: object, thread: ThreadId | None) -> Question:
    """Judge what an agent asks.

    Raises:
        InvalidField: `field` names what is wrong.
    """
    words = _words(text, "text", MAX_QUESTION_CHARACTERS)
    if options is None:
        options = ()
    if isinstance(options, str | bytes) or not isinstance(options, Sequence):
        raise InvalidField("options", f"must be a list of texts, not {type(options).__name__}")
    if len(options) > MAX_OPTIONS:
        raise InvalidField("options", f"are {len(options)}, and {MAX_OPTIONS} are allowed")
    offered = [_words(option, f"options[{index}]", MAX_OPTION_CHARACTERS) for index, option in enumerate(options)]
    for index, option in enumerate(offered):
        if option in offered[:index]:
            raise InvalidField(f"options[{index}]", f"{option[:40]!r} is there twice")
    if default is not NO_DEFAULT:
        default = plain_value(default, "default", max_bytes=MAX_EVENT_BYTES)
        if offered and default not in offered:
            raise InvalidField("default", "is none of the options")
    return Question(text=words, options=tuple(offered), default=default, thread=thread)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """How a question was settled.

    Attributes:
        answer: any JSON value; None when the deadline passed and there was no default.
        by: who.
        is_answered: whether there is an answer at all.
        session: whose, when a user answered.
        ref: the request that brought it.
    """

    answer: Any
    by: AnsweredBy
    is_answered: bool = True
    session: SessionId | None = None
    ref: str | None = None

    def packed(self) -> bytes:
        """As the store keeps it; the same request gives the same bytes."""
        fields = {"answer": self.answer, "by": self.by.value}
        if not self.is_answered:
            fields["none"] = True
        if self.session is not None:
            fields |= {"session": self.session, "ref": self.ref}
        body: bytes = msgpack.packb(fields)
        return body

    @classmethod
    def of(cls, body: bytes) -> Settled:
        """Read what the store keeps."""
        fields = unpack(body)
        return cls(
            answer=fields["answer"],
            by=AnsweredBy(fields["by"]),
            is_answered="none" not in fields,
            session=fields.get("session"),
            ref=fields.get("ref"),
        )

    def data(self, question: str) -> dict[str, Any]:
        """The data of the event that tells of it, `agent_answered`."""
        data: dict[str, Any] = {"question": question, "answer": self.answer, "by": self.by.value}
        if self.session is not None:
            data["session"] = self.session
        return data


def answered_event_id(run: RunId, question: str) -> EventId:
    """The id of the event that tells of an answer: one for a question, whoever stores it."""
    return EventId("answered:" + blake2b(f"{run}\0{question}".encode(), digest_size=16).hexdigest())


def pick_question(records: Sequence[QuestionRecord], question: str, run: RunId | None) -> QuestionRecord | None:
    """The question that an answer means: that of the run when one is given, else the open one, else the newest."""
    named = [record for record in records if record.question == question and run in (None, record.run)]
    return max(named, key=lambda record: (record.is_open, record.created_ms), default=None)


_REFUSED: Final[Mapping[Answered, tuple[type[AnswerRefused], str]]] = {
    Answered.ALREADY_ANSWERED: (AlreadyAnswered, "the question {} was answered before"),
    Answered.UNKNOWN_QUESTION: (UnknownQuestion, "nobody asks the question {}"),
    Answered.QUESTION_CLOSED: (QuestionClosed, "the question {} takes no answer any more"),
    Answered.BAD_ANSWER: (BadAnswer, "this is none of the options of the question {}"),
}


def refused_answer(result: Answered, question: str) -> AnswerRefused:
    """Why an answer is not taken."""
    kind, words = _REFUSED[result]
    return kind(words.format(repr(question)))


def plain_command_data(data: object) -> dict[str, Any]:
    """The data of a command, copied. Raises: InvalidCommand."""
    try:
        return plain_object(data, "data", max_bytes=MAX_EVENT_BYTES)
    except InvalidField as error:
        raise InvalidCommand(error.field, error.problem) from None
