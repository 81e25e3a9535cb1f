"""What the processes of a run are told: plans as JSON files."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.plan import Plan

__all__ = ["ClientPlan", "PublisherPlan", "SECRET", "STOP_FILE_POLL_S"]

SECRET = "a secret of chaos, which nobody else knows, 32 bytes"
STOP_FILE_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPlan(Plan):
    """What a process of clients does.

    Attributes:
        name: its name in the history.
        users: each has every session.
        addresses: where they connect, `host:port`; each connection is to one of them by chance.
        library: whether the sessions are of `eventbus.Subscriber` rather than of the lean client here.
        ack_delay_ms: the handler's time, from and to.
        nack_share: of first deliveries, how many are nacked.
        ignore_share: of first deliveries, how many are not acked at all.
        life_ms: a connection is ended by its client after a time between a tenth of this and this.
        hello_ms: an answer to `hello` that takes longer ends the connection.
        silence_ms: so long may nothing come before a ping, and then its answer.
        guests: how many sessions that do not stay are opened at each churn.
        seed: of all that is left to chance.
    """

    name: str
    users: list[str]
    sessions: list[str]
    addresses: list[str]
    log: str
    library: bool = False
    ack_delay_ms: tuple[int, int] = (0, 200)
    nack_share: float = 0.01
    ignore_share: float = 0.005
    life_ms: int = 120_000
    hello_ms: int = 5_000
    silence_ms: int = 3_000
    guests: int = 2
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherPlan(Plan):
    """What a publisher process does.

    Attributes:
        name: its name in the history, and the beginning of its event ids.
        url: of the store.
        rate: events a second; 0 is as fast as it goes with `under_way` unanswered.
        events: how many at most; 0 is no limit.
        durability: what is asked for.
        deadline_ms: of each publish.
        bytes: padding of each event.
    """

    name: str
    url: str
    users: list[str]
    log: str
    durability: str = "memory"
    rate: int = 30
    events: int = 0
    under_way: int = 500
    deadline_ms: int = 30_000
    bytes: int = 120
    seed: int = 0
