"""What a node measures, as one table: name, type, help, labels, and how each figure is read.

`snapshot` reads a node's figures, `merged` adds those of several nodes, `exposition` writes them for Prometheus. The
table in `docs/metrics.md` is made from the same rows (`python -m gateway.metrics > docs/metrics.md`).

No label ever names a user, a session or a run: there are millions of them. Figures of several nodes are added; where a
sum means nothing the metric has the label `node`.
"""

from __future__ import annotations

import asyncio
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

from eventbus.breach import Deadline
from eventbus.breaker import BreakerState
from eventbus.errors import CloseCode
from eventbus.fields import Level
from eventbus.ids import NodeName
from eventbus.receipt import PublishStatistics
from eventbus.store import GapReason, ReleaseReason
from gateway.counters import Counters
from gateway.histogram import Histogram, Worst
from gateway.logs import COUNTS
from gateway.tally import Tallied
from gateway.version import VERSION

__all__ = [
    "METRICS",
    "PREFIX",
    "LoopLag",
    "Measured",
    "Metric",
    "MetricType",
    "Snapshot",
    "exposition",
    "kept_for_good",
    "merged",
    "metrics_page",
    "pack",
    "snapshot",
    "unpack",
]

PREFIX: Final = "eventbus_"

SUM: Final = "sum"
"""The label of a histogram's sum in a snapshot, beside the upper ends of its buckets."""

_CLOSE_CODES: Final = frozenset({*(str(int(code)) for code in CloseCode), "1001", "1005"})
"""Those that nodes use, and those of a browser whose page goes away."""

WEBHOOK_OUTCOMES: Final = ("delivered", "failed", "given_up")

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


# --- how figures are read ---------------------------------------------------------------------------------------------


def _counted(name: str, help: str, label: str | None = None, known: Iterable[str] = ()) -> Metric:
    """A field of `Counters`: a number, or numbers by one label."""

    def read(node: Measured) -> Figures:
        value = getattr(node.counters, name)
        if label is None:
            return [((), value)]
        return [((str(key),), count) for key, count in list(value.items())]

    labels = () if label is None else (label,)
    return Metric(name=name, type=MetricType.COUNTER, help=help, labels=labels, known=tuple(known), read=read)


def _published(name: str, help: str, field: str, type: MetricType = MetricType.COUNTER) -> Metric:
    """A field of the publisher's statistics."""
    return Metric(name=name, type=type, help=help, read=lambda node: [((), getattr(node.publishing, field))])


def _gauge(name: str, help: str, value: Callable[[Measured], float]) -> Metric:
    return Metric(name=name, type=MetricType.GAUGE, help=help, read=lambda node: [((), value(node))])


def _of_node(name: str, help: str, value: Callable[[Measured], float], type: MetricType = MetricType.GAUGE) -> Metric:
    return Metric(name=name, type=type, help=help, labels=("node",), read=lambda node: [((node.name,), value(node))])


def _closed(node: Measured) -> Figures:
    """A client may close with any number: it must not make a label of each."""
    found: Counter[str] = Counter({"other": 0})
    for number, count in list(node.counters.connections_closed.items()):
        found[str(number) if str(number) in _CLOSE_CODES else "other"] += count
    return [((code,), count) for code, count in found.items()]


def _logged(node: Measured) -> Figures:
    return [((level,), COUNTS.lines[level]) for level in ("warning", "error", "critical")]


def _histogram(name: str, help: str) -> Metric:
    """A histogram of `Counters`: a figure for each bucket under its upper end, and the sum under `sum`."""

    def read(node: Measured) -> Figures:
        found: Histogram = getattr(node.counters, name)
        yield (SUM,), found.sum_ms / 1000
        for end, count in found.buckets():
            yield (end,), count

    return Metric(name=name, type=MetricType.HISTOGRAM, help=help, labels=("le",), read=read)


def _tallied(name: str, help: str, value: Callable[[Tallied], float]) -> Metric:
    """A figure of the last count; absent while there is none that is fresh."""

    def read(node: Measured) -> Figures:
        found = node.tallied
        return [] if found is None else [((), value(found))]

    return Metric(name=name, type=MetricType.GAUGE, help=help, read=read)


def _tallied_of_node(name: str, help: str, value: Callable[[Tallied], float | None]) -> Metric:
    """The same, of each node for itself."""

    def read(node: Measured) -> Figures:
        found = node.tallied
        number = None if found is None else value(found)
        return [] if number is None else [((node.name,), number)]

    return Metric(name=name, type=MetricType.GAUGE, help=help, labels=("node",), read=read)


def _linked(name: str, help: str, field: str, type: MetricType) -> Metric:
    """A figure of the connections to Redis."""
    return Metric(name=name, type=type, help=help, read=lambda node: [((), node.link.get(field, 0))])


def _memory_bytes(found: Tallied) -> float | None:
    return sum(one.memory_bytes for one in found.servers) if found.servers else None


def _memory_share(found: Tallied) -> float | None:
    """Of the fullest server; None where none has a limit."""
    limits = [(one.memory_bytes, int(one.facts.get("maxmemory") or 0)) for one in found.servers]
    return max([used / limit for used, limit in limits if limit], default=None)


def _build(node: Measured) -> Figures:
    return [((node.name, VERSION, platform.python_version()), 1)]


def _waiting(node: Measured) -> Figures:
    return [((kind,), count) for kind, count in node.waiting.items()]


def _breaker(node: Measured) -> Figures:
    state = node.publishing.breaker
    return [((node.name, one), float(one == state)) for one in BreakerState]


def _webhook_breaker(node: Measured) -> Figures:
    return [((node.name, one), float(one == node.webhook_breaker)) for one in BreakerState]


def _resident_bytes(node: Measured) -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(used if sys.platform == "darwin" else used * 1024)
    import resource

    return float(pages * resource.getpagesize())


class LoopLag:
    """How late the event loop was at the worst in the last half to whole minute; a look every 100 ms.

    It does not begin anew with each reading: after a stall the first to be answered are scrapes that were given up long
    ago, and there may be two who scrape.
    """

    LOOK_S: Final = 0.1
    KEPT_S: Final = 30.0

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._kept = Worst(self.KEPT_S)

    def start(self) -> None:
        """Begin to look, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._again(self._loop)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def worst_s(self) -> float:
        """The worst in seconds; a delay that is under way counts."""
        if self._loop is None or self._timer is None:
            return 0.0
        now_s = self._loop.time()
        return max(self._kept.at(now_s), now_s - self._due_s, 0.0)

    def _again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s = loop.time() + self.LOOK_S
        self._timer = loop.call_at(self._due_s, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        self._kept.add(now_s - self._due_s, now_s)
        self._again(loop)


# --- the table --------------------------------------------------------------------------------------------------------

_C, _G = MetricType.COUNTER, MetricType.GAUGE
_DEAD_REASONS: Final = ("ack_timeout", "nacked", "undecodable", "misplaced")
_REFUSED_CODES: Final = (
    "draining", "forbidden", "overloaded", "rate_limited", "store_unavailable", "too_many_sessions", "unauthenticated"
)  # fmt: skip

METRICS: Final[Sequence[Metric]] = (
    # Connections and sessions.
    _gauge("connections", "Sockets that are open.", lambda node: node.connections),
    _gauge("sessions", "Sessions that are attached here.", lambda node: node.sessions),
    _gauge("users", "Users with a session here; one with sessions on two nodes counts twice.", lambda node: node.users),
    _counted("connections_opened", "Sockets opened."),
    _counted("connections_refused", "Handshakes that were turned away, by the error's code.", "code", _REFUSED_CODES),
    _gauge("handshakes_waiting", "Handshakes that wait for their turn.", lambda node: node.handshakes_waiting),
    Metric(
        name="connections_closed",
        type=_C,
        help="Sockets closed, by the WebSocket close code; `other` are those that only clients think of.",
        labels=("code",),
        known=tuple(sorted(_CLOSE_CODES)),
        read=_closed,
    ),
    _counted("sessions_attached", "Sessions that were opened, by how.", "how", ("new", "resumed")),
    _counted("reattaches", "Sessions attached again with their socket open, by the cause.", "cause"),
    # Events.
    _counted("events_published", "Events taken by `POST /v1/events`."),
    _counted("events_delivered", "Events sent to a session for the first time."),
    _counted("events_redelivered", "Events sent to a session again."),
    _counted("events_acked", "Events that a client's ack released."),
    _counted("events_confirmed", "Events recorded as more than received.", "level", ("displayed", "confirmed")),
    _counted("events_nacked", "Nacks of clients."),
    _counted("events_released", "Events that the node took off a session itself.", "reason", ReleaseReason),
    _counted("events_dead_lettered", "Events given up after the last attempt.", "reason", _DEAD_REASONS),
    _counted("gaps", "Gaps announced to sessions.", "reason", GapReason),
    _histogram(
        "delivery_seconds",
        "From the storing of an event to its way into a socket; only events stored since that client connected. One"
        " stands for those that were read with it.",
    ),
    _histogram(
        "ack_seconds",
        "From the storing of an event to the storing of its ack; only events stored since that client connected. One"
        " stands for those that were acked with it.",
    ),
    # What waits.
    _tallied(
        "pending_events",
        "Events that sessions here were sent, or are about to be, and have not acked.",
        lambda found: found.pending,
    ),
    _tallied_of_node(
        "pending_oldest_seconds",
        "Of these, for how long the oldest has been waiting while its client was connected.",
        lambda found: found.pending_oldest_ms / 1000,
    ),
    _tallied(
        "waiting_users",
        "Users for whom something waits, connected or not. Each partition is counted by one node: the sum of all is the"
        " installation's, as with the four below.",
        lambda found: found.waiting_users,
    ),
    _tallied("dead_letters", "Dead letters that are kept.", lambda found: found.dead_letters),
    _tallied("deadlines", "Deadlines that are watched.", lambda found: found.deadlines),
    _tallied("operator_events", "Events for operators that are kept.", lambda found: found.operator_events),
    _tallied_of_node(
        "waiting_oldest_seconds",
        "For how long something has waited for the user for whom it waits longest, connected or not.",
        lambda found: found.waiting_oldest_ms / 1000,
    ),
    # Runs, demands, and what operators are told.
    _counted("run_breaches", "Missed deadlines of runs.", "deadline", Deadline),
    _counted("runs_abandoned", "Runs whose lease was over."),
    _counted("runs_closed", "Of these, runs that this node closed as failed."),
    _counted("demands_missed", "Demanded confirmations that did not come in time.", "level", Level),
    _of_node(
        "watch_late_seconds",
        "How late the latest deadline of the last half to whole minute was found.",
        lambda node: node.watch_late_ms / 1000,
    ),
    _counted("webhooks", "Posts to the webhook, by what became of them.", "outcome", WEBHOOK_OUTCOMES),
    Metric(
        name="webhook_breaker",
        type=_G,
        help="1 for the state of the webhook's circuit breaker: closed, open or half_open.",
        labels=("node", "state"),
        read=_webhook_breaker,
    ),
    # Token streams.
    _counted("text_reads", "Reads of a run's token streams."),
    _counted("text_frames", "Parts of token streams sent to sessions."),
    # Frames.
    _counted("frames_received", "Frames of clients."),
    _counted("commands_stored", "Commands of users that are stored, and answers that were accepted.", "type"),
    _counted("frames_refused", "Frames of clients that were answered by an error.", "code"),
    # The store.
    _of_node(
        "ready", "Whether the node is ready (write, wake-up and read came back).", lambda node: not node.not_ready()
    ),
    _of_node("draining", "Whether the node is about to end.", lambda node: node.draining),
    _of_node("store_up", "Whether the store answers.", lambda node: node.store_failed_ms == 0),
    _counted(
        "requests_limited",
        "HTTP requests that were refused by a limit, by whose limit it was (`address`, `user`, `bodies`).",
        "of",
        known=("address", "user", "bodies"),
    ),
    _counted(
        "key_reloads",
        "Changes of the key files that were taken over (`done`), and looks at which they could not be (`failed`).",
        "outcome",
        known=("done", "failed"),
    ),
    _counted("store_errors", "Calls to the store that failed, by the error's code.", "code"),
    _linked(
        "link_connections",
        "Connections made to Redis for calls; more than one a primary are reconnects.",
        "connections",
        _C,
    ),
    _linked("link_redirects", "Calls that a server of a Cluster sent to another (MOVED, ASK).", "redirects", _C),
    _linked("link_unanswered", "Calls that Redis has not answered yet.", "unanswered", _G),
    _linked("link_unsent", "Calls that wait for a connection or a primary.", "waiting", _G),
    _counted("primary_changes", "Times that a primary was found elsewhere: failovers, and slots that moved."),
    _tallied_of_node("store_memory_bytes", "Memory of all primaries, told by one node of all.", _memory_bytes),
    _tallied_of_node(
        "store_memory_used_ratio",
        "Memory of the fullest primary as a share of its maxmemory, told by one node; absent without a limit.",
        _memory_share,
    ),
    _counted("wakeups", "Wake-ups that came."),
    _counted("subscriptions", "Subscriptions to the wake-ups; more than one means that they were lost in between."),
    Metric(
        name="backlog",
        type=_G,
        help="What waits for the node's next call to the store, by kind.",
        labels=("kind",),
        read=_waiting,
    ),
    # The node's publisher.
    _published("publish_duplicates", "Publishes that the store knew already.", "duplicates"),
    _published("publish_failures", "Publishes that failed for good.", "failed"),
    _published("publish_retries", "Events put back to be tried again.", "retries"),
    _published("publish_resent", "Events sent again because a primary may have changed.", "resent"),
    _published("publish_recovered", "Of these, events that the store had lost.", "recovered"),
    _published("publish_resend_failures", "Of these, events that could not be stored again.", "resend_failed"),
    _published("publish_kept_overflow", "Kept events dropped before their time, for lack of room.", "kept_overflow"),
    _published("publish_queued_events", "Events that wait for the store.", "queued_events", _G),
    _published("publish_queued_bytes", "Their size.", "queued_bytes", _G),
    _published("publish_breaker_opened", "How often the publisher's circuit breaker has opened.", "breaker_opened"),
    Metric(
        name="publish_breaker",
        type=_G,
        help="1 for the state of the publisher's circuit breaker: closed, open or half_open.",
        labels=("node", "state"),
        read=_breaker,
    ),
    # The process.
    Metric(
        name="log_lines",
        type=_C,
        help="Lines for the log from warnings on, by level, with those that were left out.",
        labels=("level",),
        read=_logged,
    ),
    Metric(
        name="log_lines_left_out",
        type=_C,
        help="Lines of any level that were not written, for their message repeats too often.",
        read=lambda _node: [((), COUNTS.left_out)],
    ),
    Metric(
        name="defects",
        type=_C,
        help="Errors with a trace in the log: each is a defect of the node, please report it.",
        read=lambda _node: [((), COUNTS.defects)],
    ),
    Metric(
        name="traces_left_out",
        type=_C,
        help="Deliveries whose spans were not recorded, for too many were open.",
        read=lambda node: [((), node.traces_left_out)],
    ),
    _counted("stalls", "Times that the node stood still for 5 s and more."),
    _of_node(
        "loop_lag_max_seconds",
        "Worst delay of the event loop in the last half to whole minute.",
        lambda node: node.lag.worst_s,
    ),
    _of_node("start_time_seconds", "When the node started, Unix time.", lambda node: node.started_ms / 1000),
    _of_node("cpu_seconds", "CPU time of the process.", lambda node: time.process_time(), _C),
    _of_node("resident_memory_bytes", "Memory of the process.", _resident_bytes),
    Metric(name="build_info", type=_G, help="Always 1.", labels=("node", "version", "python"), read=_build),
    # The parent of several workers.
    Metric(name="worker_up", type=_G, help="Whether a worker answers its parent; only with several.", labels=("node",)),
    Metric(name="worker_starts", type=_C, help="Processes started for a worker; only with several.", labels=("node",)),
)

_BY_NAME: Final = {metric.full_name: metric for metric in METRICS}


# --- snapshots --------------------------------------------------------------------------------------------------------


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


# --- the page ---------------------------------------------------------------------------------------------------------

_INTRODUCTION: Final = """\
# Metrics

<!-- Generated by `python -m gateway.metrics`; a test fails when it is stale. -->

`GET /metrics` on the admin port (`EVENTBUS_ADMIN_PORT`, 8081), in Prometheus's text format or as OpenMetrics. On a
loopback address it needs no token; on any other one with the scope `admin`, as `Authorization: Bearer <jwt>`.

With several workers (`EVENTBUS_WORKERS`) the admin port belongs to their parent: figures of the workers are added,
and those whose sum would mean nothing have the label `node`. The counters of a worker that was replaced stay in the
sums, up to the last time that they were read. No label names a user, a session or a run.

"""


def metrics_page() -> str:
    """The text of `docs/metrics.md`."""
    rows = ["| name | type | labels | what |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        if metric.known:
            labels += f" ({', '.join(metric.known)})"
        rows.append(f"| `{metric.full_name}` | {metric.type} | {labels} | {metric.help} |")
    return _INTRODUCTION + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(metrics_page())
