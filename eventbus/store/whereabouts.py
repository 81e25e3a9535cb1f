"""Where the primaries are, as far as is known, and who wants to hear of a change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from eventbus.store.endpoint import Endpoint, Mode, Target
from eventbus.store.topology import SLOTS, Address, SlotMap, slot_of

__all__ = ["Watchers", "Whereabouts"]

_log = logging.getLogger("eventbus.store")

Tell = Callable[[], object]

# So long an older word is a late one; after that the servers were set up anew, and count from the beginning.
_STALE_S: Final = 30.0


class Whereabouts:
    """What is known of the servers of an installation.

    Attributes:
        target: what the URL names.
        mode: how primaries are found; a single server may turn out to be one of a Cluster.
        located: behind Sentinels, where the primary is; None before it is known.
        epoch: the number of the change that made all this so, as the Sentinels or the Cluster count.
        confirmed_s: when a server said so last, in the event loop's time.
        map: of a Cluster; None before it is known.
        known: all servers of a Cluster, replicas too.
        on_trust: nobody but the server itself has said so far that it is the primary.
    """

    __slots__ = (
        "confirmed_s",
        "epoch",
        "known",
        "located",
        "map",
        "mode",
        "on_trust",
        "target",
    )

    def __init__(self, target: Target) -> None:
        self.target = target
        self.mode = target.mode
        self.located: Address | None = None
        self.epoch = -1
        self.confirmed_s = 0.0
        self.map: SlotMap | None = None
        self.known: list[Address] = []
        self.on_trust = False

    def is_late(self, epoch: int, now_s: float) -> bool:
        """Whether a word of that change comes from a server that has not heard of the latest one."""
        return epoch < self.epoch and now_s - self.confirmed_s < _STALE_S

    def confirm(self, epoch: int, now_s: float) -> None:
        """Note that what is known is so since that change."""
        self.epoch, self.confirmed_s, self.on_trust = epoch, now_s, False

    def trust(self, now_s: float) -> None:
        """The server that was told to be the primary says that it is. The change has a number above the last one; until
        a Sentinel gives it, those who still name the server before count as late.
        """
        self.confirm(self.epoch + 1, now_s)
        self.on_trust = True

    def distrust(self) -> None:
        """What was believed on trust is not so, or not any more: the Sentinels are believed again."""
        if self.on_trust:
            self.epoch, self.on_trust = self.epoch - 1, False

    def endpoint(self, address: Address) -> Endpoint:
        """A server of the installation, and what it wants to know of us."""
        return self.target.servers[0].at(address)

    def places(self) -> Sequence[Address]:
        """Where the primaries are, in a stable order; empty when that is not known."""
        if self.mode is Mode.SINGLE:
            return (self.target.servers[0].address,)
        if self.mode is Mode.SENTINEL:
            return () if self.located is None else (self.located,)
        return () if self.map is None else self.map.primaries

    def home_of(self, key: str | None) -> Address | None:
        """Where the primary of a key is (of no key: any primary), None when that is not known."""
        if self.mode is not Mode.CLUSTER or key is None:
            return next(iter(self.places()), None)
        return None if self.map is None else self.map.owner(slot_of(key))

    def reach(self, answers: Callable[[Address], bool]) -> dict[str, int]:
        """Of how much a primary answers here: `primaries` that are known, `primaries_reached` of these, and
        `slots_away`, the hash slots that are at none of these. A store that is no Cluster has all or none.

        Args:
            answers: whether a primary does.
        """
        places = self.places()
        reached = [place for place in places if answers(place)]
        if self.mode is Mode.CLUSTER:
            slots = 0 if self.map is None else sum(map(self.map.count, reached))
        else:
            slots = SLOTS if reached else 0
        return {"primaries": len(places), "primaries_reached": len(reached), "slots_away": SLOTS - slots}

    def servers(self, more: Iterable[Address]) -> list[Endpoint]:
        """All servers of the Cluster that are known, to be asked for its map."""
        seeds = {server.address for server in self.target.servers}
        return [self.endpoint(address) for address in sorted({*seeds, *self.known, *more})]


class Watchers:
    """Who is told of primaries, in the event loop."""

    __slots__ = ("_changed", "_watchers")

    def __init__(self) -> None:
        self._changed: list[Tell] = []
        self._watchers: list[tuple[Tell, Tell]] = []

    def on_change(self, tell: Tell) -> Callable[[], None]:
        """Have someone told whenever a primary may be elsewhere. Returns what ends it."""
        self._changed.append(tell)
        return lambda: self._changed.remove(tell) if tell in self._changed else None

    def watch(self, lost: Tell, stands: Tell) -> Callable[[], None]:
        """Have someone told.

        Args:
            lost: called when the connection to a primary has ended, or a part of the data is at another one.
            stands: called when one stands, or has taken over a part of another, before anything is sent there.

        Returns:
            What ends it.
        """
        watcher = (lost, stands)
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher) if watcher in self._watchers else None

    def lost(self) -> None:
        """The connection to a primary has ended, or it is no primary of some data any more."""
        self._tell([lost for lost, _ in self._watchers])

    def stands(self) -> None:
        """A connection to a primary stands."""
        self._tell([stands for _, stands in self._watchers])

    def changed(self) -> None:
        """Primaries are elsewhere."""
        self.stands()
        self._tell(list(self._changed))

    def _tell(self, tells: Sequence[Tell]) -> None:
        for tell in tells:
            try:
                tell()
            except Exception:
                # Whoever breaks its promise must not leave the calls of the others standing.
                _log.exception("someone who is told of primaries failed")
