"""An agent's process for tests of the way back: it says what it is told, and holds on to it until it is killed.

Modes: `hold` reads one command and never acks it; `read` resumes the run and acks all until a `stop`; `ask` asks a
question; `ask-again` resumes the run and asks it again; `work` waits to be cancelled.
"""

from __future__ import annotations

import asyncio
import sys

from eventbus import Bus

USER, RUN = "ada", "run-of-a-process"


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def main(mode: str) -> None:
    resume = mode in ("read", "ask-again", "work-again")
    async with Bus.from_env() as bus, bus.run(user=USER, agent="a", run=RUN, resume=resume) as run:
        say("inside")
        if mode == "hold":
            command = await anext(run.commands())
            say("holds", command.data["text"], command.attempts)
            await asyncio.Event().wait()
        elif mode == "read":
            async for command in run.commands():
                say("got", command.data["text"], command.attempts)
                if command.data["text"] == "stop":
                    await command.ack()
                    break
        elif mode.startswith("ask"):
            say("answer", await run.ask("Which one?", options=["a", "b"], question="q1", timeout_ms=60_000))
        else:
            await asyncio.Event().wait()
    say("ended", run.outcome, run.cancelled.reason)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
