"""What an agent meets at its work: its run, its questions, the confirmations that it waits for."""

from __future__ import annotations

from collections.abc import Sequence

from eventbus.errors.root import EventBusError

__all__ = [
    "AlreadyAnswered",
    "AnswerRefused",
    "AnswerTimeout",
    "BadAnswer",
    "ConfirmationTimeout",
    "QuestionClosed",
    "RunCancelled",
    "RunMisused",
    "RunTimeout",
    "TooManyQuestions",
    "UnknownQuestion",
]


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
