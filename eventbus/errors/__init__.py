"""Every error of the bus, as one tree under `EventBusError`.

Class attributes carry what a caller decides by: `code` (stable, for machines), `retryable` (the same call may succeed
later) and `close_code` (what a node closes a socket with, None when it does not). The message says what happened, with
the numbers, and what to do. Redis's own errors are translated once, in `eventbus.store`. `docs/errors.md` is generated
from these classes. Import them from here: in which module one stands may change.
"""

from __future__ import annotations

from eventbus.errors.access import AuthError, Forbidden, RateLimited, SessionRevoked, TooManySessions
from eventbus.errors.root import CloseCode, ConfigError, EventBusError
from eventbus.errors.storing import (
    BreakerOpen,
    NotReplicated,
    OutOfOrder,
    PartialPublish,
    PublishTimeout,
    RunClosed,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreMisconfigured,
    StoreMoved,
    StoreTimeout,
    StoreUnavailable,
    StreamFull,
    TooManyRevocations,
    TypePaused,
)
from eventbus.errors.subscribing import (
    CallbackFailed,
    ClosedForGood,
    CommandRefused,
    HandlerFailed,
    NodeFault,
    SendTimeout,
    SessionEnded,
    SubscriberError,
    Superseded,
    TokenFailed,
)
from eventbus.errors.values import BadFrame, InvalidCommand, InvalidEvent, InvalidField, InvalidUtf8, UnknownOp
from eventbus.errors.working import (
    AlreadyAnswered,
    AnswerRefused,
    AnswerTimeout,
    BadAnswer,
    ConfirmationTimeout,
    QuestionClosed,
    RunCancelled,
    RunMisused,
    RunTimeout,
    TooManyQuestions,
    UnknownQuestion,
)

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
    "TooManySessions",
    "TypePaused",
    "UnknownOp",
    "UnknownQuestion",
]
