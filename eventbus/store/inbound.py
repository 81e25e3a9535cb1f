"""What the bus and the nodes ask of the store for the way back, from the user to the agent: records and a Protocol."""

from __future__ import annotations

from typing import Protocol

__all__ = ["InboundStore"]


class InboundStore(Protocol):
    """Commands of users, and the questions of agents that they answer."""
