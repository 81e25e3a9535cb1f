"""The topology of docker-compose.yml without an engine: its commands and its environment, as processes on the loopback.

Everything that is started is read out of the file, and so is the order. Only addresses and paths are changed:
`service:port` becomes a free port of 127.0.0.1, a mounted path becomes one below the test's directory, and a file that
is mounted is a copy in which the same was done.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from eventbus.embedded import EmbeddedServer
from tests.support import needs
from tests.support.ports import free_port
from tests.support.processes import ROOT, Child, Processes
from tests.support.servers import NewServer
from tests.support.waiting import until

COMPOSE_FILE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"
DEPLOYING = ROOT / "docs" / "deploying.md"
STORE = "valkey"
"""The service that is started by `eventbus.embedded`, which finds the program."""

_DEFAULT = re.compile(r"\$\{\w+:-([^}]*)\}")
_HEALTH = re.compile(r"^HEALTHCHECK\b[^\n]*\\\n\s+CMD (\[.*\])$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service as the file has it.

    Attributes:
        command: program and arguments.
        mounts: path in the container -> volume, or path in the checkout beginning with `.`.
        depends_on: service -> condition.
        raw: everything else.
    """

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    mounts: dict[str, str] = field(default_factory=dict)
    depends_on: dict[str, str] = field(default_factory=dict)
    raw: Mapping[str, Any]

    @classmethod
    def parse(cls, name: str, raw: Mapping[str, Any]) -> Service:
        depends = raw.get("depends_on", {})
        if isinstance(depends, list):
            depends = {one: {"condition": "service_started"} for one in depends}
        return cls(
            name=name,
            # What Compose makes of `$$`.
            command=[str(word).replace("$$", "$") for word in raw.get("command", [])],
            environment={key: str(value) for key, value in raw.get("environment", {}).items()},
            mounts={target: source for source, target in (_mount(line) for line in raw.get("volumes", []))},
            depends_on={one: wanted["condition"] for one, wanted in depends.items()},
            raw=raw,
        )

    @property
    def addresses(self) -> Iterator[str]:
        """Fixed addresses of the service in its networks."""
        networks = self.raw.get("networks", [])
        for network in networks.values() if isinstance(networks, dict) else ():
            if network and "ipv4_address" in network:
                yield network["ipv4_address"]


def _mount(line: str) -> tuple[str, str]:
    source, target, *_ = line.split(":")
    return source, target


def read_services() -> dict[str, Service]:
    """The services of docker-compose.yml, with the defaults of its variables."""
    text = _DEFAULT.sub(r"\1", COMPOSE_FILE.read_text())
    return {name: Service.parse(name, raw) for name, raw in yaml.safe_load(text)["services"].items()}


def first_look() -> str:
    """The command of the guide that shows what the demo agent does, as it runs in the container."""
    found = re.search(r"^docker compose exec node-1 (eventbus [^#\n]*)", DEPLOYING.read_text(), re.MULTILINE)
    assert found is not None
    assert f"exec node-1 {found[1].strip()} " in COMPOSE_FILE.read_text()
    return found[1].strip()


def health_command() -> list[str]:
    """The health check of the image."""
    found = _HEALTH.search(DOCKERFILE.read_text())
    assert found is not None
    command = json.loads(found[1])
    assert isinstance(command, list)
    return [str(word) for word in command]


class Topology:
    """The services of the file, started as processes.

    Args:
        processes: starts them.
        new_server: starts the store.
        directory: where volumes and mounted files are.
    """

    def __init__(self, processes: Processes, new_server: NewServer, directory: Path) -> None:
        self.services = read_services()
        self.children: dict[str, Child] = {}
        self.replaced: dict[str, str] = {}
        """Further changes of mounted files; for what would only cost time."""
        self._processes = processes
        self._new_server = new_server
        self._directory = directory
        self._ports: dict[tuple[str, int], int] = {}
        self._server: EmbeddedServer | None = None
        names = "|".join(map(re.escape, self.services))
        self._place = re.compile(rf"\b({names}):(\d+)\b")
        self._fixed = {address for service in self.services.values() for address in service.addresses}

    # --- where things are ---------------------------------------------------------------------------------------------

    def port(self, service: str, port: int) -> int:
        """The port of the loopback that stands for a service's."""
        if (service, port) not in self._ports:
            self._ports[service, port] = free_port()
        return self._ports[service, port]

    def url(self, service: str, port: int) -> str:
        """The same as an address for clients."""
        return f"http://127.0.0.1:{self.port(service, port)}"

    def volume(self, name: str) -> Path:
        """The directory that stands for a volume."""
        path = self._directory / "volumes" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def redis_url(self) -> str:
        assert self._server is not None
        return self._server.url

    def environment(self, name: str) -> dict[str, str]:
        """What a service's process gets."""
        service = self.services[name]
        made = {key: self._translate(service, value) for key, value in service.environment.items()}
        for key, value in made.items():
            if key.endswith("_PORT"):
                made[key] = str(self.port(name, int(value)))
        paths = (str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")
        return {"PATH": os.pathsep.join(paths), **made}

    def command(self, name: str) -> list[str]:
        """What a service runs."""
        service = self.services[name]
        return [self._translate(service, word) for word in service.command]

    def _translate(self, service: Service, text: str) -> str:
        def own(found: re.Match[str]) -> str:
            return f"127.0.0.1:{self.port(service.name, int(found[1]))}"

        text = self._place.sub(lambda found: f"127.0.0.1:{self.port(found[1], int(found[2]))}", text)
        # `0.0.0.0:9090`, and HAProxy's `:8080`.
        text = re.sub(r"(?:\b0\.0\.0\.0|(?<=\s)):(\d+)\b", own, text)
        text = re.sub(r"\b0\.0\.0\.0\b", "127.0.0.1", text)
        for address in self._fixed:
            text = text.replace(address, "127.0.0.1")
        if not service.mounts:
            return text
        targets = "|".join(re.escape(target) for target in sorted(service.mounts, key=len, reverse=True))
        return re.sub(rf"(?<![\w/.-])({targets})(?![\w.-])", lambda found: str(self._mounted(service, found[1])), text)

    def _mounted(self, service: Service, target: str) -> Path:
        source = service.mounts[target]
        if not source.startswith("."):
            return self.volume(source)
        return self._directory / "files" / service.name / target.lstrip("/")

    def _copy_files(self, service: Service) -> None:
        for target, source in service.mounts.items():
            if source.startswith(".") and (ROOT / source).is_file():
                text = self._translate(service, (ROOT / source).read_text())
                for old, new in self.replaced.items():
                    text = text.replace(old, new)
                path = self._mounted(service, target)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

    # --- starting -----------------------------------------------------------------------------------------------------

    async def up(self, *names: str) -> None:
        """Starts services with all that they depend on, in the order that the file demands."""
        for name in names:
            await self._launch(name)

    async def _launch(self, name: str) -> None:
        if name in self.children or (name == STORE and self._server is not None):
            return
        service = self.services[name]
        for needed in service.depends_on:
            await self._launch(needed)
        for needed, condition in service.depends_on.items():
            await self._wait(needed, condition)
        if name == STORE:
            # The program's name is the first word; the port is the image's.
            self._server = self._new_server(port=self.port(STORE, 6379), extra=self.command(STORE)[1:])
            return
        self._copy_files(service)
        program, *arguments = self.command(name)
        if needs.find(program) is None and program in needs.PACKAGES:
            pytest.skip(f"needs the package {needs.PACKAGES[program]}")
        env = self.environment(name)
        self.children[name] = self._processes.start(program, *arguments, name=name, env=env)

    def execute(self, name: str, command: str) -> Child:
        """Starts a further command with the environment of a service, as `docker compose exec` does."""
        words = [self._translate(self.services[name], word) for word in command.split()]
        return self._processes.start(*words, name=f"{name}-{words[0]}", env=self.environment(name))

    async def _wait(self, name: str, condition: str) -> None:
        if condition == "service_completed_successfully":
            assert await self.children[name].wait() == 0, self.children[name].stderr
        elif condition == "service_healthy" and name != STORE:  # the store answers once it is started
            await self.healthy(name)

    async def healthy(self, name: str, timeout_ms: int = 60_000) -> None:
        """Waits until the health check of the image says so, run as the engine runs it."""
        env = self.environment(name)
        await self.children[name].line(r"^ready ", timeout_ms)  # asking before it is up would only cost time
        for number in itertools.count():
            check = self._processes.start(*health_command(), name=f"{name}-health-{number}", env=env)
            if await check.wait() == 0:
                return
            assert self.children[name].running, self.children[name].stderr
            assert number < timeout_ms // 100, check.stderr

    async def answers(self, name: str, port: int, path: str) -> httpx.Response:
        """Waits until a service answers with 200, and returns the answer."""
        url = self.url(name, port) + path
        async with httpx.AsyncClient(timeout=2, trust_env=False) as client:

            async def asked() -> httpx.Response | None:
                assert self.children[name].running, self.children[name].stderr
                with contextlib.suppress(httpx.HTTPError):
                    found = await client.get(url)
                    return found if found.status_code == 200 else None
                return None

            found = await until(asked, 60_000, f"an answer of {url}")
            assert found is not None
            return found


# --- names of metrics -------------------------------------------------------------------------------------------------

_METRIC = re.compile(r"\b([a-z]+_\w+)(\{[^}]*\})?")
_SAMPLE = re.compile(r"^(\w+)(\{.*\})? ")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")


def metrics_in(expressions: Iterable[str], prefix: str) -> dict[str, set[str]]:
    """The metrics with a prefix that PromQL names -> the labels that it matches on them."""
    found: dict[str, set[str]] = {}
    for expression in expressions:
        for name, matchers in _METRIC.findall(expression):
            if name.startswith(f"{prefix}_"):
                found.setdefault(name, set()).update(_LABEL.findall(matchers))
    return found


def assert_has(exposition: str, besides: Collection[str] = ()) -> None:
    """A node's metrics have every name that an alert or a panel asks for, with the labels that it asks for.

    Args:
        exposition: as the node has written it.
        besides: names that this node need not have.
    """
    labels: dict[str, set[str]] = {}
    for line in exposition.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            for suffix in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
                labels.setdefault(name + suffix, {"job", "instance"})
        elif (found := _SAMPLE.match(line)) is not None and found[1] in labels:
            labels[found[1]] |= set(_LABEL.findall(found[2] or ""))
    asked = metrics_in([*(rule["expr"] for rule in alert_rules()), *panel_expressions()], "eventbus")
    assert len(asked) > 50
    assert sorted(set(asked) - set(labels) - set(besides)) == []
    wrong = {name: used - labels[name] for name, used in asked.items() if name in labels and used - labels[name]}
    assert wrong == {}


def alert_rules() -> list[dict[str, Any]]:
    """The alerts of deploy/alerts.yml."""
    groups = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panel_expressions() -> list[str]:
    """What the panels of the dashboard ask, with Grafana's interval as Prometheus needs it."""
    found: list[str] = []
    for path in sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            found += [target["expr"].replace("$__rate_interval", "1m") for target in panel.get("targets", [])]
    return found


@pytest.fixture
def topology(processes: Processes, new_server: NewServer, tmp_path: Path) -> Topology:
    """The services of docker-compose.yml, none of them started."""
    return Topology(processes, new_server, tmp_path / "compose")
