"""The published Python SDK, sync and async, on teguh and on absurd itself."""

from __future__ import annotations

import asyncio
import threading
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import absurd_sdk
import psycopg
import pytest
from absurd_sdk import Absurd, AsyncAbsurd, get_current_context

from tests.absurd.test_runs import START

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.absurd.calls import Calls

ORDER = {"order_id": "42", "amount": 9999, "items": ["a", "b"], "email": "ada@example.org"}
FULFILLED = {
    "order_id": "42",
    "payment": {"payment_id": "pay-42", "amount": 9999},
    "inventory": {"reserved_items": ["a", "b"]},
    "tracking_number": "XYZ",
    "notification": {"sent_to": "ada@example.org", "tracking_number": "XYZ"},
}


class Clock:
    """One clock for the SDK and the database."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.now = START

    def set(self, seconds: float) -> None:
        """Set both to so many seconds after the start."""
        self.now = START + timedelta(seconds=seconds)
        self.connection.execute(
            "select set_config('absurd.fake_now', %s, false)", (self.now.isoformat(),)
        )

    def __call__(self) -> datetime:
        """What the SDK asks."""
        return self.now


@pytest.fixture
def connection(both_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """The connection of an application."""
    with psycopg.connect(both_dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def app(connection: psycopg.Connection[Any]) -> Absurd:
    """An application with a queue."""
    app = Absurd(connection)
    app.create_queue()
    return app


@pytest.fixture
def clock(
    app: Absurd, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> Clock:
    """A clock that stands still, for the application as well."""
    clock = Clock(connection)
    clock.set(0)
    monkeypatch.setattr(absurd_sdk, "_get_current_time", clock)
    return clock


def state(app: Absurd, task: Any) -> str:
    """The state of a spawned task."""
    found = app.fetch_task_result(task["task_id"])
    assert found is not None
    return found.state


def result(app: Absurd, task: Any) -> Any:
    """The result of a task that must be completed."""
    found = app.fetch_task_result(task["task_id"])
    assert found is not None
    assert found.state == "completed"
    return found.result


def test_the_order_of_the_readme(app: Absurd) -> None:
    ran: list[str] = []

    @app.register_task("order-fulfillment")
    def process_order(params: Any, ctx: Any) -> Any:
        step = ctx.run_step

        @step("process-payment")  # type: ignore[untyped-decorator]
        def payment() -> Any:
            ran.append("payment")
            return {"payment_id": f"pay-{params['order_id']}", "amount": params["amount"]}

        @step("reserve-inventory")  # type: ignore[untyped-decorator]
        def inventory() -> Any:
            ran.append("inventory")
            return {"reserved_items": params["items"]}

        shipment = ctx.await_event(f"shipment.packed:{params['order_id']}")

        @step("send-notification")  # type: ignore[untyped-decorator]
        def notification() -> Any:
            ran.append("notification")
            return {
                "sent_to": params["email"],
                "tracking_number": shipment["tracking_number"],
            }

        return {
            "order_id": params["order_id"],
            "payment": payment,
            "inventory": inventory,
            "tracking_number": shipment["tracking_number"],
            "notification": notification,
        }

    task = app.spawn("order-fulfillment", ORDER)
    app.work_batch()
    assert state(app, task) == "sleeping"
    app.emit_event("shipment.packed:42", {"tracking_number": "XYZ"})
    app.work_batch()
    assert result(app, task) == FULFILLED
    assert ran == ["payment", "inventory", "notification"]


def test_a_worker_that_polls_runs_a_task(both_dsn: str) -> None:
    app = Absurd(both_dsn)
    app.create_queue()

    @app.register_task("hello-world")
    def hello_world(params: Any, ctx: Any) -> Any:
        return ctx.step("greet", lambda: {"greeting": f"World, {params['name']}!"})

    client = Absurd(both_dsn)
    task = client.spawn("hello-world", {"name": "World"}, queue="default")
    worker = threading.Thread(target=app.start_worker, kwargs={"poll_interval": 0.01})
    worker.start()
    try:
        done = client.await_task_result(task["task_id"], timeout=60)
    finally:
        app.stop_worker()
        worker.join()
        app.close()
        client.close()
    assert done.result == {"greeting": "World, World!"}


def test_many_tasks_at_once(both_dsn: str) -> None:
    app = Absurd(both_dsn)
    app.create_queue()

    @app.register_task("double")
    def double(params: Any, ctx: Any) -> Any:
        return ctx.step("double", lambda: params * 2)

    client = Absurd(both_dsn)
    tasks = [client.spawn("double", number, queue="default") for number in range(20)]
    worker = threading.Thread(
        target=app.start_worker, kwargs={"poll_interval": 0.01, "concurrency": 4}
    )
    worker.start()
    try:
        done = [client.await_task_result(task["task_id"], timeout=60) for task in tasks]
    finally:
        app.stop_worker()
        worker.join()
        app.close()
        client.close()
    assert [one.result for one in done] == [number * 2 for number in range(20)]


def test_steps_are_not_run_again_after_a_failure(app: Absurd) -> None:
    ran: list[str] = []

    @app.register_task("flaky")
    def flaky(params: Any, ctx: Any) -> Any:
        def note() -> int:
            ran.append("one")
            return len(ran)

        first = ctx.step("one", note)
        second = ctx.step("one", note)
        if len(ran) < 3:
            ran.append("failed")
            raise ValueError("not yet")
        handle = ctx.begin_step("three")
        assert not handle.done
        return [first, second, ctx.complete_step(handle, "three")]

    task = app.spawn("flaky", None)
    app.work_batch()
    assert state(app, task) == "pending"
    app.work_batch()
    assert result(app, task) == [1, 2, "three"]
    assert ran == ["one", "one", "failed"]


def test_a_task_fails_after_its_last_attempt_and_is_retried(app: Absurd) -> None:
    good: list[bool] = []

    @app.register_task("picky", default_max_attempts=2)
    def picky(params: Any, ctx: Any) -> Any:
        if not good:
            raise ValueError("bad")
        return "good"

    task = app.spawn("picky", None)
    app.work_batch()
    app.work_batch()
    failed = app.fetch_task_result(task["task_id"])
    assert failed is not None
    assert failed.state == "failed"
    assert isinstance(failed.failure, dict)
    assert (failed.failure["name"], failed.failure["message"]) == ("ValueError", "bad")
    again = app.retry_task(task["task_id"])
    assert (again["attempt"], again["created"]) == (3, False)
    good.append(True)
    app.work_batch()
    assert result(app, task) == "good"


def test_a_failed_task_is_spawned_anew(app: Absurd) -> None:
    @app.register_task("bad", default_max_attempts=1)
    def bad(params: Any, ctx: Any) -> Any:
        raise ValueError("bad")

    task = app.spawn("bad", {"n": 1})
    app.work_batch()
    again = app.retry_task(task["task_id"], spawn_new=True, max_attempts=7)
    assert again["created"]
    assert again["task_id"] != task["task_id"]
    [claimed] = app.claim_tasks()
    assert claimed["params"] == {"n": 1}
    assert claimed["max_attempts"] == 7


def test_retries_wait_as_the_strategy_says(app: Absurd, clock: Clock) -> None:
    attempts: list[int] = []

    @app.register_task("slow")
    def slow(params: Any, ctx: Any) -> Any:
        attempts.append(ctx._task["attempt"])
        raise ValueError("no")

    app.spawn(
        "slow", None, max_attempts=4,
        retry_strategy={"kind": "exponential", "base_seconds": 10, "factor": 2},
    )  # fmt: skip
    for now in (0, 9, 10, 29, 30, 69, 70, 500):
        clock.set(now)
        app.work_batch()
    assert attempts == [1, 2, 3, 4]


def test_a_task_sleeps(app: Absurd, clock: Clock) -> None:
    @app.register_task("sleepy")
    def sleepy(params: Any, ctx: Any) -> Any:
        ctx.sleep_for("nap", 60)
        ctx.sleep_until("rest", START + timedelta(seconds=100))
        return ctx._task["attempt"]

    task = app.spawn("sleepy", None)
    for now, wanted in ((0, "sleeping"), (59, "sleeping"), (60, "sleeping"), (100, "completed")):
        clock.set(now)
        app.work_batch()
        assert state(app, task) == wanted
    assert result(app, task) == 1


def test_a_wait_times_out(app: Absurd, clock: Clock) -> None:
    @app.register_task("patient")
    def patient(params: Any, ctx: Any) -> Any:
        try:
            return ctx.await_event("never", timeout=60)
        except absurd_sdk.TimeoutError:
            return ctx.step("give-up", lambda: "gave up")

    task = app.spawn("patient", None)
    app.work_batch()
    clock.set(59)
    app.work_batch()
    assert state(app, task) == "sleeping"
    clock.set(60)
    app.work_batch()
    assert result(app, task) == "gave up"


def test_a_wait_that_timed_out_is_repeated_by_the_next_attempt(app: Absurd, clock: Clock) -> None:
    @app.register_task("stubborn")
    def stubborn(params: Any, ctx: Any) -> Any:
        return ctx.await_event("late", timeout=60)

    task = app.spawn("stubborn", None)
    app.work_batch()
    clock.set(60)
    app.work_batch()
    assert state(app, task) == "pending"
    app.work_batch()
    assert state(app, task) == "sleeping"
    app.emit_event("late", "here")
    app.work_batch()
    assert result(app, task) == "here"


@pytest.mark.parametrize("payload", [None, 0, False, "", {}])
def test_an_event_before_the_wait_is_seen(app: Absurd, payload: Any) -> None:
    @app.register_task("early")
    def early(params: Any, ctx: Any) -> Any:
        return [ctx.await_event("e", timeout=60), ctx.await_event("e", step_name="again")]

    app.emit_event("e", payload)
    task = app.spawn("early", None)
    app.work_batch()
    assert result(app, task) == [payload, payload]


def test_a_task_emits_to_another(app: Absurd) -> None:
    @app.register_task("speaks")
    def speaks(params: Any, ctx: Any) -> Any:
        ctx.emit_event("word", {"said": params})

    @app.register_task("listens")
    def listens(params: Any, ctx: Any) -> Any:
        return ctx.await_event("word")

    task = app.spawn("listens", None)
    app.work_batch()
    app.spawn("speaks", "hi")
    app.work_batch(batch_size=2)
    app.work_batch()
    assert result(app, task) == {"said": "hi"}


def test_heartbeats_keep_a_lease(app: Absurd, clock: Clock) -> None:
    other = app.claim_tasks

    @app.register_task("long")
    def long(params: Any, ctx: Any) -> Any:
        taken = []
        for minute in (1, 2, 3):
            clock.set(60 * minute - 1)
            ctx.heartbeat()
            taken += other()
        ctx.heartbeat(5)
        clock.set(3 * 60 - 1 + 5)
        taken += other()
        return len(taken)

    task = app.spawn("long", None)
    app.work_batch(claim_timeout=60)
    # the lease was lost at the end: somebody else has the task
    assert state(app, task) == "running"


def test_a_worker_without_claim_timeout_has_steps_but_no_heartbeats(app: Absurd) -> None:
    @app.register_task("endless")
    def endless(params: Any, ctx: Any) -> Any:
        # the SDK passes the claim timeout, 0, on to both
        done = ctx.step("one", lambda: 1)
        for seconds in (None, 10):
            with pytest.raises(psycopg.errors.RaiseException):
                ctx.heartbeat(seconds)
        return done

    task = app.spawn("endless", None)
    app.work_batch(claim_timeout=0)
    assert result(app, task) == 1


def test_a_lease_that_expires_makes_the_worker_stop(app: Absurd, clock: Clock) -> None:
    @app.register_task("lost")
    def lost(params: Any, ctx: Any) -> Any:
        if ctx._task["attempt"] == 1:
            clock.set(60)
            [again] = app.claim_tasks()
            assert again["attempt"] == 2
        ctx.step("too-late", lambda: 1)
        raise AssertionError

    task = app.spawn("lost", None, max_attempts=2)
    app.work_batch(claim_timeout=60)
    assert state(app, task) == "running"


def test_a_cancelled_task_stops(app: Absurd) -> None:
    ran: list[str] = []

    @app.register_task("doomed")
    def doomed(params: Any, ctx: Any) -> Any:
        ctx.step("before", lambda: ran.append("before"))
        app.cancel_task(ctx.task_id)
        ctx.step("after", lambda: ran.append("after"))
        ran.append("end")

    task = app.spawn("doomed", None)
    app.work_batch()
    assert state(app, task) == "cancelled"
    assert ran == ["before", "after"]
    app.work_batch()
    assert ran == ["before", "after"]


def test_limits_of_time_cancel(app: Absurd, clock: Clock) -> None:
    @app.register_task("limited", default_cancellation={"max_delay": 60})
    def limited(params: Any, ctx: Any) -> Any:
        ctx.sleep_for("nap", 1000)

    late = app.spawn("limited", None)
    clock.set(60)
    app.work_batch()
    assert state(app, late) == "cancelled"
    long = app.spawn("limited", None, cancellation={"max_duration": 60})
    app.work_batch()
    assert state(app, long) == "sleeping"
    clock.set(120)
    app.work_batch()
    assert state(app, long) == "cancelled"


def test_hooks(connection: psycopg.Connection[Any]) -> None:
    seen: list[Any] = []

    def before_spawn(name: str, params: Any, options: Any) -> Any:
        return {**options, "headers": {"trace": f"{name}-1"}}

    def wrap(ctx: Any, execute: Any) -> Any:
        seen.append(ctx.headers["trace"])
        return execute()

    app = Absurd(connection, hooks={"before_spawn": before_spawn, "wrap_task_execution": wrap})
    app.create_queue()

    @app.register_task("traced")
    def traced(params: Any, ctx: Any) -> Any:
        seen.append(get_current_context() is ctx)

    app.spawn("traced", None)
    app.work_batch()
    assert seen == ["traced-1", True]


def test_the_same_key_is_the_same_task(app: Absurd) -> None:
    first = app.spawn("once", {"n": 1}, queue="default", idempotency_key="k")
    second = app.spawn("once", {"n": 2}, queue="default", idempotency_key="k")
    assert first == second


def test_a_parent_awaits_its_child(connection: psycopg.Connection[Any], app: Absurd) -> None:
    children = Absurd(connection, queue_name="children")
    children.create_queue()

    @children.register_task("child")
    def child(params: Any, ctx: Any) -> Any:
        return params + 1

    @app.register_task("parent")
    def parent(params: Any, ctx: Any) -> Any:
        spawned = ctx.step("spawn", lambda: str(children.spawn("child", 41)["task_id"]))
        children.work_batch()
        found = ctx.await_task_result(spawned, "children", timeout=10)
        return [found.state, found.result]

    task = app.spawn("parent", None)
    app.work_batch()
    assert result(app, task) == ["completed", 42]


def test_a_result_that_does_not_come_in_time(app: Absurd) -> None:
    task = app.spawn("nobody", None, queue="default")
    with pytest.raises(absurd_sdk.TimeoutError):
        app.await_task_result(task["task_id"], timeout=0)
    with pytest.raises(Exception, match="not found"):
        app.await_task_result("01a20f05-a735-7000-9783-b1efc6b93f00", timeout=0)


def test_an_unknown_task_is_put_off(app: Absurd, clock: Clock) -> None:
    task = app.spawn("unheard-of", None, queue="default")
    app.work_batch()
    assert state(app, task) == "sleeping"
    clock.set(31)
    [claimed] = app.claim_tasks()
    assert (claimed["run_id"], claimed["attempt"]) == (task["run_id"], 1)


def test_queues_and_policies(app: Absurd) -> None:
    app.create_queue("other", storage_mode="partitioned", cleanup_ttl="1 hour", cleanup_limit=7)
    assert app.list_queues() == ["default", "other"]
    policy = app.get_queue_policy("other")
    assert policy is not None
    assert policy["storage_mode"] == "partitioned"
    assert (policy["cleanup_ttl"], policy["cleanup_limit"]) == (timedelta(hours=1), 7)
    app.set_queue_policy("other", detach_mode="empty", partition_lookahead="2 days")
    policy = app.get_queue_policy("other")
    assert policy is not None
    assert policy["detach_mode"] == "empty"
    assert policy["partition_lookahead"] == timedelta(days=2)
    app.drop_queue("other")
    assert app.list_queues() == ["default"]
    assert app.get_queue_policy("other") is None


# The async client


async def order(dsn: str) -> Any:
    """The order of the README, awaited."""
    app = AsyncAbsurd(dsn)
    await app.create_queue()

    async def value(given: Any) -> Any:
        return given

    @app.register_task("order-fulfillment")
    async def process_order(params: Any, ctx: Any) -> Any:
        number = params["order_id"]
        payment = await ctx.step(
            "process-payment",
            lambda: value({"payment_id": f"pay-{number}", "amount": params["amount"]}),
        )
        inventory = await ctx.step(
            "reserve-inventory", lambda: value({"reserved_items": params["items"]})
        )
        shipment = await ctx.await_event(f"shipment.packed:{number}")
        packed = shipment["tracking_number"]
        notification = await ctx.step(
            "send-notification",
            lambda: value({"sent_to": params["email"], "tracking_number": packed}),
        )
        return {
            "order_id": number,
            "payment": payment,
            "inventory": inventory,
            "tracking_number": packed,
            "notification": notification,
        }

    worker = asyncio.create_task(app.start_worker(poll_interval=0.01, concurrency=2))
    client = AsyncAbsurd(dsn)
    try:
        task = await client.spawn("order-fulfillment", ORDER, queue="default")
        await client.emit_event("shipment.packed:42", {"tracking_number": "XYZ"})
        done = await client.await_task_result(task["task_id"], timeout=60)
    finally:
        app.stop_worker()
        await worker
        await app.close()
        await client.close()
    return done.result


def test_the_order_of_the_readme_awaited(both_dsn: str) -> None:
    assert asyncio.run(order(both_dsn)) == FULFILLED


async def life(dsn: str, clock: Clock) -> list[Any]:
    """Everything else that the async client does."""
    seen: list[Any] = []

    async def before_spawn(name: str, params: Any, options: Any) -> Any:
        return {**options, "headers": {"trace": name}}

    async def wrap(ctx: Any, execute: Any) -> Any:
        seen.append(ctx.headers["trace"])
        return await execute()

    connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    async with connection:
        hooks: Any = {"before_spawn": before_spawn, "wrap_task_execution": wrap}
        app = AsyncAbsurd(connection, hooks=hooks)
        await app.create_queue(cleanup_limit=5)
        children = AsyncAbsurd(connection, queue_name="children")
        await children.create_queue()

        async def at(seconds: float) -> None:
            clock.now = START + timedelta(seconds=seconds)
            await connection.execute(
                "select set_config('absurd.fake_now', %s, false)", (clock.now.isoformat(),)
            )
            await app.work_batch()

        @children.register_task("child")
        async def child(params: Any, ctx: Any) -> Any:
            return params + 1

        @app.register_task("life")
        async def handler(params: Any, ctx: Any) -> Any:
            await ctx.sleep_for("nap", 10)
            try:
                await ctx.await_event("never", timeout=10)
            except absurd_sdk.TimeoutError:
                seen.append("timeout")
            if ctx._task["attempt"] == 1:
                raise ValueError("once")
            await ctx.heartbeat(30)

            async def spawn() -> str:
                return str((await children.spawn("child", 41))["task_id"])

            spawned = await ctx.step("spawn", spawn)
            await children.work_batch()
            found = await ctx.await_task_result(spawned, "children", timeout=10)
            await ctx.emit_event("over", found.result)
            return found.result

        await at(0)
        task = await app.spawn("life", None, idempotency_key="k", max_attempts=2)
        assert task == await app.spawn("life", None, idempotency_key="k")
        for now in (0, 10, 20, 20, 30):
            await at(now)
        done = await app.fetch_task_result(task["task_id"])
        assert done is not None
        seen.append(done.result)

        @app.register_task("bad", default_max_attempts=1)
        async def bad(params: Any, ctx: Any) -> Any:
            raise ValueError("bad")

        task = await app.spawn("bad", None)
        await app.work_batch()
        again = await app.retry_task(task["task_id"])
        await app.cancel_task(again["task_id"])
        over = await app.fetch_task_result(task["task_id"])
        assert over is not None
        seen.append((again["attempt"], over.state))
        await app.set_queue_policy(cleanup_limit=6)
        policy = await app.get_queue_policy()
        assert policy is not None
        seen.append((await app.list_queues(), policy["cleanup_limit"]))
        await app.drop_queue("children")
    return seen


def test_the_async_client_does_the_rest(
    both_dsn: str, monkeypatch: pytest.MonkeyPatch, connection: psycopg.Connection[Any]
) -> None:
    clock = Clock(connection)
    monkeypatch.setattr(absurd_sdk, "_get_current_time", clock)
    seen = asyncio.run(life(both_dsn, clock))
    assert [one for one in seen if one != "life"] == [
        "timeout", "timeout", 42, "bad", (2, "cancelled"), (["children", "default"], 6),
    ]  # fmt: skip


# Ours only: what a team gets that points its clients here


def test_a_spawn_may_be_delayed(ours: Calls) -> None:
    row = ours.spawn(delay_seconds=60)
    assert ours.task(row["task_id"])["state"] == "sleeping"
    assert ours.claim() == []
    ours.set_time(60)
    claimed = ours.claim_one()
    assert (claimed["run_id"], claimed["attempt"]) == (row["run_id"], 1)
