"""The keys that verify tokens. Pure: what a file holds is an argument.

Each key stands for exactly one algorithm, which follows from the key and never from a token: an RSA public key cannot
become the secret of an HMAC, because nothing ever tries it as one.
"""

from __future__ import annotations

import base64
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import orjson
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from eventbus.errors import ConfigError
from eventbus.kinds import check_secret

__all__ = ["Algorithm", "VerificationKey", "decode_base64url", "key_from_pem", "key_from_secret", "keys_from_jwks"]

RSA_BITS_MIN: Final = 2048
JWKS_KEYS_MAX: Final = 100
_Kind = type[RSAKey] | type[ECKey] | type[OKPKey]
_KINDS: Final[tuple[_Kind, ...]] = (RSAKey, ECKey, OKPKey)
_KID: Final = re.compile(r"[ -~]{1,256}")


class Algorithm(StrEnum):
    """The signature algorithms that may be allowed at all."""

    HS256 = "HS256"
    RS256 = "RS256"
    ES256 = "ES256"
    EDDSA = "EdDSA"


@dataclass(frozen=True, slots=True, kw_only=True)
class _JwkKind:
    algorithm: Algorithm
    key: _Kind | None
    members: tuple[str, ...]


_JWK_KINDS: Final = {
    ("oct", None): _JwkKind(algorithm=Algorithm.HS256, key=None, members=("k",)),
    ("RSA", None): _JwkKind(algorithm=Algorithm.RS256, key=RSAKey, members=("n", "e")),
    ("EC", "P-256"): _JwkKind(algorithm=Algorithm.ES256, key=ECKey, members=("crv", "x", "y")),
    ("OKP", "Ed25519"): _JwkKind(algorithm=Algorithm.EDDSA, key=OKPKey, members=("crv", "x")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationKey:
    """A key, the one algorithm that it is for, and the name by which tokens ask for it (None: it has none).

    Attributes:
        algorithm: the only one that it verifies.
        kid: its name.
        key: itself.
        mark: tells it from other keys without holding it.
    """

    algorithm: Algorithm
    kid: str | None
    key: OctKey | RSAKey | ECKey | OKPKey = field(repr=False)
    mark: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Half of a thumbprint: enough to tell keys apart, on every node alike. Source: RFC 7638.
        object.__setattr__(self, "mark", f"{self.algorithm}:{self.kid or ''}:{self.key.thumbprint()[:22]}")

    def verifies(self, signed: bytes, signature: bytes) -> bool:
        """Whether `signature` is this key's over `signed`. Source: RFC 7515, section 5.2."""
        # The model and not `joserfc.jws`, which takes the algorithm from the token and warns of EdDSA's name.
        return JWSRegistry.algorithms[self.algorithm].verify(signed, signature, self.key)


def key_from_secret(secret: bytes, kid: str | None = None) -> VerificationKey:
    """Make the key for HS256.

    Raises:
        ConfigError: the secret is shorter than 32 bytes, or a PEM key.
    """
    check_secret(secret)
    return VerificationKey(algorithm=Algorithm.HS256, kid=kid, key=OctKey.import_key(secret))


def key_from_pem(pem: bytes, *, name: str, kid: str | None = None) -> VerificationKey:
    """Make the key of a PEM text: a public key or a certificate.

    Args:
        pem: the text.
        name: what the error calls it, as a rule the file's name.
        kid: the key id that tokens give, None for any.

    Raises:
        ConfigError: not a public key, a private one, or of a kind that no allowed algorithm has.
    """
    if b"-----BEGIN" not in pem:
        raise ConfigError(f"{name} holds no PEM key", field="jwt_public_key_files")
    if b"PRIVATE KEY" in pem:
        raise ConfigError(
            f"{name} holds a private key: a node needs only the public one (openssl pkey -pubout)",
            field="jwt_public_key_files",
        )
    for kind in _KINDS:
        try:
            key = _imported(kind, pem)
        except (JoseError, ValueError, TypeError):
            continue
        return _fitting(key, kid, name=name, setting="jwt_public_key_files")
    raise ConfigError(f"{name} holds no key of RSA, EC or Ed25519", field="jwt_public_key_files")


def keys_from_jwks(text: bytes, *, name: str) -> tuple[VerificationKey, ...]:
    """Make the keys of a JSON Web Key Set. Those that are not for signatures, or for other algorithms, are passed over.

    Raises:
        ConfigError: not a key set, a key that is broken, no usable key, or two for one algorithm and kid.
    Source: RFC 7517, section 5.
    """
    setting = "jwt_jwks_file"
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise ConfigError(f"{name} is not JSON", field=setting) from None
    given = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise ConfigError(f"{name} is no JSON Web Key Set: it must be an object with a list `keys`", field=setting)
    if len(given) > JWKS_KEYS_MAX:
        raise ConfigError(f"{name} has {len(given)} keys: at most {JWKS_KEYS_MAX} are taken", field=setting)
    keys: dict[tuple[Algorithm, str | None], VerificationKey] = {}
    for index, item in enumerate(given):
        key = _key_from_jwk(item, name=f"{name}, key {index}")
        if key is None:
            continue
        if (key.algorithm, key.kid) in keys:
            raise ConfigError(f"{name}, key {index}: the same kid and algorithm as a key before", field=setting)
        keys[key.algorithm, key.kid] = key
    if not keys:
        raise ConfigError(f"{name} holds no key for {', '.join(Algorithm)}", field=setting)
    return tuple(keys.values())


def _key_from_jwk(item: Mapping[str, object], *, name: str) -> VerificationKey | None:
    kty, crv, kid = item.get("kty"), item.get("crv"), item.get("kid")
    kind = _JWK_KINDS.get((kty, crv)) if isinstance(kty, str) and isinstance(crv, str | None) else None
    operations = item.get("key_ops", ["verify"])
    if (
        not isinstance(kty, str)
        or kind is None
        or item.get("use", "sig") != "sig"
        or item.get("alg", kind.algorithm) != kind.algorithm
        or not (isinstance(operations, list) and "verify" in operations)
    ):
        return None
    if kid is not None and not (isinstance(kid, str) and _KID.fullmatch(kid)):
        raise ConfigError(
            f"{name}: its kid must be a string of 1 to 256 printable ASCII characters", field="jwt_jwks_file"
        )
    # Only the public members: a private key in the set is not taken into memory.
    members = {member: value for member in kind.members if isinstance(value := item.get(member), str)}
    if len(members) < len(kind.members):
        raise ConfigError(f"{name}: it lacks one of {', '.join(kind.members)}", field="jwt_jwks_file")
    try:
        if kind.key is None:
            return key_from_secret(decode_base64url(members["k"]), kid)
        key = _imported(kind.key, {**members, "kty": kty})
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}", field="jwt_jwks_file") from None
    except (JoseError, ValueError, TypeError):
        raise ConfigError(f"{name}: it is no valid key of the type {kty}", field="jwt_jwks_file") from None
    return _fitting(key, kid, name=name, setting="jwt_jwks_file")


def _imported(kind: _Kind, value: bytes | dict[str, str | list[str]]) -> RSAKey | ECKey | OKPKey:
    """Raises: JoseError, ValueError, TypeError: not a key of that kind."""
    with warnings.catch_warnings():
        # Of a small RSA key joserfc only warns; `_fitting` refuses it.
        warnings.simplefilter("ignore", SecurityWarning)
        return kind.import_key(value)


def _fitting(key: RSAKey | ECKey | OKPKey, kid: str | None, *, name: str, setting: str) -> VerificationKey:
    """Bind a key to the one algorithm that fits it. Raises: ConfigError."""
    if isinstance(key, RSAKey):
        bits = key.public_key.key_size
        if bits < RSA_BITS_MIN:
            raise ConfigError(
                f"{name} is an RSA key of {bits} bits: it must have at least {RSA_BITS_MIN}", field=setting
            )
        return VerificationKey(algorithm=Algorithm.RS256, kid=kid, key=key)
    algorithm, curve = (Algorithm.ES256, "P-256") if isinstance(key, ECKey) else (Algorithm.EDDSA, "Ed25519")
    if key.curve_name != curve:
        raise ConfigError(f"{name} has the curve {key.curve_name}: {algorithm} needs {curve}", field=setting)
    return VerificationKey(algorithm=algorithm, kid=kid, key=key)


def decode_base64url(text: str) -> bytes:
    """Decode base64url without padding, and in its one canonical form only.

    Raises:
        ValueError: another character, padding, a length that cannot be, or bits behind the end.
    Source: RFC 7515, section 2; RFC 4648, section 3.5.
    """
    raw = text.encode("ascii")
    decoded = base64.urlsafe_b64decode(raw + b"=" * (-len(raw) % 4))
    # b64decode passes over what it does not know and ignores spare bits: two texts would then be one token.
    if base64.urlsafe_b64encode(decoded).rstrip(b"=") != raw:
        raise ValueError("not canonical base64url")
    return decoded
