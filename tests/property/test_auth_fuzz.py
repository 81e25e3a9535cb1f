"""Whatever a stranger sends, authentication answers with an identity or an `AuthError`, and nothing else."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import unquote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus.errors import AuthError
from eventbus.ids import parse_session_id, parse_user_id
from eventbus.tokens import make_token
from gateway.access.auth import Authenticator, AuthSettings
from gateway.access.keys import Algorithm, key_from_secret
from gateway.access.limits import limited_address
from gateway.access.origin import check_origin
from gateway.access.token_source import BEARER_SUBPROTOCOL, TokenWay, find_token

NOW_MS = 1_763_700_000_000
SECRET = b"a-secret-of-more-than-thirty-two-bytes"
SETTINGS = AuthSettings(
    keys=(key_from_secret(SECRET, kid="one"), key_from_secret(SECRET[::-1], kid="two")),
    algorithms=frozenset(Algorithm),
    tiers=frozenset({"free"}),
    default_tier="free",
)
GOOD = make_token(user="ada", secret=SECRET, now_ms=NOW_MS, session="tab", kid="one")

texts = st.text(max_size=60)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
names = ["sub", "exp", "nbf", "sid", "tier", "scope", "jti", "iss", "aud"]
good_claims = {"sub": "ada", "exp": NOW_MS // 1000 + 60}
claim_sets = st.dictionaries(st.sampled_from(names) | texts, json_values, max_size=6) | st.dictionaries(
    st.sampled_from(names), json_values, max_size=3
).map(lambda changes: {**good_claims, **changes})
headers = st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "jku"]), json_values, max_size=4)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(header: object, claims: object) -> str:
    message = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    return f"{message}.{b64(hmac.new(SECRET, message.encode(), hashlib.sha256).digest())}"


@given(st.text(max_size=300) | st.text("abc.-_=", max_size=300) | st.binary(max_size=300).map(b64))
def test_random_text_is_never_a_token(token: str) -> None:
    with pytest.raises(AuthError):
        Authenticator(SETTINGS).verify(token, NOW_MS)


@given(st.data())
def test_a_token_with_one_changed_character_is_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(GOOD) - 1))
    other = data.draw(st.characters().filter(lambda character: character != GOOD[at]))
    with pytest.raises(AuthError):
        Authenticator(SETTINGS).verify(GOOD[:at] + other + GOOD[at + 1 :], NOW_MS)


@given(header=headers, claims=claim_sets | json_values)
def test_any_header_is_refused_or_says_how_the_token_is_signed(header: dict[str, Any], claims: object) -> None:
    identity = None
    with contextlib.suppress(AuthError):
        identity = Authenticator(SETTINGS).verify(sign(header, claims), NOW_MS)
    assert identity is None or header["alg"] == "HS256"


@given(claims=claim_sets)
def test_signed_claims_give_a_valid_identity_or_a_refusal(claims: dict[str, Any]) -> None:
    identity = None
    with contextlib.suppress(AuthError):
        identity = Authenticator(SETTINGS).verify(sign({"alg": "HS256"}, claims), NOW_MS)
    if identity is None:
        return
    assert parse_user_id(identity.user) == claims["sub"]
    assert identity.session is None or parse_session_id(identity.session) == claims["sid"]
    assert identity.expires_ms > NOW_MS
    assert identity.tier == "free"


header_pairs = st.lists(
    st.tuples(
        st.sampled_from(["Authorization", "authorization", "Host"]) | texts, texts | texts.map("Bearer {}".format)
    ),
    max_size=4,
)
offers = st.lists(texts | texts.map(lambda text: BEARER_SUBPROTOCOL + text), max_size=4)
queries = texts | texts.map(lambda text: "ticket=" + text) | st.lists(texts, max_size=5).map("&ticket=".join)


@given(headers=header_pairs, subprotocols=offers, query=queries)
def test_any_request_has_a_source_of_its_token_or_is_refused(
    headers: list[tuple[str, str]], subprotocols: list[str], query: str
) -> None:
    source = None
    with contextlib.suppress(AuthError):
        source = find_token(headers, subprotocols, query)
    if source is None:
        return
    said = {
        TokenWay.HEADER: [value for _, value in headers],
        TokenWay.SUBPROTOCOL: [_text(name) for name in subprotocols],
        TokenWay.TICKET: [unquote_plus(query)],
    }
    if source.way is TokenWay.HELLO:
        assert source.value is None
        assert not any(name.startswith(BEARER_SUBPROTOCOL) for name in subprotocols)
    else:
        assert source.value
        assert any(source.value in value for value in said[source.way])


def _text(subprotocol: str) -> str:
    encoded = subprotocol.removeprefix(BEARER_SUBPROTOCOL)
    try:
        return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except ValueError:
        return ""


@given(origin=texts, host=st.none() | texts, allowed=st.lists(texts, max_size=3))
def test_an_origin_by_chance_is_never_allowed_unless_it_stands_in_the_list(
    origin: str, host: str | None, allowed: list[str]
) -> None:
    if check_origin(origin, host, allowed):
        assert "://" in origin
        assert origin != "null"


@given(texts)
def test_any_address_is_survived(client: str) -> None:
    assert limited_address(client, (ip_network("10.0.0.0/8"),)) is None or ip_address(client) is not None
