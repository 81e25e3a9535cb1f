"""The subscription of a node: what Redis tells it of wake-ups, takeovers and acks.

| message | meaning |
|---|---|
| `<user>` | something was stored for the user |
| `!<session> <connection> <user>` | the session belongs to that connection from now on |
| `*<session> <user> <id>,...` | entries of the session were acked through another door |
| `=<session> <user> <id>,...` | `deliver: any` events that another session acked |
| `~<run> <user>` | a token stream of the run has grown or ended |
| `^` | something was revoked |
| `%<words>` | an operator wants something, see `eventbus.store.mending` |
| `?<token>` | a probe |

A user id begins with none of these signs. Messages are lost while the subscription is; the listener is told of that,
and looks after everything itself when the subscription stands again: all of it, or in a Cluster the partitions of one
primary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Final

from eventbus.errors import StoreError
from eventbus.ids import ConnectionId, EntryId, RunId, SessionId, UserId
from eventbus.store import Listener
from eventbus.store.ears import Ears
from eventbus.store.links import Links
from eventbus.store.mending import parse_order

__all__ = ["Subscription", "acked_message", "displaced_message", "probe_message"]

_log = logging.getLogger("eventbus.store")

_MARKS: Final = frozenset("!*=~%^?")
"""What begins a message that is no wake-up; no user id begins so."""


def displaced_message(session: SessionId, connection: ConnectionId, user: UserId) -> str:
    """Tells a node that a session is another's. Source: attach.lua."""
    return f"!{session} {connection} {user}"


def acked_message(session: SessionId, user: UserId, entries: list[EntryId]) -> str:
    """Tells a node that entries were acked elsewhere."""
    return f"*{session} {user} {','.join(entries)}"


def probe_message(token: str) -> str:
    """What a node sends to itself."""
    return f"?{token}"


class Subscription:
    """Keeps a node subscribed until it is closed.

    Args:
        links: know where the channels live.
        channels: the node's channels, by partition.
        partition_of: the partition of a user.
        listener: who is told.
        timeout_ms: longest wait for a connection.
        ping_ms: how often a connection is tried.
        silence_ms: without a byte for so long it is given up: a half-open connection loses wake-ups without a word.
    """

    def __init__(
        self,
        links: Links,
        channels: list[str],
        partition_of: Callable[[UserId], int],
        listener: Listener,
        *,
        timeout_ms: int,
        ping_ms: int,
        silence_ms: int,
    ) -> None:
        self._ears = Ears(
            links, self, name="eventbus-listen", timeout_ms=timeout_ms, ping_ms=ping_ms, silence_ms=silence_ms
        )
        self._partitions = {channel: number for number, channel in enumerate(channels)}
        self._partition_of = partition_of
        self._listener = listener
        self._standing: set[str] = set()
        self._whole = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<Subscription channels={len(self._partitions)} standing={len(self._standing)}>"

    @property
    def closed(self) -> bool:
        """Whether it was ended."""
        return self._closed

    def start(self) -> None:
        """Begin; call it in the event loop."""
        self._ears.want(self._partitions)

    async def aclose(self) -> None:
        """End it; safe to call twice."""
        self._closed = True
        await self._ears.aclose()

    # --- what the ears tell -----------------------------------------------------------------------------------------

    def standing(self, channels: Collection[str]) -> None:
        """See `Hearer.standing`."""
        self._standing.update(channels)
        if not self._whole and len(self._standing) == len(self._partitions):
            self._whole = True
            self._listener.subscribed()
            return
        numbers = {self._partitions[channel] for channel in channels}
        _log.info("wake-ups of %d partitions come again", len(numbers))
        self._listener.resubscribed(lambda user: self._partition_of(user) in numbers)

    def fallen(self, channels: Collection[str], reason: StoreError) -> None:
        """See `Hearer.fallen`."""
        if not channels:
            _log.info("no subscription yet: %s", reason)
            return
        self._standing.difference_update(channels)
        self._whole = self._whole and bool(self._standing)
        _log.warning("wake-ups are missed: %s", reason)
        self._listener.unsubscribed(str(reason))

    def heard(self, _channel: str, raw: bytes) -> None:
        """See `Hearer.heard`."""
        try:
            text = raw.decode()
            if text[:1] not in _MARKS:  # nearly all are wake-ups
                self._listener.woken(UserId(text))
                return
            match text[:1]:
                case "!":
                    session, connection, user = text[1:].split(" ")
                    self._listener.displaced(UserId(user), SessionId(session), ConnectionId(connection))
                case "*":
                    session, user, ids = text[1:].split(" ")
                    self._listener.acked_elsewhere(
                        UserId(user), SessionId(session), [EntryId(entry) for entry in ids.split(",")]
                    )
                case "=":
                    session, user, ids = text[1:].split(" ")
                    self._listener.released(
                        UserId(user), SessionId(session), [EntryId(entry) for entry in ids.split(",")]
                    )
                case "~":
                    run, user = text[1:].split(" ")
                    self._listener.text_came(UserId(user), RunId(run))
                case "%":
                    if (order := parse_order(text[1:])) is not None:
                        self._listener.ordered(order)
                case "^":
                    self._listener.revoked()
                case "?":
                    self._listener.probed(text[1:])
        except Exception:
            # A message that makes no sense, or a listener that breaks its promise, must not make the node deaf.
            _log.exception("a message on a node's channel was not understood")
