"""What is deployed fits together, as far as can be told without an engine: files, settings, times, rules."""

from __future__ import annotations

import ast
import configparser
import json
import logging
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from eventbus.tiers import TierTable
from gateway.config import NodeSettings
from gateway.metrics import METRICS, MetricType
from tests.support import needs
from tests.support.compose import COMPOSE_FILE, DOCKERFILE, alert_rules, panel_expressions, read_services
from tests.support.processes import ROOT

DEPLOY = ROOT / "deploy"
NODES = ("node-1", "node-2", "node-3")


def run(*words: str | Path, cwd: Path = ROOT) -> str:
    """Runs a checker; its complaint fails the test."""
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def manifests() -> dict[str, Mapping[str, Any]]:
    """The objects for Kubernetes by kind (of Services the last)."""
    listed = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())["resources"]
    every = [one for name in listed for one in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())]
    return {one["kind"]: one for one in every}


def settings_of(env: Mapping[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> NodeSettings:
    """What a node makes of an environment whose secret files exist; a warning fails the test."""
    files = {"EVENTBUS_JWT_SECRET_FILE": "s" * 64, "EVENTBUS_REDIS_URL_FILE": "redis://127.0.0.1:6379/0"}
    made = dict(env)
    for name, content in files.items():
        if name in env:
            path = tmp_path / name
            path.write_text(content)
            made[name] = str(path)
    with caplog.at_level(logging.WARNING):
        settings = NodeSettings.from_env(made)
    assert caplog.messages == []
    return settings


# --- the image --------------------------------------------------------------------------------------------------------
def test_the_image_runs_as_nobody_special_and_is_told_to_drain() -> None:
    text = DOCKERFILE.read_text()
    assert re.search(r"^USER 10001$", text, re.MULTILINE)
    assert re.search(r"^STOPSIGNAL SIGTERM$", text, re.MULTILINE)
    assert re.search(r'^CMD \["eventbus-gateway", "serve"\]$', text, re.MULTILINE)


def test_what_the_image_is_built_from_is_there_and_is_sent_to_the_engine() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE.read_text(), re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert copied == sent
    assert [name for name in copied if not (ROOT / name).exists()] == []
    # What the wheel carries of elsewhere is among it.
    forced = re.search(r"force-include\]\n((?:\".*\n)+)", (ROOT / "pyproject.toml").read_text())
    assert forced is not None
    assert all(any(path.startswith(f'"{name}/') for name in copied) for path in forced[1].splitlines())


# --- docker-compose.yml -----------------------------------------------------------------------------------------------
@pytest.mark.requirement("R31")
@needs.needs_compose
def test_docker_compose_takes_the_file() -> None:
    run(needs.program("docker-compose"), "-f", COMPOSE_FILE, "config", "-q")


@pytest.mark.requirement("R31")
def test_the_file_has_all_services_and_what_they_mount_is_there() -> None:
    services = read_services()
    assert {"valkey", *NODES, "haproxy", "agent", "prometheus", "grafana"} <= set(services)
    for service in services.values():
        for source in service.mounts.values():
            assert not source.startswith(".") or (ROOT / source).exists(), source


@pytest.mark.requirement("R31")
def test_the_server_keeps_what_it_is_given() -> None:
    words = read_services()["valkey"].command
    settings = dict(zip(words[1::2], words[2::2], strict=True))
    assert settings["--appendonly"] == "yes"
    assert settings["--maxmemory-policy"] == "noeviction"


@pytest.mark.parametrize("node", NODES)
def test_a_node_takes_its_settings_and_is_given_time_to_drain(
    node: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = read_services()[node]
    settings = settings_of(service.environment, tmp_path, caplog)
    assert settings.listen.node == node
    assert _seconds(service.raw["stop_grace_period"]) * 1000 > settings.liveness.drain_ms
    [proxy] = read_services()["haproxy"].addresses
    assert [str(network) for network in settings.listen.trusted_proxies] == [f"{proxy}/32"]


# --- the load balancer ------------------------------------------------------------------------------------------------
@needs.needs_haproxy
def test_haproxy_takes_its_configuration_without_a_warning() -> None:
    words = ["env", *(f"NODE_{number}=127.0.0.1:{number}" for number in (1, 2, 3))]
    told = run(*words, needs.program("haproxy"), "-c", "-f", DEPLOY / "haproxy.cfg")
    assert "WARNING" not in told


def test_haproxy_keeps_a_quiet_connection_for_longer_than_any_tier_does() -> None:
    found = re.search(r"^\s*timeout tunnel (\d+\w)$", (DEPLOY / "haproxy.cfg").read_text(), re.MULTILINE)
    assert found is not None
    tiers = TierTable()
    longest_ms = max(tiers[name].connection_timeout_ms for name in tiers.names)
    assert _seconds(found[1]) * 1000 > longest_ms


# --- alerts and the dashboard -----------------------------------------------------------------------------------------
@pytest.mark.requirement("R29")
@needs.needs_promtool
def test_alerts_fire_on_what_they_are_for_and_not_on_a_healthy_installation() -> None:
    promtool = needs.program("promtool")
    run(promtool, "check", "config", "--syntax-only", DEPLOY / "prometheus.yml")
    run(promtool, "check", "rules", DEPLOY / "alerts.yml")
    run(promtool, "test", "rules", "alerts_test.yml", cwd=DEPLOY)


@pytest.mark.requirement("R29")
def test_every_alert_is_staged_and_says_what_to_do() -> None:
    staged = {test["name"] for test in yaml.safe_load((DEPLOY / "alerts_test.yml").read_text())["tests"]}
    for rule in alert_rules():
        assert rule["alert"] in staged
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}


@pytest.mark.requirement("R29")
def test_the_runbook_has_a_section_for_each_alert_that_says_what_it_means_and_what_to_do() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    [runbook] = re.findall(r"^## Runbook\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", runbook, re.MULTILINE | re.DOTALL))
    assert sorted(sections) == sorted(rule["alert"] for rule in alert_rules())
    for rule in alert_rules():
        name, section = rule["alert"], sections[rule["alert"]]
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
        assert section.splitlines()[0] == rule["labels"]["severity"], name
        told = re.findall(r"^- \*\*([\w ]+)\*\*: \S", section, re.MULTILINE)
        assert told == ["Means", "Users see", "Look", "Mend", "Over when"], name
        [look] = re.findall(r"^- \*\*Look\*\*: (.*?)^- ", section, re.MULTILINE | re.DOTALL)
        assert "`eventbus " in look or "`eventbus_" in look or "log" in look, name


@pytest.mark.requirement("R29")
def test_what_the_runbook_names_is_there() -> None:
    """Metrics, settings, other alerts, and the pages and places that it leads to."""
    page = (ROOT / "docs" / "operations.md").read_text()
    metrics = {metric.full_name for metric in METRICS}
    for metric in METRICS:
        if metric.type is MetricType.HISTOGRAM:
            metrics |= {f"{metric.full_name}_{end}" for end in ("bucket", "sum", "count")}
    assert set(re.findall(r"\beventbus_\w+", page)) - metrics == set()
    assert set(re.findall(r"\bEventbus\w+", page)) - {rule["alert"] for rule in alert_rules()} == set()
    known = set(re.findall(r"\bEVENTBUS_\w+", (ROOT / "docs" / "configuration.md").read_text()))
    assert {
        name for name in re.findall(r"\bEVENTBUS_\w+", page) if name not in known and not name.endswith("_")
    } == set()
    for name, place in re.findall(r"\]\((\w+\.md)(?:#([\w-]+))?\)", page):
        heads = re.findall(r"^#+ (.*)$", (ROOT / "docs" / name).read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}
        assert not place or place in anchors, (name, place)


@pytest.mark.requirement("R29")
def test_the_dashboard_asks_the_source_that_is_provisioned() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((provisioning / "dashboards" / "eventbus.yml").read_text())["providers"]
    assert provider["options"]["path"] in read_services()["grafana"].mounts
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "eventbus.json").read_text())
    assert len(panel_expressions()) > 30
    used = {target["datasource"]["uid"] for panel in dashboard["panels"] for target in panel.get("targets", [])}
    assert used == {source["uid"]}


# --- Kubernetes and systemd -------------------------------------------------------------------------------------------
def test_a_pod_takes_its_settings_and_is_given_time_to_drain(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    every = manifests()
    settings = settings_of(every["ConfigMap"]["data"], tmp_path, caplog)
    pod = every["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    pause_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] * 1000 > pause_s * 1000 + settings.liveness.drain_ms
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"clients": settings.listen.port, "admin": settings.listen.admin_port}
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_everything_for_kubernetes_means_the_same_pods() -> None:
    every = manifests()
    labels = every["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert every["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert every["Service"]["spec"]["selector"] == labels
    assert every["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    target = every["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
    assert target == every["Deployment"]["metadata"]["name"]


def test_a_unit_takes_its_settings_and_is_given_time_to_drain(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = (DEPLOY / "systemd" / "gateway.env").read_text().splitlines()
    env = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # names have capitals
    unit.read(DEPLOY / "systemd" / "eventbus-gateway.service")
    settings = settings_of({**env, "EVENTBUS_JWT_SECRET_FILE": ""}, tmp_path, caplog)
    assert int(unit["Service"]["TimeoutStopSec"]) * 1000 > settings.liveness.drain_ms
    assert unit["Service"]["ExecStart"].endswith("bin/eventbus-gateway serve")
    # The status of settings that can not work.
    assert unit["Service"]["RestartPreventExitStatus"] == "2"


def test_the_agent_is_told_only_what_it_reads() -> None:
    source = (DEPLOY / "agent.py").read_text()
    read = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    given = read_services()["agent"].environment
    assert {name for name in given if not name.startswith("EVENTBUS_")} <= read


def _seconds(text: str) -> int:
    """`15s`, `5m`."""
    return int(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]
