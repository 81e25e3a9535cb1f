"""Who is there: verifying a token, and what it allows. Pure. Where a token is found: `gateway.access.token_source`.

Every refusal is an `AuthError` with a `reason` (or `Forbidden`), and no message holds a token or a key.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import orjson

from eventbus.errors import AuthError, ConfigError, Forbidden, InvalidField
from eventbus.ids import SessionId, UserId, parse_session_id, parse_user_id
from gateway.access.keys import Algorithm, VerificationKey, decode_base64url

__all__ = ["TOKEN_BYTES_MAX", "AuthSettings", "Authenticator", "Identity", "Scope", "require_scope"]

TOKEN_BYTES_MAX: Final = 8192
HEADER_BYTES_MAX: Final = 1024
CACHE_ENTRIES: Final = 10_000
EXP_MAX_S: Final = 253_402_300_799  # the end of the year 9999; in milliseconds still within 2**53


class Scope(StrEnum):
    """What a token allows; none implies another."""

    SUBSCRIBE = "subscribe"
    PUBLISH = "publish"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    """What an `Authenticator` works with.

    Attributes:
        keys: in any order; more than one for rotation.
        algorithms: the allow-list.
        tiers: names of the configured tiers.
        default_tier: of a token that names none.
        issuer: what `iss` must be; None: not checked.
        audience: what `aud` must be or hold; None: not checked.
        leeway_ms: how far the issuer's clock may be ahead (`nbf`); `exp` has no leeway.
    """

    keys: tuple[VerificationKey, ...]
    algorithms: frozenset[Algorithm]
    tiers: frozenset[str]
    default_tier: str
    issuer: str | None = None
    audience: str | None = None
    leeway_ms: int = 5_000

    def __post_init__(self) -> None:
        if not self.keys:
            raise ConfigError(
                "no key to verify tokens with: set EVENTBUS_JWT_SECRET_FILE, EVENTBUS_JWT_PUBLIC_KEY_FILES"
                " or EVENTBUS_JWT_JWKS_FILE",
                field="jwt_secret",
            )
        for key in self.keys:
            if key.algorithm not in self.algorithms:
                raise ConfigError(
                    f"a key for {key.algorithm} is configured, and EVENTBUS_JWT_ALGORITHMS allows only"
                    f" {', '.join(sorted(self.algorithms))}",
                    field="jwt_algorithms",
                )
        if self.default_tier not in self.tiers:
            raise ConfigError(f"the default tier {self.default_tier!r} is not configured", field="default_tier")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a verified token says.

    Attributes:
        user: the only thing that routes.
        session: the session that the token is pinned to (`sid`), None for any.
        tier: a configured tier.
        scopes: what is allowed.
        expires_ms: Unix milliseconds; from then on the token is expired.
        jti: the token's own id, for revocation.
        issued_ms: when it was issued (`iat`), Unix milliseconds; None when it does not say.
        key_id: the `kid` of the key that verified it, None when the key has none.
        key_mark: that key's mark, None where it is not known (the ticket of a node that is a version behind).
    """

    user: UserId
    session: SessionId | None
    tier: str
    scopes: frozenset[Scope]
    expires_ms: int
    jti: str | None = None
    issued_ms: int | None = None
    key_id: str | None = None
    # Rotation is no part of who somebody is.
    key_mark: str | None = field(default=None, compare=False, repr=False)


class Authenticator:
    """Verifies tokens. Results are remembered by the token's hash until it expires, because handshakes come in storms.

    Args:
        settings: keys and rules; `renew` gives others.
        cache_entries: most results that are remembered; the longest unused goes first. 0 remembers nothing.
    """

    __slots__ = ("_cache", "_cache_entries", "_marks", "_settings")

    def __init__(self, settings: AuthSettings, *, cache_entries: int = CACHE_ENTRIES) -> None:
        self._settings = settings
        self._marks = frozenset(key.mark for key in settings.keys)
        self._cache_entries = cache_entries
        self._cache: OrderedDict[bytes, Identity] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Authenticator {len(self._settings.keys)} keys, {len(self._cache)} results remembered>"

    @property
    def remembered(self) -> int:
        """How many results are remembered now."""
        return len(self._cache)

    def renew(self, settings: AuthSettings) -> bool:
        """Takes other keys and rules from now on. Returns whether a key has gone, whose tokens count no more."""
        before, self._settings = self._marks, settings
        self._marks = frozenset(key.mark for key in settings.keys)
        if before != self._marks:
            self._cache.clear()
        return not before <= self._marks

    def knows_key_of(self, identity: Identity) -> bool:
        """Whether the key that verified a token is still one of these."""
        return identity.key_mark is None or identity.key_mark in self._marks

    def check_key(self, identity: Identity) -> None:
        """Checks that the key that verified a token is still one of these.

        Raises:
            AuthError: it has been taken away since, with the reason `unknown_key`.
        """
        if not self.knows_key_of(identity):
            raise AuthError("the key of the token has been taken away", reason="unknown_key")

    def verify(self, token: str, now_ms: int) -> Identity:
        """Verify a JWT.

        Args:
            token: the compact form.
            now_ms: wall time, Unix milliseconds.

        Raises:
            AuthError: `reason` is `malformed`, `bad_algorithm`, `unknown_key`, `bad_signature`, `bad_claim`,
                `token_expired` or `not_yet_valid`.
        Source: docs/protocol.md, section 1; RFC 7519, section 7.2; RFC 8725.
        """
        if len(token) > TOKEN_BYTES_MAX or not token.isascii():
            raise AuthError(f"the token is longer than {TOKEN_BYTES_MAX} bytes or not ASCII", reason="malformed")
        digest = hashlib.sha256(token.encode()).digest()
        identity = self._cache.get(digest)
        if identity is None:
            identity = self._verified(token, now_ms)
            self._remember(digest, identity)
        elif identity.expires_ms <= now_ms:
            del self._cache[digest]
            raise _expired(identity.expires_ms, now_ms)
        else:
            self._cache.move_to_end(digest)
        return identity

    def _remember(self, digest: bytes, identity: Identity) -> None:
        self._cache[digest] = identity
        if len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)

    def _verified(self, token: str, now_ms: int) -> Identity:
        parts = token.split(".")
        if len(parts) != 3:
            raise AuthError("the token is not a signed JWT of three parts", reason="malformed")
        if len(parts[0]) > HEADER_BYTES_MAX:
            raise AuthError(f"the token's header is longer than {HEADER_BYTES_MAX} bytes", reason="malformed")
        header = _json_object(parts[0], "header")
        try:
            signature = decode_base64url(parts[2])
        except ValueError:
            raise AuthError("the token's signature is not base64url", reason="malformed") from None
        key = self._matching_key(header, f"{parts[0]}.{parts[1]}".encode(), signature)
        # Only now is the payload more than a stranger's text.
        return self._identity(_json_object(parts[1], "payload"), key, now_ms)

    def _matching_key(self, header: dict[str, object], signed: bytes, signature: bytes) -> VerificationKey:
        # RFC 7515, section 4.1.11: "If any of the listed extension Header Parameters are not understood [...], then the
        # JWS is invalid." None is understood here. `b64` would change what is signed.
        if "crit" in header or "b64" in header:
            raise AuthError("the token's header asks for an extension that is not supported", reason="malformed")
        named, kid = header.get("alg"), header.get("kid")
        algorithm = next((algorithm for algorithm in self._settings.algorithms if algorithm == named), None)
        if algorithm is None:
            raise AuthError("the token's algorithm is not allowed", reason="bad_algorithm")
        if kid is not None and not isinstance(kid, str):
            raise AuthError("the token's kid is not a string", reason="malformed")
        fitting = [key for key in self._settings.keys if key.algorithm == algorithm]
        if kid is not None:
            # A key without a name of its own stands for any: issuers put a kid into tokens also when there is one key.
            fitting = [key for key in fitting if key.kid == kid] or [key for key in fitting if key.kid is None]
        if not fitting:
            raise AuthError("no configured key has the token's algorithm and kid", reason="unknown_key")
        for key in fitting:
            if key.verifies(signed, signature):
                return key
        raise AuthError("the token's signature is not of a configured key", reason="bad_signature")

    def _identity(self, claims: dict[str, object], key: VerificationKey, now_ms: int) -> Identity:
        settings = self._settings
        expires_ms = _seconds_claim(claims, "exp") * 1000
        if expires_ms <= now_ms:
            raise _expired(expires_ms, now_ms)
        if "nbf" in claims and _seconds_claim(claims, "nbf") * 1000 > now_ms + settings.leeway_ms:
            raise AuthError("the token is not valid yet (nbf)", reason="not_yet_valid")
        if settings.issuer is not None and claims.get("iss") != settings.issuer:
            raise AuthError("the token is of another issuer (iss)", reason="bad_claim")
        if settings.audience is not None and not _holds(claims.get("aud"), settings.audience):
            raise AuthError("the token is for another audience (aud)", reason="bad_claim")
        jti = claims.get("jti")
        if jti is not None and not (isinstance(jti, str) and 0 < len(jti) <= 256):
            raise AuthError("the claim jti is not a string of 1 to 256 characters", reason="bad_claim")
        tier = claims.get("tier", settings.default_tier)
        if not isinstance(tier, str) or tier not in settings.tiers:
            raise AuthError("the claim tier names no configured tier", reason="bad_claim")
        user, session = _ids(claims)
        return Identity(
            user=user,
            session=session,
            tier=tier,
            scopes=_scopes(claims),
            expires_ms=expires_ms,
            jti=jti,
            issued_ms=_issued_ms(claims),
            key_id=key.kid,
            key_mark=key.mark,
        )


def _json_object(part: str, what: str) -> dict[str, object]:
    try:
        value = orjson.loads(decode_base64url(part))
    except ValueError:
        # `from None`: the inner error holds the text.
        raise AuthError(f"the token's {what} is not base64url of JSON", reason="malformed") from None
    if not isinstance(value, dict):
        raise AuthError(f"the token's {what} is not a JSON object", reason="malformed")
    return value


def _expired(expires_ms: int, now_ms: int) -> AuthError:
    return AuthError(f"the token expired {now_ms - expires_ms} ms ago", reason="token_expired")


def _seconds_claim(claims: dict[str, object], name: str) -> int:
    value = claims.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= EXP_MAX_S:
        raise AuthError(f"the claim {name} must be a whole number of seconds since 1970", reason="bad_claim")
    return value


def _issued_ms(claims: dict[str, object]) -> int | None:
    """RFC 7519, section 4.1.6. Some issuers give fractions of a second."""
    value = claims.get("iat")
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= EXP_MAX_S:
        raise AuthError("the claim iat must be seconds since 1970", reason="bad_claim")
    return int(value * 1000)


def _holds(audience: object, wanted: str) -> bool:
    """RFC 7519, section 4.1.3: one string or a list of them."""
    return audience == wanted or (isinstance(audience, list) and wanted in audience)


def _ids(claims: dict[str, object]) -> tuple[UserId, SessionId | None]:
    try:
        user = parse_user_id(claims.get("sub"), field="sub")
        session = parse_session_id(claims["sid"], field="sid") if "sid" in claims else None
    except InvalidField as error:
        raise AuthError(f"the claim {error.field} is not a valid id", reason="bad_claim") from None
    return user, session


def _scopes(claims: dict[str, object]) -> frozenset[Scope]:
    given = claims.get("scope", "")
    if not isinstance(given, str):
        raise AuthError("the claim scope must be a string of words", reason="bad_claim")
    words = given.split()
    if not words:
        return frozenset({Scope.SUBSCRIBE})
    # Words of other systems (`openid`) are none of ours; they give nothing.
    return frozenset(scope for scope in Scope if scope in words)


def require_scope(identity: Identity, scope: Scope) -> None:
    """Check that a token allows something.

    Raises:
        Forbidden: it does not.
    """
    if scope not in identity.scopes:
        raise Forbidden(f"the token lacks the scope {scope}")
