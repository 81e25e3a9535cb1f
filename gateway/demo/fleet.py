"""All processes of the demo together: the nodes, among which it chooses, and the agent, which it keeps running."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final

from eventbus.clock import seconds
from gateway.demo.processes import AgentProcess, Bell, NodeProcess, State

__all__ = ["Fleet"]

HOLD_MS: Final = 10_000
"""How long a connection is held when no node can take it: one may be on its way back."""
AGENT_REST_MS: Final = 500
AGENT_STOP_MS: Final = 4_000

logger = logging.getLogger(__name__)


class Fleet:
    """The nodes and the agent.

    Args:
        nodes: not started yet.
        agent: not started yet.
        agent_died: called before the agent is started, also the first time: nobody works on its runs any more.
        bell: the one that the nodes ring.
    """

    def __init__(
        self,
        nodes: Sequence[NodeProcess],
        agent: AgentProcess,
        *,
        agent_died: Callable[[], object],
        bell: Bell,
    ) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.agent = agent
        self._agent_died = agent_died
        self._bell = bell
        self._turn = 0
        self._keeping: asyncio.Task[None] | None = None

    async def start(self) -> list[NodeProcess]:
        """Start all of them at once. Returns: the nodes that did not come up."""
        await self._start_agent()
        self._keeping = asyncio.create_task(self._keep_agent(), name="demo:agent")
        up = await asyncio.gather(*(node.start() for node in self.nodes.values()))
        return [node for node, is_up in zip(self.nodes.values(), up, strict=True) if not is_up]

    async def choose(self, hold_ms: int = HOLD_MS) -> NodeProcess | None:
        """The next node that takes connections, each in its turn. None: there was none in all that time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds(hold_ms)):
                while not (ready := [node for node in self.nodes.values() if node.state is State.READY]):
                    await self._bell.wait()
                self._turn += 1
                return ready[self._turn % len(ready)]
        return None

    async def stop_agent(self) -> None:
        """End the agent: its runs say that they were cancelled."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        await self.agent.stop(AGENT_STOP_MS)

    async def stop_nodes(self, timeout_ms: int) -> None:
        """Drain all nodes, side by side."""
        await asyncio.gather(*(node.stop(timeout_ms) for node in self.nodes.values()))

    def kill(self) -> None:
        """Kill all that runs."""
        for child in (*self.nodes.values(), self.agent):
            child.kill()

    async def _start_agent(self) -> None:
        self._agent_died()
        await self.agent.start()

    async def _keep_agent(self) -> None:
        while True:
            await self.agent.wait()
            logger.warning("the agent %s: it is started again", self.agent.ended)
            await asyncio.sleep(seconds(AGENT_REST_MS))
            with contextlib.suppress(ConnectionError):
                await self._start_agent()
