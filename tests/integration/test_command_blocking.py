"""Commands, questions and cancels in threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgpack
import pytest

from eventbus.blocking import Bus, shutdown
from eventbus.commands.command import Settled, answered_event_id
from eventbus.errors import RunCancelled
from eventbus.ids import RunId, SessionId, UserId
from eventbus.store import Append
from eventbus.store.inbound import Answer, Answered, AnsweredBy, NewCommand
from eventbus.store.redis_store import RedisStore
from tests.support.waiting import until_blocking

pytestmark = pytest.mark.requirement("R20")

ADA, PHONE, RUN = UserId("ada"), SessionId("phone"), RunId("run_1")


class User:
    """What nodes store for a user, from a thread of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._sent = 0

    def _do(self, work: Any) -> Any:
        async def with_store() -> Any:
            store = RedisStore(self._url)
            try:
                return await work(store)
            finally:
                await store.aclose()

        return asyncio.run(with_store())

    def send(self, kind: str, data: dict[str, Any], run: str | None = RUN) -> None:
        self._sent += 1
        command = NewCommand(
            user=ADA,
            session=PHONE,
            type=kind,
            data=msgpack.packb(data),
            ref=f"{self._sent}",
            run=None if run is None else RunId(run),
        )
        self._do(lambda store: store.send_command(command))

    def answer(self, question: str, answer: str) -> Answered:
        event = Append(user=ADA, event=answered_event_id(RUN, question), body=b"\x80")
        settled = Settled(answer=answer, by=AnsweredBy.USER, session=PHONE, ref="s1").packed()
        given = Answer(event=event, run=RUN, question=question, by=AnsweredBy.USER, choice=answer, settled=settled)
        outcome: Answered = self._do(lambda store: store.answer(given)).result
        return outcome

    def is_asked(self) -> bool:
        return any(self._do(lambda store: store.have_questions([ADA])))


@pytest.fixture
def user(server_url: str) -> User:
    return User(server_url)


@pytest.fixture
def bus(server_url: str) -> Iterator[Bus]:
    with Bus(server_url) as made:
        yield made
    shutdown()


def test_a_thread_looks_whether_its_run_is_cancelled_and_ends_it(bus: Bus, user: User) -> None:
    with bus.run(user=ADA, agent="a", run=RUN) as run:
        assert not run.cancelled
        run.check()
        user.send("cancel", {"reason": "enough"})
        until_blocking(lambda: run.cancelled.is_set())
        assert (run.cancelled.reason, run.cancelled.session) == ("enough", PHONE)
        run.check()
        raise AssertionError("the run goes on")
    assert run.outcome == "cancelled"


def test_the_cancel_of_one_run_raises_through_the_block_of_another(bus: Bus, user: User) -> None:
    with bus.run(user=ADA, agent="a", run=RUN) as run:
        user.send("cancel", {})
        until_blocking(lambda: bool(run.cancelled))
        other = bus.run(user=ADA, agent="b")
        with pytest.raises(RunCancelled), other:
            run.check()
        assert other.outcome == "cancelled"


def test_a_thread_reads_commands_and_acks_them(bus: Bus, user: User) -> None:
    for text in ("a", "b", "stop"):
        user.send("message", {"text": text})
    seen = []
    with bus.run(user=ADA, agent="a", run=RUN) as run:
        for command in run.commands():
            seen.append((command.type, command.data["text"], command.attempts, command.run, command.user))
            if command.data["text"] == "b" and command.attempts == 1:
                command.nack(0)
            if command.data["text"] == "stop":
                command.ack()
                break
    assert sorted(seen) == [
        ("message", "a", 1, RUN, ADA),
        ("message", "b", 1, RUN, ADA),
        ("message", "stop", 1, RUN, ADA),
    ]


def test_an_iterator_in_a_thread_ends_with_its_run(bus: Bus) -> None:
    begun = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with bus.run(user=ADA, agent="a", run=RUN) as run:
            commands = run.commands()

            def read() -> list[object]:
                begun.set()
                return list(commands)

            reading = pool.submit(read)
            assert begun.wait(5)
        assert reading.result(10) == []


def test_threads_share_an_inbox(bus: Bus, user: User) -> None:
    user.send("message", {"text": "a"}, run=None)
    with bus.commands(user=ADA) as commands:
        command = next(commands)
        assert (command.data, command.run) == ({"text": "a"}, None)


def test_a_thread_asks_and_waits_for_the_answer(bus: Bus, user: User) -> None:
    with ThreadPoolExecutor(1) as pool, bus.run(user=ADA, agent="a", run=RUN) as run:
        asking = pool.submit(lambda: run.ask("Which?", options=["a", "b"], question="q1"))
        until_blocking(user.is_asked)
        assert user.answer("q1", "b") is Answered.ACCEPTED
        assert asking.result(10) == "b"
