"""A node as its sessions see it: `gateway.sessions.host.Host`, each wish handed to the part whose it is."""

from __future__ import annotations

from eventbus import moves, wire
from eventbus.clock import Clock
from eventbus.ids import SessionId
from eventbus.tiers import Tier
from gateway.access.auth import Authenticator, Identity
from gateway.access.revocations import Revocations
from gateway.config import NodeSettings
from gateway.counters import Counters
from gateway.delivery.lanes import Keepers, Readers, Senders
from gateway.delivery.steps import Step
from gateway.delivery.texting import Texting
from gateway.hearing import Hearing
from gateway.sessions.host import SessionSettings
from gateway.sessions.hub import Hub
from gateway.sessions.session import Session
from gateway.sessions.tracing import DeliverySpans
from gateway.sessions.wheel import Wheel

__all__ = ["Hosting"]


class Hosting:
    """The part of a `Node` that its sessions ask. Methods without a word of their own are described in `Host`.

    Attributes:
        node_settings: all settings of the node; `settings` are those that sessions work with.
    """

    node_settings: NodeSettings
    settings: SessionSettings
    clock: Clock
    counters: Counters
    spans: DeliverySpans | None
    authenticator: Authenticator
    revocations: Revocations
    hub: Hub[Session]
    wheel: Wheel[Session]
    hearing: Hearing
    keeper: Keepers
    reader: Readers
    sending: Senders
    texting: Texting

    @property
    def store_was_in_trouble(self) -> bool:
        return self.hearing.store_was_in_trouble

    def attach_unanswered(self) -> None:
        self.hearing.troubled()

    # --- who is who -------------------------------------------------------------------------------------------------

    def authenticate(self, token: str) -> Identity:
        """Verifies a token. Raises: AuthError."""
        return self.authenticator.verify(token, self.clock.now_ms())

    def check_revoked(self, identity: Identity, session: SessionId | None = None) -> None:
        self.revocations.check(identity, session)
        self.authenticator.check_key(identity)

    def tier(self, name: str) -> Tier:
        """The settings of a tier; a token can not name one that is not there."""
        return self.node_settings.tiers[name]

    # --- a session comes and goes -----------------------------------------------------------------------------------

    def seat(self, session: Session) -> None:
        self.hub.add(session)

    def unseat(self, session: Session) -> None:
        self.wheel.remove(session)
        if session.user:
            self.hub.remove(session)
            self.texting.leave(session)
            self.keeper.forget(session)

    def attach(self, session: Session) -> None:
        self.keeper.attach(session)

    def leave_session(self, session: Session) -> None:
        self.reader.leave(session)

    def place(self, session: Session) -> None:
        self.wheel.place(session)

    # --- what it wants ----------------------------------------------------------------------------------------------

    def want_read(self, session: Session) -> None:
        self.reader.want_read(session)

    def acknowledge(self, session: Session, acks: moves.Acknowledge, ref: wire.Ref | None) -> None:
        self.reader.acknowledge(session, acks, ref)

    def confirm(self, session: Session, acks: moves.Acknowledge, ack: wire.Ack) -> bool:
        return self.reader.confirm(session, acks, ack)

    def step(self, session: Session, effect: Step) -> None:
        self.reader.step(session, effect)

    def caught_up(self, session: Session) -> None:
        self.texting.follow(session)
        self.sending.ask_again(session)

    def take_command(self, session: Session, frame: wire.Send) -> None:
        self.sending.take(session, frame)

    def writable(self, session: Session) -> None:
        self.texting.ready(session)

    def filtered(self, session: Session) -> None:
        self.texting.filtered(session)
