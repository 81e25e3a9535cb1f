"""What the metrics read of a node: a Protocol. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from eventbus.breaker import BreakerState
from eventbus.ids import NodeName
from eventbus.publishing.receipt import PublishStatistics
from gateway.counters import Counters
from gateway.metrics.lag import LoopLag
from gateway.tally import Tallied

__all__ = ["Measured"]


class Measured(Protocol):
    """What is read of a node."""

    @property
    def name(self) -> NodeName: ...
    @property
    def counters(self) -> Counters: ...
    @property
    def started_ms(self) -> int: ...
    @property
    def connections(self) -> int: ...
    @property
    def sessions(self) -> int: ...
    @property
    def users(self) -> int: ...
    @property
    def waiting(self) -> Mapping[str, int]:
        """What waits to be asked of the store, by kind."""

    @property
    def draining(self) -> bool: ...
    @property
    def store_failed_ms(self) -> int:
        """For how long the store has not answered."""

    @property
    def publishing(self) -> PublishStatistics:
        """How the node's publisher stands."""

    @property
    def watch_late_ms(self) -> int:
        """How late the watch found the latest of what was due in the last half to whole minute."""

    @property
    def tallied(self) -> Tallied | None:
        """What waits, as it was counted last; None when that is too long ago."""

    @property
    def link(self) -> Mapping[str, int]:
        """The statistics of the connections to Redis; empty where there is none."""

    @property
    def handshakes_waiting(self) -> int:
        """Handshakes that wait for their turn."""

    @property
    def traces_left_out(self) -> int:
        """Deliveries that were not recorded for want of room."""

    @property
    def webhook_breaker(self) -> BreakerState:
        """Where the webhook's circuit breaker stands."""

    @property
    def lag(self) -> LoopLag: ...
    def not_ready(self) -> str | None:
        """Why the node is not ready; None when it is."""
