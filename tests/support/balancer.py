"""HAProxy before three nodes, from deploy/haproxy.cfg itself, and nodes of the last release beside the checkout's.

A `Fleet` is a `World` whose clients connect to the load balancer.
"""

from __future__ import annotations

import contextlib
import csv
import io
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from eventbus.embedded import EmbeddedServer
from tests.support import needs
from tests.support.load.world import Node, Publishing, World, maker
from tests.support.ports import free_port
from tests.support.processes import ROOT, Child, Processes
from tests.support.servers import NewServer
from tests.support.waiting import until

CONFIG = ROOT / "deploy" / "haproxy.cfg"
RELEASES = ROOT / "tests" / "releases"
NAMES = ("node-1", "node-2", "node-3")


def last_release(directory: Path) -> Path:
    """Unpacks the newest wheel of tests/releases; returns what goes into PYTHONPATH."""

    def version(path: Path) -> tuple[int, ...]:
        return tuple(map(int, path.name.split("-")[1].split(".")))

    wheel = max(RELEASES.glob("eventbus-*.whl"), key=version)
    unpacked = directory / wheel.stem
    if not unpacked.exists():
        zipfile.ZipFile(wheel).extractall(unpacked)
    return unpacked


class Balancer:
    """HAProxy.

    Attributes:
        port: where clients connect.
    """

    def __init__(self, child: Child, port: int, operators_port: int) -> None:
        self.child = child
        self.port = port
        self._operators_port = operators_port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    async def servers(self) -> dict[str, str]:
        """What it holds of each node: `UP`, `DOWN`, and what lies between."""
        async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
            with contextlib.suppress(httpx.HTTPError):
                text = (await client.get(f"http://127.0.0.1:{self._operators_port}/;csv")).text.removeprefix("# ")
                rows = csv.DictReader(io.StringIO(text))
                return {row["svname"]: row["status"] for row in rows if row["svname"] in NAMES}
        return {}

    async def has(self, name: str, status: str, timeout_ms: int = 20_000) -> None:
        """Waits until it thinks so of a node."""

        async def look() -> bool:
            return (await self.servers()).get(name) == status

        await until(look, timeout_ms, f"the load balancer has {name} as {status}")


class Fleet(World):
    """Three nodes behind HAProxy.

    Attributes:
        balancer: there from `start` on.
        release: the directory of the last release.
    """

    balancer: Balancer

    def __init__(
        self, directory: Path, processes: Processes, server: EmbeddedServer, env: Mapping[str, object]
    ) -> None:
        super().__init__(directory, processes, server, {"TRUSTED_PROXIES": "127.0.0.1", **env})
        self._files = directory

    @property
    def release(self) -> Path:
        return last_release(self._files)

    def launch(self, name: str, *, port: int = 0, redis_url: str | None = None, **env: object) -> Child:
        """As `World.launch`; of the release that is unpacked in `of`, or else of the checkout."""
        of = env.pop("of", None)
        if of is None:
            return super().launch(name, port=port, redis_url=redis_url, **env)
        settings = {**self._settings(name, port, redis_url, env), "PYTHONPATH": str(of)}
        # -P: the directory in which it is started is the checkout, and must not come first.
        return self._processes.python("-P", "-m", "gateway", "serve", name=name, env=settings)

    async def start(self, *, redis_urls: Mapping[str, str] | None = None, of: Path | None = None, **env: Any) -> None:
        """Starts the nodes and HAProxy; returns when it has all of them.

        Args:
            redis_urls: node -> where it finds Redis; the server when absent.
            of: the directory of a release.
            env: settings of all nodes.
        """
        urls = redis_urls or {}
        children = {name: self.launch(name, redis_url=urls.get(name), of=of, **env) for name in NAMES}
        for name, child in children.items():
            self.nodes.append(Node(name, child, await self._port(child)))
        await self.start_balancer()

    async def start_balancer(self) -> None:
        """Starts HAProxy before the nodes; returns when it has all of them."""
        port, operators_port = free_port(), free_port()
        env = {f"NODE_{number}": node.address for number, node in enumerate(self.nodes, 1)}
        child = self._processes.start(
            needs.program("haproxy"),
            "-db",
            "-f",
            CONFIG,
            name="haproxy",
            env={"BIND": f"127.0.0.1:{port}", "OPERATORS_BIND": f"127.0.0.1:{operators_port}", **env},
        )
        self.balancer = Balancer(child, port, operators_port)
        for node in self.nodes:
            await self.balancer.has(node.name, "UP")
        self.publish_addresses(self.balancer.address)

    async def replace(self, node: Node, *, of: Path | None = None, **env: Any) -> None:
        """Drains a node and starts it anew, of another release perhaps; returns when the load balancer has it again."""
        node.child.terminate()
        assert await node.child.wait() == 0, node.child.stderr
        assert "Traceback" not in node.child.stderr
        await self.restart(node, of=of, **env)
        await self.balancer.has(node.name, "UP")

    async def start_publisher_of(self, of: Path, users: list[str], events: int, **plan: Any) -> Publishing:
        """As `start_publisher`, with the library of a release."""
        env = {**self._env, "PYTHONPATH": f"{of}:{ROOT}"}
        return await self._start_publisher(users, events, plan, ("-P",), env)

    async def sessions_on(self, name: str, users: list[str]) -> list[str]:
        """Those of the users whose session a node holds, as the store has it."""
        return [user for user in users if (await self.holder(user) or ("",))[0] == name]


NewFleet = Callable[..., Fleet]


@pytest.fixture
async def new_fleet(tmp_path: Path, processes: Processes, new_server: NewServer) -> AsyncIterator[NewFleet]:
    """Makes the parts of a test, as `new_world` does."""
    needs.program("haproxy")
    async with maker(Fleet, tmp_path, processes, new_server) as make:
        yield make
