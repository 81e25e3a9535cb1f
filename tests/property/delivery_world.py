"""One session played out: its store, its client, its connections one after another, and the node around the delivery
machine as the shells play it. At most one read and one attach are under way; acks and releases are repeated until the
store has answered, other steps are not. What does not apply at the moment does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from eventbus import moves
from eventbus.delivery import TABLE, Delivery, Phase
from eventbus.ids import EntryId, entry_order
from eventbus.redelivery import RedeliveryPolicy
from eventbus.store import GapReason
from tests.property.delivery_judge import (
    ACK_TIMEOUT_MS,
    NACK_WAIT_MS,
    UNKNOWN,
    Attaching,
    Call,
    Calling,
    Connection,
    Judge,
    Reading,
)
from tests.property.delivery_model import ENTRY_ZERO, Order, name

NEVER_MS = 2**61


class World(Judge):
    """The session and everything around it."""

    def __init__(self, *, max_deliveries: int = 3, window: int = 2) -> None:
        super().__init__(
            RedeliveryPolicy(
                ack_timeout_ms=ACK_TIMEOUT_MS,
                max_deliveries=max_deliveries,
                nack_wait_ms=NACK_WAIT_MS,
                max_wait_ms=3_000,
            )
        )
        self.tokens = 0
        self.events = 0
        self.late_reads: list[tuple[int, moves.ReadNew | moves.ReadPending]] = []
        self.left_behind: list[tuple[int, Call]] = []
        self.messages: list[Order] = []
        self.at = self._connection(window)

    # --- the publisher, and what happens to data ----------------------------------------------------------------------

    def publish(self, count: int = 1, *, kind: str = "", life_ms: int = 0, woken: bool = True) -> None:
        """Stores events: plain ones, or `filtered`, `poison`, `expiring`, `shared`."""
        for _ in range(count):
            self.events += 1
            self.server.append(
                event=self.events,
                expires_ms=self.now_ms + life_ms if kind == "expiring" else None,
                filtered=kind == "filtered",
                poison=kind == "poison",
                shared=kind == "shared",
            )
        if woken:
            self.at.stored_then = self.server.last
            self.feed(moves.Woken())

    def publish_under_a_read(self, count: int) -> None:
        """Events are stored, and told, between a read and its answer."""
        self.execute_read()
        self.publish(count)
        self.answer_read()

    def trim(self, count: int) -> None:
        """The cap takes the oldest, unread ones only where the machine can notice it: a mark in the store does the
        rest.
        """
        unread = set(self.server.unread)
        if self.at.covered or not unread.intersection(list(self.server.stream)[:count]):
            self.server.trim(count)

    def trim_while_away(self, turns: int) -> None:
        """The cap takes what nobody has read, and the connection that is told of it ends soon."""
        self.connect(3)
        self.publish(3)
        self.trim(len(self.server.stream) - 1)
        for _ in range(turns):
            self.turn()
        self.connect(3)

    def lose_group(self) -> None:
        """The session's group vanishes."""
        self.server.lose_group()
        self.at.disturbed = self.data_was_lost = True

    def fail_over(self, count: int, *, clock_behind: bool) -> None:
        """The newest entries are gone, and every data connection, so every session is attached again."""
        self.server.roll_back(count, clock_behind=clock_behind)
        self.at.disturbed = self.data_was_lost = True
        self.late_reads.clear()
        for calling in list(self.at.calls):
            self._fail(calling)
        self.fail_read()
        if self.at.attaching is not None:
            self.at.attaching.answer = None
        self.reattach()

    # --- the node: attaching ------------------------------------------------------------------------------------------

    def connect(self, window: int) -> None:
        """The client comes back, perhaps before its old connection was found to be gone."""
        old = self.at
        self.left_behind += [(old.token, calling.call) for calling in old.calls if calling.answer is None]
        if old.reading is not None and old.reading.answer is None:
            self.late_reads.append((old.token, old.reading.request))
        assert old.machine.handle(moves.Closed(), self.now_ms) == []
        assert (old.machine.in_flight, old.machine.held_bytes, old.machine.outstanding) == (0, 0, 0)
        self.at = self._connection(window)

    def _connection(self, window: int) -> Connection:
        self.tokens += 1
        machine = Delivery(self.policy, window=window, cursor=self._handled(), max_held_bytes=1 << 4096)
        return Connection(
            token=self.tokens, machine=machine, window=window, bound=window, widest=window, attaching=Attaching()
        )

    def _handled(self) -> EntryId:
        """The highest id up to which the client has handled everything."""
        cursor = ENTRY_ZERO
        for order in sorted(self.sent):
            if order not in self.said:
                break
            cursor = name(order)
        return cursor

    def reattach(self) -> None:
        """The subscription was renewed, a data connection was lost, or the sweep found something."""
        if self.at.opened and self.at.attaching is None:
            self.at.attaching = Attaching()
            self.feed(moves.ReattachStarted())

    def execute_attach(self) -> None:
        """The store carries the attach out."""
        at = self.at
        if at.attaching is None:
            return
        cursor = at.machine.cursor if at.opened else self._handled()
        answer = self.server.attach(at.token, cursor, takes_over=not at.opened)
        assert answer is not None
        self.judge_forgotten()
        at.attaching.answer = answer
        at.covered = answer.position != ENTRY_ZERO
        at.attaching.stored_then = self.server.last
        if answer.gap is not None and answer.gap.reason is GapReason.ROLLBACK:
            at.disturbed = True
        position = entry_order(answer.position)
        pending = self.server.group.pending if self.server.group else {}
        if not at.opened:
            assert self.data_was_lost or max(self.sent, default=position) <= max(position, entry_order(cursor))
            at.knows = max(position, entry_order(cursor))
            at.disturbed |= any(order > position for order in pending)
        # Once the group's position was lost or rolled back, only the client knows what earlier connections have sent.
        known = max([at.knows, *at.here])
        self.sent = {order: n for order, n in self.sent.items() if order <= known or order in pending}

    def lose_attach(self) -> None:
        """No answer comes: the node tries again."""
        if self.at.attaching is not None:
            self.at.attaching.answer = None

    def answer_attach(self) -> None:
        """The answer comes."""
        at = self.at
        if at.attaching is None:
            return
        if at.attaching.answer is None:
            self.execute_attach()
        answer, stored_then, at.attaching = at.attaching.answer, at.attaching.stored_then, None
        assert answer is not None
        at.stored_then = stored_then
        if not at.opened:
            at.opening = answer.opening
        at.opened = True
        self.feed(moves.Opened(position=answer.position, tail=answer.tail, pending=answer.pending, gap=answer.gap))

    # --- the node: reading --------------------------------------------------------------------------------------------

    def write_read(self) -> None:
        """The machine is asked what to read."""
        at = self.at
        if at.reading is not None:
            assert at.machine.take_read() is None, "two reads at a time"
        elif at.opened:
            wanted = at.machine.wants_read
            request = at.machine.take_read()
            assert wanted is (request is not None)
            if request is not None:
                at.reading = Reading(request)

    def execute_read(self) -> None:
        """The store carries the read out."""
        reading = self.at.reading
        if reading is not None and reading.answer is None:
            reading.answer = self.server.read(self.at.token, reading.request, self.now_ms)

    def answer_read(self) -> None:
        """The answer comes."""
        self.execute_read()
        at = self.at
        reading, at.reading = at.reading, None
        if reading is None:
            return
        if isinstance(reading.answer, moves.NewItems):
            at.covered = len(reading.answer.items) == reading.request.count
            self.feed(reading.answer)
        elif isinstance(reading.answer, moves.PendingItems):
            self.feed(reading.answer)
        else:
            assert reading.answer == "no_group"
            self.feed(moves.ReadFailed())

    def fail_read(self, *, late: bool = False) -> None:
        """No answer comes; a request that has not been carried out yet may be, later."""
        at = self.at
        reading, at.reading = at.reading, None
        if reading is None:
            return
        if late and reading.answer is None:
            self.late_reads.append((at.token, reading.request))
        self.feed(moves.ReadFailed())

    def lose_read(self, *, executed: bool) -> None:
        """A read is written, perhaps carried out, and not answered."""
        self.write_read()
        if executed:
            self.execute_read()
        self.fail_read()

    def carry_out_late_read(self) -> None:
        """A request that everybody had given up takes effect, if the connection still has the session."""
        if self.late_reads:
            token, request = self.late_reads.pop(0)
            answer = self.server.read(token, request, self.now_ms)
            if isinstance(answer, moves.NewItems) and answer.items and self.at.attaching is None:
                self.at.disturbed = True

    def sweep(self) -> None:
        """The heartbeat's answer: more is pending than this side knows of, or something is unread."""
        at, group = self.at, self.server.group
        if not at.opened or at.reading is not None:
            return
        if group is None or len(group.pending) > at.machine.outstanding:
            self.reattach()
        elif self.server.unread:
            self.feed(moves.Woken())

    # --- the node: steps ----------------------------------------------------------------------------------------------

    def carry_out(self, index: int = 0) -> None:
        """A call takes effect, and its answer is on the way."""
        at = self.at
        if not at.calls:
            return
        calling = at.calls[index % len(at.calls)]
        # The acks of a cycle go out before its reads, those of the next one after their answers.
        is_early = isinstance(calling.call, moves.Acknowledge)
        if calling.answer is None and not (is_early and self._is_read_executed()):
            calling.answer = self._carried_out(at.token, calling.call)
            assert calling.answer is not None

    def _is_read_executed(self) -> bool:
        return self.at.reading is not None and self.at.reading.answer is not None

    def answer_call(self, index: int = 0) -> None:
        """Its answer comes."""
        if not self.at.calls:
            return
        calling = self.at.calls[index % len(self.at.calls)]
        self.carry_out(index)
        # Steps follow the reads of their cycle, and so do their answers.
        if calling.answer is not None and not self._is_read_executed():
            self.at.calls.remove(calling)
            self.feed(calling.answer)

    def fail_call(self, index: int = 0) -> None:
        """No answer comes, whether it took effect or not."""
        if self.at.calls:
            self._fail(self.at.calls[index % len(self.at.calls)])

    def _fail(self, calling: Calling) -> None:
        call = calling.call
        if isinstance(call, moves.Acknowledge | moves.Release):
            calling.answer = None
            return
        self.at.calls.remove(calling)
        ids = [call.id] if isinstance(call, moves.GiveUp) else [entry.id for entry in call.entries]
        if isinstance(call, moves.Redeliver):
            self.at.asked.difference_update(map(entry_order, ids))
            self.at.failed.update(map(entry_order, ids))
            self.at.uncertain.update(map(entry_order, ids))
        self.note(f"failed {type(call).__name__}")
        self.feed(moves.StepFailed(ids))

    def _carried_out(self, token: int, call: Call) -> moves.Input | None:
        """None is `lost`."""
        match call:
            case moves.Acknowledge():
                self.server.ack(call.ids)
                return moves.Stored(call.ids)
            case moves.Release():
                return moves.Stored(call.ids) if self.server.release(token, call.ids, call.reason) else None
            case moves.Redeliver():
                outcomes = self.server.redeliver(token, call.entries)
                if outcomes is None:
                    return None
                return moves.Redelivered([(e.id, outcome) for e, outcome in zip(call.entries, outcomes, strict=True)])
            case moves.GiveUp():
                dead = self.server.dead_letter(token, call.id)
                return None if dead is None else moves.GivenUp(call.id, dead=dead)

    def carry_out_what_was_left_behind(self) -> None:
        """What a gone connection asked for: an ack is good whoever brings it, everything else is fenced."""
        if not self.left_behind:
            return
        token, call = self.left_behind.pop(0)
        answer = self._carried_out(token, call)
        assert isinstance(call, moves.Acknowledge) or answer is None or self.server.holder == token

    # --- the client ---------------------------------------------------------------------------------------------------

    @property
    def owed(self) -> list[Order]:
        """What the client has on this connection and has not acked."""
        return [order for order in self.at.here if order not in self.said]

    def picked(self, pick: int) -> Order | None:
        """One of what is owed."""
        owed = self.owed
        return owed[pick % len(owed)] if owed else None

    def ack(self, orders: list[Order]) -> None:
        """The client acks."""
        if orders:
            self.say(self.at, orders)
            self.feed(moves.Acked([name(order) for order in orders]))

    def ack_all(self) -> None:
        """The client acks all that it has, up to the highest."""
        if owed := self.owed:
            self.say(self.at, owed)
            self.feed(moves.AckedUpTo(name(max(owed))))

    def ack_up_to(self, pick: int) -> None:
        """The client acks a part of what it has."""
        top = self.picked(pick)
        if top is not None:
            self.say(self.at, [order for order in self.owed if order <= top])
            self.feed(moves.AckedUpTo(name(top)))

    def ack_again(self, pick: int) -> None:
        """The client acks what it has acked, and what nobody knows."""
        said = sorted(self.said)
        if self.at.opened:
            again = [name(said[pick % len(said)])] * 2 if said else []
            self.feed(moves.Acked([*again, UNKNOWN]))
            self.feed(moves.AckedUpTo(ENTRY_ZERO))

    def ack_elsewhere(self, pick: int, *, tells: bool) -> None:
        """An ack comes through another door, or an operator's dead letter, and this node is told, or not."""
        order = self.picked(pick)
        if order is None:
            return
        self.elsewhere.add(order)
        if pick % 3 == 0 and self.server.letter_of_an_operator(name(order)):
            if tells:
                self.feed(moves.DeadLetteredElsewhere([name(order), UNKNOWN]))
        else:
            self.server.ack([name(order)])
        if tells:
            self.feed(moves.AckedElsewhere([name(order), UNKNOWN]))
            assert order not in [stored.order for stored in self.held(self.at)]

    def others_ack(self, pick: int, *, tells: bool) -> None:
        """Another session acks a shared event; the message for this node comes at once, or later."""
        server = self.server
        shared = [order for order, stored in server.stream.items() if stored.shared and order not in server.released]
        if shared:
            order = shared[pick % len(shared)]
            # What nobody here has read nobody here is told of.
            if server.ack_of_another_session(order):
                self.messages.append(order)
        if tells:
            self.hear()

    def others_ack_under_a_read(self, pick: int) -> None:
        """The message of an ack overtakes the answer of the read that brings its entry."""
        self.publish(kind="shared")
        self.write_read()
        self.execute_read()
        self.messages.clear()
        self.others_ack(pick, tells=True)
        self.answer_read()

    def hear(self) -> None:
        """A message of an ack by another session comes, to whichever connection is there."""
        if self.messages and self.at.opened:
            order = self.messages.pop(0)
            self.feed(moves.ReleasedElsewhere([name(order), UNKNOWN]))
            self.at.told.add(order)
            assert order not in [stored.order for stored in self.held(self.at)], "released and held"

    def nack(self, pick: int, delay_ms: int | None = None) -> None:
        """The client nacks."""
        order = self.picked(pick)
        if order is None:
            return
        # A nack of what is nacked, or about to be sent again or given up, says nothing new.
        at = self.at
        held = order in [stored.order for stored in self.held(at)]
        if held and order not in at.asked and (order not in at.nacked or order in at.failed):
            at.failed.discard(order)
            at.nacked[order] = self.now_ms + (NACK_WAIT_MS if delay_ms is None else delay_ms)
        self.feed(moves.Nacked(name(order), delay_ms))

    def work(self, pick: int) -> None:
        """The client is still at it."""
        order = self.picked(pick)
        if order is not None:
            if order not in self.at.nacked and order not in self.at.asked:
                self.at.timer[order] = self.now_ms
            self.feed(moves.Working([name(order), UNKNOWN]))

    def change_window(self, window: int) -> None:
        """Another window."""
        at = self.at
        asked = at.reading.request.count if at.reading else 0
        at.bound = max(window, at.machine.in_flight + asked)
        at.window = window
        at.widest = max(at.widest, window)
        self.feed(moves.WindowChanged(window))

    # --- time ---------------------------------------------------------------------------------------------------------

    def advance(self, ms: int) -> None:
        """Time passes."""
        self.now_ms += ms
        self.tick()

    def advance_to_what_is_due(self) -> None:
        """Time passes until the machine wants to be told."""
        if self.at.machine.due_ms < NEVER_MS:
            self.now_ms = max(self.now_ms, self.at.machine.due_ms)
            self.tick()

    def tick(self) -> None:
        """The wheel turns."""
        machine = self.at.machine
        if machine.due_ms > self.now_ms:
            assert not self.feed(moves.Clock()), "acts before it is due"
        else:
            self.feed(moves.Clock())
            if machine.due_ms <= self.now_ms:  # what it gave up made room for what waits
                self.feed(moves.Clock())
            assert machine.due_ms > self.now_ms, "is due again and again"

    def stall(self, ms: int) -> None:
        """The node stands still."""
        self.now_ms += ms
        self.at.timer = {order: since + ms for order, since in self.at.timer.items()}
        self.at.nacked = {order: until + ms for order, until in self.at.nacked.items()}
        assert self.feed(moves.Stalled(ms)) == []
        self.tick()

    # --- one after the other ------------------------------------------------------------------------------------------

    def feed(self, event: moves.Input) -> list[moves.Effect]:
        """Gives the machine an input and judges what comes of it."""
        at = self.at
        phase = at.machine.phase
        effects = at.machine.handle(event, self.now_ms)
        self.note(f"{phase} {type(event).__name__}")
        assert at.machine.phase in TABLE[phase, type(event)].to, f"{event} led from {phase} to {at.machine.phase}"
        at.calls += [Calling(effect) for effect in effects if isinstance(effect, Call)]
        self.judge(at, event, effects)
        if at.machine.reattach_wanted:
            self.reattach()
        return effects

    def turn(self, choice: int = 0) -> bool:
        """The node does one of the things that are to be done; False when nothing is."""
        at = self.at
        todo: list[Callable[[], object]] = []
        if at.attaching is not None:
            todo.append(self.answer_attach)
        if at.reading is not None:
            todo.append(self.answer_read)
        elif at.opened and at.machine.wants_read:
            todo.append(self.write_read)
        todo += [partial(self.answer_call, index) for index in range(len(at.calls))]
        if at.machine.due_ms <= self.now_ms:
            todo.append(self.tick)
        if todo:
            todo[choice % len(todo)]()
        return bool(todo)

    def settle(self, *, acks: bool) -> None:
        """A store that answers, and a client that acks all, or nothing: everything ends well, and soon."""
        self.publish()  # what was trimmed unread shows when there is something to read behind it
        while self.late_reads:
            self.carry_out_late_read()
        while self.left_behind:
            self.carry_out_what_was_left_behind()
        for _ in range(1_000):
            if not self.turn() and not self._rest(acks=acks):
                break
            self.judge_state(self.at)
        else:
            raise AssertionError("it never comes to rest")
        at, machine, group = self.at, self.at.machine, self.server.group
        assert machine.phase is Phase.LIVE
        assert (machine.in_flight, machine.held_bytes, machine.outstanding) == (0, 0, 0)
        assert machine.due_ms > NEVER_MS
        assert at.caught_up, "never caught up"
        assert group is not None
        assert not group.pending, "pending and nobody's"
        assert not self.server.unread, "never read"
        lost = [event for event, fates in self.server.fates.items() if not fates]
        assert not lost, f"lost without a word: {lost}"
        assert at.disturbed or machine.cursor == name(group.position)
        known = self.heard | at.gaps.keys() | self.server.forgiven
        unknown = {order for gap in self.server.noted for order in gap.orders} - known
        assert self.data_was_lost or not unknown, f"gone, and the client was not told: {unknown}"
        for order in at.here.keys() & self.server.released - self.said - at.withdrawn - at.dropped:
            stored = self.server.ever[order]
            assert at.disturbed or order in self.elsewhere or self._has_expired(stored), "released without a word"

    def _rest(self, *, acks: bool) -> bool:
        """What comes when the node has nothing to do: an ack, time, a sweep. Returns False when nothing is left."""
        group, machine = self.server.group, self.at.machine
        held = [stored.order for stored in self.held(self.at) if stored.order in self.at.here]
        if held and acks:
            self.ack(held)
        elif machine.due_ms < NEVER_MS:
            self.advance_to_what_is_due()
        elif group is None or len(group.pending) > machine.outstanding:
            self.sweep()
        else:
            assert not held, "held, and nothing will come of it"
            return False
        return True
