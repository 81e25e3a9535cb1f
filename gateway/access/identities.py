"""An identity as the claims that a ticket stands for, and back. Pure."""

from __future__ import annotations

from typing import Any

import orjson

from eventbus.ids import SessionId, UserId
from gateway.access.auth import Identity, Scope

__all__ = ["claims_of", "identity_from_claims"]


def claims_of(identity: Identity) -> str:
    """The identity as JSON text; it holds no token."""
    return orjson.dumps(
        {
            "user": identity.user,
            "session": identity.session,
            "tier": identity.tier,
            "scopes": sorted(identity.scopes),
            "expires_ms": identity.expires_ms,
            "jti": identity.jti,
            "issued_ms": identity.issued_ms,
            "key_id": identity.key_id,
            "key_mark": identity.key_mark,
        }
    ).decode()


def identity_from_claims(claims: dict[str, Any]) -> Identity:
    """What `claims_of` wrote."""
    session = claims["session"]
    return Identity(
        user=UserId(claims["user"]),
        session=None if session is None else SessionId(session),
        tier=claims["tier"],
        scopes=frozenset(Scope(scope) for scope in claims["scopes"]),
        expires_ms=claims["expires_ms"],
        jti=claims["jti"],
        # Absent from the ticket of a node that is a version behind.
        issued_ms=claims.get("issued_ms"),
        key_id=claims["key_id"],
        key_mark=claims.get("key_mark"),
    )
