"""Prometheus with the alerts of deploy/alerts.yml over real nodes, sixty times as fast.

Every duration of the rules (ranges, `for`) is divided by sixty, so that what takes an hour takes a minute; what they
compare with stays as it is, but for ages in seconds that a test names. So a rule fires here on what it fires on in
production, done sixty times as fast.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support import needs
from tests.support.processes import ROOT, Child, Processes
from tests.support.waiting import until

FASTER = 60
SCRAPE_MS = 500

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000}
_RANGE = re.compile(r"(?<=[\[:])(\d+)([smh])(?=[\]:])|(?<=offset )(\d+)([smh])\b")


def _faster(number: str, unit: str) -> str:
    return f"{max(SCRAPE_MS, int(number) * _UNITS_MS[unit] // FASTER)}ms"


def scaled_rules(ages: Mapping[str, str]) -> dict[str, Any]:
    """The rules, sixty times as fast; `ages` replaces comparisons with seconds (`{"> 300": "> 5"}`)."""
    rules: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())
    for group in rules["groups"]:
        group["interval"] = f"{SCRAPE_MS}ms"
        for rule in group["rules"]:
            rule["expr"] = _RANGE.sub(lambda found: _faster(found[1] or found[3], found[2] or found[4]), rule["expr"])
            if "for" in rule:
                rule["for"] = _faster(rule["for"][:-1], rule["for"][-1])
            for was, instead in ages.items():
                if "_seconds" in rule["expr"]:
                    rule["expr"] = rule["expr"].replace(was, instead)
    return rules


class Alerting:
    """A running Prometheus.

    Attributes:
        fired: the alerts that have fired so far.
    """

    def __init__(self, processes: Processes, directory: Path) -> None:
        self._processes = processes
        self._directory = directory
        self._url = ""
        self._child: Child | None = None
        self.fired: set[str] = set()

    async def start(self, targets: Sequence[str], *, scrape_ms: int = SCRAPE_MS, **ages: tuple[str, str]) -> None:
        """Scrapes these admin ports from now on; returns when all were scraped.

        Args:
            targets: host and port.
            scrape_ms: between two scrapes, and the most that one may take.
            ages: pairs of a comparison with seconds and what stands there instead.
        """
        program = needs.program("prometheus")
        self._directory.mkdir(parents=True, exist_ok=True)
        rules, config = self._directory / "alerts.yml", self._directory / "prometheus.yml"
        rules.write_text(yaml.safe_dump(scaled_rules(dict(ages.values()))))
        jobs = [{"job_name": "eventbus", "static_configs": [{"targets": list(targets)}]}]
        pace = f"{scrape_ms}ms"
        every = {"scrape_interval": pace, "evaluation_interval": f"{SCRAPE_MS}ms", "scrape_timeout": pace}
        config.write_text(yaml.safe_dump({"global": every, "rule_files": [str(rules)], "scrape_configs": jobs}))
        with contextlib.closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            place = f"127.0.0.1:{free.getsockname()[1]}"
        self._url = f"http://{place}/api/v1"
        self._child = self._processes.start(
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={self._directory / 'data'}",
            f"--web.listen-address={place}",
            "--log.level=warn",
            name="prometheus",
        )

        async def scraped() -> bool:
            found = await self._get("/targets")
            health = [one["health"] for one in found["activeTargets"]] if found else []
            return health == ["up"] * len(targets)

        await until(scraped, 20_000, lambda: f"all targets are scraped. {self._child!r}")

        async def settled() -> bool:
            # Before the first scrape there seems to be no node.
            return not await self.look()

        await until(settled, 20_000, lambda: f"nothing fires before anything was done. {self.fired}")
        self.fired.clear()

    async def quiet(self, *names: str) -> None:
        """None of these has fired: what fires next is of what the test does next."""
        await self.look()
        assert not self.fired & set(names), f"fired before anything was done: {self.fired & set(names)}"

    async def fire(self, *names: str, timeout_ms: int = 25_000) -> None:
        """Waits until all of these have fired."""

        async def have_fired() -> bool:
            await self.look()
            return set(names) <= self.fired

        await until(
            have_fired, timeout_ms, lambda: f"{sorted(set(names) - self.fired)} fire; did: {sorted(self.fired)}"
        )

    async def value(self, query: str) -> float:
        """What a query says now; 0 when it says nothing."""
        found = await self._get("/query", query=query)
        rows = found["result"] if found else []
        return float(rows[0]["value"][1]) if rows else 0.0

    async def look(self) -> set[str]:
        """The alerts that fire now."""
        found = await self._get("/alerts")
        now = {one["labels"]["alertname"] for one in (found or {}).get("alerts", []) if one["state"] == "firing"}
        self.fired |= now
        return now

    async def _get(self, path: str, **query: str) -> Any:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            try:
                return (await client.get(self._url + path, params=query)).json()["data"]
            except (httpx.HTTPError, ValueError):
                return None
