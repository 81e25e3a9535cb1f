"""Judges a server and the nodes by what they say of themselves, for `eventbus doctor`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from eventbus.config import Settings
from eventbus.errors import StoreError
from eventbus.store import Durability, NodeRecord, StoreInfo

__all__ = ["Check", "CheckState", "judge_nodes", "judge_partitions", "judge_server", "judge_servers"]


class CheckState(StrEnum):
    """How a check came out. A problem loses events or stops them; a warning may, some day."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        check: its name, stable for scripts.
        found: what is there.
        advice: what to do, one sentence; empty when it is ok.
    """

    check: str
    state: CheckState
    found: str
    advice: str = ""


_MINIMUM: Final = {"redis": (7, 0), "valkey": (8, 0)}
_NODE_BYTES_MAX: Final = 1024
_PUBSUB_LEAST_BYTES: Final = 64 * 1024 * 1024
_CLOCK_WARNING_MS: Final = 1_000
_CLOCK_PROBLEM_MS: Final = 300_000
"""Nodes refuse an event whose time is further ahead than this."""
_MEMORY_WARNING: Final = 0.8
_MEMORY_PROBLEM: Final = 0.95
_LEAST_TIMEOUT_S: Final = 60
_NAMED_MAX: Final = 6


def judge_server(info: StoreInfo, settings: Settings, *, now_ms: int, round_trip_ms: int) -> list[Check]:
    """Judge a server by its settings and its state.

    Args:
        info: what it says.
        settings: what publishers were promised.
        now_ms: this machine's clock when the answer came, Unix milliseconds.
        round_trip_ms: how long the answer took.
    """
    return [
        _version(info),
        *_eviction(info),
        _memory(info),
        *_persistence(info, settings),
        _last_writes(info),
        *_sizes(info),
        _replicas(info, settings),
        *_idle(info),
        _clock(info, now_ms, round_trip_ms),
    ]


def judge_servers(infos: Sequence[StoreInfo], settings: Settings, *, now_ms: int, round_trip_ms: int) -> list[Check]:
    """Judge each server, of a Cluster each primary: a check comes out as for the worst of them, and says which.

    Args:
        infos: what they say, at least one.
        settings: what publishers were promised.
        now_ms: this machine's clock when the last answer came, Unix milliseconds.
        round_trip_ms: how long the answers took.
    """
    judged: dict[str, list[tuple[str, Check]]] = {}
    for info in infos:
        for check in judge_server(info, settings, now_ms=now_ms, round_trip_ms=round_trip_ms):
            judged.setdefault(check.check, []).append((info.address, check))
    return [_worst(found) for found in judged.values()]


def _worst(found: Sequence[tuple[str, Check]]) -> Check:
    state = max((check.state for _, check in found), key=list(CheckState).index)
    said = [(address, check) for address, check in found if check.state is state]
    if len({check.found for _, check in found}) == 1:
        return said[0][1]
    texts = [f"{check.found} ({address})" for address, check in said]
    more = f"; and {len(texts) - _NAMED_MAX} more" if len(texts) > _NAMED_MAX else ""
    return replace(said[0][1], found="; ".join(texts[:_NAMED_MAX]) + more)


def judge_partitions(answers: Sequence[object | StoreError]) -> Check:
    """Judge whether every partition is answered for: in a Cluster a part of the slots may have nobody.

    Args:
        answers: what each partition answered.
    """
    failed = [one for one in answers if isinstance(one, StoreError)]
    if not failed:
        return _ok("partitions", f"all {len(answers):,} answer")
    return _problem(
        "partitions",
        f"{len(failed):,} of {len(answers):,} do not answer: {failed[0]}",
        "Their users have no bus: bring the primary of their slots back, or promote its replica (see CLUSTER NODES).",
    )


def _ok(check: str, found: str) -> Check:
    return Check(check=check, state=CheckState.OK, found=found)


def _warning(check: str, found: str, advice: str) -> Check:
    return Check(check=check, state=CheckState.WARNING, found=found, advice=advice)


def _problem(check: str, found: str, advice: str) -> Check:
    return Check(check=check, state=CheckState.PROBLEM, found=found, advice=advice)


def _version(info: StoreInfo) -> Check:
    found = f"{info.kind} {info.version}"
    least = _MINIMUM.get(info.kind)
    numbers = tuple(int(part) for part in re.findall(r"\d+", info.version)[:2])
    if least is None:
        return _warning("version", found, "Nothing is known of this kind of server: use Redis >= 7.0 or Valkey >= 8.0.")
    if numbers < least:
        return _problem("version", found, "Upgrade the server: the bus needs Redis >= 7.0 or Valkey >= 8.0.")
    return _ok("version", found)


def _eviction(info: StoreInfo) -> Iterator[Check]:
    policy = info.settings.get("maxmemory-policy")
    if not info.settings:
        yield _warning(
            "settings",
            "CONFIG GET is refused",
            "Allow the user `+config|get`, or look up maxmemory-policy, appendonly, appendfsync, stream-node-max-bytes"
            " and client-output-buffer-limit where the server is managed (docs/cli.md says what they should be).",
        )
    elif policy == "noeviction":
        yield _ok("maxmemory-policy", policy)
    elif policy is not None:
        yield _problem(
            "maxmemory-policy",
            policy,
            "Set `maxmemory-policy noeviction`: every other policy eats streams, events with them, without a word.",
        )


def _memory(info: StoreInfo) -> Check:
    text = info.settings.get("maxmemory") or info.facts.get("maxmemory") or "0"
    most, used = int(text) if text.isdigit() else 0, info.memory_bytes
    if not most:
        return _ok("memory", f"{_mib(used)} used, no limit (maxmemory 0)")
    found = f"{_mib(used)} of {_mib(most)} used ({100 * used // most} %)"
    advice = "Raise `maxmemory`, shorten EVENTBUS_RETENTION_MS, or add memory: a full server refuses publishes."
    if used >= _MEMORY_PROBLEM * most:
        return _problem("memory", found, advice)
    if used >= _MEMORY_WARNING * most:
        return _warning("memory", found, advice)
    return _ok("memory", found)


def _persistence(info: StoreInfo, settings: Settings) -> Iterator[Check]:
    appendonly = info.settings.get("appendonly")
    if appendonly is None and (enabled := info.facts.get("aof_enabled")) is not None:
        appendonly = "yes" if enabled == "1" else "no"
    if appendonly is None:
        return
    if appendonly != "yes":
        advice = "Set `appendonly yes`: without it a restart of the server loses events that publishers were told are"
        found = f"{appendonly}, {info.replicas} replicas"
        make = _warning if info.replicas else _problem
        yield make("appendonly", found, f"{advice} stored.")
        return
    yield _ok("appendonly", appendonly)
    fsync = info.settings.get("appendfsync")
    if fsync is None:
        return
    if settings.publish.durability is Durability.FSYNC and fsync != "always":
        yield _problem(
            "appendfsync",
            fsync,
            "Set `appendfsync always`: EVENTBUS_DURABILITY=fsync promises that, and publishes fail.",
        )
    elif fsync == "no":
        yield _warning(
            "appendfsync", fsync, "Set `appendfsync everysec`: a crash of the machine can lose half a minute of events."
        )
    else:
        yield _ok(
            "appendfsync", fsync if fsync == "always" else f"{fsync}: a crash of the machine loses up to a second"
        )


def _last_writes(info: StoreInfo) -> Check:
    if info.facts.get("loading", "0") != "0":
        return _problem("persistence", "the server loads its data", "Wait until it is loaded.")
    names = ["aof_last_write_status", "aof_last_bgrewrite_status"] if info.facts.get("aof_enabled") == "1" else []
    names += ["rdb_last_bgsave_status"] if info.settings.get("save", "") != "" else []
    failed = [f"{name}: {info.facts[name]}" for name in names if info.facts.get(name, "ok") != "ok"]
    if failed:
        return _problem("persistence", ", ".join(failed), "Look at the server's log and at the space on its disk.")
    return _ok("persistence", "the last writes to disk succeeded" if names else "nothing is written to disk")


def _sizes(info: StoreInfo) -> Iterator[Check]:
    text = info.settings.get("stream-node-max-bytes")
    if text is not None and text.isdigit():
        if 0 < int(text) <= _NODE_BYTES_MAX:
            yield _ok("stream-node-max-bytes", text)
        else:
            yield _warning(
                "stream-node-max-bytes",
                text,
                "Set `stream-node-max-bytes 1024`: it saves about 3 KB for each user with few events.",
            )
    limits = info.settings.get("client-output-buffer-limit", "").split()
    if "pubsub" in limits and len(limits) >= limits.index("pubsub") + 4:
        hard, soft, soft_s = limits[limits.index("pubsub") + 1 : limits.index("pubsub") + 4]
        found = f"{_mib(int(hard))}, or {_mib(int(soft))} for {soft_s} s"
        if int(hard) == 0:
            yield _ok("client-output-buffer-limit pubsub", "no limit")
        elif int(hard) < _PUBSUB_LEAST_BYTES:
            yield _warning(
                "client-output-buffer-limit pubsub",
                found,
                'Set `client-output-buffer-limit "pubsub 256mb 64mb 60"`: a node that falls behind in a burst is cut'
                " off and has to read all its sessions again.",
            )
        else:
            yield _ok("client-output-buffer-limit pubsub", found)


def _replicas(info: StoreInfo, settings: Settings) -> Check:
    found, wanted = f"{info.replicas} connected", settings.publish.replicas
    if settings.publish.durability is Durability.REPLICATED and info.replicas < wanted:
        return _problem(
            "replicas", found, f"Add replicas: EVENTBUS_DURABILITY=replicated waits for {wanted}, and publishes fail."
        )
    if info.facts.get("role", "master") != "master":
        return _problem("replicas", "this server is a replica", "Point EVENTBUS_REDIS_URL at the primary.")
    if not info.replicas:
        return _warning("replicas", found, "Add a replica: with this server's disk all events are gone.")
    return _ok("replicas", found)


def _idle(info: StoreInfo) -> Iterator[Check]:
    text = info.settings.get("timeout", "0")
    if text.isdigit() and 0 < int(text) < _LEAST_TIMEOUT_S:
        yield _warning("timeout", f"{text} s", "Set `timeout 0`: the server closes quiet connections of publishers.")
    clients, most = info.facts.get("connected_clients", ""), info.settings.get("maxclients", "")
    if clients.isdigit() and most.isdigit() and int(most) and int(clients) > _MEMORY_WARNING * int(most):
        yield _warning("maxclients", f"{clients} of {most} connections", "Raise `maxclients`.")


def _clock(info: StoreInfo, now_ms: int, round_trip_ms: int) -> Check:
    # The answer was made somewhere within the round trip: half of it is the best guess, and its bound of error.
    ahead_ms = info.time_ms - (now_ms - round_trip_ms // 2)
    surely_ms = max(0, abs(ahead_ms) - round_trip_ms // 2)
    found = f"the server is {abs(ahead_ms)} ms {'ahead of' if ahead_ms >= 0 else 'behind'} this machine"
    advice = "Set both machines' clocks by NTP: times of events, tokens and deadlines are off by that much."
    if surely_ms >= _CLOCK_PROBLEM_MS:
        return _problem("clock", found, advice)
    if surely_ms >= _CLOCK_WARNING_MS:
        return _warning("clock", found, advice)
    return _ok("clock", found)


def judge_nodes(nodes: Sequence[NodeRecord]) -> Check:
    """Judge the nodes that tell of themselves."""
    if not nodes:
        return _warning("nodes", "none", "Start one with `eventbus-gateway serve`: nobody receives anything without.")
    found = ", ".join(f"{record.node} {record.state}" for record in sorted(nodes, key=lambda record: record.node)[:20])
    found += f" and {len(nodes) - 20} more" if len(nodes) > 20 else ""
    ready = [record for record in nodes if record.state == "ready"]
    if not ready:
        return _problem("nodes", found, "Look at a node's /readyz and its log: none of them takes connections.")
    if not all(record.state in ("ready", "draining") for record in nodes):
        return _warning("nodes", found, "Look at the /readyz and the log of the nodes that are not ready.")
    versions = sorted({record.version for record in nodes})
    if len(versions) > 1:
        return _warning("nodes", f"{found}; versions {', '.join(versions)}", "Finish the upgrade of the nodes.")
    return _ok("nodes", found)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 1024 / 1024:,.1f} MiB"
