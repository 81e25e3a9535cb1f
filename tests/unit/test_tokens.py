"""Tokens made here are tokens that a node takes."""

from __future__ import annotations

import pytest

from eventbus.errors import ConfigError, EventBusError, InvalidField
from eventbus.tokens import make_token
from gateway.access.auth import Authenticator, AuthSettings, Identity, Scope
from gateway.access.keys import Algorithm, key_from_secret

NOW_MS = 1_763_700_000_500
SECRET = b"0123456789abcdef0123456789abcdef"


def verified(token: str, **rules: str) -> Identity:
    settings = AuthSettings(
        keys=(key_from_secret(SECRET, kid="one"),),
        algorithms=frozenset(Algorithm),
        tiers=frozenset({"free", "pro"}),
        default_tier="free",
        issuer=rules.get("issuer"),
        audience=rules.get("audience"),
    )
    return Authenticator(settings).verify(token, NOW_MS)


def test_the_shortest_token_subscribes_for_an_hour_in_the_default_tier() -> None:
    identity = verified(make_token(user="ada", secret=SECRET, now_ms=NOW_MS))
    assert identity.user == "ada"
    assert identity.scopes == {Scope.SUBSCRIBE}
    assert identity.tier == "free"
    assert identity.session is None
    assert identity.jti is None
    # `exp` is in whole seconds, rounded up: a token never lives shorter than was asked.
    assert identity.expires_ms == 1_763_703_601_000


def test_every_claim_that_was_asked_for_arrives() -> None:
    token = make_token(
        user="ada@example.org",
        secret=SECRET,
        now_ms=NOW_MS,
        ttl_ms=10_000,
        scopes=["admin", "publish"],
        tier="pro",
        session="tab-1",
        issuer="https://issuer.example",
        audience="bus",
        jti="t1",
        kid="one",
    )
    identity = verified(token, issuer="https://issuer.example", audience="bus")
    assert identity == Identity(
        user=identity.user,
        session=identity.session,
        tier="pro",
        scopes=frozenset({Scope.PUBLISH, Scope.ADMIN}),
        expires_ms=1_763_700_011_000,
        jti="t1",
        issued_ms=1_763_700_000_000,
        key_id="one",
    )
    assert (identity.user, identity.session) == ("ada@example.org", "tab-1")


@pytest.mark.parametrize(
    "bad, field",
    [
        ({"user": "run_1"}, "user"),
        ({"user": ""}, "user"),
        ({"session": "a b"}, "session"),
        ({"scopes": ["root"]}, "scopes"),
        ({"ttl_ms": 0}, "ttl_ms"),
        ({"tier": "A tier"}, "tier"),
        ({"jti": "x" * 257}, "jti"),
        ({"jti": ""}, "jti"),
    ],
)
def test_a_token_that_no_node_would_take_is_not_made(bad: dict[str, object], field: str) -> None:
    arguments: dict[str, object] = {"user": "ada", "secret": SECRET, "now_ms": NOW_MS, **bad}
    with pytest.raises(InvalidField) as caught:
        make_token(**arguments)  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize("secret", [b"short", b"-----BEGIN PUBLIC KEY-----" + b"x" * 40])
def test_a_weak_secret_is_refused_and_not_shown(secret: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        make_token(user="ada", secret=secret, now_ms=NOW_MS)
    assert isinstance(caught.value, EventBusError)
    assert "short" not in str(caught.value)
    assert "xxxx" not in str(caught.value)
