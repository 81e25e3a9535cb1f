"""What a URL of Redis names, and what is said about one that makes no sense."""

from __future__ import annotations

import ssl

import pytest

from eventbus.errors import StoreMisconfigured
from eventbus.store.endpoint import Mode, parse_target


@pytest.mark.parametrize(
    "url,mode,servers",
    [
        ("redis://127.0.0.1:7000/0", Mode.SINGLE, ["127.0.0.1:7000"]),
        ("redis://localhost", Mode.SINGLE, ["localhost:6379"]),
        ("rediss://host:1/3", Mode.SINGLE, ["host:1"]),
        ("redis://[::1]:7000", Mode.SINGLE, ["[::1]:7000"]),
        ("unix:///run/redis.sock?db=2", Mode.SINGLE, ["/run/redis.sock"]),
        ("redis+cluster://a:1,b:2", Mode.CLUSTER, ["a:1", "b:2"]),
        ("rediss+cluster://a,[fe80::1]:2/0", Mode.CLUSTER, ["a:6379", "[fe80::1]:2"]),
    ],
)
def test_url_names_its_servers(url: str, mode: Mode, servers: list[str]) -> None:
    target = parse_target(url)
    assert target.mode is mode
    assert [str(server) for server in target.servers] == servers


def test_user_password_and_database_are_taken_from_the_url() -> None:
    (server,) = parse_target("redis://agent:p%40ss@host:1/3").servers
    assert (server.username, server.password, server.database, server.tls) == ("agent", "p@ss", 3, None)
    (server,) = parse_target("redis://:secret@host").servers
    assert (server.username, server.password) == (None, "secret")
    for server in parse_target("redis+cluster://agent:secret@a:1,b:2").servers:
        assert (server.username, server.password) == ("agent", "secret")


def test_sentinels_have_their_own_password_and_the_primary_its_own() -> None:
    target = parse_target(
        "redis+sentinel://agent:secret@s1,s2:7/main/4?sentinel_username=watch&sentinel_password=other"
    )
    assert (target.mode, target.service) == (Mode.SENTINEL, "main")
    assert [str(sentinel) for sentinel in target.sentinels] == ["s1:26379", "s2:7"]
    assert {(sentinel.username, sentinel.password, sentinel.database) for sentinel in target.sentinels} == {
        ("watch", "other", 0)
    }
    (primary,) = target.servers
    assert (primary.username, primary.password, primary.database) == ("agent", "secret", 4)


def test_tls_is_as_the_options_of_the_url_want_it() -> None:
    (strict,) = parse_target("rediss://host").servers
    (lax,) = parse_target("rediss://host?ssl_cert_reqs=none&ssl_check_hostname=false").servers
    assert strict.tls is not None
    assert (strict.tls.verify_mode, strict.tls.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert lax.tls is not None
    assert (lax.tls.verify_mode, lax.tls.check_hostname) == (ssl.CERT_NONE, False)
    for server in parse_target("rediss+sentinel://s1,s2/main?ssl_cert_reqs=none&ssl_check_hostname=false").sentinels:
        assert server.tls is not None
        assert server.tls.verify_mode is ssl.CERT_NONE


@pytest.mark.parametrize(
    "url,says",
    [
        ("http://host", "schemes"),
        ("redis+other://host", "redis+other"),
        ("redis://host:port/0", "ort"),
        ("redis://host?unknown=1", "unknown"),
        ("redis+cluster://", "host:port"),
        ("redis+cluster://a:1,,b:2", "host:port"),
        ("redis+cluster://a:1/3", "database 0"),
        ("redis+sentinel://a:1", "/service"),
        ("redis+sentinel://a:1/main/x", "/service"),
        ("rediss://host?ssl_ca_certs=/nowhere/ca.pem", "No such file"),
    ],
)
def test_url_that_makes_no_sense_is_refused_with_a_sentence(url: str, says: str) -> None:
    with pytest.raises(StoreMisconfigured) as refused:
        parse_target(url)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://agent:secret@a:1/9",
        "redis+sentinel://agent:secret@a:1",
        "redis+sentinel://agent:secret@a:port/main",
        "redis+cluster://agent:secret@",
    ],
)
def test_password_is_in_no_message(url: str) -> None:
    with pytest.raises(StoreMisconfigured) as refused:
        parse_target(url)
    assert "secret" not in str(refused.value)


def test_password_is_not_shown() -> None:
    target = parse_target("redis+sentinel://agent:secret@a:1/main?sentinel_password=hidden")
    assert "secret" not in repr(target)
    assert "hidden" not in repr(target)
