"""How much may wait in all lanes of a store together, so that a lane which stands still takes no room from the others.

Most of the room is for whoever comes first. Beyond it each lane still has a little of its own: where the users of a
primary that is away have filled all the rest, what the others say goes on, for it waits for milliseconds only. Pure.
"""

from __future__ import annotations

__all__ = ["Place", "Room"]


class Room:
    """What all lanes hold.

    Args:
        most: what they may hold together.
        own: what each lane may hold all the same.
    """

    __slots__ = ("held", "most", "own")

    def __init__(self, most: int, own: int) -> None:
        self.most = most
        self.own = own
        self.held = 0

    def __repr__(self) -> str:
        return f"<Room {self.held} of {self.most}>"


class Place:
    """What one lane holds of a room.

    Args:
        room: that of all lanes.
    """

    __slots__ = ("_room", "held")

    def __init__(self, room: Room) -> None:
        self._room = room
        self.held = 0

    @property
    def held_by_all(self) -> int:
        """What all lanes hold."""
        return self._room.held

    def take(self, weight: int) -> bool:
        """Holds so much more. Returns False, and holds no more, when there is no room for it."""
        room = self._room
        if room.held + weight > room.most and self.held + weight > room.own:
            return False
        room.held += weight
        self.held += weight
        return True

    def give_back(self, weight: int) -> None:
        """Holds so much less."""
        self._room.held -= weight
        self.held -= weight
