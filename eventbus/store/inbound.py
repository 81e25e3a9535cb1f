"""What the bus and the nodes ask of the store for the way back, from the user to the agent: records and a Protocol.

Everything a user sends lies under keys of that user, so nobody reaches another's run by naming it. A command stands in
the user's stream of commands until those it is for have acked it; a consumer group stands for a run, or for the workers
that share an inbox. A question is a field of a hash; of all answers one is accepted, in one script with the event that
tells everybody of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from eventbus.errors import StoreError
from eventbus.ids import EntryId, RunId, SessionId, ThreadId, UserId

if TYPE_CHECKING:
    from eventbus.store.appending import Append

__all__ = [
    "COMMANDS_MAX",
    "COMMANDS_MAX_BYTES",
    "POLL_MS",
    "QUESTIONS_MAX",
    "Answer",
    "AnswerOutcome",
    "Answered",
    "AnsweredBy",
    "Ask",
    "CommandRecord",
    "CommandRefusal",
    "CommandStored",
    "Follower",
    "Following",
    "InboundStore",
    "NewCommand",
    "QuestionRecord",
    "QuestionState",
    "TakeCommands",
    "Told",
    "inbox_group",
    "run_group",
]

COMMANDS_MAX: Final = 1_000
"""Most commands of a user that are kept; at the cap those that were handled go."""
COMMANDS_MAX_BYTES: Final = 8 * 1024 * 1024
"""And most memory that they may take; Redis measures it, now and then."""
QUESTIONS_MAX: Final = 256
"""Most questions of a user that are kept, open or answered; at the cap those that are no longer open go."""
POLL_MS: Final = 5_000
"""So often a follower is told to look, whatever it was told: a message may have been lost."""


def run_group(run: RunId) -> str:
    """The consumer group of a run's commands."""
    return f"run:{run}"


def inbox_group(name: str) -> str:
    """The consumer group of workers that share the commands of no run."""
    return f"inbox:{name}"


class Told(StrEnum):
    """What a follower of a user is told, as it goes over the channel."""

    COMMAND = "c"
    """A command was stored."""
    ANSWER = "a"
    """A question was settled."""
    PRESENCE = "p"
    """A session has come or gone."""
    ANYTHING = "*"
    """Anything may have happened: the subscription stands, for the first time or again, or it is time to look."""


class Follower(Protocol):
    """Who is told what happens to a user. Called in the event loop; must not block or raise."""

    def told(self, user: UserId, what: Told) -> None:
        """Something happened; what, is to be read."""


class Following(Protocol):
    """That a follower is told, until it is closed."""

    def close(self) -> None:
        """Ends it at once; safe to repeat."""

    async def aclose(self) -> None:
        """As `close`, for those that close everything so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCommand:
    """A command to store.

    Attributes:
        session: who sent it.
        type: what it wants.
        data: its data as MessagePack.
        ref: the client's name of the request, as a word of its own for each; the same user, session and `ref` within
            the dedupe window is the same command.
        run: the run that it is for; None: for whoever reads the user's commands.
        thread: where it belongs.
    """

    user: UserId
    session: SessionId
    type: str
    data: bytes
    ref: str
    run: RunId | None = None
    thread: ThreadId | None = None


@dataclass(frozen=True, slots=True)
class CommandStored:
    """Where a command is stored; of the first time when `duplicate`."""

    id: EntryId
    duplicate: bool


class CommandRefusal(StrEnum):
    """Why a command was not stored."""

    FULL = "full"
    """As many commands wait as are kept, and none of them was handled."""
    RUN_CLOSED = "run_closed"
    """The run of the user is completed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRecord:
    """A command as it is stored; `attempts` is how often it was read by its group, 0 outside one."""

    id: EntryId
    session: SessionId
    type: str
    data: bytes
    run: RunId | None
    thread: ThreadId | None
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeCommands:
    """Read commands for a group, which is made when it is not there: at the oldest command that is kept.

    Attributes:
        group: `run_group` or `inbox_group`.
        run: only commands for this run; None: only those for none. Others are acked away in this group.
        count: most commands to read.
        idle_ms: what was read and not acked for so long is read again.
        max_deliveries: what was read so often is given up instead: a dead letter.
    """

    user: UserId
    group: str
    run: RunId | None
    count: int
    idle_ms: int
    max_deliveries: int


class QuestionState(StrEnum):
    """Where a question stands. An open one whose deadline has passed takes no answer of the user any more."""

    OPEN = "open"
    ANSWERED = "answered"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionRecord:
    """A question as it is kept.

    Attributes:
        body: what was asked, as MessagePack; the store does not look into it.
        entry: the event that asks it, None while it is not stored.
        settled: how it was settled, as MessagePack; empty while it is open.
        deadline_ms: until when it takes answers, None for ever; Redis's clock, like `now_ms`, when it was read.
    """

    run: RunId
    question: str
    state: QuestionState
    created_ms: int
    deadline_ms: int | None
    entry: EntryId | None
    body: bytes
    settled: bytes
    now_ms: int

    @property
    def is_open(self) -> bool:
        """Whether it takes answers."""
        return self.state is QuestionState.OPEN and (self.deadline_ms is None or self.now_ms < self.deadline_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A question to open; one that is known already stays as it is.

    Attributes:
        timeout_ms: until it is closed to answers, from now; None never closes it.
        options: what may be answered; empty: anything.
    """

    user: UserId
    run: RunId
    question: str
    body: bytes
    timeout_ms: int | None
    options: Sequence[str] = ()


class AnsweredBy(StrEnum):
    """Who settles a question: a user before its deadline, the agent after it."""

    USER = "user"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer, and the event that tells of it: both are stored, or neither.

    Attributes:
        event: `agent_answered`.
        choice: the answer, when it is a text; judged by the options.
        settled: what is kept of it, as MessagePack. The same again is the same answer, and accepted again.
    """

    event: Append
    run: RunId
    question: str
    by: AnsweredBy
    choice: str | None
    settled: bytes


class Answered(StrEnum):
    """What became of an answer."""

    ACCEPTED = "accepted"
    ALREADY_ANSWERED = "already_answered"
    UNKNOWN_QUESTION = "unknown_question"
    QUESTION_CLOSED = "question_closed"
    BAD_ANSWER = "bad_answer"
    EARLY = "early"
    """The deadline has not passed yet, and only `AnsweredBy.DEADLINE` minds."""


@dataclass(frozen=True, slots=True)
class AnswerOutcome:
    """What became of an answer; `entry` is that of the event when it was accepted, `left_ms` the time to the deadline
    when it came early.
    """

    result: Answered
    entry: EntryId | None = None
    left_ms: int = 0


class InboundStore(Protocol):
    """Commands of users, and the questions of agents that they answer."""

    async def send_command(self, command: NewCommand) -> CommandStored | CommandRefusal:
        """Stores a command, once for each `ref`, and tells the followers of the user. Redis: EVALSHA command.lua."""

    async def take_commands(self, request: TakeCommands) -> Sequence[CommandRecord]:
        """Reads commands for a group: first those that come again, then new ones. Redis: XPENDING, XREADGROUP."""

    async def ack_commands(self, user: UserId, group: str, ids: Sequence[EntryId]) -> int:
        """Commands are handled. Returns how many were not acked before. Redis: XACK."""

    async def hold_commands(self, user: UserId, group: str, ids: Sequence[EntryId], idle_ms: int) -> None:
        """Lets commands count as read `idle_ms` ago: 0 for one that is still worked on. Redis: XCLAIM IDLE JUSTID."""

    async def sent_commands(self, user: UserId, after: EntryId, count: int) -> Sequence[CommandRecord]:
        """Commands that are kept, after `after`, oldest first; reading them changes nothing. Redis: XRANGE."""

    async def ask(self, ask: Ask) -> QuestionRecord | None:
        """Opens a question, or gives the one of this run and name that there is. None: too many are open."""

    async def question_published(self, user: UserId, run: RunId, question: str, entry: EntryId) -> None:
        """Writes down which event asks a question: from now on it is sent again to every device that comes."""

    async def questions(self, user: UserId) -> Sequence[QuestionRecord]:
        """The questions that are kept, oldest first; `body` and `settled` of those that are not open are left out."""

    async def have_questions(self, users: Sequence[UserId]) -> Sequence[bool | StoreError]:
        """Whether any question of a user is kept; one result for each, in order, in one write."""

    async def answer(self, answer: Answer) -> AnswerOutcome:
        """Settles a question, if it can be, and stores the event that tells of it; the followers are told.

        Raises:
            StreamFull: the event does not fit; the question stays open.
        """

    async def close_inbound(self, user: UserId, run: RunId) -> None:
        """A run is over: its group and its commands go, its open questions are closed."""

    def follow(self, user: UserId, follower: Follower) -> Following:
        """Has a follower told what happens to a user. Returns at once and keeps (re)subscribing until closed.

        `Told.ANYTHING` comes when the subscription stands: who reads then misses nothing.
        """
