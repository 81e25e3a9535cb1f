"""The kept events: what was published in the last seconds, to be sent again when a primary turns out to be another.

An asynchronous failover, or a restart, can take back events whose publish has returned. A publisher that still lives
has them here and sends them again, in order and under the same event ids: what the new primary has is answered as a
duplicate.

Nothing is queued to be sent again. Each kept event knows who answered for it last, each user who has him now; what
differs is lost there until it has been sent again, and the first such event goes before anything new of its user,
whatever happens in between: a second failover, an answer that was long on its way, a map that goes back and forth.

Pure: given the time and the `primary` of each answer. Source: docs/publishing.md, "When a primary changes".
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
# are forgotten; should one of them answer again, at worst one event of each user goes once more, as a duplicate.
_KNOWN_MAX: Final = 4096
_NOBODY: Final = "nobody"  # has an event that the store has lost without a change of primaries


class KeptEvent:
    """An event that was published, when, and which server answered for it last.

    Attributes:
        held: it is still among the kept.
        next: the event of its user that was kept after it.
        refused: sent again, it was refused for good.
    """

    __slots__ = ("append", "held", "next", "primary", "refused", "time_ms")

    def __init__(self, append: Append, primary: str, time_ms: int) -> None:
        self.append = append
        self.held = True
        self.next: KeptEvent | None = None
        self.primary = primary
        self.refused = False
        self.time_ms = time_ms

    def __repr__(self) -> str:
        return f"<KeptEvent {self.append.event} of {self.append.user} at {self.time_ms} on {self.primary}>"


class _OfUser:
    """The kept events of a user, oldest first; there is always one.

    Attributes:
        home: the server that has the user: who answered last, or whom the store named since.
        lost: all events before this one are there; None: all are.
        checked: how many doubts there were when `home` was last made sure of.
        wanted: to make sure of it is wanted, though nothing new be published.
    """

    __slots__ = ("checked", "home", "lost", "newest", "oldest", "wanted")

    def __init__(self, event: KeptEvent) -> None:
        self.oldest = self.newest = event
        self.home = event.primary
        self.lost: KeptEvent | None = None
        self.checked = -1
        self.wanted = False

    def __iter__(self) -> Iterator[KeptEvent]:
        event: KeptEvent | None = self.oldest
        while event is not None:
            yield event
            event = event.next

    def move(self, home: str) -> bool:
        """Note who has the user. Returns whether that is another server than before."""
        if home == self.home:
            return False
        self.home, self.lost = home, self.oldest
        return True

    def first_lost(self) -> KeptEvent | None:
        """The first event that is not at home."""
        event = self.lost
        while event is not None and (event.primary == self.home or event.refused):
            event = event.next
        self.lost = event
        return event


class Kept:
    """The events of the last `kept_ms`, oldest first, at most `max_bytes` of them.

    A change is seen in two ways: a user is answered by another server than before; or a server answers that never did,
    while events are kept for which others answered (then it may have replaced any of those).

    An answer comes too late for the event that it answers. So after a call that came to nothing, and whenever a primary
    was lost or may be another (`doubt`), it is made sure who has a user before anything new of that user goes out
    (`before_new`): the store says so, or an event that it has already goes again, and its answer shows it. An answer to
    a call that began later is as good for all that stands on its server (`trust`). One to a call that began before the
    doubt says who has the event, and not who has the user now.

    Args:
        kept_ms: how long an event is kept; 0 keeps none.
        held_ms: how long one is kept of which nobody can say for now whether its primary has it, or that has to go
            again; None: no longer than others. While a primary is away the time of its events does not pass.
        max_bytes: how much is kept, bodies and a flat charge for each event; beyond it the oldest go.
        primary_of: which server has a user now, empty when no connection to it stands; None where the store does not
            tell. With it a change is known before anything is sent, and concerns no other users than those it should.
        on_late: called with an event that goes while it is to be sent again.

    Attributes:
        bytes: what is kept now.
        overflow: how many events went before their time.
        doubts: how often there was doubt; what a call is begun under.
    """

    __slots__ = (
        "_counts",
        "_events",
        "_held_ms",
        "_known",
        "_max_bytes",
        "_ms",
        "_on_late",
        "_primary_of",
        "_trusted",
        "_users",
        "bytes",
        "doubts",
        "overflow",
    )

    def __init__(
        self,
        *,
        kept_ms: int,
        max_bytes: int,
        primary_of: Callable[[UserId], str] | None = None,
        on_late: Callable[[KeptEvent], object] | None = None,
        held_ms: int | None = None,
    ) -> None:
        self._primary_of = primary_of
        self._on_late = on_late
        self._ms = kept_ms
        self._held_ms = kept_ms if held_ms is None else max(kept_ms, held_ms)
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

    # --- what was stored --------------------------------------------------------------------------------------------

    def stored(self, append: Append, primary: str, now_ms: int, doubts: int | None = None) -> Sequence[UserId]:
        """Keep an event for which a server has just answered.

        Args:
            append: the event.
            primary: who answered.
            now_ms: monotonic time, never less than before.
            doubts: how many there were when its call began; None: as many as now.

        Returns:
            The users of whom something has to be sent again (`before_new`) because of this: as a rule none.
        """
        if self._ms == 0:
            return ()
        event = KeptEvent(append, primary, now_ms)
        self._events.append(event)
        of_user = self._users.get(append.user)
        if of_user is None:
            of_user = self._users[append.user] = _OfUser(event)
        else:
            of_user.newest.next = event
            of_user.newest = event
            if of_user.lost is None and primary != of_user.home:
                of_user.lost = event
        self._counts[primary] = self._counts.get(primary, 0) + 1
        self.bytes += len(append.body) + _OVERHEAD_BYTES
        concerned = self._answered(append.user, of_user, primary, self.doubts if doubts is None else doubts)
        if self.bytes > self._max_bytes or now_ms - self._events[0].time_ms > self._ms:
            self.expire(now_ms)
        return concerned

    def stored_again(self, event: KeptEvent, primary: str, doubts: int | None = None) -> Sequence[UserId]:
        """Note the answer for an event that was sent again; arguments and result are those of `stored`."""
        before = event.primary
        if before != primary:
            self._hand_over(event, primary)
            if before not in self._counts:
                # It answers for nothing any more. Should it come back, it has been away and lost what came since.
                self._known.discard(before)
        user = event.append.user
        of_user = self._users.get(user)
        if of_user is None:
            return ()
        if primary != of_user.home:
            of_user.lost = of_user.oldest
        return self._answered(user, of_user, primary, self.doubts if doubts is None else doubts)

    def _answered(self, user: UserId, of_user: _OfUser, primary: str, doubts: int) -> Sequence[UserId]:
        """Who is concerned because this server answered for the user."""
        if doubts == self.doubts and primary == of_user.home and primary in self._known:
            of_user.checked, of_user.wanted = doubts, False
            return ()
        moved, concerned = False, list[UserId]()
        if doubts == self.doubts:
            of_user.checked, of_user.wanted = doubts, False
            moved, concerned = of_user.move(primary), self._new_server(primary)
        elif self._primary_of is None:
            of_user.wanted = primary not in self._trusted
        elif now := self._primary_of(user):
            of_user.checked, of_user.wanted = self.doubts, False
            moved = of_user.move(now) or primary != now
        if moved and user not in concerned and of_user.first_lost() is not None:
            concerned.append(user)
        return concerned

    def _new_server(self, primary: str) -> list[UserId]:
        """Who is concerned because of a server that has not answered so far: it may have replaced any."""
        if primary in self._known:
            return []
        if len(self._known) >= _KNOWN_MAX:
            self._known.intersection_update(self._counts)
        self._known.add(primary)
        if self._primary_of is not None:
            return self.moved()
        concerned = [user for user, of_user in self._users.items() if of_user.home != primary]
        if concerned:
            self.doubts += 1  # what is under way may still be answered by the one before
            self._trusted = {primary}
        for user in concerned:
            self._users[user].wanted = True
        return concerned

    # --- what is sent again -----------------------------------------------------------------------------------------

    def before_new(self, user: UserId) -> KeptEvent | None:
        """Say which event has to be sent again before anything new of the user; None when all that is kept is known to
        stand where the new one goes.
        """
        of_user = self._users.get(user)
        if of_user is None:
            return None
        if of_user.checked != self.doubts:
            asked: Iterator[KeptEvent]
            if self._primary_of is None:
                asked = (kept for kept in of_user if kept.primary not in self._trusted and not kept.refused)
            elif now := self._primary_of(user):
                asked = iter(())
                of_user.wanted = of_user.move(now) or of_user.wanted
            else:
                asked = (kept for kept in of_user if not kept.refused)
            if (first := next(asked, None)) is not None:
                return first
            of_user.checked = self.doubts
        if (lost := of_user.first_lost()) is None:
            of_user.wanted = False
        return lost

    def is_wanting(self, user: UserId) -> bool:
        """Whether something of the user is to be sent again, though nothing new be published."""
        of_user = self._users.get(user)
        return of_user is not None and (of_user.wanted or of_user.first_lost() is not None)

    def moved(self) -> list[UserId]:
        """The users who have something to be sent again because another server has them now than before."""
        concerned: list[UserId] = []
        if self._primary_of is None:
            return concerned
        for user, of_user in self._users.items():
            if now := self._primary_of(user):
                moved = of_user.move(now) or of_user.wanted
                of_user.checked, of_user.wanted = self.doubts, False
                if moved and of_user.first_lost() is not None:
                    concerned.append(user)
        return concerned

    def lose(self, user: UserId, run: RunId, after: int, before: int) -> None:
        """Note that the store has lost what is kept of a run and has a number between these two."""
        of_user = self._users.get(user)
        if of_user is None:
            return
        for kept in of_user:
            step = kept.append.step
            if step is not None and step.run == run and after < step.seq < before and not kept.refused:
                self._hand_over(kept, _NOBODY)
                of_user.lost = of_user.oldest

    def lost(self) -> Sequence[KeptEvent]:
        """What is known to be lost and has not been sent again, in order for each user."""
        return [
            kept
            for of_user in self._users.values()
            if of_user.first_lost() is not None
            for kept in of_user
            if kept.primary != of_user.home and not kept.refused
        ]

    def unasked(self) -> int:
        """How many events a primary has that nobody can ask for now, and that may be another when somebody can."""
        if self._primary_of is None:
            return 0
        away = [user for user, of_user in self._users.items() if self._is_away(user, of_user)]
        return sum(not kept.refused for user in away for kept in self._users[user])

    def _is_away(self, user: UserId, of_user: _OfUser) -> bool:
        return of_user.checked != self.doubts and self._primary_of is not None and not self._primary_of(user)

    # --- whom to believe --------------------------------------------------------------------------------------------

    def doubt(self, now_ms: int) -> None:
        """Note that a primary may be another: from now on none is known to be the same."""
        self.doubts += 1
        self._trusted.clear()
        self.expire(now_ms)

    def trust(self, primary: str, doubts: int) -> None:
        """Note that `primary` answered a call that began when there had been that many `doubts`."""
        if doubts == self.doubts:
            self._trusted.add(primary)

    # --- letting go -------------------------------------------------------------------------------------------------

    def expire(self, now_ms: int) -> None:
        """Let go of what is older than `kept_ms`, and of the oldest beyond `max_bytes` (counted in `overflow`)."""
        events = self._events
        while events and (self.bytes > self._max_bytes or now_ms - events[0].time_ms > self._ms):
            oldest = events[0]
            is_room = self.bytes <= self._max_bytes and now_ms - oldest.time_ms <= self._held_ms
            if is_room and self._held_ms > self._ms and self._is_owed(oldest):
                break  # what came later waits behind it, as the bytes allow
            events.popleft()
            oldest.held = False
            user = oldest.append.user
            of_user = self._users[user]
            if of_user.lost is oldest:
                if of_user.first_lost() is oldest and self._on_late is not None:
                    self._on_late(oldest)
                of_user.lost = oldest.next
            if oldest.next is None:
                del self._users[user]
            else:
                of_user.oldest = oldest.next
                oldest.next = None
            self._drop(oldest.primary)
            self.bytes -= len(oldest.append.body) + _OVERHEAD_BYTES
            if now_ms - oldest.time_ms <= self._ms:
                self.overflow += 1

    def _is_owed(self, oldest: KeptEvent) -> bool:
        """Whether the oldest event has to go again, or may have to when its primary stands."""
        user = oldest.append.user
        of_user = self._users[user]
        if of_user.checked != self.doubts and self._primary_of is not None:
            now = self._primary_of(user)
            if not now:
                return True
            of_user.wanted = of_user.move(now) or of_user.wanted
        return of_user.first_lost() is oldest

    def _hand_over(self, event: KeptEvent, primary: str) -> None:
        """Another server answers for an event."""
        if event.held:
            self._drop(event.primary)
            self._counts[primary] = self._counts.get(primary, 0) + 1
        event.primary = primary

    def _drop(self, primary: str) -> None:
        """Take one event off a primary's count."""
        self._counts[primary] -= 1
        if not self._counts[primary]:
            del self._counts[primary]
