"""The JavaScript client in Node, against real nodes and a real server, over a network that fails."""

from __future__ import annotations

import re

import pytest

from tests.support.installation import NewInstallation, Storm
from tests.support.needs import program
from tests.support.processes import ROOT, Processes
from tests.support.reader import NodeReader, needs_ws, start_reader
from tests.support.stalls import Stalls, within
from tests.support.waiting import until

pytestmark = pytest.mark.fault

SEED = 20_261_121


@pytest.mark.slow
@pytest.mark.requirement("R8")
async def test_the_clients_own_tests_pass(processes: Processes) -> None:
    node = program("node")
    needs_ws()
    shell = 'cd clients/js && exec "$0" --test'
    child = processes.start("sh", "-c", shell, node, name="node-test", env={"EVENTBUS_TEST_CUTS": "150"})
    assert await child.wait(50_000) == 0, child.stdout


# --- whatever happens to the connection -------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.requirement("R2")
@pytest.mark.requirement("R7")
@pytest.mark.requirement("R8")
@pytest.mark.requirement("R10")
async def test_every_event_once_and_in_order_whatever_happens_to_connections_and_nodes(
    new_installation: NewInstallation,
) -> None:
    bus = await new_installation(nodes=2)
    reader = start_reader(bus, speed=5)
    await reader.live()

    async def arrived() -> int:
        return len(reader.look().events)

    storm = Storm(bus, SEED, 2_000, arrived)

    await storm.run(*["cut"] * 6, *["torn"] * 5, *["lossy"] * 3, "refused", "half_open", "frozen", "killed", "drained")

    await reader.has(bus.published)
    await bus.all_acked()
    assert len(bus.published) >= 2_000
    assert storm.struck >= 15
    assert (reader.of("gap"), reader.errors) == ([], [])
    reader.check()


@pytest.mark.requirement("R7")
async def test_what_a_killed_application_had_not_handled_comes_to_its_next_life(
    new_installation: NewInstallation,
) -> None:
    bus = await new_installation()
    first = start_reader(bus, options={"session": "phone"}, handlerMs=30)
    await first.live()
    await bus.publish(20)
    await first.until(lambda seen: len(seen.events) >= 5, "some are handled")
    first.child.kill()
    handled = first.look().events

    await bus.publish(20)
    second = start_reader(bus, options={"session": "phone"})
    rest = bus.published[len(handled) :]
    await second.until(lambda seen: seen.events[-len(rest) :] == rest, "the rest came, in order")

    again = [record for record in second.of("event") if record["id"] in bus.published[:20]]
    assert all(record["redelivered"] for record in again)
    assert not any(record["redelivered"] for record in second.of("event") if record not in again)
    # Between a handler's end and its ack a kill costs one repetition at most, since handlers do not overlap.
    assert len(second.events) - len(rest) <= 1
    await bus.all_acked()


@pytest.mark.requirement("R10")
async def test_a_drained_node_says_when_to_come_back_and_the_client_obeys(new_installation: NewInstallation) -> None:
    bus = await new_installation(nodes=2)
    reader = start_reader(bus)
    await reader.live()
    old, _ = bus.switch()
    old.child.terminate()
    await reader.until(lambda seen: seen.got("goaway"), "the goaway")
    await bus.publish(50)
    await reader.has(bus.published)
    [goaway] = reader.got("goaway")
    _, again = [record for record in reader.of("sent") if record["op"] == "hello"]
    assert again["atMs"] - goaway["atMs"] >= goaway["reconnect_after_ms"] > 0
    assert (reader.of("gap"), reader.errors) == ([], [])
    assert [record["redelivered"] for record in reader.of("event")] == [False] * 50
    assert await old.child.wait() == 0
    await bus.all_acked()
    reader.check()


# --- gaps are announced, and only where something is gone -------------------------------------------------------------
@pytest.mark.requirement("R7")
async def test_a_flush_under_a_live_client_is_announced_and_delivery_goes_on(new_installation: NewInstallation) -> None:
    bus = await new_installation()
    reader = start_reader(bus)
    await reader.live()
    before = await bus.publish(20)
    await reader.has(before)
    await bus.all_acked()

    await bus.redis.flushall()
    after = await bus.publish(20)

    await reader.has(before + after)
    assert {record["reason"] for record in reader.of("gap")} == {"reset"}
    await bus.all_acked()
    assert reader.errors == []


@pytest.mark.requirement("R7")
async def test_a_flush_while_the_client_was_away_is_announced_when_it_is_back(
    new_installation: NewInstallation,
) -> None:
    bus = await new_installation()
    reader = start_reader(bus, speed=5)
    await reader.live()
    before = await bus.publish(20)
    await reader.has(before)
    bus.proxy.refuse()
    await bus.publish(5)
    await bus.redis.flushall()
    after = await bus.publish(20)
    bus.proxy.heal()

    await reader.has(before + after)
    assert [record["reason"] for record in reader.of("gap")] == ["reset"]
    assert reader.records.index(reader.of("gap")[0]) < reader.records.index(reader.of("event")[20])
    await bus.all_acked()


@pytest.mark.requirement("R7")
async def test_what_was_trimmed_while_the_client_was_away_is_a_gap_of_that_many(
    new_installation: NewInstallation,
) -> None:
    bus = await new_installation(max_stream_entries=100)
    reader = start_reader(bus, speed=5)
    await reader.live()
    before = await bus.publish(20)
    await reader.has(before)
    await bus.all_acked()
    bus.proxy.refuse()
    await bus.publish(500)
    bus.proxy.heal()

    last = bus.published[-1]
    await reader.until(lambda seen: seen.events[-1] == last, "the last event")
    came = reader.events[20:]
    assert came == bus.published[-len(came) :]
    assert 50 <= len(came) < 250
    [gap] = reader.of("gap")
    assert (gap["reason"], gap.get("count")) == ("trimmed", 500 - len(came))
    assert gap.get("after") in (None, bus.entries[before[-1]])
    assert gap.get("before") in (None, bus.entries[came[0]])
    await bus.all_acked()


# --- tokens -----------------------------------------------------------------------------------------------------------
@pytest.mark.requirement("R23")
async def test_a_token_is_renewed_on_the_live_socket(new_installation: NewInstallation) -> None:
    bus = await new_installation()
    bus.token_ttl_ms = 3_000
    reader = start_reader(bus)
    await reader.live()
    await reader.until(lambda seen: len(seen.got("refreshed")) >= 3, "three tokens were renewed")
    await reader.has(await bus.publish(10))
    assert bus.proxy.accepted == 1
    assert bus.tokens_given >= 4
    assert reader.errors == []


@pytest.mark.requirement("R23")
async def test_a_client_whose_token_ran_out_comes_back_with_a_new_one(new_installation: NewInstallation) -> None:
    bus = await new_installation()
    bus.token_ttl_ms = 2_000
    reader = start_reader(bus)
    await reader.live()
    bus.gives_tokens = False
    await reader.until(lambda seen: seen.state == "waiting", "the token has run out")
    first = await bus.publish(10)
    bus.token_ttl_ms = 3_600_000
    bus.gives_tokens = True
    await reader.has(first)
    assert {record["code"] for record in reader.of("error")} == {"token_failed"}
    assert all(record["retryable"] for record in reader.of("error"))
    await bus.all_acked()
    reader.check()


@pytest.mark.requirement("R25")
async def test_a_token_without_a_successor_ends_the_client_by_name(new_installation: NewInstallation) -> None:
    bus = await new_installation()
    reader = start_reader(bus, token=bus.token(ttl_ms=2_000))
    await reader.until(lambda seen: {"live", "closed"} & set(seen.states), "it is live, or was too late")
    if "live" not in reader.states:  # a slow machine started it when its token was over
        reader = start_reader(bus, token=bus.token(ttl_ms=15_000))
        await reader.live()
    await reader.until(lambda seen: seen.state == "closed", "it is over")
    assert (reader.errors, reader.of("error")[0]["closeCode"]) == (["unauthenticated"], 4501)
    assert reader.closes[:1] in ([], [4004])
    assert await reader.child.wait() == 0


async def test_two_refused_tokens_in_a_row_are_final(new_installation: NewInstallation) -> None:
    bus = await new_installation()
    bus.pages.routes["/my/token"] = lambda: bus.token(session="elsewhere") + "x"
    reader = start_reader(bus)
    await reader.until(lambda seen: seen.state == "closed", "it is over")
    assert reader.errors == ["unauthenticated"]
    assert bus.pages.requests.count("/my/token") == 2
    assert reader.of("event") == []


# --- one session, one client ------------------------------------------------------------------------------------------
async def test_a_client_whose_session_was_opened_elsewhere_is_over(new_installation: NewInstallation) -> None:
    bus = await new_installation(nodes=2)
    first = start_reader(bus, options={"session": "tab"})
    await first.live()
    early = await bus.publish(10)
    await first.has(early)
    bus.switch()
    second = start_reader(bus, options={"session": "tab"})
    await first.until(lambda seen: seen.state == "closed", "the first is over")
    assert (first.errors, first.of("error")[0]["closeCode"]) == (["superseded"], 4504)
    await second.live()
    late = await bus.publish(10)
    await second.has(late)
    assert await first.child.wait() == 0
    assert (first.look().events, second.errors) == (early, [])


# --- handlers ---------------------------------------------------------------------------------------------------------
@pytest.mark.requirement("R3")
async def test_an_event_whose_handler_threw_comes_again_and_the_others_go_on(new_installation: NewInstallation) -> None:
    bus = await new_installation()
    reader = start_reader(bus, failing=[3, 5], options={"nackDelayMs": 200})
    await reader.live()
    events = await bus.publish(10)
    await reader.until(lambda seen: len(seen.events) == 10, "all have been handled")
    good = [event for event in events if event not in ("e3", "e5")]
    assert reader.events == [*good, "e3", "e5"]
    assert {record["id"]: record["delivery"] for record in reader.of("event") if record["redelivered"]} == {
        "e3": 2,
        "e5": 2,
    }
    assert reader.errors == ["handler_failed"] * 2
    await bus.all_acked()


@pytest.mark.requirement("R3")
async def test_an_event_that_fails_each_time_is_dropped_with_a_word(new_installation: NewInstallation) -> None:
    bus = await new_installation(max_deliveries=3)
    reader = start_reader(bus, failingAlways=[2], options={"nackDelayMs": 50})
    await reader.live()
    await bus.publish(3)
    await reader.until(lambda seen: seen.of("dropped"), "the event is given up")
    [dropped] = reader.of("dropped")
    assert (dropped["ids"], dropped["reason"]) == ([bus.entries["e2"]], "dead_lettered")
    assert [record["delivery"] for record in reader.of("failed")] == [1, 2, 3]
    assert reader.events == ["e1", "e3"]
    await bus.all_acked()


async def test_what_waits_behind_a_slow_handler_is_not_delivered_twice(new_installation: NewInstallation) -> None:
    bus = await new_installation(ack_timeout_ms=3_000)
    reader = start_reader(bus, handlerMs=1_100)
    await reader.live()
    await reader.has(await bus.publish(4))
    await bus.all_acked()
    assert [record["op"] for record in reader.of("sent")].count("working") >= 3
    got = sum(record.get("events", 0) for record in reader.got("events"))
    assert got == 4, "nothing was sent twice"


@pytest.mark.requirement("R8")
async def test_200_events_a_second_are_acked_in_few_frames_and_in_time(new_installation: NewInstallation) -> None:
    bus = await new_installation(ack_timeout_ms=8_000)
    reader = start_reader(bus)
    await reader.live()
    with Stalls() as machine:
        await bus.publish(900, pace_s=0.004)
        await reader.has(bus.published)
        async with within(1):
            await bus.all_acked()
        lost_ms = 1_000 * machine.lost_s

    sent = [record["atMs"] for record in reader.look().of("sent")]
    # The lowest tier: a bucket of ten seconds' worth of 20 frames. The client keeps below by itself.
    assert len(sent) < 160 + 20 * (sent[-1] - sent[0]) / 1_000
    assert all(later - sooner > 2_000 for sooner, later in zip(sent, sent[140:], strict=False))
    late_ms = _ack_waits_ms(reader)
    assert len(late_ms) == 900
    assert max(late_ms) < 1_500 + lost_ms, f"acks are late, and the machine lost {lost_ms:.0f} ms: {max(late_ms)}"
    assert sum(record.get("events", 0) for record in reader.got("events")) == 900, "nothing was sent twice"
    assert (reader.errors, bus.proxy.accepted) == ([], 1)


def _ack_waits_ms(reader: NodeReader) -> list[int]:
    """How long each event waited for its ack once it was handled; events are handled and acked in their order."""
    handled = reader.of("event")
    places = {record["entry"]: place for place, record in enumerate(handled, 1)}
    waits_ms: list[int] = []
    for frame in reader.of("sent"):
        if frame["op"] == "ack":
            acked = places[frame["upto"]] if "upto" in frame else len(waits_ms) + frame["ids"]
            waits_ms += [frame["atMs"] - record["atMs"] for record in handled[len(waits_ms) : acked]]
    return waits_ms


# --- confirmations and filters ----------------------------------------------------------------------------------------
async def test_a_confirmation_is_repeated_until_the_node_has_it(new_installation: NewInstallation) -> None:
    bus = await new_installation()
    reader = start_reader(bus, speed=5, confirm=["displayed", "confirm"])
    await reader.live()
    await reader.has(await bus.publish(10))
    proxy = bus.proxy
    proxy.to_client.swallow = True  # the next answers are lost
    await bus.publish(5)
    proxy.cut()
    proxy.heal()
    await reader.has(bus.published)

    def all_answered(seen: NodeReader) -> bool:
        refs = {record["ref"] for record in seen.of("sent") if record["op"] == "ack" and "ref" in record}
        return len(refs) >= 16 and refs == {record["ref"] for record in seen.got("acked")}

    await reader.until(all_answered, "each confirmation is answered")
    await bus.all_acked()


async def test_a_filter_keeps_out_what_the_application_does_not_want(new_installation: NewInstallation) -> None:
    bus = await new_installation()
    reader = start_reader(bus, options={"filter": {"types": ["wanted"]}})
    await reader.live()
    wanted = []
    for _ in range(5):
        await bus.publish(type="step.done")
        wanted += await bus.publish(type="wanted")
    await reader.has(wanted)
    await bus.all_acked()
    assert reader.of("gap") == []


# --- the guide --------------------------------------------------------------------------------------------------------
async def test_the_guides_example_for_node_works(new_installation: NewInstallation) -> None:
    node = program("node")
    needs_ws()
    bus = await new_installation()
    page = (ROOT / "docs" / "javascript.md").read_text()
    examples = re.findall(r"^```js\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    [example] = [example for example in examples if "process.env" in example]
    program_text = example.replace("http://127.0.0.1:8080", bus.url)
    assert program_text != example
    shell = 'cd clients/js && exec "$0" --input-type=module --eval "$1"'
    child = bus.processes.start("sh", "-c", shell, node, program_text, name="example", env={"TOKEN": bus.token()})
    await bus.publish(3)

    await until(lambda: child.stdout.count("\n") == 3, 10_000, lambda: f"three lines: {child.stdout} {child.stderr}")
    assert child.stdout.splitlines() == [f"step.done {{ number: {number} }}" for number in (1, 2, 3)]
    await bus.all_acked()
    child.interrupt()
    assert (await child.wait(), child.stderr) == (0, "")
