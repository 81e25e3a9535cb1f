"""Who is connected to this node: sessions by user and by connection. Pure bookkeeping, no decision is made here."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Generic, Protocol, TypeVar

from eventbus.ids import ConnectionId, UserId

__all__ = ["Hub", "Seated"]


class Seated(Protocol):
    """What the hub knows of a session."""

    @property
    def user(self) -> UserId:
        """Whose it is."""

    @property
    def connection_id(self) -> ConnectionId:
        """Its fencing token, its key here."""


S = TypeVar("S", bound=Seated)


class Hub(Generic[S]):
    """The sessions of a node. Two connections of one session may be seated for a moment, during a takeover."""

    def __init__(self) -> None:
        self._by_user: dict[UserId, dict[ConnectionId, S]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[S]:
        for sessions in list(self._by_user.values()):
            yield from list(sessions.values())

    @property
    def users(self) -> int:
        """How many users have a session here."""
        return len(self._by_user)

    def add(self, session: S) -> None:
        """Seats a session; it is woken from now on."""
        seats = self._by_user.setdefault(session.user, {})
        if session.connection_id not in seats:
            self._count += 1
        seats[session.connection_id] = session

    def remove(self, session: S) -> None:
        """Takes a session off; one that is not seated is no error."""
        seats = self._by_user.get(session.user)
        if seats is None or seats.pop(session.connection_id, None) is None:
            return
        self._count -= 1
        if not seats:
            del self._by_user[session.user]

    def of_user(self, user: UserId) -> Collection[S]:
        """The user's sessions on this node; a copy is not made, so do not seat while walking it."""
        seats = self._by_user.get(user)
        return seats.values() if seats else ()
