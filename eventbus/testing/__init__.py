"""What users of the bus need to test their own agents without a server: a Store in memory and a clock by hand.

Source: docs/testing.md.
"""

from eventbus.testing.manual_clock import ManualClock, Timer
from eventbus.testing.memory_store import MemoryStore

__all__ = ["ManualClock", "MemoryStore", "Timer"]
