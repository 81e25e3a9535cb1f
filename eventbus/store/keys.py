"""The names of all keys and channels: `docs/keys.md` is their table, and a test holds it against a running store.

A user lives in the partition `crc32(user) mod partitions`, whose number is the hash tag of each of its keys, so that a
script, its keys and its shard channel share a slot. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Final
from zlib import crc32

from eventbus.ids import EventId, NodeName, RunId, UserId

__all__ = ["Keys", "PartitionKeys", "RevokedKeys", "UserKeys", "idempotency_field"]

_CACHED_USERS: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionKeys:
    """What the users of a partition share.

    Attributes:
        epoch: a random word that stands for this life of the data.
        bucket_even: idempotency fields of the even windows.
        bucket_odd: those of the odd ones.
        dead: the dead letters.
        replicated: a mark that is written before the replicas are asked how far they are.
        due: deadlines to watch, by the time when they are due.
        operators: events for the operators: missed deadlines, closed runs, escalations.
        counts: how many entries of which type reached which state.
        waiting: users for whom something waits, by the time of the oldest entry that does.
        paused: types of which nothing is taken.
        channel: what the shard channels begin with; the node's name follows.
    """

    number: int
    epoch: str
    bucket_even: str
    bucket_odd: str
    dead: str
    replicated: str
    due: str
    operators: str
    counts: str
    waiting: str
    paused: str
    channel: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UserKeys:
    """The keys of one user, and those of the partition.

    Attributes:
        stream: the entries.
        live: session -> `<node> <connection> <stamp_ms>`.
        known: session -> `<created_ms> <last_seen_ms> <cursor>`.
        records: the confirmations.
        commands: what the user sent to agents.
        questions: the open questions of agents.
        released: entry ids of `deliver: any` events that a session has acked.
        threads: thread -> time of its last event.
        texts: the token streams that are open.
        gaps: session -> gaps of which its client may not have heard.
        allowances: what the user may still do.
        channel: the shard channel on which agents hear of commands and presence.
    """

    stream: str
    live: str
    known: str
    records: str
    commands: str
    questions: str
    released: str
    threads: str
    texts: str
    gaps: str
    allowances: str
    channel: str
    partition: PartitionKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedKeys:
    """What is revoked, in one partition for all users.

    Attributes:
        records: subject -> `<number> <revoked_ms> <until_ms> <JSON>`.
        order: the subjects by number.
        ends: the subjects by the time when their revocation ends.
        channel: what the shard channels begin with; the node's name follows.
    """

    records: str
    order: str
    ends: str
    channel: str


def idempotency_field(user: UserId, event: EventId) -> bytes:
    """16 bytes that stand for an event of a user; with a NUL between the two, which neither may contain (D13)."""
    return blake2b(f"{user}\0{event}".encode(), digest_size=16).digest()


class Keys:
    """Makes key names.

    Args:
        namespace: the first part of every key.
        partitions: their number, fixed when an installation is made.
    """

    __slots__ = ("_partitions", "_users", "audit", "held_nodes", "namespace", "nodes", "partitions", "revoked")

    def __init__(self, namespace: str, partitions: int) -> None:
        self.namespace = namespace
        self.partitions = partitions
        self.nodes = f"{namespace}:nodes"
        self.held_nodes = f"{namespace}:nodes:held"
        self._partitions: dict[int, PartitionKeys] = {}
        self._users: dict[UserId, UserKeys] = {}
        home = self.partition(self.partition_of("revocations"))
        tag = f"{namespace}:{{{home.number}}}:b"
        self.audit = f"{namespace}:{{{self.partition_of('audit')}}}:audit"
        self.revoked = RevokedKeys(records=tag, order=f"{tag}:order", ends=f"{tag}:ends", channel=home.channel)

    def partition_of(self, user: str) -> int:
        """The partition of a user (or of whatever else is spread over the partitions)."""
        return crc32(user.encode()) % self.partitions

    def partition(self, number: int) -> PartitionKeys:
        """The keys of a partition."""
        known = self._partitions.get(number)
        if known is None:
            tag = f"{self.namespace}:{{{number}}}"
            known = self._partitions[number] = PartitionKeys(
                number=number,
                epoch=f"{tag}:e",
                bucket_even=f"{tag}:i:0",
                bucket_odd=f"{tag}:i:1",
                dead=f"{tag}:x",
                replicated=f"{tag}:y",
                due=f"{tag}:due",
                operators=f"{tag}:o",
                counts=f"{tag}:m",
                waiting=f"{tag}:z",
                paused=f"{tag}:j",
                channel=f"{tag}:w:",
            )
        return known

    def user(self, user: UserId) -> UserKeys:
        """The keys of a user; kept for the next time, for some memory."""
        known = self._users.get(user)
        if known is None:
            if len(self._users) >= _CACHED_USERS:
                self._users.clear()
            partition = self.partition(self.partition_of(user))
            tag = f"{self.namespace}:{{{partition.number}}}"
            known = self._users[user] = UserKeys(
                stream=f"{tag}:s:{user}",
                live=f"{tag}:l:{user}",
                known=f"{tag}:n:{user}",
                records=f"{tag}:c:{user}",
                commands=f"{tag}:u:{user}",
                questions=f"{tag}:q:{user}",
                released=f"{tag}:a:{user}",
                threads=f"{tag}:h:{user}",
                texts=f"{tag}:v:{user}",
                gaps=f"{tag}:g:{user}",
                allowances=f"{tag}:f:{user}",
                channel=f"{tag}:d:{user}",
                partition=partition,
            )
        return known

    def run(self, user: UserId, run: RunId) -> str:
        """The key of a run's state, in its user's partition. An application may give the runs of two users one id."""
        return f"{self.namespace}:{{{self.partition_of(user)}}}:r:{user}/{run}"

    def text(self, user: UserId, run: RunId) -> str:
        """The key of a run's token deltas, in its user's partition."""
        return f"{self.namespace}:{{{self.partition_of(user)}}}:t:{user}/{run}"

    def of_user(self, user: UserId) -> list[str]:
        """The keys that are a user's alone, but for those of runs, which `runs_pattern_of` finds."""
        named = self.user(user)
        others = ("channel", "partition")
        return [str(getattr(named, field.name)) for field in fields(named) if field.name not in others]

    def runs_pattern_of(self, user: UserId) -> str:
        """A glob that the keys of a user's runs and texts match, and no others: no user id has a sign of it."""
        return f"{self.namespace}:{{{self.partition_of(user)}}}:[rt]:{user}/*"

    def is_of(self, user: UserId, key: str) -> bool:
        """Whether a key is that user's alone."""
        tag = f"{self.namespace}:{{{self.partition_of(user)}}}"
        return key in self.of_user(user) or key.startswith((f"{tag}:r:{user}/", f"{tag}:t:{user}/"))

    def run_pattern(self) -> str:
        """A glob that every run's key matches."""
        return f"{self.namespace}:{{*}}:r:*"

    def run_of(self, key: str) -> tuple[UserId, RunId] | None:
        """Whose run that is and which, None when it is none of ours."""
        head, tagged, rest = key.partition(":{")
        number, closed, name = rest.partition("}:r:")
        user, slash, run = name.partition("/")
        if head != self.namespace or not tagged or not closed or not slash or not user or not run:
            return None
        return (UserId(user), RunId(run)) if number == str(self.partition_of(user)) else None

    def ticket(self, ticket: str) -> str:
        """The key of a ticket."""
        return f"{self.namespace}:{{{self.partition_of(ticket)}}}:k:{ticket}"

    def probe(self, node: NodeName, number: int) -> str:
        """The key of a node's probe of a partition."""
        return f"{self.namespace}:{{{number}}}:p:{node}"

    def channels(self, node: NodeName) -> list[str]:
        """The shard channels of a node, one for each partition."""
        return [self.partition(number).channel + node for number in range(self.partitions)]

    def stream_pattern(self) -> str:
        """A glob that every user's stream matches."""
        return f"{self.namespace}:{{*}}:s:*"

    def user_of_stream(self, key: str) -> UserId | None:
        """Whose stream that is, None when it is none of ours."""
        head, tagged, rest = key.partition(":{")
        number, closed, user = rest.partition("}:s:")
        if head != self.namespace or not tagged or not closed or not user:
            return None
        return UserId(user) if number == str(self.partition_of(user)) else None
