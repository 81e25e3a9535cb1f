"""The floor: what the server and the sockets cost with nothing around them, measured in the same run as the bus.

A figure of another machine can be read against it: a machine on which the floor costs twice as much is half as fast.
"""

from __future__ import annotations

import time

from benchmarks.events import EVENT_BYTES, envelope, padding
from benchmarks.processes import cpu_ns
from benchmarks.raw import Raw
from benchmarks.report import per_event_us
from benchmarks.roles import Role

__all__ = ["push_floor", "stream_floor"]

Values = dict[tuple[str, str], float]

FRAME_OVERHEAD_BYTES = 90
"""How much longer the JSON of a frame is than the envelope in the stream."""


def stream_floor(raw: Raw, server_pid: int, events: int, users: int) -> dict[str, Values]:
    """Bare commands on the streams of as many users, with the same body.

    Args:
        raw: a connection to the server.
        server_pid: the server's process.
        events: how many to store.
        users: how many streams.

    Returns:
        The values by the name of the case.
    """
    body = envelope(padding(EVENT_BYTES))
    keys = [f"floor:{{{number}}}" for number in range(users)]
    raw.pipeline([("XGROUP", "CREATE", key, "g", "$", "MKSTREAM") for key in keys])
    found = {}
    for batch in (1, 100):
        few = events if batch > 1 else max(1, events // 4)
        name = "one at a time" if batch == 1 else f"{batch} in one write"
        before_ns, own_ns, began = cpu_ns(server_pid), time.process_time_ns(), time.perf_counter()
        for start in range(0, few, batch):
            raw.pipeline([("XADD", keys[n % users], "*", "d", body) for n in range(start, start + batch)])
        found[f"raw XADD, {name}"] = {
            ("events stored", "1/s"): few / (time.perf_counter() - began),
            ("CPU of the server", "us/event"): per_event_us(cpu_ns(server_pid) - before_ns, few),
            ("CPU of its client", "us/event"): per_event_us(time.process_time_ns() - own_ns, few),
        }
    before_ns, own_ns = cpu_ns(server_pid), time.process_time_ns()
    _delivered(raw, keys, body, events)
    found["raw XADD, XREADGROUP and XACK, 100 in one write"] = {
        ("CPU of the server", "us/event"): per_event_us(cpu_ns(server_pid) - before_ns, events),
        ("CPU of its client", "us/event"): per_event_us(time.process_time_ns() - own_ns, events),
    }
    raw.pipeline([("UNLINK", key) for key in keys])
    return found


def _delivered(raw: Raw, keys: list[str], body: bytes, events: int) -> None:
    raw.pipeline([("XGROUP", "SETID", key, "g", "$") for key in keys])
    for start in range(0, events, 100):
        some = [keys[number % len(keys)] for number in range(start, start + 100)]
        ids = raw.pipeline([("XADD", key, "*", "d", body) for key in some])
        raw.pipeline([("XREADGROUP", "GROUP", "g", "c", "COUNT", 10, "STREAMS", key, ">") for key in some])
        raw.pipeline([("XACK", key, "g", entry) for key, entry in zip(some, ids, strict=True)])


def push_floor(sockets: int, rate: float, events: int) -> dict[str, Values]:
    """Frames built before, written to as many sockets at the same rate.

    Returns:
        The values by the name of the case.
    """
    with Role("pusher") as pusher, Role("pusher") as sink:
        port = pusher.ask("listen")["port"]
        sink.ask("sink", port=port, sockets=sockets)
        before = {role: cpu_ns(role.pid) for role in (pusher, sink)}
        frame_bytes = EVENT_BYTES + FRAME_OVERHEAD_BYTES
        size = pusher.ask("push", rate=rate, events=events, payload_bytes=frame_bytes, sockets=sockets)["bytes"]
        sink.ask("result", size=size)
        return {
            f"raw push to {sockets:,} sockets at {rate:,.0f}/s": {
                ("CPU of the sender", "us/event"): per_event_us(cpu_ns(pusher.pid) - before[pusher], events),
                ("CPU of the receiver", "us/event"): per_event_us(cpu_ns(sink.pid) - before[sink], events),
            }
        }
