"""`python -m gateway.metrics` prints `docs/metrics.md`."""

from __future__ import annotations

import sys

from gateway.metrics.page import metrics_page

sys.stdout.write(metrics_page())
