"""The demo agent: a worker process that answers questions about a file, and tells its user what it does meanwhile.

    python -m gateway.demo.agent --redis-url URL --published FILE

It takes jobs from its stdin, one JSON object a line, and ends when stdin does or on SIGTERM. What it has published it
writes into FILE, one line an event, after the event was stored: the page holds what it received against that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
import orjson

from eventbus import Bus, EventBusError, Run
from eventbus.clock import seconds
from gateway.demo import tools
from gateway.demo.jobs import AGENT, TIER, USER, Job
from gateway.demo.tools import Text, ToolError

__all__ = ["Answering", "main"]

LINE_MAX_BYTES: Final = 64 * 1024
ASK_MS: Final = 30_000
"""How long the agent waits for the visitor's answer before it decides by itself."""
WRITE_EVERY_MS: Final = 100
"""While it waits it looks so often for what is stored and not yet written down."""
WORDS_A_STEP: Final = 6
"""So many words of the answer come in the time of one step, and never slower than one in `WORD_MAX_MS`."""
WORD_MAX_MS: Final = 120

_WORD: Final = re.compile(r"\S+\s*")

logger = logging.getLogger(__name__)


class Answering:
    """One question about a file, worked on step by step in a run.

    Args:
        job: what is to be done.
        bus: where the run goes.
        published: the log of what was published.
        ask_ms: how long the visitor is waited for.
    """

    def __init__(self, job: Job, bus: Bus, published: BinaryIO, ask_ms: int = ASK_MS) -> None:
        self._job = job
        self._log = published
        self._logged = 0
        self._ask_ms = ask_ms
        self._run: Run = bus.run(
            user=USER, thread=job.thread, agent=AGENT, run=job.run, tier=TIER, public_error=_public_words
        )

    async def work(self) -> None:
        """Works to the end. The run owes its last event whatever happens, and sees to it.

        Raises:
            EventBusError: what happened could not be stored.
        Cancelled, the run says that it was, and ends. Where the visitor has cancelled it, that is all.
        """
        try:
            async with self._run:
                await self._answer()
        except ToolError as error:
            logger.info("run %s: %s", self._run.id, error)
        except asyncio.CancelledError:
            logger.info("run %s was stopped", self._run.id)
            raise
        finally:
            self._write_down()
            self._write({"run": self._job.run, "ended": self._run.outcome})

    async def _answer(self) -> None:
        try:
            await self._run.publish("visitor_asked", {"question": self._job.question, "file": self._job.name})
            await self._step()
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
            passage = await self._passage(text, [term for term, count in found if count] or frequent[:3])
            await self._say(tools.answer(text.name, found, frequent, passage))
            self._run.result = {"found": dict(found), "line": None if passage is None else passage["line"]}
        except asyncio.CancelledError:
            if not self._run.cancelled:  # not the visitor: the process is being stopped
                self._run.error = "the agent was stopped"
            raise

    async def _load(self) -> Text:
        async with self._run.tool("read_file", {"file": self._job.name}, public_error=_public_words) as tool:
            await self._step()
            try:
                content = await asyncio.to_thread(Path(self._job.path).read_bytes)
            except OSError as error:
                raise ToolError(f"{self._job.name} can not be read: {error.strerror}") from None
            text = Text.from_bytes(self._job.name, content)
            tool.result = tools.describe(text)
        await self._step()
        return text

    async def _passage(self, text: Text, wanted: list[str]) -> dict[str, Any] | None:
        """The passage to quote. Where several fit, the visitor knows best which one is meant."""
        await self._think(f"I look for the passage that holds the most of {', '.join(wanted) or 'it'}.")
        passages = tools.passages(text, wanted)
        shown = [{"line": passage["line"], "text": passage["text"]} for passage in passages]
        await self._use("find_passages", {"of": wanted}, {"found": len(passages), "lines": shown})
        if len(passages) < 2:
            return passages[0] if passages else None
        options = {tools.label(passage): passage for passage in passages}
        asking = f"{len(passages)} passages of {text.name} fit about as well. Which one do you mean?"
        # The question is stored long before its answer is there, and the page has it by then.
        writing = asyncio.create_task(self._keep_writing_down())
        try:
            chosen = await self._run.ask(
                asking, options=list(options), default=next(iter(options)), timeout_ms=self._ask_ms
            )
        finally:
            writing.cancel()
        await self._step()
        return options[chosen]

    async def _say(self, told: str) -> None:
        """Gives the answer word by word."""
        pause = seconds(min(self._job.pace_ms // WORDS_A_STEP, WORD_MAX_MS))
        async with self._run.stream() as stream:
            for word in _WORD.findall(told):
                await stream.write(word)
                await asyncio.sleep(pause)
        await self._step()

    async def _use(self, tool: str, arguments: dict[str, Any], result: object) -> None:
        async with self._run.tool(tool, arguments) as call:
            await self._step()
            call.result = result
        await self._step()

    async def _think(self, text: str) -> None:
        await self._run.thinking(text)
        await self._step()

    async def _step(self) -> None:
        """Waits until what was published is stored, writes it down, and takes the pause."""
        await self._run.flush()
        self._write_down()
        # The work itself takes a few milliseconds; a visitor wants to watch it.
        await asyncio.sleep(seconds(self._job.pace_ms))

    async def _keep_writing_down(self) -> None:
        """Writes down what is stored while the run itself waits, until it is cancelled."""
        while True:
            self._write_down()
            await asyncio.sleep(seconds(WRITE_EVERY_MS))

    def _write_down(self) -> None:
        receipts = self._run.receipts
        for receipt in receipts[self._logged :]:
            self._write({"run": self._job.run, "id": receipt.event, "entry": receipt.entry})
        self._logged = len(receipts)

    def _write(self, line: dict[str, Any]) -> None:
        # One write of one line, at once: this process may be killed at any moment.
        self._log.write(orjson.dumps(line) + b"\n")
        self._log.flush()


def _public_words(error: BaseException) -> str | None:
    """What the visitor is told: a tool's own words, and of anything else that it failed."""
    return str(error) if isinstance(error, ToolError) else None


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
                task = asyncio.create_task(Answering(job, self._bus, self._published).work(), name=job.run)
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
            async with Bus.from_env(redis_url=redis_url) as bus:
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
