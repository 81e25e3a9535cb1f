"""What a node measures, as one table: name, type, help, labels, and how each figure is read.

`measured` says what is read of a node, `metric` what a row of the table is, `reading` how rows are read, and `table`
has them. `snapshot` reads a node's figures, `merged` adds those of several nodes, `exposition` writes them for
Prometheus. The page docs/metrics.md is made of the same rows: `python -m gateway.metrics > docs/metrics.md`.

No label ever names a user, a session or a run: there are millions of them. Figures of several nodes are added; where a
sum means nothing the metric has the label `node`.
"""

from __future__ import annotations

from gateway.metrics.lag import LoopLag
from gateway.metrics.measured import Measured
from gateway.metrics.metric import PREFIX, Metric, MetricType, Snapshot
from gateway.metrics.page import metrics_page
from gateway.metrics.prometheus import exposition
from gateway.metrics.snapshots import kept_for_good, merged, pack, snapshot, unpack
from gateway.metrics.table import METRICS

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
