"""What every part of a `RedisStore` has: the data connections and the names of keys."""

from __future__ import annotations

from typing import TypeVar

from eventbus.config import StoreSettings
from eventbus.errors import StoreError
from eventbus.store.answers import scan_page
from eventbus.store.command import Argument, Command
from eventbus.store.commands import Commands
from eventbus.store.keys import Keys
from eventbus.store.links import Links

__all__ = ["Linked"]

T = TypeVar("T")


class Linked:
    """The base of the parts.

    Args:
        link: the data connections, also an attribute.
        keys: the names, also an attribute.
        commands: of the installation; its settings are the attribute `settings`.
    """

    def __init__(self, link: Links, keys: Keys, commands: Commands) -> None:
        self.link = link
        self.keys = keys
        self.settings: StoreSettings = commands.settings
        self._commands = commands

    async def _call(self, command: Command[T]) -> T:
        result = await self.link.execute(command)
        if isinstance(result, StoreError):
            raise result
        return result

    async def _scan(self, at: str, *words: Argument) -> tuple[list[str], str]:
        """One round of SCAN over all primaries, one after the other.

        Args:
            at: where the last round ended, empty to begin.
            words: MATCH, COUNT, TYPE.

        Returns:
            Some keys, perhaps none, and where to go on: empty when all was seen. In a Cluster the place begins with the
            address of a primary; keys that move meanwhile may be missed or seen twice.
        """
        places = sorted(await self.link.primaries(), key=str)
        name, _, cursor = at.rpartition("/")
        place = next((place for place in places if str(place) >= name), None)
        if place is None:
            return [], ""
        if name and str(place) != name:
            cursor = "0"  # that primary is gone; its slots are at another
        answer = await self.link.execute(Command(("SCAN", cursor or "0", *words), scan_page), at=place)
        if isinstance(answer, StoreError):
            raise answer
        cursor, keys = answer
        if len(places) == 1 and not self.link.scattered:
            return keys, "" if cursor == "0" else cursor
        if cursor != "0":
            return keys, f"{place}/{cursor}"
        following = next((other for other in places if str(other) > str(place)), None)
        return keys, "" if following is None else f"{following}/0"
