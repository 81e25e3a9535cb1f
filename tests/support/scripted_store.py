"""A store for publishers under test: events meet the outcomes of a script, calls are held back, streams roll back."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from enum import Enum

from eventbus.errors import NotReplicated, StoreError, StoreMisconfigured, StoreMoved, StoreUnavailable, StreamFull
from eventbus.ids import EntryId, EventId, UserId
from eventbus.store import Append, Appended, Durability
from eventbus.testing import MemoryStore


class Outcome(Enum):
    """What becomes of one event of a call. `LOST_REPLY` and `NOT_REPLICATED` are stored, the other failures are not."""

    STORED = "stored"
    UNREACHED = "unreached"
    MOVED = "moved"
    LOST_REPLY = "lost reply"
    NOT_REPLICATED = "not replicated"
    FULL = "full"
    REFUSED = "refused"


class ScriptedStore(MemoryStore):
    """Remembers in what order each user's events were stored; after the script every event is stored.

    Attributes:
        script: the outcomes to come, one for each event that arrives.
        streams: the event ids of each user, in the order in which they were stored.
        batches: the event ids of each call of `append`, in order.
        durabilities: what each call wanted.
        primary: the server that answers.
        connected: whether a connection stands, as a store over a network would say.
        gate: calls wait here before they take effect, unless it is set (it is).
        defect: what `append` raises instead of answering, once.
        pings: how often it was pinged; `ping_error` is what a ping raises.
    """

    def __init__(self, script: Iterable[Outcome] = ()) -> None:
        super().__init__()
        self.script = deque(script)
        self.streams: dict[str, list[str]] = defaultdict(list)
        self.batches: list[list[str]] = []
        self.durabilities: list[Durability] = []
        self.primary = "primary-1"
        self.connected = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.defect: BaseException | None = None
        self.pings = 0
        self.ping_error: StoreError | None = None
        self._known: dict[tuple[UserId, EventId], EntryId] = {}
        self._last = 0

    def fail_over(self, *, losing: Iterable[str] = (), to: str = "primary-2") -> None:
        """Another server answers from now on, and does not have some events."""
        self.primary = to
        lost = set(losing)
        for stream in self.streams.values():
            stream[:] = [event for event in stream if event not in lost]
        self._known = {key: entry for key, entry in self._known.items() if key[1] not in lost}

    async def append(
        self, events: Sequence[Append], durability: Durability = Durability.MEMORY
    ) -> Sequence[Appended | StoreError]:
        self.batches.append([event.event for event in events])
        self.durabilities.append(durability)
        await asyncio.sleep(0)
        await self.gate.wait()
        if self.defect is not None:
            defect, self.defect = self.defect, None
            raise defect
        return [self._outcome(event, self.script.popleft() if self.script else Outcome.STORED) for event in events]

    def _outcome(self, event: Append, outcome: Outcome) -> Appended | StoreError:
        match outcome:
            case Outcome.UNREACHED:
                return StoreUnavailable("connection refused")
            case Outcome.MOVED:
                return StoreMoved("another primary has the user")
            case Outcome.FULL:
                return StreamFull("the stream is full")
            case Outcome.REFUSED:
                return StoreMisconfigured("wrong type of key")
        answer = self._take(event)
        match outcome:
            case Outcome.LOST_REPLY:
                return StoreUnavailable("connection lost")
            case Outcome.NOT_REPLICATED:
                return NotReplicated("0 of 1 replicas")
        return answer

    def _take(self, event: Append) -> Appended:
        known = self._known.get((event.user, event.event))
        if known is not None:
            return Appended(entry=known, duplicate=True, primary=self.primary)
        self._last += 1
        entry = EntryId(f"{self.clock.now_ms()}-{self._last}")
        self._known[event.user, event.event] = entry
        self.streams[event.user].append(event.event)
        return Appended(entry=entry, duplicate=False, primary=self.primary)

    async def ping(self) -> int:
        self.pings += 1
        await asyncio.sleep(0)
        if self.ping_error is not None:
            raise self.ping_error
        return self.clock.now_ms()
