"""The worker: claiming, waking, leases, outcomes, stopping."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import teguh
from teguh._connect import open_async, open_sync
from tests.python.support import Gate, finished, lose_lease, running, state, until

if TYPE_CHECKING:
    from collections.abc import Iterator

AT_ONCE: teguh.RetryStrategy = {"kind": "none"}


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that lets everybody through when the test is over."""
    gate = Gate()
    yield gate
    gate.open(1000)


def test_claims_take_exactly_the_free_slots_and_at_once(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry, gate: Gate
) -> None:
    tasks.task("wait")(lambda _: gate.wait())
    spawned = [client.spawn_task(queue, "wait").task_id for _ in range(5)]

    def running_now() -> int:
        return [state(client, queue, task) for task in spawned].count("running")

    with running(dsn, queue, tasks, concurrency=3):
        until(lambda: gate.waiting == 3)
        assert running_now() == 3
        assert gate.entered == 3
        gate.open()  # one slot: the fourth is claimed while two of the batch still run
        until(lambda: gate.entered == 4)
        assert gate.waiting == 3
        until(lambda: running_now() == 3)
        gate.open(5)
        for task in spawned:
            finished(client, queue, task)


def test_a_claim_takes_no_more_than_the_batch_size(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    tasks.task("n")(lambda ctx: ctx.params)
    spawned = client.spawn_tasks(queue, [teguh.NewTask("n", n) for n in range(30)])
    with running(dsn, queue, tasks, concurrency=10, batch_size=2):
        for n, task in enumerate(spawned):
            assert finished(client, queue, task.task_id).completed_payload == n


def test_an_idle_worker_is_woken_by_a_notification(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    tasks.task("n")(lambda ctx: ctx.params)
    with running(dsn, queue, tasks, poll_interval=60, claim_timeout=60):
        finished(client, queue, client.spawn_task(queue, "n").task_id)
        for _ in range(20):
            before = time.monotonic()
            finished(client, queue, client.spawn_task(queue, "n").task_id)
            assert time.monotonic() - before < 5


def test_a_burst_of_spawns_leaves_no_task_behind(
    dsn: str, client_dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    tasks.task("n")(lambda ctx: ctx.params)
    spawned: list[Any] = []

    def spawn() -> None:
        with teguh.Client.connect(client_dsn) as spawner:
            spawned.extend(spawner.spawn_task(queue, "n").task_id for _ in range(40))

    with running(dsn, queue, tasks, poll_interval=60, claim_timeout=60):
        threads = [threading.Thread(target=spawn) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for task_id in spawned:
            finished(client, queue, task_id)


@pytest.mark.parametrize("handler", ["sleeps", "fails", "awaits", "spawns later"])
def test_a_worker_wakes_at_the_exact_next_due_time(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry, handler: str
) -> None:
    @tasks.task("sleeps")
    async def sleeps(ctx: teguh.AsyncTaskContext) -> None:
        await ctx.sleep_for(0.3)

    @tasks.task("fails")
    async def fails(ctx: teguh.AsyncTaskContext) -> None:
        if ctx.failures == 0:
            raise ValueError("once")

    @tasks.task("awaits")
    async def awaits(ctx: teguh.AsyncTaskContext) -> None:
        with pytest.raises(teguh.EventTimeout):
            await ctx.await_event("never", timeout=0.3)

    @tasks.task("spawns later")
    async def spawns(ctx: teguh.AsyncTaskContext) -> None:
        if ctx.params is None:
            await ctx.spawn("spawns later", {"due": True}, delay_seconds=0.3)

    with running(dsn, queue, tasks, poll_interval=60, claim_timeout=60, ticker_interval=None):
        until(
            lambda: client.connection.execute(
                "select 1 from pg_stat_activity where query ilike 'listen%'"
            ).fetchone()
        )
        began = time.monotonic()
        client.spawn_task(
            queue, handler, retry_strategy={"kind": "fixed", "base_seconds": 0.3, "jitter": 0}
        )

        def all_ended() -> bool:
            row = client.connection.execute(
                "select count(*) filter (where finished_at is null), count(*) from teguh.t_jobs"
            ).fetchone()
            return row is not None and row == (0, 2 if handler == "spawns later" else 1)

        until(all_ended)
        assert 0.3 <= time.monotonic() - began < 2


def test_a_delayed_task_starts_on_time_when_it_is_there_at_the_start(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    tasks.task("n")(lambda _: None)
    task = client.spawn_task(queue, "n", delay_seconds=0.4)
    began = time.monotonic()
    with running(dsn, queue, tasks, poll_interval=60, claim_timeout=60, ticker_interval=None):
        finished(client, queue, task.task_id)
        assert time.monotonic() - began < 3


def test_a_delayed_task_starts_on_time_when_the_worker_already_waits(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    tasks.task("n")(lambda _: None)
    with running(dsn, queue, tasks, poll_interval=60, claim_timeout=60, ticker_interval=None):
        finished(client, queue, client.spawn_task(queue, "n").task_id)
        began = time.monotonic()
        finished(client, queue, client.spawn_task(queue, "n", delay_seconds=0.4).task_id)
        assert 0.4 <= time.monotonic() - began < 3


def test_an_idle_worker_sends_less_than_one_statement_a_second(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    tasks.task("n")(lambda _: None)
    with running(dsn, queue, tasks):
        finished(client, queue, client.spawn_task(queue, "n").task_id)

        def idle() -> bool:  # the last statement of every connection is some time ago
            row = client.connection.execute(
                "select min(clock_timestamp() - state_change) > interval '2 seconds',"
                " count(*) from pg_stat_activity"
                " where application_name like 'teguh %' and datname = current_database()"
            ).fetchone()
            assert row is not None
            return bool(row[0]) and row[1] >= 2

        until(idle, "two seconds without a statement")


def test_a_worker_that_takes_only_what_it_knows_leaves_the_rest_untouched(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    tasks.task("old")(lambda ctx: ctx.params)
    newer = teguh.Registry()
    newer.task("new")(lambda ctx: ctx.params)
    unknown = [client.spawn_task(queue, "new", n).task_id for n in range(20)]
    with running(dsn, queue, tasks, known_only=True, concurrency=2):
        for n in range(10):
            task = client.spawn_task(queue, "old", n)
            assert finished(client, queue, task.task_id).completed_payload == n
        assert {client.get_task_result(queue, task).attempts for task in unknown} == {0}
        (stats,) = client.queue_stats(queue)
        assert (stats.pending, stats.unclaimable) == (20, 20)
        with running(dsn, queue, newer, known_only=True, worker_id="newer"):
            for n, task_id in enumerate(unknown):
                result = finished(client, queue, task_id)
                assert (result.completed_payload, result.attempts) == (n, 1)


def test_a_registry_that_cannot_be_claimed_by_name_is_refused(
    dsn: str, queue: str, tasks: teguh.Registry
) -> None:
    with pytest.raises(teguh.ConfigurationError, match="a registry with tasks"):
        teguh.Worker(dsn, queue, tasks, known_only=True).run()
    tasks.task("*")(lambda _: None)
    with pytest.raises(teguh.ConfigurationError, match="known_only does not go with"):
        teguh.Worker(dsn, queue, tasks, known_only=True).run()


def test_poll_only_mode_needs_no_session(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    heard: list[str] = []

    @tasks.task("n")
    def handler(ctx: teguh.TaskContext) -> None:
        ctx.step("s", int)
        rows = client_of(dsn)(
            "select query from pg_stat_activity where application_name like 'teguh %'"
            " and datname = current_database()"
        )
        heard.extend(query for (query,) in rows)

    client.create_queue(queue, notify="off")
    with running(dsn, queue, tasks, listen=False, poll_interval=0.05):
        for _ in range(10):
            finished(client, queue, client.spawn_task(queue, "n").task_id)
    assert heard
    assert not [query for query in heard if "listen" in query.lower()]


def client_of(dsn: str) -> Any:
    """Return a function that executes a query on a connection of its own."""

    def execute(query: str) -> list[Any]:
        with psycopg.connect(dsn) as connection:
            return connection.execute(query.encode()).fetchall()

    return execute


def test_poll_only_mode_prepares_no_statement(dsn: str) -> None:
    with open_sync(dsn, prepare=False) as connection:
        for _ in range(20):
            connection.execute("select %s", (1,))
        row = connection.execute("select count(*) from pg_prepared_statements").fetchone()
        assert row == (0,)

    async def count() -> Any:
        async with await open_async(dsn, prepare=False) as connection:
            for _ in range(20):
                await connection.execute("select %s", (1,))
            cursor = await connection.execute("select count(*) from pg_prepared_statements")
            return await cursor.fetchone()

    assert asyncio.run(count()) == (0,)


def test_runs_that_end_together_are_completed_together(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    tasks.task("n")(lambda ctx: ctx.params)
    spawned = client.spawn_tasks(queue, [teguh.NewTask("n", n) for n in range(1000)])
    with running(dsn, queue, tasks, concurrency=200):
        finished(client, queue, spawned[-1].task_id)
        for n, task in enumerate(spawned):
            assert finished(client, queue, task.task_id).completed_payload == n
    row = client.connection.execute(
        "select count(distinct finished_at), count(distinct started_at) from teguh.t_jobs"
    ).fetchone()
    assert row is not None
    ends, starts = row
    assert ends < 200, "the statements that completed 1000 runs"
    assert starts < 200, "the statements that claimed them"


def test_a_lost_lease_cancels_an_async_handler_and_discards_its_result(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    cancelled: list[int] = []

    @tasks.task("it")
    async def handler(ctx: teguh.AsyncTaskContext) -> str:
        if ctx.failures == 0:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(ctx.attempt)
                return "from the lost run"
        return "from the second run"

    task = client.spawn_task(queue, "it", retry_strategy=AT_ONCE)
    with running(dsn, queue, tasks, claim_timeout=1.5, heartbeat=0.1):
        until(lambda: state(client, queue, task.task_id) == "running")
        lose_lease(client, queue, task.run_id)
        result = finished(client, queue, task.task_id)
        until(lambda: cancelled == [1])
    assert (result.completed_payload, result.failures) == ("from the second run", 1)


def test_a_handler_is_stopped_when_the_timeout_of_its_run_is_over(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    cancelled: list[int] = []

    @tasks.task("it")
    async def handler(ctx: teguh.AsyncTaskContext) -> str:
        if ctx.failures == 0:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(ctx.attempt)
                raise
        return "in time"

    task = client.spawn_task(queue, "it", timeout_seconds=0.3, retry_strategy=AT_ONCE)
    with running(dsn, queue, tasks):  # the heartbeat of 10 s would come too late
        result = finished(client, queue, task.task_id)
        until(lambda: cancelled == [1])
    assert (result.completed_payload, result.failures) == ("in time", 1)


def test_a_lost_lease_stops_a_sync_handler_at_its_next_call(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    stopped: list[str] = []

    @tasks.task("it")
    def handler(ctx: teguh.TaskContext) -> str:
        if ctx.failures == 0:
            try:
                while True:
                    ctx.check()
                    time.sleep(0.01)
            except teguh.Abandoned:
                stopped.append("check")
            try:
                ctx.step("more", lambda: stopped.append("this must not run"))
            except teguh.Abandoned:
                stopped.append("step")
            return "from the lost run"
        return "from the second run"

    task = client.spawn_task(queue, "it", retry_strategy=AT_ONCE)
    with running(dsn, queue, tasks, claim_timeout=1.5, heartbeat=0.1):
        until(lambda: state(client, queue, task.task_id) == "running")
        lose_lease(client, queue, task.run_id)
        result = finished(client, queue, task.task_id)
        until(lambda: len(stopped) == 2)
    assert result.completed_payload == "from the second run"
    assert stopped == ["check", "step"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_cancelled_task_stops_its_handler(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry, kind: str
) -> None:
    ended: list[str] = []

    @tasks.task("async")
    async def waits(_: teguh.AsyncTaskContext) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("async")

    @tasks.task("sync")
    def loops(ctx: teguh.TaskContext) -> None:
        try:
            while True:
                ctx.step("again", int)
                time.sleep(0.01)
        finally:
            ended.append("sync")

    task = client.spawn_task(queue, kind)
    with running(dsn, queue, tasks, claim_timeout=1.5, heartbeat=0.1):
        until(lambda: state(client, queue, task.task_id) == "running")
        client.cancel_task(queue, task.task_id)
        until(lambda: ended == [kind])
    assert state(client, queue, task.task_id) == "cancelled"


def test_leases_are_renewed_while_a_handler_blocks_the_event_loop(
    dsn: str, owner_dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    @tasks.task("it")
    async def blocks(_: teguh.AsyncTaskContext) -> int:
        with psycopg.connect(owner_dsn, autocommit=True) as owner:

            def lease() -> Any:
                return owner.execute("select lease_expires_at from teguh.t_jobs").fetchone()

            seen = set()

            def renewed() -> bool:
                seen.add(lease())
                return len(seen) == 4

            until(renewed, "three renewals")
            return len(seen)

    task = client.spawn_task(queue, "it", max_attempts=1)
    with running(dsn, queue, tasks, claim_timeout=1, heartbeat=0.1):
        assert finished(client, queue, task.task_id).completed_payload == 4


def test_a_handler_outlives_its_lease_many_times(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    @tasks.task("it")
    def long(_: teguh.TaskContext) -> str:
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            time.sleep(0.02)
        return "done"

    task = client.spawn_task(queue, "it", max_attempts=1)
    with running(dsn, queue, tasks, claim_timeout=0.5, heartbeat=0.1):
        until(lambda: state(client, queue, task.task_id) == "running")
        while not (result := client.get_task_result(queue, task.task_id)).finished_at:
            client.ticker(queue)
            assert client.claim_task(queue, "thief") == []
    assert result.completed_payload == "done"


@pytest.mark.parametrize(
    "options",
    [
        {"heartbeat": 11.0},
        {"claim_timeout": 9.0, "heartbeat": 3.1},
        {"concurrency": 0},
        {"batch_size": 0},
        {"claim_timeout": 0.0},
        {"poll_interval": 0.0},
        {"ticker_interval": 0.0},
        {"shutdown_timeout": -1.0},
        {"pol_interval": 1.0},
    ],
)
def test_options_that_contradict_each_other_are_refused_at_the_start(
    tasks: teguh.Registry, options: Any
) -> None:
    with pytest.raises(teguh.ConfigurationError):
        teguh.Worker("", "jobs", tasks, **options)


def test_a_registry_refuses_an_option_that_there_is_not(tasks: teguh.Registry) -> None:
    options: Any = {"max_attempt": 3}
    with pytest.raises(teguh.ConfigurationError, match="'n': no option 'max_attempt'; there are"):
        tasks.task("n", **options)
    assert tasks.names() == []


def test_a_worker_that_finds_no_database_says_nothing_else(
    tasks: teguh.Registry, caplog: pytest.LogCaptureFixture
) -> None:
    tasks.task("n")(lambda _: None)
    with pytest.raises(psycopg.OperationalError):
        teguh.Worker("host=/nowhere", "jobs", tasks).run()
    assert caplog.records == []


def test_an_unknown_name_is_handed_back_without_consuming_an_attempt(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    tasks.task("known")(lambda _: None)
    task = client.spawn_task(queue, "unknown", max_attempts=1)
    with running(dsn, queue, tasks, unknown_delay=0.1):
        finished(client, queue, client.spawn_task(queue, "known").task_id)
        until(lambda: state(client, queue, task.task_id) == "sleeping")
    later = teguh.Registry()
    later.task("unknown")(lambda ctx: ctx.failures)
    with running(dsn, queue, later):
        result = finished(client, queue, task.task_id)
    assert (result.state, result.completed_payload) == ("completed", 0)


def test_the_star_handler_takes_every_other_name(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    tasks.task("known")(lambda _: "known")
    tasks.task("*")(lambda ctx: f"star for {ctx.task_name}")
    with running(dsn, queue, tasks):
        for name, result in [("known", "known"), ("other", "star for other")]:
            task = client.spawn_task(queue, name)
            assert finished(client, queue, task.task_id).completed_payload == result


def test_a_failing_handler_is_retried_and_its_reason_kept(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    @tasks.task("it")
    async def handler(ctx: teguh.AsyncTaskContext) -> None:
        raise ValueError(f"failure {ctx.failures + 1}")

    task = client.spawn_task(queue, "it", max_attempts=3, retry_strategy=AT_ONCE)
    with running(dsn, queue, tasks):
        result = finished(client, queue, task.task_id)
    assert (result.state, result.failures) == ("failed", 3)
    assert result.failure_reason["name"] == "ValueError"
    assert result.failure_reason["message"] == "failure 3"


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_a_handler_cannot_take_the_worker_down(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    raised: type[BaseException],
) -> None:
    @tasks.task("async")
    async def handler(_: teguh.AsyncTaskContext) -> None:
        raise raised

    @tasks.task("sync")
    def sync_handler(_: teguh.TaskContext) -> None:
        raise raised

    with running(dsn, queue, tasks):
        for name in ("async", "sync"):
            task = client.spawn_task(queue, name, max_attempts=1)
            assert finished(client, queue, task.task_id).state == "failed"


def test_stopping_waits_for_handlers_and_stores_their_results(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry, gate: Gate
) -> None:
    @tasks.task("wait")
    def wait(_: teguh.TaskContext) -> str:
        gate.wait()
        return "done"

    task = client.spawn_task(queue, "wait")
    never = client.spawn_task(queue, "wait", delay_seconds=0.05)
    with running(dsn, queue, tasks, concurrency=1) as worker:
        until(lambda: gate.waiting == 1)
        worker.stop()
        time.sleep(0.1)
        gate.open()
    result = client.get_task_result(queue, task.task_id)
    assert (result.state, result.completed_payload) == ("completed", "done")
    assert gate.entered == 1, "nothing is claimed any more"
    assert state(client, queue, never.task_id) != "running"


def test_stopping_hands_back_what_does_not_end_in_time(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry, gate: Gate
) -> None:
    unwound: list[str] = []

    @tasks.task("async")
    async def forever(_: teguh.AsyncTaskContext) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            unwound.append("async")

    tasks.task("sync")(lambda _: gate.wait())
    spawned = [client.spawn_task(queue, name, max_attempts=1) for name in ("async", "sync")]
    began = time.monotonic()
    with running(dsn, queue, tasks, shutdown_timeout=0.2):
        until(lambda: [state(client, queue, t.task_id) for t in spawned] == ["running"] * 2)
    assert time.monotonic() - began < 10
    assert unwound == ["async"]
    runs = client.claim_task(queue, qty=10)
    assert {run.task_id for run in runs} == {task.task_id for task in spawned}
    assert [run.failures for run in runs] == [0, 0]


def test_stopping_at_once_does_not_wait(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    @tasks.task("it")
    async def forever(_: teguh.AsyncTaskContext) -> None:
        await asyncio.sleep(60)

    task = client.spawn_task(queue, "it")
    with running(dsn, queue, tasks, shutdown_timeout=60) as worker:
        until(lambda: state(client, queue, task.task_id) == "running")
        worker.stop(wait=False)
    assert len(client.claim_task(queue)) == 1


def test_a_worker_on_an_unknown_queue_says_so(dsn: str, tasks: teguh.Registry) -> None:
    with pytest.raises(teguh.QueueNotFound, match="nowhere"):
        teguh.Worker(dsn, "nowhere", tasks).run()


def test_a_worker_without_the_schema_says_so(empty_dsn: str, tasks: teguh.Registry) -> None:
    with pytest.raises(psycopg.errors.InvalidSchemaName):
        teguh.Worker(empty_dsn, "jobs", tasks).run()


def test_a_worker_that_cannot_connect_at_the_start_says_so(tasks: teguh.Registry) -> None:
    with pytest.raises(psycopg.OperationalError):
        teguh.Worker("host=/nonexistent", "jobs", tasks).run()


def test_an_async_worker_runs_in_a_loop_of_yours_and_ends_when_cancelled(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    ended = asyncio.Event()

    @tasks.task("it")
    async def handler(ctx: teguh.AsyncTaskContext) -> str:
        result = await ctx.step("s", lambda: "done")
        ended.set()
        return result

    task = client.spawn_task(queue, "it")

    async def main() -> None:
        worker = asyncio.create_task(teguh.AsyncWorker(dsn, queue, tasks).run())
        await asyncio.wait_for(ended.wait(), 20)
        worker.cancel()
        with pytest.raises(asyncio.CancelledError):
            await worker

    asyncio.run(main())
    result = client.get_task_result(queue, task.task_id)
    assert result.completed_payload == "done"


def test_a_stopped_worker_does_not_start(dsn: str, queue: str, tasks: teguh.Registry) -> None:
    worker = teguh.Worker(dsn, queue, tasks)
    worker.stop()
    worker.run()


def test_a_name_is_registered_once(tasks: teguh.Registry) -> None:
    tasks.task("it")(lambda _: None)
    with pytest.raises(ValueError, match="twice"):
        tasks.task("it")


def test_workers_share_a_queue_without_handing_a_run_out_twice(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    seen: list[Any] = []
    tasks.task("n")(lambda ctx: seen.append(ctx.run_id))
    spawned = client.spawn_tasks(queue, [teguh.NewTask("n") for _ in range(600)])
    with running(dsn, queue, tasks), running(dsn, queue, tasks), running(dsn, queue, tasks):
        for task in spawned:
            finished(client, queue, task.task_id)
    assert sorted(seen) == sorted(task.run_id for task in spawned)


def test_a_poll_finds_what_no_notification_told(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "teguh.worker")
    client.create_queue(queue, notify="off")
    tasks.task("n")(lambda _: None)
    with running(dsn, queue, tasks, poll_interval=0.1):
        for _ in range(3):
            finished(client, queue, client.spawn_task(queue, "n").task_id)


def test_a_worker_of_a_paused_queue_goes_on_at_once_when_it_is_resumed(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    tasks.task("n")(lambda _: None)
    client.pause_queue(queue)
    with running(dsn, queue, tasks, poll_interval=60, claim_timeout=60, ticker_interval=None):
        task_id = client.spawn_task(queue, "n").task_id
        listens = "select 1 from pg_stat_activity where query ilike 'listen%'"
        until(lambda: client.connection.execute(listens).fetchall(), "the worker's ear")
        client.resume_queue(queue)
        assert finished(client, queue, task_id).state == "completed"
