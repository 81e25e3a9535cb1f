"""Where the token of a request is: in a header, in a subprotocol, behind a ticket, or yet to come with `hello`. Pure.

Every refusal is an `AuthError` with the reason `malformed`, and no message holds what was brought.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from urllib.parse import parse_qsl

from eventbus.errors import AuthError
from gateway.access.auth import TOKEN_BYTES_MAX
from gateway.access.keys import decode_base64url

__all__ = ["BEARER_SUBPROTOCOL", "TokenSource", "TokenWay", "find_token"]

BEARER_SUBPROTOCOL: Final = "base64url.bearer.eventbus."
QUERY_BYTES_MAX: Final = 8192
_TICKET: Final = re.compile(r"[A-Za-z0-9_-]{16,128}")


class TokenWay(StrEnum):
    """How a request brings its token, in the order in which they are looked for."""

    HEADER = "header"
    SUBPROTOCOL = "subprotocol"
    TICKET = "ticket"
    HELLO = "hello"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSource:
    """Where the token of a request is.

    Attributes:
        way: how it came.
        value: the token; the ticket for `TICKET`, which is still to be exchanged; None for `HELLO`, where the first
            frame brings it.
    """

    way: TokenWay
    value: str | None = field(default=None, repr=False)


def find_token(headers: Iterable[tuple[str, str]], subprotocols: Sequence[str], query: str) -> TokenSource:
    """Find the token of a request. The first way that is there counts, also when what it brings is bad.

    Args:
        headers: names and values, repeated ones as often as they came.
        subprotocols: what the client offers.
        query: the query of the request's target, without the question mark.

    Raises:
        AuthError: a way is there twice, or its content has not the form.
    Source: docs/protocol.md, section 1.
    """
    return (
        _from_header(headers)
        or _from_subprotocol(subprotocols)
        or _from_query(query)
        or TokenSource(way=TokenWay.HELLO)
    )


def _from_header(headers: Iterable[tuple[str, str]]) -> TokenSource | None:
    values = [value for name, value in headers if name.lower() == "authorization"]
    if len(values) > 1:
        raise AuthError("the request has more than one Authorization header", reason="malformed")
    scheme, _, token = values[0].strip().partition(" ") if values else ("", "", "")
    # Another scheme is for somebody before us, such as a proxy with a password.
    if scheme.lower() != "bearer":
        return None
    return TokenSource(way=TokenWay.HEADER, value=_plausible(token.strip(), "Authorization header"))


def _from_subprotocol(subprotocols: Sequence[str]) -> TokenSource | None:
    bearers = [name for name in subprotocols if name.startswith(BEARER_SUBPROTOCOL)]
    if not bearers:
        return None
    if len(bearers) > 1:
        raise AuthError("the request offers more than one bearer subprotocol", reason="malformed")
    encoded = bearers[0].removeprefix(BEARER_SUBPROTOCOL)
    if len(encoded) > 2 * TOKEN_BYTES_MAX:
        raise AuthError(f"the token is longer than {TOKEN_BYTES_MAX} bytes", reason="malformed")
    try:
        token = decode_base64url(encoded).decode("ascii")
    except ValueError:
        raise AuthError("the bearer subprotocol is not base64url without padding", reason="malformed") from None
    return TokenSource(way=TokenWay.SUBPROTOCOL, value=_plausible(token, "bearer subprotocol"))


def _from_query(query: str) -> TokenSource | None:
    if len(query) > QUERY_BYTES_MAX:
        raise AuthError(f"the query is longer than {QUERY_BYTES_MAX} bytes", reason="malformed")
    try:
        tickets = [
            value for name, value in parse_qsl(query, keep_blank_values=True, max_num_fields=100) if name == "ticket"
        ]
    except ValueError:
        raise AuthError("the query has more than 100 fields", reason="malformed") from None
    if not tickets:
        return None
    if len(tickets) > 1 or not _TICKET.fullmatch(tickets[0]):
        raise AuthError("the ticket has not the form of one", reason="malformed")
    return TokenSource(way=TokenWay.TICKET, value=tickets[0])


def _plausible(token: str, where: str) -> str:
    if not token or len(token) > TOKEN_BYTES_MAX:
        raise AuthError(f"the {where} brings no token of 1 to {TOKEN_BYTES_MAX} bytes", reason="malformed")
    return token
