"""What operators ask and do: who waits for what and why, what became of an event, what was given up, and the mending.

Asynchronous functions over a `Store` that return frozen records; everything is bounded and paged, and the clock is
Redis's. The decisions are in `verdicts`; `waiting` and `lookup` look, `way` tells of one event, `overview` of a user
and of the whole. What writes is in `acting`, and nothing else does.

Source: docs/cli.md, docs/admin.md.
"""

from __future__ import annotations

from eventbus.inspection.acting import Actions, Done, Planned
from eventbus.inspection.asking import Action, Asked, DeadFilter, ReplayTo, action_asked_for
from eventbus.inspection.lookup import (
    DeadRow,
    DeadRows,
    EventReport,
    dead_letter,
    dead_letters,
    fate,
    parse_dead_id,
)
from eventbus.inspection.overview import (
    NodeRow,
    Overview,
    SessionRow,
    UserPage,
    nodes,
    overview,
    partitions_page,
    sessions,
    user_page,
)
from eventbus.inspection.verdicts import (
    EXPLANATIONS,
    FATE_EXPLANATIONS,
    Fate,
    SessionFate,
    SessionState,
    Timing,
    Verdict,
)
from eventbus.inspection.waiting import (
    COUNTED_MAX,
    PendingRow,
    PendingRows,
    parse_pending_cursor,
    pending_of_user,
    pending_of_users,
    reindex,
)
from eventbus.inspection.way import Absence, EventWay, SessionWay, WayStep, absence, way_of
from eventbus.timeline import DeadlineState, RunTimeline, TimelineDeadline, deadlines_of, run_timeline

__all__ = [
    "COUNTED_MAX",
    "EXPLANATIONS",
    "FATE_EXPLANATIONS",
    "Absence",
    "Action",
    "Actions",
    "Asked",
    "DeadFilter",
    "DeadRow",
    "DeadRows",
    "DeadlineState",
    "Done",
    "EventReport",
    "EventWay",
    "Fate",
    "NodeRow",
    "Overview",
    "PendingRow",
    "PendingRows",
    "Planned",
    "ReplayTo",
    "RunTimeline",
    "SessionFate",
    "SessionRow",
    "SessionState",
    "SessionWay",
    "TimelineDeadline",
    "Timing",
    "UserPage",
    "Verdict",
    "WayStep",
    "absence",
    "action_asked_for",
    "dead_letter",
    "dead_letters",
    "deadlines_of",
    "fate",
    "nodes",
    "overview",
    "parse_dead_id",
    "parse_pending_cursor",
    "partitions_page",
    "pending_of_user",
    "pending_of_users",
    "reindex",
    "run_timeline",
    "sessions",
    "user_page",
    "way_of",
]
