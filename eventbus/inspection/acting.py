"""What operators do: planned first, confirmed by the count, written down, and safe to repeat.

An action is asked for (`Asked`), planned (`Actions.plan`: what it would be done to, nothing is changed), and carried
out (`Actions.carry_out`). Before and after it is written to the audit log under one operation id. A process that is
killed between the two leaves a record `begun` and a part of the work; asked for again, the plan holds what is left.

Source: docs/admin.md, docs/cli.md.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from eventbus.breach import operator_event_name
from eventbus.errors import InvalidEvent, StoreError
from eventbus.event import peek
from eventbus.ids import ENTRY_ZERO, EntryId, EventId, SessionId, UserId
from eventbus.inspection.asking import Action, Asked, DeadFilter, ReplayTo
from eventbus.inspection.lookup import DeadRow, dead_letter, dead_letters, parse_dead_id, partition_of
from eventbus.store import Append, Store
from eventbus.store.mending import PutBack, TakenHow, TakeOff

__all__ = ["ITEMS_MAX", "Actions", "Done", "Planned"]

ITEMS_MAX: Final = 10_000
"""Most entries, letters or keys that one operation touches: asked for again, it takes the next ones."""

_PAGE: Final = 500
_AT_ONCE: Final = 100
_NAMED_MAX: Final = 10
_LETTER: Final = "dead letter "
_TOLD: Final = "event for operators "

Progress = Callable[[int, int], None]
"""Told how many items are done, and of how many."""


def _no_progress(_done: int, _of: int) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What an action would be done to.

    Attributes:
        asked: the action.
        items: entry ids, ids of dead letters, keys, or the one name that it is about.
        more: there is more than one operation takes.
        notes: what an operator should know before saying yes.
    """

    asked: Asked
    items: Sequence[str]
    more: bool = False
    notes: Sequence[str] = ()

    @property
    def count(self) -> int:
        """How many items; what a caller of the admin API confirms."""
        return len(self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What came of an action.

    Attributes:
        operation: its id in the audit log.
        results: how many items came to which end.
        left: items that could not be treated, each with why; at most 100 of them.
    """

    operation: str
    results: Mapping[str, int]
    left: Mapping[str, str] = field(default_factory=dict)


class Actions:
    """What an operator may do.

    Args:
        store: where it is done.
        by: who does it, for the audit log.
        partitions: of the installation.
    """

    def __init__(self, store: Store, *, by: str, partitions: int) -> None:
        self._store = store
        self._by = by
        self._partitions = partitions

    async def plan(self, asked: Asked) -> Planned:
        """What the action would be done to; nothing is changed.

        Raises:
            StoreError: the store does not answer.
        """
        match asked.action:
            case Action.REDELIVER | Action.SKIP | Action.DEAD_LETTER:
                return await self._plan_entries(asked)
            case Action.REPLAY | Action.DROP:
                found = [row.id async for row in self._letters(asked, ITEMS_MAX + 1)]
                missing = len(set(asked.letters) - set(found))
                notes = [f"{missing} of the dead letters are not there (any more)"] if missing else []
                return Planned(asked=asked, items=found[:ITEMS_MAX], more=len(found) > ITEMS_MAX, notes=notes)
            case Action.END_SESSION:
                return await self._plan_end(asked)
            case Action.PURGE:
                return await self._plan_purge(asked)
            case Action.DRAIN | Action.UNDRAIN:
                return await self._plan_node(asked)
            case Action.PAUSE | Action.RESUME:
                note = "publishers get `type_paused` and decide; what is stored already is delivered"
                return Planned(asked=asked, items=[asked.type], notes=[note] if asked.action is Action.PAUSE else [])

    async def carry_out(self, planned: Planned, progress: Progress = _no_progress) -> Done:
        """Does it, and writes down who did, why, and what came of it.

        Raises:
            StoreError: the store does not answer; a part may be done. Repeat it.
        When cancelled, the same.
        """
        asked = planned.asked
        operation = secrets.token_hex(6)
        record: dict[str, object] = {
            "operation": operation,
            "action": asked.action.value,
            "by": self._by,
            "reason": asked.reason,
            "about": asked.about(),
            "count": planned.count,
        }
        await self._store.audit({**record, "state": "begun"})
        results: Counter[str] = Counter()
        left: dict[str, str] = {}
        async for item, outcome in self._outcomes(planned):
            results[outcome] += 1
            if outcome not in _GOOD and len(left) < _AT_ONCE:
                left[item] = outcome
            progress(results.total(), planned.count)
        await self._store.audit({**record, "state": "done", "results": dict(results)})
        return Done(operation=operation, results=dict(results), left=left)

    def _outcomes(self, planned: Planned) -> AsyncIterator[tuple[str, str]]:
        match planned.asked.action:
            case Action.REDELIVER:
                return self._redeliver(planned)
            case Action.SKIP | Action.DEAD_LETTER:
                return self._take_off(planned)
            case Action.REPLAY:
                return self._replay(planned)
            case Action.DROP:
                return self._drop(planned)
            case Action.PURGE:
                return self._purge(planned)
            case _:
                return self._one(planned)

    # --- entries of a session -----------------------------------------------------------------------------------------

    async def _plan_entries(self, asked: Asked) -> Planned:
        after, found, wanted = ENTRY_ZERO, list[str](), set(asked.entries)
        while len(found) <= ITEMS_MAX:
            page = await self._store.pending(asked.user, asked.session, after, _PAGE)
            found += [one.id for one in page if not wanted or one.id in wanted]
            if len(page) < _PAGE:
                break
            after = page[-1].id
        missing = len(wanted) - len(found) if wanted else 0
        notes = [f"{missing} of the entries are not pending for the session (any more)"] if missing > 0 else []
        if not wanted:
            notes += await self._notes_of_session(asked)
        return Planned(asked=asked, items=found[:ITEMS_MAX], more=len(found) > ITEMS_MAX, notes=notes)

    async def _notes_of_session(self, asked: Asked) -> list[str]:
        """What is known of a session of which nothing, or not all that waits, is pending."""
        known = {one.session: one for one in await self._store.sessions(asked.user)}
        if asked.session not in known:
            return [_no_session(asked, known)]
        if known[asked.session].unread:
            return ["what the session has not read yet is not pending: it comes when the session reads it"]
        return []

    async def _redeliver(self, planned: Planned) -> AsyncIterator[tuple[str, str]]:
        asked = planned.asked
        for some in _batches(planned.items):
            sent = await self._store.send_again(asked.user, asked.session, [EntryId(one) for one in some])
            outcome = "sent_again" if sent.node is not None else "waits_for_the_session"
            for one in some:
                yield one, outcome if one in sent.entries else "not_pending"

    async def _take_off(self, planned: Planned) -> AsyncIterator[tuple[str, str]]:
        asked = planned.asked
        how, good = TakenHow.SKIPPED, "skipped"
        if asked.action is Action.DEAD_LETTER:
            how, good = TakenHow.DEAD, "dead_lettered"
        for some in _batches(planned.items):
            entries = [EntryId(one) for one in some]
            gone = await self._store.take_off(TakeOff(user=asked.user, session=asked.session, entries=entries, how=how))
            for one in some:
                yield one, good if one in gone else "not_pending"

    # --- dead letters -------------------------------------------------------------------------------------------------

    async def _letters(self, asked: Asked, most: int) -> AsyncIterator[DeadRow]:
        """The dead letters that are meant, oldest first."""
        if asked.letters:
            for one in asked.letters:
                row = await dead_letter(self._store, one)
                if row is not None:
                    yield row
            return
        wanted, count, cursor = asked.dead or DeadFilter(), 0, ""
        while True:
            page = await dead_letters(
                self._store,
                partitions=self._partitions,
                user=wanted.user,
                since_ms=wanted.since_ms,
                cursor=cursor,
                limit=_PAGE,
            )
            for row in page.rows:
                if wanted.matches(session=row.session, type=row.type, reason=row.reason, time_ms=row.time_ms):
                    count += 1
                    yield row
                    if count >= most:
                        return
            cursor = page.cursor
            if not cursor:
                return

    async def _replay(self, planned: Planned) -> AsyncIterator[tuple[str, str]]:
        for item in planned.items:
            row = await dead_letter(self._store, item)
            if row is None:
                yield item, "gone"
            elif planned.asked.to is ReplayTo.EVERYONE:
                yield item, await self._publish_again(row)
            else:
                letter = parse_dead_id(item)[1]
                outcome = await self._store.put_back(row.user, row.session, letter, row.entry)
                yield item, "gone" if outcome is PutBack.NO_LETTER else outcome.value

    async def _publish_again(self, row: DeadRow) -> str:
        """Stores the event anew, under its own id: clients that have handled it drop it. The letter goes after that; a
        process that is killed between the two stores it once within the time in which repeats are known.
        """
        if not row.body:
            return "event_not_kept"
        try:
            head = peek(row.body)
        except InvalidEvent:
            return "event_not_kept"
        again = Append(
            user=row.user,
            # Not its event id, for that is known; and the same for each try.
            event=EventId(f"replay:{row.id}"),
            body=row.body,
            type=head.type,
            thread=head.thread,
        )
        (answer,) = await self._store.append([again])
        if isinstance(answer, StoreError):
            raise answer
        partition, letter = parse_dead_id(row.id)
        await self._store.drop_dead(partition, [letter])
        return "published"

    async def _drop(self, planned: Planned) -> AsyncIterator[tuple[str, str]]:
        for item in planned.items:
            partition, letter = parse_dead_id(item)
            yield item, "dropped" if await self._store.drop_dead(partition, [letter]) else "gone"

    # --- sessions, users, nodes, types --------------------------------------------------------------------------------

    async def _plan_end(self, asked: Asked) -> Planned:
        known = {one.session: one for one in await self._store.sessions(asked.user)}
        if asked.session not in known:
            return Planned(asked=asked, items=[], notes=[_no_session(asked, known)])
        found = [known[asked.session]]
        notes = [f"{one.pending} entries are pending and will be recorded as expired" for one in found if one.pending]
        if found[0].live is not None:
            notes.append("its client is connected and told not to come back; to keep it out: eventbus revoke")
        return Planned(asked=asked, items=[asked.session], notes=notes)

    async def _plan_purge(self, asked: Asked) -> Planned:
        found = [one.key for one in await self._store.keys_of_user(asked.user)]
        found += await self._kept_among_others(asked.user)
        live = sum(one.live is not None for one in await self._store.sessions(asked.user))
        notes = ["dead letters, deadlines and events for operators of the user go too; revocations and the audit stay"]
        if live:
            are = "1 session is" if live == 1 else f"{live} sessions are"
            notes.append(f"{are} live and will be ended; to keep the user out: eventbus revoke --user")
        return Planned(asked=asked, items=found[:ITEMS_MAX], more=len(found) > ITEMS_MAX, notes=notes)

    async def _purge(self, planned: Planned) -> AsyncIterator[tuple[str, str]]:
        user = planned.asked.user
        for record in await self._store.sessions(user):
            await self._store.end_session(user, record.session)
        among_others = [one for one in planned.items if one.startswith((_LETTER, _TOLD))]
        for some in _batches([one for one in planned.items if not one.startswith((_LETTER, _TOLD))]):
            await self._store.erase_keys(user, some)
            for one in some:
                yield one, "erased"
        # What is ended above, and nodes that were at work, leave something behind.
        late = [one.key for one in await self._store.keys_of_user(user)]
        await self._store.erase_keys(user, late)
        for one in late:
            yield one, "erased"
        await self._store.forget_user(user)
        for one in among_others:
            yield one, "erased"

    async def _kept_among_others(self, user: UserId) -> list[str]:
        """What is kept of a user in keys that others share, which may be there when all of the user's own have gone."""
        letters = await dead_letters(self._store, partitions=self._partitions, user=user, limit=ITEMS_MAX)
        found = [f"{_LETTER}{row.id}" for row in letters.rows]
        partition, after = partition_of(user, self._partitions), ENTRY_ZERO
        while len(found) <= ITEMS_MAX:
            page = await self._store.operator_events(partition, after, _PAGE)
            found += [
                f"{_TOLD}{operator_event_name(partition, one.id)}" for one in page if one.fields.get("user") == user
            ]
            if len(page) < _PAGE:
                break
            after = page[-1].id
        return found

    async def _plan_node(self, asked: Asked) -> Planned:
        held = any(one.node == asked.node for one in await self._store.held_nodes())
        here = any(one.node == asked.node for one in await self._store.nodes())
        if asked.action is Action.UNDRAIN:
            notes = [] if held else [f"no operator drains {asked.node}: `eventbus nodes` shows which are held"]
            return Planned(asked=asked, items=[asked.node] if held else [], notes=notes)
        notes = [] if here else [f"no node {asked.node} tells of itself now; it will drain when it starts"]
        return Planned(asked=asked, items=[asked.node], notes=notes)

    async def _one(self, planned: Planned) -> AsyncIterator[tuple[str, str]]:
        """Actions on one thing, where it was found."""
        for item in planned.items:
            yield item, await self._carry_out_one(planned.asked)

    async def _carry_out_one(self, asked: Asked) -> str:
        store = self._store
        match asked.action:
            case Action.END_SESSION:
                await store.end_session(asked.user, asked.session)
                return "ended"
            case Action.DRAIN:
                await store.hold_node(asked.node, self._by, asked.reason)
                return "drained"
            case Action.UNDRAIN:
                return "undrained" if await store.free_node(asked.node) else "gone"
            case Action.PAUSE:
                await store.pause_type(asked.type, self._by, asked.reason)
                return "paused"
            case _:
                return "resumed" if await store.resume_type(asked.type) else "not_paused"


_GOOD: Final = frozenset(
    {
        "sent_again",
        "waits_for_the_session",
        "skipped",
        "dead_lettered",
        "put_back",
        "published",
        "dropped",
        "gone",
        "ended",
        "erased",
        "drained",
        "undrained",
        "paused",
        "resumed",
        "not_paused",
    }
)
"""Ends with which an operator can be content."""


def _no_session(asked: Asked, known: Iterable[SessionId]) -> str:
    names = sorted(known)
    has = ", ".join(names[:_NAMED_MAX]) + (f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else "")
    return f"{asked.user} has no session {asked.session}; there is " + (has or "none")


def _batches(items: Sequence[str]) -> list[Sequence[str]]:
    return [items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE)]
