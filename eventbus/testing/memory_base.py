"""What every part of a `MemoryStore` has: its state, its clock, and the calls that go through the switches."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from zlib import crc32

from eventbus.clock import Clock, SystemClock
from eventbus.config import StoreSettings
from eventbus.ids import NodeName, UserId
from eventbus.store import DeadLetterRecord, Fence, Listener
from eventbus.store.inbound import Follower, Told
from eventbus.store.revoking import Revocation
from eventbus.testing.memory_faults import FaultSwitches
from eventbus.testing.memory_state import Log, PartitionState, Seen, UserState

__all__ = ["MemoryBase"]


class MemoryBase(FaultSwitches):
    """The base of the parts.

    Args:
        settings: sizes and lives, as for Redis; the defaults when absent.
        clock: Redis's clock; the machine's when absent.
    """

    def __init__(self, settings: StoreSettings | None = None, clock: Clock | None = None) -> None:
        super().__init__()
        self.settings = settings or StoreSettings()
        self.clock: Clock = clock or SystemClock()
        self._users: dict[UserId, UserState] = {}
        self._partitions: dict[int, PartitionState] = {}
        self._tickets: dict[str, tuple[str, int]] = {}
        self._nodes: dict[NodeName, Seen] = {}
        self._listeners: dict[NodeName, list[Listener]] = {}
        self._followers: dict[UserId, list[Follower]] = {}
        self._primary = secrets.token_hex(20)
        self._revoked: dict[str, Revocation] = {}
        self._revoked_epoch = ""
        self._allowances: dict[UserId, dict[int, tuple[int, int]]] = {}
        self._revoked_number = 0

    def flush(self) -> None:
        """Everything is lost, the epochs too: FLUSHALL, or a server that came back without its file."""
        self._users.clear()
        self._partitions.clear()
        self._tickets.clear()
        self._nodes.clear()
        self._revoked.clear()
        self._allowances.clear()

    # --- within -----------------------------------------------------------------------------------------------------

    def _number(self, user: UserId) -> int:
        return crc32(user.encode()) % self.settings.partitions

    def _partition(self, user: UserId) -> PartitionState:
        return self._partitions.setdefault(self._number(user), PartitionState())

    def _dead(self, partition: int) -> Log[DeadLetterRecord]:
        dead = self._partitions.get(partition, PartitionState()).dead
        dead.forget_before(self.clock.now_ms() - self.settings.dead_letter_ttl_ms)
        return dead

    def _user(self, name: UserId) -> UserState:
        """A user's state with what is over taken away."""
        now_ms = self.clock.now_ms()
        user = self._users.setdefault(name, UserState(partition=self._partition(name)))
        user.expire(now_ms, self.settings.live_ttl_ms)
        user.confirmations.forget_before(now_ms - self.settings.retention_ms)
        return user

    def _held(self, fence: Fence) -> UserState | None:
        """The state behind a fenced call, None when another connection, or none, holds the session (D2, D3)."""
        user = self._user(fence.user)
        live = user.live.get(fence.session)
        return user if live is not None and live.connection == fence.connection else None

    def _keep_stream(self, user: UserState, now_ms: int) -> None:
        user.stream_until_ms = now_ms + self.settings.retention_ms

    def _tell(self, node: NodeName, call: Callable[[Listener], object]) -> None:
        """Calls a node's listeners in the next turn, as a message from a channel would come."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners.get(node, ()):
            loop.call_soon(call, listener)

    def _tell_followers(self, user: UserId, what: Told) -> None:
        """Tells who follows a user in the next turn, as a message from a channel would come."""
        loop = asyncio.get_running_loop()
        for follower in self._followers.get(user, ()):
            loop.call_soon(follower.told, user, what)
