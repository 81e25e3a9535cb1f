"""Slots of a Cluster that leave a primary and come back between two readings of the map. Pure.

To the map they never left. But where they were in between a failover may have taken back what they had, and they came
home with less. A primary that takes a slot gives itself a new number (its config epoch); one that has a new number and
no slot more than before took one that it had before.
"""

from __future__ import annotations

from eventbus.store.topology import Address, SlotMap

__all__ = ["Returning"]


class Returning:
    """Remembers of each primary its number and its slots."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[Address, tuple[str, int, SlotMap]] = {}

    def keep(self, primaries: SlotMap) -> None:
        """Forget all primaries but these."""
        self._known = {address: known for address, known in self._known.items() if address in primaries.primaries}

    def note(self, address: Address, primary: str, number: int, slots: SlotMap) -> bool:
        """Note how a primary stands.

        Args:
            address: where it is.
            primary: what it is called, see `eventbus.store.answers.primary_named`.
            number: its config epoch. Redis: CLUSTER INFO, `cluster_my_epoch`.
            slots: the map as it was read right before.

        Returns:
            Whether a slot has left it and come back since the last time.
        """
        before = self._known.get(address)
        self._known[address] = (primary, number, slots)
        if before is None or before[0] != primary or before[1] >= number:
            return False
        return not set(slots.slots(address)) - set(before[2].slots(address))
