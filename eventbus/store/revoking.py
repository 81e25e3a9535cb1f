"""What is revoked before its time: records and a Protocol. Pure.

A revocation is of a token (`jti`), of a session, or of a user. Those of sessions and users strike the tokens that were
issued before: a token that is issued later is good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from eventbus.errors import InvalidField
from eventbus.ids import SessionId, UserId

__all__ = [
    "JTI_CHARACTERS_MAX",
    "NOTHING_SEEN",
    "REASON_CHARACTERS_MAX",
    "REVOCATIONS_MAX",
    "Revocation",
    "RevocationKind",
    "RevocationMark",
    "RevocationPage",
    "Revoke",
    "RevokeStore",
    "Subject",
]

JTI_CHARACTERS_MAX: Final = 256
REASON_CHARACTERS_MAX: Final = 256
REVOCATIONS_MAX: Final = 100_000
"""Most revocations at a time: each node has all of them in memory."""


class RevocationKind(StrEnum):
    """What is revoked."""

    JTI = "jti"
    SESSION = "session"
    USER = "user"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is revoked: the token `jti`; or the session `session` of `user`; or `user`.

    Raises:
        InvalidField: it names none of the three, or more than one.
    """

    jti: str | None = None
    user: UserId | None = None
    session: SessionId | None = None

    def __post_init__(self) -> None:
        if self.jti is not None:
            if self.user is not None or self.session is not None:
                raise InvalidField("jti", "stands alone: revoke the user or the session by itself")
            if not 0 < len(self.jti) <= JTI_CHARACTERS_MAX:
                raise InvalidField("jti", f"has {len(self.jti)} characters: 1 to {JTI_CHARACTERS_MAX} may be given")
        elif self.user is None:
            missing = "or `jti` must be given" if self.session is None else "must be given, a session is one of a user"
            raise InvalidField("user", missing)

    @property
    def kind(self) -> RevocationKind:
        """Which of the three."""
        if self.jti is not None:
            return RevocationKind.JTI
        return RevocationKind.USER if self.session is None else RevocationKind.SESSION

    @property
    def name(self) -> str:
        """One text for each subject."""
        if self.jti is not None:
            return f"jti {self.jti}"
        return f"user {self.user}" if self.session is None else f"session {self.user} {self.session}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke:
    """A revocation to be made.

    Attributes:
        subject: what is revoked.
        reason: why, for operators; may be empty.
        by: who says so; may be empty.
        until_ms: Unix milliseconds from which on nobody needs it any more (the token has expired by then); None for the
            setting's longest life of a token.
    """

    subject: Subject
    reason: str = ""
    by: str = ""
    until_ms: int | None = None

    def __post_init__(self) -> None:
        for field, text in (("reason", self.reason), ("by", self.by)):
            if len(text) > REASON_CHARACTERS_MAX:
                raise InvalidField(field, f"has {len(text)} characters: at most {REASON_CHARACTERS_MAX} may be given")
        if self.until_ms is not None and not 0 < self.until_ms < 2**53:
            raise InvalidField("expires_ms", f"{self.until_ms} is no time in Unix milliseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """A revocation as it is stored.

    Attributes:
        subject: what is revoked.
        reason: why.
        by: who said so.
        number: they are numbered as they are made; one that is made again gets a new number.
        revoked_ms: when it was made (the last time), Unix milliseconds of the store's clock.
        until_ms: when it ends, by that clock.
    """

    subject: Subject
    reason: str
    by: str
    number: int
    revoked_ms: int
    until_ms: int

    def strikes(self, issued_ms: int | None) -> bool:
        """Whether a token of its subject is revoked by it.

        Args:
            issued_ms: when that was issued, Unix milliseconds; None when the token does not say: it may be old.
        """
        return self.subject.jti is not None or issued_ms is None or issued_ms <= self.revoked_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationMark:
    """Up to where a reader has read.

    Attributes:
        epoch: the life of the list; another one begins when it was lost or has become empty.
        number: that of the last revocation that was read.
        primary: the server that answered. Another one may have fewer, under the same numbers (D4).
    """

    epoch: str
    number: int
    primary: str


NOTHING_SEEN: Final = RevocationMark(epoch="", number=0, primary="")


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationPage:
    """Revocations in the order of their numbers, also some that have ended; `mark` is where to go on, and `more` says
    that there is something.
    """

    revocations: Sequence[Revocation]
    mark: RevocationMark
    more: bool


class RevokeStore(Protocol):
    """Revocations."""

    async def revoke(self, request: Revoke) -> Revocation:
        """Revokes, and tells every node (`Listener.revoked`). Made again it counts from then on, and never ends earlier
        than before.

        Raises:
            TooManyRevocations: `REVOCATIONS_MAX` have not ended yet.
        """

    async def revocations(self, mark: RevocationMark, count: int) -> RevocationPage:
        """What was revoked after `mark`, so many at most; from the beginning when the list is another than that of the
        mark. With nothing new it is one small read.
        """
