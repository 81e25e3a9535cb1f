"""Finds a Valkey or Redis server on this machine, and runs it as a child process.

For `eventbus-gateway dev`, tests and installations on a single machine. The server listens on the loopback only, keeps
an append-only file in its directory, and ends with the process that started it: on Linux also when that one is killed
(`tying`), elsewhere by an orderly end of it (`stop`, leaving the `with` block). Everything here blocks for some tens of
milliseconds: start it before an event loop runs. Nothing here imports `redis`.

`programs` finds the server programs, `address` is where one listens, `lock` sees that one server owns a directory,
`server` is the child's life.
"""

from __future__ import annotations

from eventbus.embedded.address import Listen
from eventbus.embedded.programs import EmbeddedServerError, ServerBinary, find_servers
from eventbus.embedded.server import EmbeddedServer
from eventbus.embedded.tying import tied

__all__ = ["EmbeddedServer", "EmbeddedServerError", "Listen", "ServerBinary", "find_servers", "tied"]
