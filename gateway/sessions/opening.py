"""What a client asked for when it opened its session: its `hello`, judged by its token and the node's settings."""

from __future__ import annotations

from eventbus import wire
from eventbus.clock import new_connection_id, new_session_id
from eventbus.errors import AuthError, Forbidden
from eventbus.ids import ENTRY_ZERO, EntryId, Epoch
from eventbus.store import Attach, Attached, AttachMode, Fence, Start
from eventbus.tiers import Tier
from gateway.access.auth import Identity, Scope, require_scope
from gateway.sessions.host import SessionSettings

__all__ = ["Opening", "check_refreshed", "token_of"]


def token_of(identity: Identity | None) -> Identity:
    """The identity, when there is one.

    Raises:
        AuthError: no token came in any of the four ways.
    """
    if identity is None:
        raise AuthError("no token: give it in the handshake or in `hello`", reason="no_token")
    return identity


def check_refreshed(identity: Identity, fence: Fence) -> None:
    """Checks that a refreshed token is good for the session that is open.

    Raises:
        Forbidden: it is of another user, lacks the scope, or is pinned to another session.
    """
    if identity.user != fence.user:
        raise Forbidden("a refreshed token must be of the same user")
    require_scope(identity, Scope.SUBSCRIBE)
    if identity.session not in (None, fence.session):
        raise Forbidden(f"the token is pinned to session {identity.session!r}")


class Opening:
    """A session as its client wants it.

    Args:
        hello: the client's first frame.
        identity: who it is, by the handshake or by `hello`.
        tier: the identity's.
        settings: the node's.

    Raises:
        Forbidden: the token lacks the scope, or is pinned to another session.

    Attributes:
        fence: user, session and the new connection's id.
        tier: what the user gets.
        window: most entries in flight.
        cursor: up to where the client says that it has handled everything, None when it says nothing.
    """

    __slots__ = ("_epoch", "_settings", "_start", "cursor", "fence", "tier", "window")

    def __init__(self, hello: wire.Hello, identity: Identity, tier: Tier, settings: SessionSettings) -> None:
        require_scope(identity, Scope.SUBSCRIBE)
        if identity.session is not None and hello.session not in (None, identity.session):
            raise Forbidden(f"the token is pinned to session {identity.session!r}")
        self.fence = Fence(
            user=identity.user,
            session=identity.session or hello.session or new_session_id(),
            connection=new_connection_id(),
        )
        self.tier = tier
        self.window = min(hello.window or settings.window_default, settings.window_max)
        self.cursor = hello.cursor
        # A cursor without `start` means that the client had a session: `new` would skip what is retained (D9).
        self._start = hello.start or (Start.CURSOR if hello.cursor is not None else Start.NEW)
        self._epoch = hello.epoch
        self._settings = settings

    @property
    def epoch(self) -> Epoch | None:
        """The epoch that the client knows: what it said, then what the last attach told."""
        return self._epoch

    def first_attach(self) -> Attach:
        """The attach that opens, resumes or takes over."""
        return self._attach(AttachMode.OPEN, self._start, self.cursor)

    def attach_again(self, cursor: EntryId) -> Attach:
        """The attach with the socket open: it never replaces another's hold (D1, D3)."""
        return self._attach(AttachMode.REATTACH, Start.CURSOR, cursor)

    def _attach(self, mode: AttachMode, start: Start, cursor: EntryId | None) -> Attach:
        return Attach(
            fence=self.fence,
            node=self._settings.node,
            mode=mode,
            start=start,
            cursor=cursor,
            epoch=self._epoch,
            live_limit=self.tier.live_sessions,
            known_limit=self.tier.kept_sessions,
        )

    def answered(self, answer: Attached) -> None:
        """An attach was answered: the client is told its epoch, or of the gap."""
        self._epoch = answer.epoch

    def welcome(self, answer: Attached, token_expires_ms: int) -> wire.Welcome:
        """The answer to `hello`. Source: docs/protocol.md, section 3."""
        settings = self._settings
        # With entries pending, nothing but what the client said itself is known to be handled.
        cursor = answer.position if not answer.pending else self.cursor or ENTRY_ZERO
        return wire.Welcome(
            protocol=1,
            node=settings.node,
            connection=self.fence.connection,
            session=self.fence.session,
            resumed=answer.resumed,
            cursor=cursor,
            pending=answer.pending,
            window=self.window,
            heartbeat_ms=settings.liveness.heartbeat_ms,
            ack_timeout_ms=settings.policy.ack_timeout_ms,
            max_frame_bytes=settings.max_frame_bytes,
            token_expires_ms=token_expires_ms,
            epoch=answer.epoch,
        )
