"""Tokens, their keys, where a request carries them, and whose pages may connect."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from eventbus.errors import AuthError, CloseCode, ConfigError, Forbidden
from gateway.access.auth import Authenticator, AuthSettings, Identity, Scope, require_scope
from gateway.access.keys import (
    Algorithm,
    VerificationKey,
    decode_base64url,
    key_from_pem,
    key_from_secret,
    keys_from_jwks,
)
from gateway.access.origin import check_origin, parse_origin
from gateway.access.token_source import BEARER_SUBPROTOCOL, TokenSource, TokenWay, find_token

NOW_S = 1_763_700_000
NOW_MS = NOW_S * 1000
SECRET = b"a-secret-of-more-than-thirty-two-bytes"
OTHER_SECRET = b"another-secret-of-more-than-32-bytes"
CLAIMS: dict[str, Any] = {"sub": "ada", "exp": NOW_S + 60}

RSA_PRIVATE = rsa.generate_private_key(65537, 2048)
EC_PRIVATE = ec.generate_private_key(ec.SECP256R1())
ED_PRIVATE = ed25519.Ed25519PrivateKey.generate()


def public_pem(private: Any) -> bytes:
    pem: bytes = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def private_pem(private: Any) -> bytes:
    pem: bytes = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


SIGNERS: dict[str, Any] = {
    "RS256": RSAKey.import_key(private_pem(RSA_PRIVATE)),
    "ES256": ECKey.import_key(private_pem(EC_PRIVATE)),
    "EdDSA": OKPKey.import_key(private_pem(ED_PRIVATE)),
}
KEYS = {
    "HS256": key_from_secret(SECRET),
    "RS256": key_from_pem(public_pem(RSA_PRIVATE), name="rsa.pem"),
    "ES256": key_from_pem(public_pem(EC_PRIVATE), name="ec.pem"),
    "EdDSA": key_from_pem(public_pem(ED_PRIVATE), name="ed.pem"),
}


def signed(
    claims: object, *, alg: str = "HS256", secret: bytes = SECRET, raw_payload: bytes | None = None, **header: object
) -> str:
    """A token built by hand, so that a test can build any."""
    head = b64(json.dumps({"alg": alg, **header}).encode())
    body = b64(raw_payload if raw_payload is not None else json.dumps(claims).encode())
    message = f"{head}.{body}".encode()
    if alg in SIGNERS:
        signature = JWSRegistry.algorithms[alg].sign(message, SIGNERS[alg])
    else:
        signature = hmac.new(secret, message, hashlib.sha256).digest()
    return f"{head}.{body}.{b64(signature)}"


def authenticator(*keys: VerificationKey, cache_entries: int = 10_000, **rules: Any) -> Authenticator:
    settings = AuthSettings(
        keys=keys or (KEYS["HS256"],),
        algorithms=rules.pop("algorithms", frozenset(Algorithm)),
        tiers=frozenset({"free", "pro"}),
        default_tier="free",
        **rules,
    )
    return Authenticator(settings, cache_entries=cache_entries)


def reason_of(token: str, auth: Authenticator | None = None, now_ms: int = NOW_MS) -> str:
    with pytest.raises(AuthError) as caught:
        (auth or authenticator()).verify(token, now_ms)
    assert caught.value.close_code is CloseCode.UNAUTHENTICATED
    assert token == "" or token not in str(caught.value)
    assert SECRET.decode() not in str(caught.value)
    return caught.value.reason


# --- what a good token says -----------------------------------------------------------------------------------------
def test_a_token_with_nothing_but_a_user_subscribes_in_the_default_tier() -> None:
    identity = authenticator().verify(signed(CLAIMS), NOW_MS)
    assert identity == Identity(
        user=identity.user,
        session=None,
        tier="free",
        scopes=frozenset({Scope.SUBSCRIBE}),
        expires_ms=NOW_MS + 60_000,
        jti=None,
        key_id=None,
    )
    assert identity.user == "ada"


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("iat, issued_ms", [(NOW_S, NOW_S * 1000), (NOW_S + 0.25, NOW_S * 1000 + 250), (0, 0)])
def test_when_a_token_was_issued_is_read_also_with_a_fraction_of_a_second(iat: float, issued_ms: int) -> None:
    assert authenticator().verify(signed({**CLAIMS, "iat": iat}), NOW_MS).issued_ms == issued_ms


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("iat", ["now", True, -1, 10**15, [1]])
def test_a_time_of_issue_that_is_none_is_refused(iat: object) -> None:
    assert reason_of(signed({**CLAIMS, "iat": iat})) == "bad_claim"


def test_every_claim_is_read() -> None:
    token = signed(
        {**CLAIMS, "sid": "tab-1", "tier": "pro", "scope": "publish openid  admin", "jti": "t1", "nbf": NOW_S}
    )
    identity = authenticator().verify(token, NOW_MS)
    assert identity.session == "tab-1"
    assert identity.tier == "pro"
    assert identity.scopes == {Scope.PUBLISH, Scope.ADMIN}
    assert identity.jti == "t1"


@pytest.mark.parametrize("scope", ["", "   "])
def test_an_empty_scope_is_none_and_means_subscribe(scope: str) -> None:
    assert authenticator().verify(signed({**CLAIMS, "scope": scope}), NOW_MS).scopes == {Scope.SUBSCRIBE}


def test_scopes_of_other_systems_give_nothing() -> None:
    identity = authenticator().verify(signed({**CLAIMS, "scope": "openid profile"}), NOW_MS)
    assert identity.scopes == frozenset()
    with pytest.raises(Forbidden):
        require_scope(identity, Scope.SUBSCRIBE)


def test_a_scope_does_not_imply_another() -> None:
    identity = authenticator().verify(signed({**CLAIMS, "scope": "admin"}), NOW_MS)
    require_scope(identity, Scope.ADMIN)
    with pytest.raises(Forbidden, match="publish"):
        require_scope(identity, Scope.PUBLISH)


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("algorithm", list(KEYS))
def test_each_algorithm_verifies_its_own_signature_and_no_changed_one(algorithm: str) -> None:
    auth = authenticator(KEYS[algorithm])
    token = signed(CLAIMS, alg=algorithm)
    assert auth.verify(token, NOW_MS).user == "ada"
    head, _, signature = token.split(".")
    forged = b64(json.dumps({**CLAIMS, "sub": "eve"}).encode())
    assert reason_of(f"{head}.{forged}.{signature}", auth) == "bad_signature"
    for bad in (b"", b"x", b"\0" * 64, b"\0" * 256, b"\0" * 5_000):
        assert reason_of(f"{head}.{forged}.{b64(bad)}", auth) in ("bad_signature", "malformed")


# --- algorithms and keys --------------------------------------------------------------------------------------------
@pytest.mark.requirement("R23")
@pytest.mark.parametrize(
    "alg", ["none", "None", "NONE", "", "HS384", "HS512", "RS512", "PS256", "ES384", "Ed25519", "hs256"]
)
def test_an_algorithm_that_is_not_on_the_list_is_refused(alg: str) -> None:
    auth = authenticator(*KEYS.values())
    assert reason_of(signed(CLAIMS, alg=alg), auth) == "bad_algorithm"
    head, body, _ = signed(CLAIMS, alg=alg).split(".")
    assert reason_of(f"{head}.{body}.", auth) == "bad_algorithm"


@pytest.mark.parametrize("alg", [None, 5, ["HS256"], {"HS256": 1}, True])
def test_an_algorithm_that_is_no_string_is_refused(alg: Any) -> None:
    head = b64(json.dumps({"alg": alg}).encode())
    _, body, signature = signed(CLAIMS).split(".")
    assert reason_of(f"{head}.{body}.{signature}") == "bad_algorithm"


@pytest.mark.requirement("R23")
def test_a_public_key_is_never_the_secret_of_an_hmac() -> None:
    """The confusion of algorithms: everybody knows the public key, so everybody could sign with it."""
    pem = public_pem(RSA_PRIVATE)
    der = RSA_PRIVATE.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for secret in (pem, pem.strip(), der):
        token = signed(CLAIMS, secret=secret)
        assert reason_of(token, authenticator(KEYS["RS256"])) == "unknown_key"
        assert reason_of(token, authenticator(KEYS["RS256"], KEYS["HS256"])) == "bad_signature"


def test_a_token_for_another_kind_of_key_is_refused() -> None:
    for algorithm in KEYS:
        for other, key in KEYS.items():
            if other != algorithm:
                assert reason_of(signed(CLAIMS, alg=algorithm), authenticator(key)) == "unknown_key"


def test_an_allowed_list_shorter_than_the_keys_stops_the_start() -> None:
    with pytest.raises(ConfigError, match="HS256"):
        authenticator(KEYS["HS256"], algorithms=frozenset({Algorithm.RS256}))


def test_no_key_stops_the_start() -> None:
    with pytest.raises(ConfigError, match="EVENTBUS_JWT_SECRET_FILE"):
        AuthSettings(keys=(), algorithms=frozenset(Algorithm), tiers=frozenset({"free"}), default_tier="free")


def test_a_default_tier_that_is_not_configured_stops_the_start() -> None:
    with pytest.raises(ConfigError, match="gold"):
        AuthSettings(
            keys=(KEYS["HS256"],), algorithms=frozenset(Algorithm), tiers=frozenset({"free"}), default_tier="gold"
        )


def test_old_and_new_keys_verify_side_by_side_during_a_rotation() -> None:
    auth = authenticator(key_from_secret(SECRET, kid="old"), key_from_secret(OTHER_SECRET, kid="new"))
    assert auth.verify(signed(CLAIMS, kid="old"), NOW_MS).key_id == "old"
    assert auth.verify(signed(CLAIMS, secret=OTHER_SECRET, kid="new"), NOW_MS).key_id == "new"
    assert reason_of(signed(CLAIMS, kid="new"), auth) == "bad_signature"
    assert reason_of(signed(CLAIMS, kid="third"), auth) == "unknown_key"


def test_a_token_without_kid_is_tried_on_every_fitting_key() -> None:
    auth = authenticator(key_from_secret(OTHER_SECRET, kid="new"), key_from_secret(SECRET, kid="old"))
    assert auth.verify(signed(CLAIMS), NOW_MS).key_id == "old"


def test_a_key_without_kid_stands_for_any() -> None:
    assert authenticator().verify(signed(CLAIMS, kid="whatever"), NOW_MS).key_id is None


def test_a_kid_that_is_no_string_is_refused() -> None:
    assert reason_of(signed(CLAIMS, kid=["old"])) == "malformed"


@pytest.mark.parametrize("header", [{"crit": ["exp"]}, {"b64": False}, {"crit": None}])
def test_an_extension_that_changes_the_meaning_is_refused(header: dict[str, Any]) -> None:
    assert reason_of(signed(CLAIMS, **header)) == "malformed"


# --- claims ---------------------------------------------------------------------------------------------------------
@pytest.mark.requirement("R23")
def test_a_token_is_expired_from_its_second_on() -> None:
    token = signed(CLAIMS)
    assert authenticator().verify(token, NOW_MS + 59_999).user == "ada"
    assert reason_of(token, now_ms=NOW_MS + 60_000) == "token_expired"


@pytest.mark.parametrize("exp", [None, "soon", 1.5, True, -1, 10**15, 10**30, [], {}])
def test_a_token_without_a_usable_exp_is_refused(exp: Any) -> None:
    assert reason_of(signed({"sub": "ada", "exp": exp})) == "bad_claim"


def test_a_token_without_exp_is_refused() -> None:
    assert reason_of(signed({"sub": "ada"})) == "bad_claim"


def test_nbf_allows_for_the_issuers_clock_and_no_more() -> None:
    assert authenticator().verify(signed({**CLAIMS, "nbf": NOW_S + 5}), NOW_MS).user == "ada"
    assert reason_of(signed({**CLAIMS, "nbf": NOW_S + 6})) == "not_yet_valid"
    assert reason_of(signed({**CLAIMS, "nbf": NOW_S + 1}), authenticator(leeway_ms=0)) == "not_yet_valid"
    assert reason_of(signed({**CLAIMS, "nbf": "now"})) == "bad_claim"


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": None},
        {"sub": ""},
        {"sub": 5},
        {"sub": "run_1"},
        {"sub": "thread_1"},
        {"sub": "a b"},
        {"sub": "ada\n"},
        {"sub": "a" * 129},
        {"sid": None},
        {"sid": "a/b"},
        {"sid": 5},
        {"tier": "gold"},
        {"tier": None},
        {"tier": ["free"]},
        {"scope": ["publish"]},
        {"scope": None},
        {"jti": ""},
        {"jti": 5},
        {"jti": "x" * 257},
    ],
    ids=str,
)
def test_a_claim_of_the_wrong_form_is_refused(claims: dict[str, Any]) -> None:
    assert reason_of(signed({**CLAIMS, **claims})) == "bad_claim"


def test_the_user_is_the_claim_sub_and_nothing_else() -> None:
    assert reason_of(signed({"user": "ada", "exp": NOW_S + 60})) == "bad_claim"


def test_issuer_and_audience_are_checked_when_they_are_set() -> None:
    auth = authenticator(issuer="https://issuer.example", audience="bus")
    good = {**CLAIMS, "iss": "https://issuer.example", "aud": "bus"}
    assert auth.verify(signed(good), NOW_MS).user == "ada"
    assert auth.verify(signed({**good, "aud": ["web", "bus"]}), NOW_MS).user == "ada"
    wrongs: tuple[dict[str, object], ...] = (
        {"iss": "https://issuer.example/"},
        {"iss": None},
        {"aud": "web"},
        {"aud": []},
        {"aud": {"bus": 1}},
    )
    for wrong in wrongs:
        assert reason_of(signed({**good, **wrong}), auth) == "bad_claim"
    assert reason_of(signed(CLAIMS), auth) == "bad_claim"


# --- malformed ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "a.b.c.d.e",
        "ä.ö.ü",
        "\ud800",
        "x" * 8_193,
        b64(b"[]") + ".e30.",
        b64(b"[" * 700) + ".e30.",
        b64(b"\xff") + ".e30.",
        b64(b"x" * 1_000) + ".e30.",
        b64(b'{"alg":"HS256"}') + ".e30.!!!!",
        b64(b'{"alg":"HS256"}') + ".e30.AA==",
        " " + signed(CLAIMS),
        signed(CLAIMS) + "\n",
    ],
    ids=range(17),
)
def test_a_token_that_is_none_is_refused(token: str) -> None:
    assert reason_of(token) == "malformed"


@pytest.mark.parametrize("payload", [b"", b"[]", b"5", b"null", b'{"sub":', b"\xff\xfe", b"[" * 2_000, b'{"exp":NaN}'])
def test_a_signed_payload_that_is_no_object_is_refused(payload: bytes) -> None:
    assert reason_of(signed(None, raw_payload=payload)) == "malformed"


def test_a_token_has_one_text_only() -> None:
    """Spare bits at the end of base64url would make several texts of one signature."""
    token = signed(CLAIMS)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    index = alphabet.index(token[-1])
    twin = token[:-1] + alphabet[index ^ 1]
    assert reason_of(twin) == "malformed"


def test_base64url_is_taken_in_its_canonical_form_only() -> None:
    assert decode_base64url("") == b""
    assert decode_base64url("_-8") == b"\xff\xef"
    for bad in ("A", "AA==", "A A", "AB", "+/8", "ä", "AAAAA"):
        with pytest.raises(ValueError, match=r".*"):
            decode_base64url(bad)


# --- remembering ----------------------------------------------------------------------------------------------------
def test_a_result_is_remembered_until_the_token_expires_and_no_longer() -> None:
    auth = authenticator()
    token = signed(CLAIMS)
    first = auth.verify(token, NOW_MS)
    assert auth.verify(token, NOW_MS + 59_999) is first
    assert auth.remembered == 1
    assert reason_of(token, auth, NOW_MS + 60_000) == "token_expired"
    assert auth.remembered == 0


def test_what_is_remembered_is_bounded_and_the_longest_unused_goes_first() -> None:
    auth = authenticator(cache_entries=2)
    tokens = [signed({**CLAIMS, "jti": str(number)}) for number in range(3)]
    first, second = (auth.verify(token, NOW_MS) for token in tokens[:2])
    assert auth.verify(tokens[0], NOW_MS) is first
    auth.verify(tokens[2], NOW_MS)
    assert auth.remembered == 2
    assert auth.verify(tokens[0], NOW_MS) is first
    assert auth.verify(tokens[1], NOW_MS) is not second


def test_a_refusal_is_not_remembered() -> None:
    auth = authenticator()
    for _ in range(10):
        reason_of(signed({**CLAIMS, "sub": ""}), auth)
    assert auth.remembered == 0


def test_nothing_is_remembered_when_that_is_switched_off() -> None:
    auth = authenticator(cache_entries=0)
    auth.verify(signed(CLAIMS), NOW_MS)
    assert auth.remembered == 0


def test_nothing_that_is_shown_holds_a_key_or_a_token() -> None:
    auth = authenticator()
    auth.verify(signed(CLAIMS), NOW_MS)
    assert repr(auth) == "<Authenticator 1 keys, 1 results remembered>"
    assert SECRET.decode() not in repr(KEYS["HS256"])
    assert "hunter2" not in repr(TokenSource(way=TokenWay.HEADER, value="hunter2"))


# --- keys -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("secret", [b"", b"x" * 31, b"-----BEGIN PUBLIC KEY-----\n" + b"x" * 40])
def test_a_secret_that_is_short_or_a_key_is_refused(secret: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        key_from_secret(secret)
    assert "xxx" not in str(caught.value)


@pytest.mark.parametrize(
    "pem, why",
    [
        (b"", "no PEM"),
        (SECRET, "no PEM"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no key of"),
        (private_pem(RSA_PRIVATE), "private key"),
        (public_pem(rsa.generate_private_key(65537, 1024)), "1024 bits"),  # noqa: S505
        (public_pem(ec.generate_private_key(ec.SECP384R1())), "P-384"),
        (public_pem(ed448.Ed448PrivateKey.generate()), "Ed448"),
    ],
    ids=["empty", "secret", "broken", "private", "small", "curve", "ed448"],
)
def test_a_file_without_a_usable_public_key_is_refused_by_its_name(pem: bytes, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        key_from_pem(pem, name="some.pem")
    assert "some.pem" in str(caught.value)


def jwk(private: Any, **more: object) -> dict[str, object]:
    kinds: list[tuple[type, Any]] = [
        (rsa.RSAPrivateKey, RSAKey),
        (ec.EllipticCurvePrivateKey, ECKey),
        (ed25519.Ed25519PrivateKey, OKPKey),
    ]
    kind = next(kind for native, kind in kinds if isinstance(private, native))
    return {**kind.import_key(private_pem(private)).as_dict(private=False), **more}


def key_set(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


OCT = {"kty": "oct", "k": b64(SECRET)}


def test_a_key_set_gives_each_key_its_own_algorithm() -> None:
    keys = keys_from_jwks(
        key_set(
            jwk(RSA_PRIVATE, kid="r", use="sig", alg="RS256"),
            jwk(EC_PRIVATE, kid="e", key_ops=["verify"]),
            jwk(ED_PRIVATE, kid="d"),
            {**OCT, "kid": "o"},
        ),
        name="keys.json",
    )
    assert [(key.kid, key.algorithm) for key in keys] == [
        ("r", "RS256"),
        ("e", "ES256"),
        ("d", "EdDSA"),
        ("o", "HS256"),
    ]
    auth = authenticator(*keys)
    for kid, alg in (("r", "RS256"), ("e", "ES256"), ("d", "EdDSA"), ("o", "HS256")):
        assert auth.verify(signed(CLAIMS, alg=alg, kid=kid), NOW_MS).key_id == kid


def test_keys_of_a_set_that_are_for_something_else_are_passed_over() -> None:
    keys = keys_from_jwks(
        key_set(
            jwk(RSA_PRIVATE, use="enc"),
            jwk(RSA_PRIVATE, alg="PS256"),
            jwk(RSA_PRIVATE, key_ops=["encrypt"]),
            jwk(RSA_PRIVATE, key_ops="verify"),
            {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"},
            {"kty": ["RSA"]},
            {"kty": "EC", "crv": 5},
            {},
            OCT,
        ),
        name="keys.json",
    )
    assert [key.algorithm for key in keys] == ["HS256"]


def test_the_private_half_of_a_key_in_a_set_is_not_taken() -> None:
    with_private = {**jwk(RSA_PRIVATE), "d": "this is never looked at"}
    (key,) = keys_from_jwks(key_set(with_private), name="keys.json")
    assert not isinstance(key.key, RSAKey) or not key.key.is_private


@pytest.mark.parametrize(
    "text, why",
    [
        (b"", "not JSON"),
        (b"[]", "no JSON Web Key Set"),
        (b'{"keys": {}}', "no JSON Web Key Set"),
        (b'{"keys": [5]}', "no JSON Web Key Set"),
        (b'{"keys": []}', "holds no key"),
        (key_set(*[OCT] * 101), "101 keys"),
        (key_set(OCT, OCT), "key 1: the same kid"),
        (key_set({**OCT, "kid": 5}), "kid must be"),
        (key_set({**OCT, "kid": ""}), "kid must be"),
        (key_set({"kty": "oct"}), "lacks one of k"),
        (key_set({"kty": "oct", "k": b64(b"short")}), "key 0: the JWT secret has 5 bytes"),
        (key_set({"kty": "oct", "k": "!!"}), "no valid key of the type oct"),
        (key_set({"kty": "RSA", "n": "AQAB", "e": "!"}), "no valid key of the type RSA"),
        (
            key_set({"kty": "EC", "crv": "P-256", "x": b64(b"\1" * 32), "y": b64(b"\1" * 32)}),
            "no valid key of the type EC",
        ),
        (key_set({"kty": "OKP", "crv": "Ed25519", "x": "AA"}), "no valid key of the type OKP"),
    ],
    ids=range(15),
)
def test_a_broken_key_set_is_refused_by_its_name(text: bytes, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        keys_from_jwks(text, name="keys.json")
    assert str(caught.value).startswith("keys.json")


# --- where the token is ---------------------------------------------------------------------------------------------
def bearer(token: str) -> str:
    return BEARER_SUBPROTOCOL + b64(token.encode())


TICKET = "t" * 32


def test_the_first_way_that_is_there_counts() -> None:
    """docs/protocol.md, section 1: header, subprotocol, ticket, hello."""
    header = [("Host", "x"), ("authorization", "Bearer from-header")]
    subprotocols = ["eventbus.v1.json", bearer("from-subprotocol")]
    query = f"a=b&ticket={TICKET}"
    assert find_token(header, subprotocols, query) == TokenSource(way=TokenWay.HEADER, value="from-header")
    assert find_token([], subprotocols, query) == TokenSource(way=TokenWay.SUBPROTOCOL, value="from-subprotocol")
    assert find_token([], ["eventbus.v1.json"], query) == TokenSource(way=TokenWay.TICKET, value=TICKET)
    assert find_token([], [], "") == TokenSource(way=TokenWay.HELLO)


def test_a_bad_first_way_is_not_mended_by_a_later_one() -> None:
    with pytest.raises(AuthError):
        find_token([("Authorization", "Bearer")], [bearer("good")], "")


def test_a_password_for_a_proxy_is_not_our_token() -> None:
    assert find_token([("Authorization", "Basic dTpw")], [], "").way is TokenWay.HELLO
    assert find_token([("Authorization", "")], [], "").way is TokenWay.HELLO


def test_the_scheme_of_the_header_is_written_as_one_likes() -> None:
    assert find_token([("AUTHORIZATION", "  bearer   abc ")], [], "").value == "abc"


@pytest.mark.parametrize(
    "headers, subprotocols, query",
    [
        ([("Authorization", "Bearer a"), ("authorization", "Bearer b")], [], ""),
        ([("Authorization", "Bearer ")], [], ""),
        ([("Authorization", "Bearer " + "x" * 8_193)], [], ""),
        ([], [bearer("a"), bearer("b")], ""),
        ([], [BEARER_SUBPROTOCOL], ""),
        ([], [BEARER_SUBPROTOCOL + "!"], ""),
        ([], [BEARER_SUBPROTOCOL + "AA=="], ""),
        ([], [bearer("ä")], ""),
        ([], [BEARER_SUBPROTOCOL + "A" * 20_000], ""),
        ([], [], "ticket="),
        ([], [], "ticket=short"),
        ([], [], f"ticket={TICKET}&ticket={TICKET}"),
        ([], [], "ticket=" + "t" * 129),
        ([], [], f"ticket={TICKET}%0A"),
        ([], [], "&".join(["a=b"] * 101)),
        ([], [], "a" * 8_193),
    ],
    ids=range(16),
)
def test_a_token_that_is_there_in_a_bad_form_is_refused(
    headers: list[tuple[str, str]], subprotocols: list[str], query: str
) -> None:
    with pytest.raises(AuthError) as caught:
        find_token(headers, subprotocols, query)
    assert caught.value.reason == "malformed"


def test_a_token_in_the_query_is_never_taken() -> None:
    """An address ends up in logs and histories; only a ticket, good once, may stand in it."""
    assert find_token([], [], "token=abc&access_token=abc").way is TokenWay.HELLO


# --- origins --------------------------------------------------------------------------------------------------------
@pytest.mark.requirement("R23")
@pytest.mark.parametrize(
    "origin, host",
    [
        (None, "app.example.org"),
        ("https://app.example.org", "app.example.org"),
        ("http://app.example.org", "app.example.org"),
        ("https://app.example.org", "app.example.org:443"),
        ("https://app.example.org:443", "app.example.org"),
        ("HTTPS://APP.Example.org", "app.EXAMPLE.org"),
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://[::1]:8080", "[::1]:8080"),
    ],
)
def test_by_default_the_page_comes_from_the_host_that_serves_it(origin: str | None, host: str) -> None:
    assert check_origin(origin, host, ())


HOSTILE = [
    "null",
    "",
    "https://",
    "https://app.example.org.evil.example",
    "https://evilapp.example.org",
    "https://sub.app.example.org",
    "https://example.org",
    "https://app.example.org@evil.example",
    "https://evil.example/https://app.example.org",
    "https://app.example.org/",
    "https://app.example.org#",
    "https://app.example.org?x",
    "https://app.example.org\n",
    " https://app.example.org",
    "https://app.example.org https://evil.example",
    "https://app.example.org:444",
    "https://app.example.org:0",
    "https://app.example.org:99999",
    "https://app.example.org:44\u0663",
    "https://app.example.org.",
    "https://*.example.org",
    "https://app\u3002example.org",
    "https://\u0430pp.example.org",  # a Cyrillic letter
    "https:/app.example.org",
    "//app.example.org",
    "app.example.org",
    "file://",
    "javascript://app.example.org",
    "ws://app.example.org",
    "chrome-extension://app.example.org",
    "https://[app.example.org]",
]


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("origin", HOSTILE)
def test_a_hostile_origin_is_refused_by_default_and_by_the_list(origin: str) -> None:
    assert not check_origin(origin, "app.example.org", ())
    assert not check_origin(origin, "evil.example", ("https://app.example.org",))


@pytest.mark.parametrize(
    "host", [None, "", "evil.example", "app.example.org:8080", "app.example.org@evil", "app.example.org/", "ä"]
)
def test_a_host_that_does_not_fit_is_refused(host: str | None) -> None:
    assert not check_origin("https://app.example.org", host, ())


def test_a_list_is_exact_and_replaces_the_default() -> None:
    allowed = ("https://app.example.org", "http://localhost:3000", "capacitor://localhost")
    for origin in (
        "https://app.example.org",
        "https://app.example.org:443",
        "http://localhost:3000",
        "capacitor://localhost",
    ):
        assert check_origin(origin, "bus.example.org", allowed)
    for origin in ("http://app.example.org", "http://localhost", "http://localhost:3001", "https://bus.example.org"):
        assert not check_origin(origin, "bus.example.org", allowed)
    assert check_origin(None, None, allowed)


def test_a_list_with_a_broken_line_allows_nothing_by_it() -> None:
    assert not check_origin("null", "x", ("null",))
    assert not check_origin("https://a.example", "x", ("*", "https://*", ""))


def test_an_origin_is_scheme_host_and_port() -> None:
    assert parse_origin("https://a.example") == ("https", "a.example", 443)
    assert parse_origin("capacitor://localhost") == ("capacitor", "localhost", None)
    assert parse_origin("a.example") is None
