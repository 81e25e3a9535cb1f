"""A Redis stream as a data structure: entries, groups, pending entries, trimming that leaves pending ids behind.

It knows no clock and no I/O; times are arguments. What differs from a server: trimming is exact, never in whole nodes,
and `entries_read` is exact after every read (Redis 7.0 drifts behind trimmed ones; the store sets that right, D15).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from eventbus.ids import ENTRY_ZERO, EntryId, entry_order
from eventbus.store import StoredEntry

__all__ = ["Group", "MemoryStream", "Order", "Pending", "entry_id", "stored"]

Order = tuple[int, int]
"""An entry id as its sort key: milliseconds and sequence."""


def entry_id(order: Order) -> EntryId:
    """The text of a sort key."""
    return EntryId(f"{order[0]}-{order[1]}")


@dataclass(slots=True)
class Pending:
    """One pending entry: how often it was delivered, and when last."""

    attempts: int
    sent_ms: int


@dataclass(slots=True)
class Group:
    """A consumer group: how far it was delivered, and what waits for an ack.

    Attributes:
        position: the id last delivered.
        entries_read: how many of the entries ever added lie at or below `position`; None when nobody counted them.
    """

    position: Order
    entries_read: int | None
    pending: dict[Order, Pending] = field(default_factory=dict)

    def pending_after(self, after: EntryId = ENTRY_ZERO) -> list[Order]:
        """Pending ids above `after`, ascending."""
        low = entry_order(after)
        return sorted(order for order in self.pending if order > low)

    def drop(self, entries: Iterable[EntryId]) -> list[EntryId]:
        """XACK: take entries off the pending list. Returns those that were on it."""
        return [entry for entry in entries if self.pending.pop(entry_order(entry), None) is not None]


class MemoryStream:
    """One stream, by the rules of Redis."""

    __slots__ = ("_bodies", "_orders", "added", "bytes", "groups", "last")

    def __init__(self) -> None:
        self._orders: list[Order] = []
        self._bodies: dict[Order, bytes] = {}
        self.last: Order = (0, 0)
        self.added = 0
        self.bytes = 0
        self.groups: dict[str, Group] = {}

    def __len__(self) -> int:
        return len(self._orders)

    @property
    def first(self) -> Order | None:
        """The lowest id that is still there."""
        return self._orders[0] if self._orders else None

    @property
    def trimmed(self) -> int:
        """How many entries were added and are gone."""
        return self.added - len(self._orders)

    def add(self, body: bytes, now_ms: int) -> Order:
        """XADD with an id of the clock; when the clock stands or runs backwards the sequence goes on."""
        order = (now_ms, 0) if now_ms > self.last[0] else (self.last[0], self.last[1] + 1)
        self._orders.append(order)
        self._bodies[order] = body
        self.bytes += len(body)
        self.last = order
        self.added += 1
        return order

    def body(self, order: Order) -> bytes | None:
        """What an entry holds, None when it is not there."""
        return self._bodies.get(order)

    def __contains__(self, order: Order) -> bool:
        return order in self._bodies

    def after(self, order: Order, count: int | None = None) -> Sequence[Order]:
        """Ids above `order`, ascending, `count` at most."""
        start = bisect_right(self._orders, order)
        return self._orders[start : None if count is None else start + count]

    def at_or_below(self, order: Order) -> Order | None:
        """The highest id that is there and not above `order`."""
        index = bisect_right(self._orders, order)
        return self._orders[index - 1] if index else None

    def read_count(self, order: Order) -> int:
        """How many of the entries ever added lie at or below `order`, when nothing but trimming took entries away."""
        return self.added - (len(self._orders) - bisect_right(self._orders, order))

    def keep(self, count: int) -> int:
        """XTRIM MAXLEN: remove the oldest entries, pending or not, until `count` are left. Returns how many went."""
        return self._cut(max(0, len(self._orders) - count))

    def trim_below(self, order: Order) -> int:
        """XTRIM MINID: remove the entries below `order`, pending or not. Returns how many went."""
        return self._cut(bisect_left(self._orders, order))

    def _cut(self, count: int) -> int:
        for order in self._orders[:count]:
            self.bytes -= len(self._bodies.pop(order))
        del self._orders[:count]
        return count

    def create_group(self, name: str, position: Order, *, counted: bool = True) -> Group:
        """XGROUP CREATE, with ENTRIESREAD when it is counted."""
        group = Group(position=position, entries_read=self.read_count(position) if counted else None)
        self.groups[name] = group
        return group

    def move_group(self, group: Group, position: Order) -> None:
        """XGROUP SETID with ENTRIESREAD."""
        group.position = position
        group.entries_read = self.read_count(position)

    def read_group(self, group: Group, count: int, now_ms: int) -> list[Order]:
        """XREADGROUP `>`: deliver what is above the group's position and put it on the pending list."""
        orders = list(self.after(group.position, count))
        for order in orders:
            group.pending[order] = Pending(attempts=1, sent_ms=now_ms)
        if orders:
            self.move_group(group, orders[-1])
        return orders

    def lowest_needed(self) -> Order | None:
        """The lowest id that some group still reads or waits for; None when nobody needs any of the entries (D18)."""
        needed = []
        for group in self.groups.values():
            waiting = [order for order in group.pending if order in self._bodies]
            needed += [min(waiting)] if waiting else list(self.after(group.position, 1))
        return min(needed, default=None)

    def drop_after(self, order: Order) -> int:
        """What an asynchronous failover does: entries above `order`, and every trace of them, were never there."""
        start = bisect_right(self._orders, order)
        lost = self._orders[start:]
        for gone in lost:
            self.bytes -= len(self._bodies.pop(gone))
        del self._orders[start:]
        self.added -= len(lost)
        self.last = min(self.last, order)
        for group in self.groups.values():
            group.pending = {key: value for key, value in group.pending.items() if key <= order}
            if group.position > order:
                self.move_group(group, order)
        return len(lost)


def stored(stream: MemoryStream, orders: Sequence[Order]) -> Iterator[StoredEntry]:
    """The entries of these ids that are still there."""
    for order in orders:
        body = stream.body(order)
        if body is not None:
            yield StoredEntry(entry_id(order), body)
