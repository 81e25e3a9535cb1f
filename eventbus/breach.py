"""What a deadline that has passed means, and what operators are told of it. Pure."""
from __future__ import annotations
from enum import StrEnum

class OperatorKind(StrEnum):
    """What operators are told of."""

    MISSED_DEADLINE = "missed_deadline"
    RUN_ABANDONED = "run_abandoned"
    MISSED_CONFIRMATION = "missed_confirmation"
    WEBHOOK_FAILED = "webhook_failed"
