"""The kept events: what was published in the last seconds, to be sent again when a primary turns out to be another.

An asynchronous failover, or a restart, can take back events whose publish has returned. A publisher that still lives
has them here and sends them again, in order and under the same event ids: what the new primary has is answered as a
duplicate.

Pure: given the time and the `primary` (`run_id`) of each answer. Source: docs/publishing.md, "When a primary changes".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final
from zlib import crc32

from eventbus.ids import RunId, UserId
from eventbus.store import Append

__all__ = ["Kept", "KeptEvent"]

# What an event weighs beside its body (the record, ids, places in containers): roughly, for the bound alone.
_OVERHEAD_BYTES: Final = 400
# Users are watched in groups, so that what is remembered of primaries is bounded. It need not be the installation's
# number of partitions: a group is only how far one answer is believed.
_GROUPS: Final = 1024
# Each life of a server is another primary. When so many have been seen, those that answered for nothing that is kept
# are forgotten; should one of them answer again, at worst what is kept goes once more and is answered as duplicate.
_KNOWN_MAX: Final = 4096


class KeptEvent:
    """An event that was published, when, and which server answered for it last. `held`: it is still among the kept."""

    __slots__ = ("append", "held", "primary", "time_ms")

    def __init__(self, append: Append, primary: str, time_ms: int) -> None:
        self.append = append
        self.held = True
        self.primary = primary
        self.time_ms = time_ms

    def __repr__(self) -> str:
        return f"<KeptEvent {self.append.event} of {self.append.user} at {self.time_ms} on {self.primary}>"


class Kept:
    """The events of the last `kept_ms`, oldest first, at most `max_bytes` of them.

    A change is seen in two ways: the users of a group are answered by another server than before; or a server answers
    that never did, while events are kept for which others answered (then it may have replaced any of those).

    An answer comes too late for the event that it answers. So after a call that came to nothing (`doubt`) any primary
    may have changed: before anything new of a user, the oldest kept event of that user is to go out (`to_check`), and
    its answer shows it. An answer to a call that began later is as good for all that stands on its server (`trust`).

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
        "_doubted",
        "_events",
        "_known",
        "_max_bytes",
        "_ms",
        "_primaries",
        "_primary_of",
        "_trusted",
        "bytes",
        "doubts",
        "overflow",
    )

    def __init__(self, *, kept_ms: int, max_bytes: int, primary_of: Callable[[UserId], str] | None = None) -> None:
        self._primary_of = primary_of
        self._ms = kept_ms
        self._max_bytes = max_bytes
        self._events: deque[KeptEvent] = deque()
        self._counts: dict[str, int] = {}  # primary -> how many kept events it answered for
        self._known: set[str] = set()  # servers that answer, as far as is known
        self._primaries: dict[int, str] = {}  # group of users -> who answered for it last
        self._doubted: dict[UserId, KeptEvent] = {}  # the oldest event of each user that has not been checked since
        self._trusted: set[str] = set()  # who answered since
        self.doubts = 0
        self.bytes = 0
        self.overflow = 0

    def __len__(self) -> int:
        return len(self._events)

    def stored(self, append: Append, primary: str, now_ms: int) -> Sequence[KeptEvent]:
        """Keep an event for which a server has just answered.

        Args:
            append: the event.
            primary: who answered.
            now_ms: monotonic time, never less than before.

        Returns:
            What has to be sent again, in order, before anything new of the users concerned: as a rule nothing.
        """
        if self._ms == 0:
            return ()
        again = self._look(append.user, primary)
        self._events.append(KeptEvent(append, primary, now_ms))
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
        primary_of = self._primary_of
        if primary_of is None:
            return ()
        return [kept for kept in self._events if primary_of(kept.append.user) not in ("", kept.primary)]

    def of_run(self, user: UserId, run: RunId, after: int, before: int) -> Sequence[KeptEvent]:
        """The kept events of a run whose numbers lie between two, in order: what a store that lost them is to get."""
        return [
            kept
            for kept in self._events
            if kept.append.user == user
            and (step := kept.append.step) is not None
            and step.run == run
            and after < step.seq < before
        ]

    def expire(self, now_ms: int) -> None:
        """Let go of what is older than `kept_ms`, and of the oldest beyond `max_bytes` (counted in `overflow`)."""
        events = self._events
        while events and (self.bytes > self._max_bytes or now_ms - events[0].time_ms > self._ms):
            oldest = events.popleft()
            oldest.held = False
            self._drop(oldest.primary)
            self.bytes -= len(oldest.append.body) + _OVERHEAD_BYTES
            if now_ms - oldest.time_ms <= self._ms:
                self.overflow += 1

    def doubt(self, now_ms: int) -> None:
        """Note that a call came to nothing: from now on no primary is known to be the same."""
        self.doubts += 1
        self.expire(now_ms)
        self._trusted.clear()
        self._doubted = {}
        for kept in self._events:
            self._doubted.setdefault(kept.append.user, kept)

    def trust(self, primary: str, doubts: int) -> None:
        """Note that `primary` answered a call that began when there had been that many `doubts`."""
        if self._doubted and doubts == self.doubts:
            self._trusted.add(primary)

    def to_check(self, user: UserId) -> KeptEvent | None:
        """Take the event that has to be sent again before anything new of the user, None when there is none."""
        if not self._doubted:
            return None
        kept = self._doubted.get(user)
        if kept is None:
            return None
        if not kept.held:
            # What has gone since, while the store was away, can not be asked about; what came after it can.
            self._doubt_what_is_held()
            kept = self._doubted.get(user)
        self._doubted.pop(user, None)
        if kept is None:
            return None
        if self._primary_of is not None and (now := self._primary_of(user)):
            return None if now == kept.primary else kept
        return kept if kept.primary not in self._trusted else None

    def _doubt_what_is_held(self) -> None:
        """Put the oldest event that is held in the place of each that is not any more."""
        before, self._doubted = self._doubted, {}
        for kept in self._events:
            if kept.append.user in before:
                self._doubted.setdefault(kept.append.user, kept)

    def _drop(self, primary: str) -> None:
        """Take one event off a primary's count."""
        self._counts[primary] -= 1
        if not self._counts[primary]:
            del self._counts[primary]

    def _look(self, user: UserId, primary: str) -> Sequence[KeptEvent]:
        group = crc32(user.encode()) % _GROUPS
        before = self._primaries.get(group)
        if before == primary and primary in self._known:
            return ()
        self._primaries[group] = primary
        if primary not in self._known:
            if len(self._known) >= _KNOWN_MAX:
                self._known.intersection_update(self._counts)
            self._known.add(primary)
            return [kept for kept in self._events if kept.primary != primary and not self._stays(kept)]
        if before is None or before not in self._counts:
            return ()
        return [
            kept
            for kept in self._events
            if kept.primary != primary and crc32(kept.append.user.encode()) % _GROUPS == group and not self._stays(kept)
        ]

    def _stays(self, kept: KeptEvent) -> bool:
        """Whether the server that answered for an event is known to have its user still."""
        return self._primary_of is not None and self._primary_of(kept.append.user) == kept.primary
