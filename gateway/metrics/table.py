"""The table of metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from eventbus.breach import Deadline
from eventbus.fields import Level
from eventbus.store import GapReason, ReleaseReason
from gateway.logs import COUNTS
from gateway.metrics.metric import Metric, MetricType
from gateway.metrics.reading import (
    CLOSE_CODES,
    away_ratio,
    breaker,
    build,
    closed,
    counted,
    gauge,
    histogram,
    linked,
    logged,
    memory_bytes,
    memory_share,
    of_node,
    published,
    reached,
    resident_bytes,
    tallied,
    tallied_of_node,
    waiting,
    webhook_breaker,
)

__all__ = ["METRICS"]

WEBHOOK_OUTCOMES: Final = ("delivered", "failed", "given_up")

_C, _G = MetricType.COUNTER, MetricType.GAUGE
_DEAD_REASONS: Final = ("ack_timeout", "nacked", "undecodable", "misplaced")
_REFUSED_CODES: Final = (
    "draining", "forbidden", "overloaded", "rate_limited", "store_unavailable", "too_many_sessions", "unauthenticated"
)  # fmt: skip

METRICS: Final[Sequence[Metric]] = (
    # Connections and sessions.
    gauge("connections", "Sockets that are open.", lambda node: node.connections),
    gauge("sessions", "Sessions that are attached here.", lambda node: node.sessions),
    gauge("users", "Users with a session here; one with sessions on two nodes counts twice.", lambda node: node.users),
    counted("connections_opened", "Sockets opened."),
    counted("connections_refused", "Handshakes that were turned away, by the error's code.", "code", _REFUSED_CODES),
    gauge("handshakes_waiting", "Handshakes that wait for their turn.", lambda node: node.handshakes_waiting),
    Metric(
        name="connections_closed",
        type=_C,
        help="Sockets closed, by the WebSocket close code; `other` are those that only clients think of.",
        labels=("code",),
        known=tuple(sorted(CLOSE_CODES)),
        read=closed,
    ),
    counted("sessions_attached", "Sessions that were opened, by how.", "how", ("new", "resumed")),
    counted("reattaches", "Sessions attached again with their socket open, by the cause.", "cause"),
    # Events.
    counted("events_published", "Events taken by `POST /v1/events`."),
    counted("events_delivered", "Events sent to a session for the first time."),
    counted("events_redelivered", "Events sent to a session again."),
    counted("events_acked", "Events that a client's ack released."),
    counted("events_confirmed", "Events recorded as more than received.", "level", ("displayed", "confirmed")),
    counted("events_nacked", "Nacks of clients."),
    counted("events_released", "Events that the node took off a session itself.", "reason", ReleaseReason),
    counted("events_dead_lettered", "Events given up after the last attempt.", "reason", _DEAD_REASONS),
    counted("gaps", "Gaps announced to sessions.", "reason", GapReason),
    histogram(
        "delivery_seconds",
        "From the storing of an event to its way into a socket; only events stored since that client connected. One"
        " stands for those that were read with it.",
    ),
    histogram(
        "ack_seconds",
        "From the storing of an event to the storing of its ack; only events stored since that client connected. One"
        " stands for those that were acked with it. Acks over HTTP count where the node to which they come has the"
        " session.",
    ),
    # What waits.
    tallied(
        "pending_events",
        "Events that sessions here were sent, or are about to be, and have not acked.",
        lambda found: found.pending,
    ),
    tallied_of_node(
        "pending_oldest_seconds",
        "Of these, for how long the oldest has been waiting while its client was connected.",
        lambda found: found.pending_oldest_ms / 1000,
    ),
    tallied(
        "pending_away_events",
        "Events that wait for sessions whose client is away, sent or not read; an event once for each of them. Each"
        " partition is counted by one node; where more than 256 users wait it is taken from a sample of them.",
        lambda found: found.pending_away,
    ),
    tallied(
        "waiting_users",
        "Users for whom something waits, connected or not. Each partition is counted by one node: the sum of all is the"
        " installation's, as with the one above and the four below.",
        lambda found: found.waiting_users,
    ),
    tallied("dead_letters", "Dead letters that are kept.", lambda found: found.dead_letters),
    tallied("deadlines", "Deadlines that are watched.", lambda found: found.deadlines),
    tallied("operator_events", "Events for operators that are kept.", lambda found: found.operator_events),
    tallied_of_node(
        "waiting_oldest_seconds",
        "For how long something has waited for the user for whom it waits longest, connected or not.",
        lambda found: found.waiting_oldest_ms / 1000,
    ),
    # Runs, demands, and what operators are told.
    counted("run_breaches", "Missed deadlines of runs.", "deadline", Deadline),
    counted("runs_abandoned", "Runs whose lease was over."),
    counted("runs_closed", "Of these, runs that this node closed as failed."),
    counted("demands_missed", "Demanded confirmations that did not come in time.", "level", Level),
    of_node(
        "watch_late_seconds",
        "How late the latest deadline of the last half to whole minute was found.",
        lambda node: node.watch_late_ms / 1000,
    ),
    counted("webhooks", "Posts to the webhook, by what became of them.", "outcome", WEBHOOK_OUTCOMES),
    Metric(
        name="webhook_breaker",
        type=_G,
        help="1 for the state of the webhook's circuit breaker: closed, open or half_open.",
        labels=("node", "state"),
        read=webhook_breaker,
    ),
    # Token streams.
    counted("text_reads", "Reads of a run's token streams."),
    counted("text_frames", "Parts of token streams sent to sessions."),
    # Frames.
    counted("frames_received", "Frames of clients."),
    counted("commands_stored", "Commands of users that are stored, and answers that were accepted.", "type"),
    counted("frames_refused", "Frames of clients that were answered by an error.", "code"),
    # The store.
    of_node(
        "ready", "Whether the node is ready (write, wake-up and read came back).", lambda node: not node.not_ready()
    ),
    of_node("draining", "Whether the node is about to end.", lambda node: node.draining),
    of_node(
        "store_up",
        "Whether the store answers, or a part of it: see `eventbus_store_away_ratio`.",
        lambda node: node.store_failed_ms == 0,
    ),
    reached("store_primaries", "Primaries that the node knows of.", lambda link: link["primaries"]),
    reached(
        "store_primaries_reached",
        "Of these, primaries that answer the node: a connection stands, and no answer is late by a second.",
        lambda link: link["primaries_reached"],
    ),
    reached(
        "store_away_ratio",
        "The part of the store, and so of the users, whose primary does not answer the node: 0.33 when one of three"
        " primaries is away.",
        away_ratio,
    ),
    counted(
        "requests_limited",
        "HTTP requests that were refused by a limit, by whose limit it was (`address`, `user`, `bodies`).",
        "of",
        known=("address", "user", "bodies"),
    ),
    counted(
        "key_reloads",
        "Changes of the key files that were taken over (`done`), and looks at which they could not be (`failed`).",
        "outcome",
        known=("done", "failed"),
    ),
    counted("store_errors", "Calls to the store that failed, by the error's code.", "code"),
    linked(
        "link_connections",
        "Connections made to Redis for calls; more than one a primary are reconnects.",
        "connections",
        _C,
    ),
    linked("link_redirects", "Calls that a server of a Cluster sent to another (MOVED, ASK).", "redirects", _C),
    linked("link_unanswered", "Calls that Redis has not answered yet.", "unanswered", _G),
    linked("link_unsent", "Calls that wait for a connection or a primary.", "waiting", _G),
    counted("primary_changes", "Times that a primary was found elsewhere: failovers, and slots that moved."),
    tallied_of_node("store_memory_bytes", "Memory of all primaries, told by one node of all.", memory_bytes),
    tallied_of_node(
        "store_memory_used_ratio",
        "Memory of the fullest primary as a share of its maxmemory, told by one node; absent without a limit.",
        memory_share,
    ),
    counted("wakeups", "Wake-ups that came."),
    counted("subscriptions", "Subscriptions to the wake-ups; more than one means that they were lost in between."),
    Metric(
        name="backlog",
        type=_G,
        help="What waits for the node's next call to the store, by kind.",
        labels=("kind",),
        read=waiting,
    ),
    # The node's publisher.
    published("publish_duplicates", "Publishes that the store knew already.", "duplicates"),
    published("publish_failures", "Publishes that failed for good.", "failed"),
    published("publish_retries", "Events put back to be tried again.", "retries"),
    published("publish_resent", "Events sent again because a primary may have changed.", "resent"),
    published("publish_recovered", "Of these, events that the store had lost.", "recovered"),
    published("publish_resend_failures", "Of these, events that could not be stored again.", "resend_failed"),
    published("publish_kept_overflow", "Kept events dropped before their time, for lack of room.", "kept_overflow"),
    published("publish_queued_events", "Events that wait for the store.", "queued_events", _G),
    published("publish_queued_bytes", "Their size.", "queued_bytes", _G),
    published("publish_breaker_opened", "How often the publisher's circuit breaker has opened.", "breaker_opened"),
    Metric(
        name="publish_breaker",
        type=_G,
        help="1 for the state of the publisher's circuit breaker: closed, open or half_open.",
        labels=("node", "state"),
        read=breaker,
    ),
    # The process.
    Metric(
        name="log_lines",
        type=_C,
        help="Lines for the log from warnings on, by level, with those that were left out.",
        labels=("level",),
        read=logged,
    ),
    Metric(
        name="log_lines_left_out",
        type=_C,
        help="Lines of any level that were not written, for their message repeats too often.",
        read=lambda _node: [((), COUNTS.left_out)],
    ),
    Metric(
        name="defects",
        type=_C,
        help="Errors with a trace in the log: each is a defect of the node, please report it.",
        read=lambda _node: [((), COUNTS.defects)],
    ),
    Metric(
        name="traces_left_out",
        type=_C,
        help="Deliveries whose spans were not recorded, for too many were open.",
        read=lambda node: [((), node.traces_left_out)],
    ),
    counted("stalls", "Times that the node stood still for 5 s and more."),
    of_node(
        "loop_lag_max_seconds",
        "Worst delay of the event loop in the last half to whole minute.",
        lambda node: node.lag.worst_s,
    ),
    of_node("start_time_seconds", "When the node started, Unix time.", lambda node: node.started_ms / 1000),
    of_node("cpu_seconds", "CPU time of the process.", lambda node: time.process_time(), _C),
    of_node("resident_memory_bytes", "Memory of the process.", resident_bytes),
    Metric(name="build_info", type=_G, help="Always 1.", labels=("node", "version", "python"), read=build),
    # The parent of several workers.
    Metric(name="worker_up", type=_G, help="Whether a worker answers its parent; only with several.", labels=("node",)),
    Metric(name="worker_starts", type=_C, help="Processes started for a worker; only with several.", labels=("node",)),
)
