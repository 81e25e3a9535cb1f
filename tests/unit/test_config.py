"""Settings: checked when made, read in one place, described once."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import socket
import subprocess
import sys
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from eventbus.config import (
    ConfirmationRecords,
    DeliverySettings,
    Durability,
    PublishSettings,
    Settings,
    StoreSettings,
    StreamFullPolicy,
    Tier,
    TierTable,
    redacted_url,
)
from eventbus.errors import ConfigError
from eventbus.kinds import Choice, Integer, Listed, NetworkKind, Ratio, SecretBytes, Text, check_secret
from eventbus.known import NODE_VARIABLES
from eventbus.settings import check, entries, group, markdown_table, read, setting, unknown_variables, variables
from eventbus.tokens import make_token
from gateway.config import (
    JwtSettings,
    LimitSettings,
    ListenSettings,
    LivenessSettings,
    NodeSettings,
    default_node_name,
    load_authenticator,
    load_keys,
)
from gateway.config_page import configuration_page

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a-secret-of-more-than-thirty-two-bytes"
GROUPS = [
    StoreSettings,
    DeliverySettings,
    PublishSettings,
    TierTable,
    ListenSettings,
    LivenessSettings,
    LimitSettings,
    JwtSettings,
]


def refusal(cls: Any = NodeSettings, /, env: dict[str, str] | None = None, **overrides: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        cls.from_env(env or {}, **overrides)
    return caught.value


# --- defaults and names ---------------------------------------------------------------------------------------------
def test_an_empty_environment_gives_the_documented_defaults() -> None:
    settings = NodeSettings.from_env({})
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.store.namespace == "eb"
    assert settings.store.partitions == 1024
    assert settings.store.retention_ms == settings.store.session_ttl_ms == 24 * 3_600_000
    assert settings.store.dedupe_ms == 120_000
    assert settings.store.max_stream_entries == 10_000
    assert settings.store.stream_full_policy is StreamFullPolicy.GAP
    assert settings.store.live_ttl_ms == 90_000
    assert settings.store.dead_letter_ttl_ms == 7 * 24 * 3_600_000
    assert settings.store.confirmation_records is ConfirmationRecords.ALL
    assert settings.delivery.ack_timeout_ms == 30_000
    assert settings.delivery.max_deliveries == 5
    assert settings.delivery.max_wait_ms == 300_000
    assert settings.delivery.jitter == 0.2
    assert settings.delivery.nack_base_ms == 1_000
    assert (settings.delivery.window_default, settings.delivery.window_max) == (256, 1024)
    assert settings.publish.max_event_bytes == 262_144
    assert settings.publish.publish_deadline_ms == 10_000
    assert settings.publish.durability is Durability.MEMORY
    assert settings.publish.kept_ms == 30_000
    assert settings.limits.max_frame_bytes == 65_536
    assert settings.limits.max_body_bytes == 8 * 1024 * 1024
    assert settings.limits.handshakes_per_address == 200
    assert settings.limits.connections_per_address == 10_000
    assert settings.liveness.hello_timeout_ms == 5_000
    assert settings.liveness.heartbeat_ms == 20_000
    assert settings.liveness.drain_ms == 10_000
    assert settings.listen.admin_host == "127.0.0.1"
    assert settings.listen.allowed_origins == ()
    assert settings.jwt.jwt_algorithms == ("HS256", "RS256", "ES256", "EdDSA")


def test_the_names_that_others_rely_on_are_read() -> None:
    env = {
        "EVENTBUS_REDIS_URL": "rediss://u:p@redis.example:6380/1",
        "EVENTBUS_ACK_TIMEOUT_MS": "500",
        "EVENTBUS_MAX_DELIVERIES": "4",
        "EVENTBUS_RETENTION_MS": "60000",
        "EVENTBUS_SESSION_TTL_MS": "30000",
        "EVENTBUS_MAX_STREAM_ENTRIES": "100",
        "EVENTBUS_MAX_STREAM_BYTES": "1000000",
        "EVENTBUS_STREAM_FULL_POLICY": "reject",
        "EVENTBUS_MAX_FRAME_BYTES": "4096",
        "EVENTBUS_MAX_EVENT_BYTES": "2048",
        "EVENTBUS_MAX_BODY_BYTES": "9000",
        "EVENTBUS_HELLO_TIMEOUT_MS": "700",
        "EVENTBUS_HEARTBEAT_MS": "800",
        "EVENTBUS_NAMESPACE": "eb-2_x",
        "EVENTBUS_DEDUPE_MS": "5000",
        "EVENTBUS_ALLOWED_ORIGINS": "https://a.example, http://localhost:3000",
        "EVENTBUS_TRUSTED_PROXIES": "10.0.0.0/8,fd00::/8,192.0.2.1",
        "EVENTBUS_HANDSHAKES_PER_ADDRESS": "0",
        "EVENTBUS_CONNECTIONS_PER_ADDRESS": "0",
        "EVENTBUS_JWT_ALGORITHMS": "HS256,EdDSA",
        "EVENTBUS_JWT_ISSUER": "https://issuer.example",
        "EVENTBUS_JWT_AUDIENCE": "bus",
        "EVENTBUS_TLS_CERT_FILE": "cert.pem",
        "EVENTBUS_TLS_KEY_FILE": "key.pem",
        "EVENTBUS_DEFAULT_TIER": "pro",
        "EVENTBUS_CONFIRMATION_RECORDS": "required",
        "EVENTBUS_DURABILITY": "replicated",
        "EVENTBUS_JITTER": "0.5",
        "EVENTBUS_NODE": "node-1",
    }
    settings = NodeSettings.from_env(env)
    assert settings.redis_url == env["EVENTBUS_REDIS_URL"]
    assert settings.delivery.ack_timeout_ms == 500
    assert settings.delivery.max_deliveries == 4
    assert settings.delivery.jitter == 0.5
    assert (settings.store.retention_ms, settings.store.session_ttl_ms, settings.store.dedupe_ms) == (
        60_000,
        30_000,
        5_000,
    )
    assert (settings.store.max_stream_entries, settings.store.max_stream_bytes) == (100, 1_000_000)
    assert settings.store.stream_full_policy is StreamFullPolicy.REJECT
    assert settings.store.namespace == "eb-2_x"
    assert settings.store.confirmation_records is ConfirmationRecords.REQUIRED
    assert (settings.limits.max_frame_bytes, settings.publish.max_event_bytes) == (4096, 2048)
    assert settings.limits.max_body_bytes == 9000
    assert (settings.liveness.hello_timeout_ms, settings.liveness.heartbeat_ms) == (700, 800)
    assert settings.listen.allowed_origins == ("https://a.example", "http://localhost:3000")
    assert settings.listen.trusted_proxies == tuple(
        ip_network(text) for text in ("10.0.0.0/8", "fd00::/8", "192.0.2.1/32")
    )
    assert settings.limits.handshakes_per_address == settings.limits.connections_per_address == 0
    assert settings.jwt.jwt_algorithms == ("HS256", "EdDSA")
    assert (settings.jwt.jwt_issuer, settings.jwt.jwt_audience) == ("https://issuer.example", "bus")
    assert (settings.listen.tls_cert_file, settings.listen.tls_key_file) == ("cert.pem", "key.pem")
    assert settings.tiers.default_tier == "pro"
    assert settings.publish.durability is Durability.REPLICATED
    assert settings.node_name == "node-1"


def test_a_process_of_an_agent_reads_the_part_that_concerns_it() -> None:
    env = {"EVENTBUS_ACK_TIMEOUT_MS": "500", "EVENTBUS_RETENTION_MS": "60000", "EVENTBUS_PORT": "nonsense"}
    settings = Settings.from_env(env, redis_url="redis://elsewhere:1")
    assert settings.delivery.ack_timeout_ms == 500
    assert settings.store.session_ttl_ms == 60_000
    assert settings.redis_url == "redis://elsewhere:1"


def test_a_node_hands_its_agents_the_settings_that_it_has_itself() -> None:
    node = NodeSettings.from_env({"EVENTBUS_NAMESPACE": "x"}, redis_url="redis://elsewhere:1")
    agent = node.for_agents()
    assert agent.store is node.store
    assert agent.redis_url == node.redis_url


def test_nothing_is_read_at_import() -> None:
    code = "import eventbus.config, gateway.config; gateway.config.NodeSettings()"
    bad = {"EVENTBUS_PORT": "nonsense", "EVENTBUS_TIERS_FILE": "/nowhere", "EVENTBUS_REDIS_URL": "nonsense"}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **bad}, cwd=ROOT, check=True, timeout=30)


# --- above the environment ------------------------------------------------------------------------------------------
def test_a_value_of_the_command_line_stands_above_the_environment() -> None:
    env = {"EVENTBUS_PORT": "nonsense", "EVENTBUS_HOST": "192.0.2.1"}
    settings = NodeSettings.from_env(env, port="9000", admin_port=0, host=None)
    assert settings.listen.port == 9000
    assert settings.listen.admin_port == 0
    assert settings.listen.host == "192.0.2.1"


def test_a_whole_group_can_be_given() -> None:
    store = StoreSettings(namespace="x")
    assert Settings.from_env({"EVENTBUS_NAMESPACE": "y"}, store=store).store is store


def test_a_group_of_another_class_is_refused() -> None:
    assert "store must be StoreSettings" in str(refusal(Settings, store=DeliverySettings()))


def test_an_override_that_no_setting_has_is_a_defect() -> None:
    with pytest.raises(TypeError, match="prot"):
        NodeSettings.from_env({}, prot=1)


def test_an_empty_variable_counts_as_absent() -> None:
    settings = NodeSettings.from_env({"EVENTBUS_PORT": "", "EVENTBUS_JWT_SECRET": "", "EVENTBUS_ALLOWED_ORIGINS": ""})
    assert settings.listen.port == 8080
    assert settings.jwt.jwt_secret is None


# --- refusals -------------------------------------------------------------------------------------------------------
@pytest.mark.requirement("R24")
@pytest.mark.parametrize(
    "name, value",
    [
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "80_80"),
        ("PORT", " 80"),
        ("PORT", "8e1"),
        ("PORT", "\u0668"),
        ("PORT", "9" * 30),
        ("HOST", "a b"),
        ("NODE", "a/b"),
        ("WORKERS", "0"),
        ("ALLOWED_ORIGINS", "*"),
        ("ALLOWED_ORIGINS", "https://a.example,https://b.example/path"),
        ("ALLOWED_ORIGINS", "null"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),
        ("TRUSTED_PROXIES", "proxy"),
        ("JWT_ALGORITHMS", "HS256,none"),
        ("JWT_ALGORITHMS", ","),
        ("JWT_ISSUER", "a b"),
        ("HEARTBEAT_MS", "20s"),
        ("DRAIN_MS", "0"),
        ("MAX_FRAME_BYTES", "1"),
        ("NAMESPACE", "EB"),
        ("NAMESPACE", "a" * 33),
        ("NAMESPACE", "eb:x"),
        ("PARTITIONS", "0"),
        ("RETENTION_MS", "1.5"),
        ("STREAM_FULL_POLICY", "drop"),
        ("CONFIRMATION_RECORDS", "some"),
        ("DURABILITY", "disk"),
        ("JITTER", "1.1"),
        ("JITTER", "nan"),
        ("MAX_DELIVERIES", "2"),
        ("WINDOW_MAX", "1025"),
        ("DEFAULT_TIER", "gold"),
        ("DEFAULT_TIER", "Gold!"),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence_with_its_variable_and_what_is_allowed(name: str, value: str) -> None:
    error = refusal(env={f"EVENTBUS_{name}": value})
    message = str(error)
    assert message.startswith(f"EVENTBUS_{name} is ")
    assert "must" in message
    assert "\n" not in message
    assert len(message) < 300
    assert error.field == name.lower()


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(str(refusal(env={"EVENTBUS_NAMESPACE": "x" * 100_000}))) < 300


@pytest.mark.parametrize("cls", GROUPS)
def test_every_setting_is_checked_also_when_it_is_made_by_hand(cls: Any) -> None:
    for entry in entries(cls):
        with pytest.raises(ConfigError) as caught:
            cls(**{entry.name: object()})
        assert entry.option.env in str(caught.value)
        assert caught.value.field == entry.name


def test_a_truth_value_is_no_number() -> None:
    with pytest.raises(ConfigError):
        ListenSettings(port=True)
    with pytest.raises(ConfigError):
        DeliverySettings(jitter=True)


@pytest.mark.parametrize(
    "env, both",
    [
        ({"RETENTION_MS": "60000", "SESSION_TTL_MS": "60001"}, ("60001", "60000")),
        ({"RETENTION_MS": "60000", "DEDUPE_MS": "60001"}, ("60001", "60000")),
        ({"ACK_TIMEOUT_MS": "400000"}, ("400000", "300000")),
        ({"WINDOW_MAX": "10"}, ("256", "10")),
        ({"RETRY_BASE_MS": "3000"}, ("3000", "2000")),
        ({"BREAKER_OPEN_MS": "40000"}, ("40000", "30000")),
        ({"LIVE_TTL_MS": "19999"}, ("19999", "10000")),
    ],
    ids=str,
)
def test_two_settings_that_do_not_go_together_are_refused_with_both_values(
    env: dict[str, str], both: tuple[str, str]
) -> None:
    message = str(refusal(env={f"EVENTBUS_{name}": value for name, value in env.items()}))
    assert both[0] in message
    assert both[1] in message
    assert message.count("EVENTBUS_") == 2


def test_sessions_and_dedupe_are_never_above_the_retention() -> None:
    store = StoreSettings(retention_ms=60_000)
    assert (store.session_ttl_ms, store.dedupe_ms) == (60_000, 60_000)
    store = StoreSettings(retention_ms=7 * 24 * 3_600_000)
    assert (store.session_ttl_ms, store.dedupe_ms) == (24 * 3_600_000, 120_000)


@pytest.mark.parametrize("given, missing", [("CERT", "KEY"), ("KEY", "CERT")])
def test_tls_needs_both_files(given: str, missing: str) -> None:
    error = refusal(env={f"EVENTBUS_TLS_{given}_FILE": "x.pem"})
    assert f"EVENTBUS_TLS_{missing}_FILE is not" in str(error)
    assert error.field == f"tls_{missing.lower()}_file"


@pytest.mark.parametrize(
    "url",
    [
        "redis.example:6379",
        "http://redis.example",
        "redis://",
        "redis://:secret@",
        "redis://host:port",
        "redis://host:0",
        "redis://host:99999",
        "redis://[::1",
        "unix://",
        "redis+sentinel://a:1,b:2",
        "redis+cluster://a:1,,b:2",
        "redis+cluster://a:0",
        "redis+cluster://:secret@a:x",
        "redis+other://a:1",
    ],
)
def test_an_address_of_redis_that_is_none_is_refused_without_showing_it(url: str) -> None:
    message = str(refusal(redis_url=url))
    assert message.startswith("EVENTBUS_REDIS_URL is not usable: it must be a URL")
    assert "secret" not in message


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "rediss://u:p@h:1/2",
        "unix:///run/redis.sock",
        "redis://[::1]:6379",
        "redis+sentinel://u:p@a:26379,b:26379/bus/0",
        "redis+cluster://a:6379,[::1]:6379",
        "rediss+cluster://u:p@a:6379/0?ssl_ca_certs=/etc/ca.pem",
    ],
)
def test_an_address_of_redis_is_taken(url: str) -> None:
    assert Settings.from_env({"EVENTBUS_REDIS_URL": url}).redis_url == url


# --- secrets --------------------------------------------------------------------------------------------------------
def test_a_secret_comes_by_value_or_by_file_and_the_line_break_is_none_of_it(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\r\n")
    for settings in (
        NodeSettings.from_env({"EVENTBUS_JWT_SECRET": SECRET}),
        NodeSettings.from_env({"EVENTBUS_JWT_SECRET_FILE": str(file)}),
        NodeSettings.from_env({"EVENTBUS_JWT_SECRET": "nonsense"}, jwt_secret_file=file),
        NodeSettings.from_env({}, jwt_secret=SECRET.encode()),
    ):
        assert settings.jwt.jwt_secret == SECRET.encode()


def test_a_secret_by_value_and_by_file_is_refused(tmp_path: Path) -> None:
    error = refusal(env={"EVENTBUS_JWT_SECRET": SECRET, "EVENTBUS_JWT_SECRET_FILE": str(tmp_path)})
    assert "both set" in str(error)


def test_a_secret_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    error = refusal(jwt_secret_file=str(tmp_path / "missing"))
    assert str(error).startswith("EVENTBUS_JWT_SECRET_FILE is ")
    assert "No such file" in str(error)
    (tmp_path / "binary").write_bytes(b"\xff" * 40)
    assert "UTF-8" in str(refusal(jwt_secret_file=str(tmp_path / "binary")))


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("secret, why", [("hunter2", "7 bytes"), ("-----BEGIN PUBLIC KEY-----" + "x" * 40, "PEM")])
def test_a_weak_secret_is_refused_and_not_shown(secret: str, why: str) -> None:
    error = refusal(env={"EVENTBUS_JWT_SECRET": secret})
    assert str(error).startswith("EVENTBUS_JWT_SECRET ")
    assert why in str(error)
    assert secret not in str(error)


def test_a_good_secret_passes_its_check() -> None:
    check_secret(SECRET.encode())
    with pytest.raises(ConfigError, match="31 bytes"):
        check_secret(b"x" * 31)


def test_no_secret_is_in_the_text_of_settings() -> None:
    settings = NodeSettings.from_env({"EVENTBUS_JWT_SECRET": SECRET, "EVENTBUS_REDIS_URL": "redis://u:hunter2@h"})
    assert SECRET not in repr(settings)
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in repr(settings.for_agents())


def test_an_address_is_logged_without_its_password() -> None:
    assert redacted_url("rediss://u:p@h:1/2?password=x") == "rediss://h:1/2"
    assert redacted_url("redis://h") == "redis://h"


# --- tiers ----------------------------------------------------------------------------------------------------------
def tiers_file(tmp_path: Path, content: object) -> str:
    file = tmp_path / "tiers.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


GOLD = {"agent_timeout_ms": 1000, "connection_timeout_ms": 40_000, "live_sessions": 1, "frames_per_second": 1}


@pytest.mark.requirement("R24")
def test_the_built_in_tiers_keep_the_hierarchy() -> None:
    table = TierTable()
    assert [
        (t.name, t.agent_timeout_ms, t.connection_timeout_ms, t.live_sessions, t.frames_per_second) for t in table.tiers
    ] == [
        ("free", 30_000, 40_000, 10, 20),
        ("pro", 45_000, 60_000, 20, 50),
        ("enterprise", 120_000, 180_000, 100, 500),
    ]
    assert table["free"].kept_sessions == 40
    assert table.get("gold") is None
    with pytest.raises(KeyError):
        table["gold"]


@pytest.mark.requirement("R24")
@pytest.mark.parametrize(
    "changed, values",
    [
        ({"pro": {"agent_timeout_ms": 55_001}}, ("55001", "60000", "60001")),
        ({"free": {"agent_timeout_ms": 1_000, "connection_timeout_ms": 39_999}}, ("39999", "40000")),
        ({"enterprise": {"agent_timeout_ms": 1_000, "connection_timeout_ms": 59_999}}, ("59999", "60000")),
    ],
    ids=["margin", "least", "enterprise"],
)
def test_time_outs_that_break_the_hierarchy_stop_the_start_with_both_values(
    tmp_path: Path, changed: object, values: tuple[str, ...]
) -> None:
    message = str(refusal(env={"EVENTBUS_TIERS_FILE": tiers_file(tmp_path, changed)}))
    assert message.startswith("tier ")
    assert "EVENTBUS_TIERS_FILE" in message
    for value in values:
        assert value in message


@pytest.mark.requirement("R24")
def test_a_hierarchy_that_just_holds_is_taken(tmp_path: Path) -> None:
    env = {"EVENTBUS_TIERS_FILE": tiers_file(tmp_path, {"pro": {"agent_timeout_ms": 55_000}})}
    assert NodeSettings.from_env(env).tiers["pro"].agent_timeout_ms == 55_000


def test_a_file_changes_tiers_and_adds_some(tmp_path: Path) -> None:
    file = tiers_file(tmp_path, {"pro": {"live_sessions": 40}, "gold": GOLD})
    table = Settings.from_env({"EVENTBUS_TIERS_FILE": file, "EVENTBUS_DEFAULT_TIER": "gold"}).tiers
    assert table.names == ("free", "pro", "enterprise", "gold")
    assert table["pro"] == dataclasses.replace(TierTable()["pro"], live_sessions=40)
    assert table["gold"] == Tier(name="gold", **GOLD)


@pytest.mark.parametrize(
    "content, why",
    [
        ("{", "not JSON"),
        ([], "not a JSON object"),
        ({"gold": 5}, "must be a JSON object"),
        ({"gold": {"live_sessions": 1}}, "lacks agent_timeout_ms"),
        ({"pro": {"sessions": 1}}, "has no field 'sessions'"),
        ({"pro": {"live_sessions": "many"}}, "live_sessions is 'many': it must be a whole number"),
        ({"pro": {"live_sessions": 0}}, "live_sessions is 0"),
        ({"Gold!": GOLD}, "its name must be"),
    ],
    ids=str,
)
def test_a_broken_file_of_tiers_is_refused_in_one_sentence(tmp_path: Path, content: object, why: str) -> None:
    message = str(refusal(env={"EVENTBUS_TIERS_FILE": tiers_file(tmp_path, content)}))
    assert why in message
    assert "EVENTBUS_TIERS_FILE" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "setting, content",
    [("JWT_JWKS_FILE", "no json"), ("JWT_JWKS_FILE", "{}"), ("JWT_PUBLIC_KEY_FILES", "no pem")],
)
def test_a_broken_file_of_keys_is_refused_with_its_setting_and_its_name(
    tmp_path: Path, setting: str, content: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_authenticator(NodeSettings.from_env({f"EVENTBUS_{setting}": str(file)}))
    assert f"EVENTBUS_{setting}" in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_missing_file_of_tiers_is_refused(tmp_path: Path) -> None:
    assert "No such file" in str(refusal(env={"EVENTBUS_TIERS_FILE": str(tmp_path / "none.json")}))


def test_two_tiers_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="same name"):
        TierTable(tiers=(TierTable()["free"], TierTable()["free"]))


# --- unknown variables ----------------------------------------------------------------------------------------------
def warnings_of(caplog: pytest.LogCaptureFixture, cls: Any, env: dict[str, str]) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="eventbus.config"):
        cls.from_env(env)
    return [record.getMessage() for record in caplog.records]


def test_an_unknown_variable_is_a_warning_with_the_closest_name(caplog: pytest.LogCaptureFixture) -> None:
    for cls in (Settings, NodeSettings):
        assert warnings_of(caplog, cls, {"EVENTBUS_ACK_TIMOUT_MS": "1", "OTHER": "1"}) == [
            "EVENTBUS_ACK_TIMOUT_MS is not a setting and is ignored; did you mean EVENTBUS_ACK_TIMEOUT_MS?"
        ]


def test_an_unknown_variable_like_no_other_is_named_alone() -> None:
    assert unknown_variables({"EVENTBUS_QQQQ": "1"}, ["EVENTBUS_PORT"]) == [
        "EVENTBUS_QQQQ is not a setting and is ignored"
    ]


def test_no_setting_is_unknown_to_an_agent_or_a_node(caplog: pytest.LogCaptureFixture) -> None:
    every = dict.fromkeys(variables(NodeSettings), "")
    assert warnings_of(caplog, NodeSettings, every) == []
    assert warnings_of(caplog, Settings, every) == []
    assert warnings_of(caplog, Settings, {"EVENTBUS_TEST_NO_SKIP": "1"}) == []


def test_agents_know_the_names_that_only_nodes_read() -> None:
    assert sorted(NODE_VARIABLES) == sorted(set(variables(NodeSettings)) - set(variables(Settings)))


# --- descriptions ---------------------------------------------------------------------------------------------------
def test_every_setting_has_a_name_a_sentence_and_a_flag_of_its_own() -> None:
    every = list(entries(NodeSettings))
    assert len({entry.name for entry in every}) == len(every)
    assert len({entry.option.env for entry in every}) == len(every)
    assert len({entry.flag for entry in every}) == len(every)
    for entry in every:
        assert re.fullmatch(r"EVENTBUS_[A-Z0-9_]+", entry.option.env)
        assert entry.option.help.endswith(".")
        assert entry.name.endswith("_ms") == (entry.option.unit == "ms")
        assert entry.name.endswith("_bytes") == (entry.option.unit == "bytes")


def test_flags_are_made_from_the_names_and_secrets_come_by_file() -> None:
    flags = {entry.flag: entry.parameter for entry in entries(NodeSettings)}
    assert flags["--redis-url"] == "redis_url"
    assert flags["--jwt-secret-file"] == "jwt_secret_file"
    assert flags["--tiers-file"] == "tiers"
    assert flags["--admin-port"] == "admin_port"
    assert flags["--node"] == "node"


def test_the_text_of_a_default_is_one_that_the_variable_takes() -> None:
    for entry in entries(NodeSettings):
        if entry.default_text and entry.option.default_text is None:
            assert entry.option.kind.parse(entry.default_text) == entry.default


def test_the_page_of_settings_is_up_to_date() -> None:
    """When this fails: python -m gateway.config_page > docs/configuration.md."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == configuration_page()
    for name in variables(NodeSettings):
        assert f"`{name}`" in page


def test_the_page_is_printed_by_its_module() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "gateway.config_page"], cwd=ROOT, check=True, capture_output=True, text=True, timeout=30
    )
    assert made.stdout == configuration_page()


# --- the machinery --------------------------------------------------------------------------------------------------
class Colour(StrEnum):
    RED = "red"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    colour: Colour = setting(Colour.RED, "COLOUR", "A | B.", Choice(Colour))  # noqa: RUF009
    nets: tuple[Any, ...] = setting((), "NETS", "Nets.", Listed(NetworkKind()))
    note: str | None = setting(None, "NOTE", "Note.", Text("x|y", "x|y"))

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    inner: Inner = group(Inner)  # noqa: RUF009
    key: bytes | None = setting(None, "KEY", "Key.", SecretBytes(), secret=True)
    plain: int = 3


def test_settings_are_read_through_groups_and_other_fields_are_left_alone() -> None:
    made = read(Outer, {"EVENTBUS_COLOUR": "red", "EVENTBUS_NETS": " 10.0.0.0/8 ,"}, {"note": "x"})
    assert made == Outer(inner=Inner(nets=(ip_network("10.0.0.0/8"),), note="x"))
    assert list(variables(Outer)) == [
        "EVENTBUS_COLOUR",
        "EVENTBUS_NETS",
        "EVENTBUS_NOTE",
        "EVENTBUS_KEY",
        "EVENTBUS_KEY_FILE",
    ]


def test_a_table_of_settings_escapes_its_own_border() -> None:
    rows = markdown_table(entries(Outer)).splitlines()
    assert rows[4] == "| `EVENTBUS_NOTE` | none | x\\|y | Note. |"
    assert rows[5].startswith("| `EVENTBUS_KEY` or `EVENTBUS_KEY_FILE` | none | a random secret")


def test_values_are_shown_as_they_are_written() -> None:
    assert Integer(0, 9).show(5) == "5"
    assert Ratio(0, 1).show(0.25) == "0.25"
    assert SecretBytes().show(SECRET.encode()) == "(hidden)"
    assert Listed(NetworkKind()).show((ip_network("10.0.0.0/8"), ip_network("fd00::/8"))) == "10.0.0.0/8,fd00::/8"


# --- what a node loads ----------------------------------------------------------------------------------------------
def test_a_node_without_a_name_is_called_after_its_machine_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "a host/with ümlaut" + "x" * 100)
    name = default_node_name()
    assert re.fullmatch(r"a-host-with--mlautx+-[0-9]+", name)
    assert NodeSettings.from_env({}).listen.node == name
    assert NodeSettings().node_name == name
    monkeypatch.setattr(socket, "gethostname", lambda: "")
    assert default_node_name().startswith("node-")


def ed25519_pem() -> bytes:
    return (
        ed25519.Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


@pytest.fixture
def key_files(tmp_path: Path) -> Path:
    (tmp_path / "a.pem").write_bytes(ed25519_pem())
    (tmp_path / "b=c.pem").write_bytes(ed25519_pem())
    (tmp_path / "keys.json").write_text('{"keys": [{"kty": "oct", "kid": "o", "k": "' + "A" * 44 + '"}]}')
    return tmp_path


@pytest.mark.requirement("R23")
def test_keys_come_from_the_secret_the_files_and_the_key_set(key_files: Path) -> None:
    settings = NodeSettings.from_env(
        {
            "EVENTBUS_JWT_SECRET": SECRET,
            "EVENTBUS_JWT_PUBLIC_KEY_FILES": f"{key_files}/a.pem, 2026={key_files}/a.pem, ={key_files}/b=c.pem",
            "EVENTBUS_JWT_JWKS_FILE": str(key_files / "keys.json"),
        }
    )
    assert [(key.kid, str(key.algorithm)) for key in load_keys(settings.jwt)] == [
        (None, "HS256"),
        (None, "EdDSA"),
        ("2026", "EdDSA"),
        (None, "EdDSA"),
        ("o", "HS256"),
    ]


def test_a_key_file_that_is_missing_stops_the_start_by_its_variable(tmp_path: Path) -> None:
    for variable in ("EVENTBUS_JWT_PUBLIC_KEY_FILES", "EVENTBUS_JWT_JWKS_FILE"):
        settings = NodeSettings.from_env({variable: str(tmp_path / "none")})
        with pytest.raises(ConfigError, match=f"{variable} names .*No such file"):
            load_authenticator(settings)


def test_a_node_without_any_key_does_not_start() -> None:
    with pytest.raises(ConfigError, match="EVENTBUS_JWT_SECRET_FILE"):
        load_authenticator(NodeSettings.from_env({}))


def test_the_authenticator_follows_the_settings() -> None:
    settings = NodeSettings.from_env(
        {
            "EVENTBUS_JWT_SECRET": SECRET,
            "EVENTBUS_JWT_ALGORITHMS": "HS256",
            "EVENTBUS_JWT_ISSUER": "i",
            "EVENTBUS_JWT_AUDIENCE": "a",
            "EVENTBUS_DEFAULT_TIER": "pro",
        }
    )
    token = make_token(user="ada", secret=SECRET.encode(), now_ms=1_000_000, issuer="i", audience="a")
    assert load_authenticator(settings).verify(token, 1_000_000).tier == "pro"
