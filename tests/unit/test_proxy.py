"""Who the client is behind proxies."""

from __future__ import annotations

from ipaddress import ip_address
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.proxy import (
    ProxyHeader,
    ProxyProtocolError,
    client_address,
    forwarded_scheme,
    parse_proxy_header,
    plain_address,
)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
GET = b"GET / HTTP/1.1\r\n"


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + pack("!BBH", command, family, len(body)) + body


def tcp4(source: str, more: bytes = b"") -> bytes:
    return v2(0x21, 0x11, ip_address(source).packed + b"\x7f\0\0\1" + pack("!HH", 4000, 80) + more)


def tcp6(source: str) -> bytes:
    return v2(0x21, 0x21, ip_address(source).packed + ip_address("::1").packed + pack("!HH", 4000, 80))


GOOD = [
    (b"PROXY TCP4 192.0.2.7 127.0.0.1 56324 443\r\n", "192.0.2.7"),
    (b"PROXY TCP6 2001:db8::7 ::1 56324 443\r\n", "2001:db8::7"),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff::1 ffff::1 65535 65535\r\n", None),
    (tcp4("192.0.2.7"), "192.0.2.7"),
    (tcp4("192.0.2.7", b"\x04\x00\x03abc"), "192.0.2.7"),
    (tcp6("2001:db8::7"), "2001:db8::7"),
    (tcp6("::ffff:192.0.2.7"), "192.0.2.7"),
    (v2(0x20, 0x00, b""), None),
    (v2(0x20, 0x11, b"x" * 12), None),
    (v2(0x21, 0x31, b"x" * 216), None),
]


@pytest.mark.parametrize("header, source", GOOD)
def test_header_is_read_and_no_byte_behind_it_is_taken(header: bytes, source: str | None) -> None:
    assert parse_proxy_header(header + GET) == ProxyHeader(size=len(header), source=source)


@pytest.mark.parametrize("header, source", GOOD)
def test_incomplete_header_asks_for_more_at_every_cut(header: bytes, source: str | None) -> None:
    for cut in range(len(header)):
        assert parse_proxy_header(header[:cut]) is None


@pytest.mark.parametrize(
    "start", [GET, b"POST /", b"PROPFIND / HTTP/1.1\r\n", b"PRI * HTTP/2.0", b"\r\nGET", b"\x16\x03\x01"]
)
def test_other_first_bytes_are_no_header(start: bytes) -> None:
    assert parse_proxy_header(start) == ProxyHeader(size=0)


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 192.0.2.7 127.0.0.1 56324\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 56324 65536\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 -1 80\r\n",
        b"PROXY TCP4 2001:db8::7 ::1 1 2\r\n",
        b"PROXY TCP6 192.0.2.7 127.0.0.1 1 2\r\n",
        b"PROXY TCP4 999.0.2.7 127.0.0.1 1 2\r\n",
        b"PROXY TCP4  192.0.2.7 127.0.0.1 1 2\r\n",
        b"PROXY \xff\xfe\r\n",
        b"PROXY UDP4 192.0.2.7 127.0.0.1 1 2\r\n",
        b"PROXY " + b"x" * 200,
        v2(0x11, 0x11, b"x" * 12),
        v2(0x22, 0x11, b"x" * 12),
        v2(0x21, 0x11, b"x" * 11),
        v2(0x21, 0x21, b"x" * 12),
        v2(0x21, 0x11, b"x" * 4096),
    ],
)
def test_malformed_header_is_an_error(header: bytes) -> None:
    with pytest.raises(ProxyProtocolError):
        parse_proxy_header(header)


@pytest.mark.requirement("R23")
@given(
    st.one_of(
        st.binary(max_size=60),
        st.binary(max_size=60).map(SIGNATURE.__add__),
        st.binary(max_size=99).map(b"PROXY ".__add__),
    )
)
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        header = parse_proxy_header(data)
    except ProxyProtocolError:
        return
    assert header is None or header.size <= len(data)


TRUSTED = {"127.0.0.1", "10.0.0.1", "10.0.0.2", "2001:db8::a"}


@pytest.mark.requirement("R23")
@pytest.mark.parametrize(
    "peer, forwarded, client",
    [
        ("192.0.2.1", ["198.51.100.9"], "192.0.2.1"),  # not a proxy of ours: what it says is made up
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.9"], "198.51.100.9"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.9"], "198.51.100.9"),  # the left end is the client's own invention
        ("10.0.0.1", ["198.51.100.9, 10.0.0.2"], "198.51.100.9"),
        ("10.0.0.1", ["198.51.100.9", "10.0.0.2"], "198.51.100.9"),
        ("10.0.0.1", ["10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["198.51.100.9:4711"], "198.51.100.9"),
        ("10.0.0.1", ["[2001:db8::9]:4711"], "2001:db8::9"),
        ("10.0.0.1", ["2001:DB8:0::9"], "2001:db8::9"),
        ("10.0.0.1", ["::ffff:198.51.100.9"], "198.51.100.9"),
        ("10.0.0.1", ["198.51.100.9, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.9, "], "10.0.0.1"),
    ],
)
def test_client_is_the_first_hop_that_is_not_trusted(peer: str, forwarded: list[str], client: str) -> None:
    headers = [("host", "x"), *(("x-forwarded-for", value) for value in forwarded)]
    assert client_address(peer, headers, TRUSTED.__contains__) == client


@pytest.mark.parametrize(
    "peer, value, scheme",
    [
        ("10.0.0.1", "https", "https"),
        ("10.0.0.1", "wss", "https"),
        ("10.0.0.1", "HTTP, https", "https"),
        ("10.0.0.1", "gopher", "http"),
        ("192.0.2.1", "https", "http"),
    ],
)
def test_scheme_is_taken_from_a_trusted_proxy_only(peer: str, value: str, scheme: str) -> None:
    assert forwarded_scheme("http", peer, [("x-forwarded-proto", value)], TRUSTED.__contains__) == scheme


def test_scheme_without_the_header_is_that_of_the_connection() -> None:
    assert forwarded_scheme("https", "10.0.0.1", [], TRUSTED.__contains__) == "https"


@pytest.mark.parametrize(
    "address, plain",
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("", ""),
        ("x", "x"),
    ],
)
def test_each_address_has_one_spelling(address: str, plain: str) -> None:
    assert plain_address(address) == plain
