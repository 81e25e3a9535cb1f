"""A server with TLS, and a user with the least rights: the lines of docs/redis.md, against real servers."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from eventbus import Bus
from eventbus.embedded import EmbeddedServer
from eventbus.errors import StoreError, StoreMisconfigured, StoreUnavailable
from eventbus.ids import ENTRY_ZERO, UserId
from eventbus.store.redis_store import RedisStore
from eventbus.store.scripts import all_scripts
from tests.support.certificates import Authority
from tests.support.clusters import NewCluster
from tests.support.ports import free_port
from tests.support.processes import ROOT, Processes
from tests.support.redis_stores import event_of, publish
from tests.support.rights import LEAST_RIGHTS, PASSWORD, USER, rights_of
from tests.support.servers import NewServer, request

Opened = Callable[[str], RedisStore]


@pytest.fixture
async def opened() -> AsyncIterator[Opened]:
    async with AsyncExitStack() as stack:

        def make(url: str) -> RedisStore:
            store = RedisStore(url)
            stack.push_async_callback(store.aclose)
            return store

        yield make


async def doctor(processes: Processes, url: str, **env: str) -> dict[str, tuple[str, str]]:
    """What the doctor says of each thing."""
    child = processes.eventbus("doctor", "--json", env={"EVENTBUS_REDIS_URL": url, **env})
    assert await child.wait() == 0, child.stdout + child.stderr
    return {check["check"]: (check["state"], check["found"]) for check in json.loads(child.stdout)}


# --- rights -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(new_server: NewServer) -> EmbeddedServer:
    """A server whose only user beside the administrator has the rights of the page."""
    server = new_server()
    assert request(server.url, "ACL", "SETUSER", USER, "reset", *LEAST_RIGHTS) == b"+OK"
    return server


def _url(server: EmbeddedServer, user: str = USER, password: str = PASSWORD) -> str:
    return server.url.replace("://", f"://{user}:{password}@")


@pytest.mark.requirement("R32")
async def test_doctor_finds_everything_in_order_with_the_least_rights(
    guarded: EmbeddedServer, processes: Processes
) -> None:
    """Nothing more is needed; that nothing more is needed by nodes either is shown by the contract suite on Redis 8."""
    found = await doctor(processes, _url(guarded))
    assert found["store path"][0] == "ok", found
    assert {name for name, (state, _) in found.items() if state != "ok"} == {"replicas", "nodes"}
    # Every refusal is written down by the server.
    assert request(guarded.url, "ACL", "LOG") == b"*0"


@pytest.mark.requirement("R32")
@pytest.mark.parametrize("user, password", [(USER, "wrong"), ("nobody", PASSWORD)])
async def test_wrong_user_or_password_is_a_misconfiguration(
    guarded: EmbeddedServer, opened: Opened, user: str, password: str
) -> None:
    with pytest.raises(StoreMisconfigured):
        await opened(_url(guarded, user, password)).ping()


@pytest.mark.requirement("R32")
async def test_no_other_key_and_no_other_command_is_allowed(guarded: EmbeddedServer) -> None:
    """What the rights are good for: a stolen password reads no other application's data and harms no server."""
    for words in (("SET", "other", "1"), ("GET", "other"), ("FLUSHALL",), ("CONFIG", "SET", "save", ""), ("KEYS", "*")):
        dryrun = request(guarded.url, "ACL", "DRYRUN", USER, *words)
        assert b"no permissions" in dryrun, (words, dryrun)


def test_every_right_on_the_page_is_used() -> None:
    """A right that no script and no module names any more is taken off the page."""
    modules = "".join(path.read_text() for path in (ROOT / "eventbus" / "store").glob("*.py"))
    used = set(re.findall(r"[A-Z]+", modules + "".join(script.text for script in all_scripts().values())))
    for right in LEAST_RIGHTS:
        if right.startswith("+"):
            assert set(right[1:].upper().split("|")) <= used, right


def test_every_command_of_a_script_is_among_the_rights() -> None:
    """What is sent without a script is found by the contract suite."""
    with_a_part = {right[1:].split("|")[0] for right in LEAST_RIGHTS if "|" in right}
    for name, script in all_scripts().items():
        # `local call = redis.call` stands where a script calls often.
        called = re.findall(r"\b(?:redis\.p?)?call\(\s*'([A-Z]+)'(?:, '([A-Z]+)')?", script.text)
        assert called, name
        for command, part in called:
            wanted = f"+{command}|{part}" if command.lower() in with_a_part else f"+{command}"
            assert wanted.lower() in LEAST_RIGHTS, f"{name}: {wanted}"


def test_a_page_without_rights_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no rights"):
        rights_of("# Redis\n")


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "certificates")


@pytest.fixture
def tls_url(new_server: NewServer, authority: Authority) -> str:
    """A server that speaks TLS and wants a client's certificate; the URL has no parameters. The wheel's Valkey has no
    TLS, so this is Debian's Redis.
    """
    port = free_port()
    pair = authority.sign("server")
    new_server(
        kind="redis",
        extra=(
            *("--tls-port", str(port), "--tls-cert-file", str(pair.certificate), "--tls-key-file", str(pair.key)),
            *("--tls-ca-cert-file", str(authority.path), "--tls-auth-clients", "yes"),
        ),
    )
    return f"rediss://localhost:{port}/0"


def _with_certificate(url: str, authority: Authority) -> str:
    pair = authority.sign("client")
    return f"{url}?ssl_ca_certs={authority.path}&ssl_certfile={pair.certificate}&ssl_keyfile={pair.key}"


@pytest.mark.requirement("R32")
async def test_events_are_stored_over_tls_with_a_client_certificate(
    tls_url: str, authority: Authority, opened: Opened, processes: Processes
) -> None:
    url = _with_certificate(tls_url, authority)
    await publish(opened(url), event_of("over TLS"))
    found = await doctor(processes, url)
    assert found["store path"][0] == "ok", found


@pytest.mark.requirement("R32")
async def test_server_of_an_unknown_authority_is_not_trusted(tls_url: str, tmp_path: Path, opened: Opened) -> None:
    stranger = Authority(tmp_path / "stranger", "stranger")
    with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
        await opened(_with_certificate(tls_url, stranger)).ping()


@pytest.mark.requirement("R32")
async def test_client_without_a_certificate_gets_no_answer(tls_url: str, authority: Authority, opened: Opened) -> None:
    with pytest.raises(StoreError):
        await opened(f"{tls_url}?ssl_ca_certs={authority.path}").ping()


@pytest.mark.slow
@pytest.mark.requirement("R32")
async def test_cluster_is_used_over_tls_also_after_a_failover(
    new_cluster: NewCluster, authority: Authority, opened: Opened
) -> None:
    """The map that a member tells over TLS has the ports for TLS."""
    cluster = new_cluster("redis", authority=authority)
    users = [f"user{number}" for number in range(30)]
    async with Bus(_with_certificate(cluster.tls_url, authority)) as bus:
        before = [await bus.publish(user=user, type="note", data={}) for user in users]
        for primary in cluster.primaries:
            cluster.fail_over(cluster.replica(primary))
        after = [await bus.publish(user=user, type="note", data={}) for user in users]
    store = opened(_with_certificate(cluster.tls_url, authority))
    for user, first, second in zip(users, before, after, strict=True):
        page = await store.history(UserId(user), ENTRY_ZERO, 10)
        assert [entry.id for entry in page.entries] == [first.entry, second.entry]
