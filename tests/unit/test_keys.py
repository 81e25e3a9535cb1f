"""Key names: one hash tag for all that a script touches, and no two users under one name."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus.ids import EventId, NodeName, UserId
from eventbus.store.keys import Keys, idempotency_field

users = st.from_regex(r"[A-Za-z0-9_.@:|+-]{1,128}", fullmatch=True).map(UserId)
events = st.from_regex(r"[A-Za-z0-9_.:-]{1,64}", fullmatch=True).map(EventId)


def tag_of(key: str) -> str:
    """What Redis hashes: what is between the first brace and the next closing one."""
    return key.partition("{")[2].partition("}")[0]


@given(users)
def test_all_keys_of_a_user_and_the_channels_share_a_slot(user: UserId) -> None:
    keys = Keys("eb", 1024).user(user)
    partition = keys.partition
    names = [keys.stream, keys.live, keys.known, keys.records, partition.epoch, partition.bucket_even]
    names += [partition.bucket_odd, partition.dead, partition.replicated, partition.channel]
    assert {tag_of(name) for name in names} == {str(crc32(user.encode()) % 1024)}
    assert len(set(names)) == len(names)


@given(users)
def test_user_is_found_again_in_the_name_of_its_stream(user: UserId) -> None:
    keys = Keys("eb", 64)
    assert keys.user_of_stream(keys.user(user).stream) == user


@given(users, users)
def test_two_users_have_no_key_in_common(one: UserId, other: UserId) -> None:
    keys = Keys("eb", 2)
    mine, others = keys.user(one), keys.user(other)
    assert one == other or {mine.stream, mine.live, mine.known, mine.records}.isdisjoint(
        {others.stream, others.live, others.known, others.records}
    )


@pytest.mark.parametrize(
    "key",
    ["eb:{0}:l:alice", "other:{0}:s:alice", "eb:{99}:s:alice", "eb:nodes", "eb:{0}:s:", "eb:{x}:s:alice", "", "eb:{0}"],
)
def test_foreign_keys_are_nobodys_stream(key: str) -> None:
    assert Keys("eb", 4).user_of_stream(key) is None


def test_names_are_the_documented_ones() -> None:
    keys = Keys("eb", 1024)
    number = crc32(b"alice") % 1024
    assert keys.user(UserId("alice")).stream == f"eb:{{{number}}}:s:alice"
    assert keys.nodes == "eb:nodes"
    assert keys.channels(NodeName("n1"))[3] == "eb:{3}:w:n1"
    assert len(keys.channels(NodeName("n1"))) == 1024


def test_installations_in_one_redis_share_no_key() -> None:
    one, other = Keys("eb", 8), Keys("stage", 8)
    alice = UserId("alice")
    assert one.user(alice).stream != other.user(alice).stream
    assert one.nodes != other.nodes
    assert one.user_of_stream(other.user(alice).stream) is None


@given(users, events, users, events)
def test_idempotency_fields_differ_unless_both_ids_are_the_same(
    user: UserId, event: EventId, other: UserId, another: EventId
) -> None:
    """D13."""
    same = idempotency_field(user, event) == idempotency_field(other, another)
    assert same == ((user, event) == (other, another))


def test_idempotency_field_keeps_user_and_event_apart() -> None:
    """D13: joined by a colon these two would be one."""
    assert idempotency_field(UserId("a:b"), EventId("c")) != idempotency_field(UserId("a"), EventId("b:c"))
    assert len(idempotency_field(UserId("a"), EventId("b"))) == 16
