"""Presence: which sessions of a user are live, and those that come and go.

A session is online from the moment when a node has it until it is left, ended, or its node has been silent for
`live_ttl_ms` (a killed node). That another connection or node takes it over is no change. Changes are told over the
user's channel; what a lost message or a silent node would have told is found by looking now and then.

Source: docs/publishing.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from eventbus.errors import StoreError
from eventbus.ids import NodeName, SessionId, UserId
from eventbus.looks import Looks
from eventbus.store import Store
from eventbus.store.figures import OnlinePage, OnlineRecord
from eventbus.store.inbound import Told

__all__ = ["Presence", "changes_between", "follow_presence"]

_RETRY_MS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """A session has come or gone.

    Attributes:
        session: which.
        online: whether it is live now.
        node: where it is, or was.
        time_ms: when that was seen, Unix milliseconds of the store's clock.
    """

    session: SessionId
    online: bool
    node: NodeName
    time_ms: int


class _Ring:
    """A follower that wakes a waiter."""

    __slots__ = ("ring",)

    def __init__(self, ring: asyncio.Event) -> None:
        self.ring = ring

    def told(self, user: UserId, what: Told) -> None:
        """See `Follower.told`."""
        if what in (Told.PRESENCE, Told.ANYTHING):
            self.ring.set()


def changes_between(known: Mapping[SessionId, OnlineRecord], page: OnlinePage) -> list[Presence]:
    """What has changed since the sessions of `known` were seen: first who has gone, then who has come."""
    now = {record.session for record in page.sessions}
    gone = [record for session, record in known.items() if session not in now]
    come = [record for record in page.sessions if record.session not in known]
    return [
        Presence(session=record.session, online=online, node=record.node, time_ms=page.time_ms)
        for online, some in ((False, gone), (True, come))
        for record in some
    ]


async def follow_presence(store: Store, looks: Looks, user: UserId, *, poll_ms: int) -> AsyncGenerator[Presence, None]:
    """Tells of the sessions that are live now, then of each that comes or goes, without end.

    A store that is away is waited for. Two changes of one session that undo each other between two looks are not told.

    Args:
        store: where sessions are.
        looks: the waits of the bus.
        user: whose sessions.
        poll_ms: how often to look where nothing is told: a silent node tells nobody.

    Raises:
        EventBusError: the bus was closed.
    """
    ring = asyncio.Event()
    following = store.follow(user, _Ring(ring))
    known: dict[SessionId, OnlineRecord] = {}
    try:
        while True:
            ring.clear()
            looks.check()
            pause_ms = poll_ms
            try:
                page = await store.online(user)
            except StoreError:
                looks.check()
                pause_ms = min(_RETRY_MS, poll_ms)
            else:
                changes = changes_between(known, page)
                known = {record.session: record for record in page.sessions}
                for change in changes:
                    yield change
            await looks.pause(ring, pause_ms)
    finally:
        following.close()
