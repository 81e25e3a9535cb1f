"""A value that a caller or a client gave is refused."""

from __future__ import annotations

from eventbus.errors.root import CloseCode, EventBusError

__all__ = [
    "BadFrame",
    "InvalidCommand",
    "InvalidEvent",
    "InvalidField",
    "InvalidUtf8",
    "UnknownOp",
]


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
