"""What docs/escalation.md says of the webhook and of the events for operators holds."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eventbus.breach import OperatorKind, abandoned, missed_confirmation, missed_deadline, webhook_failed
from eventbus.event import Require, make_event
from eventbus.fields import Level
from eventbus.ids import EntryId, RunId, UserId
from eventbus.store.running import DueRecord, RunRecord, RunRequest
from tests.support.receiver import Received, Receiver
from tests.support.waiting import until
from tests.support.wire_client import Nodes

PAGE = (Path(__file__).parents[2] / "docs" / "escalation.md").read_text()
SECRET = "a secret of the webhook, of 32 bytes"


def _verified() -> Callable[[bytes, dict[str, str], bytes], bool]:
    (code,) = re.findall(r"^```python\n(.*?)^```\n", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - the page's own example
    found: Callable[[bytes, dict[str, str], bytes], bool] = names["verified"]
    return found


@pytest.mark.requirement("R13")
async def test_the_pages_example_verifies_what_a_node_posts_and_nothing_else(nodes: Nodes) -> None:
    async with Receiver() as receiver:
        node = await nodes.start(watch_ms=30, webhook_url=receiver.url, webhook_secret=SECRET)
        request = RunRequest(user=UserId("ada"), run=RunId("run_1"), fields={"agent": "planner"}, watch={"started": 0})
        await node.store.request_run(request)
        await until(lambda: receiver.received, 10_000)
        (post,) = receiver.received
    verified = _verified()

    def judged(post: Received, secret: str = SECRET, **changes: str) -> bool:
        headers = {**post.headers, **{name.replace("_", "-"): value for name, value in changes.items()}}
        return verified(secret.encode(), headers, post.body)

    assert judged(post)
    assert judged(post, webhook_signature="v1,b3RoZXI= " + post.headers["webhook-signature"])
    assert not judged(post, secret=SECRET + "!")
    assert not judged(replace(post, body=post.body.replace(b"run_1", b"run_2")))
    assert not judged(post, webhook_id="1:1-1")
    assert not judged(post, webhook_timestamp=str(int(post.headers["webhook-timestamp"]) - 301))
    for name in ("Idempotency-Key", "Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"):
        assert f"{name}: " in PAGE
        assert name.lower() in post.headers
    assert set(post.content) == {"type", "timestamp", "data"}


def test_the_page_names_the_fields_of_every_operator_event() -> None:
    due = DueRecord(partition=1, member="", due_ms=1, now_ms=2)
    fields = {"agent": "a", "thread": "t", "parent": "run_0", "tier": "pro", "call:c": "1 search"}
    run = RunRecord(user=UserId("ada"), run=RunId("run_1"), fields=fields)
    require = Require(level=Level.DISPLAYED, within_ms=1)
    event = make_event(id="e", type="x", user="ada", time_ms=1, data={}, run="run_1", thread="t", require=require)
    told = [
        missed_deadline(due, "call:c", run, posted=False),
        abandoned(due, run, posted=False),
        missed_confirmation(
            due, UserId("ada"), EntryId("1-1"), Level.DISPLAYED, reached=None, event=event, posted=False
        ),
        webhook_failed(due, "1:1-1", 3, "status 500"),
    ]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE))
    for settlement in told:
        assert settlement.announce is not None
        names = set(settlement.announce) - {"kind"}
        assert set(re.findall(r"`(\w+)`", rows[settlement.announce["kind"]])) - {"id"} == names
    assert {settlement.announce["kind"] for settlement in told if settlement.announce} == set(OperatorKind)
