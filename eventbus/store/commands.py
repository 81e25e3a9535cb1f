"""A typed function for each command and script of the delivery path: what goes in, and what the answer means."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from eventbus.config import ConfirmationRecords
from eventbus.errors import StoreError
from eventbus.ids import ENTRY_ZERO, EntryId, NodeName, SessionId, UserId
from eventbus.store import (
    LOST,
    AckRequest,
    Attach,
    Attached,
    AttachRefused,
    Beat,
    Confirmed,
    ConfirmRequest,
    DeadLetter,
    DeadOutcome,
    EntryFacts,
    Fence,
    HistoryPage,
    Lost,
    NewRead,
    NodeRecord,
    PendingPage,
    PendingRecord,
    ReadRequest,
    Redelivery,
    RedeliveryOutcome,
    ReleaseReason,
    SessionRecord,
)
from eventbus.store.answers import (
    attach_answer,
    beats,
    history_page,
    new_reads,
    outcomes,
    pending_page,
    session_record,
    whole,
    whole_numbers,
)
from eventbus.store.append_commands import AppendCommands, evalsha
from eventbus.store.command import Argument, Command

__all__ = ["NODE_LIFE_MS", "Commands"]

NODE_LIFE_MS: Final = 15_000
PROBE_LIFE_MS: Final = 10_000


def _facts(entries: Sequence[EntryId], facts: Sequence[EntryFacts | None]) -> str:
    """Facts as facts.lua reads them. Source: eventbus/store/lua/shared/facts.lua."""
    if not facts:
        return f":u:{len(entries)}"
    if len(facts) != len(entries):
        raise ValueError(f"{len(facts)} facts for {len(entries)} entries")
    return " ".join(f"{_word(one)}:{sum(1 for _ in run)}" for one, run in groupby(facts))


def _is_plain(request: AckRequest | ConfirmRequest) -> bool:
    """Whether it is of the session's own connection, and of entries of one kind that are the session's alone."""
    facts = request.facts
    return (
        request.connection is not None
        and len(facts) > 0
        and (first := facts[0]) is not None
        and not first.shared
        and (len(facts) == 1 or facts.count(first) == len(facts))
    )


def _word(facts: EntryFacts | None) -> str:
    if facts is None:
        return ":u"
    return f"{facts.type}:{'s' if facts.shared else ''}{'d' if facts.demanded else ''}"


class Commands(AppendCommands):
    """Makes the commands of an installation.

    Args:
        keys: its names.
        settings: its lives and caps.
    """

    def attach(self, request: Attach, fresh_epoch: str) -> Command[Attached | AttachRefused]:
        """Open, resume, take over or renew a session."""
        fence, settings = request.fence, self.settings
        keys = self.keys.user(fence.user)
        return evalsha(
            "attach",
            (
                keys.stream,
                keys.live,
                keys.known,
                keys.partition.epoch,
                keys.records,
                keys.partition.counts,
                keys.gaps,
                keys.partition.waiting,
            ),
            (
                request.mode.value,
                fence.user,
                fence.session,
                fence.connection,
                request.node,
                request.start.value,
                request.cursor or ENTRY_ZERO,
                request.epoch or "",
                fresh_epoch,
                request.live_limit,
                request.known_limit,
                settings.live_ttl_ms,
                settings.session_ttl_ms,
                settings.retention_ms,
                keys.partition.channel,
                keys.channel,
            ),
            attach_answer,
            wanted=request.wanted,
        )

    def read_pending(self, fence: Fence, after: EntryId, count: int) -> Command[PendingPage | Lost]:
        """A page of pending entries."""
        keys = self.keys.user(fence.user)
        arguments = (self.settings.live_ttl_ms, fence.session, fence.connection, after, max(1, count))
        return evalsha("pending", (keys.stream, keys.live, keys.released), arguments, pending_page)

    def read_new(self, requests: Sequence[ReadRequest]) -> Command[list[NewRead | StoreError]]:
        """What is new for sessions of any users; they are of one server, so the slots of the keys do not matter."""
        used: list[str] = []
        arguments: list[Argument] = [self.settings.live_ttl_ms, self.settings.retention_ms]
        for request in requests:
            fence = request.fence
            keys = self.keys.user(fence.user)
            used += (keys.stream, keys.live, keys.released, keys.gaps)
            arguments += (fence.session, fence.connection, max(1, request.count), request.verify or "")
        return evalsha("read", used, arguments, new_reads)

    def ack(self, requests: Sequence[AckRequest | ConfirmRequest]) -> Command[list[int | StoreError]]:
        """Release what clients acked, of any users; the slots do not matter, as for reads."""
        settings = self.settings
        if all(map(_is_plain, requests)):
            return self._ack_plain(requests)
        used: list[str] = []
        given: list[Argument] = [settings.retention_ms, settings.confirmation_records.value, settings.live_ttl_ms]
        for request in requests:
            keys = self.keys.user(request.user)
            partition = keys.partition
            used += (keys.stream, keys.records, keys.live, keys.released, partition.counts)
            given += (
                request.session,
                "other" if request.connection is None else "own",
                request.user,
                partition.channel,
                _facts(request.entries, request.facts),
                ",".join(request.entries),
            )
        return evalsha("ack_mixed", used, given, whole_numbers)

    def _ack_plain(self, requests: Sequence[AckRequest | ConfirmRequest]) -> Command[list[int | StoreError]]:
        settings = self.settings
        used: list[str] = [self.keys.user(requests[0].user).partition.counts]
        given: list[Argument] = [settings.retention_ms, settings.confirmation_records.value]
        for request in requests:
            keys = self.keys.user(request.user)
            used += (keys.stream, keys.records)
            given += (request.session, _facts(request.entries, request.facts), ",".join(request.entries))
        return evalsha("ack", used, given, whole_numbers)

    def confirm(self, request: ConfirmRequest) -> Command[Confirmed]:
        """Record what a client displayed or confirmed; without records, an ack."""
        settings = self.settings
        if settings.confirmation_records is ConfirmationRecords.OFF:
            plain = self.ack((request,))

            def parse(reply: Any, primary: str) -> Confirmed | StoreError:
                (count,) = whole_numbers(reply, primary)
                return count if isinstance(count, StoreError) else Confirmed(count, 0)

            return Command(plain.arguments, parse, scripted=True)
        keys = self.keys.user(request.user)
        return evalsha(
            "confirm",
            (keys.stream, keys.records, keys.live, keys.released, keys.partition.counts),
            [
                request.session,
                settings.retention_ms,
                settings.confirmation_records.value,
                "other" if request.connection is None else "own",
                request.user,
                keys.partition.channel,
                settings.live_ttl_ms,
                _facts(request.entries, request.facts),
                request.level.value,
                request.note or "",
                *request.entries,
            ],
            lambda reply, _primary: Confirmed(int(reply[0]), int(reply[1])),
        )

    def release(
        self, fence: Fence, entries: Sequence[EntryId], reason: ReleaseReason, facts: Sequence[EntryFacts | None] = ()
    ) -> Command[int | Lost]:
        """A node's own ack."""
        keys, settings = self.keys.user(fence.user), self.settings
        return evalsha(
            "release",
            (keys.stream, keys.live, keys.records, keys.partition.counts, keys.gaps),
            [
                settings.live_ttl_ms,
                fence.session,
                fence.connection,
                reason.value,
                settings.retention_ms,
                _facts(entries, facts),
                *entries,
            ],
            lambda reply, _primary: LOST if reply[0] == b"lost" else int(reply[1]),
        )

    def redeliver(self, fence: Fence, entries: Sequence[Redelivery]) -> Command[list[RedeliveryOutcome] | Lost]:
        """Count attempts."""
        keys = self.keys.user(fence.user)
        arguments: list[Argument] = [self.settings.live_ttl_ms, fence.session, fence.connection]
        arguments += (fence.user, self.settings.retention_ms)
        for entry in entries:
            arguments += (entry.id, entry.attempts)
        return evalsha("redeliver", (keys.stream, keys.live, keys.partition.waiting), arguments, outcomes)

    def dead_letter(self, fence: Fence, letter: DeadLetter) -> Command[DeadOutcome | Lost]:
        """Give an entry up for a session."""
        keys, settings = self.keys.user(fence.user), self.settings
        return evalsha(
            "dead_letter",
            (keys.stream, keys.live, keys.partition.dead, keys.partition.counts),
            (
                settings.live_ttl_ms,
                fence.session,
                fence.connection,
                settings.dead_letter_ttl_ms,
                fence.user,
                letter.id,
                letter.event,
                letter.type,
                letter.reason,
                letter.attempts,
                letter.body,
            ),
            lambda reply, _primary: LOST if reply == b"lost" else DeadOutcome(reply.decode()),
        )

    def heartbeat(self, user: UserId, fences: Sequence[Fence], node: NodeName) -> Command[list[Beat]]:
        """Renew sessions of one user."""
        keys, settings = self.keys.user(user), self.settings
        arguments: list[Argument] = [node, settings.live_ttl_ms, settings.session_ttl_ms, settings.retention_ms]
        arguments += (user, settings.live_ttl_ms // 16)
        for fence in fences:
            arguments += (fence.session, fence.connection)
        used = (keys.stream, keys.live, keys.known, keys.records, keys.partition.counts, keys.partition.waiting)
        return evalsha("heartbeat", used, arguments, beats)

    def detach(self, fence: Fence, cursor: EntryId) -> Command[bool | Lost]:
        """A session goes away and keeps its place."""
        keys, settings = self.keys.user(fence.user), self.settings
        return evalsha(
            "detach",
            (keys.stream, keys.live, keys.known, keys.partition.waiting),
            (
                settings.live_ttl_ms,
                fence.session,
                fence.connection,
                cursor,
                settings.session_ttl_ms,
                settings.retention_ms,
                keys.channel,
                fence.user,
            ),
            lambda reply, _primary: LOST if reply == b"lost" else True,
        )

    def end_session(self, user: UserId, session: SessionId) -> Command[int]:
        """Destroy a session."""
        keys = self.keys.user(user)
        return evalsha(
            "end_session",
            (keys.stream, keys.live, keys.known, keys.records, keys.partition.counts, keys.partition.waiting),
            (
                session,
                self.settings.retention_ms,
                keys.channel,
                user,
                keys.partition.channel,
                self.settings.live_ttl_ms,
            ),
            whole,
        )

    def history(self, user: UserId, after: EntryId, count: int, fresh_epoch: str) -> Command[HistoryPage]:
        """Retained entries after an id."""
        keys = self.keys.user(user)
        return evalsha("history", (keys.stream, keys.partition.epoch), (fresh_epoch, after, count), history_page)

    def sessions(self, user: UserId) -> Command[list[SessionRecord]]:
        """All sessions of a user."""
        keys, settings = self.keys.user(user), self.settings
        return evalsha(
            "sessions",
            (keys.stream, keys.live, keys.known),
            (settings.live_ttl_ms, settings.session_ttl_ms),
            lambda reply, _primary: [session_record(user, raw) for raw in reply],
        )

    def waiting(self, user: UserId, session: SessionId, after: EntryId, count: int) -> Command[list[PendingRecord]]:
        """Pending entries of a session, for operators."""
        return evalsha(
            "waiting",
            (self.keys.user(user).stream,),
            (session, after, count),
            lambda reply, _primary: [
                PendingRecord(id=EntryId(raw[0].decode()), attempts=raw[3], idle_ms=raw[2]) for raw in reply
            ],
        )

    def beat_node(self, record: NodeRecord) -> Command[int]:
        """Write what a node tells of itself."""
        told = {
            "node": record.node,
            "address": record.address,
            "version": record.version,
            "state": record.state,
            "started_ms": record.started_ms,
            "figures": dict(record.figures),
        }
        return evalsha("beat_node", (self.keys.nodes,), (record.node, json.dumps(told), NODE_LIFE_MS), whole)

    def probe(self, node: NodeName, token: str, message: str) -> Command[str]:
        """Write and read an entry in the node's own stream, and wake the node, all in the partition of the token."""
        number = self.keys.partition_of(token)
        channel = self.keys.partition(number).channel + node
        arguments = (channel, message, token, PROBE_LIFE_MS)
        return evalsha(
            "probe", (self.keys.probe(node, number),), arguments, lambda reply, _primary: bytes(reply).decode()
        )

    def nodes(self) -> Command[list[NodeRecord]]:
        """The nodes that told of themselves of late."""
        return evalsha(
            "nodes",
            (self.keys.nodes,),
            (NODE_LIFE_MS,),
            lambda reply, _primary: sorted(
                (NodeRecord(**json.loads(raw)) for raw in reply), key=lambda record: record.node
            ),
        )
