"""Every test here harms real processes; the clients and the publisher are processes too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.load.replicated import new_cluster_world, new_sentinel_world
from tests.support.load.world import new_world

__all__ = ["new_cluster_world", "new_sentinel_world", "new_world"]

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.fault)
