"""Which node watches which partitions: rendezvous hashing over the nodes that live. Pure.

Each node weighs every partition, and the heaviest has it: all nodes come to the same answer without a word between
them, and a node that comes or goes moves only its own share. Two nodes that see different lists may watch one
partition for a while; that is harmless, for a deadline is settled once (D22). The second heaviest looks at it too, for
what is late: so a node that died is stood in for before the list forgets it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from eventbus.ids import NodeName

__all__ = ["Share", "Shares"]

_DIGEST_BYTES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a node watches.

    Attributes:
        first: partitions that are its own.
        second: partitions whose late deadlines it takes when their own node does not.
    """

    first: Sequence[int]
    second: Sequence[int]


class Shares:
    """The shares of an installation, as one node works them out.

    Args:
        node: which; it always counts as living.
        partitions: their number.
    """

    def __init__(self, node: NodeName, partitions: int) -> None:
        self._node = node
        self._partitions = partitions
        self._weights: dict[NodeName, list[bytes]] = {}
        self._nodes: frozenset[NodeName] = frozenset()
        self._share = Share(first=(), second=())

    def __repr__(self) -> str:
        return f"<Shares of {self._node}: {len(self._share.first)} of {self._partitions}, {len(self._nodes)} nodes>"

    def of(self, nodes: Iterable[NodeName]) -> Share:
        """The node's share while these nodes live; worked out anew only when they have changed."""
        living = frozenset(nodes) | {self._node}
        if living != self._nodes:
            self._nodes = living
            # A node is weighed once, for 1,024 digests take a millisecond.
            self._weights = {name: self._weights.get(name) or self._weigh(name) for name in sorted(living)}
            self._share = self._worked_out()
        return self._share

    def _weigh(self, node: NodeName) -> list[bytes]:
        return [
            blake2b(f"{node}\0{partition}".encode(), digest_size=_DIGEST_BYTES).digest()
            for partition in range(self._partitions)
        ]

    def _worked_out(self) -> Share:
        mine = self._weights[self._node]
        others = [weights for name, weights in self._weights.items() if name != self._node]
        places: tuple[list[int], list[int]] = ([], [])
        for partition, weight in enumerate(mine):
            heavier = sum(weights[partition] > weight for weights in others)
            if heavier < len(places):
                places[heavier].append(partition)
        return Share(first=tuple(places[0]), second=tuple(places[1]))
