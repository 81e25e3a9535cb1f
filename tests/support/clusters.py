"""Real clusters on the loopback: primaries and replicas in processes of their own, and what happens to clusters.

Everything here blocks; a test with an event loop calls what takes long by `asyncio.to_thread` where it matters.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from eventbus.embedded import EmbeddedServer, ServerBinary
from eventbus.store.topology import SLOTS, Address, SlotMap, slot_of
from tests.support.certificates import Authority
from tests.support.places import Place
from tests.support.ports import free_port
from tests.support.resp import Refused, Talk, ask, info
from tests.support.servers import ServerPool, freeze, thaw
from tests.support.waiting import until_blocking

# Replication has a user of its own, so that it can be refused while everything else goes on: a replica that is cut off.
_REPLICATION = ("replication", "a-password-of-the-tests")
_MOST_MS = 20_000


class Member:
    """One process of a cluster.

    Attributes:
        server: the process.
        tls_port: where it speaks TLS, 0 for nowhere.
        id: its name in the cluster; empty before the cluster was made.
    """

    def __init__(self, server: EmbeddedServer, tls_port: int = 0) -> None:
        self.server = server
        self.tls_port = tls_port
        self.id = ""

    def __repr__(self) -> str:
        return f"<Member {self.port}>"

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def address(self) -> Address:
        return Address(host="127.0.0.1", port=self.port)

    def ask(self, *words: str | bytes | int) -> Any:
        """As `resp.ask`."""
        return ask(self.port, *words)

    def info(self, section: str) -> dict[str, str]:
        """As `resp.info`."""
        return info(self.port, section)

    @property
    def role(self) -> str:
        """`master` or `slave`, as the server says it."""
        return self.info("replication")["role"]

    def cluster_info(self) -> dict[str, str]:
        """CLUSTER INFO, by name."""
        lines = self.ask("CLUSTER", "INFO").decode().split("\r\n")
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def refuse_replicas(self) -> None:
        """Cuts every replica off: they lose their connection and do not get another. The rest of the cluster's talk
        goes on, so nobody notices.
        """
        refuse_replicas(self.port)

    def accept_replicas(self) -> None:
        """Ends `refuse_replicas`."""
        accept_replicas(self.port)


class Cluster:
    """A cluster: made, harmed and mended.

    Args:
        directory: where the members have theirs.
        binary: the server program.
        primaries: how many, each with the same share of the slots.
        node_timeout_ms: after so long without a sign a member counts as failed.
        extra: further arguments of each member.
        appendonly: whether the members have files; without, a restart brings them back empty.
        authority: signs a certificate with which the members speak TLS, beside plain TCP for the tests themselves.
    """

    def __init__(
        self,
        directory: Path,
        binary: ServerBinary,
        *,
        primaries: int = 3,
        node_timeout_ms: int = 2_000,
        extra: Sequence[str] = (),
        appendonly: bool = True,
        authority: Authority | None = None,
    ) -> None:
        self._shares = primaries
        self._pair = None if authority is None else authority.sign("member")
        self._authority = authority
        self.node_timeout_ms = node_timeout_ms
        self.members: list[Member] = []
        for number in range(2 * primaries):
            port, bus, tls_port = free_port(), free_port(), free_port()
            server = EmbeddedServer(
                directory / f"member-{number}",
                binary=binary,
                port=port,
                appendonly=appendonly,
                extra=(*_settings(bus, node_timeout_ms), *self._tls(tls_port), *extra),
            )
            self.members.append(Member(server, tls_port if authority is not None else 0))

    @property
    def url(self) -> str:
        """Where clients begin: all members that run, whatever their role."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{member.port}" for member in self.members)

    @property
    def tls_url(self) -> str:
        """The same over TLS, without what a client needs for it."""
        return "rediss+cluster://" + ",".join(f"127.0.0.1:{member.tls_port}" for member in self.members)

    def _tls(self, port: int) -> tuple[str, ...]:
        if self._authority is None or self._pair is None:
            return ()
        return (
            *("--tls-port", str(port), "--tls-cert-file", str(self._pair.certificate)),
            *("--tls-key-file", str(self._pair.key), "--tls-ca-cert-file", str(self._authority.path)),
            *("--tls-cluster", "yes", "--tls-replication", "yes"),
        )

    # --- making -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the members, joins them to a cluster with a replica for each primary, and waits until it works."""
        for member in self.members:
            member.server.start()
            member.id = member.ask("CLUSTER", "MYID").decode()
        first, rest = self.members[: self._shares], self.members[self._shares :]
        bounds = [share * SLOTS // self._shares for share in range(self._shares + 1)]
        for number, member in enumerate(self.members):
            member.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number, member in enumerate(first):
            member.ask("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        for member in self.members:
            for other in self.members:
                if other is not member:
                    member.ask("CLUSTER", "MEET", "127.0.0.1", other.port, self._bus_port(other))
        ids = {member.id for member in self.members}
        for member in self.members:
            until_blocking(lambda member=member: self._known(member) >= ids, _MOST_MS, f"{member} knows all members")  # type: ignore[misc]
        for primary, replica in zip(first, rest, strict=True):
            replica.ask("CLUSTER", "REPLICATE", primary.id)
        self.wait_ok()

    def kill_all(self) -> None:
        """SIGKILL to every member, frozen ones too."""
        for member in self.members:
            member.server.kill()

    def restart_all(self) -> None:
        """Every member dies at once and comes back with its file; returns when the cluster works again."""
        self.kill_all()
        for member in self.members:
            member.server.start()
        self.wait_ok()

    def flush(self) -> None:
        """Every primary is emptied, and its replicas have done the same."""
        for member in self.primaries:
            member.ask("FLUSHALL")

    @staticmethod
    def _bus_port(member: Member) -> int:
        return int(member.ask("CONFIG", "GET", "cluster-port")[1])

    @staticmethod
    def _known(member: Member) -> set[str]:
        """The ids of the members with which the handshake is over."""
        lines = [line.split() for line in member.ask("CLUSTER", "NODES").decode().splitlines()]
        return {words[0] for words in lines if "handshake" not in words[2] and "noaddr" not in words[2]}

    # --- looking ------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> list[Member]:
        """The members whose process lives."""
        return [member for member in self.members if member.server.running]

    @property
    def primaries(self) -> list[Member]:
        """The members that call themselves primary and have slots, in the order of `members`."""
        return [member for member in self.running if self._has_slots(member)]

    def _has_slots(self, member: Member) -> bool:
        try:
            lines = member.ask("CLUSTER", "NODES").decode().splitlines()
        except OSError:
            return False
        own = next(words for words in (line.split() for line in lines) if "myself" in words[2])
        return "master" in own[2] and len(own) > 8

    def map(self) -> SlotMap:
        """The slots as the first member sees them that answers and finds the cluster in order."""
        for member in self.running:
            with contextlib.suppress(OSError, Refused):
                if member.cluster_info()["cluster_state"] == "ok":
                    return SlotMap.from_slots(member.ask("CLUSTER", "SLOTS"), member.address)
        raise AssertionError("no member finds the cluster in order")

    def owner(self, key: str | bytes) -> Member:
        """The primary that has a key's slot."""
        address = self.map().owner(slot_of(key))
        return next(member for member in self.members if member.address == address)

    @property
    def place(self) -> Place:
        """Where the data lies, whoever is primary at the time."""
        return Place(lambda: [one.server.url for one in self.primaries], lambda key: self.owner(key).server.url)

    def replica(self, primary: Member) -> Member:
        """A replica of a primary, as the replica says itself."""
        for member in self.running:
            if member is not primary:
                found = member.info("replication")
                if found["role"] == "slave" and int(found["master_port"]) in (primary.port, primary.tls_port):
                    return member
        raise AssertionError(f"{primary} has no replica")

    def ask_owner(self, key: str, *words: str | bytes | int) -> Any:
        """A command to the primary of a key."""
        return self.owner(key).ask(*words)

    def wait_ok(self, timeout_ms: int = _MOST_MS) -> None:
        """Waits until every member that runs finds the cluster in order, agrees on the slots, and every replica that
        runs is in step.
        """

        def ok() -> bool:
            maps = []
            for member in self.running:
                try:
                    if member.cluster_info()["cluster_state"] != "ok":
                        return False
                    maps.append(SlotMap.from_slots(member.ask("CLUSTER", "SLOTS"), member.address))
                    found = member.info("replication")
                except (OSError, Refused):
                    return False
                if found["role"] == "slave" and found["master_link_status"] != "up":
                    return False
            return all(slots.complete and slots == maps[0] for slots in maps)

        until_blocking(ok, timeout_ms, "the cluster is in order")

    # --- harm ---------------------------------------------------------------------------------------------------------

    def kill(self, member: Member) -> None:
        """SIGKILL to one member."""
        member.server.kill()

    def revive(self, member: Member) -> None:
        """A killed member comes back with its files."""
        member.server.start()

    def freeze(self, member: Member) -> None:
        """One member stands still."""
        freeze(member.server.pid)

    def thaw(self, member: Member) -> None:
        """Ends `freeze`."""
        thaw(member.server.pid)

    def promoted(self, replica: Member, timeout_ms: int = _MOST_MS) -> int:
        """Waits until a replica is a primary. Returns the moment when that was seen, `time.monotonic_ns` in ms."""

        def primary() -> bool:
            with contextlib.suppress(OSError, Refused):
                return replica.role == "master"
            return False

        until_blocking(primary, timeout_ms, f"{replica} is promoted")
        return time.monotonic_ns() // 1_000_000

    def fail_over(self, replica: Member, how: str = "") -> int:
        """CLUSTER FAILOVER on a replica; returns when it is the primary, as `promoted`.

        Args:
            replica: the primary to be.
            how: empty (in agreement with the primary: nothing is lost), `FORCE` or `TAKEOVER` (whatever it has).
        """
        replica.ask("CLUSTER", "FAILOVER", *([how] if how else []))
        return self.promoted(replica)

    # --- moving slots -------------------------------------------------------------------------------------------------

    def move_slot(self, slot: int, target: Member, *, between: Callable[[str], None] | None = None) -> None:
        """Moves a slot in the classic way, key by key.

        Args:
            slot: which.
            target: where to.
            between: told what comes next: `opened` (both sides know of the move, no key has moved), `moved` (all keys
                have, the slot has not).
        """
        address = self.map().owner(slot)
        source = next(member for member in self.members if member.address == address)
        tell = between or (lambda _stage: None)
        with contextlib.closing(Talk(source.port)) as from_source, contextlib.closing(Talk(target.port)) as to_target:
            to_target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
            from_source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
            tell("opened")
            while keys := from_source.ask("CLUSTER", "GETKEYSINSLOT", slot, 50):
                from_source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *keys)
            tell("moved")
            # The target first: a source that has let go of a slot that nobody has would lose writes.
            to_target.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)
            from_source.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)
            for member in self.primaries:
                member.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def move_atomically(self, first: int, last: int, target: Member, timeout_ms: int = _MOST_MS) -> None:
        """Moves a range of slots of one primary as a whole (Valkey 9: CLUSTER MIGRATESLOTS); returns when done."""
        address = self.map().owner(first)
        source = next(member for member in self.members if member.address == address)
        source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", target.id)

        def moved() -> bool:
            return all(
                SlotMap.from_slots(member.ask("CLUSTER", "SLOTS"), member.address).owner(last) == target.address
                for member in (source, target)
            )

        until_blocking(moved, timeout_ms, f"slots {first} to {last} are at {target}")


def _settings(bus: int, node_timeout_ms: int) -> tuple[str, ...]:
    return (
        *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-port", str(bus)),
        *("--cluster-node-timeout", str(node_timeout_ms)),
        # A primary that is down stops its own slots alone, and a replica that was cut off is promoted all the same:
        # that is what the tests are about.
        *("--cluster-require-full-coverage", "no", "--cluster-replica-validity-factor", "0"),
        *("--cluster-allow-replica-migration", "no"),
        *replication_settings(),
    )


def replication_settings() -> tuple[str, ...]:
    """Arguments of every server that replicates: quick, and with a user of its own for `refuse_replicas`."""
    user, password = _REPLICATION
    return (
        *("--masteruser", user, "--masterauth", password),
        *("--user", user, "on", f">{password}", "~*", "&*", "+@all"),
        *("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"),
    )


def refuse_replicas(port: int) -> None:
    """As `Member.refuse_replicas`, for any server with `replication_settings`."""
    ask(port, "ACL", "SETUSER", _REPLICATION[0], "off")
    ask(port, "CLIENT", "KILL", "TYPE", "replica")


def accept_replicas(port: int) -> None:
    """Ends `refuse_replicas`."""
    ask(port, "ACL", "SETUSER", _REPLICATION[0], "on")


NewCluster = Callable[..., Cluster]


@pytest.fixture
def new_cluster(tmp_path: Path, server_pool: ServerPool) -> Iterator[NewCluster]:
    """Makes and starts clusters of the test's own: `new_cluster(kind="redis", node_timeout_ms=1_000)`."""
    made: list[Cluster] = []

    def make(kind: str | None = None, **settings: Any) -> Cluster:
        binary = server_pool.preferred() if kind is None else server_pool.binary(kind)
        cluster = Cluster(tmp_path / f"cluster-{len(made)}", binary, **settings)
        made.append(cluster)
        cluster.start()
        return cluster

    yield make
    for cluster in made:
        cluster.kill_all()
