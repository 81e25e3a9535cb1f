"""The client of load tests comes back whatever became of its connection: one that does not would look like a loss."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.load import client
from tests.support.load.plans import ClientPlan, Mode
from tests.support.waiting import until

TIMES = 40


class Door:
    """Takes each connection and resets it soon: in the midst of what its client does to make it."""

    def __init__(self) -> None:
        self.came = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._slam)

    def _slam(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                time.sleep(self.came % 8 / 1_000)  # real time: another moment for each
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if self.came < 0:
                return
            self.came += 1

    @contextmanager
    def open(self) -> Iterator[None]:
        self._thread.start()
        yield
        self.came = -1_000_000
        host, _, port = self.address.partition(":")
        socket.create_connection((host, int(port))).close()
        self._thread.join()
        self._socket.close()


async def slow_loop() -> None:
    while True:
        time.sleep(0.001)  # real time: a loop that has more to do gives these moments their time
        await asyncio.sleep(0)


async def test_a_client_whose_connection_is_over_before_it_has_begun_comes_back(tmp_path: Path) -> None:
    door = Door()
    addresses = tmp_path / "addresses"
    addresses.write_text(door.address)
    plan = ClientPlan(
        addresses=str(addresses),
        secret="a secret of 32 bytes, and some more.",
        users=["ann"],
        log=str(tmp_path / "log"),
        mode=Mode.FLAP,  # without a pause
        flaps=10 * TIMES,
    )
    with door.open():
        tasks = [asyncio.create_task(client.run(plan)), asyncio.create_task(slow_loop())]
        try:
            await until(lambda: door.came >= TIMES, 60_000, lambda: f"{TIMES} connections: {door.came}")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
