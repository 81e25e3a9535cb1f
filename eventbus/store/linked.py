"""What every part of a `RedisStore` has: the data connections and the names of keys."""

from __future__ import annotations

from typing import TypeVar

from eventbus.config import StoreSettings
from eventbus.errors import StoreError
from eventbus.store.command import Command
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
