"""Who the client is when a proxy stands in front: the PROXY protocol and X-Forwarded-For. Pure.

Both count only when the bytes come from a proxy that is trusted, which the caller decides by address. A trusted proxy
that passes TCP on without either lets its clients write them: such a proxy must not be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

__all__ = [
    "ProxyHeader",
    "ProxyProtocolError",
    "Trusted",
    "client_address",
    "forwarded_scheme",
    "parse_proxy_header",
    "plain_address",
]

Trusted = Callable[[str], bool]
"""Tells whether an address is that of a trusted proxy."""

_V1: Final = b"PROXY "
_V1_BYTES_MAX: Final = 107
_V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_HEADER_BYTES: Final = 16
# The addresses take 36 bytes at most; the rest is for fields that a proxy may add and nobody here reads.
_V2_BODY_BYTES_MAX: Final = 2048
_V2_LOCAL: Final = 0x20
_V2_PROXY: Final = 0x21
_V2_TCP4: Final = 0x11
_V2_TCP6: Final = 0x21


class ProxyProtocolError(ValueError):
    """A header of the PROXY protocol began and is malformed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyHeader:
    """What a PROXY header says.

    Attributes:
        size: the bytes it takes; 0 when the data begins with something else.
        source: the client's address; None when the header names none (a health check of the proxy itself).
    """

    size: int
    source: str | None = None


_NONE: Final = ProxyHeader(size=0)


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """Read a header of the PROXY protocol, version 1 or 2, from the first bytes of a connection.

    Args:
        data: what came so far.

    Returns:
        The header (size 0 when there is none), or None while more bytes are needed to know.

    Raises:
        ProxyProtocolError: the signature is there and what follows is malformed.

    Source: The PROXY protocol, versions 1 and 2, haproxy.org.
    """
    if data.startswith(_V1):
        return _parse_v1(data)
    if data.startswith(_V2):
        return _parse_v2(data)
    return None if _V1.startswith(data) or _V2.startswith(data) else _NONE


def _parse_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _V1_BYTES_MAX)
    if end < 0:
        if len(data) >= _V1_BYTES_MAX:
            raise ProxyProtocolError(f"no end of line within {_V1_BYTES_MAX} bytes")
        return None
    words = data[:end].split(b" ")
    if words[1] == b"UNKNOWN":
        return ProxyHeader(size=end + 2)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise ProxyProtocolError("want TCP4 or TCP6, two addresses and two ports")
    for port in words[4:]:
        if not (port.isdigit() and len(port) <= 5 and int(port) <= 65535):
            raise ProxyProtocolError("a port is no number from 0 to 65535")
    addresses = [_address(word.decode("latin-1")) for word in words[2:4]]
    kind = IPv4Address if words[1] == b"TCP4" else IPv6Address
    if not all(isinstance(address, kind) for address in addresses):
        raise ProxyProtocolError("an address does not fit the family")
    return ProxyHeader(size=end + 2, source=plain_address(str(addresses[0])))


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _V2_HEADER_BYTES:
        return None
    command, family = data[12], data[13]
    length = int.from_bytes(data[14:16], "big")
    if command not in (_V2_LOCAL, _V2_PROXY):
        raise ProxyProtocolError(f"unknown version and command {command:#04x}")
    if length > _V2_BODY_BYTES_MAX:
        raise ProxyProtocolError(f"a header of {length} bytes; at most {_V2_BODY_BYTES_MAX} are read")
    size = _V2_HEADER_BYTES + length
    if len(data) < size:
        return None
    if command == _V2_LOCAL or family not in (_V2_TCP4, _V2_TCP6):
        return ProxyHeader(size=size)
    address_bytes = 4 if family == _V2_TCP4 else 16
    if length < 2 * address_bytes + 4:
        raise ProxyProtocolError(f"{length} bytes are too few for the addresses")
    source = ip_address(data[_V2_HEADER_BYTES : _V2_HEADER_BYTES + address_bytes])
    return ProxyHeader(size=size, source=plain_address(str(source)))


def client_address(peer: str, headers: Iterable[tuple[str, str]], trusted: Trusted) -> str:
    """Find the client behind trusted proxies: X-Forwarded-For is read from its right end while the next hop is trusted.

    Args:
        peer: the address that the connection (or its PROXY header) came from.
        headers: names in lower case, and values, in the order received.
        trusted: whether an address is that of a trusted proxy.

    Returns:
        The first address that is not trusted, seen from here; the last good one when an entry is no address, for
        everything to the left of it may be made up.
    """
    client = peer
    if not trusted(client):
        return client
    listed = [part for name, value in headers if name == "x-forwarded-for" for part in value.split(",")]
    for part in reversed(listed):
        try:
            client = plain_address(str(_address(_without_port(part.strip()))))
        except ProxyProtocolError:
            return client
        if not trusted(client):
            return client
    return client


def forwarded_scheme(scheme: str, peer: str, headers: Iterable[tuple[str, str]], trusted: Trusted) -> str:
    """The scheme that the client used: X-Forwarded-Proto of a trusted proxy, else that of the connection.

    Returns:
        `http` or `https`.
    """
    if trusted(peer):
        for name, value in headers:
            if name == "x-forwarded-proto":
                named = value.split(",")[-1].strip().lower()
                return {"https": "https", "wss": "https", "http": "http", "ws": "http"}.get(named, scheme)
    return scheme


def plain_address(address: str) -> str:
    """The one spelling of an address by which clients are counted: no zone, no IPv4 inside IPv6; other text
    unchanged.
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(parsed)


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _address(text: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(text)
    except ValueError:
        raise ProxyProtocolError("not an address") from None
