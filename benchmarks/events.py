"""The events that are sent: all of one size in the store."""

from __future__ import annotations

from functools import cache

from eventbus.event import encode_envelope, make_event

__all__ = ["EVENT_BYTES", "envelope", "padding"]

EVENT_BYTES = 300
"""The size of an event where nothing else is said: its envelope as it stands in the stream."""

_EVENT_ID = "018f0000-0000-7000-8000-000000000000"
_NOW_MS = 1_800_000_000_000
_NOW_NS = 10**15


def envelope(pad: str) -> bytes:
    """The envelope of an event like those that the publisher makes."""
    data = {"t": _NOW_NS, "n": 1, "pad": pad}
    event = make_event(id=_EVENT_ID, type="bench", user="user1000", time_ms=_NOW_MS, data=data)
    return encode_envelope(event)


@cache
def padding(body_bytes: int) -> str:
    """The text that makes an envelope about that large."""
    for length in range(body_bytes, 0, -1):
        if len(envelope("p" * length)) <= body_bytes:
            return "p" * length
    return ""
