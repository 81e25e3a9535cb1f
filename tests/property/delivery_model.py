"""A model of the store behind one session, small enough to be believed: a stream, one group, its pending list, a
fencing token.

It does what the scripts do as far as the delivery machine can tell, and it remembers the fate of each event. What was
trimmed is told again by each attach, until the client has handled what came behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from eventbus.ids import ENTRY_ZERO, EntryId, entry_order
from eventbus.moves import Item, NewItems, PendingItems, ReadNew, ReadPending
from eventbus.store import GapReason, Redelivery, RedeliveryOutcome, ReleaseReason, StoreGap

Order = tuple[int, int]
ZERO: Order = (0, 0)


def name(order: Order) -> EntryId:
    """The entry id of a sort key."""
    return EntryId(f"{order[0]}-{order[1]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An entry. Its size is a power of two of its own, so that a sum of sizes tells which entries it is made of."""

    order: Order
    event: int
    size_bytes: int
    expires_ms: int | None
    filtered: bool
    poison: bool
    shared: bool


@dataclass(slots=True)
class Group:
    """A consumer group: the last id handed out, and the delivery count of what waits for an ack."""

    position: Order
    pending: dict[Order, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldGap(StoreGap):
    """A gap, and what is lost in it."""

    orders: tuple[Order, ...]


@dataclass(slots=True)
class Noted:
    """A gap of which the client may not have heard; it has when it has handled `upto`, which came behind it."""

    upto: Order
    orders: tuple[Order, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """The answer to an attach; `opening` is what the session has to get before it is caught up."""

    position: EntryId
    tail: EntryId
    pending: int
    gap: StoreGap | None
    opening: frozenset[Order]


class Server:
    """The store of one session.

    Attributes:
        unread_gone: what was trimmed unread, and no read has come behind it.
        noted: what was trimmed, and of which the client may not have heard.
        forgotten: what the store takes the client to have heard of by its cursor.
        forgiven: what it takes it to have heard of because the entry behind is pending no more.
        released: shared entries that this session or another has acked.
        released_unread: those of them that this session had not read when another did.
    """

    def __init__(self) -> None:
        self.stream: dict[Order, Stored] = {}
        self.ever: dict[Order, Stored] = {}
        self.last: Order = ZERO
        self.group: Group | None = None
        self.holder = 0
        self.unread_gone: list[Order] = []
        self.noted: list[Noted] = []
        self.forgotten: set[Order] = set()
        self.forgiven: set[Order] = set()
        self._told = (0, 0)
        self._hole = False
        self.fates: dict[int, set[str]] = {}
        self.released: set[Order] = set()
        self.released_unread: set[Order] = set()
        self._read_and_lost: set[Order] = set()  # read by this session, and forgotten with its group
        self._clock_stands = False

    # --- publishing, and what goes wrong with data ------------------------------------------------------------------

    def append(
        self,
        *,
        event: int,
        expires_ms: int | None = None,
        filtered: bool = False,
        poison: bool = False,
        shared: bool = False,
    ) -> None:
        """Stores an event; after a rollback to a server whose clock is behind, ids stay below those that were seen."""
        order = (self.last[0], self.last[1] + 1) if self._clock_stands else (self.last[0] + 1, 0)
        size_bytes = 1 << len(self.ever)
        stored = Stored(
            order=order,
            event=event,
            size_bytes=size_bytes,
            expires_ms=expires_ms,
            filtered=filtered,
            poison=poison,
            shared=shared,
        )
        self.stream[order] = self.ever[order] = stored
        self.last = order
        self.fates.setdefault(event, set())

    @property
    def unread(self) -> list[Order]:
        """What the group has not handed out."""
        position = self.group.position if self.group else ZERO
        return [order for order in self.stream if order > position]

    def trim(self, count: int) -> None:
        """The oldest entries go, read or not, pending or not."""
        unread = set(self.unread)
        for order in list(self.stream)[:count]:
            del self.stream[order]
            if self.group is None:
                self.fates[self.ever[order].event].add("gone before the group was made")
            elif order in unread:
                self.unread_gone.append(order)

    def lose_group(self) -> None:
        """The group vanishes with its pending list; what was trimmed under it is in nobody's books any more."""
        if self.group is not None:
            self._read_and_lost.update(self.group.pending)
            for order in [*self.group.pending, *self.unread_gone]:
                if order not in self.stream:
                    self.fates[self.ever[order].event].add("lost with the group")
            self.unread_gone.clear()
            self.noted.clear()
            self.group = None

    def roll_back(self, count: int, *, clock_behind: bool) -> None:
        """A failover: the newest entries were never there. Their publisher stores them again, under other ids."""
        gone = [self.stream.pop(order) for order in list(self.stream)[-count:]] if count else []
        if not gone:
            return
        self._clock_stands = clock_behind
        newest = max((order for order in self.ever if order < gone[0].order), default=ZERO)
        # No id is given twice: that takes a clock that is wrong to the millisecond.
        same_ms = [order for order in [*self.ever, newest] if order[0] == newest[0]]
        self.last = max(same_ms) if clock_behind else max(self.ever)
        if self.group is not None:
            self.group.position = min(self.group.position, newest)
            for stored in gone:
                self.group.pending.pop(stored.order, None)
        for stored in gone:
            self.append(
                event=stored.event,
                expires_ms=stored.expires_ms,
                filtered=stored.filtered,
                poison=stored.poison,
                shared=stored.shared,
            )

    # --- the calls ----------------------------------------------------------------------------------------------------

    def attach(self, token: int, cursor: EntryId, *, takes_over: bool) -> Attachment | None:
        """None is `lost`."""
        if not takes_over and self.holder != token:
            return None
        self.holder = token
        group = self.group = self.group or Group(ZERO)
        at = entry_order(cursor)
        unheard = self._unheard(group, at, forgets=takes_over)
        gap: StoreGap | None = None
        if at != ZERO and at not in self.stream and (at > self.last or min(self.stream, default=at) < at):
            surviving = max((order for order in self.stream if order < at), default=ZERO)
            group.position = min(group.position, surviving)
            gap = StoreGap(reason=GapReason.ROLLBACK, after=name(surviving), before=None)
        else:
            told = self._told[1] if self._told[0] == token else 0
            self._told = token, len(self.unread_gone)
            self._hole = self._hole or bool(self.unread_gone)
            gap = self._gap([*unheard, *self.unread_gone[told:]])
        return Attachment(
            position=name(group.position),
            tail=name(self.last),
            pending=len(group.pending),
            gap=gap,
            opening=frozenset([*group.pending, *self.unread]),
        )

    def _unheard(self, group: Group, cursor: Order, *, forgets: bool) -> list[Order]:
        """What was told to earlier connections, and the client may not have heard of."""
        unheard: list[Noted] = []
        for gap in self.noted:
            if cursor != ZERO and cursor >= gap.upto:
                self.forgotten.update(gap.orders if forgets else ())
            elif cursor == ZERO and group.position >= gap.upto and min(group.pending, default=gap.upto) > gap.upto:
                self.forgiven.update(gap.orders if forgets else ())
            else:
                unheard.append(gap)
        if forgets:
            self.noted = unheard
        return [order for gap in unheard for order in gap.orders]

    def _gap(self, orders: list[Order]) -> ToldGap | None:
        if not orders:
            return None
        behind = [order for order in self.stream if order > max(orders)]
        return ToldGap(
            reason=GapReason.TRIMMED,
            after=None,
            before=name(min(behind)) if behind else None,
            count=len(orders),
            orders=tuple(orders),
        )

    def _note(self, orders: Iterable[Order]) -> None:
        gone = tuple(orders)
        if gone:
            behind = [order for order in self.stream if order > max(gone)]
            self.noted.append(Noted(min(behind, default=self.last), gone))

    def read(self, token: int, read: ReadNew | ReadPending, now_ms: int) -> NewItems | PendingItems | str:
        """`lost` and `no_group` beside the answers."""
        if self.holder != token:
            return "lost"
        if isinstance(read, ReadPending):
            return self._page(read, now_ms)
        group = self.group
        if group is None:
            return "no_group"
        gap = None
        absent = read.verify is not None and entry_order(read.verify) not in self.stream
        if (self._hole or absent) and self.unread_gone:
            gap = self._gap(self.unread_gone[self._told[1] if self._told[0] == token else 0 :])
            self._note(self.unread_gone)
            self.unread_gone.clear()
            self._told, self._hole = (0, 0), False
        orders = self.unread[: read.count]
        for order in orders:
            group.pending[order] = 1
            group.position = order
        return NewItems(items=[self._item(order, 1, now_ms) for order in orders], gap=gap)

    def _page(self, read: ReadPending, now_ms: int) -> PendingItems:
        assert read.count > 0, "a page of nothing asks for everything"
        pending = self.group.pending if self.group else {}
        waiting = sorted(order for order in pending if order > entry_order(read.after))
        page = waiting[: read.count]
        items = [self._item(order, pending[order], now_ms) for order in page]
        return PendingItems(items=items, last=len(waiting) <= read.count)

    def _item(self, order: Order, attempts: int, now_ms: int) -> Item:
        stored = self.stream.get(order)
        if stored is None:
            return Item(id=name(order), payload=None, attempts=attempts)
        skip = None
        if stored.poison:
            return Item(
                id=name(order), payload=None, size_bytes=stored.size_bytes, attempts=attempts, poison="undecodable"
            )
        if order in self.released:
            skip = ReleaseReason.RELEASED
        elif stored.expires_ms is not None and stored.expires_ms <= now_ms:
            skip = ReleaseReason.EXPIRED
        elif stored.filtered:
            skip = ReleaseReason.FILTERED
        return Item(
            id=name(order),
            payload=stored.event,
            size_bytes=stored.size_bytes,
            expires_ms=stored.expires_ms,
            skip=skip,
            attempts=attempts,
            shared=stored.shared,
        )

    def ack(self, ids: Iterable[EntryId]) -> None:
        """XACK: not fenced."""
        gone = self._off(ids, "acked")
        self.released.update(order for order in gone if self.ever[order].shared)

    def ack_of_another_session(self, order: Order) -> bool:
        """Another session of the user is the first to ack a shared entry. Returns whether this one had read it."""
        self.released.add(order)
        if self._off([name(order)], "released by another session"):
            return True
        if order not in self._read_and_lost:  # else the answer that has it may still be on its way
            self.released_unread.add(order)
        return False

    def release(self, token: int, ids: Iterable[EntryId], reason: ReleaseReason) -> bool:
        """False is `lost`."""
        if self.holder != token:
            return False
        gone = self._off(ids, reason.value)
        if reason is ReleaseReason.TRIMMED:
            self._note(gone)
        return True

    def _off(self, ids: Iterable[EntryId], fate: str) -> list[Order]:
        pending = self.group.pending if self.group else {}
        gone = [entry_order(entry) for entry in ids if pending.pop(entry_order(entry), None) is not None]
        for order in gone:
            self.fates[self.ever[order].event].add(fate)
        return gone

    def redeliver(self, token: int, entries: Sequence[Redelivery]) -> list[RedeliveryOutcome] | None:
        """None is `lost`."""
        if self.holder != token:
            return None
        pending = self.group.pending if self.group else {}
        outcomes = []
        for entry in entries:
            order = entry_order(entry.id)
            if order not in pending:
                outcomes.append(RedeliveryOutcome.GONE)
            elif order not in self.stream:
                outcomes.append(RedeliveryOutcome.TRIMMED)
            else:
                pending[order] = entry.attempts
                outcomes.append(RedeliveryOutcome.READY)
        return outcomes

    def dead_letter(self, token: int, entry: EntryId) -> bool | None:
        """Whether it was pending; None is `lost`."""
        return None if self.holder != token else bool(self._off([entry], "dead"))

    def letter_of_an_operator(self, entry: EntryId) -> bool:
        """Whether it was pending; whose session it is does not matter."""
        return bool(self._off([entry], "dead"))


__all__ = ["ENTRY_ZERO", "ZERO", "Attachment", "Group", "Order", "Server", "Stored", "ToldGap", "name"]
