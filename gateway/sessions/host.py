"""What a session asks of its node, and the numbers that all sessions of a node work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from eventbus import moves, wire
from eventbus.clock import Clock
from eventbus.ids import NodeName, SessionId
from eventbus.redelivery import RedeliveryPolicy
from eventbus.tiers import Tier
from gateway.access.auth import Identity
from gateway.counters import Counters
from gateway.sessions.liveness import LivenessRules
from gateway.sessions.tracing import DeliverySpans

if TYPE_CHECKING:
    from gateway.sessions.session import Session

__all__ = ["Host", "SessionSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """What every session of a node works with."""

    node: NodeName
    policy: RedeliveryPolicy
    liveness: LivenessRules
    hello_timeout_ms: int
    store_wait_ms: int
    max_frame_bytes: int
    window_default: int
    window_max: int


class Host(Protocol):
    """What a session asks of its node."""

    settings: SessionSettings
    counters: Counters
    clock: Clock
    spans: DeliverySpans | None

    @property
    def store_was_in_trouble(self) -> bool:
        """Whether within the last half minute a subscription was lost, a primary has changed, or an attach was not
        answered.
        """

    def attach_unanswered(self) -> None:
        """An attach was not answered. It may be carried out later than those that were made after it."""

    def authenticate(self, token: str) -> Identity:
        """Verifies a token. Raises: AuthError."""

    def check_revoked(self, identity: Identity, session: SessionId | None = None) -> None:
        """Checks that a token is not revoked, nor the session that it is used for. Raises: AuthError, SessionRevoked,
        StoreUnavailable.
        """

    def tier(self, name: str) -> Tier:
        """The settings of a tier."""

    def seat(self, session: Session) -> None:
        """From now on wake-ups reach the session."""

    def unseat(self, session: Session) -> None:
        """The session is over: no wake-up, no clock."""

    def attach(self, session: Session) -> None:
        """Attaches the session (`session.attach_request()`), again and again until the store answers; calls
        `session.attached`.
        """

    def want_read(self, session: Session) -> None:
        """The session wants to read."""

    def acknowledge(self, session: Session, acks: moves.Acknowledge, ref: wire.Ref | None) -> None:
        """Puts acks on their way; calls `session.acks_stored`."""

    def confirm(self, session: Session, acks: moves.Acknowledge, ack: wire.Ack) -> bool:
        """Puts a confirmation above `received` on its way; calls `session.acks_stored`. Returns False when too many
        wait already.
        """

    def step(self, session: Session, effect: moves.Release | moves.Redeliver | moves.GiveUp) -> None:
        """Carries out what only Redis can; calls `session.apply` with the answer."""

    def caught_up(self, session: Session) -> None:
        """All that was stored when the session opened has been sent to its client; called once a connection."""

    def take_command(self, session: Session, frame: wire.Send) -> None:
        """Puts a command on its way to the agents; answers the client."""

    def leave_session(self, session: Session) -> None:
        """The session's connection is gone: what it acked is stored, then its hold is given up. May be called twice."""

    def writable(self, session: Session) -> None:
        """The client reads again after it was behind."""

    def filtered(self, session: Session) -> None:
        """The session's filter is another."""

    def place(self, session: Session) -> None:
        """The session's due time changed."""
