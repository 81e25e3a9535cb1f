"""Which variables of the environment are somebody's, so that a misspelt one is told of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from eventbus.settings import unknown_variables

__all__ = ["FOREIGN_VARIABLES", "NODE_VARIABLES", "warn_of_unknown_variables"]

_log = logging.getLogger("eventbus.config")

# What only a node reads (`gateway.config`). An agent beside a node in one environment must not call these unknown;
# tests/unit/test_config.py holds the list against the node's settings.
NODE_VARIABLES: Final = (
    "EVENTBUS_HOST",
    "EVENTBUS_PORT",
    "EVENTBUS_ADMIN_HOST",
    "EVENTBUS_ADMIN_PORT",
    "EVENTBUS_NODE",
    "EVENTBUS_WORKERS",
    "EVENTBUS_MAX_HTTP_CONNECTIONS",
    "EVENTBUS_REQUESTS_PER_ADDRESS",
    "EVENTBUS_PUBLISHES_PER_ADDRESS",
    "EVENTBUS_MAX_BODIES_BYTES",
    "EVENTBUS_JWT_RELOAD_MS",
    "EVENTBUS_HELD_BYTES",
    "EVENTBUS_HELLO_TIMEOUT_MS",
    "EVENTBUS_HEARTBEAT_MS",
    "EVENTBUS_DRAIN_MS",
    "EVENTBUS_SESSION_HEARTBEAT_MS",
    "EVENTBUS_NODE_HEARTBEAT_MS",
    "EVENTBUS_READY_PROBE_MS",
    "EVENTBUS_STORE_WAIT_MS",
    "EVENTBUS_STORE_DOWN_MS",
    "EVENTBUS_MAX_FRAME_BYTES",
    "EVENTBUS_MAX_BODY_BYTES",
    "EVENTBUS_MAX_CONNECTIONS",
    "EVENTBUS_SLOW_CONSUMER_MS",
    "EVENTBUS_SLOW_CONSUMER_BYTES",
    "EVENTBUS_TALLY_MS",
    "EVENTBUS_TEXT_HELD_BYTES",
    "EVENTBUS_ALLOWED_ORIGINS",
    "EVENTBUS_TRUSTED_PROXIES",
    "EVENTBUS_HANDSHAKES_PER_ADDRESS",
    "EVENTBUS_HANDSHAKES_PER_SECOND",
    "EVENTBUS_ATTACHES_WAITING",
    "EVENTBUS_CONNECTIONS_PER_ADDRESS",
    "EVENTBUS_JWT_SECRET",
    "EVENTBUS_JWT_SECRET_FILE",
    "EVENTBUS_JWT_ALGORITHMS",
    "EVENTBUS_JWT_PUBLIC_KEY_FILES",
    "EVENTBUS_JWT_JWKS_FILE",
    "EVENTBUS_JWT_ISSUER",
    "EVENTBUS_JWT_AUDIENCE",
    "EVENTBUS_JWT_LEEWAY_MS",
    "EVENTBUS_LOG_FORMAT",
    "EVENTBUS_LOG_LEVEL",
    "EVENTBUS_TLS_CERT_FILE",
    "EVENTBUS_TLS_KEY_FILE",
    "EVENTBUS_WATCH_MS",
    "EVENTBUS_WEBHOOK_URL",
    "EVENTBUS_WEBHOOK_URL_FILE",
    "EVENTBUS_WEBHOOK_SECRET",
    "EVENTBUS_WEBHOOK_SECRET_FILE",
    "EVENTBUS_WEBHOOK_KINDS",
    "EVENTBUS_WEBHOOK_TIMEOUT_MS",
    "EVENTBUS_WEBHOOK_RETRIES",
    "EVENTBUS_WEBHOOK_RETRY_BASE_MS",
    "EVENTBUS_WEBHOOK_RETRY_MAX_MS",
)

# Read elsewhere, by the tests and the tools of the project.
FOREIGN_VARIABLES: Final = ("EVENTBUS_TEST_*", "EVENTBUS_BENCH_*", "EVENTBUS_DEMO_*")


def warn_of_unknown_variables(env: Mapping[str, str], known: list[str]) -> None:
    """Log a warning for each variable that looks like a setting and is none."""
    for line in unknown_variables(env, known):
        _log.warning(line)
