"""What the bus and the nodes ask of the store for token streams: records and a Protocol."""

from __future__ import annotations

from typing import Protocol

__all__ = ["TextStore"]


class TextStore(Protocol):
    """Token deltas of runs."""
