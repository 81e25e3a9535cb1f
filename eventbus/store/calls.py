"""Calls on their way: a command and who waits for its answer."""

from __future__ import annotations

import asyncio
from typing import Any

from eventbus.store.command import Command, pack

__all__ = ["Call", "Results"]


class Results:
    """The results of calls that were made together; the future ends with the last of them."""

    __slots__ = ("future", "missing", "results")

    def __init__(self, future: asyncio.Future[list[Any]], count: int) -> None:
        self.future = future
        self.missing = count
        self.results: list[Any] = [None] * count

    def put(self, place: int, result: Any) -> None:
        """One of them has come."""
        self.results[place] = result
        self.missing -= 1
        if not self.missing and not self.future.done():
            self.future.set_result(self.results)


class Call:
    """A command on its way; its result goes to a future, or to a place among others.

    Attributes:
        packed: as it goes over the wire.
        asking: ASKING goes before it.
        loads: how often its script was loaded for it.
        hops: how often a server sent it elsewhere.
        due: loop time by which its answer has to come; 0 before it was sent.
        until: loop time up to which it waits for a server; 0 before it had to.
    """

    __slots__ = ("asking", "command", "due", "future", "hops", "loads", "packed", "place", "results", "until")

    def __init__(
        self,
        command: Command[Any],
        future: asyncio.Future[Any] | None = None,
        results: Results | None = None,
        place: int = 0,
    ) -> None:
        self.command = command
        self.packed = pack(command.arguments)
        self.future = future
        self.results = results
        self.place = place
        self.asking = False
        self.loads = self.hops = 0
        self.due = self.until = 0.0

    @property
    def is_unwanted(self) -> bool:
        """Whether nobody has a use for it any more."""
        wanted = self.command.wanted
        return wanted is not None and not wanted()

    def resolve(self, result: Any) -> None:
        """It has ended with a value, which may be an error."""
        if self.results is not None:
            self.results.put(self.place, result)
        elif self.future is not None and not self.future.done():
            self.future.set_result(result)
