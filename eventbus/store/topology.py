"""Which server has what: hash slots, the map of a cluster, and what to do about each error of a server. Pure.

The slot of a key is that of its hash tag; since every key of the bus carries its partition's number as its tag, a
partition lies in one slot. The decisions are a table, by the first word of an error, which Redis keeps stable; the text
after it is for people.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

__all__ = [
    "LANES",
    "SLOTS",
    "Address",
    "Decision",
    "Redirect",
    "SlotMap",
    "Step",
    "decide",
    "lane_of",
    "parse_redirect",
    "slot_of",
]

SLOTS: Final = 16_384
"""How many hash slots every cluster has."""

LANES: Final = 12
"""How many lanes a store over a Cluster has: a multiple of the usual numbers of primaries."""

_CACHED_SLOTS: Final = 4_096


def slot_of(key: str | bytes) -> int:
    """The hash slot of a key or of a shard channel, from 0 to 16383.

    What stands between the first `{` and the first `}` after it is hashed in place of the key, unless it is empty.
    Redis: the specification of Cluster, "Hash tags"; CRC-16/XMODEM.
    """
    text = key.encode() if isinstance(key, str) else key
    opened = text.find(b"{")
    if opened >= 0:
        closed = text.find(b"}", opened + 1)
        if closed > opened + 1:
            return _slot_of_tag(text[opened + 1 : closed])
    return crc_hqx(text, 0) % SLOTS


@lru_cache(maxsize=_CACHED_SLOTS)
def _slot_of_tag(tag: bytes) -> int:
    return crc_hqx(tag, 0) % SLOTS


def lane_of(slot: int) -> int:
    """The lane of a slot, from 0 to `LANES` - 1.

    What is sent in one lane waits for one another, and for no other lane. A lane is a range of slots and for ever the
    same, while a primary's slots come and go: most lanes lie on one primary, so one that is away stops its own.
    """
    return slot * LANES // SLOTS


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Address:
    """Where a server listens; `host` is a name, or an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class SlotMap:
    """Which primary has which slot: one reading of the cluster, never changed.

    Args:
        owners: for each of the 16,384 slots its primary, None when no primary serves it.
    """

    __slots__ = ("_counts", "_owners", "primaries")

    def __init__(self, owners: Sequence[Address | None]) -> None:
        if len(owners) != SLOTS:
            raise ValueError(f"a map of {len(owners)} slots: a cluster has {SLOTS}")
        self._owners = tuple(owners)
        # By identity first: there are few objects, and to hash each of 16,384 addresses would take milliseconds.
        objects = {id(owner): owner for owner in self._owners}
        self.primaries: tuple[Address, ...] = tuple(sorted({one for one in objects.values() if one is not None}))
        """Every primary that has a slot, each once, in a stable order."""
        self._counts: dict[Address | None, int] | None = None

    @classmethod
    def single(cls, address: Address) -> SlotMap:
        """The map of one server that has every slot: no cluster at all."""
        return cls((address,) * SLOTS)

    @classmethod
    def from_slots(cls, reply: Any, asked: Address) -> SlotMap:
        """The map that an answer to CLUSTER SLOTS draws.

        Args:
            reply: `[[first, last, [host, port, id, ...], replicas...], ...]`, with bytes for texts.
            asked: the server that gave it: it stands for a host that is empty or null, as a server says of itself while
                it has not learnt its own address.

        Raises:
            ValueError: it is no such answer.
        """
        owners: list[Address | None] = [None] * SLOTS
        try:
            for line in reply:
                first, last, primary = line[:3]
                if not 0 <= first <= last < SLOTS:
                    raise ValueError(f"slots {first} to {last}")
                # With two primaries for a slot, while a cluster has not agreed, the later line wins: a wrong guess
                # costs a MOVED.
                owners[first : last + 1] = [_address(primary[0], primary[1], asked)] * (last - first + 1)
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(f"no answer to CLUSTER SLOTS: {error}") from None
        return cls(owners)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlotMap) and self._owners == other._owners

    def __hash__(self) -> int:
        return hash(self._owners)

    def __repr__(self) -> str:
        parts = [f"{address} {len(self.slots(address))}" for address in self.primaries]
        return f"<SlotMap {', '.join(parts) or 'empty'}>"

    def owner(self, slot: int) -> Address | None:
        """The primary of a slot, None when none serves it."""
        return self._owners[slot]

    def slots(self, primary: Address) -> list[int]:
        """The slots of a primary, rising."""
        return [slot for slot, owner in enumerate(self._owners) if owner == primary]

    def count(self, primary: Address | None) -> int:
        """How many slots a primary has; of None: how many no primary serves."""
        if self._counts is None:
            self._counts = {}
            for owner in {id(one): one for one in self._owners}.values():
                self._counts[owner] = self._owners.count(owner)
        return self._counts.get(primary, 0)

    @property
    def complete(self) -> bool:
        """Whether every slot has a primary."""
        return None not in self._owners

    def moved(self, slot: int, primary: Address) -> SlotMap:
        """The map after a MOVED: one slot has another primary."""
        if self._owners[slot] == primary:
            return self
        return SlotMap((*self._owners[:slot], primary, *self._owners[slot + 1 :]))

    def differing(self, other: SlotMap, slots: Iterable[int]) -> list[int]:
        """Which of these slots have another primary in the other map."""
        return [slot for slot in slots if self._owners[slot] != other._owners[slot]]


def _address(host: bytes | str | None, port: int, asked: Address) -> Address:
    name = host.decode() if isinstance(host, bytes) else host
    if not isinstance(port, int):
        raise TypeError(f"the port is {port!r}")
    # "?" is what a server says that prefers host names and was given none (cluster-preferred-endpoint-type).
    return Address(host=name if name and name != "?" else asked.host, port=port)


# --- what to do about an error ----------------------------------------------------------------------------------------


class Step(StrEnum):
    """What becomes of a command that a server refused."""

    FAIL = "fail"
    """The error is the answer."""
    AGAIN = "again"
    """The same server, after a wait: nothing was done, and it will soon be otherwise."""
    LOAD = "load"
    """The same server at once, after SCRIPT LOAD."""
    MOVED = "moved"
    """The named server at once, which has the slot from now on; the map is read anew."""
    ASK = "ask"
    """The named server at once, after ASKING, this once: the slot is on its way there."""
    DISCOVER = "discover"
    """Nothing was done, and this server is not, or does not know, the primary: find out who is, then again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """Where a MOVED or an ASK points."""

    slot: int
    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do, and why, in words for a log.

    Attributes:
        step: what becomes of the command.
        why: the reason.
        redirect: with `MOVED` and `ASK`.
    """

    step: Step
    why: str
    redirect: Redirect | None = None


_FAIL: Final = Decision(step=Step.FAIL, why="the server's answer to this command")

# By the first word of the error. Each of these was refused before anything was done.
_DECISIONS: Final[dict[str, Decision]] = {
    "NOSCRIPT": Decision(step=Step.LOAD, why="scripts are neither replicated nor saved: this server never had them"),
    "LOADING": Decision(step=Step.AGAIN, why="the server reads its file after a start"),
    "TRYAGAIN": Decision(step=Step.AGAIN, why="the keys are on both sides of a slot migration"),
    "BUSY": Decision(step=Step.AGAIN, why="a script runs for longer than busy-reply-threshold"),
    "NOREPLICAS": Decision(step=Step.AGAIN, why="fewer replicas than min-replicas-to-write"),
    "READONLY": Decision(step=Step.DISCOVER, why="the server was made a replica"),
    "MASTERDOWN": Decision(step=Step.DISCOVER, why="a replica that has lost its primary"),
    "CLUSTERDOWN": Decision(step=Step.DISCOVER, why="the slot has no primary now, or the server sees no majority"),
    "UNBLOCKED": Decision(step=Step.DISCOVER, why="the server was made a replica while the command waited"),
    "FAILOVER": Decision(step=Step.AGAIN, why="the server hands over to a replica"),
    "REDIRECT": Decision(step=Step.DISCOVER, why="the server is being handed over to a replica"),
    # Not retried by the link, though it may end by itself: the caller has a policy of its own for these.
    "OOM": Decision(step=Step.FAIL, why="the memory limit is reached: the publisher waits longer than a link does"),
    "MISCONF": Decision(step=Step.FAIL, why="the server can not write its file: an operator has to act"),
    "NOGROUP": Decision(step=Step.FAIL, why="the group is gone: its session attaches again"),
    # Only an operator or a developer mends these.
    "NOAUTH": Decision(step=Step.FAIL, why="the server wants a password"),
    "WRONGPASS": Decision(step=Step.FAIL, why="the user or the password is wrong"),
    "NOPERM": Decision(step=Step.FAIL, why="the user may not do this"),
    "CROSSSLOT": Decision(step=Step.FAIL, why="a command over keys of two slots: a defect of the caller"),
}


def decide(error: str, asked: Address) -> Decision:
    """What to do about an error that a server gave for a command.

    Args:
        error: the whole text of the error, such as `MOVED 3999 10.0.0.7:6379`.
        asked: the server that gave it.

    An error that is not in the table is the answer, and so is a redirection that can not be read.
    """
    word = error.partition(" ")[0]
    if word in ("MOVED", "ASK"):
        redirect = parse_redirect(error, asked)
        if redirect is None:
            return _FAIL
        if word == "MOVED":
            return Decision(step=Step.MOVED, why=f"slot {redirect.slot} is at {redirect.address}", redirect=redirect)
        return Decision(step=Step.ASK, why=f"slot {redirect.slot} moves to {redirect.address}", redirect=redirect)
    return _DECISIONS.get(word, _FAIL)


def parse_redirect(error: str, asked: Address) -> Redirect | None:
    """Where `MOVED 3999 10.0.0.7:6379` or `ASK 3999 10.0.0.7:6379` points; None when it is neither.

    A host may be an IPv6 address, without brackets, or missing, which means that of the server that was asked.
    """
    words = error.split(" ")
    if len(words) != 3 or words[0] not in ("MOVED", "ASK"):
        return None
    host, _, port = words[2].rpartition(":")
    if not _is_number(words[1]) or not _is_number(port) or int(words[1]) >= SLOTS or int(port) > 65_535:
        return None
    return Redirect(slot=int(words[1]), address=_address(host, int(port), asked))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
