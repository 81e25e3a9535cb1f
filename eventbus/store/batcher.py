"""Moved to `eventbus.store.command`."""

from eventbus.store.command import Argument, Command, pack

__all__ = ["Argument", "Command", "pack"]
