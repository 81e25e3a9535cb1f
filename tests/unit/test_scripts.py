"""The header of each Lua script against the script itself and against the typed function that calls it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import eventbus.store
from eventbus.config import StoreSettings
from eventbus.fields import Level
from eventbus.ids import ConnectionId, EntryId, EventId, NodeName, RunId, SessionId, ThreadId, UserId
from eventbus.store import (
    AckRequest,
    Append,
    Attach,
    AttachMode,
    ConfirmRequest,
    DeadLetter,
    Demand,
    EntryFacts,
    Fence,
    NodeRecord,
    ReadRequest,
    Redelivery,
    ReleaseReason,
    RunStep,
    Start,
)
from eventbus.store import inbound_commands as inbound
from eventbus.store import run_commands as runs
from eventbus.store.allowing import ALLOWANCES_LIFE_MS, Spending
from eventbus.store.command import Command
from eventbus.store.commands import Commands
from eventbus.store.figures import ThreadRecord
from eventbus.store.inbound import Answer, AnsweredBy, Ask, NewCommand, TakeCommands
from eventbus.store.keys import Keys, UserKeys
from eventbus.store.mending import TakenHow, TakeOff
from eventbus.store.redis_allowing import spend_call
from eventbus.store.redis_figures import online_call, threads_call
from eventbus.store.redis_mending import audit_call, forget_call, put_back_call, send_again_call, take_off_call
from eventbus.store.redis_revoking import revocations_call, revoke_call
from eventbus.store.redis_texts import text_append, text_close
from eventbus.store.redis_waiting import away_call, partition_call, recheck_call
from eventbus.store.revoking import REVOCATIONS_MAX, RevocationMark, Revoke, Subject
from eventbus.store.running import DueRecord, Lease, RunRequest, Settlement
from eventbus.store.scripts import NAMES, Script, all_scripts, parse_script, script
from eventbus.store.texts import TEXT_LIFE_MS, TextPiece

LUA = Path(eventbus.store.__file__).parent / "lua"

USER, SESSION, CONNECTION, NODE = UserId("alice"), SessionId("phone"), ConnectionId("c" * 32), NodeName("node-1")
ENTRY, EVENT = EntryId("17-3"), EventId("event-1")
FENCE = Fence(user=USER, session=SESSION, connection=CONNECTION)
SETTINGS = StoreSettings(
    retention_ms=7_000_001,
    session_ttl_ms=7_000_002 - 2,
    dedupe_ms=100_003,
    live_ttl_ms=90_004,
    dead_letter_ttl_ms=600_005,
    max_stream_entries=5_006,
    max_stream_bytes=1_000_007,
)
KEYS = Keys("eb", 16)
COMMANDS = Commands(KEYS, SETTINGS)
ALICE_KEYS = KEYS.user(USER)

RUN = RunId("run_1")
LEASE = Lease(user=USER, run=RUN, owner="owner-1", lease_ms=30_008)
APPEND = Append(
    user=USER,
    event=EVENT,
    body=b"body",
    type="note",
    thread=ThreadId("trip"),
    demand=Demand(level=Level.DISPLAYED, within_ms=5_009),
)
STEP = RunStep(run=RUN, seq=12, owner="owner-1", lease_ms=30_008, fields={"state": "running"}, watch={"agent": 30_000})

CALLS: dict[str, Command[Any]] = {
    "answer": inbound.answer(
        KEYS,
        COMMANDS,
        Answer(event=APPEND, run=RUN, question="q1", by=AnsweredBy.USER, choice="tea", settled=b"settled"),
    ),
    "ask": inbound.ask(
        KEYS,
        SETTINGS,
        Ask(user=USER, run=RUN, question="q1", body=b"asked", timeout_ms=60_001, options=("tea", "soup")),
    ),
    "asked": inbound.asked(KEYS, USER, RUN, "q1", ENTRY),
    "close_inbound": inbound.close_inbound(KEYS, USER, RUN),
    "command": inbound.send_command(
        KEYS,
        SETTINGS,
        NewCommand(user=USER, session=SESSION, type="note", data=b"data", ref="s1", run=RUN, thread=ThreadId("trip")),
    ),
    "questions": inbound.questions(KEYS, USER),
    "take_commands": inbound.take_commands(
        KEYS,
        SETTINGS,
        TakeCommands(user=USER, group="run:run_1", run=RUN, count=10, idle_ms=30_002, max_deliveries=6),
    ),
    "ack": COMMANDS.ack(
        [
            AckRequest(
                user=USER,
                session=SESSION,
                entries=[ENTRY, ENTRY],
                facts=[EntryFacts("note")] * 2,
                connection=FENCE.connection,
            )
        ]
        * 2
    ),
    "ack_mixed": COMMANDS.ack([AckRequest(user=USER, session=SESSION, entries=[ENTRY, ENTRY])] * 2),
    "append": COMMANDS.append_many([APPEND, APPEND]),
    "append_run": COMMANDS.append(replace(APPEND, step=STEP)),
    "claim_run": runs.claim_run(KEYS, SETTINGS, LEASE, "owner-0"),
    "confirm": COMMANDS.confirm(
        ConfirmRequest(user=USER, session=SESSION, level=Level.DISPLAYED, entries=[ENTRY, ENTRY])
    ),
    "attach": COMMANDS.attach(
        Attach(
            fence=FENCE,
            node=NODE,
            mode=AttachMode.OPEN,
            start=Start.NEW,
            cursor=ENTRY,
            epoch=None,
            live_limit=11,
            known_limit=44,
        ),
        "fresh",
    ),
    "audit": audit_call(KEYS, {"action": "skip"}),
    "away": away_call(KEYS, USER, SETTINGS.live_ttl_ms),
    "forget_user": forget_call(KEYS, USER, ENTRY, EntryId("17-4")),
    "partition": partition_call(KEYS, KEYS.partition_of(USER)),
    "put_back": put_back_call(KEYS, SETTINGS, USER, SESSION, EntryId("17-5"), ENTRY),
    "recheck": recheck_call(KEYS, USER, SETTINGS.live_ttl_ms, SETTINGS.retention_ms),
    "send_again": send_again_call(KEYS, SETTINGS, USER, SESSION, [ENTRY, ENTRY]),
    "take_off": take_off_call(
        KEYS, SETTINGS, TakeOff(user=USER, session=SESSION, entries=[ENTRY, ENTRY], how=TakenHow.DEAD)
    ),
    "beat_node": COMMANDS.beat_node(
        NodeRecord(node=NODE, address="127.0.0.1:1", version="1", state="ready", started_ms=1, figures={})
    ),
    "dead_letter": COMMANDS.dead_letter(
        FENCE, DeadLetter(id=ENTRY, event=EVENT, type="note", reason="no_ack", attempts=5, body=b"body")
    ),
    "detach": COMMANDS.detach(FENCE, ENTRY),
    "due": runs.due(KEYS, KEYS.partition_of(USER), 10),
    "end_session": COMMANDS.end_session(USER, SESSION),
    "heartbeat": COMMANDS.heartbeat(USER, [FENCE, FENCE], NODE),
    "history": COMMANDS.history(USER, ENTRY, 10, "fresh"),
    "nodes": COMMANDS.nodes(),
    "online": online_call(ALICE_KEYS.live, SETTINGS.live_ttl_ms),
    "threads": threads_call(ALICE_KEYS.stream, ALICE_KEYS.threads, ThreadRecord(thread=ThreadId("th"), place=17), 10),
    "pending": COMMANDS.read_pending(FENCE, ENTRY, 10),
    "probe": COMMANDS.probe(NODE, "token", "?token"),
    "read": COMMANDS.read_new([ReadRequest(fence=FENCE, count=9), ReadRequest(fence=FENCE, count=9, verify=ENTRY)]),
    "redeliver": COMMANDS.redeliver(FENCE, [Redelivery(id=ENTRY, attempts=2), Redelivery(id=ENTRY, attempts=3)]),
    "release": COMMANDS.release(FENCE, [ENTRY, ENTRY], ReleaseReason.FILTERED),
    "renew_lease": runs.renew_lease(KEYS, SETTINGS, LEASE),
    "request_run": runs.request_run(
        KEYS, SETTINGS, RunRequest(user=USER, run=RUN, fields={"agent": "planner"}, watch={"started": 1_000})
    ),
    "revocations": revocations_call(KEYS, RevocationMark(epoch="seen", number=1_012, primary=""), 10),
    "revoke": revoke_call(
        KEYS,
        Revoke(subject=Subject(user=USER, session=SESSION), until_ms=1_013),
        ["told-1", "told-2"],
        1_014,
        "fresh",
    ),
    "sessions": COMMANDS.sessions(USER),
    "settle": runs.settle(
        KEYS,
        Settlement(
            due=DueRecord(partition=KEYS.partition_of(USER), member="demand", due_ms=1_010, now_ms=1_011),
            run=(USER, RUN),
            fields={"state": "completed"},
            announce={"kind": "missed"},
            webhook=True,
        ),
    ),
    "spend": spend_call(KEYS, USER, [Spending(rate=1_021, capacity=1_022, cost=1_023)] * 2),
    "text_append": text_append(
        KEYS,
        SETTINGS,
        TextPiece(user=USER, run=RUN, stream="words", thread=ThreadId("trip"), offset=17, text="Grüße", last=True),
    ),
    "text_close": text_close(KEYS, SETTINGS, USER, RUN, ["words", "words"]),
    "waiting": COMMANDS.waiting(USER, SESSION, ENTRY, 10),
}

# What an argument of each name must carry, so that no two are mixed up; the units are part of the names.
EXPECTED: dict[str, Any] = {
    "offset": 17,
    "points": 5,
    "piece": "Grüße",
    "mark": "last",
    "text_life_ms": TEXT_LIFE_MS,
    "which": "named",
    "stream": "words",
    "user": USER,
    "session": SESSION,
    "connection": CONNECTION,
    "node": NODE,
    "id": ENTRY,
    "ids": f"{ENTRY},{ENTRY}",
    "event": EVENT,
    "cursor": ENTRY,
    "after": ENTRY,
    "body": b"body",
    "retention_ms": SETTINGS.retention_ms,
    "session_ttl_ms": SETTINGS.session_ttl_ms,
    "dedupe_ms": SETTINGS.dedupe_ms,
    "live_ttl_ms": SETTINGS.live_ttl_ms,
    "max_entries": SETTINGS.max_stream_entries,
    "max_bytes": SETTINGS.max_stream_bytes,
    "policy": "gap",
    "live_limit": 11,
    "known_limit": 44,
    "fresh_epoch": "fresh",
    "channel": KEYS.user(USER).partition.channel,
    "before_ms": 17,
    "before": "th",
    "mode": "open",
    "start": "new",
    "reason": ("no_ack", "filtered", "operator"),
    "how": "dead",
    "young_ms": SETTINGS.live_ttl_ms // 16,
    "letter": EntryId("17-5"),
    "letter_life_ms": SETTINGS.dead_letter_ttl_ms,
    "after_letter": ENTRY,
    "after_event": EntryId("17-4"),
    "audit_life_ms": 90 * 24 * 3_600_000,
    "most": 100_000,
    "what": b'{"action":"skip"}',
    "level": ("received", "displayed"),
    "type": "note",
    "thread": "trip",
    "within_ms": 5_009,
    "run_id": RUN,
    "seq": 12,
    "owner": "owner-1",
    "held_by": "owner-0",
    "lease_ms": 30_008,
    "order": "next",
    "change": ("set", "watch", "announce"),
    "member": "demand",
    "due_ms": 1_010,
    "announced_ms": 7 * 24 * 3_600_000,
    "webhook": "webhook",
    "life_ms": (SETTINGS.dead_letter_ttl_ms, 15_000, 10_000),
    "attempts": (5, 2, 3),
    "count": (9, 10),
    "verify": ("", ENTRY),
    "question": "q1",
    "asked": b"asked",
    "timeout_ms": 60_001,
    "option": ("tea", "soup"),
    "by": "user",
    "form": "text",
    "choice": "tea",
    "settled": b"settled",
    "followed": KEYS.user(USER).channel,
    "data": b"data",
    "group": "run:run_1",
    "idle_ms": 30_002,
    "max_deliveries": 6,
    "max_commands": 1_000,
    "max_commands_bytes": 8 * 1024 * 1024,
    "max_questions": 256,
    "epoch": "seen",
    "number": 1_012,
    "subject": f"session {USER} {SESSION}",
    "revocation": b'{"user":"alice","session":"phone"}',
    "until_ms": 1_013,
    "token_life_ms": 1_014,
    "max_revocations": REVOCATIONS_MAX,
    "told": ("told-1", "told-2"),
    "longest_ms": ALLOWANCES_LIFE_MS,
    "rate": 1_021,
    "capacity": 1_022,
    "cost": 1_023,
}


def key_called(name: str) -> str:
    """The key that a header calls `name`."""
    keys: UserKeys = KEYS.user(USER)
    if name == "run":
        return KEYS.run(USER, RUN)
    if name == "text":
        return KEYS.text(USER, RUN)
    if name == "audit":
        return KEYS.audit
    if name == "nodes":
        return KEYS.nodes
    if name == "probe":
        return KEYS.probe(NODE, KEYS.partition_of("token"))
    if name.startswith("revoked_"):
        of_revocations: str = getattr(KEYS.revoked, name.removeprefix("revoked_"))
        return of_revocations
    found: str = getattr(keys, name) if hasattr(keys, name) else getattr(keys.partition, name)
    return found


@pytest.fixture(params=NAMES)
def each(request: pytest.FixtureRequest) -> Script:
    return script(request.param)


def test_every_file_is_a_script_and_every_script_is_called() -> None:
    assert {path.stem for path in LUA.glob("*.lua")} == set(NAMES) == set(CALLS) == set(all_scripts())


def test_call_passes_the_keys_that_the_header_names(each: Script) -> None:
    verb, sha, count, *rest = CALLS[each.name].arguments
    assert (verb, sha) == ("EVALSHA", each.sha)
    once = len(each.keys) - len(each.repeated_keys)
    assert each.keys[once:] == each.repeated_keys, "what is repeated comes last"
    # Where keys are repeated, there are two groups of them, as of the arguments.
    names = each.keys + each.repeated_keys
    assert count == len(names)
    assert rest[: len(names)] == [key_called(name) for name in names]


def test_call_passes_the_arguments_that_the_header_names(each: Script) -> None:
    _, _, count, *rest = CALLS[each.name].arguments
    assert isinstance(count, int)
    given = rest[count:]
    once = len(each.arguments) - len(each.repeated)
    assert each.arguments[once:] == each.repeated, "what is repeated comes last"
    names = list(each.arguments[:once])
    if each.repeated:
        groups, left = divmod(len(given) - once, len(each.repeated))
        assert (groups, left) == (2, 0)
        names += list(each.repeated) * groups
    assert len(given) == len(names)
    for name, value in zip(names, given, strict=True):
        expected = EXPECTED.get(name)
        if expected is not None:
            assert value in expected if isinstance(expected, tuple) else value == expected, name


def test_script_uses_every_key_and_argument_and_no_other(each: Script) -> None:
    code = "\n".join(line for line in each.text.splitlines() if not line.lstrip().startswith("--"))
    used = {int(number) for number in re.findall(r"KEYS\[(\d+)", code)}
    if each.repeated_keys:
        fixed = len(each.keys) - len(each.repeated_keys)
        assert used == set(range(1, fixed + 1))
        used |= {fixed + 1 + int(number or 0) for number in re.findall(r"KEYS\[key(?: \+ (\d+))?\]", code)}
        assert re.search(rf"\bkey = (?:\{{\}}, )?{fixed + 1}\n", code), "where the first group begins"
        assert f"key = key + {len(each.repeated_keys)}\n" in code
    arguments = {int(number) for number in re.findall(r"ARGV\[(\d+)\]", code)}
    if each.name in ("append", "append_run", "answer"):
        used |= {5, 6}  # the two buckets, whose number is computed
    if each.name in ("append_run", "answer"):
        assert "store_event(3, 7" in code  # where the keys and arguments of the event begin
        used |= {3 + int(number or 0) for number in re.findall(r"KEYS\[key(?: \+ (\d+))?\]", code)}
        arguments |= {7 + int(number or 0) for number in re.findall(r"ARGV\[argument(?: \+ (\d+))?\]", code)}
    assert used == set(range(1, len(each.keys) + 1))
    once = len(each.arguments) - len(each.repeated)
    assert arguments == set(range(1, once + 1))
    loops = re.findall(r"= (\d+), #ARGV", code)
    assert set(loops) == ({str(once + 1)} if each.repeated else set())
    if each.name == "append":
        group = {int(number or 0) for number in re.findall(r"ARGV\[argument(?: \+ (\d+))?\]", code)}
        assert group == set(range(len(each.repeated)))


def test_no_key_is_made_up_in_a_script(each: Script) -> None:
    """All keys in KEYS, one hash tag: else a cluster refuses the script."""
    assert not re.search(r"'eb:|\{[0-9]+\}:", each.text)


def test_scripts_work_when_memory_is_full_but_those_that_take_something_in(each: Script) -> None:
    """D14: a full Redis can be drained."""
    first = each.text.splitlines()[0]
    assert ("allow-oom" in first) == (
        each.name not in ("append", "append_run", "request_run", "command", "ask", "answer", "text_append")
    )


def test_header_says_what_comes_back(each: Script) -> None:
    assert each.returns


def test_scripts_have_hashes_of_their_own() -> None:
    assert len({script(name).sha for name in NAMES}) == len(NAMES)


HEADER = """#!lua flags=allow-oom
-- Does something.
--
-- KEYS
--   stream           the user's stream
-- ARGV
--   id...            repeated: an entry id
-- Returns
--   a number
--@include order

return 1
"""


def test_header_is_read() -> None:
    made = parse_script("some", HEADER, {"order": "-- order\n"})
    assert (made.keys, made.arguments, made.repeated) == (("stream",), ("id",), ("id",))
    assert made.returns == "a number"
    assert "-- order\n\nreturn 1" in made.text


@pytest.mark.parametrize(
    "break_it",
    [
        lambda text: text.replace("#!lua flags=allow-oom\n", ""),
        lambda text: text.replace("-- KEYS\n", ""),
        lambda text: text.replace("-- Returns\n--   a number\n", ""),
        lambda text: text.replace("-- Does something.\n", ""),
        lambda text: text.replace("--   stream           the user's stream", "-- stream"),
    ],
)
def test_header_that_is_not_whole_is_refused(break_it: Callable[[str], str]) -> None:
    with pytest.raises(ValueError, match=r"some\.lua"):
        parse_script("some", break_it(HEADER), {"order": ""})
