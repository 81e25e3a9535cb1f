"""How the figures of a metric are read: the kinds of rows, and the odd ones."""

from __future__ import annotations

import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from eventbus.breaker import BreakerState
from eventbus.errors import CloseCode
from eventbus.store.topology import SLOTS
from gateway.histogram import Histogram
from gateway.logs import COUNTS
from gateway.metrics.measured import Measured
from gateway.metrics.metric import SUM, Figures, Metric, MetricType
from gateway.tally import Tallied
from gateway.version import VERSION

__all__ = [
    "CLOSE_CODES",
    "away_ratio",
    "breaker",
    "build",
    "closed",
    "counted",
    "gauge",
    "histogram",
    "linked",
    "logged",
    "memory_bytes",
    "memory_share",
    "of_node",
    "published",
    "reached",
    "resident_bytes",
    "tallied",
    "tallied_of_node",
    "waiting",
    "webhook_breaker",
]

CLOSE_CODES: Final = frozenset({*(str(int(code)) for code in CloseCode), "1001", "1005"})
"""Those that nodes use, and those of a browser whose page goes away."""


def counted(name: str, help: str, label: str | None = None, known: Iterable[str] = ()) -> Metric:
    """A field of `Counters`: a number, or numbers by one label."""

    def read(node: Measured) -> Figures:
        value = getattr(node.counters, name)
        if label is None:
            return [((), value)]
        return [((str(key),), count) for key, count in list(value.items())]

    labels = () if label is None else (label,)
    return Metric(name=name, type=MetricType.COUNTER, help=help, labels=labels, known=tuple(known), read=read)


def published(name: str, help: str, field: str, type: MetricType = MetricType.COUNTER) -> Metric:
    """A field of the publisher's statistics."""
    return Metric(name=name, type=type, help=help, read=lambda node: [((), getattr(node.publishing, field))])


def gauge(name: str, help: str, value: Callable[[Measured], float]) -> Metric:
    """A figure that is added up over nodes."""
    return Metric(name=name, type=MetricType.GAUGE, help=help, read=lambda node: [((), value(node))])


def of_node(name: str, help: str, value: Callable[[Measured], float], type: MetricType = MetricType.GAUGE) -> Metric:
    """A figure of each node for itself."""
    return Metric(name=name, type=type, help=help, labels=("node",), read=lambda node: [((node.name,), value(node))])


def closed(node: Measured) -> Figures:
    """A client may close with any number: it must not make a label of each."""
    found: Counter[str] = Counter({"other": 0})
    for number, count in list(node.counters.connections_closed.items()):
        found[str(number) if str(number) in CLOSE_CODES else "other"] += count
    return [((code,), count) for code, count in found.items()]


def logged(node: Measured) -> Figures:
    """Lines for the log, by level."""
    return [((level,), COUNTS.lines[level]) for level in ("warning", "error", "critical")]


def histogram(name: str, help: str) -> Metric:
    """A histogram of `Counters`: a figure for each bucket under its upper end, and the sum under `sum`."""

    def read(node: Measured) -> Figures:
        found: Histogram = getattr(node.counters, name)
        yield (SUM,), found.sum_ms / 1000
        for end, count in found.buckets():
            yield (end,), count

    return Metric(name=name, type=MetricType.HISTOGRAM, help=help, labels=("le",), read=read)


def tallied(name: str, help: str, value: Callable[[Tallied], float]) -> Metric:
    """A figure of the last count; absent while there is none that is fresh."""

    def read(node: Measured) -> Figures:
        found = node.tallied
        return [] if found is None else [((), value(found))]

    return Metric(name=name, type=MetricType.GAUGE, help=help, read=read)


def tallied_of_node(name: str, help: str, value: Callable[[Tallied], float | None]) -> Metric:
    """The same, of each node for itself."""

    def read(node: Measured) -> Figures:
        found = node.tallied
        number = None if found is None else value(found)
        return [] if number is None else [((node.name,), number)]

    return Metric(name=name, type=MetricType.GAUGE, help=help, labels=("node",), read=read)


def linked(name: str, help: str, field: str, type: MetricType) -> Metric:
    """A figure of the connections to Redis."""
    return Metric(name=name, type=type, help=help, read=lambda node: [((), node.link.get(field, 0))])


def reached(name: str, help: str, value: Callable[[Mapping[str, int]], float]) -> Metric:
    """A figure of the primaries that each node reaches for itself; absent where there are no connections."""

    def read(node: Measured) -> Figures:
        found = node.link
        return [((node.name,), value(found))] if "primaries" in found else []

    return Metric(name=name, type=MetricType.GAUGE, help=help, labels=("node",), read=read)


def away_ratio(link: Mapping[str, int]) -> float:
    """The part of the store that the node does not reach; each partition lies in one slot."""
    return link["slots_away"] / SLOTS


def memory_bytes(found: Tallied) -> float | None:
    """Of all primaries together; None at a node that does not tell of them."""
    return sum(one.memory_bytes for one in found.servers) if found.servers else None


def memory_share(found: Tallied) -> float | None:
    """Of the fullest server; None where none has a limit."""
    limits = [(one.memory_bytes, int(one.facts.get("maxmemory") or 0)) for one in found.servers]
    return max([used / limit for used, limit in limits if limit], default=None)


def build(node: Measured) -> Figures:
    """What runs here."""
    return [((node.name, VERSION, platform.python_version()), 1)]


def waiting(node: Measured) -> Figures:
    """What waits to be asked of the store, by kind."""
    return [((kind,), count) for kind, count in node.waiting.items()]


def breaker(node: Measured) -> Figures:
    """Where the publisher's circuit breaker stands."""
    state = node.publishing.breaker
    return [((node.name, one), float(one == state)) for one in BreakerState]


def webhook_breaker(node: Measured) -> Figures:
    """Where the webhook's stands."""
    return [((node.name, one), float(one == node.webhook_breaker)) for one in BreakerState]


def resident_bytes(node: Measured) -> float:
    """Memory of the process."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(used if sys.platform == "darwin" else used * 1024)
    import resource

    return float(pages * resource.getpagesize())
