"""A command: its words, what its answer means, and where it has to go. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

import hiredis

from eventbus.errors import StoreError
from eventbus.record import record
from eventbus.store.scripts import all_scripts

__all__ = ["Argument", "Command", "key_of", "nothing_of", "pack", "script_loads"]

T = TypeVar("T")
Argument = str | bytes | int

# Commands without a key: any server will do, unless the caller names one.
_KEYLESS: Final = frozenset(("ASKING", "CLIENT", "CONFIG", "ECHO", "INFO", "PING", "SCAN", "SCRIPT", "TIME", "WAIT"))
# Where the key of the others stands: for all that are not named here, it is the word after the command's name.
_KEY_AT: Final = {"EVALSHA": 3, "MEMORY": 2, "OBJECT": 2, "XGROUP": 2, "XINFO": 2}


@record()
class Command(Generic[T]):
    """A command and how its answer is read.

    Attributes:
        arguments: the words.
        parse: makes the result, which may be an error, of the answer and of the primary that gave it (`Link.primary`).
        scripted: it is an EVALSHA, to be repeated when the server does not know the script.
        pinned: it goes to the primary that stood when it was called, or fails: another one may have lost what came
            before, and the caller wants to know first (D6).
        key: what decides where it goes, for a command that has no key of its own; None: the first of its keys.
        wanted: asked before it is sent after a wait for a connection: whether it still makes sense; None: always.
    """

    arguments: tuple[Argument, ...]
    parse: Callable[[Any, str], T | StoreError]
    scripted: bool = False
    pinned: bool = False
    key: str | None = None
    wanted: Callable[[], bool] | None = None


def key_of(command: Command[Any]) -> str | None:
    """The key whose slot decides where a command goes, None when any server will do."""
    if command.key is not None:
        return command.key
    words = command.arguments
    name = words[0]
    if name in _KEYLESS:
        return None
    place = _KEY_AT.get(str(name), 1)
    if name == "EVALSHA" and words[2] == 0:
        return None
    key = words[place]
    return key if isinstance(key, str) else str(key, "utf-8") if isinstance(key, bytes) else str(key)


def pack(words: Sequence[Argument]) -> bytes:
    """A command as it goes over the wire."""
    packed: bytes = hiredis.pack_command(tuple(words))  # type: ignore[arg-type]  # its stub names a tuple of one word
    return packed


def nothing_of(_reply: Any, _primary: str) -> None:
    """Reads an answer that nobody asks for."""


def script_loads() -> Sequence[tuple[Argument, ...]]:
    """The commands that make all scripts known to a server."""
    return [("SCRIPT", "LOAD", script.text) for script in all_scripts().values()]
