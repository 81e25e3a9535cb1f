"""What a subscriber raises, or tells its application."""

from __future__ import annotations

from eventbus.errors.root import CloseCode, EventBusError

__all__ = [
    "CallbackFailed",
    "ClosedForGood",
    "CommandRefused",
    "HandlerFailed",
    "NodeFault",
    "SendTimeout",
    "SessionEnded",
    "SubscriberError",
    "Superseded",
    "TokenFailed",
]


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
