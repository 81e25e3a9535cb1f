"""Shares of the partitions: every one is watched, evenly, and little moves when a node comes or goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus.ids import NodeName
from gateway.deadlines.shares import Shares

PARTITIONS = 1024
NAMES = st.sets(st.text("abcdefgh-0123456789", min_size=1, max_size=8).map(NodeName), min_size=1, max_size=8)


def _first(nodes: set[NodeName]) -> dict[NodeName, set[int]]:
    return {node: set(Shares(node, PARTITIONS).of(nodes).first) for node in nodes}


@pytest.mark.requirement("R17")
@given(NAMES)
def test_each_partition_is_one_nodes_own_and_another_stands_by(nodes: set[NodeName]) -> None:
    shares = [Shares(node, 64).of(nodes) for node in nodes]
    assert sorted(number for share in shares for number in share.first) == list(range(64))
    standing_by = sorted(number for share in shares for number in share.second)
    assert standing_by == (list(range(64)) if len(nodes) > 1 else [])
    for share in shares:
        assert not set(share.first) & set(share.second)


@given(NAMES)
def test_a_node_that_goes_leaves_its_share_to_those_that_stood_by(nodes: set[NodeName]) -> None:
    gone = min(nodes)
    left = nodes - {gone}
    before = {node: Shares(node, 64).of(nodes) for node in nodes}
    for node in left:
        after = set(Shares(node, 64).of(left).first)
        inherited = set(before[node].second) & set(before[gone].first)
        assert after == set(before[node].first) | inherited


def test_shares_are_about_even() -> None:
    shares = _first({NodeName(f"node-{number}") for number in range(4)})
    assert all(200 < len(share) < 320 for share in shares.values()), {k: len(v) for k, v in shares.items()}


def test_a_node_alone_or_not_yet_in_the_list_counts_itself() -> None:
    shares = Shares(NodeName("one"), PARTITIONS)
    assert shares.of([]).first == tuple(range(PARTITIONS))
    both = shares.of([NodeName("two")])
    assert 0 < len(both.first) < PARTITIONS
    assert sorted((*both.first, *both.second)) == list(range(PARTITIONS))
    assert shares.of([NodeName("two"), NodeName("one")]) is both, "nothing changed"
