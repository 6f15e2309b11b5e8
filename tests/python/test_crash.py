"""Workers, connections and servers that die."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import teguh
from tests.cluster import ROOT
from tests.python.bouncer import through
from tests.python.support import PATIENCE, Gate, finished, let_in, running, state, until
from tools.servers import OWNER, WORKER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import psycopg

    from tools.servers import Server

AT_ONCE: teguh.RetryStrategy = {"kind": "none"}
LEDGER = "create table ledger (n integer)"


@contextmanager
def worker_process(dsn: str, queue: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run `teguh worker` in a process of its own."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "teguh.cli", "worker", "tests.python.crash_tasks:tasks"),
            *("--queue", queue, "--dsn", dsn, *options),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "python" / "src")},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def cut_connections(client: teguh.Client) -> int:
    """Terminate every connection of workers to this database; return how many there were."""
    rows = client.connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name like 'teguh %' and datname = current_database()"
    ).fetchall()
    return len(rows)


def test_a_killed_worker_loses_nothing_and_no_step_runs_twice(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    client.connection.execute(LEDGER)
    task = client.spawn_task(queue, "steps", {"seconds": 0.4}, retry_strategy=AT_ONCE)
    with worker_process(dsn, queue, "--claim-timeout", "0.6") as first:
        until(
            lambda: client.connection.execute(
                "select 1 from pg_stat_activity where state like 'idle in tr%'"
                " and query like 'insert into ledger%' and datname = current_database()"
                " and exists (select from ledger)"
            ).fetchone(),
            "the second step",
        )
        first.kill()
    with worker_process(dsn, queue, "--claim-timeout", "0.6"):
        result = finished(client, queue, task.task_id)
    assert (result.state, result.failures) == ("completed", 1)
    rows = client.connection.execute("select n from ledger order by n").fetchall()
    assert rows == [(0,), (1,), (2,)]


def test_sigterm_hands_runs_back_within_the_limit(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    task = client.spawn_task(queue, "forever", max_attempts=1)
    with worker_process(dsn, queue, "--shutdown-timeout", "0.2") as worker:
        until(lambda: state(client, queue, task.task_id) == "running")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(PATIENCE) == 0
    (run,) = client.claim_task(queue)
    assert (run.task_id, run.failures) == (task.task_id, 0)


def test_a_second_signal_does_not_wait(dsn: str, client: teguh.Client, queue: str) -> None:
    task = client.spawn_task(queue, "forever")
    with worker_process(dsn, queue, "--shutdown-timeout", "600") as worker:
        until(lambda: state(client, queue, task.task_id) == "running")
        worker.send_signal(signal.SIGINT)
        assert worker.stderr is not None
        until(lambda: worker.stderr is not None and "waiting for" in worker.stderr.readline())
        worker.send_signal(signal.SIGINT)
        assert worker.wait(PATIENCE) == 0
    assert len(client.claim_task(queue)) == 1


def test_a_worker_survives_the_loss_of_all_its_connections(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    gate = Gate()
    done: list[int] = []

    @tasks.task("it")
    def handler(ctx: teguh.TaskContext) -> int:
        ctx.step("before", int)
        gate.wait()
        ctx.step("after", lambda: done.append(ctx.params))
        return int(ctx.params)

    spawned = [client.spawn_task(queue, "it", n, max_attempts=1) for n in range(3)]
    with running(dsn, queue, tasks, poll_interval=60, claim_timeout=30):
        until(lambda: gate.waiting == 3)
        assert cut_connections(client) >= 2
        gate.open(10)
        for n, task in enumerate(spawned):
            assert finished(client, queue, task.task_id).completed_payload == n
        # The listening connection is back, too: what comes next is not left to the poll.
        task = client.spawn_task(queue, "it", 3, max_attempts=1)
        assert finished(client, queue, task.task_id).completed_payload == 3
    assert sorted(done) == [0, 1, 2, 3]


def test_what_was_spawned_while_nobody_listened_is_claimed_after_the_reconnect(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    tasks.task("n")(lambda ctx: ctx.params)
    with running(dsn, queue, tasks, poll_interval=60, claim_timeout=60, ticker_interval=None):
        finished(client, queue, client.spawn_task(queue, "n").task_id)
        for _ in range(3):
            cut_connections(client)
            spawned = client.spawn_tasks(queue, [teguh.NewTask("n", n) for n in range(20)])
            for task in spawned:
                finished(client, queue, task.task_id)


def test_a_worker_under_load_loses_nothing_when_connections_are_cut(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    @tasks.task("n")
    async def handler(ctx: teguh.AsyncTaskContext) -> int:
        await ctx.step("s", int)
        if ctx.params % 7 == 0:
            await ctx.sleep_for(0.01)
        if ctx.params % 5 == 0 and ctx.failures == 0:
            raise ValueError("once")
        return int(ctx.params)

    spawned = client.spawn_tasks(
        queue, [teguh.NewTask("n", n, {"retry_strategy": AT_ONCE}) for n in range(400)]
    )
    with running(dsn, queue, tasks, concurrency=20, claim_timeout=1.5):
        for _ in range(8):
            time.sleep(0.05)
            cut_connections(client)
        for n, task in enumerate(spawned):
            assert finished(client, queue, task.task_id).completed_payload == n


class Proxy:
    """Stands between workers and the server, and can stop forwarding what listens.

    That is what a network does that forgets a connection: neither end hears of it.
    """

    def __init__(self, server_path: str, directory: str) -> None:
        self._server_path = server_path
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listening: set[socket.socket] = set()
        self._frozen: set[socket.socket] = set()
        self.listens = 0
        self._door = self._opened()
        self._door.bind(f"{directory}/.s.PGSQL.5432")
        self._door.listen()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        for opened in self._sockets:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for opened in self._sockets:
            opened.close()

    def freeze_listeners(self) -> None:
        """Forward nothing from now on, either way, on the connections that listen."""
        self._frozen |= self._listening

    def _opened(self) -> socket.socket:
        self._sockets.append(socket.socket(socket.AF_UNIX))
        return self._sockets[-1]

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._door.accept()
                self._sockets.append(client)
                server = self._opened()
                server.connect(self._server_path)
                self._start(self._forward, client, server, client)
                self._start(self._forward, server, client, client)

    def _forward(self, source: socket.socket, sink: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if b"listen " in data:
                    self._listening.add(client)
                    self.listens += 1
                if client not in self._frozen:
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)


def test_a_listening_connection_that_dies_silently_is_noticed_and_replaced(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    settings = conninfo_to_dict(dsn)
    if not str(settings.get("host", "")).startswith("/"):
        pytest.skip("needs a server on a socket")
    tasks.task("n")(lambda _: None)
    with (
        tempfile.TemporaryDirectory() as directory,
        Proxy(f"{settings['host']}/.s.PGSQL.5432", directory) as proxy,
        running(make_conninfo(dsn, host=directory), queue, tasks, poll_interval=0.2),
    ):
        finished(client, queue, client.spawn_task(queue, "n").task_id)
        until(lambda: proxy.listens == 1)
        proxy.freeze_listeners()
        # The poll goes on meanwhile ...
        finished(client, queue, client.spawn_task(queue, "n").task_id)
        # ... and a new connection listens.
        until(lambda: proxy.listens == 2, "another LISTEN")


@pytest.fixture
def own_queue(own_server: Server) -> str:
    """A queue on a server of our own; returns the connection string of a worker."""
    owner_dsn = own_server.create_database("shop", owner=OWNER)
    teguh.install(owner_dsn)
    let_in(owner_dsn)
    with teguh.Client.connect(owner_dsn) as owner:
        owner.create_queue("jobs")
    return own_server.dsn("shop", WORKER)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_worker_survives_a_server_restart(
    own_server: Server, own_queue: str, tasks: teguh.Registry, how: str
) -> None:
    gate = Gate()

    @tasks.task("it")
    def handler(ctx: teguh.TaskContext) -> str:
        ctx.step("before", int)
        gate.wait()
        ctx.step("after", int)
        return "done"

    with teguh.Client.connect(own_queue) as client:
        task = client.spawn_task("jobs", "it", max_attempts=1)
    with running(own_queue, "jobs", tasks, poll_interval=60, claim_timeout=60):
        until(lambda: gate.waiting == 1)
        own_server.stop() if how == "stop" else own_server.kill()
        gate.open(10)
        time.sleep(0.2)
        own_server.start()
        with teguh.Client.connect(own_queue) as client:
            assert finished(client, "jobs", task.task_id).completed_payload == "done"
            later = client.spawn_task("jobs", "it", max_attempts=1)
            assert finished(client, "jobs", later.task_id).completed_payload == "done"


def test_stopping_ends_although_the_server_is_gone(
    own_server: Server, own_queue: str, tasks: teguh.Registry
) -> None:
    gate = Gate()
    tasks.task("it")(lambda _: gate.wait())
    with running(own_queue, "jobs", tasks, shutdown_timeout=0.1):
        with teguh.Client.connect(own_queue) as client:
            client.spawn_task("jobs", "it")
        until(lambda: gate.waiting)
        own_server.stop()
        began = time.monotonic()
    assert time.monotonic() - began < 15
    gate.open()


def test_poll_only_mode_works_behind_pgbouncer_in_transaction_mode(
    dsn: str, bouncer_home: Path, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    client.connection.execute(LEDGER)

    def pay(db: psycopg.Connection[Any], n: int) -> int:
        db.execute("insert into ledger values (%s)", (n,))
        return n

    @tasks.task("it")
    def handler(ctx: teguh.TaskContext) -> int:
        n = ctx.step("n", lambda: int(ctx.params))
        ctx.transaction("pay", pay, n)
        ctx.sleep_for(0.01)
        return n

    spawned = client.spawn_tasks(queue, [teguh.NewTask("it", n) for n in range(60)])
    options: teguh.WorkerOptions = {"listen": False, "poll_interval": 0.05}
    pooled = through(bouncer_home, dsn)
    with running(pooled, queue, tasks, **options), running(pooled, queue, tasks, **options):
        for n, task in enumerate(spawned):
            assert finished(client, queue, task.task_id).completed_payload == n
    rows = client.connection.execute("select n from ledger order by n").fetchall()
    assert rows == [(n,) for n in range(60)]


def test_threads_of_the_worker_end_with_it(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    tasks.task("n")(lambda ctx: ctx.step("s", int))
    with running(dsn, queue, tasks):
        for _ in range(5):
            finished(client, queue, client.spawn_task(queue, "n").task_id)
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("teguh-")])
