"""Why fakeredis is no store of the suite: what the scripts need and it lacks. When one of these fails, try again."""

from __future__ import annotations

import fakeredis
import pytest
import redis


@pytest.mark.corner("D14")
def test_fakeredis_loads_no_script_with_flags() -> None:
    with fakeredis.FakeRedis() as client, pytest.raises(redis.ResponseError, match="error loading code"):
        client.eval("#!lua flags=allow-oom\nreturn 1", 0)


def test_fakeredis_does_not_say_which_server_answered() -> None:
    with fakeredis.FakeRedis() as client, pytest.raises(redis.ResponseError, match="unknown command"):
        client.execute_command("INFO", "server")
