"""The figures of one moment: read of a node, added up, packed for a pipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from gateway.metrics.measured import Measured
from gateway.metrics.metric import Labels, MetricType, Snapshot
from gateway.metrics.table import METRICS

__all__ = ["kept_for_good", "merged", "pack", "snapshot", "unpack"]

_BY_NAME: Final = {metric.full_name: metric for metric in METRICS}


def snapshot(node: Measured) -> Snapshot:
    """Read all figures of a node."""
    return {(metric.full_name, labels): float(value) for metric in METRICS for labels, value in metric.figures(node)}


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Add figures with the same name and labels."""
    total: dict[tuple[str, Labels], float] = {}
    for one in snapshots:
        for key, value in one.items():
            total[key] = total.get(key, 0.0) + value
    return total


def kept_for_good(figures: Snapshot) -> Snapshot:
    """What remains of a process that has ended: its counters and histograms.

    For a sum must not fall when a worker is replaced. A counter with the label `node` goes: it begins again with the
    process that has the name next.
    """
    return {
        (name, labels): value
        for (name, labels), value in figures.items()
        if (metric := _BY_NAME.get(name)) and metric.type is not MetricType.GAUGE and "node" not in metric.labels
    }


def pack(figures: Snapshot) -> list[Any]:
    """A snapshot as JSON can hold it."""
    return [[name, list(labels), value] for (name, labels), value in figures.items()]


def unpack(rows: Iterable[Any]) -> Snapshot:
    """What `pack` made."""
    return {(str(name), tuple(labels)): float(value) for name, labels, value in rows}
