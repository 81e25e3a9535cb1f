"""The Lua scripts: one operation a file in `lua/`, each with a header that says its KEYS, ARGV, units and returns.

A line `--@include name` stands for the file `lua/shared/name.lua`. Scripts are loaded at the start of each connection
and called by their hash; a call whose script is missing is repeated after loading (`NOSCRIPT`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Final

__all__ = ["NAMES", "Script", "all_scripts", "parse_script", "script"]

NAMES: Final = (
    "ack",
    "ack_mixed",
    "answer",
    "append",
    "append_run",
    "ask",
    "asked",
    "attach",
    "audit",
    "away",
    "beat_node",
    "claim_run",
    "close_inbound",
    "command",
    "confirm",
    "dead_letter",
    "detach",
    "due",
    "end_session",
    "forget_user",
    "heartbeat",
    "history",
    "nodes",
    "online",
    "partition",
    "pending",
    "probe",
    "put_back",
    "questions",
    "read",
    "recheck",
    "redeliver",
    "release",
    "renew_lease",
    "request_run",
    "revocations",
    "revoke",
    "send_again",
    "sessions",
    "settle",
    "spend",
    "take_commands",
    "take_off",
    "text_append",
    "text_close",
    "threads",
    "waiting",
)

_INCLUDE: Final = re.compile(r"^--@include (\w+)$", re.MULTILINE)
_HEADER_LINE: Final = re.compile(r"^-- {3}(\w+)(\.\.\.)?  +(\S.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A script and what its header promises.

    Attributes:
        name: the name of its file.
        text: what the server runs.
        sha: what it is called by.
        keys: the names of its KEYS, in order.
        repeated_keys: those of them that come as a group, again and again.
        arguments: the names of its ARGV, in order; those named in `repeated` come as a group, again and
            again.
        repeated: the names of the group.
        returns: its answer, in words.
    """

    name: str
    text: str
    sha: str
    keys: tuple[str, ...]
    repeated_keys: tuple[str, ...]
    arguments: tuple[str, ...]
    repeated: tuple[str, ...]
    returns: str


def parse_script(name: str, source: str, shared: dict[str, str]) -> Script:
    """Make a script of its source.

    Args:
        name: the name of its file.
        source: the file, with its includes.
        shared: the text of each file that may be included.

    Raises:
        ValueError: the header is not as it must be.
    """
    header, sections = _header(name, source)
    if list(sections) != ["KEYS", "ARGV", "Returns"] or not header:
        raise ValueError(f"{name}.lua: the header must say what it does, KEYS, ARGV and Returns")
    names: dict[str, list[tuple[str, bool]]] = {"KEYS": [], "ARGV": []}
    for section, found in names.items():
        for line in sections[section]:
            match = _HEADER_LINE.match(line)
            if match is None:
                raise ValueError(f"{name}.lua: {section} has the line {line!r}")
            found.append((match[1], match[2] is not None))
    text = source
    while _INCLUDE.search(text):
        text = _INCLUDE.sub(lambda match: shared[match[1]].strip(), text)
    return Script(
        name=name,
        text=text,
        sha=sha1(text.encode(), usedforsecurity=False).hexdigest(),
        keys=tuple(key for key, _ in names["KEYS"]),
        repeated_keys=tuple(key for key, again in names["KEYS"] if again),
        arguments=tuple(argument for argument, _ in names["ARGV"]),
        repeated=tuple(argument for argument, again in names["ARGV"] if again),
        returns=" ".join(line.removeprefix("--").strip() for line in sections["Returns"]),
    )


def _header(name: str, source: str) -> tuple[list[str], dict[str, list[str]]]:
    first, *lines = source.splitlines()
    if not first.startswith("#!lua"):
        raise ValueError(f"{name}.lua: the first line must be #!lua and its flags")
    what: list[str] = []
    sections: dict[str, list[str]] = {}
    for line in lines:
        if not line.startswith("--") or line.startswith("--@"):
            break
        title = line.removeprefix("-- ")
        if title in ("KEYS", "ARGV", "Returns"):
            sections[title] = []
        elif sections:
            list(sections.values())[-1].append(line)
        elif line != "--":
            what.append(title)
    return what, sections


@cache
def all_scripts() -> dict[str, Script]:
    """All scripts by name, read once."""
    folder = files("eventbus.store") / "lua"
    shared = {
        item.name.removesuffix(".lua"): item.read_text()
        for item in (folder / "shared").iterdir()
        if item.name.endswith(".lua")
    }
    return {name: parse_script(name, (folder / f"{name}.lua").read_text(), shared) for name in NAMES}


def script(name: str) -> Script:
    """A script by name. Raises: KeyError."""
    return all_scripts()[name]
