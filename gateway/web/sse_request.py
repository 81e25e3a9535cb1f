"""What the requests of Server-Sent Events say: a query that is a `hello`, and a body that is an `ack`. Pure.

Source: docs/protocol.md, section 9.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import orjson

from eventbus import wire
from eventbus.errors import BadFrame, Forbidden, InvalidField, UnknownOp
from eventbus.ids import SessionId, parse_session_id

__all__ = ["hello_of", "read_ack"]

_PLAIN: Final = ("session", "start", "cursor", "epoch")
_WINDOW_DIGITS: Final = 6


def hello_of(query: Mapping[str, str], last_event_id: str | None) -> wire.Hello:
    """The `hello` that a query stands for.

    A browser that comes back asks for the same URL again, and says in `Last-Event-ID` what came since it was first
    asked for: that counts then, and what the URL says of a start or a cursor does not.

    Args:
        query: `session`, `start`, `cursor`, `epoch`, `window`, `filter` (JSON); the rest is not looked at.
        last_event_id: the header.

    Raises:
        InvalidField: one of them has not its form.
    """
    fields: dict[str, Any] = {name: query[name] for name in _PLAIN if name in query}
    if "window" in query:
        fields["window"] = _whole_number(query["window"])
    if "filter" in query:
        fields["filter"] = _json(query["filter"])
    if last_event_id:
        fields |= {"start": "cursor", "cursor": last_event_id}
        fields.pop("epoch", None)
    try:
        # As the frame of a socket, so that one set of rules holds for both.
        frame = wire.decode_client(orjson.dumps({"op": "hello", **fields}), wire.Format.JSON)
    except BadFrame as error:
        where = "Last-Event-ID" if last_event_id and error.field == "cursor" else error.field
        raise InvalidField(where, error.problem) from None
    except TypeError:
        raise InvalidField("filter", "is nested too deep") from None
    return cast(wire.Hello, frame)


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _WINDOW_DIGITS):
        raise InvalidField("window", f"{text[:40]!r} is not a whole number from 1 to {wire.MAX_WINDOW}")
    return int(text)


def _json(text: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidField("filter", f"is not JSON: {error.msg}") from None


def read_ack(body: bytes, pinned: SessionId | None) -> tuple[SessionId, wire.Ack]:
    """The `ack` in the body of a request, and whose it is.

    Args:
        body: the frame, with `session` beside its own fields.
        pinned: the session that the token is for; then the body need not name it.

    Raises:
        BadFrame: it is no `ack`, or names no session.
        Forbidden: the token is for another session.
    """
    try:
        frame = wire.decode_client(body, wire.Format.JSON)
    except UnknownOp as error:
        raise BadFrame("op", str(error)) from None
    if not isinstance(frame, wire.Ack):
        raise BadFrame("op", f"is {frame.op!r}: only `ack` is taken here")
    named = orjson.loads(body).get("session")
    if named is None:
        if pinned is None:
            raise BadFrame("session", "is missing")
        return pinned, frame
    try:
        session = parse_session_id(named, "session")
    except InvalidField as error:
        raise BadFrame("session", error.problem) from None
    if pinned is not None and session != pinned:
        raise Forbidden(f"the token is pinned to session {pinned!r}")
    return session, frame
