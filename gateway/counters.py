"""What a node counts: plain integers, raised on the hot path and read by whoever exports them (metrics, `eb:nodes`)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from gateway.histogram import Histogram

__all__ = ["Counters"]


@dataclass(slots=True)
class Counters:
    """Totals since the node started. A name here is the name in the metrics, without the prefix `eventbus_` and
    `_total`.
    """

    connections_opened: int = 0
    connections_refused: Counter[str] = field(default_factory=Counter)
    connections_closed: Counter[int] = field(default_factory=Counter)
    sessions_attached: Counter[str] = field(default_factory=Counter)
    events_delivered: int = 0
    events_redelivered: int = 0
    events_acked: int = 0
    events_confirmed: Counter[str] = field(default_factory=Counter)
    events_nacked: int = 0
    events_released: Counter[str] = field(default_factory=Counter)
    events_dead_lettered: Counter[str] = field(default_factory=Counter)
    gaps: Counter[str] = field(default_factory=Counter)
    commands_stored: Counter[str] = field(default_factory=Counter)
    frames_received: int = 0
    frames_refused: Counter[str] = field(default_factory=Counter)
    wakeups: int = 0
    reattaches: Counter[str] = field(default_factory=Counter)
    store_errors: Counter[str] = field(default_factory=Counter)
    requests_limited: Counter[str] = field(default_factory=Counter)
    key_reloads: Counter[str] = field(default_factory=Counter)
    stalls: int = 0
    subscriptions: int = 0
    events_published: int = 0
    text_reads: int = 0
    text_frames: int = 0
    run_breaches: Counter[str] = field(default_factory=Counter)
    runs_abandoned: int = 0
    runs_closed: int = 0
    demands_missed: Counter[str] = field(default_factory=Counter)
    webhooks: Counter[str] = field(default_factory=Counter)
    primary_changes: int = 0
    delivery_seconds: Histogram = field(default_factory=Histogram)
    ack_seconds: Histogram = field(default_factory=Histogram)
