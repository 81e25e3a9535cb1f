"""What the delivery machine may do: each effect is judged against what the store and the client of the model know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from eventbus import moves
from eventbus.delivery import Delivery, Phase
from eventbus.ids import EntryId, entry_order
from eventbus.redelivery import RedeliveryPolicy
from eventbus.store import RedeliveryOutcome, ReleaseReason, StoreGap
from tests.property.delivery_model import Attachment, Order, Server, Stored, ToldGap, name

ACK_TIMEOUT_MS = 1_000
NACK_WAIT_MS = 100
UNKNOWN = EntryId("7777777-7")

Call = moves.Acknowledge | moves.Release | moves.Redeliver | moves.GiveUp


@dataclass(slots=True)
class Reading:
    """A read under way; `answer` is there once the store has carried it out."""

    request: moves.ReadNew | moves.ReadPending
    answer: moves.NewItems | moves.PendingItems | str | None = None


@dataclass(slots=True)
class Attaching:
    """An attach under way; `stored_then` is the newest entry when it was carried out."""

    answer: Attachment | None = None
    stored_then: Order = (0, 0)


@dataclass(slots=True, eq=False)
class Calling:
    """A call under way."""

    call: Call
    answer: moves.Input | None = None


@dataclass(slots=True, eq=False)
class Connection:
    """A connection, its machine, and what was seen of it.

    Attributes:
        widest: the widest window that it had.
        bound: what the window allows while an older, wider one still shows.
        disturbed: the data under it was lost or rolled back, so that more may come again than else.
        covered: what the cap takes away unread would be noticed by the next read.
        knows: up to here earlier connections may have sent, as far as it could be told when it opened.
        stored_then: the newest entry when it was attached or woken last.
        here: the last delivery number of what was sent on it.
        timer: since when the ack of an entry is waited for.
        nacked: until when a nacked entry waits.
        asked: entries whose redelivery or dead letter is being recorded.
        failed: entries whose redelivery could not be recorded, and that are in flight for it.
        uncertain: entries whose redelivery may have been recorded since they were sent last.
        told: entries of which it heard that another session acked them.
        withdrawn: those of which the client was told.
        dropped: entries of which the client was told that they will not come again.
        gaps: what it was told will never come, and how much it had been sent before.
        places: how much it had been sent when it was sent an entry last.
    """

    token: int
    machine: Delivery
    window: int
    bound: int
    widest: int
    reading: Reading | None = None
    attaching: Attaching | None = None
    calls: list[Calling] = field(default_factory=list)
    opened: bool = False
    disturbed: bool = False
    covered: bool = True
    caught_up: bool = False
    stored_then: Order = (0, 0)
    knows: Order = (0, 0)
    opening: frozenset[Order] = frozenset()
    here: dict[Order, int] = field(default_factory=dict)
    highest_first: Order = (0, 0)
    timer: dict[Order, int] = field(default_factory=dict)
    nacked: dict[Order, int] = field(default_factory=dict)
    asked: set[Order] = field(default_factory=set)
    failed: set[Order] = field(default_factory=set)
    uncertain: set[Order] = field(default_factory=set)
    told: set[Order] = field(default_factory=set)
    withdrawn: set[Order] = field(default_factory=set)
    dropped: set[Order] = field(default_factory=set)
    gaps: dict[Order, int] = field(default_factory=dict)
    places: dict[Order, int] = field(default_factory=dict)


class Judge:
    """Knows what was sent to the session and what its client said.

    Attributes:
        sent: the last delivery number of all that was sent, over all connections.
        said: what the client acked and was not sent since.
        elsewhere: what was acked through another door.
        heard: what the client knows will never come: it has acked what was sent behind.
        data_was_lost: the group's position was lost or rolled back: what was sent may come again, what was not may be
            marked.
        seen: how often what happened, to see that a walk gets around.
    """

    def __init__(self, policy: RedeliveryPolicy) -> None:
        self.policy = policy
        self.server = Server()
        self.now_ms = 1_000
        self.sent: dict[Order, int] = {}
        self.said: set[Order] = set()
        self.elsewhere: set[Order] = set()
        self.heard: set[Order] = set()
        self.data_was_lost = False
        self.seen: Counter[str] = Counter()

    def note(self, what: str) -> None:
        self.seen[what] += 1

    def judge(self, at: Connection, event: moves.Input, effects: list[moves.Effect]) -> None:
        """Judges what an input led to."""
        announced: StoreGap | None = None
        for effect in effects:
            match effect:
                case moves.Send():
                    assert effect.events
                    for sending in effect.events:
                        self._judge_sending(at, event, sending)
                case moves.Acknowledge():
                    said = {UNKNOWN} | {name(order) for order in self.said}
                    assert said.issuperset(effect.ids), "acked what the client did not ack"
                case moves.Release():
                    for entry in effect.ids:
                        self._judge_release(entry_order(entry), effect.reason, announced)
                        if effect.reason is ReleaseReason.TRIMMED and announced is not None:
                            at.gaps.setdefault(entry_order(entry), len(at.places))
                case moves.Redeliver():
                    for redelivery in effect.entries:
                        self._judge_attempt(at, entry_order(redelivery.id), redelivery.attempts)
                case moves.GiveUp():
                    at.asked.add(entry_order(effect.id))
                    poison = self.server.ever[entry_order(effect.id)].poison
                    assert poison or effect.attempts >= self.policy.max_deliveries, "given up early"
                    self.note("poison" if poison else effect.reason)
                case moves.AnnounceGap():
                    announced = effect.gap
                    if isinstance(effect.gap, ToldGap):
                        for order in effect.gap.orders:
                            at.gaps.setdefault(order, len(at.places))
                            self.server.fates[self.server.ever[order].event].add("gap")
                    self.note(f"gap {effect.gap.reason}")
                case moves.Dropped():
                    for entry in effect.ids:
                        at.dropped.add(entry_order(entry))
                        self._judge_dropped(self.server.ever[entry_order(entry)], effect.reason)
                case moves.Withdrawn():
                    for entry in effect.ids:
                        self._judge_withdrawn(at, entry_order(entry))
                case moves.CaughtUp():
                    self._judge_caught_up(at)
        if isinstance(event, moves.GivenUp) and event.dead:
            assert any(isinstance(effect, moves.Dropped) for effect in effects), "a dead letter without a word"
        if isinstance(event, moves.Redelivered):
            sends = [effect for effect in effects if isinstance(effect, moves.Send)]
            self._judge_outcomes(at, event, {sending.id for send in sends for sending in send.events})

    def say(self, at: Connection, orders: Iterable[Order]) -> None:
        """The client acks these; what it was told before it was sent them it has heard."""
        for order in orders:
            self.said.add(order)
            self.heard.update(gone for gone, place in at.gaps.items() if place < at.places[order])

    def judge_forgotten(self) -> None:
        """The store tells of a gap until the client has heard of it."""
        assert self.data_was_lost or self.server.forgotten <= self.heard, "a gap that nobody heard of is forgotten"

    def _judge_outcomes(self, at: Connection, event: moves.Redelivered, sent: set[EntryId]) -> None:
        for entry, outcome in event.outcomes:
            order = entry_order(entry)
            if outcome is RedeliveryOutcome.GONE:
                assert entry not in sent, "gone and sent"
            elif order not in self.said | self.elsewhere | at.told and not at.disturbed:
                assert entry in sent, "counted and not sent"

    def _judge_sending(self, at: Connection, event: moves.Input, sending: moves.Sending) -> None:
        order, delivery = entry_order(sending.id), sending.delivery
        stored = self.server.ever[order]
        assert sending.payload == stored.event
        assert not stored.poison
        assert not stored.filtered
        assert order not in self.server.released_unread, "released before it was read, and sent"
        assert order not in at.told, "known to be released, and sent"
        assert delivery > 1 or order not in self.sent, "an unmarked duplicate"
        if order in at.here:
            self._judge_again(at, event, order, delivery)
        elif not at.disturbed:
            assert order > max(at.here, default=(0, 0)), "out of order"
            assert delivery == 1 or order in self.sent or order in at.opening or self.data_was_lost, (
                "marked, and never sent before"
            )
        if delivery == 1:
            assert order > at.highest_first, "first deliveries fall"
            at.highest_first = order
        self.note("first" if delivery == 1 else f"sent by {type(event).__name__} again")
        self.sent[order] = at.here[order] = delivery
        at.places.setdefault(order, len(at.places) + 1)
        at.timer[order] = self.now_ms
        at.nacked.pop(order, None)
        at.asked.discard(order)
        at.failed.discard(order)
        at.uncertain.discard(order)
        self.said.discard(order)

    def _judge_again(self, at: Connection, event: moves.Input, order: Order, delivery: int) -> None:
        if isinstance(event, moves.Redelivered):
            assert delivery > at.here[order], "its delivery did not rise"
        else:
            assert at.disturbed or order in self.elsewhere, "sent again without a nack or a time-out"
            assert at.disturbed or delivery >= at.here[order], "its delivery went down"

    def _judge_release(self, order: Order, reason: ReleaseReason, announced: StoreGap | None) -> None:
        stored = self.server.ever[order]
        self.note(f"release {reason}")
        if reason is ReleaseReason.FILTERED:
            assert stored.filtered
        elif reason is ReleaseReason.EXPIRED:
            assert self._has_expired(stored)
        elif reason is ReleaseReason.RELEASED:
            assert order in self.server.released
        else:
            assert order not in self.server.stream, "released as trimmed, and is there"
            # A release is said again without its gap, which was announced with the first.
            if "gap" not in self.server.fates[stored.event]:
                assert announced is not None, "trimmed without a word"
                assert (entry_order(announced.after) if announced.after else (0, 0)) < order
                assert announced.before is None or order < entry_order(announced.before)
                self.server.fates[stored.event].add("gap")

    def _judge_attempt(self, at: Connection, order: Order, attempts: int) -> None:
        """D8: nothing but an ack time-out or a nack on this connection raises the attempts."""
        at.asked.add(order)
        self.note(f"attempt {attempts}")
        assert 2 <= attempts <= self.policy.max_deliveries
        assert not self._has_expired(self.server.ever[order]), "expired and sent again"
        if order in at.nacked:
            assert self.now_ms >= at.nacked[order], "redelivered before the nack's wait is over"
        else:
            wait_ms = min(ACK_TIMEOUT_MS << (attempts - 2), self.policy.max_wait_ms)
            assert self.now_ms >= at.timer[order] + wait_ms, "redelivered before its ack timed out"
        pending = self.server.group.pending if self.server.group else {}
        if order in pending and order in self.server.stream and not at.disturbed:
            # Counted already when the answer to that was lost.
            counted = {pending[order] + 1} | ({pending[order]} if order in at.uncertain else set())
            assert attempts in counted, "attempts come from nowhere"

    def _judge_dropped(self, stored: Stored, reason: moves.DropReason) -> None:
        self.note(f"dropped {reason}")
        if reason is moves.DropReason.EXPIRED:
            assert self._has_expired(stored)
        else:
            assert "dead" in self.server.fates[stored.event], "said to be dead, and is not"

    def _judge_withdrawn(self, at: Connection, order: Order) -> None:
        self.note("withdrawn")
        at.withdrawn.add(order)
        assert self.server.ever[order].shared, "withdrawn, and no other session can have acked it"
        assert order in at.here, "withdrawn and never sent"
        assert order in self.server.released or order in self.elsewhere or at.disturbed, (
            "withdrawn, and still to be acked"
        )

    def _judge_caught_up(self, at: Connection) -> None:
        assert not at.caught_up, "caught up twice"
        at.caught_up = True
        for order in at.opening - set(at.here):
            stored = self.server.ever[order]
            handled = order in self.said or order in self.elsewhere or self.server.fates[stored.event]
            skipped = stored.filtered or stored.poison or self._has_expired(stored) or order in self.server.released
            gone = order not in self.server.stream or at.disturbed
            assert handled or skipped or gone, f"caught up without {order}"

    def _has_expired(self, stored: Stored) -> bool:
        return stored.expires_ms is not None and stored.expires_ms <= self.now_ms

    def judge_state(self, at: Connection) -> None:
        """What holds whenever the machine is at rest."""
        machine = at.machine
        if machine.in_flight <= at.window and at.reading is None:
            at.bound = at.window
        assert 0 <= machine.in_flight <= at.bound, "the window is exceeded"
        held = self.held(at)
        assert sum(stored.size_bytes for stored in held) == machine.held_bytes
        assert machine.in_flight <= len(held) <= min(machine.outstanding, 2 * at.widest)
        for stored in held:
            assert stored.poison or stored.order in at.here, "held and never sent"
            assert stored.order not in self.said, "acked and still held"
        waiting = [stored.order for stored in held if stored.order in at.nacked.keys() - at.asked - at.failed]
        assert machine.in_flight == len(held) - len(waiting), "a nacked entry takes room"
        if (
            machine.phase is Phase.LIVE
            and machine.room
            and not machine.wants_read
            and not at.reading
            and not at.attaching
        ):
            assert at.caught_up, "has nothing to read and is not caught up"
            unread = [order for order in self.server.unread if order <= at.stored_then]
            assert at.disturbed or not unread, "has something to read and does not"
        if at.opened and not at.disturbed:
            cursor = entry_order(machine.cursor)
            assert cursor == (0, 0) or cursor in self.server.ever
            owed = [stored.order for stored in held if stored.order not in at.opening]
            assert all(cursor < order for order in owed), "the cursor is ahead of what is owed"

    def held(self, at: Connection) -> list[Stored]:
        """What the machine holds: each size is a bit of the sum."""
        held_bytes = at.machine.held_bytes
        return [stored for stored in self.server.ever.values() if stored.size_bytes & held_bytes]
