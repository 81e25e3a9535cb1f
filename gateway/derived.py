"""What the parts of a node have to know of its settings, in their own words."""

from __future__ import annotations

import ssl

from eventbus.redelivery import RedeliveryPolicy
from gateway.access.limits import is_within, limited_address
from gateway.config import NodeSettings
from gateway.sessions.gatekeeper import Doorkeeper
from gateway.sessions.liveness import LivenessRules
from gateway.sessions.session import SessionSettings
from gateway.transport.listener import ListenerSettings
from gateway.transport.websocket import SocketSettings

__all__ = ["listener_settings", "session_settings", "tls_context"]


def session_settings(settings: NodeSettings) -> SessionSettings:
    """The numbers that all sessions work with."""
    delivery = settings.delivery
    return SessionSettings(
        node=settings.node_name,
        policy=RedeliveryPolicy(
            ack_timeout_ms=delivery.ack_timeout_ms,
            max_deliveries=delivery.max_deliveries,
            nack_wait_ms=delivery.nack_base_ms,
            max_wait_ms=delivery.max_wait_ms,
            jitter=delivery.jitter,
        ),
        liveness=LivenessRules(
            heartbeat_ms=settings.liveness.heartbeat_ms,
            beat_ms=settings.liveness.session_heartbeat_ms,
            stalled_ms=settings.limits.slow_consumer_ms,
            backlog_bytes=settings.limits.slow_consumer_bytes,
        ),
        hello_timeout_ms=settings.liveness.hello_timeout_ms,
        store_wait_ms=settings.liveness.store_wait_ms,
        max_frame_bytes=settings.limits.max_frame_bytes,
        window_default=delivery.window_default,
        window_max=delivery.window_max,
    )


def listener_settings(settings: NodeSettings, doorkeeper: Doorkeeper) -> ListenerSettings:
    """How connections are taken, and whom they are counted for."""
    trusted = settings.listen.trusted_proxies
    return ListenerSettings(
        trusted_proxy=lambda address: is_within(address, trusted),
        door=doorkeeper,
        connections_max=settings.limits.max_http_connections,
        row=lambda address: limited_address(address, trusted),
        per_address=settings.limits.connections_per_address,
        socket=SocketSettings(max_frame_bytes=settings.limits.max_frame_bytes),
    )


def tls_context(cert_file: str | None, key_file: str | None) -> ssl.SSLContext | None:
    """For a node that serves TLS itself; None for one that does not. Raises: OSError, ssl.SSLError."""
    if cert_file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert_file, key_file)
    return context
