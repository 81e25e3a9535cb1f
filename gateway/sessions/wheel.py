"""A timing wheel: one for all connections of a node, in place of a timer for each. Pure: the node turns it.

An item is due at some time and stands in at most one slot. Making it earlier moves it; making it later costs nothing,
for an item that comes up too early is asked for its due time and put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar

__all__ = ["NEVER_MS", "Timed", "Wheel"]

NEVER_MS: Final = 2**62
"""A due time that does not come."""

_UP: Final = -2
"""The slot of what has come up and was not yielded yet; no item leaves it for a later one."""


class Timed(Protocol):
    """Something that wants to be woken. `wheel_slot` belongs to the wheel; -1 means that it stands in none."""

    wheel_slot: int

    @property
    def due_ms(self) -> int:
        """When it wants to be woken, on the node's monotonic clock."""


T = TypeVar("T", bound=Timed)


class Wheel(Generic[T]):
    """Items by the time they are due.

    Args:
        tick_ms: the width of a slot: how much later than its due time an item may come up.
    """

    def __init__(self, *, tick_ms: int, now_ms: int) -> None:
        self._tick_ms = tick_ms
        self._slots: dict[int, dict[T, None]] = {_UP: {}}
        self._next = now_ms // tick_ms

    def __len__(self) -> int:
        return sum(len(items) for items in self._slots.values())

    def place(self, item: T) -> None:
        """Takes `item.due_ms` into account; cheap when it did not become earlier."""
        due_ms = item.due_ms
        if due_ms >= NEVER_MS:
            return
        # A slot is turned when its last millisecond has passed, so that nothing comes up before it is due.
        slot = max(-(-due_ms // self._tick_ms), self._next)
        if item.wheel_slot != -1:
            if item.wheel_slot <= slot:
                return
            del self._slots[item.wheel_slot][item]
        item.wheel_slot = slot
        self._slots.setdefault(slot, {})[item] = None

    def remove(self, item: T) -> None:
        """Takes an item off the wheel; one that is not on it is no error."""
        if item.wheel_slot != -1:
            del self._slots[item.wheel_slot][item]
            item.wheel_slot = -1

    def turn(self, now_ms: int) -> Iterator[T]:
        """Yields every item whose slot has come, slot by slot.

        An item that still waits for later is put back and not yielded. An item that is removed meanwhile is not
        yielded either, and a turn that is left in the middle goes on with the next.
        """
        last = now_ms // self._tick_ms
        up = self._slots[_UP]
        if last >= self._next:
            # After a long stall there are fewer slots in use than slots to walk.
            slots = range(self._next, last + 1)
            passed = sorted(s for s in self._slots if _UP < s <= last) if len(slots) > len(self._slots) else slots
            self._next = last + 1
            # The last in is the first out, and the earliest slot shall be.
            for slot in reversed(passed):
                for item in self._slots.pop(slot, ()):
                    item.wheel_slot = _UP
                    up[item] = None
        while up:
            item, _ = up.popitem()
            item.wheel_slot = -1
            if item.due_ms <= now_ms:
                yield item
            else:
                self.place(item)
