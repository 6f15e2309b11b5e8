"""What workers count and show, and how they say that they are not well."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from psycopg.conninfo import make_conninfo

import teguh
from teguh._worker.meter import Meter
from teguh.metrics import OUTCOMES, Metrics
from teguh.worker import _settings
from tests.python.support import Gate, finished, lose_lease, running, until

if TYPE_CHECKING:
    from collections.abc import Iterator

AT_ONCE: teguh.RetryStrategy = {"kind": "none"}


@pytest.fixture
def metrics() -> Metrics:
    """Metrics with a registry of their own."""
    return Metrics()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that lets everybody through when the test is over."""
    gate = Gate()
    yield gate
    gate.open(1000)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """A sample of the worker's metrics, by its labels."""
    return metrics.registry.get_sample_value(f"teguh_worker_{name}", {"queue": "jobs", **labels})


def ended(metrics: Metrics, task_name: str) -> dict[str, float]:
    """How often runs of a task have ended, by how; without what has not happened."""
    found = {
        outcome: value(metrics, "runs_ended_total", task_name=task_name, outcome=outcome)
        for outcome in OUTCOMES
    }
    return {outcome: number for outcome, number in found.items() if number}


def get(address: str, path: str, method: str = "GET") -> tuple[int, str, str]:
    """The status, content type and text of an answer."""
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_every_way_in_which_a_run_ends_is_counted(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry, metrics: Metrics, kind: str
) -> None:
    def register(name: str, handler: Any) -> None:
        async def async_handler(ctx: teguh.AsyncTaskContext) -> object:
            result = handler(ctx)
            return await result if asyncio.iscoroutine(result) else result

        tasks.task(name)(handler if kind == "sync" else async_handler)

    register("completes", lambda _: 1)
    register("fails", lambda _: 1 / 0)
    register("cannot store", lambda _: object())
    register("sleeps", lambda ctx: ctx.sleep_for(0.001))
    names = ["completes", "fails", "cannot store", "sleeps"]
    with running(dsn, queue, tasks, metrics=metrics):
        for name in names:
            task = client.spawn_task(queue, name, max_attempts=2, retry_strategy=AT_ONCE)
            finished(client, queue, task.task_id)
        until(lambda: ended(metrics, "sleeps") == {"suspended": 1, "completed": 1})
    assert ended(metrics, "completes") == {"completed": 1}
    assert ended(metrics, "fails") == {"failed": 2}
    assert ended(metrics, "cannot store") == {"failed": 2}
    for name in names:
        claimed = value(metrics, "runs_claimed_total", task_name=name)
        assert claimed == sum(ended(metrics, name).values())
        assert value(metrics, "handler_seconds_count", task_name=name) == claimed
    assert (value(metrics, "claim_seconds_count") or 0) >= len(names)


def test_a_run_that_is_lost_or_cancelled_is_counted_as_lost(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    metrics: Metrics,
    gate: Gate,
) -> None:
    @tasks.task("lost")
    def lost(ctx: teguh.TaskContext) -> None:
        gate.wait()
        ctx.step("n", int)

    tasks.task("late")(lambda _: gate.wait())
    with running(dsn, queue, tasks, metrics=metrics):
        taken = client.spawn_task(queue, "late", max_attempts=1)
        cancelled = client.spawn_task(queue, "lost")
        until(lambda: gate.waiting == 2)
        assert value(metrics, "handlers_running") == 2
        assert value(metrics, "slots_free") == 8
        lose_lease(client, queue, taken.run_id)
        client.cancel_task(queue, cancelled.task_id)
        gate.open(2)
        until(lambda: ended(metrics, "late") == ended(metrics, "lost") == {"lost": 1})


def test_what_is_handed_back_is_counted_as_released(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    metrics: Metrics,
    gate: Gate,
) -> None:
    tasks.task("waits")(lambda _: gate.wait())

    @tasks.task("waits, async")
    async def waits(ctx: teguh.AsyncTaskContext) -> None:
        await asyncio.sleep(600)

    with running(dsn, queue, tasks, metrics=metrics, shutdown_timeout=0):
        for name in ("waits", "waits, async", "unknown"):
            client.spawn_task(queue, name)
        until(lambda: value(metrics, "handlers_running") == 2 and ended(metrics, ""))
    assert ended(metrics, "waits") == ended(metrics, "waits, async") == {"released": 1}
    assert ended(metrics, "") == {"released": 1}


def test_a_handler_for_every_name_has_one_label(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry, metrics: Metrics
) -> None:
    tasks.task("*")(lambda _: None)
    with running(dsn, queue, tasks, metrics=metrics):
        for n in range(3):
            finished(client, queue, client.spawn_task(queue, f"task {n}").task_id)
        until(lambda: ended(metrics, "*") == {"completed": 3})


def test_wake_ups_are_counted_by_their_reason(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry, metrics: Metrics
) -> None:
    tasks.task("n")(lambda _: None)
    with running(dsn, queue, tasks, metrics=metrics, poll_interval=60, claim_timeout=60):
        until(lambda: value(metrics, "wake_ups_total", reason="notification"))  # it listens
        before = value(metrics, "wake_ups_total", reason="notification") or 0
        finished(client, queue, client.spawn_task(queue, "n").task_id)
        # A claim that is under way may be faster than the notification.
        until(lambda: (value(metrics, "wake_ups_total", reason="notification") or 0) > before)
        finished(client, queue, client.spawn_task(queue, "n", delay_seconds=0.2).task_id)
        assert value(metrics, "wake_ups_total", reason="time")


def test_workers_of_one_queue_that_share_metrics_are_added_up(
    dsn: str, queue: str, tasks: teguh.Registry, metrics: Metrics
) -> None:
    with running(dsn, queue, tasks, metrics=metrics, concurrency=3):
        until(lambda: metrics.health()["status"] == "ok")
        with running(dsn, queue, tasks, metrics=metrics, concurrency=4):
            until(lambda: value(metrics, "slots_free") == 7 and value(metrics, "database_up"))
            assert abs((value(metrics, "last_contact_timestamp_seconds") or 0) - time.time()) < 60
        assert value(metrics, "slots_free") == 3
    assert value(metrics, "slots_free") is None
    assert metrics.health() == {"status": "failing", "problems": ["no worker runs"]}


def test_lost_connections_and_heartbeats_are_counted(
    dsn: str,
    owner_dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    metrics: Metrics,
    gate: Gate,
) -> None:
    tasks.task("wait")(lambda _: gate.wait())
    named = make_conninfo(dsn, application_name="metered")
    with (
        running(named, queue, tasks, metrics=metrics, claim_timeout=1.5, heartbeat=0.05),
        psycopg.connect(owner_dsn, autocommit=True) as owner,
    ):
        client.spawn_task(queue, "wait")
        until(lambda: gate.waiting)
        sessions = "from pg_stat_activity where application_name = 'metered'"

        def number() -> int:
            return len(owner.execute(f"select {sessions}").fetchall())

        until(lambda: number() >= 3)  # it claims, listens, and renews leases
        assert value(metrics, "reconnects_total") == 0
        assert value(metrics, "heartbeat_failures_total") == 0
        with psycopg.connect(dsn, autocommit=True) as killer:
            killer.execute(
                f"select pg_terminate_backend(pid) {sessions} and pid <> pg_backend_pid()"
            )
        until(lambda: value(metrics, "heartbeat_failures_total"))
        until(lambda: (value(metrics, "reconnects_total") or 0) >= 2)
        until(lambda: value(metrics, "database_up"))


def test_metrics_and_health_are_served_while_the_worker_runs(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks.task("n")(lambda _: None)
    caplog.set_level("INFO")
    with running(dsn, queue, tasks, metrics="127.0.0.1:0"):
        finished(client, queue, client.spawn_task(queue, "n").task_id)
        (said,) = [m for m in caplog.messages if m.startswith("serving metrics at")]
        address = said.removeprefix("serving metrics at http://").removesuffix("/metrics")
        status, kind, text = get(address, "/metrics")
        assert status == 200
        assert kind.startswith("text/plain; version=")
        assert 'teguh_worker_runs_claimed_total{queue="jobs",task_name="n"} 1.0\n' in text
        status, kind, text = get(address, "/health")
        assert (status, json.loads(text)) == (200, {"status": "ok", "problems": []})
        assert kind == "application/json; charset=utf-8"
        assert get(address, "/")[0] == 404
        assert get(address, "/metrics", "POST")[0] == 405
    with pytest.raises(ConnectionRefusedError):
        get(address, "/health")


def test_metrics_are_served_by_ipv6(metrics: Metrics) -> None:
    with metrics.serve("[::1]:0") as address:
        assert address.startswith("[::1]:")
        assert get(address, "/health")[0] == 503


def test_a_client_that_sends_nothing_keeps_nobody_waiting(metrics: Metrics) -> None:
    with metrics.serve("127.0.0.1:0") as address:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port))):
            assert get(address, "/metrics")[0] == 200


@pytest.mark.parametrize(
    "address", ["9464", "localhost", "localhost:", ":9464", "localhost:65536", "localhost:-1", ""]
)
def test_what_is_no_address_is_refused(dsn: str, tasks: teguh.Registry, address: str) -> None:
    with pytest.raises(teguh.ConfigurationError, match="HOST:PORT"):
        teguh.Worker(dsn, "jobs", tasks, metrics=address)


def test_what_is_neither_metrics_nor_an_address_is_refused(dsn: str, tasks: teguh.Registry) -> None:
    with pytest.raises(teguh.ConfigurationError, match="not 9464"):
        teguh.Worker(dsn, "jobs", tasks, metrics=9464)  # type: ignore[arg-type]


def test_an_address_that_is_taken_ends_the_worker_before_it_claims(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry, metrics: Metrics
) -> None:
    client.spawn_task(queue, "n")
    tasks.task("n")(lambda _: None)
    with (
        metrics.serve("127.0.0.1:0") as address,
        pytest.raises(teguh.ConfigurationError, match="cannot be served at"),
    ):
        teguh.Worker(dsn, queue, tasks, metrics=address).run()
    assert client.queue_stats(queue)[0].pending == 1


def test_a_registry_of_the_program_shows_workers_beside_its_own(
    dsn: str, queue: str, tasks: teguh.Registry
) -> None:
    registry = CollectorRegistry(auto_describe=True)
    metrics = Metrics(registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics(registry)
    with running(dsn, queue, tasks, metrics=metrics):
        until(lambda: b'database_up{queue="jobs"} 1.0' in generate_latest(registry))
    assert metrics.render() == generate_latest(registry).decode()


def test_a_blocked_event_loop_is_not_well(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry, metrics: Metrics,
    gate: Gate, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("teguh._worker.meter._BLOCKED_SECONDS", 0.2)
    monkeypatch.setattr("teguh._worker.meter._BEAT_SECONDS", 0.01)

    @tasks.task("blocks")
    async def blocks(ctx: teguh.AsyncTaskContext) -> None:
        gate.wait()

    with running(dsn, queue, tasks, metrics=metrics):
        client.spawn_task(queue, "blocks")
        until(lambda: gate.waiting)
        until(lambda: "blocked the event loop" in "".join(metrics.health()["problems"]))
        gate.open()
        until(lambda: metrics.health()["status"] == "ok")


def test_a_worker_that_has_not_heard_from_the_database_lately_is_not_well(
    tasks: teguh.Registry, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    meter = Meter(metrics, "jobs", tasks, _settings({}))

    async def start() -> None:
        meter.start(int)
        meter.heard()

    metrics.add(meter, [])
    assert metrics.health()["problems"] == ["queue jobs: the database has not answered yet"]
    metrics.remove(meter)
    asyncio.run(start())
    assert metrics.health()["status"] == "ok"
    now[0] += meter.patience
    meter._beat_at = now[0]
    assert metrics.health()["status"] == "ok"
    now[0] += 1
    meter._beat_at = now[0]
    assert metrics.health() == {
        "status": "failing",
        "problems": [f"queue jobs: the database has not answered for {meter.patience + 1:.0f} s"],
    }
    meter.heard()
    assert metrics.health()["status"] == "ok"


def test_the_database_is_up_when_it_refuses_and_down_when_it_does_not_answer(
    tasks: teguh.Registry, metrics: Metrics
) -> None:
    meter = Meter(metrics, "jobs", tasks, _settings({}))
    metrics.add(meter, [])
    assert value(metrics, "database_up") == 0
    assert value(metrics, "last_contact_timestamp_seconds") == 0
    for error, up in (
        (psycopg.errors.DeadlockDetected(), 1),
        (psycopg.OperationalError("connection refused"), 0),
        (psycopg.errors.InsufficientPrivilege(), 1),
        (psycopg.errors.AdminShutdown(), 0),
    ):
        meter.unheard(error)
        assert value(metrics, "database_up") == up
    assert value(metrics, "last_contact_timestamp_seconds")


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({}, 30),  # it ticks every 10 s, and renews leases after 15 s at the latest
        ({"ticker_interval": None}, 60),  # it looks every 30 s
        ({"ticker_interval": 60.0}, 60),
        ({"ticker_interval": 1.0, "claim_timeout": 1.0}, 2),
    ],
)
def test_the_patience_is_twice_the_longest_silence(
    tasks: teguh.Registry, metrics: Metrics, options: teguh.WorkerOptions, seconds: float
) -> None:
    assert Meter(metrics, "jobs", tasks, _settings(options)).patience == seconds


def test_without_the_extra_metrics_are_refused_and_all_else_works(dsn: str, queue: str) -> None:
    source = f"""
import sys
sys.modules["prometheus_client"] = None
import teguh
tasks = teguh.Registry()
teguh.Worker({dsn!r}, {queue!r}, tasks)
try:
    teguh.Worker({dsn!r}, {queue!r}, tasks, metrics="127.0.0.1:0")
except teguh.ConfigurationError as error:
    print(error)
from teguh.cli import main
sys.exit(main(["worker", "teguh.demo.orders:tasks", "--queue", "q", "--metrics", "localhost:0"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False
    )
    assert "pip install 'teguh[metrics]'" in done.stdout
    assert "pip install 'teguh[metrics]'" in done.stderr
    assert done.returncode == 2


def test_a_worker_without_metrics_does_not_import_the_library() -> None:
    source = (
        "import sys, teguh, teguh.cli; tasks = teguh.Registry(); teguh.Worker('', 'q', tasks)"
        "; sys.exit('prometheus_client' in sys.modules or 'teguh.metrics' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0


def test_a_program_runs_its_worker_and_asks_it_how_it_is(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry, metrics: Metrics
) -> None:
    tasks.task("n")(lambda _: None)
    task = client.spawn_task(queue, "n")

    async def program() -> None:
        worker = teguh.AsyncWorker(dsn, queue, tasks, metrics=metrics)
        work = asyncio.create_task(worker.run())
        await asyncio.to_thread(until, lambda: ended(metrics, "n") == {"completed": 1})
        assert metrics.health()["status"] == "ok"
        worker.stop()
        await work

    asyncio.run(program())
    assert client.get_task_result(queue, task.task_id).state == "completed"
