"""The judge: reads a history and says what was promised and not kept. Pure, so that it can judge any history again.

It trusts nobody's counters. For each session it goes through what came, in the order in which it came, and holds it
against what the publishers were answered:

- **lost**: a publish returned, and a session of its user neither received the event, nor was told of a gap with its
  entry in it, nor that it was dropped. A session that began when it was gone already, as others were told, is not owed
  it, provided that its publisher was dead by then and had been promised no more than `memory`.
- **unrestored**: it was announced as lost in a gap, although its publisher lived, which should have sent it again, or
  although the promise of its durability was more than `memory`.
- **unmarked**: it came again with `delivery` 1. Only what a server has lost may come again so, near a fault of the
  store: an event, which its publisher sent again, under another entry id; or the note that a session has read it, on
  another of the session's connections.
- **disordered**: what came for the first time, unmarked, was behind something younger: by entry id (from the last
  `rollback` or `reset` on), or by the order in which one publisher published for the user.
- **stored_twice**: it came under two entry ids, and the store was whole all the time.
- **foreign**, **unknown**: another user's event; an event that nobody published.
- **handed_twice**: a client library gave it to its application twice.
- **closed**: a connection ended with a code that says that the client did wrong, or with 1011.
- **unsettled**: the store says in the end that something still waits for an ack.
- **died**: a process ended that nobody had killed.
- **dead**: there is a dead letter, or something was dropped as one; every client of these runs acks in the end.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from chaos.history import Kind, Op

__all__ = ["KINDS", "Fault", "Finding", "Outcome", "Verdict", "check", "slices"]

KINDS: Final = (
    "lost",
    "unrestored",
    "unmarked",
    "disordered",
    "stored_twice",
    "foreign",
    "unknown",
    "handed_twice",
    "closed",
    "unsettled",
    "died",
    "dead",
)
_ROLLED_BACK: Final = ("rollback", "reset")
_START: Final = (-1, -1)
# 4000 to 4499 say "come back": all others of 4500 to 4999 say that the client did wrong. 1011 is always a defect.
_DEFECT: Final = 1011
KEPT_MS: Final = 30_000
"""So long does a publisher keep what it published, to send it again (`EVENTBUS_KEPT_MS`)."""
LATE_MS: Final = 60_000
"""So late may a client be that is frozen, slow or cut off, or whose machine is busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong: when, whose, which event, and how."""

    kind: str
    time_ms: int
    user: str
    session: str
    event: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} at {self.time_ms}: {self.user}/{self.session} {self.event} {self.detail}".rstrip()


@dataclass(slots=True)
class Outcome:
    """What became of one publish.

    Attributes:
        entry: the entry id that was answered; None when none was.
        returned_ms: when it returned; None when it did not, or raised.
        owed: deliveries owed: one to each session of the user that stayed.
        received: of these, those that came.
        announced: of these, those that were announced as a gap instead.
        lost: of these, those of which nobody said a word.
        worst_ms: the longest time from the publish to a first receipt.
    """

    event: str
    user: str
    process: str
    number: int
    invoked_ms: int
    entry: str | None = None
    returned_ms: int | None = None
    error: str | None = None
    owed: int = 0
    received: int = 0
    announced: int = 0
    lost: int = 0
    worst_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault of the history; `end_ms` is None when it was never healed."""

    number: int
    name: str
    group: str
    target: str
    begin_ms: int
    end_ms: int | None


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What the checker found. `ok` when nothing is wrong.

    Attributes:
        outcomes: event -> what became of its publish.
        received: all that came, repetitions included.
        acked: deliveries whose ack was answered.
        marked: repetitions that were marked as redeliveries.
        restored: repetitions under another entry id, of what a server had lost.
        reread: repetitions on another connection after a fault of the store, of what it no longer knew to be read.
        untold: of the restored, those of sessions that were not told of a rollback.
        gaps: gaps by reason.
        empty_gaps: gaps that cover nothing that the session missed.
        delays_ms: from publish (or the session's begin, which may be later) to first receipt, sorted.
        publish_ms: from a publish to its return, sorted.
        closes: ends of connections by code.
        faults: in the order in which they began.
        findings: all that is wrong.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    sessions: int = 0
    received: int = 0
    acked: int = 0
    marked: int = 0
    restored: int = 0
    untold: int = 0
    reread: int = 0
    gaps: Counter[str] = field(default_factory=Counter)
    empty_gaps: int = 0
    dead_letters: int = 0
    delays_ms: list[int] = field(default_factory=list)
    publish_ms: list[int] = field(default_factory=list)
    closes: Counter[int] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def counts(self) -> Counter[str]:
        """How many findings of each kind."""
        return Counter(finding.kind for finding in self.findings)

    @property
    def published(self) -> int:
        """Publishes that returned."""
        return sum(outcome.entry is not None for outcome in self.outcomes.values())

    @property
    def unsure(self) -> int:
        """Publishes that raised, or whose publisher was killed: they may have arrived or not."""
        return len(self.outcomes) - self.published

    def total(self, name: str) -> int:
        """The sum of `owed`, `received`, `announced` or `lost` over all publishes."""
        return sum(getattr(outcome, name) for outcome in self.outcomes.values())


@dataclass(slots=True)
class _Gap:
    reason: str
    after: tuple[int, int] | None
    before: tuple[int, int] | None
    told_ms: int = 0
    covered: int = 0

    def covers(self, entry: tuple[int, int]) -> bool:
        """Whether an entry id lies in the range that was announced.

        After a rollback new entries may have lower ids than those that are gone, so `before` says nothing then; a reset
        takes everything.
        """
        if self.reason == "reset":
            return True
        if self.after is not None and entry <= self.after:
            return False
        return self.reason == "rollback" or self.before is None or entry < self.before


@dataclass(slots=True)
class _Session:
    user: str
    name: str
    library: bool = False
    opened_ms: int = 0
    entries: dict[str, str] = field(default_factory=dict)  # event -> the entry id under which it came last
    first_ms: dict[str, int] = field(default_factory=dict)
    connections: dict[str, int] = field(default_factory=dict)  # event -> the connection on which it came last
    newest: tuple[int, int] = _START  # of the unmarked, since the last rollback
    places: dict[str, int] = field(default_factory=dict)  # publisher -> its newest that came unmarked
    gaps: list[_Gap] = field(default_factory=list)
    rolled_back: bool = False
    dropped: set[str] = field(default_factory=set)
    left: bool = False
    asked: dict[Any, int] = field(default_factory=dict)  # ref of an ack -> entries in it


def check(history: Iterable[Op], *, durability: str = "memory") -> Verdict:
    """Judges a history.

    Args:
        history: in the order of time.
        durability: what the publishers asked for: above `memory` nothing that returned may be announced as a gap.
    """
    judge = _Judge(durability)
    for op in history:
        judge.take(op)
    return judge.done()


class _Judge:
    def __init__(self, durability: str) -> None:
        self._durability = durability
        self._verdict = Verdict()
        self._sessions: dict[tuple[str, str], _Session] = {}
        self._numbers: Counter[str] = Counter()
        self._crashed: dict[str, int] = {}  # publisher -> when it was killed
        self._taken_back: dict[str, list[_Gap]] = defaultdict(list)  # user -> what sessions were told of
        self._early: list[tuple[_Session, Op]] = []
        self._restored: set[str] = set()
        self._last_ms = 0

    def take(self, op: Op) -> None:
        """The next operation."""
        self._last_ms = op.time_ms
        match op.f:
            case "publish":
                self._publish(op)
            case "crash":
                self._crashed[op.process] = op.time_ms
            case "fault":
                self._fault(op)
            case "look":
                self._look(op)
            case "died":
                self._find("died", op.time_ms, _Session(op.process, ""), "", f"{op.value['code']} {op.value['output']}")
            case _:
                self._client(op)

    def _client(self, op: Op) -> None:
        value = op.value
        name = value["user"], value["session"]
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = _Session(*name)
        match op.f:
            case "receive":
                self._receive(session, op)
            case "gap":
                gap = _Gap(value["reason"], _entry(value["after"]), _entry(value["before"]), op.time_ms)
                session.gaps.append(gap)
                self._verdict.gaps[gap.reason] += 1
                if gap.reason in _ROLLED_BACK:
                    session.rolled_back, session.newest = True, _START
                    self._taken_back[session.user].append(gap)
            case "dropped":
                session.dropped.update(value["entries"])
                if value["reason"] == "dead_lettered":
                    self._find("dead", op.time_ms, session, ",".join(value["entries"]), "the client was told")
            case "ack":
                if op.kind is Kind.INVOKE:
                    session.asked[value["ref"]] = len(value["entries"])
                elif op.kind is Kind.OK:
                    self._verdict.acked += session.asked.pop(value["ref"], 0)
            case "open":
                session.opened_ms = session.opened_ms or op.time_ms
                session.library = bool(value["library"])
            case "close":
                code = int(value["code"])
                self._verdict.closes[code] += 1
                if code == _DEFECT or 4500 <= code < 5000:
                    self._find("closed", op.time_ms, session, "", f"{code} {value['reason']}")
            case "leave":
                session.left = True

    # --- publishers, faults, the store --------------------------------------------------------------------------------

    def _publish(self, op: Op) -> None:
        value = op.value
        event = value["event"]
        if op.kind is Kind.INVOKE:
            self._numbers[op.process] += 1
            self._verdict.outcomes[event] = Outcome(
                event, value["user"], op.process, self._numbers[op.process], op.time_ms
            )
            return
        outcome = self._verdict.outcomes[event]
        if op.kind is Kind.OK:
            outcome.entry, outcome.returned_ms = value["entry"], op.time_ms
            self._verdict.publish_ms.append(op.time_ms - outcome.invoked_ms)
        else:
            outcome.error = str(value["error"])

    def _fault(self, op: Op) -> None:
        faults, value = self._verdict.faults, op.value
        if op.kind is Kind.INVOKE:
            faults.append(
                Fault(
                    number=value["number"],
                    name=value["name"],
                    group=value["group"],
                    target=value["target"],
                    begin_ms=op.time_ms,
                    end_ms=None,
                )
            )
        for place, fault in enumerate(faults):
            if op.kind is Kind.OK and fault.number == value["number"]:
                faults[place] = replace(fault, end_ms=op.time_ms)

    def _look(self, op: Op) -> None:
        for name, entries in op.value["pending"].items():
            user, _, session = name.partition("/")
            self._find("unsettled", op.time_ms, _Session(user, session), "", f"{entries} entries wait for an ack")
        self._verdict.dead_letters = len(op.value["dead"])
        for letter in op.value["dead"]:
            session = _Session(letter["user"], letter["session"])
            self._find("dead", op.time_ms, session, letter["event"], letter["reason"])

    # --- what came ----------------------------------------------------------------------------------------------------

    def _receive(self, session: _Session, op: Op) -> None:
        value, verdict = op.value, self._verdict
        event, text = value["event"], value["entry"]
        verdict.received += 1
        outcome = verdict.outcomes.get(event)
        if outcome is None or outcome.user != session.user or value["owner"] != session.user:
            known = outcome is not None
            detail = f"of {value['owner']}" if known else ""
            self._find("foreign" if known else "unknown", op.time_ms, session, event, detail)
            return
        marked = value["delivery"] > 1
        before = session.entries.get(event)
        session.entries[event] = text
        if before is None:
            session.first_ms[event] = op.time_ms
        else:
            self._again(session, op, before, marked=marked)
        session.connections[event] = value["connection"]
        if marked:
            return
        entry = _entry(text)
        assert entry is not None
        if before != text and entry <= session.newest:
            newest = "{}-{}".format(*session.newest)
            self._find("disordered", op.time_ms, session, event, f"{text} after {newest}")
        elif before is None and outcome.number < session.places.get(outcome.process, 0):
            number = session.places[outcome.process]
            self._find(
                "disordered",
                op.time_ms,
                session,
                event,
                f"published as no. {outcome.number} of {outcome.process}, after no. {number}",
            )
        session.newest = max(session.newest, entry)
        if before is None:
            session.places[outcome.process] = max(outcome.number, session.places.get(outcome.process, 0))

    def _again(self, session: _Session, op: Op, before: str, *, marked: bool) -> None:
        event, text = op.value["event"], op.value["entry"]
        if session.library:
            self._find("handed_twice", op.time_ms, session, event, f"{before} and {text}")
        elif before != text and (session.rolled_back or self._store_was_hurt(op.time_ms)):
            self._verdict.restored += 1
            self._verdict.untold += not session.rolled_back
            self._restored.add(event)
        elif before != text:
            self._find("stored_twice", op.time_ms, session, event, f"{before} and {text}")
        elif marked:
            self._verdict.marked += 1
        elif op.value["connection"] != session.connections[event] and self._store_was_hurt(op.time_ms):
            self._verdict.reread += 1
        else:
            self._find("unmarked", op.time_ms, session, event, f"again as {text}")

    def _store_was_hurt(self, now_ms: int) -> bool:
        """Whether a fault of the store is so near that a publisher may send again what was lost in it."""
        return any(
            fault.group == "store" and (fault.end_ms is None or now_ms - fault.end_ms < KEPT_MS + LATE_MS)
            for fault in self._verdict.faults
        )

    # --- the end ------------------------------------------------------------------------------------------------------

    def done(self) -> Verdict:
        """The verdict, when all has been taken."""
        verdict = self._verdict
        by_user: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in verdict.outcomes.values():
            if outcome.entry is not None:
                by_user[outcome.user].append(outcome)
        for session in self._sessions.values():
            for event, time_ms in session.first_ms.items():
                outcome = verdict.outcomes[event]
                delay_ms = time_ms - max(outcome.invoked_ms, session.opened_ms)
                verdict.delays_ms.append(delay_ms)
                outcome.worst_ms = max(outcome.worst_ms, delay_ms)
            self._owed(session, by_user[session.user])
            verdict.empty_gaps += sum(gap.covered == 0 for gap in session.gaps)
        verdict.sessions = len(self._sessions)
        verdict.delays_ms.sort()
        verdict.publish_ms.sort()
        return verdict

    def _owed(self, session: _Session, outcomes: list[Outcome]) -> None:
        """Holds what was published for the user against what the session received.

        A session that left is owed what lies before the newest that it received: order has no holes.
        """
        newest = max((_entry(text) or _START for text in session.entries.values()), default=_START)
        for outcome in outcomes:
            entry = _entry(outcome.entry)
            assert entry is not None
            if session.left and (entry > newest or outcome.event in self._restored):
                continue  # what was sent again stands behind what this session saw
            if outcome.event not in session.entries and self._was_gone(session, outcome, entry):
                continue
            outcome.owed += 1
            covering = [gap for gap in session.gaps if gap.covers(entry)]
            for gap in covering:
                gap.covered += outcome.event not in session.entries or session.entries[outcome.event] != outcome.entry
            if outcome.event in session.entries:
                outcome.received += 1
            elif covering or outcome.entry in session.dropped:
                outcome.announced += 1
                if self._durability != "memory":
                    self._find("unrestored", self._last_ms, session, outcome.event, f"under {self._durability}")
                elif outcome.process not in self._crashed:
                    self._find("unrestored", self._last_ms, session, outcome.event, f"{outcome.process} lives")
            else:
                outcome.lost += 1
                self._find("lost", self._last_ms, session, outcome.event, f"{outcome.entry} of {outcome.process}")

    def _was_gone(self, session: _Session, outcome: Outcome, entry: tuple[int, int]) -> bool:
        """Whether an event was lost before the session began: a server had taken it back, as another session of the
        user was told, and its publisher, which would have sent it again, was dead by then. Only `memory` allows that.
        """
        killed_ms = self._crashed.get(outcome.process)
        if self._durability != "memory" or killed_ms is None or outcome.returned_ms is None:
            return False
        return any(
            outcome.returned_ms <= gap.told_ms and killed_ms <= gap.told_ms < session.opened_ms and gap.covers(entry)
            for gap in self._taken_back[session.user]
        )

    def _find(self, kind: str, time_ms: int, session: _Session, event: str, detail: str) -> None:
        self._verdict.findings.append(
            Finding(kind=kind, time_ms=time_ms, user=session.user, session=session.name, event=event, detail=detail)
        )


def slices(verdict: Verdict, lead_ms: int = 500) -> Mapping[int, list[Outcome]]:
    """The publishes that a fault concerns, by its number: from a little before its begin to a little after its end."""
    found: dict[int, list[Outcome]] = {fault.number: [] for fault in verdict.faults}
    spans = [
        (fault.number, fault.begin_ms - lead_ms, (fault.end_ms or fault.begin_ms) + lead_ms) for fault in verdict.faults
    ]
    for outcome in verdict.outcomes.values():
        for number, begin_ms, end_ms in spans:
            if begin_ms <= outcome.invoked_ms <= end_ms:
                found[number].append(outcome)
    return found


def _entry(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    milliseconds, _, number = text.partition("-")
    return int(milliseconds), int(number)
