"""Making JSON Web Tokens: for the command line, tests and small installations without an issuer of their own."""

from __future__ import annotations

from collections.abc import Collection

from joserfc import jwt
from joserfc.jwk import OctKey

from eventbus.errors import InvalidField
from eventbus.ids import parse_session_id, parse_user_id
from eventbus.kinds import check_secret
from eventbus.tiers import TIER_NAME

__all__ = ["SCOPES", "make_token"]

SCOPES = ("subscribe", "publish", "admin")
MAX_JTI_CHARACTERS = 256


def make_token(
    *,
    user: str,
    secret: bytes,
    now_ms: int,
    ttl_ms: int = 3_600_000,
    scopes: Collection[str] = (),
    tier: str | None = None,
    session: str | None = None,
    issuer: str | None = None,
    audience: str | None = None,
    jti: str | None = None,
    kid: str | None = None,
) -> str:
    """Make a token, signed with HS256.

    Args:
        user: the user id, `sub`.
        secret: the shared secret, at least 32 bytes.
        now_ms: wall time, Unix milliseconds.
        ttl_ms: life of the token; rounded up to whole seconds, the unit of `exp`.
        scopes: of `SCOPES`; none means `subscribe`.
        tier: a tier that the nodes have configured; None for their default.
        session: the session that the token is pinned to, `sid`.
        issuer: `iss`.
        audience: `aud`.
        jti: the token's own id, by which it can be revoked; at most 256 characters.
        kid: names the key, where the nodes have several.

    Raises:
        InvalidField: an argument has not the form that nodes want.
        ConfigError: the secret is too short, or a PEM key.
    Source: docs/protocol.md, section 1.
    """
    check_secret(secret)
    if ttl_ms <= 0:
        raise InvalidField("ttl_ms", f"must be above 0, not {ttl_ms}")
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise InvalidField("scopes", f"{unknown[0]!r} is none of {', '.join(SCOPES)}")
    if tier is not None and not TIER_NAME.accepts(tier):
        raise InvalidField("tier", f"must be {TIER_NAME.allowed}, not {tier!r}")
    if jti is not None and not 1 <= len(jti) <= MAX_JTI_CHARACTERS:
        raise InvalidField("jti", f"has {len(jti)} characters: 1 to {MAX_JTI_CHARACTERS} are allowed")
    claims: dict[str, str | int] = {
        "sub": parse_user_id(user),
        "iat": now_ms // 1000,
        "exp": -(-(now_ms + ttl_ms) // 1000),
    }
    optional = {
        "scope": " ".join(scope for scope in SCOPES if scope in scopes),
        "tier": tier,
        "sid": parse_session_id(session) if session is not None else None,
        "iss": issuer,
        "aud": audience,
        "jti": jti,
    }
    claims.update({name: value for name, value in optional.items() if value})
    header = {"alg": "HS256", **({"kid": kid} if kid else {})}
    return jwt.encode(header, claims, OctKey.import_key(secret), algorithms=["HS256"])
