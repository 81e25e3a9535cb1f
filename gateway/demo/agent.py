"""The demo agent: a worker process that answers questions about a file, and publishes each of its steps.

    python -m gateway.demo.agent --redis-url URL --published FILE

It takes jobs from its stdin, one JSON object a line, and ends when stdin does or on SIGTERM. What it has published it
writes into FILE, one line an event, after the publish has returned: the page holds what it received against that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
import orjson

from eventbus import Bus, EventBusError
from eventbus.clock import seconds
from gateway.demo import tools
from gateway.demo.jobs import USER, Job
from gateway.demo.tools import Text, ToolError

__all__ = ["Run", "main"]

NAME: Final = "reader"
LINE_MAX_BYTES: Final = 64 * 1024
LAST_WORDS_MS: Final = 2_000
"""How long a run may take to say that it was cancelled."""

logger = logging.getLogger(__name__)


class Run:
    """One run: a question about a file, worked on step by step.

    Args:
        job: what is to be done.
        bus: where its steps go.
        published: the log of what was published.
    """

    def __init__(self, job: Job, bus: Bus, published: BinaryIO) -> None:
        self._job = job
        self._bus = bus
        self._published = published
        self._calls = 0

    async def work(self) -> None:
        """Works to the end; `agent_completed` is published whatever happens.

        Raises:
            EventBusError: nothing could be published any more.
        Cancelled, the run says that it was, and ends.
        """
        try:
            await self._say("agent_started", agent=NAME, question=self._job.question, file=self._job.name)
            result = await self._answer()
        except ToolError as error:
            await self._say("agent_completed", error=str(error), outcome="failed")
        except asyncio.CancelledError:
            async with asyncio.timeout(seconds(LAST_WORDS_MS)):
                await self._say("agent_completed", error="the agent was stopped", outcome="cancelled")
            raise
        else:
            await self._say("agent_completed", result=result, outcome="success")

    async def close_abandoned(self) -> None:
        """Ends a run whose process died before its end. Raises: EventBusError."""
        await self._say("agent_completed", error="the agent's process ended before the run did", outcome="failed")

    async def _answer(self) -> str:
        text = await self._load()
        terms = tools.keywords(self._job.question)
        named = ", ".join(f"\u201c{term}\u201d" for term in terms)
        await self._think(
            f"The question names {named}. I read the file part by part and count where that occurs."
            if terms
            else "The question names no word that could be looked for. I read the file and see what it speaks of."
        )
        for first, last in text.parts:
            await self._use("read_part", {"lines": f"{first}-{last}"}, tools.read_part(text, first, last, terms))
        found = []
        for term in terms:
            result = tools.search(text, term)
            await self._use("search", {"for": term}, result)
            found.append((term, int(result["found"])))
        counted = tools.count_words(text)
        await self._use("count_words", {"file": text.name}, counted)
        frequent = [str(item["word"]) for item in counted["most_frequent"]]
        wanted = [term for term, count in found if count] or frequent[:3]
        await self._think(f"I look for the passage that holds the most of {', '.join(wanted) or 'it'}.")
        passage = tools.best_passage(text, wanted)
        await self._use("find_passage", {"of": wanted}, passage or {"found": 0})
        return tools.answer(text.name, found, frequent, passage)

    async def _load(self) -> Text:
        arguments = {"file": self._job.name}
        call = await self._begin("read_file", arguments)
        try:
            content = await asyncio.to_thread(Path(self._job.path).read_bytes)
            text = Text.from_bytes(self._job.name, content)
        except (OSError, ToolError) as error:
            why = f"{self._job.name} can not be read: {error.strerror}" if isinstance(error, OSError) else str(error)
            await self._say("tool_completed", tool="read_file", call_id=call, error=why)
            raise ToolError(why) from None
        await self._say("tool_completed", tool="read_file", call_id=call, result=tools.describe(text))
        return text

    async def _use(self, tool: str, arguments: Mapping[str, Any], result: object) -> None:
        call = await self._begin(tool, arguments)
        await self._say("tool_completed", tool=tool, call_id=call, result=result)

    async def _begin(self, tool: str, arguments: Mapping[str, Any]) -> str:
        self._calls += 1
        call = f"call-{self._calls}"
        await self._say("tool_executing", tool=tool, call_id=call, arguments=dict(arguments))
        return call

    async def _think(self, text: str) -> None:
        await self._say("agent_thinking", text=text)

    async def _say(self, type: str, **data: object) -> None:
        receipt = await self._bus.publish(user=USER, type=type, data=data, run=self._job.run)
        line = {"run": self._job.run, "id": receipt.event, "entry": receipt.entry, "type": type}
        # One write of one line, at once: this process may be killed at any moment.
        self._published.write(orjson.dumps(line) + b"\n")
        self._published.flush()
        if type != "agent_completed":
            # The work itself takes a few milliseconds; a visitor wants to watch it.
            await asyncio.sleep(seconds(self._job.pace_ms))


class _Agent:
    """Takes jobs and works on them, side by side."""

    def __init__(self, bus: Bus, published: BinaryIO) -> None:
        self._bus = bus
        self._published = published
        self._runs: set[asyncio.Task[None]] = set()

    async def serve(self, jobs: asyncio.StreamReader) -> None:
        """Takes jobs until there are no more, then cancels what still runs."""
        try:
            while line := await jobs.readline():
                job = Job.from_json(line)
                run = Run(job, self._bus, self._published)
                task = asyncio.create_task(run.close_abandoned() if job.abandoned else run.work(), name=job.run)
                self._runs.add(task)
                task.add_done_callback(self._ended)
        finally:
            for task in self._runs:
                task.cancel()
            await asyncio.gather(*self._runs, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._runs.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            retry = "try it again" if isinstance(error, EventBusError) and error.retryable else "a defect"
            logger.error("run %s ended early (%s): %s", task.get_name(), retry, error, exc_info=error)


async def _main(redis_url: str, published: Path) -> None:
    loop = asyncio.get_running_loop()
    jobs = asyncio.StreamReader(limit=LINE_MAX_BYTES)
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(jobs), sys.stdin)
    try:
        with published.open("ab") as log:
            async with Bus(redis_url) as bus:
                serving = asyncio.ensure_future(_Agent(bus, log).serve(jobs))
                loop.add_signal_handler(signal.SIGTERM, serving.cancel)
                with contextlib.suppress(asyncio.CancelledError):
                    await serving
    finally:
        pipe.close()


@click.command()
@click.option("--redis-url", required=True)
@click.option("--published", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(redis_url: str, published: Path) -> None:
    """Run the demo agent; started by `eventbus-gateway dev`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    asyncio.run(_main(redis_url, published))


if __name__ == "__main__":
    main()
