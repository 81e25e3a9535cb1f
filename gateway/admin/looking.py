"""What operators look at on the admin port, as JSON: `GET /admin/v1/...`. Source: docs/admin.md.

Every answer is bounded, lists are paged by a cursor, and every request needs a token of scope `admin`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from eventbus import inspection, watched
from eventbus.breach import OperatorKind, operator_object
from eventbus.config import ConfirmationRecords, StoreSettings
from eventbus.counting import overall_rates, user_rates
from eventbus.errors import InvalidEvent, InvalidField
from eventbus.event import decode_envelope, event_fields
from eventbus.ids import UserId, parse_entry_id, parse_event_id, parse_run_id, parse_session_id, parse_user_id
from eventbus.inspection import DeadFilter, Timing
from eventbus.inspection.lookup import partition_of
from eventbus.rates import STATES, Rates
from eventbus.tiers import TierTable
from eventbus.watch import RunPhase
from gateway.admin.revocations import AdminAccess
from gateway.web.common import BadRequest, UnknownEvent, answer

__all__ = ["LIMIT_MAX", "looking_routes"]

LIMIT_MAX: Final = 500
"""Most rows of an answer."""

_KINDS: Final = (*OperatorKind, "order")  # the last is told of by the store itself
_LIMIT: Final = 100

Looking = Callable[[Request], Awaitable[object]]


def plain_of(value: Any, leave: Iterable[str] = ()) -> Any:
    """A record as JSON has it: dataclasses as objects, bytes left out."""
    if is_dataclass(value) and not isinstance(value, type):
        left = set(leave)
        return {
            field.name: plain_of(getattr(value, field.name), leave)
            for field in fields(value)
            if field.name not in left and not isinstance(getattr(value, field.name), bytes)
        }
    if isinstance(value, dict):
        return {name: plain_of(one, leave) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain_of(one, leave) for one in value]
    return value


class _Looking:
    """The handlers of one installation.

    Args:
        access: to the store.
        settings: of the installation.
        timing: of this node.
        tiers: of this node.
    """

    def __init__(self, access: AdminAccess, settings: StoreSettings, timing: Timing, tiers: TierTable) -> None:
        self._store = access.store
        self._settings = settings
        self._tiers = tiers
        self._timing = timing

    async def overview(self, request: Request) -> object:
        found = await inspection.overview(self._store, partitions=self._settings.partitions)
        rates = await overall_rates(self._store, partitions=self._settings.partitions)
        return {**plain_of(found), "rates": rates_object(rates)}

    async def partitions(self, request: Request) -> object:
        first, limit = _number(request, "cursor", 0), _number(request, "limit", LIMIT_MAX, LIMIT_MAX)
        rows = await inspection.partitions_page(
            self._store, partitions=self._settings.partitions, first=first, count=limit
        )
        following = first + limit
        return _page("partitions", rows, str(following) if following < self._settings.partitions else "")

    async def pending(self, request: Request) -> object:
        user = _user(request)
        if user is not None:
            return _page("pending", await inspection.pending_of_user(self._store, user, self._timing), "")
        page = await inspection.pending_of_users(
            self._store,
            self._timing,
            partitions=self._settings.partitions,
            cursor=request.query_params.get("cursor", ""),
            count=_number(request, "limit", _LIMIT, LIMIT_MAX),
        )
        return _page("pending", page.rows, page.cursor)

    async def entries(self, request: Request) -> object:
        """The pending entries of one session."""
        user, limit = _needed_user(request), _number(request, "limit", _LIMIT, LIMIT_MAX)
        after = parse_entry_id(request.query_params.get("cursor", "0-0"), "cursor")
        session = request.query_params.get("session", "")
        rows = await self._store.pending(user, parse_session_id(session), after, limit)
        return _page("entries", rows, rows[-1].id if len(rows) == limit else "")

    async def user(self, request: Request) -> object:
        user = parse_user_id(_named(request, "user"))
        found = await inspection.user_page(
            self._store,
            user,
            self._timing,
            partitions=self._settings.partitions,
            partition=partition_of(user, self._settings.partitions),
        )
        return plain_of(found)

    async def event(self, request: Request) -> object:
        user, wanted = _needed_user(request), _named(request, "event")
        way = await inspection.way_of(
            self._store,
            user,
            wanted,
            partitions=self._settings.partitions,
            timing=self._timing,
            records_kept=self._settings.confirmation_records is ConfirmationRecords.ALL,
        )
        if way is None:
            missing = await inspection.absence(
                self._store,
                user,
                wanted,
                retention_ms=self._settings.retention_ms,
                max_entries=self._settings.max_stream_entries,
            )
            raise UnknownEvent(f"nothing is known of it: {missing.why}")
        return {**plain_of(way), "event": _envelope(way.report.body)}

    async def sessions(self, request: Request) -> object:
        return _page("sessions", await inspection.sessions(self._store, _needed_user(request)), "")

    async def nodes(self, request: Request) -> object:
        return _page("nodes", await inspection.nodes(self._store), "")

    async def runs(self, request: Request) -> object:
        state = request.query_params.get("state")
        try:
            phase = None if state is None else RunPhase(state)
        except ValueError:
            raise BadRequest("state", f"must be one of {', '.join(RunPhase)}") from None
        limit = _number(request, "limit", _LIMIT, LIMIT_MAX)
        found = await watched.runs(self._store, user=_user(request), state=phase, limit=limit)
        return {**_page("runs", found.rows, ""), "more": found.more}

    async def run(self, request: Request) -> object:
        run = parse_run_id(_named(request, "run"))
        found = await inspection.run_timeline(self._store, _needed_user(request), run)
        if found is None:
            raise UnknownEvent(f"nothing is known of the run {run} (any more)")
        tier = self._tiers.get(found.tier or self._tiers.default_tier)
        limits = None if tier is None else tier.limits
        deadlines = inspection.deadlines_of(found, limits)
        return {**plain_of(found), "deadlines": plain_of(deadlines), "limits": plain_of(limits)}

    async def dead(self, request: Request) -> object:
        page = await inspection.dead_letters(
            self._store,
            partitions=self._settings.partitions,
            user=_user(request),
            since_ms=_number(request, "since_ms", 0),
            cursor=request.query_params.get("cursor", ""),
            limit=_number(request, "limit", _LIMIT, LIMIT_MAX),
        )
        # A page is what was looked at: with a filter it may be short, or empty, and still go on.
        asked = request.query_params
        wanted = DeadFilter(
            session=asked.get("session", ""), type=asked.get("type", ""), reason=asked.get("reason", "")
        )
        rows = [
            row
            for row in page.rows
            if wanted.matches(session=row.session, type=row.type, reason=row.reason, time_ms=row.time_ms)
        ]
        return _page("dead_letters", rows, page.cursor)

    async def letter(self, request: Request) -> object:
        found = await inspection.dead_letter(self._store, request.path_params["letter"])
        if found is None:
            raise UnknownEvent("there is no dead letter of that id (any more)")
        return {**plain_of(found), "event": _envelope(found.body)}

    async def audit(self, request: Request) -> object:
        limit, cursor = _number(request, "limit", _LIMIT, LIMIT_MAX), request.query_params.get("cursor")
        rows = await self._store.audits(None if cursor is None else parse_entry_id(cursor, "cursor"), limit)
        shown = [{"id": one.id, "time_ms": one.time_ms, **one.what} for one in rows]
        return _page("audit", shown, rows[-1].id if len(rows) == limit else "")

    async def rates(self, request: Request) -> object:
        """Of the whole, or of what is retained of a user."""
        user, given = _user(request), request.query_params
        if user is None and (narrowed := [name for name in ("event", "run") if name in given]):
            raise BadRequest("user", f"must be given with `{narrowed[0]}`, for it is looked for among the user's")
        if user is None:
            found = await overall_rates(self._store, partitions=self._settings.partitions, type=given.get("type"))
        else:
            found = await user_rates(
                self._store,
                user,
                partition=partition_of(user, self._settings.partitions),
                event=parse_event_id(given["event"]) if "event" in given else None,
                run=parse_run_id(given["run"]) if "run" in given else None,
                type=given.get("type"),
            )
        return {**rates_object(found), "by_type": {name: rates_object(one) for name, one in found.by_type.items()}}

    async def operator_events(self, request: Request) -> object:
        """The newest, the newest last."""
        kind = request.query_params.get("kind")
        if kind is not None and kind not in _KINDS:
            raise BadRequest("kind", f"must be one of {', '.join(_KINDS)}")
        rows = await watched.operator_events(
            self._store,
            kind=kind,
            user=_user(request),
            since_ms=_number(request, "since_ms", 0),
            limit=_number(request, "limit", _LIMIT, LIMIT_MAX),
        )
        return _page("operator_events", [operator_object(row) for row in rows], "")

    async def paused(self, request: Request) -> object:
        return _page("paused", await self._store.paused_types(), "")


def looking_routes(
    access: AdminAccess, settings: StoreSettings, timing: Timing, tiers: TierTable | None = None
) -> list[Route]:
    """Make the routes.

    Args:
        access: who may look, and at what.
        settings: of the installation.
        timing: by which the late are told from the young where a node does not tell its own.
        tiers: have the deadlines of runs; the built-in ones when None.
    """
    look = _Looking(access, settings, timing, tiers or TierTable())

    def route(path: str, looking: Looking) -> Route:
        async def show(request: Request) -> Response:
            access.identify(request)
            return answer(await looking(request))

        return Route(f"/admin/v1/{path}", show, methods=["GET"])

    return [
        route("overview", look.overview),
        route("partitions", look.partitions),
        route("pending", look.pending),
        route("entries", look.entries),
        # Ids as a query, for `.` and `..` can not stand in a path: whoever asks takes them out of it.
        route("user", look.user),
        route("users/{user}", look.user),
        route("event", look.event),
        route("events/{event}", look.event),
        route("sessions", look.sessions),
        route("nodes", look.nodes),
        route("runs", look.runs),
        route("run", look.run),
        route("runs/{run}", look.run),
        route("dead-letters", look.dead),
        route("dead-letters/{letter}", look.letter),
        route("audit", look.audit),
        route("paused", look.paused),
        route("rates", look.rates),
        route("operator-events", look.operator_events),
    ]


def rates_object(rates: Rates) -> dict[str, object]:
    """Rates as JSON has them."""
    return {**{state: getattr(rates, state) for state in STATES}, "success": rates.success, "exact": rates.exact}


def _page(name: str, rows: Iterable[object], cursor: str) -> dict[str, object]:
    return {name: [plain_of(row) for row in rows], "cursor": cursor or None}


def _user(request: Request) -> UserId | None:
    given = request.query_params.get("user")
    return None if given is None else parse_user_id(given)


def _named(request: Request, name: str) -> str:
    """What is asked for by its id, out of the path or the query. Raises: BadRequest."""
    found: str | None = request.path_params.get(name, request.query_params.get(name))
    if found is None:
        raise BadRequest(name, "must be given")
    return found


def _needed_user(request: Request) -> UserId:
    user = _user(request)
    if user is None:
        raise BadRequest("user", "must be given")
    return user


def _number(request: Request, name: str, default: int, most: int = 2**53) -> int:
    """A whole number of the query. Raises: InvalidField."""
    text = request.query_params.get(name)
    if text is None:
        return min(default, most)
    if (
        not (text.isascii() and text.isdigit() and len(text) < 17)
        or int(text) > most
        or (name == "limit" and text == "0")
    ):
        raise InvalidField(name, f"must be a whole number up to {most}")
    return int(text)


def _envelope(body: bytes) -> object:
    """The event in an envelope, None when it is not kept."""
    try:
        return event_fields(decode_envelope(body)) if body else None
    except InvalidEvent:
        return None
