"""docs/keys.md against a running store: each key matches one row, its type and its life."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import redis

from eventbus.config import StoreSettings
from eventbus.errors import StoreError
from eventbus.ids import EntryId, RunId, SessionId, ThreadId
from eventbus.store import AckRequest, DeadLetter, Durability, EntryFacts, NodeRecord, ReleaseReason, RunStep, Ticket
from eventbus.store.allowing import Spending
from eventbus.store.inbound import Ask, NewCommand, TakeCommands, inbox_group
from eventbus.store.redis_store import RedisStore
from eventbus.store.revoking import Revoke, Subject
from eventbus.store.running import Settlement
from eventbus.store.texts import TextPiece
from tests.support.redis_stores import ALICE, NODE, Listened, event_of, fence_of, open_session, publish, read
from tests.support.waiting import until

PAGE = Path(__file__).parents[2] / "docs" / "keys.md"
PARTS = {"p": r"\d+", "user": ".+", "bucket": "[01]", "ticket": ".+", "node": ".+", "run": "[^/]+"}


@dataclass(frozen=True)
class Row:
    name: str
    pattern: re.Pattern[str]
    type: str
    life: str

    def longest_ms(self, settings: StoreSettings) -> int | None:
        if self.life == "none":
            return None
        factor, _, name = self.life.rpartition(" x ")
        name = name.strip("`")
        life: int = int(name) if name.isdigit() else getattr(settings, name)
        return int(life * float(factor or 1))


def rows() -> list[Row]:
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 4 or not cells[0].startswith("`"):
            continue
        name = cells[0].strip("`")
        pattern = re.escape(name).replace("eb:", "eb:", 1)
        for part, form in PARTS.items():
            pattern = pattern.replace(f"<{part}>", form)
        found.append(Row(name, re.compile(pattern), cells[1], cells[3]))
    return found


async def exercise(store: RedisStore) -> None:
    """Everything that leaves a key."""
    listener = Listened()
    listening = await store.listen(NODE, listener)
    await until(lambda: listener.subscriptions == 1)
    fence = fence_of()
    await open_session(store, fence)
    stored = await publish(store, *(event_of(f"e{number}") for number in range(5)))
    await read(store, fence)
    await store.ack(ALICE, fence.session, [stored[0].entry])
    await store.release(fence, [stored[1].entry], ReleaseReason.FILTERED)
    await store.release(fence, [stored[4].entry], ReleaseReason.TRIMMED)
    shared = EntryFacts("note", shared=True)
    await store.ack_many([AckRequest(user=ALICE, session=fence.session, entries=[stored[3].entry], facts=[shared])])
    letter = DeadLetter(id=stored[2].entry, event=event_of("e2").event, type="t", reason="r", attempts=5, body=b"")
    await store.dead_letter(fence, letter)
    await store.heartbeat([fence], NODE)
    await open_session(store, fence_of("tablet"))
    await store.detach(fence_of("tablet"), EntryId("0-0"))
    await store.pause_type("chatter", "ops", "too many")
    await store.hold_node(NODE, "ops", "")
    await store.audit({"action": "hold"})
    await store.put_ticket(Ticket(ticket="ticket-1", claims="{}", life_ms=60_000))
    await store.beat_node(NodeRecord(node=NODE, address="a", version="1", state="ready", started_ms=1, figures={}))
    await store.probe(NODE, "token-1")
    await store.append([event_of("replicated")], Durability.REPLICATED)
    await publish(store, replace(event_of("in a thread"), thread=ThreadId("trip")))
    await _exercise_runs(store)
    piece = TextPiece(user=ALICE, run=RunId("run_t"), stream="text", thread=None, offset=0, text="Hello")
    await store.append_text(piece)
    await store.append_text(replace(piece, stream="two"))
    await store.close_texts(ALICE, piece.run, ["two"])
    await _exercise_inbound(store)
    await store.revoke(Revoke(subject=Subject(jti="token-1")))
    assert await store.spend(ALICE, [Spending(rate=1, capacity=9_999, cost=5)] * 2) == 0
    await listening.aclose()


async def _exercise_inbound(store: RedisStore) -> None:
    run = RunId("run_9")
    await store.send_command(NewCommand(user=ALICE, session=SessionId("s"), type="a", data=b"", ref="r", run=run))
    group = inbox_group("inbox")
    await store.take_commands(TakeCommands(user=ALICE, group=group, run=None, count=1, idle_ms=1_000, max_deliveries=5))
    await store.ask(Ask(user=ALICE, run=run, question="q1", body=b"", timeout_ms=None))


async def _exercise_runs(store: RedisStore) -> None:
    step = RunStep(run=RunId("run_1"), seq=1, owner="me", lease_ms=60_000, watch={"agent": 1, "thinking": 60_000})
    await publish(store, replace(event_of("of a run"), step=step))
    while not (due := await store.due([store.keys.partition_of(ALICE)], 1))[0]:
        pass
    assert not isinstance(due[0], StoreError)
    await store.settle([Settlement(due=due[0][0], announce={"kind": "missed_deadline"})])


@pytest.fixture
async def keys_found(redis_url: str) -> dict[str, tuple[str, int]]:
    """Name -> type and life in milliseconds of each key, -1 for none, after an exercise of everything."""
    store = RedisStore(redis_url, replicated_timeout_ms=10)
    await exercise(store)
    await store.aclose()
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        names: list[Any] = list(client.scan_iter())
        return {name: (str(client.type(name)), int(client.pttl(name))) for name in names}


async def test_every_key_is_in_the_table_once_with_its_type_and_life(keys_found: dict[str, tuple[str, int]]) -> None:
    settings = StoreSettings()
    for name, (kind, life_ms) in keys_found.items():
        matching = [row for row in rows() if row.pattern.fullmatch(name)]
        assert len(matching) == 1, (name, [row.name for row in matching])
        (row,) = matching
        assert kind == row.type, name
        longest_ms = row.longest_ms(settings)
        assert life_ms == -1 if longest_ms is None else 0 < life_ms <= longest_ms, (name, life_ms)


async def test_every_row_of_the_table_has_a_key(keys_found: dict[str, tuple[str, int]]) -> None:
    missing = [row.name for row in rows() if not any(row.pattern.fullmatch(name) for name in keys_found)]
    assert not missing


async def test_ids_with_every_allowed_sign_make_keys_of_the_table(redis_url: str) -> None:
    from eventbus.ids import UserId

    store = RedisStore(redis_url)
    odd = UserId("a:b|c@d.e+f_g-H9:s:l")
    await open_session(store, fence_of("S_1-x", odd))
    await publish(store, event_of("e", odd))
    users, _ = await store.users("", 100)
    assert list(users) == [odd]
    await store.aclose()
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        for name in client.scan_iter():
            matching = [row for row in rows() if row.pattern.fullmatch(name) and row.type == client.type(name)]
            assert matching, name
