"""What the processes of a load test are told: plans as JSON files."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from tests.support.plan import Plan


class Mode(StrEnum):
    """How a client handles what it is sent."""

    ACK = "ack"
    """Acks each batch after a wait."""
    NEVER = "never"
    """Acks nothing."""
    TWICE = "twice"
    """Acks each batch twice, and once more what it acked first."""
    NACK = "nack"
    """Nacks each event's first delivery, then acks."""
    FLAP = "flap"
    """Ends its first connections as soon as a batch has come, then acks."""
    STUCK = "stuck"
    """Reads nothing after its welcome."""
    HOLD = "hold"
    """Acks nothing until a file appears, then everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPlan(Plan):
    """What a client process does.

    Attributes:
        addresses: a file with one `host:port` a line, read anew for each connection.
        release: in `HOLD`, acks begin when this file is there.
        ack_delay_ms: the handler's time, from and to.
        flaps: in `FLAP`, how many connections are ended.
        nack_delay_ms: in `NACK`, what is asked for.
        hello_ms: an answer to `hello` that takes longer ends the connection.
        silence_ms: so long may nothing come before a ping, and then its answer.
        seed: of all that is left to chance.
    """

    addresses: str
    secret: str
    users: list[str]
    log: str
    sessions: list[str] = field(default_factory=lambda: ["tab"])
    mode: Mode = Mode.ACK
    window: int = 256
    start: str = "earliest"
    release: str = ""
    ack_delay_ms: tuple[int, int] = (0, 0)
    flaps: int = 0
    nack_delay_ms: int | None = None
    hello_ms: int = 3_000
    silence_ms: int = 1_500
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", Mode(self.mode))  # JSON knows no enums


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherPlan(Plan):
    """What a publisher process does.

    Attributes:
        events: how many in all, round robin over the users.
        rate: events a second; 0 is as fast as it goes with `under_way` unanswered.
        per_user: publishes of one user that may be unanswered at a time.
        deadline_ms: of each publish.
        bytes: padding of each event.
    """

    url: str
    users: list[str]
    events: int
    log: str
    rate: int = 0
    under_way: int = 400
    deadline_ms: int = 20_000
    first: int = 0
    bytes: int = 120
