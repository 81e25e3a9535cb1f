"""Figures as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.metrics.metric import PREFIX, SUM, Labels, MetricType, Snapshot
from gateway.metrics.table import METRICS

__all__ = ["exposition"]


def exposition(figures: Snapshot, accept: str = "") -> tuple[bytes, str]:
    """Figures as Prometheus reads them.

    Args:
        figures: of one node, or merged.
        accept: the request's header, which chooses between the text formats.

    Returns:
        The body and its media type.
    """
    # Here, because it loads an HTTP server, and workers do without.
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.core import Metric as Family
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.registry import Collector, CollectorRegistry

    by_name: dict[str, list[tuple[Labels, float]]] = {}
    for (name, labels), value in figures.items():
        by_name.setdefault(name, []).append((labels, value))

    class Figured(Collector):
        def collect(self) -> Iterator[Family]:
            for metric in METRICS:
                rows = by_name.get(metric.full_name)
                if rows is None and (metric.read is None or metric.type is MetricType.HISTOGRAM):
                    continue
                if metric.type is MetricType.HISTOGRAM:
                    told = {end: value for (end,), value in rows or ()}
                    took_s = told.pop(SUM, 0.0)
                    ends = sorted(told.items(), key=lambda row: float(row[0]))
                    yield HistogramMetricFamily(PREFIX + metric.name, metric.help, buckets=ends, sum_value=took_s)
                    continue
                kind = CounterMetricFamily if metric.type is MetricType.COUNTER else GaugeMetricFamily
                family = kind(PREFIX + metric.name, metric.help, labels=metric.labels)
                for labels, value in sorted(rows or ()):
                    family.add_metric(labels, value)
                yield family

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Figured())
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type
