"""To revoke a token, a session or a user before its time, and to see what is revoked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from eventbus.errors import InvalidField
from eventbus.ids import parse_session_id, parse_user_id
from eventbus.store import Store
from eventbus.store.revoking import NOTHING_SEEN, Revocation, Revoke, RevokeStore, Subject

__all__ = ["described", "revocation_asked_for", "revocations", "revoke"]

_PAGE: Final = 500
_FIELDS: Final = ("jti", "user", "session", "reason", "expires_ms")


def revocation_asked_for(asked: Mapping[str, object], *, by: str = "") -> Revoke:
    """What somebody asks to be revoked, checked.

    Args:
        asked: `jti`, or `user`, or `user` and `session`; perhaps `reason`, and `expires_ms` when the token expires by
            itself, Unix milliseconds.
        by: who asks.

    Raises:
        InvalidField: a field is missing, wrong, or unknown.
    """
    if unknown := sorted(set(asked) - set(_FIELDS)):
        raise InvalidField(unknown[0], f"is none of {', '.join(_FIELDS)}")
    jti, reason, expires_ms = asked.get("jti"), asked.get("reason", ""), asked.get("expires_ms")
    for name, text in (("jti", jti), ("reason", reason)):
        if not isinstance(text, str | None):
            raise InvalidField(name, f"must be a string, not {type(text).__name__}")
    if expires_ms is not None and (not isinstance(expires_ms, int) or isinstance(expires_ms, bool)):
        raise InvalidField("expires_ms", f"must be a whole number, not {type(expires_ms).__name__}")
    user, session = asked.get("user"), asked.get("session")
    subject = Subject(
        jti=None if jti is None else str(jti),
        user=None if user is None else parse_user_id(user),
        session=None if session is None else parse_session_id(session),
    )
    if expires_ms is not None and subject.jti is None:
        raise InvalidField("expires_ms", "is of a token: give its `jti`")
    return Revoke(subject=subject, reason=str(reason or ""), by=by, until_ms=expires_ms)


async def revoke(store: Store, request: Revoke) -> Revocation:
    """Revoke something: every node hears of it within two seconds. A session is ended in the store as well: its pending
    entries are recorded as expired. Safe to repeat.

    Raises:
        TooManyRevocations: nodes keep no more.
        StoreError: it may have been revoked, or not.

    When cancelled, the same.
    """
    # In this order: a node that has not heard of it yet would open the session again.
    made = await store.revoke(request)
    subject = request.subject
    if subject.user is not None and subject.session is not None:
        await store.end_session(subject.user, subject.session)
    return made


async def revocations(store: RevokeStore, now_ms: int) -> list[Revocation]:
    """All revocations that have not ended by `now_ms`, Unix milliseconds, in the order in which they were made.

    Raises:
        StoreError: they can not be read.

    Cancellation loses nothing: it only reads.
    """
    found: list[Revocation] = []
    mark = NOTHING_SEEN
    while True:
        page = await store.revocations(mark, _PAGE)
        found += [one for one in page.revocations if one.until_ms > now_ms]
        if not page.more:
            return found
        mark = page.mark


def described(revocation: Revocation) -> dict[str, str | int | None]:
    """A revocation as operators are shown it."""
    subject = revocation.subject
    return {
        "kind": subject.kind.value,
        "jti": subject.jti,
        "user": subject.user,
        "session": subject.session,
        "reason": revocation.reason,
        "by": revocation.by,
        "revoked_ms": revocation.revoked_ms,
        "until_ms": revocation.until_ms,
    }
