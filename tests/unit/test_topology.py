"""Slots, maps and decisions: what a link does when a cluster is not as it was."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus.ids import UserId
from eventbus.store.keys import Keys
from eventbus.store.topology import (
    LANES,
    SLOTS,
    Address,
    SlotMap,
    Step,
    decide,
    lane_of,
    parse_redirect,
    slot_of,
)

HERE = Address(host="10.0.0.1", port=6379)
THERE = Address(host="10.0.0.2", port=6380)


# --- slots ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, slot",
    [
        ("123456789", 0x31C3),  # the check value of CRC-16/XMODEM, as the specification of Cluster gives it
        ("foo", 12182),
        ("{foo}.bar", 12182),
        ("a{foo}{bar}", 12182),
        ("foo{{bar}}zap", slot_of("{bar")),
        ("", 0),
    ],
)
def test_slot_is_that_of_the_specification(key: str, slot: int) -> None:
    assert slot_of(key) == slot == slot_of(key.encode())


@pytest.mark.parametrize("key", ["{}foo", "foo{}bar", "foo{bar", "foo}bar{", "}{"])
def test_key_without_a_tag_is_hashed_whole(key: str) -> None:
    assert slot_of(key) == _slot_by_bits(key.encode())


@given(st.binary(max_size=40).filter(lambda text: b"{" not in text))
def test_slot_of_any_text_is_its_checksum(text: bytes) -> None:
    assert slot_of(text) == _slot_by_bits(text)


@given(st.binary(max_size=10), st.binary(min_size=1, max_size=10), st.binary(max_size=10))
def test_tag_alone_decides(before: bytes, tag: bytes, after: bytes) -> None:
    before, tag = before.replace(b"{", b""), tag.replace(b"}", b"")
    if tag:
        assert slot_of(before + b"{" + tag + b"}" + after) == _slot_by_bits(tag)


@given(st.text(min_size=1, max_size=20), st.integers(1, 2000))
def test_all_keys_and_channels_of_a_user_share_a_slot(name: str, partitions: int) -> None:
    """Also for a user whose name has braces in it."""
    keys = Keys("eb", partitions)
    user = keys.user(UserId(name))
    number = keys.partition_of(name)
    every = [
        *(getattr(user, field) for field in ("stream", "live", "known", "records", "commands", "released", "channel")),
        *(getattr(user.partition, field) for field in ("epoch", "bucket_even", "bucket_odd", "dead", "due")),
        user.partition.channel + "node-1",
    ]
    assert {slot_of(key) for key in every} == {slot_of(f"{{{number}}}")}


def _slot_by_bits(text: bytes) -> int:
    """CRC-16/XMODEM, bit by bit."""
    crc = 0
    for byte in text:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1
        crc &= 0xFFFF
    return crc % SLOTS


# --- maps -------------------------------------------------------------------------------------------------------------

REPLY = [
    [0, 5460, [b"10.0.0.1", 6379, b"a" * 40, []], [b"10.0.0.4", 6379, b"d" * 40, []]],
    [5461, 10922, [b"10.0.0.2", 6380, b"b" * 40, [b"hostname", b"two"]]],
    [10923, 16383, [b"", 6381, b"c" * 40]],
]


def test_map_names_the_primary_of_each_slot() -> None:
    slots = SlotMap.from_slots(REPLY, HERE)
    assert slots.owner(0) == slots.owner(5460) == HERE
    assert slots.owner(5461) == slots.owner(10922) == THERE
    assert slots.complete
    assert slots.primaries == (HERE, Address(host="10.0.0.1", port=6381), THERE)
    assert slots.slots(THERE) == list(range(5461, 10923))


@pytest.mark.parametrize("host", [b"", None, b"?"])
def test_host_that_is_not_told_is_that_of_the_server_asked(host: bytes | None) -> None:
    """A server that has not learnt its own address, or that prefers host names and has none."""
    slots = SlotMap.from_slots([[0, SLOTS - 1, [host, 7000, b"a" * 40]]], HERE)
    assert slots.primaries == (Address(host=HERE.host, port=7000),)


def test_map_with_a_hole_is_not_complete() -> None:
    slots = SlotMap.from_slots([REPLY[0], REPLY[2]], HERE)
    assert not slots.complete
    assert slots.owner(7000) is None
    assert not SlotMap.from_slots([], HERE).primaries


@pytest.mark.parametrize(
    "reply",
    [
        None,
        7,
        [7],
        [[0, 1]],
        [[0, SLOTS, [b"h", 1, b"id"]]],
        [[5, 4, [b"h", 1, b"id"]]],
        [[-1, 4, [b"h", 1, b"id"]]],
        [[0, 1, []]],
        [[0, 1, [b"h", b"1", b"id"]]],
        [[0, 1, [b"\xff", 1, b"id"]]],
        [[b"0", b"1", [b"h", 1, b"id"]]],
    ],
)
def test_what_is_no_answer_to_cluster_slots_is_refused(reply: object) -> None:
    with pytest.raises(ValueError, match=r"slots|SLOTS"):
        SlotMap.from_slots(reply, HERE)


def test_single_server_has_every_slot() -> None:
    slots = SlotMap.single(HERE)
    assert slots.primaries == (HERE,)
    assert {slots.owner(slot) for slot in range(SLOTS)} == {HERE}


owners = st.lists(st.sampled_from((HERE, THERE, None)), min_size=4, max_size=4)


def _map(quarters: Sequence[Address | None]) -> SlotMap:
    return SlotMap([owner for owner in quarters for _ in range(SLOTS // 4)])


@given(owners, st.integers(0, SLOTS - 1))
def test_moved_changes_one_slot_and_no_other(quarters: list[Address | None], slot: int) -> None:
    before = _map(quarters)
    after = before.moved(slot, THERE)
    assert after.owner(slot) == THERE
    assert before.differing(after, range(SLOTS)) == ([] if before.owner(slot) == THERE else [slot])
    assert before == _map(quarters), "a map never changes"


@given(owners, owners)
def test_difference_of_two_maps_is_every_slot_whose_primary_changed(
    one: list[Address | None], other: list[Address | None]
) -> None:
    asked = [0, SLOTS // 4, SLOTS // 2, SLOTS - 1]
    expected = [slot for slot, was, now in zip(asked, one, other, strict=True) if was != now]
    assert _map(one).differing(_map(other), asked) == expected
    assert (_map(one) == _map(other)) is (one == other)


@given(owners)
def test_slots_of_all_primaries_are_all_slots_that_are_served(quarters: list[Address | None]) -> None:
    slots = _map(quarters)
    served = sorted(slot for primary in slots.primaries for slot in slots.slots(primary))
    assert served == [slot for slot in range(SLOTS) if slots.owner(slot) is not None]
    assert slots.complete is (len(served) == SLOTS)


# --- decisions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, step",
    [
        ("NOSCRIPT No matching script. Please use EVAL.", Step.LOAD),
        ("LOADING Redis is loading the dataset in memory", Step.AGAIN),
        ("TRYAGAIN Multiple keys request during rehashing of slot", Step.AGAIN),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", Step.AGAIN),
        ("NOREPLICAS Not enough good replicas to write.", Step.AGAIN),
        ("READONLY You can't write against a read only replica.", Step.DISCOVER),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", Step.DISCOVER),
        ("CLUSTERDOWN The cluster is down", Step.DISCOVER),
        ("CLUSTERDOWN Hash slot not served", Step.DISCOVER),
        ("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)", Step.DISCOVER),
        ("OOM command not allowed when used memory > 'maxmemory'.", Step.FAIL),
        ("NOGROUP No such key 'eb:{1}:s:a' or consumer group 'phone'", Step.FAIL),
        ("MISCONF Errors writing to the AOF file: No space left on device", Step.FAIL),
        ("WRONGPASS invalid username-password pair or user is disabled.", Step.FAIL),
        ("NOPERM User bus has no permissions to run the 'flushall' command", Step.FAIL),
        ("NOAUTH Authentication required.", Step.FAIL),
        ("CROSSSLOT Keys in request don't hash to the same slot", Step.FAIL),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", Step.FAIL),
        ("ERR unknown command 'x'", Step.FAIL),
        ("", Step.FAIL),
    ],
)
def test_each_refusal_has_its_step(error: str, step: Step) -> None:
    decision = decide(error, HERE)
    assert decision.step is step
    assert decision.why
    assert decision.redirect is None


def test_moved_and_ask_name_the_server_and_the_slot() -> None:
    moved, asked = decide("MOVED 3999 10.0.0.2:6380", HERE), decide("ASK 3999 10.0.0.2:6380", HERE)
    assert (moved.step, asked.step) == (Step.MOVED, Step.ASK)
    for decision in (moved, asked):
        assert decision.redirect is not None
        assert (decision.redirect.slot, decision.redirect.address) == (3999, THERE)


@pytest.mark.parametrize(
    "target, address",
    [
        ("::1:6380", Address(host="::1", port=6380)),
        (":6380", Address(host="10.0.0.1", port=6380)),
        ("?:6380", Address(host="10.0.0.1", port=6380)),
        ("two.example.org:6380", Address(host="two.example.org", port=6380)),
    ],
)
def test_redirection_by_name_ipv6_or_without_a_host(target: str, address: Address) -> None:
    redirect = parse_redirect(f"MOVED 1 {target}", HERE)
    assert redirect is not None
    assert redirect.address == address


@pytest.mark.parametrize(
    "error",
    [
        "MOVED",
        "MOVED 1",
        "MOVED x 10.0.0.2:6380",
        "MOVED 16384 10.0.0.2:6380",
        "MOVED -1 10.0.0.2:6380",
        "MOVED 1 10.0.0.2",
        "MOVED 1 10.0.0.2:99999",
        "ASK 1 10.0.0.2:6380 more",
        "ASK ² 10.0.0.2:6380",
        "MOVEDX 1 10.0.0.2:6380",
    ],
)
def test_redirection_that_can_not_be_read_is_the_answer(error: str) -> None:
    assert parse_redirect(error, HERE) is None
    assert decide(error, HERE).step is Step.FAIL


@given(st.text(max_size=60))
def test_every_text_has_a_decision(error: str) -> None:
    decision = decide(error, HERE)
    assert (decision.redirect is not None) is (decision.step in (Step.MOVED, Step.ASK))


@given(st.integers(0, SLOTS - 1), st.integers(0, 65_535), st.sampled_from(("a", "10.1.2.3", "::1", "fe80::7")))
def test_redirection_survives_the_way_over_the_wire(slot: int, port: int, host: str) -> None:
    redirect = parse_redirect(f"ASK {slot} {host}:{port}", HERE)
    assert redirect is not None
    assert (redirect.slot, redirect.address.host, redirect.address.port) == (slot, host, port)


def test_address_is_written_as_one_types_it() -> None:
    assert str(HERE) == "10.0.0.1:6379"
    assert str(Address(host="::1", port=1)) == "[::1]:1"


def test_map_of_another_size_is_no_map() -> None:
    with pytest.raises(ValueError, match="16384"):
        SlotMap([HERE])


def test_lanes_are_ranges_of_slots_of_one_size_that_primaries_of_a_new_cluster_do_not_share() -> None:
    lanes = [lane_of(slot) for slot in range(SLOTS)]
    assert lanes == sorted(lanes)
    assert set(lanes) == set(range(LANES))
    for primaries in (2, 3, 4, 6):
        owners = [{slot * primaries // SLOTS for slot in range(SLOTS) if lanes[slot] == lane} for lane in range(LANES)]
        assert all(len(owned) == 1 for owned in owners)
