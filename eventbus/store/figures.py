"""What is counted and indexed over a user's events and over all: records and a Protocol."""

from __future__ import annotations

from typing import Protocol

__all__ = ["FigureStore"]


class FigureStore(Protocol):
    """Counts by type, threads, presence."""
