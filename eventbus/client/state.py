"""What a subscriber decides: when to come back, what a close means, where it stands, which events it knows. Pure.

Times are monotonic milliseconds unless a name says wall time. Source: docs/protocol.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import orjson

from eventbus.errors import (
    AuthError,
    CloseCode,
    ClosedForGood,
    EventBusError,
    Forbidden,
    InvalidField,
    SessionEnded,
    Superseded,
)
from eventbus.fields import parse_event_type
from eventbus.frames import Ack, Filter, Nack
from eventbus.framespecs import MAX_FILTER_ITEMS
from eventbus.ids import EntryId, EventId, entry_order, parse_run_id, parse_thread_id

__all__ = [
    "CONNECT_PATH",
    "Backoff",
    "CursorTracker",
    "Outbox",
    "Pacer",
    "SeenEvents",
    "check_range",
    "final_error",
    "http_error",
    "ids_a_frame",
    "parse_filter",
    "parse_url",
    "refresh_delay_ms",
    "refusal_text",
    "retry_after_ms",
]

CONNECT_PATH: Final = "/v1/connect"

WAIT_BASE_MS: Final = 250
WAIT_MAX_MS: Final = 15_000
STABLE_MS: Final = 5_000
"""A connection that lived this long was a good one: the waits start small again."""
RETRY_AFTER_MAX_MS: Final = 300_000
"""`Retry-After` may come from anything between here and the node; nobody keeps a subscriber away for a day."""

SEEN_COUNT: Final = 4_096
SEEN_MS: Final = 600_000
SEEN_MAX_COUNT: Final = 262_144
"""Ten minutes at 437 events a second, in some 60 MB. Above that rate the memory reaches back less than ten minutes."""

IDS_A_FRAME: Final = 1_000
MAX_REASON_CHARACTERS: Final = 256
PACE_BURST: Final = 100
PACE_PER_SECOND: Final = 15
"""The lowest tier allows 20 frames a second and saves up 200: confirmations stay below both."""


# --- arguments --------------------------------------------------------------------------------------------------------


def parse_url(url: str) -> str:
    """The address of the socket: http becomes ws, and `/v1/connect` is added when it is not there.

    Raises:
        InvalidField: it is no address of a node.
    """
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in ("ws", "wss") or not parts.hostname:
        raise InvalidField("url", f"{url!r} is no address of a node, such as https://bus.example.com")
    path = parts.path.rstrip("/")
    if not path.endswith(CONNECT_PATH):
        path += CONNECT_PATH
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))


def parse_filter(value: Filter | Mapping[str, Iterable[str]]) -> Filter:
    """A filter as a caller gives it: `{"types": [...], "threads": [...], "runs": [...]}`.

    Raises:
        InvalidField: no mapping, an unknown key, more words than a node takes, or one that has not its form.
    """
    if isinstance(value, Filter):
        return value
    if not isinstance(value, Mapping):
        raise InvalidField("filter", f"must be a mapping of lists, not {type(value).__name__}")
    readers = {"types": parse_event_type, "threads": parse_thread_id, "runs": parse_run_id}
    wanted: dict[str, frozenset[str]] = {}
    for key, words in value.items():
        if key not in readers:
            raise InvalidField(f"filter.{key}", f"is none of {', '.join(readers)}")
        if isinstance(words, str) or not isinstance(words, Iterable):
            raise InvalidField(f"filter.{key}", f"must be a list of strings, not {type(words).__name__}")
        wanted[key] = frozenset(readers[key](word, f"filter.{key}") for word in words)
        if len(wanted[key]) > MAX_FILTER_ITEMS:
            raise InvalidField(f"filter.{key}", f"has {len(wanted[key])} strings, and {MAX_FILTER_ITEMS} are allowed")
    return Filter(**wanted)


def check_range(name: str, value: object, least: int, most: int) -> None:
    """Raises: InvalidField: it is no integer, or out of range."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidField(name, f"must be an integer from {least} to {most}, not {value!r}")


# --- coming back ------------------------------------------------------------------------------------------------------


class Backoff:
    """When to connect again: full jitter below a limit that doubles, and never before the node's own hint.

    A connection that was good resets it. After a good one a `goaway` counts alone, for the node has spread its clients;
    after a short one it must not make a tight loop. A `Retry-After` is the same for many clients: jitter comes on top.
    """

    __slots__ = ("_attempts",)

    def __init__(self) -> None:
        self._attempts = 0

    def good(self) -> None:
        """A connection that lived for `STABLE_MS` has ended."""
        self._attempts = 0

    def wait_ms(self, chance: float, *, goaway_ms: int | None = None, retry_ms: int | None = None) -> int:
        """Milliseconds until the next attempt, which this call counts.

        Args:
            chance: from 0 to 1.
            goaway_ms: what is left of a `goaway`'s wait.
            retry_ms: what `Retry-After` asked for.
        """
        first = self._attempts == 0
        limit_ms = min(WAIT_MAX_MS, WAIT_BASE_MS << min(self._attempts, 16))
        self._attempts += 1
        jitter_ms = int(chance * limit_ms)
        if goaway_ms is not None:
            return max(0, goaway_ms) if first else max(goaway_ms, jitter_ms)
        return jitter_ms + (retry_ms or 0)


def retry_after_ms(value: str | None) -> int | None:
    """A `Retry-After` in milliseconds, at most five minutes; None for none, or a date.

    Source: RFC 9110, section 10.2.3.
    """
    if value is None or not value.strip().isdecimal():
        return None
    return min(int(value.strip()[:9]) * 1000, RETRY_AFTER_MAX_MS)


LATE_HELLOS_MAX: Final = 5
"""So many closes with 4503 in a row, without a `welcome` between, are final: frames are lost on their way."""


def final_error(code: int, reason: str, *, fresh_token: bool, late_hellos: int = 0) -> EventBusError | None:
    """What a close code means for good; None when the subscriber is to come back with the same session.

    Args:
        code: of the close.
        reason: its text.
        fresh_token: a callback can give another token, and none was refused just before.
        late_hellos: how many closes with 4503 came in a row, this one included.
    Source: docs/protocol.md, section 5; docs/decisions/0006-a-late-hello-is-tried-again.md.
    """
    if code == CloseCode.HELLO_TIMEOUT and late_hellos < LATE_HELLOS_MAX:
        return None
    if not 4500 <= code <= 4999 or (code == CloseCode.UNAUTHENTICATED and fresh_token):
        return None
    what = f"the node closed with {code}{f': {reason}' if reason else ''}"
    match code:
        case CloseCode.UNAUTHENTICATED:
            return AuthError(what)
        case CloseCode.FORBIDDEN:
            return Forbidden(what)
        case CloseCode.SUPERSEDED:
            return Superseded(what, closed_with=code)
        case CloseCode.SESSION_ENDED:
            return SessionEnded(what, closed_with=code)
    return ClosedForGood(what, closed_with=code)


def http_error(status: int, message: str, *, fresh_token: bool) -> EventBusError | None:
    """What an HTTP status means for good; None when another attempt makes sense. The arguments as of `final_error`."""
    what = f"the node answered HTTP {status}{f': {message}' if message else ''}"
    if status == 401 and not fresh_token:
        return AuthError(what)
    return Forbidden(what) if status == 403 else None


def refusal_text(body: bytes) -> str:
    """What a refusal says: the node's own message, or else the first words of the body."""
    try:
        answer = orjson.loads(body)
        return str(answer["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return body[:200].decode(errors="replace").strip()


def refresh_delay_ms(life_ms: int) -> int | None:
    """When to refresh a token that lives `life_ms` more: at 80 % of it, or 30 s before its end when that is earlier.

    None when it seems to be over: then the two clocks disagree, and the node's word (4004) is waited for.
    """
    if life_ms <= 0:
        return None
    return max(1_000, min(life_ms * 4 // 5, max(life_ms - 30_000, life_ms // 2)))


# --- where a subscriber stands ----------------------------------------------------------------------------------------


class SeenEvents:
    """The events handled lately, by event id: the last 4,096 and those of the last ten minutes.

    Entry ids do not do: after a failover an event may come again under another one (D5).
    """

    __slots__ = ("_known", "_order")

    def __init__(self) -> None:
        self._known: set[EventId] = set()
        self._order: deque[tuple[EventId, int]] = deque()  # the oldest first

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, event: object) -> bool:
        return event in self._known

    def add(self, event: EventId, now_ms: int) -> None:
        """An event was handled; the oldest are forgotten, two for one that is added, so that no call takes long."""
        if event in self._known:
            return
        self._known.add(event)
        self._order.append((event, now_ms))
        for _ in range(2):
            count = len(self._order)
            oldest, handled_ms = self._order[0]
            if count <= SEEN_COUNT or (count <= SEEN_MAX_COUNT and now_ms - handled_ms < SEEN_MS):
                return
            self._order.popleft()
            self._known.discard(oldest)


class CursorTracker:
    """The highest entry id up to which everything has been handled: not the newest seen, which would skip what still
    waits (D9).

    Each entry under way remembers the highest id that was there when it came; the oldest under way holds the cursor
    there.
    """

    __slots__ = ("_highest", "_under_way")

    def __init__(self, cursor: EntryId | None) -> None:
        self._highest = cursor
        self._under_way: dict[EntryId, EntryId | None] = {}  # in order of arrival

    @property
    def cursor(self) -> EntryId | None:
        """That id; None while nobody knows."""
        for before in self._under_way.values():
            return before
        return self._highest

    def arrived(self, entry: EntryId) -> None:
        """An entry came that is to be handled."""
        self._under_way.setdefault(entry, self._highest)
        self.passed(entry)

    def done(self, entry: EntryId) -> None:
        """Handled, or never to come again."""
        self._under_way.pop(entry, None)

    def passed(self, entry: EntryId) -> None:
        """Everything up to this entry has been sent."""
        if self._highest is None or entry_order(entry) > entry_order(self._highest):
            self._highest = entry

    def rewind(self, held: Iterable[EntryId]) -> None:
        """The connection ended: the node sends all that is pending again, so only what is held is under way."""
        self._highest = self.cursor
        self._under_way = dict.fromkeys(held, self._highest)

    def rebase(self, after: EntryId | None) -> None:
        """The store lost its end (`rollback`) or all (`reset`): ids may be lower from here on (D4)."""
        self._highest = after
        self._under_way = dict.fromkeys(self._under_way, after)


# --- confirmations on their way ---------------------------------------------------------------------------------------


def ids_a_frame(max_frame_bytes: int) -> int:
    """How many entry ids a frame may name: each, with its quotes and comma, is at most 44 bytes."""
    return max(1, min(IDS_A_FRAME, (max_frame_bytes - 64) // 44))


class Pacer:
    """A token bucket for the frames that confirm."""

    __slots__ = ("_at_ms", "_thousandths")

    def __init__(self, now_ms: int) -> None:
        self._at_ms = now_ms
        self._thousandths = PACE_BURST * 1000

    def take(self, now_ms: int) -> int:
        """Take one frame's worth and return 0, or return how many milliseconds to wait for it."""
        grown = max(0, now_ms - self._at_ms) * PACE_PER_SECOND
        self._thousandths = min(PACE_BURST * 1000, self._thousandths + grown)
        self._at_ms = now_ms
        if self._thousandths < 1000:
            return -(-(1000 - self._thousandths) // PACE_PER_SECOND)
        self._thousandths -= 1000
        return 0


class Outbox:
    """Acks and nacks of one connection that wait to be sent, gathered into as few frames as can be.

    It holds at most an entry for each delivery of the connection that was not confirmed yet, so the window bounds it.
    """

    __slots__ = ("_ids_a_frame", "_nacks", "_received")

    def __init__(self, max_frame_bytes: int) -> None:
        self._ids_a_frame = ids_a_frame(max_frame_bytes)
        self._received: deque[EntryId] = deque()
        self._nacks: deque[Nack] = deque()

    def __bool__(self) -> bool:
        return bool(self._received or self._nacks)

    def received(self, entries: Iterable[EntryId]) -> None:
        """Acks for these."""
        self._received.extend(entries)

    def nack(self, nack: Nack) -> None:
        """A request for redelivery."""
        self._nacks.append(nack)

    def next(self) -> Ack | Nack | None:
        """The next frame to send. Acks go first: they release."""
        if self._received:
            count = min(len(self._received), self._ids_a_frame)
            return Ack(ids=tuple(self._received.popleft() for _ in range(count)))
        return self._nacks.popleft() if self._nacks else None
