"""Every error of the bus, as one tree under `EventBusError`.

Class attributes carry what a caller decides by: `code` (stable, for machines), `retryable` (the same call may succeed
later) and `close_code` (what a node closes a socket with, None when it does not). The message says what happened, with
the numbers, and what to do. Redis's own errors are translated once, in `eventbus.store`. `docs/errors.md` is generated
from this module.

It is longer than other modules, for it is a table: whoever adds a code, or decides by one, sees all that there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar

__all__ = [
    "AlreadyAnswered",
    "AnswerRefused",
    "AnswerTimeout",
    "AuthError",
    "BadAnswer",
    "BadFrame",
    "BreakerOpen",
    "CallbackFailed",
    "CloseCode",
    "ClosedForGood",
    "CommandRefused",
    "ConfigError",
    "ConfirmationTimeout",
    "EventBusError",
    "Forbidden",
    "HandlerFailed",
    "InvalidCommand",
    "InvalidEvent",
    "InvalidField",
    "InvalidUtf8",
    "NodeFault",
    "NotReplicated",
    "OutOfOrder",
    "PartialPublish",
    "PublishTimeout",
    "QuestionClosed",
    "RateLimited",
    "RunCancelled",
    "RunClosed",
    "RunMisused",
    "RunTimeout",
    "SendTimeout",
    "SessionEnded",
    "SessionRevoked",
    "StoreBusy",
    "StoreError",
    "StoreFull",
    "StoreMisconfigured",
    "StoreMoved",
    "StoreTimeout",
    "StoreUnavailable",
    "StreamFull",
    "SubscriberError",
    "Superseded",
    "TokenFailed",
    "TooManyQuestions",
    "TooManyRevocations",
    "TypePaused",
    "TooManySessions",
    "UnknownOp",
    "UnknownQuestion",
]


class CloseCode(IntEnum):
    """WebSocket close codes: 4000-4499 reconnect, 4500-4999 do not. Source: docs/protocol.md, section 5."""

    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    ABNORMAL = 1006
    INVALID_DATA = 1007
    DRAINING = 4001
    SLOW_CONSUMER = 4002
    HEARTBEAT_TIMEOUT = 4003
    TOKEN_EXPIRED = 4004
    STORE_UNAVAILABLE = 4005
    RATE_LIMITED = 4006
    OVERLOADED = 4007
    PROTOCOL_VIOLATION = 4500
    UNAUTHENTICATED = 4501
    FORBIDDEN = 4502
    HELLO_TIMEOUT = 4503
    SUPERSEDED = 4504
    FRAME_TOO_LARGE = 4505
    SESSION_ENDED = 4506

    @property
    def reconnect(self) -> bool:
        """Whether a client that got this code comes back with the same session."""
        return not (4500 <= self < 5000 or self in (CloseCode.NORMAL, CloseCode.UNSUPPORTED_DATA))


class EventBusError(Exception):
    """The root: nothing of the bus raises anything else on purpose."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    close_code: ClassVar[CloseCode | None] = None


class ConfigError(EventBusError):
    """A setting is missing or wrong; the process does not start (exit status 2)."""

    code = "bad_setting"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InvalidField(EventBusError, ValueError):
    """A value that a caller gave does not have the form that its field wants.

    Attributes:
        field: the path of the field (`user`, `data.text`).
        index: its place in a batch, None outside one.
    """

    code = "invalid"

    def __init__(self, field: str, problem: str, *, index: int | None = None) -> None:
        super().__init__(f"{field}: {problem}" if index is None else f"event {index}: {field}: {problem}")
        self.field = field
        self.problem = problem
        self.index = index

    def __reduce__(self) -> tuple[object, ...]:
        # Else a pickle (a worker process that reports to its parent) could be made and not be read.
        return type(self)._restored, (self.field, self.problem, self.index)

    @classmethod
    def _restored(cls, field: str, problem: str, index: int | None) -> InvalidField:
        return cls(field, problem, index=index)

    def at(self, index: int) -> InvalidField:
        """The same error, for the event at `index` of a batch."""
        return type(self)(self.field, self.problem, index=index)


class InvalidEvent(InvalidField):
    """An event is refused where it is made; `field` names the part that is wrong."""

    code = "invalid_event"


class InvalidCommand(InvalidField):
    """A command of a user is refused; `field` names the part that is wrong. The socket stays open."""

    code = "invalid_command"


class BadFrame(InvalidField):
    """A client's frame is malformed; answered by an `error` frame and a close."""

    code = "bad_frame"
    close_code = CloseCode.PROTOCOL_VIOLATION


class InvalidUtf8(BadFrame):
    """The text of a JSON frame is not UTF-8; the socket is closed as RFC 6455, section 8.1, says."""

    code = "invalid_utf8"
    close_code = CloseCode.INVALID_DATA


class UnknownOp(EventBusError):
    """A client's frame has an `op` that this node does not know; answered by an `error` frame, the socket stays open.

    Attributes:
        ref: the frame's `ref`, for the answer.
    """

    code = "unknown_op"

    def __init__(self, message: str, *, ref: str | int | None = None) -> None:
        super().__init__(message)
        self.ref = ref


class AuthError(EventBusError):
    """A token is missing, malformed, expired, or signed with the wrong key. The message never holds the token."""

    code = "unauthenticated"
    close_code = CloseCode.UNAUTHENTICATED

    def __init__(self, message: str, *, reason: str = "unauthenticated") -> None:
        super().__init__(message)
        self.reason = reason


class Forbidden(EventBusError):
    """The token is good and lacks the scope, or the origin is not on the list."""

    code = "forbidden"
    close_code = CloseCode.FORBIDDEN


class SessionRevoked(Forbidden):
    """The token is good, and the session that it asks for was revoked after the token was issued."""

    code = "session_revoked"
    close_code = CloseCode.SESSION_ENDED


class RateLimited(EventBusError):
    """A limit is reached; `retry_after_ms` says when another try makes sense."""

    code = "rate_limited"
    retryable = True
    close_code = CloseCode.RATE_LIMITED

    def __init__(self, message: str, *, retry_after_ms: int = 1000) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class TooManySessions(RateLimited):
    """The user has as many live sessions as the tier allows."""

    code = "too_many_sessions"


class StoreError(EventBusError):
    """The store answered with an error or did not answer."""

    code = "store_error"
    close_code = CloseCode.STORE_UNAVAILABLE


class StoreUnavailable(StoreError):
    """No connection to the store, or it was lost before the answer came; whether the call took effect is unknown."""

    code = "store_unavailable"
    retryable = True


class StoreTimeout(StoreUnavailable):
    """The store did not answer in time; whether the call took effect is unknown."""

    code = "store_timeout"


class StoreBusy(StoreUnavailable):
    """The store refuses for now: it loads its data, runs a script, has no primary, or the queue before it is full."""

    code = "store_busy"


class StoreMoved(StoreError):
    """The part of the data that the call is about has another primary now; nothing was done, and the same call may
    succeed there.
    """

    code = "store_moved"
    retryable = True


class StoreFull(StoreError):
    """The store is at its memory limit (OOM): reading and acking go on, publishing waits."""

    code = "store_full"
    retryable = True


class StoreMisconfigured(StoreError):
    """The store answers, and can never do what is asked: wrong version, missing rights, wrong type of key."""

    code = "store_misconfigured"


class TooManyRevocations(StoreError):
    """As many revocations as the nodes keep have not ended yet: this one was not made."""

    code = "too_many_revocations"


class StreamFull(StoreError):
    """The user's stream is at its hard cap with entries that somebody still needs, and the policy is `reject`."""

    code = "stream_full"
    retryable = True


class TypePaused(StoreError):
    """An operator has paused the events of this type: nothing was stored, and it is not tried again by itself."""

    code = "type_paused"


class OutOfOrder(StoreError):
    """An event of a run came with another `seq` than the last plus one: one before it is not stored yet, or is lost.

    Attributes:
        last: the number of the last event that the store has.
    """

    code = "out_of_order"
    retryable = True

    def __init__(self, message: str, *, last: int = 0) -> None:
        super().__init__(message)
        self.last = last


class RunClosed(StoreError):
    """The run is completed, or belongs to another owner: nothing of this owner follows any more."""

    code = "run_closed"


class NotReplicated(StoreError):
    """The event is stored on the primary, and too few replicas confirmed it in time."""

    code = "not_replicated"
    retryable = True


class BreakerOpen(StoreUnavailable):
    """The circuit breaker is open: the store kept failing and is left alone until the next probe."""

    code = "breaker_open"


class PublishTimeout(StoreUnavailable):
    """A publish did not succeed within its deadline; publishing the same event id again makes no second entry."""

    code = "publish_timeout"


class RunMisused(EventBusError):
    """A run was given a move that its state does not allow, such as a thought after its end; nothing was sent."""

    code = "run_misused"


class RunCancelled(EventBusError):
    """The user cancelled a run; the message is the reason. Raised by `run.check()`, and ends the run without more.

    Attributes:
        run: which one.
    """

    code = "run_cancelled"

    def __init__(self, message: str, *, run: str = "") -> None:
        super().__init__(message)
        self.run = run


class RunTimeout(EventBusError):
    """A run was not done within the agent timeout of its tier, and its publisher wanted it ended (`on_timeout`).

    Attributes:
        run: which one.
    """

    code = "run_timeout"

    def __init__(self, message: str, *, run: str = "") -> None:
        super().__init__(message)
        self.run = run


class AnswerTimeout(EventBusError):
    """Nobody answered an agent's question before its deadline, and it has no default."""

    code = "answer_timeout"


class TooManyQuestions(EventBusError):
    """As many questions of the user are open as are kept; ask again when some are settled."""

    code = "too_many_questions"
    retryable = True


class AnswerRefused(EventBusError):
    """An answer to an agent's question is not taken."""

    code = "answer_refused"


class AlreadyAnswered(AnswerRefused):
    """Another answer to the question was accepted before, or its deadline has settled it."""

    code = "already_answered"


class UnknownQuestion(AnswerRefused):
    """No agent asks the user this question."""

    code = "unknown_question"


class QuestionClosed(AnswerRefused):
    """The question takes no answer any more: its deadline has passed, or its run is over."""

    code = "question_closed"


class BadAnswer(AnswerRefused):
    """The answer is none of the options that the question offers."""

    code = "bad_answer"


class ConfirmationTimeout(EventBusError):
    """Too few sessions confirmed an event within the time given; it goes on being delivered, and one may wait again.

    Attributes:
        confirmations: those that there are, of every level.
    """

    code = "confirmation_timeout"
    retryable = True

    def __init__(self, message: str, confirmations: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.confirmations = confirmations


class PartialPublish(StoreUnavailable):
    """Some events of a batch are stored and others not.

    Attributes:
        results: one per event in the order given: a receipt, or the error of that event.
        users: of one event to many users: whose each result is, in the same order; else empty.
        event: of one event to many users: its id, to publish it again for those who have not got it; else empty.
    """

    code = "partial_publish"

    def __init__(self, message: str, results: Sequence[object], users: Sequence[str] = (), event: str = "") -> None:
        super().__init__(message)
        self.results = tuple(results)
        self.users = tuple(users)
        self.event = event

    @property
    def by_user(self) -> dict[str, object]:
        """Of one event to many users: the receipt or the error of each."""
        return dict(zip(self.users, self.results, strict=False))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (*self.args, self.results, self.users, self.event)


class SubscriberError(EventBusError):
    """A subscriber, or a callback that it was given, failed. Where it ends the subscriber, iterating raises it.

    Attributes:
        closed_with: the close code or HTTP status of the node, if that was the cause.
    """

    code = "subscriber"

    def __init__(self, message: str, *, closed_with: int | None = None) -> None:
        super().__init__(message)
        self.closed_with = closed_with


class Superseded(SubscriberError):
    """The session was opened elsewhere: one session has one connection. Final."""

    code = "superseded"
    close_code = CloseCode.SUPERSEDED


class SessionEnded(SubscriberError):
    """An operator or a revocation ended the session. Final."""

    code = "session_ended"
    close_code = CloseCode.SESSION_ENDED


class ClosedForGood(SubscriberError):
    """The node closed with another code of those after which nobody comes back; `closed_with` says which. Final."""

    code = "closed_for_good"


class NodeFault(SubscriberError):
    """A node refused a frame, sent what is no frame, or answered with an unexpected status; the subscriber goes on."""

    code = "node_fault"
    retryable = True


class CommandRefused(SubscriberError):
    """The node did not take what was sent.

    Attributes:
        refused_with: the code in the node's answer, such as `rate_limited` or `run_closed`.
    """

    code = "command_refused"

    def __init__(self, message: str, *, refused_with: str = "") -> None:
        super().__init__(message)
        self.refused_with = refused_with


class SendTimeout(SubscriberError):
    """No node said in time that a command is stored; whether it is, is unknown."""

    code = "send_timeout"
    retryable = True


class TokenFailed(SubscriberError):
    """The token callback raised, or gave no token; it is asked again after a wait."""

    code = "token_failed"
    retryable = True


class HandlerFailed(SubscriberError):
    """`on_event` raised; the event is delivered again, unless failed events are skipped. `__cause__` is the reason.

    Attributes:
        event: the event.
    """

    code = "handler_failed"
    retryable = True

    def __init__(self, message: str, *, event: object = None) -> None:
        super().__init__(message)
        self.event = event


class CallbackFailed(SubscriberError):
    """A callback other than `on_event` raised; nothing stops. `__cause__` is the reason."""

    code = "callback_failed"
