"""The clients: one method per SQL function, sync and async alike."""

from __future__ import annotations

import asyncio
import inspect
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import pytest

import teguh
from tools.servers import GUEST

if TYPE_CHECKING:
    from collections.abc import Callable

NOWHERE = UUID("01890000-0000-7000-8000-000000000000")


def test_every_public_function_has_a_method(conn: psycopg.Connection[tuple[Any, ...]]) -> None:
    rows = conn.execute(
        "select p.proname from pg_proc as p"
        " where p.pronamespace = 'teguh'::regnamespace and p.proname !~ '^_'"
        " and not 'teguh.job'::regtype = any (p.proargtypes::oid[])"  # those are for SQL handlers
    ).fetchall()
    functions = {name for (name,) in rows}
    methods = {name for name, _ in inspect.getmembers(teguh.Client) if not name.startswith("_")}
    assert functions <= methods, f"no method for {functions - methods}"


def test_sync_and_async_clients_have_the_same_methods() -> None:
    def shape(cls: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(cls, inspect.isroutine)
            if not name.startswith("_")
        }

    assert shape(teguh.Client) == shape(teguh.AsyncClient)


def test_sync_and_async_clients_agree(client: teguh.Client, dsn: str, queue: str) -> None:
    async def use() -> teguh.TaskResult:
        async with await teguh.AsyncClient.connect(dsn) as other:
            task = await other.spawn_task(queue, "add", {"a": 1})
            (run,) = await other.claim_task(queue, "me", claim_timeout=5)
            assert (run.task_id, run.params, run.attempt) == (task.task_id, {"a": 1}, 1)
            await other.complete_run(queue, run.run_id, {"sum": 3})
            return await other.get_task_result(queue, task.task_id)

    result = asyncio.run(use())
    assert result == client.get_task_result(queue, result.task_id)
    assert (result.state, result.completed_payload) == ("completed", {"sum": 3})


def test_a_task_goes_through_its_life(client: teguh.Client, queue: str) -> None:
    task = client.spawn_task(queue, "mail", {"to": "ayu"}, headers={"trace": "t"}, max_attempts=2)
    assert task.created
    (run,) = client.claim_task(queue, "w", claim_timeout=10, qty=5)
    assert run.run_id == task.run_id
    assert run.headers == {"trace": "t"}
    assert run.max_attempts == 2
    client.extend_claim(queue, run.run_id, 60)
    client.set_task_checkpoint_state(queue, task.task_id, "sent", {"id": 7}, run.run_id)
    assert client.get_task_checkpoint_state(queue, task.task_id, "sent") == {"id": 7}
    (checkpoint,) = client.get_task_checkpoint_states(queue, task.task_id, run.run_id)
    assert (checkpoint.checkpoint_name, checkpoint.status) == ("sent", "committed")
    client.fail_run(queue, run.run_id, {"message": "no"}, retry_at=datetime.now(UTC))
    (again,) = client.claim_task(queue, "w")
    assert again.run_id != run.run_id
    assert again.checkpoints == {"sent": {"id": 7}}
    assert again.failures == 1
    client.fail_run(queue, again.run_id, {"message": "never"})
    result = client.get_task_result(queue, task.task_id)
    assert (result.state, result.failures, result.failure_reason) == (
        "failed",
        2,
        {"message": "never"},
    )
    retried = client.retry_task(queue, task.task_id, max_attempts=3)
    assert retried.task_id == task.task_id
    client.cancel_task(queue, task.task_id)
    assert client.claim_task(queue) == []


def test_many_tasks_are_spawned_in_one_statement_and_in_order(
    client: teguh.Client, queue: str
) -> None:
    tasks = [teguh.NewTask("n", i, {"max_attempts": 1}) for i in range(50)]
    spawned = client.spawn_tasks(queue, tasks)
    runs = client.claim_task(queue, qty=100)
    assert [run.task_id for run in runs] == [task.task_id for task in spawned]
    assert [run.params for run in runs] == list(range(50))
    outcome = client.complete_runs(queue, {run.run_id: run.params for run in runs[:3]})
    assert all(run.applied for run in outcome)


def test_a_batch_says_which_runs_it_could_not_complete(client: teguh.Client, queue: str) -> None:
    client.spawn_tasks(queue, [teguh.NewTask("n"), teguh.NewTask("n")])
    first, second = client.claim_task(queue, qty=2)
    client.complete_run(queue, first.run_id)
    outcome = client.complete_runs(queue, {first.run_id: 1, second.run_id: 2})
    assert {run.run_id: (run.applied, run.error) for run in outcome} == {
        first.run_id: (False, "AB002"),
        second.run_id: (True, None),
    }


def test_sleeping_awaiting_and_releasing(client: teguh.Client, queue: str) -> None:
    task = client.spawn_task(queue, "n")
    (run,) = client.claim_task(queue)
    now = client.current_time()
    client.schedule_run(queue, run.run_id, now + timedelta(hours=1))
    assert client.next_due(queue) == now + timedelta(hours=1)
    other = client.spawn_task(queue, "n")
    (run,) = client.claim_task(queue)
    assert run.task_id == other.task_id
    client.release_run(queue, run.run_id)
    (run,) = client.claim_task(queue)
    assert run.task_id == other.task_id
    awaited = client.await_event(queue, run.task_id, run.run_id, "step", "go", timeout=60)
    assert awaited.should_suspend
    (event,) = client.list_events(queue, awaited=True)
    assert (event.event_name, event.emitted_at, event.waiters) == ("go", None, 1)
    client.emit_event(queue, "go", {"ok": True})
    (event,) = client.list_events(queue, prefix="g", created_before=now + timedelta(hours=1))
    assert (event.payload, event.waiters) == ({"ok": True}, 0)
    assert client.list_events(queue, cursor=event.cursor, limit=1) == []
    (run,) = client.claim_task(queue)
    assert (run.wake_event, run.event_payload) == ("go", {"ok": True})
    assert task.task_id != run.task_id


def test_a_task_says_where_it_belongs(client: teguh.Client, queue: str) -> None:
    parent = client.spawn_task(queue, "parent", tags=()).task_id
    child = client.spawn_task(
        queue, "child", tags=("a", "b"), correlation_id="c", parent_task_id=parent
    )
    found = client.get_task_result(queue, child.task_id)
    assert (found.tags, found.correlation_id, found.parent_task_id) == (["a", "b"], "c", parent)
    assert client.get_task_result(queue, parent).tags is None


def test_what_a_run_spawns_inherits_where_it_belongs(client: teguh.Client, queue: str) -> None:
    client.spawn_task(queue, "parent", tags=["a"], workflow_run_id=UUID(int=7))
    (run,) = client.claim_task(queue)
    child = client.spawn_task(queue, "child", parent_run_id=run.run_id, parent_queue_name=queue)
    found = client.get_task_result(queue, child.task_id)
    assert (found.tags, found.parent_task_id, found.workflow_run_id) == (
        ["a"],
        run.task_id,
        UUID(int=7),
    )


def test_statistics_of_a_queue(client: teguh.Client, queue: str) -> None:
    client.spawn_task(queue, "a", unique={"key": "k"})
    client.spawn_task(queue, "a", {"n": 2}, unique={"key": "k", "on_conflict": "replace"})
    with pytest.raises(teguh.Conflict):
        client.spawn_task(queue, "a", unique={"key": "k"})
    (stats,) = client.queue_stats(queue)
    assert (stats.queue_name, stats.pending, stats.running, stats.paused) == (queue, 1, 0, False)
    labels = {"queue": queue, "state": "pending"}
    assert teguh.Metric("teguh_tasks", labels, 1) in client.metrics()
    assert f'teguh_tasks{{queue="{queue}",state="pending"}} 1' in client.prometheus().splitlines()
    assert client.health()["version"] == client.version()


def test_a_full_queue_refuses_spawns(client: teguh.Client, queue: str) -> None:
    client.set_queue_policy(queue, max_pending=1)
    client.spawn_task(queue, "a")
    with pytest.raises(teguh.QueueFull):
        client.spawn_task(queue, "a")


def test_a_task_expires_and_another_follows(client: teguh.Client, queue: str) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    follow_up: teguh.FollowUp = {
        "queue_name": queue,
        "task_name": "follow",
        "params": {"n": 1},
        "options": {"parent_task_id": UUID(int=5), "deadline_at": tomorrow},
    }
    task = client.spawn_task(queue, "short", ttl_seconds=0.001, on_expired=follow_up)
    time.sleep(0.002)
    (run,) = client.claim_task(queue)
    assert (run.task_name, run.params) == ("follow", {"n": 1})
    assert client.get_task_result(queue, run.task_id).parent_task_id == UUID(int=5)
    assert client.get_task_result(queue, task.task_id).state == "expired"


def test_spawning_commits_or_rolls_back_with_the_caller(
    client: teguh.Client, client_dsn: str, queue: str
) -> None:
    with psycopg.connect(client_dsn) as connection:
        teguh.Client(connection).spawn_task(queue, "n")
        connection.rollback()
    assert client.claim_task(queue) == []
    with psycopg.connect(client_dsn) as connection:
        teguh.Client(connection).spawn_task(queue, "n")
    assert len(client.claim_task(queue)) == 1


def test_a_client_closes_its_own_connection_and_leaves_a_borrowed_one_open(
    client_dsn: str,
) -> None:
    with teguh.Client.connect(client_dsn) as own:
        pass
    assert own.connection.closed
    with psycopg.connect(client_dsn) as connection:
        with teguh.Client(connection):
            pass
        assert not connection.closed


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda c, _: c.spawn_task("nowhere", "n"), teguh.QueueNotFound),
        (lambda c, q: c.complete_run(q, NOWHERE), teguh.RunNotFound),
        (lambda c, q: c.cancel_task(q, NOWHERE), teguh.TaskNotFound),
        (lambda c, q: c.retry_task(q, c.spawn_task(q, "n").task_id), teguh.WrongState),
        (lambda c, q: c.spawn_task(q, "n", tipo="x"), teguh.InvalidOption),
        (
            lambda c, q: [c.spawn_task(q, "n", i, idempotency_key="k") for i in range(2)],
            teguh.Conflict,
        ),
    ],
)
def test_an_error_is_of_its_class_and_carries_its_hint(
    client: teguh.Client, queue: str, call: Callable[..., Any], error: type[teguh.EngineError]
) -> None:
    with pytest.raises(error) as caught:
        call(client, queue)
    assert caught.value.hint
    assert f"hint: {caught.value.hint}" in str(caught.value)
    assert isinstance(caught.value.__cause__, psycopg.Error)


def test_a_finished_run_is_lost_and_a_cancelled_one_cancelled(
    client: teguh.Client, queue: str
) -> None:
    client.spawn_tasks(queue, [teguh.NewTask("n"), teguh.NewTask("n")])
    first, second = client.claim_task(queue, qty=2)
    client.complete_run(queue, first.run_id)
    with pytest.raises(teguh.RunLost):
        client.complete_run(queue, first.run_id)
    client.cancel_task(queue, second.task_id)
    with pytest.raises(teguh.TaskCancelled):
        client.extend_claim(queue, second.run_id, 10)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": {1, 2}}, "set is not JSON serializable"),
        ("nul \0 inside", "holds a NUL"),
        (["deep", {"k\0": 1}], "holds a NUL"),
        ("\ud800", "surrogate"),
        (float("nan"), "not JSON"),
    ],
)
def test_what_jsonb_cannot_hold_is_refused_by_name(
    client: teguh.Client, queue: str, value: object, says: str
) -> None:
    with pytest.raises(teguh.NotStorable, match=f"params of task 'mail'.*{says}"):
        client.spawn_task(queue, "mail", value)
    assert client.claim_task(queue) == []


def test_a_backslash_before_u0000_is_no_nul(client: teguh.Client, queue: str) -> None:
    text = "\\u0000 and \\\\u0000"
    client.spawn_task(queue, "n", text)
    (run,) = client.claim_task(queue)
    assert run.params == text


def test_a_time_without_zone_is_refused(client: teguh.Client, queue: str) -> None:
    with pytest.raises(ValueError, match="time zone"):
        client.spawn_task(queue, "n", available_at=datetime(2030, 1, 1))  # noqa: DTZ001
    client.spawn_task(queue, "n", available_at=datetime(2030, 1, 1, tzinfo=UTC))
    assert client.next_due(queue) == datetime(2030, 1, 1, tzinfo=UTC)


def test_a_handler_in_the_database_is_registered_and_runs(client: teguh.Client, queue: str) -> None:
    client.connection.execute(
        "create function public.doubles(job teguh.job) returns jsonb"
        " language sql as 'select to_jsonb(2 * (job.params)::integer)'"
    )
    client.register_handler(queue, "double", "public.doubles")
    (found,) = client.list_handlers(queue)
    assert client.list_handlers() == [found]
    assert (found.queue_name, found.task_name) == (queue, "double")
    assert found.function_name == "public.doubles"
    task = client.spawn_task(queue, "double", 21)
    client.work(queue, limit=1, max_seconds=60, worker_id="me", known_only=True, batch=None)
    assert client.get_task_result(queue, task.task_id).completed_payload == 42
    assert client.get_task(queue, task.task_id).claimed_by == "me"
    assert client.unregister_handler(queue, "double")
    assert not client.unregister_handler(queue, "double")
    with pytest.raises(teguh.WrongState):
        client.work(queue)


def test_the_life_cycle_functions_answer(client: teguh.Client, queue: str) -> None:
    assert client.version()
    stamp = client.uuidv7_timestamp(client.portable_uuidv7())
    assert stamp is not None
    assert abs(stamp - client.current_time()) < timedelta(seconds=5)
    assert client.validate_queue_name("fine") == "fine"
    assert client.ticker(queue) == 0
    assert client.ticker() == 0
    client.ticker_loop(tick_seconds=0.01, max_seconds=0.05)
    client.start()
    assert client.status()
    client.stop()


def test_queues_are_listed_with_their_policy_and_dropped(client: teguh.Client) -> None:
    client.create_queue("mail", notify="off", cleanup_ttl=60)
    client.create_queue("mail", default_max_attempts=4)
    (queue,) = client.list_queues()
    assert queue.queue_name == "mail"
    assert queue.policy["notify"] == "off"
    assert queue.policy["default_max_attempts"] == 4
    client.set_queue_policy("mail", cleanup_ttl=None)
    assert client.get_queue_policy("mail")["cleanup_ttl"] == 2592000
    assert set(client.get_queue_policy("mail")) == set(teguh.QueuePolicy.__annotations__)
    client.drop_queue("mail")
    assert client.list_queues() == []


def test_a_queue_is_paused_until_a_time_or_until_it_is_resumed(
    client: teguh.Client, queue: str
) -> None:
    client.spawn_task(queue, "n")
    end = client.current_time() + timedelta(hours=1)
    client.pause_queue(queue, end)
    assert client.list_queues()[0].paused_until == end
    client.pause_queue(queue, reason="maintenance")
    assert client.claim_task(queue) == []
    client.resume_queue(queue)
    assert len(client.claim_task(queue)) == 1
    assert client.rebuild_dispatch(queue) == 0


def test_a_task_name_or_a_key_is_paused_by_itself(client: teguh.Client, queue: str) -> None:
    client.spawn_task(queue, "a", key="k")
    client.spawn_task(queue, "b")
    end = client.current_time() + timedelta(hours=1)
    client.pause_queue(queue, end, only={"task_name": "b"})
    client.pause_queue(queue, only={"key": "k"}, reason="angry")
    assert client.claim_task(queue, qty=2) == []
    assert {
        (usage.scope, usage.name, usage.paused_until) for usage in client.limit_usage(queue)
    } >= {("task", "b", end)}
    client.resume_queue(queue, only={"task_name": "b"})
    assert [run.task_name for run in client.claim_task(queue, qty=2)] == ["b"]
    client.resume_queue(queue, only={"key": "k"}, reason="calm")
    assert [run.task_name for run in client.claim_task(queue, qty=2)] == ["a"]
    assert client.list_actions(queue)[0].reason == "calm"
    with pytest.raises(teguh.InvalidOption):
        client.pause_queue(queue, only={"task_name": "a", "key": "k"})


def test_priorities_order_claims(client: teguh.Client, queue: str) -> None:
    for priority in (0, -1, 3):
        client.spawn_task(queue, "n", priority, priority=priority)
    assert [run.params for run in client.claim_task(queue, qty=3)] == [3, 0, -1]
    with pytest.raises(teguh.InvalidOption):
        client.spawn_task(queue, "n", priority=40_000)


def test_limits_are_set_seen_and_taken_away(client: teguh.Client, queue: str) -> None:
    client.set_limit(queue, "key", "*", max_running=1)
    client.set_limit(queue, "queue", rate=2, period_seconds=3600)
    client.spawn_tasks(
        queue, [teguh.NewTask("n", n, {"key": key}) for n, key in enumerate("aabbcc")]
    )
    assert [run.params for run in client.claim_task(queue, qty=6)] == [0, 2]
    usage = {(of.scope, of.name): of for of in client.limit_usage(queue)}
    assert usage["key", "a"] == teguh.LimitUsage(
        "key", "a", 1, 1, None, None, 0, 1, False, False, None
    )
    assert usage["queue", None] == teguh.LimitUsage(
        "queue", None, None, 2, 2, 3600.0, 2, 4, False, False, None
    )
    client.set_limit(queue, "queue")
    assert [run.params for run in client.claim_task(queue, qty=6)] == [4]
    client.set_limit(queue, "key", fifo=True, fair=True)
    assert {of.name: (of.fifo, of.fair) for of in client.limit_usage(queue)}["a"] == (True, True)
    client.set_limit(None, "all", max_running=2)
    client.set_limit(queue, "key")
    assert client.claim_task(queue, qty=6) == []
    client.set_limit(None, "all")
    assert len(client.claim_task(queue, qty=6)) == 3
    with pytest.raises(teguh.InvalidOption):
        client.set_limit(queue, "key", "a", fair=True)


def test_runs_are_claimed_by_name_and_from_several_queues(client: teguh.Client, queue: str) -> None:
    client.create_queue("mail")
    client.spawn_task(queue, "old")
    client.spawn_task(queue, "new")
    client.spawn_task("mail", "old")
    runs = client.claim_any(["mail", queue], "w", qty=9, task_names=("old",), order="strict")
    assert [(run.queue_name, run.task_name) for run in runs] == [("mail", "old"), (queue, "old")]
    assert {of.queue_name: of.unclaimable for of in client.queue_stats()} == {queue: 1, "mail": 0}
    (run,) = client.claim_any()
    assert (run.queue_name, run.task_name, run.lease_expires_at is None) == (queue, "new", False)
    (stats,) = client.queue_stats(queue)
    assert (stats.running, stats.unclaimable) == (2, 0)
    with pytest.raises(teguh.InvalidOption):
        client.claim_any(task_names=[])


def test_tasks_are_found_and_their_life_is_told(client: teguh.Client, queue: str) -> None:
    parent = client.spawn_task(queue, "parent", tags=("a", "b"))
    time.sleep(0.002)  # ids are in the order of milliseconds
    child = client.spawn_task(queue, "child", {"n": 1}, parent_task_id=parent.task_id)
    assert [task.task_name for task in client.list_tasks(queue)] == ["child", "parent"]
    (first,) = client.list_tasks(queue, limit=1)
    (second,) = client.list_tasks(queue, cursor=first.cursor, state=["pending", "running"])
    assert (second.task_name, second.tags) == ("parent", ["a", "b"])
    for which in (
        teguh.Filter(parent_task_id=parent.task_id),
        teguh.Filter(task_name="child"),
        teguh.Filter(state="pending", created_after=first.created_at),
    ):
        assert [task.task_id for task in client.list_tasks(queue, **which)] == [child.task_id]
    assert client.list_tasks(queue, tags=("a", "c"), older_than_seconds=0) == []

    client.cancel_task(queue, parent.task_id, reason="not wanted")
    client.claim_task(queue, "w", claim_timeout=60)
    task = client.get_task(queue, child.task_id)
    assert (task.params, task.claimed_by, task.state) == ({"n": 1}, "w", "running")
    assert [(run.number, run.state) for run in client.list_runs(queue, child.task_id)] == [
        (1, "running")
    ]
    events = client.get_task_history(queue, parent.task_id)
    assert [event.event for event in events] == ["created", "cancelled"]
    assert events[1].detail["reason"] == "not wanted"
    (worker,) = client.list_workers()
    assert (worker.worker_id, worker.queue_name, worker.runs) == ("w", queue, 1)
    (action,) = client.list_actions(queue)
    assert (action.action, action.task_id) == ("cancel", parent.task_id)
    assert client.list_actions(queue, cursor=action.cursor) == []


def test_tasks_are_cancelled_taken_back_replayed_and_purged(
    client: teguh.Client, queue: str
) -> None:
    client.spawn_tasks(queue, [teguh.NewTask("n", n, {"max_attempts": 1}) for n in range(3)])
    one, two, _ = client.claim_task(queue, "dead", qty=3)
    taken = client.requeue_task(queue, one.task_id, reason="host lost")
    with pytest.raises(teguh.RunLost):
        client.complete_run(queue, one.run_id)
    (again,) = client.claim_task(queue)
    assert again.run_id == taken
    client.set_task_checkpoint_state(queue, two.task_id, "s", 1, two.run_id)
    client.fail_run(queue, again.run_id, "no")
    client.fail_run(queue, two.run_id, "no")
    assert len(client.list_dead_letters(queue, task_name="n")) == 2
    client.retry_task(queue, two.task_id, from_step="s", reason="fixed")
    assert client.claim_task(queue)[0].checkpoints == {}
    assert client.replay_dead_letters(queue, per_second=10, reason="fixed") == 1
    (again,) = client.claim_task(queue)
    client.fail_run(queue, again.run_id, "no")
    assert client.purge_dead_letters(queue, ttl_seconds=0, reason="old") == 1
    with pytest.raises(teguh.InvalidOption):
        client.cancel_tasks(queue)
    assert client.cancel_tasks(queue, state="running", limit=1, reason="end") == 1
    assert client.cancel_tasks(queue, everything=True) == 1
    assert [action.action for action in client.list_actions(queue)] == [
        "cancel", "cancel", "purge", "retry",
    ]  # fmt: skip


def test_the_tasks_of_a_dead_worker_are_taken_back(client: teguh.Client, queue: str) -> None:
    client.spawn_tasks(queue, [teguh.NewTask("n" if n % 2 else "m") for n in range(6)])
    client.claim_task(queue, "dead", qty=4)
    client.claim_task(queue, "alive", qty=2)
    with pytest.raises(teguh.InvalidOption):
        client.requeue_tasks(queue)
    assert client.requeue_tasks(queue, worker_id="dead", task_name="m", reason="host lost") == 2
    assert client.requeue_tasks(queue, worker_id="dead", limit=1) == 1
    assert client.requeue_tasks(queue, everything=True) == 3
    assert {run.failures for run in client.claim_task(queue, qty=9)} == {0}
    assert client.list_actions(queue)[-1].reason == "host lost"


def test_queues_are_grouped_by_namespace(client: teguh.Client, queue: str) -> None:
    client.create_queue("audit", namespace="finance")
    assert client.list_namespaces() == {"default": 1, "finance": 1}
    assert [found.namespace for found in client.list_queues()][:1] == ["finance"]


def test_access_is_given_and_taken(client: teguh.Client, queue: str, guest_dsn: str) -> None:
    with teguh.Client.connect(guest_dsn) as guest:
        client.grant_access(GUEST, "client", [queue])
        assert guest.spawn_task(queue, "n").created
        client.revoke_access(GUEST, "client")
        client.grant_access(GUEST, "observer")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            guest.spawn_task(queue, "n")
        client.revoke_access(GUEST)


def test_ended_tasks_and_old_events_are_cleaned_up(client: teguh.Client, queue: str) -> None:
    client.spawn_task(queue, "n")
    (run,) = client.claim_task(queue)
    client.complete_run(queue, run.run_id)
    client.emit_event(queue, "old")
    assert client.cleanup_tasks(queue, ttl_seconds=0) == 1
    assert client.cleanup_events(queue, ttl_seconds=0, limit=10) == 1
    assert [row.queue_name for row in client.cleanup_all_queues()] == [queue]


def test_a_schedule_is_made_changed_and_fired(client: teguh.Client, queue: str) -> None:
    start = datetime(2031, 5, 1, tzinfo=UTC)
    for _ in range(2):
        client.create_schedule(
            "report", queue, "report", "30 9 * * mon-fri", params={"kind": "daily"},
            task_options={"max_attempts": 2, "parent_task_id": NOWHERE}, timezone="Europe/Berlin",
            overlap="skip", starts_at=start,
        )  # fmt: skip
    (found,) = client.list_schedules(queue)
    assert found == client.get_schedule("report")
    assert client.list_schedules() == [found]
    assert found.next_fire_at == datetime(2031, 5, 1, 7, 30, tzinfo=UTC)
    assert found.options["task_options"] == {"max_attempts": 2, "parent_task_id": str(NOWHERE)}
    client.update_schedule("report", schedule="@daily", timezone=None, starts_at=None)
    tomorrow = client.next_fire_time("@daily", client.current_time())
    assert client.get_schedule("report").next_fire_at == tomorrow
    client.pause_schedule("report", reason="holiday")
    assert client.get_schedule("report").next_fire_at is None
    task = client.trigger_schedule("report", reason="all the same")
    found = client.get_schedule("report")
    assert (found.last_task_id, found.last_error) == (task.task_id, None)
    headers = client.get_task(queue, task.task_id).headers
    assert headers is not None
    assert (headers["schedule_name"], headers["triggered"]) == ("report", True)
    client.resume_schedule("report")
    client.drop_schedule("report")
    assert client.next_fire_time("30 2 * * *", start, "Asia/Kolkata") == start.replace(hour=21)
    with pytest.raises(teguh.ScheduleNotFound):
        client.get_schedule("report")
    with pytest.raises(teguh.InvalidOption):
        client.next_fire_time("61 * * * *", start)
    with pytest.raises(ValueError, match="starts_at needs a time zone"):
        client.create_schedule(
            "naive",
            queue,
            "t",
            "@daily",
            starts_at=datetime(2031, 1, 1),  # noqa: DTZ001
        )
