"""Where a browser's page comes from, and whether it may connect. Pure.

Source: RFC 6454, section 7.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

__all__ = ["check_origin", "parse_origin"]

_ORIGIN: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?", re.ASCII
)
_HOST: Final = re.compile(r"(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def check_origin(origin: str | None, host: str | None, allowed: Collection[str]) -> bool:
    """Whether a page of this origin may connect.

    Args:
        origin: the header `Origin`; None when there is none, as from anything that is not a browser.
        host: the header `Host`.
        allowed: exact origins (`https://app.example.org`, a default port may be left out); empty: the page's host must
            be `host`, over HTTP or HTTPS, since a proxy may have taken TLS off.

    `null` (a sandboxed frame, a file) is never allowed: everyone can make a page with that origin.
    Source: RFC 6454, section 7; docs/protocol.md, section 1.
    """
    if origin is None:
        return True
    page = parse_origin(origin)
    if page is None:
        return False
    if allowed:
        return any(parse_origin(item) == page for item in allowed)
    match = _HOST.fullmatch(host.lower()) if host is not None and host.isascii() else None
    scheme, name, port = page
    if match is None or scheme not in _DEFAULT_PORTS or match["host"] != name:
        return False
    # A Host without a port means the default one of a scheme that we do not see behind a proxy: it is the page's.
    return port == (int(match["port"]) if match["port"] else _DEFAULT_PORTS[scheme])


def parse_origin(text: str) -> tuple[str, str, int | None] | None:
    """An origin as (scheme, host, port), with the default port filled in; None when it is none."""
    match = _ORIGIN.fullmatch(text.lower()) if text.isascii() else None
    if match is None:
        return None
    port = int(match["port"]) if match["port"] else _DEFAULT_PORTS.get(match["scheme"])
    return None if port is not None and not 0 < port < 65536 else (match["scheme"], match["host"], port)
