"""What a handler can do: steps, transactions, sleeps, events, spawns."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import teguh
from tests.python.support import finished, lose_lease, running, state, until

if TYPE_CHECKING:
    from collections.abc import Callable

AT_ONCE: teguh.RetryStrategy = {"kind": "none"}
Conn = psycopg.Connection[tuple[Any, ...]]


def execute(
    dsn: str,
    client: teguh.Client,
    queue: str,
    handler: Callable[[Any], Any],
    params: object = None,
    **options: Any,
) -> teguh.TaskResult:
    """Spawn one task, execute it with a worker, and return how it ended."""
    tasks = teguh.Registry()
    tasks.task("it")(handler)
    task = client.spawn_task(queue, "it", params, **{"max_attempts": 1, **options})
    with running(dsn, queue, tasks):
        return finished(client, queue, task.task_id)


def test_a_handler_sees_its_task_and_its_result_is_stored(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    def handler(ctx: teguh.TaskContext) -> dict[str, Any]:
        return {
            "queue": ctx.queue,
            "name": ctx.task_name,
            "ids": [str(ctx.task_id), str(ctx.run_id)],
            "attempt": ctx.attempt,
            "failures": ctx.failures,
            "params": ctx.params,
            "headers": ctx.headers,
            "woken": [ctx.wake_event, ctx.event_payload],
        }

    result = execute(dsn, client, queue, handler, [1, {"a": None}], headers={"trace": "x"})
    seen = result.completed_payload
    assert seen["ids"][0] == str(result.task_id)
    del seen["ids"]
    assert seen == {
        "queue": "jobs",
        "name": "it",
        "attempt": 1,
        "failures": 0,
        "params": [1, {"a": None}],
        "headers": {"trace": "x"},
        "woken": [None, None],
    }


def test_a_step_runs_once_and_is_remembered_by_the_next_run(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    calls: list[str] = []

    def handler(ctx: teguh.TaskContext) -> list[Any]:
        first = ctx.step("first", note, "first", x=5)
        if ctx.failures == 0:
            raise ValueError("not yet")
        return [first, ctx.step("second", note, "second", x=None)]

    def note(name: str, *, x: int | None) -> dict[str, Any]:
        calls.append(name)
        return {"x": x}

    result = execute(dsn, client, queue, handler, max_attempts=2, retry_strategy=AT_ONCE)
    assert result.completed_payload == [{"x": 5}, {"x": None}]
    assert calls == ["first", "second"]


def test_async_steps_may_be_sync_or_async(dsn: str, client: teguh.Client, queue: str) -> None:
    async def slow(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    async def handler(ctx: teguh.AsyncTaskContext) -> list[int]:
        both = await asyncio.gather(ctx.step("a", slow, 1), ctx.step("b", slow, 2))
        return [*both, await ctx.step("c", lambda: 4)]

    assert execute(dsn, client, queue, handler).completed_payload == [2, 3, 4]


def test_repeated_step_names_are_numbered(dsn: str, client: teguh.Client, queue: str) -> None:
    def handler(ctx: teguh.TaskContext) -> list[int]:
        items = [ctx.step("item", lambda n=n: n * 10) for n in range(3)]  # type: ignore[misc]
        if ctx.failures == 0:
            raise ValueError("again")
        return items

    result = execute(dsn, client, queue, handler, max_attempts=2, retry_strategy=AT_ONCE)
    assert result.completed_payload == [0, 10, 20]
    names = client.connection.execute(
        "select checkpoint_name from teguh.get_task_checkpoint_states(%s, %s, null)",
        (queue, result.task_id),
    ).fetchall()
    assert sorted(name for (name,) in names) == ["item", "item#2", "item#3"]


def test_a_step_returns_what_a_replay_will_return(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    seen: list[Any] = []

    def handler(ctx: teguh.TaskContext) -> None:
        seen.append(ctx.step("shape", lambda: {1: (2, 3)}))
        if ctx.failures == 0:
            raise ValueError("again")

    execute(dsn, client, queue, handler, max_attempts=2, retry_strategy=AT_ONCE)
    assert seen == [{"1": [2, 3]}, {"1": [2, 3]}]


@pytest.mark.parametrize("value", ["nul \0", {1, 2}, datetime(2030, 1, 1, tzinfo=UTC)])
def test_a_value_that_cannot_be_stored_fails_with_an_error_that_names_the_step(
    dsn: str, client: teguh.Client, queue: str, value: object
) -> None:
    result = execute(dsn, client, queue, lambda ctx: ctx.step("price", lambda: value))
    assert result.state == "failed"
    assert result.failure_reason["name"] == "NotStorable"
    assert "the result of step 'price'" in result.failure_reason["message"]


def test_a_result_that_cannot_be_stored_fails_its_run_and_no_other(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    @tasks.task("it")
    async def handler(ctx: teguh.AsyncTaskContext) -> object:
        return "nul \0" if ctx.params == 3 else ctx.params

    spawned = client.spawn_tasks(
        queue, [teguh.NewTask("it", n, {"max_attempts": 1}) for n in range(10)]
    )
    with running(dsn, queue, tasks):
        results = [finished(client, queue, task.task_id) for task in spawned]
    assert [r.state for r in results].count("completed") == 9
    assert results[3].state == "failed"
    assert "the result of task 'it' holds a NUL" in results[3].failure_reason["message"]


def test_an_error_text_with_nul_is_stored_readably(
    dsn: str, client: teguh.Client, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(_: teguh.TaskContext) -> None:
        raise ValueError("bad \0 byte \ud800")

    # The log would hold it, too, and a report that does cannot be passed on in UTF-8.
    caplog.set_level("CRITICAL", logger="teguh.worker")
    result = execute(dsn, client, queue, handler)
    assert result.state == "failed"
    assert result.failure_reason["message"] == "bad \ufffd byte \\ud800"
    assert "ValueError" in result.failure_reason["traceback"]


def test_a_transaction_step_commits_with_its_checkpoint_or_not_at_all(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    client.connection.execute("create table ledger (what text)")

    def write(db: Conn, what: str, fail: bool) -> str:
        db.execute("insert into ledger values (%s)", (what,))
        if fail:
            raise ValueError("after the write")
        return what

    def handler(ctx: teguh.TaskContext) -> str:
        return ctx.transaction("pay", write, "paid", ctx.failures < 2)

    result = execute(dsn, client, queue, handler, max_attempts=5, retry_strategy=AT_ONCE)
    assert (result.state, result.failures, result.completed_payload) == ("completed", 2, "paid")
    assert client.connection.execute("select what from ledger").fetchall() == [("paid",)]


def test_an_async_transaction_step_does_the_same(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    client.connection.execute("create table ledger (what text)")

    async def write(db: psycopg.AsyncConnection[Any], fail: bool) -> None:
        await db.execute("insert into ledger values ('paid')")
        if fail:
            raise ValueError("after the write")

    async def handler(ctx: teguh.AsyncTaskContext) -> None:
        await ctx.transaction("pay", write, ctx.failures == 0)
        if ctx.failures == 1:
            raise ValueError("after the commit")

    result = execute(dsn, client, queue, handler, max_attempts=5, retry_strategy=AT_ONCE)
    assert (result.state, result.failures) == ("completed", 2)
    assert client.connection.execute("select what from ledger").fetchall() == [("paid",)]


def test_a_run_lost_during_a_transaction_step_takes_its_writes_down(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    client.connection.execute("create table ledger (what text)")

    def write(db: Conn, ctx: teguh.TaskContext) -> None:
        db.execute("insert into ledger values (%s)", (str(ctx.failures),))
        if ctx.failures == 0:
            with teguh.Client.connect(dsn) as thief:
                lose_lease(thief, queue, ctx.run_id)

    def handler(ctx: teguh.TaskContext) -> None:
        ctx.transaction("pay", write, ctx)

    result = execute(dsn, client, queue, handler, max_attempts=2, retry_strategy=AT_ONCE)
    assert result.state == "completed"
    assert client.connection.execute("select what from ledger").fetchall() == [("1",)]


def test_transaction_steps_of_threads_never_share_a_connection(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    meet = threading.Barrier(3, timeout=20)

    def backend(db: Conn) -> int:
        meet.wait()
        row = db.execute("select pg_backend_pid()").fetchone()
        meet.wait()
        assert row is not None
        return int(row[0])

    @tasks.task("it")
    def handler(ctx: teguh.TaskContext) -> int:
        return ctx.transaction("who", backend)

    spawned = [client.spawn_task(queue, "it", max_attempts=1) for _ in range(3)]
    with running(dsn, queue, tasks):
        pids = [finished(client, queue, task.task_id).completed_payload for task in spawned]
    assert len(set(pids)) == 3
    assert None not in pids


def test_a_sleep_wakes_on_time_and_is_not_slept_twice(
    dsn: str, client_dsn: str, client: teguh.Client, queue: str
) -> None:
    runs: list[tuple[int, Any]] = []

    def handler(ctx: teguh.TaskContext) -> list[str]:
        runs.append((ctx.attempt, ctx.run_id))
        times = [ctx.step("before", lambda: str(client_time()))]
        ctx.sleep_for(0.3)
        times.append(ctx.step("between", lambda: str(client_time())))
        ctx.sleep_for(0.2)
        times.append(ctx.step("after", lambda: str(client_time())))
        if ctx.failures == 0:
            raise ValueError("replay all of it")
        return times

    def client_time() -> datetime:
        with teguh.Client.connect(client_dsn) as clock:
            return clock.current_time()

    result = execute(dsn, client, queue, handler, max_attempts=2, retry_strategy=AT_ONCE)
    before, between, after = map(datetime.fromisoformat, result.completed_payload)
    assert timedelta(seconds=0.3) <= between - before < timedelta(seconds=2)
    assert timedelta(seconds=0.2) <= after - between < timedelta(seconds=2)
    assert [attempt for attempt, _ in runs] == [1, 2, 3, 4], "two sleeps, one failure"
    assert len({run for _, run in runs}) == 2, "a run keeps its id across sleeps"


def test_a_replay_before_the_wake_time_sleeps_on(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    @tasks.task("it")
    async def handler(ctx: teguh.AsyncTaskContext) -> None:
        await ctx.sleep_for(7200, "nap")

    # Given a run that has stored its wake time, and lost its worker before it slept
    task = client.spawn_task(queue, "it")
    (run,) = client.claim_task(queue)
    wake_at = client.current_time() + timedelta(hours=1)
    client.set_task_checkpoint_state(queue, task.task_id, "nap", wake_at.isoformat(), run.run_id)
    client.release_run(queue, run.run_id)

    with running(dsn, queue, tasks):
        until(lambda: state(client, queue, task.task_id) == "sleeping")
    assert client.next_due(queue) == wake_at


def test_an_event_resumes_with_its_payload_whenever_it_came(
    dsn: str, client_dsn: str, owner_dsn: str, client: teguh.Client, queue: str
) -> None:
    client.emit_event(queue, "early", [1])

    def handler(ctx: teguh.TaskContext) -> list[Any]:
        early = ctx.await_event("early")
        ctx.emit_event("asked", {"for": "late"})
        late = ctx.await_event("late", timeout=30)
        if ctx.failures == 0:
            raise ValueError("replay")
        return [early, late]

    def answer() -> None:
        with psycopg.connect(owner_dsn, autocommit=True) as owner:
            until(lambda: owner.execute("select 1 from teguh.w_jobs").fetchone())
        with teguh.Client.connect(client_dsn) as other:
            other.emit_event(queue, "late", {"x": 2})
            other.emit_event(queue, "late", "the first one counts")

    thread = threading.Thread(target=answer)
    thread.start()
    result = execute(dsn, client, queue, handler, max_attempts=2, retry_strategy=AT_ONCE)
    thread.join()
    assert result.completed_payload == [[1], {"x": 2}]


def test_an_event_with_null_payload_is_no_timeout(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    client.emit_event(queue, "nothing", None)
    result = execute(dsn, client, queue, lambda ctx: [ctx.await_event("nothing", timeout=5)])
    assert result.completed_payload == [None]


def test_an_event_that_does_not_come_times_out_and_a_replay_meets_the_same(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    outcomes: list[str] = []

    def handler(ctx: teguh.TaskContext) -> str:
        try:
            ctx.await_event("never", timeout=0.1)
        except teguh.EventTimeout:
            outcomes.append("timeout")
        if ctx.failures == 0:
            ctx.emit_event("never", "too late")
            raise ValueError("replay")
        return str(ctx.await_event("never", timeout=5))

    result = execute(dsn, client, queue, handler, max_attempts=2, retry_strategy=AT_ONCE)
    assert outcomes == ["timeout", "timeout"]
    assert result.completed_payload == "too late", "each await is a step of its own"


def test_except_exception_does_not_swallow_a_suspension(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    swallowed: list[Exception] = []

    def handler(ctx: teguh.TaskContext) -> str:
        try:
            ctx.sleep_for(0.05)
        except Exception as error:  # noqa: BLE001 - what is tested
            swallowed.append(error)
        return "woken"

    assert execute(dsn, client, queue, handler).completed_payload == "woken"
    assert swallowed == []


def test_a_handler_that_swallows_a_suspension_all_the_same_is_not_completed(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    def handler(ctx: teguh.TaskContext) -> str:
        if ctx.attempt == 1:
            try:
                ctx.sleep_for(0.05)
            except teguh.Suspended:
                return "this is not the result"
        return "this is"

    assert execute(dsn, client, queue, handler).completed_payload == "this is"


def test_a_spawn_from_a_task_happens_once(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    @tasks.task("child", max_attempts=7)
    async def child(ctx: teguh.AsyncTaskContext) -> object:
        return ctx.params

    @tasks.task("parent")
    def parent(ctx: teguh.TaskContext) -> list[str]:
        children = [ctx.spawn("child", n) for n in range(2)]
        if ctx.failures == 0:
            raise ValueError("replay")
        return [str(spawned.task_id) for spawned in children]

    task = client.spawn_task(queue, "parent", max_attempts=2, retry_strategy=AT_ONCE)
    with running(dsn, queue, tasks):
        children = finished(client, queue, task.task_id).completed_payload
        for task_id in children:
            assert finished(client, queue, task_id).parent_task_id == task.task_id
    rows = client.connection.execute(
        "select task_id::text, max_attempts from teguh.t_jobs where task_name = 'child'"
    ).fetchall()
    assert sorted(rows) == sorted((task_id, 7) for task_id in children)


def test_a_heartbeat_sets_the_lease_from_now(
    dsn: str, owner_dsn: str, client: teguh.Client, queue: str
) -> None:
    def handler(ctx: teguh.TaskContext) -> bool:
        ctx.heartbeat(500)
        with psycopg.connect(owner_dsn) as owner:
            row = owner.execute("select lease_expires_at - now() from teguh.t_jobs").fetchone()
        assert row is not None
        return bool(timedelta(seconds=490) < row[0] <= timedelta(seconds=500))

    assert execute(dsn, client, queue, handler).completed_payload is True


@pytest.mark.parametrize("call", ["sleep_for(-1)", "step('', int)", "step('a\\0', int)"])
def test_a_call_that_makes_no_sense_fails_the_run(
    dsn: str, client: teguh.Client, queue: str, call: str
) -> None:
    result = execute(dsn, client, queue, lambda ctx: eval(f"ctx.{call}"))  # noqa: S307
    assert result.failure_reason["name"] == "ValueError"
