"""What operators do in the store: records and a Protocol. Pure.

Everything here may be repeated: what is done already is not done twice. None of it is fenced, for it is not the node of
a session that does it; that node is told by an `Order` through its channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from eventbus.ids import EntryId, NodeName, SessionId, UserId

__all__ = [
    "AUDIT_LIFE_MS",
    "AUDIT_MAX",
    "AuditRecord",
    "DeadLettered",
    "HELD_LIFE_MS",
    "EndSession",
    "Hold",
    "KeyRecord",
    "LookAgain",
    "LookAtHeld",
    "MendStore",
    "Order",
    "Pause",
    "PutBack",
    "SendAgain",
    "SentAgain",
    "TakeOff",
    "TakenHow",
    "parse_order",
]

AUDIT_LIFE_MS: Final = 90 * 24 * 60 * 60_000
"""How long what operators did is kept, from the last of it."""

HELD_LIFE_MS: Final = 30 * 24 * 60 * 60_000
"""A paused type and a held node are forgotten after so long, counted from the last of them."""

AUDIT_MAX: Final = 100_000
"""About so many records of it are kept."""


# --- what nodes are told ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EndSession:
    """The session was ended: whoever has it closes it, and does not open it again."""

    user: UserId
    session: SessionId


@dataclass(frozen=True, slots=True)
class SendAgain:
    """These entries are to be sent again at once, as far as they are in flight."""

    user: UserId
    session: SessionId
    entries: Sequence[EntryId]


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """These entries of the session have become dead letters: the client is to be told."""

    user: UserId
    session: SessionId
    entries: Sequence[EntryId]


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Something was put among the session's pending entries."""

    user: UserId
    session: SessionId


@dataclass(frozen=True, slots=True)
class LookAtHeld:
    """The list of held nodes has changed."""


Order = EndSession | SendAgain | DeadLettered | LookAgain | LookAtHeld


def parse_order(text: str) -> Order | None:
    """An order as it goes through a node's channel, without the sign it begins with; None for one of a later version.

    Raises:
        ValueError: it makes no sense.
    """
    match text.split(" "):
        case ["end", session, user]:
            return EndSession(UserId(user), SessionId(session))
        case ["again", session, user, ids]:
            return SendAgain(UserId(user), SessionId(session), [EntryId(entry) for entry in ids.split(",")])
        case ["dead", session, user, ids]:
            return DeadLettered(UserId(user), SessionId(session), [EntryId(entry) for entry in ids.split(",")])
        case ["back", session, user]:
            return LookAgain(UserId(user), SessionId(session))
        case ["held"]:
            return LookAtHeld()
        case ["end" | "again" | "dead" | "back" | "held", *_]:
            raise ValueError(f"an order to a node has the wrong form: {text[:80]!r}")
    return None


# --- entries and dead letters -----------------------------------------------------------------------------------------


class TakenHow(StrEnum):
    """`SKIPPED`: the session does without them. `DEAD`: they become dead letters."""

    SKIPPED = "skipped"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeOff:
    """Entries that are to be taken off a session's pending entries.

    Attributes:
        reason: of the dead letters.
    """

    user: UserId
    session: SessionId
    entries: Sequence[EntryId]
    how: TakenHow
    reason: str = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class SentAgain:
    """Where the session is live (None: it is away, and gets them when it is back), and which entries are pending."""

    node: NodeName | None
    entries: Sequence[EntryId]


class PutBack(StrEnum):
    """What became of a dead letter: it is pending again; it is not there (any more); its session, or its entry, is not
    there any more, and the letter stays.
    """

    PUT_BACK = "put_back"
    NO_LETTER = "no_letter"
    NO_SESSION = "no_session"
    NOT_STORED = "not_stored"


# --- the rest ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A type of which no events are taken.

    Attributes:
        by: who paused it.
        reason: why.
        since_ms: when, Unix milliseconds of the store's clock.
        partitions: in how many partitions; fewer than all when the one who paused or resumed it was interrupted.
    """

    type: str
    by: str
    reason: str
    since_ms: int
    partitions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A node that an operator has drained, until it is let go: who, why, and when (Unix milliseconds)."""

    node: NodeName
    by: str
    reason: str
    since_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key and its type."""

    key: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """What an operator did, or began to do.

    Attributes:
        id: its own id.
        time_ms: when it was written, Unix milliseconds of the store's clock.
        what: `operation` (one for the records of one action), `action`, `state` (`begun` or `done`), `by`, `reason`,
            what it is about and what came of it.
    """

    id: EntryId
    time_ms: int
    what: Mapping[str, object]


class MendStore(Protocol):
    """What operators do."""

    async def take_off(self, request: TakeOff) -> Sequence[EntryId]:
        """Takes entries off a session. Returns those that were pending. Redis: XPENDING, XACK, XADD."""

    async def send_again(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> SentAgain:
        """Has pending entries sent again at once; no attempt is counted."""

    async def put_back(self, user: UserId, session: SessionId, letter: EntryId, entry: EntryId) -> PutBack:
        """Puts the entry of a dead letter back among its session's pending entries, as delivered once.

        Redis: XCLAIM FORCE, XDEL.
        """

    async def drop_dead(self, partition: int, ids: Sequence[EntryId]) -> int:
        """Drops dead letters. Returns how many were there. Redis: XDEL."""

    async def pause_type(self, type: str, by: str, reason: str) -> None:
        """From now on no event of this type is stored (`TypePaused`), until it is resumed."""

    async def resume_type(self, type: str) -> bool:
        """Events of the type are taken again. Returns whether it was paused."""

    async def paused_types(self) -> Sequence[Pause]:
        """What is paused, by name."""

    async def hold_node(self, node: NodeName, by: str, reason: str) -> None:
        """The node drains and stays, until it is let go; also one that is not running now."""

    async def free_node(self, node: NodeName) -> bool:
        """The node takes connections again. Returns whether it was held."""

    async def held_nodes(self) -> Sequence[Hold]:
        """The nodes that are held, by name."""

    async def keys_of_user(self, user: UserId) -> Sequence[KeyRecord]:
        """The keys that are a user's alone, by name. Redis: SCAN of the whole server: for a purge."""

    async def erase_keys(self, user: UserId, keys: Sequence[str]) -> int:
        """Deletes keys of the user. Returns how many were there."""

    async def forget_user(self, user: UserId) -> int:
        """Takes what is kept of the user among what the users of a partition share: dead letters, events for
        operators, deadlines. Returns how many records that were.
        """

    async def audit(self, what: Mapping[str, object]) -> EntryId:
        """Writes down what an operator does; kept for `AUDIT_LIFE_MS`, about the newest `AUDIT_MAX`."""

    async def audits(self, before: EntryId | None, count: int) -> Sequence[AuditRecord]:
        """What operators did, the newest first, from below `before`."""
