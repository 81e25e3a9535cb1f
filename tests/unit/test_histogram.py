"""What took long is told apart from what did not."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from gateway.histogram import BOUNDS_MS, Histogram, Worst
from gateway.metrics import exposition, kept_for_good, merged, pack, snapshot, unpack
from tests.unit.test_metrics import FakeNode


def test_a_time_counts_in_the_first_bucket_that_is_long_enough_and_in_all_above() -> None:
    histogram = Histogram((10, 100))
    for took_ms in (0, 10, 11, 100, 101):
        histogram.add(took_ms)
    assert histogram.buckets() == [("0.01", 2), ("0.1", 4), ("+Inf", 5)]
    assert histogram.sum_ms == 222


def test_a_negative_time_of_clocks_that_differ_is_none() -> None:
    histogram = Histogram((10,))
    histogram.add(-5_000, 3)
    assert histogram.buckets() == [("0.01", 3), ("+Inf", 3)]
    assert histogram.sum_ms == 0


def test_bounds_rise() -> None:
    assert list(BOUNDS_MS) == sorted(set(BOUNDS_MS))


def test_prometheus_reads_the_histograms_of_several_workers_as_one() -> None:
    one, other = FakeNode(), FakeNode()
    one.counters.delivery_seconds.add(3, 2)
    other.counters.delivery_seconds.add(700)
    gone = kept_for_good(unpack(pack(snapshot(one))))
    body, _ = exposition(merged([gone, snapshot(other)]))
    samples = {
        (sample.name.removeprefix("eventbus_delivery_seconds"), sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if family.name == "eventbus_delivery_seconds"
    }
    assert samples["_bucket", "0.002"] == 0
    assert samples["_bucket", "0.005"] == 2
    assert samples["_bucket", "0.5"] == 2
    assert samples["_bucket", "+Inf"] == samples["_count", ""] == 3
    assert samples["_sum", ""] == 0.706


def test_the_worst_stays_for_one_span_at_least_and_two_at_most() -> None:
    worst = Worst(10)
    worst.add(7, 12)
    worst.add(3, 13)
    assert worst.at(19) == 7
    assert worst.at(23) == 7
    worst.add(2, 24)
    assert worst.at(34) == 2
    assert worst.at(60) == 0
