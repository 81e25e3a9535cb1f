"""Acks, confirmations, releases and dead letters in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from eventbus.config import ConfirmationRecords
from eventbus.errors import InvalidEvent, StoreError
from eventbus.event import Deliver, peek
from eventbus.fields import Level
from eventbus.ids import ENTRY_ZERO, EntryId, SessionId, UserId, entry_order
from eventbus.store import (
    LOST,
    AckRequest,
    Confirmed,
    ConfirmRequest,
    DeadLetter,
    DeadLetterRecord,
    DeadOutcome,
    EntryFacts,
    Fence,
    GapReason,
    Listener,
    Lost,
    ReleaseReason,
    StoreGap,
)
from eventbus.testing.memory_base import MemoryBase
from eventbus.testing.memory_state import UserState
from eventbus.testing.memory_stream import Group, entry_id

__all__ = ["MemoryAcks"]


class MemoryAcks(MemoryBase):
    """The part of a `MemoryStore` that takes entries off the pending ones."""

    async def ack(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> int:
        async with self._call():
            return len(self._ack(AckRequest(user=user, session=session, entries=entries)))

    async def ack_many(self, requests: Sequence[AckRequest]) -> Sequence[int | StoreError]:
        try:
            async with self._call():
                return [len(self._ack(request)) for request in requests]
        except StoreError as error:
            return [error] * len(requests)

    def _ack(self, request: AckRequest | ConfirmRequest) -> dict[EntryId, EntryFacts]:
        """What the ack released, and what is known of it."""
        user, now_ms = self._user(request.user), self.clock.now_ms()
        taken = _taken(user, user.group(request.session), request.entries, request.facts)
        late = {entry: facts for entry, facts in taken.items() if facts.shared and entry in user.released}
        gone = {entry: facts for entry, facts in taken.items() if entry not in late}
        self._put_down(user, request.session, ReleaseReason.RELEASED, late)
        _count(user, Level.RECEIVED.value, gone)
        user.record(request.session, Level.RECEIVED.value, self._recorded(gone), now_ms)
        if shared := {entry: facts for entry, facts in gone.items() if facts.shared}:
            user.released |= shared.keys()
            user.released_until_ms = now_ms + self.settings.retention_ms
            self._release_for_others(request, user, shared)
        live = user.live.get(request.session)
        if request.connection is None and live is not None and gone:
            ids = list(gone)
            self._tell(live.node, lambda listener: listener.acked_elsewhere(request.user, request.session, ids))
        return gone

    def _release_for_others(
        self, request: AckRequest | ConfirmRequest, user: UserState, shared: Mapping[EntryId, EntryFacts]
    ) -> None:
        """The first ack of a `deliver: any` event takes it off the user's other sessions (D19)."""
        groups = user.stream.groups if user.stream is not None else {}
        for session, group in [(SessionId(name), group) for name, group in groups.items() if name != request.session]:
            theirs = _taken(user, group, list(shared), list(shared.values()))
            self._put_down(user, session, ReleaseReason.RELEASED, theirs)
            live = user.live.get(session)
            if live is not None and theirs:
                self._tell(live.node, _released(request.user, session, list(theirs)))

    def _put_down(
        self, user: UserState, session: SessionId, reason: ReleaseReason, taken: Mapping[EntryId, EntryFacts]
    ) -> None:
        _count(user, reason.value, taken)
        user.record(session, reason.value, list(taken), self.clock.now_ms())

    def _recorded(self, taken: Mapping[EntryId, EntryFacts]) -> list[EntryId]:
        """Which of these are recorded, by the setting."""
        match self.settings.confirmation_records:
            case ConfirmationRecords.ALL:
                return list(taken)
            case ConfirmationRecords.REQUIRED:
                return [entry for entry, facts in taken.items() if facts.demanded]
            case ConfirmationRecords.OFF:
                return []

    async def confirm_many(self, requests: Sequence[ConfirmRequest]) -> Sequence[Confirmed | StoreError]:
        try:
            async with self._call():
                return [self._confirm(request) for request in requests]
        except StoreError as error:
            return [error] * len(requests)

    def _confirm(self, request: ConfirmRequest) -> Confirmed:
        released = len(self._ack(request))
        user = self._user(request.user)
        if self.settings.confirmation_records is ConfirmationRecords.OFF or user.group(request.session) is None:
            return Confirmed(released, 0)
        reached = user.reached(request.session)
        new: dict[EntryId, EntryFacts] = {}
        for entry, facts in zip(request.entries, request.facts or [None] * len(request.entries), strict=True):
            if entry in reached and reached[entry].rank < request.level.rank:
                new[entry] = facts or _facts_of(user, entry)
        user.record(request.session, request.level.value, list(new), self.clock.now_ms(), request.note or None)
        for level in Level:
            # A level that is reached at once counts as those before it too.
            if level.rank <= request.level.rank:
                _count(user, level.value, {e: facts for e, facts in new.items() if reached[e].rank < level.rank})
        return Confirmed(released, len(new))

    async def release(
        self,
        fence: Fence,
        entries: Sequence[EntryId],
        reason: ReleaseReason,
        facts: Sequence[EntryFacts | None] = (),
    ) -> int | Lost:
        async with self._call():
            user = self._held(fence)
            if user is None:
                return LOST
            taken = _taken(user, user.group(fence.session), entries, facts)
            self._put_down(user, fence.session, reason, taken)
            if reason is ReleaseReason.TRIMMED and taken and user.stream is not None:
                # Its client was told just now, and may be gone before it has heard of it.
                last = entry_order(list(taken)[-1])
                following = user.stream.after(last, 1)
                before = entry_id(following[0]) if following else None
                gap = StoreGap(reason=GapReason.TRIMMED, after=None, before=before, count=len(taken))
                user.noted.setdefault(fence.session, []).append((gap, following[0] if following else last))
            return len(taken)

    async def dead_letter(self, fence: Fence, letter: DeadLetter) -> DeadOutcome | Lost:
        async with self._call():
            user = self._held(fence)
            if user is None:
                return LOST
            group = user.group(fence.session)
            if group is None or not group.drop([letter.id]):
                return DeadOutcome.GONE
            now_ms, partition = self.clock.now_ms(), self._partition(fence.user)
            stored = user.stream.body(entry_order(letter.id)) if user.stream is not None else None
            record = DeadLetterRecord(
                id=ENTRY_ZERO,  # given by the log
                partition=self._number(fence.user),
                user=fence.user,
                session=fence.session,
                entry=letter.id,
                event=letter.event,
                type=letter.type,
                reason=letter.reason,
                attempts=letter.attempts,
                node=user.live[fence.session].node,
                time_ms=now_ms,
                body=letter.body or stored or b"",
            )
            partition.dead.record(record, now_ms)
            partition.count("dead_lettered", letter.type)
            return DeadOutcome.DEAD


def _released(user: UserId, session: SessionId, entries: Sequence[EntryId]) -> Callable[[Listener], None]:
    return lambda listener: listener.released(user, session, entries)


def _count(user: UserState, state: str, taken: Mapping[EntryId, EntryFacts]) -> None:
    for facts in taken.values():
        user.partition.count(state, facts.type)


def _taken(
    user: UserState, group: Group | None, entries: Iterable[EntryId], facts: Sequence[EntryFacts | None]
) -> dict[EntryId, EntryFacts]:
    """Takes entries off the pending ones. Returns those that were there, with what is known of them."""
    if group is None:
        return {}
    given = list(entries)
    pairs = zip(given, facts or [None] * len(given), strict=True)
    return {entry: known or _facts_of(user, entry) for entry, known in pairs if group.drop([entry])}


def _facts_of(user: UserState, entry: EntryId) -> EntryFacts:
    """What the envelope tells, while the entry is stored."""
    body = user.stream.body(entry_order(entry)) if user.stream is not None else None
    try:
        head = peek(body or b"")
    except InvalidEvent:
        return EntryFacts("")
    return EntryFacts(head.type, head.deliver is Deliver.ANY, head.demanded)
