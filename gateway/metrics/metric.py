"""One row of the table of metrics, and the figures of one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.metrics.measured import Measured

__all__ = ["PREFIX", "SUM", "Figures", "Labels", "Metric", "MetricType", "Snapshot"]

PREFIX: Final = "eventbus_"

SUM: Final = "sum"
"""The label of a histogram's sum in a snapshot, beside the upper ends of its buckets."""

Labels = tuple[str, ...]
"""The values of a metric's labels, in their order."""

Snapshot = Mapping[tuple[str, Labels], float]
"""The figures of one moment, by the metric's full name and its labels."""

Figures = Iterable[tuple[Labels, float]]


class MetricType(StrEnum):
    """The types that are used. Source: Prometheus, metric types."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row of the table.

    Attributes:
        name: without the prefix and, of a counter, without `_total`.
        type: whether it only ever rises.
        help: one sentence for people.
        labels: their names.
        known: values of the only label that are there from the start with 0: a counter that appears with its first
            occurrence hides that one from `rate()`.
        read: reads the figures of a node; None for what only the parent of several workers measures.
    """

    name: str
    type: MetricType
    help: str
    labels: Labels = ()
    known: Labels = ()
    read: Callable[[Measured], Figures] | None = None

    @property
    def full_name(self) -> str:
        """The name that Prometheus sees; of a histogram the first half of its series' names."""
        return f"{PREFIX}{self.name}_total" if self.type is MetricType.COUNTER else f"{PREFIX}{self.name}"

    def figures(self, node: Measured) -> Figures:
        """Every figure of this metric, those of known labels that never occurred included."""
        if self.read is None:
            return
        found = dict(self.read(node))
        for value in self.known:
            found.setdefault((value,), 0)
        yield from found.items()
