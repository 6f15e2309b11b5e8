"""How long after its spawn a task is handed to a claim that waits, over HTTP.

The service is a process of its own.  Times are from before the spawn is sent until the claim's
answer is read, so they include the spawn; how long that takes by itself is shown, too.

usage: python bench/longpoll.py [--rounds 500] [--server KIND | --dsn DSN]
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING

from bench.common import (
    TEGUH_SQL,
    add_server_options,
    connect,
    database_of,
    percentile,
    server_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tools.servers import Databases

SPAWN = "select task_id from teguh.spawn_task('bench', 'noop', 'null')"
TASKS = "/api/v1/queues/bench/tasks"


class Caller:
    """A connection that is kept open."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port)
        self.connection.connect()
        assert self.connection.sock is not None
        self.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, path: str, **body: object) -> bytes:
        """Send a request and return the answer."""
        self.connection.request(
            "POST", path, json.dumps(body), {"Content-Type": "application/json"}
        )
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {text.decode()}")
        return text


@contextmanager
def service(dsn: str) -> Iterator[int]:
    """Serve a database in a process of its own, and yield the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "teguh.cli", "serve", "--dsn", dsn, "--port", str(port)],
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            try:
                http.client.HTTPConnection("127.0.0.1", port).request("GET", "/health")
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def wait(port: int, handed: SimpleQueue[float]) -> None:
    """Claim until the service ends; put down when a task was handed over."""
    try:
        caller = Caller(port)
        while True:
            found = caller.post(TASKS + "/claim", claim_timeout=3600, wait_seconds=60)
            if found != b"[]":
                handed.put(time.perf_counter())
    except (OSError, http.client.HTTPException):
        return


def measure(dsn: str, waiting: int, rounds: int, spawn_by: str) -> list[tuple[float, float]]:
    """Return the milliseconds from each spawn to its own answer, and to its claim's."""
    handed: SimpleQueue[float] = SimpleQueue()
    with service(dsn) as port, connect(dsn) as connection:
        threads = [threading.Thread(target=wait, args=(port, handed)) for _ in range(waiting)]
        for thread in threads:
            thread.start()
        caller = Caller(port)
        spawns: dict[str, Callable[[], object]] = {
            "SQL": lambda: connection.execute(SPAWN),
            "HTTP": lambda: caller.post(TASKS, task_name="noop"),
        }
        times = []
        for number in range(rounds + 20):
            time.sleep(0.02)  # until the claim waits again
            began = time.perf_counter()
            spawns[spawn_by]()
            spawned = time.perf_counter()
            claimed = handed.get(timeout=30)
            if number >= 20:
                times.append(((spawned - began) * 1e3, (claimed - began) * 1e3))
    for thread in threads:
        thread.join()
    return times


def show(server: Databases, rounds: int) -> None:
    """Print the percentiles of each case."""
    print(f"\nmilliseconds from a spawn to the answer of a claim, {rounds} spawns one by one")
    print(" " * 34 + "p50     p95     max   the spawn's own p50")
    for waiting, spawn_by in ((1, "SQL"), (1, "HTTP"), (100, "SQL"), (100, "HTTP")):
        with database_of(server, "longpoll", TEGUH_SQL) as dsn:
            with connect(dsn) as connection:
                connection.execute("select teguh.create_queue('bench')")
            spawns, times = zip(*measure(dsn, waiting, rounds, spawn_by), strict=True)
        name = f"{waiting} waiting, spawned by {spawn_by}"
        figures = (
            percentile(times, 0.5), percentile(times, 0.95), max(times), percentile(spawns, 0.5)
        )  # fmt: skip
        print(f"  {name:28}" + "".join(f"{figure:8.1f}" for figure in figures), flush=True)


def main() -> int:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=500)
    add_server_options(parser)
    options = parser.parse_args()
    with server_of(options) as server:
        show(server, options.rounds)
    print(f"\nload of the last 5 minutes {os.getloadavg()[1]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
