"""The kept events: what was published in the last seconds, to be sent again when a primary turns out to be another.

An asynchronous failover, or a restart, can take back events whose publish has returned. A publisher that still lives
has them here and sends them again, in order and under the same event ids: what the new primary has is answered as a
duplicate.

Pure: given the time and the `primary` (`run_id`) of each answer. Source: docs/publishing.md, "When a primary changes".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from eventbus.ids import RunId, UserId
from eventbus.store import Append

__all__ = ["Kept", "KeptEvent"]

# What an event weighs beside its body (the record, ids, places in containers): roughly, for the bound alone.
_OVERHEAD_BYTES: Final = 400
# Each life of a server is another primary. When so many have been seen, those that answered for nothing that is kept
# are forgotten; should one of them answer again, at worst what is kept goes once more and is answered as duplicate.
_KNOWN_MAX: Final = 4096


class KeptEvent:
    """An event that was published, when, and which server answered for it last.

    Attributes:
        held: it is still among the kept.
        next: the event of its user that was kept after it.
    """

    __slots__ = ("append", "held", "next", "primary", "time_ms")

    def __init__(self, append: Append, primary: str, time_ms: int) -> None:
        self.append = append
        self.held = True
        self.next: KeptEvent | None = None
        self.primary = primary
        self.time_ms = time_ms

    def __repr__(self) -> str:
        return f"<KeptEvent {self.append.event} of {self.append.user} at {self.time_ms} on {self.primary}>"


class _OfUser:
    """The kept events of a user, oldest first; there is always one.

    Attributes:
        primary: who answered for the user last.
        checked: how many doubts there were when it was last made sure that the events are where the next one goes.
    """

    __slots__ = ("checked", "newest", "oldest", "primary")

    def __init__(self, event: KeptEvent, checked: int) -> None:
        self.oldest = self.newest = event
        self.primary = event.primary
        self.checked = checked

    def __iter__(self) -> Iterator[KeptEvent]:
        event: KeptEvent | None = self.oldest
        while event is not None:
            yield event
            event = event.next


class Kept:
    """The events of the last `kept_ms`, oldest first, at most `max_bytes` of them.

    A change is seen in two ways: a user is answered by another server than before; or a server answers that never did,
    while events are kept for which others answered (then it may have replaced any of those).

    An answer comes too late for the event that it answers. So after a call that came to nothing, and whenever a primary
    was lost or may be another (`doubt`), the oldest kept event of a user is to go out before anything new of that user
    (`to_check`), and its answer shows it. An answer to a call that began later is as good for all that stands on its
    server (`trust`).

    Args:
        kept_ms: how long an event is kept; 0 keeps none.
        max_bytes: how much is kept, bodies and a flat charge for each event; beyond it the oldest go.
        primary_of: which server has a user now, empty when no connection to it stands; None where the store does not
            tell. With it a change is known before anything is sent, and concerns no other users than those it should.

    Attributes:
        bytes: what is kept now.
        overflow: how many events went before their time.
        doubts: how often there was doubt; what a call is begun under.
    """

    __slots__ = (
        "_counts",
        "_events",
        "_known",
        "_max_bytes",
        "_ms",
        "_primary_of",
        "_trusted",
        "_users",
        "bytes",
        "doubts",
        "overflow",
    )

    def __init__(self, *, kept_ms: int, max_bytes: int, primary_of: Callable[[UserId], str] | None = None) -> None:
        self._primary_of = primary_of
        self._ms = kept_ms
        self._max_bytes = max_bytes
        self._events: deque[KeptEvent] = deque()
        self._users: dict[UserId, _OfUser] = {}
        self._counts: dict[str, int] = {}  # primary -> how many kept events it answered for
        self._known: set[str] = set()  # servers that answer, as far as is known
        self._trusted: set[str] = set()  # who answered a call that began after the last doubt
        self.doubts = 0
        self.bytes = 0
        self.overflow = 0

    def __len__(self) -> int:
        return len(self._events)

    def stored(self, append: Append, primary: str, now_ms: int, doubts: int | None = None) -> Sequence[KeptEvent]:
        """Keep an event for which a server has just answered.

        Args:
            append: the event.
            primary: who answered.
            now_ms: monotonic time, never less than before.
            doubts: how many there were when its call began; None: as many as now.

        Returns:
            What has to be sent again, in order for each user, before anything new of the users concerned: as a rule
            nothing.
        """
        if self._ms == 0:
            return ()
        again = self._look(append.user, primary)
        kept = KeptEvent(append, primary, now_ms)
        self._events.append(kept)
        of_user = self._users.get(append.user)
        if of_user is None:
            self._users[append.user] = _OfUser(kept, self.doubts if doubts is None else doubts)
        else:
            of_user.newest.next = kept
            of_user.newest = kept
        self._counts[primary] = self._counts.get(primary, 0) + 1
        self.bytes += len(append.body) + _OVERHEAD_BYTES
        if self.bytes > self._max_bytes or now_ms - self._events[0].time_ms > self._ms:
            self.expire(now_ms)
        return again

    def stored_again(self, kept: KeptEvent, primary: str) -> Sequence[KeptEvent]:
        """Note the answer for an event that was sent again. Returns what else has to be sent again, in order."""
        before = kept.primary
        if before != primary:
            kept.primary = primary
            if kept.held:
                self._drop(before)
                self._counts[primary] = self._counts.get(primary, 0) + 1
                if before not in self._counts:
                    # It answers for nothing any more. Should it come back, it has been away and lost what came since.
                    self._known.discard(before)
        return self._look(kept.append.user, primary)

    def moved(self) -> Sequence[KeptEvent]:
        """What has to be sent again, in order, because another server than the one that answered has its user now."""
        if self._primary_of is None:
            return ()
        again: list[KeptEvent] = []
        for user, of_user in self._users.items():
            if now := self._primary_of(user):
                again += [kept for kept in of_user if kept.primary != now]
        return again

    def of_run(self, user: UserId, run: RunId, after: int, before: int) -> Sequence[KeptEvent]:
        """The kept events of a run whose numbers lie between two, in order: what a store that lost them is to get."""
        return [
            kept
            for kept in self._users.get(user, ())
            if (step := kept.append.step) is not None and step.run == run and after < step.seq < before
        ]

    def expire(self, now_ms: int) -> None:
        """Let go of what is older than `kept_ms`, and of the oldest beyond `max_bytes` (counted in `overflow`)."""
        events = self._events
        while events and (self.bytes > self._max_bytes or now_ms - events[0].time_ms > self._ms):
            oldest = events.popleft()
            oldest.held = False
            user = oldest.append.user
            if oldest.next is None:
                del self._users[user]
            else:
                self._users[user].oldest = oldest.next
                oldest.next = None
            self._drop(oldest.primary)
            self.bytes -= len(oldest.append.body) + _OVERHEAD_BYTES
            if now_ms - oldest.time_ms <= self._ms:
                self.overflow += 1

    def doubt(self, now_ms: int) -> None:
        """Note that a primary may be another: from now on none is known to be the same."""
        self.doubts += 1
        self._trusted.clear()
        self.expire(now_ms)

    def trust(self, primary: str, doubts: int) -> None:
        """Note that `primary` answered a call that began when there had been that many `doubts`."""
        if doubts == self.doubts:
            self._trusted.add(primary)

    def to_check(self, user: UserId) -> KeptEvent | None:
        """Say which event has to be sent again before anything new of the user; None, and none until the next doubt,
        when all that is kept is known to stand where the new one goes.
        """
        of_user = self._users.get(user)
        if of_user is None or of_user.checked == self.doubts:
            return None
        of_user.checked = self.doubts
        now = "" if self._primary_of is None else self._primary_of(user)
        if now:
            return next((kept for kept in of_user if kept.primary != now), None)
        return next((kept for kept in of_user if kept.primary not in self._trusted), None)

    def _drop(self, primary: str) -> None:
        """Take one event off a primary's count."""
        self._counts[primary] -= 1
        if not self._counts[primary]:
            del self._counts[primary]

    def _look(self, user: UserId, primary: str) -> Sequence[KeptEvent]:
        """What has to be sent again because this server answered for the user."""
        of_user = self._users.get(user)
        moved = of_user is not None and of_user.primary != primary
        if of_user is not None:
            of_user.primary = primary
        if primary not in self._known:
            if len(self._known) >= _KNOWN_MAX:
                self._known.intersection_update(self._counts)
            self._known.add(primary)
            everyone = self._users.items()
            return [kept for name, theirs in everyone for kept in self._lost_of(name, theirs, primary)]
        if of_user is None or not moved:
            return ()
        return self._lost_of(user, of_user, primary)

    def _lost_of(self, user: UserId, of_user: _OfUser, primary: str) -> Sequence[KeptEvent]:
        """What is kept of a user and stood on another server than this one, unless that one is known to have it."""
        stays = None if self._primary_of is None else self._primary_of(user)
        return [kept for kept in of_user if kept.primary not in (primary, stays)]
