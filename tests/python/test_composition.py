"""What a handler can do with other tasks: children, sequences, compensations, repetitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import teguh
from tests.python.support import finished, running, until

if TYPE_CHECKING:
    from collections.abc import Callable

AT_ONCE: teguh.RetryStrategy = {"kind": "none"}


def execute(
    dsn: str,
    client: teguh.Client,
    queue: str,
    handler: Callable[[Any], Any],
    child: Callable[[Any], Any] = lambda ctx: ctx.params,
    **options: Any,
) -> teguh.TaskResult:
    """Execute one task, and with it its children; return how it ended."""
    tasks = teguh.Registry()
    tasks.task("it")(handler)
    tasks.task("child", max_attempts=1)(child)
    task = client.spawn_task(queue, "it", None, **{"max_attempts": 1, **options})
    with running(dsn, queue, tasks, poll_interval=0.1):
        return finished(client, queue, task.task_id)


def brood(*params: object) -> list[teguh.FollowUp]:
    return [{"task_name": "child", "params": one} for one in params]


def test_children_come_back_in_order_and_a_replay_sees_the_same(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    spawned: list[list[bool]] = []

    def handler(ctx: teguh.TaskContext) -> list[Any]:
        found = [one.created for one in ctx.spawn_children(brood(1, 2, 3))]
        spawned.append(found)
        results = ctx.await_children()
        again = ctx.spawn_children(brood("again"))
        assert len(again) == 1
        results += ctx.await_children()
        if ctx.failures == 0:
            raise ValueError("replay")
        return [[one.state, one.result] for one in results]

    result = execute(dsn, client, queue, handler, max_attempts=2, retry_strategy=AT_ONCE)
    assert result.completed_payload == [
        ["completed", 1], ["completed", 2], ["completed", 3], ["completed", "again"]
    ]  # fmt: skip
    assert spawned[0] == [True] * 3
    assert {one for rows in spawned[1:] for one in rows} == {False}


def test_an_async_handler_has_children_too(dsn: str, client: teguh.Client, queue: str) -> None:
    async def handler(ctx: teguh.AsyncTaskContext) -> list[Any]:
        await ctx.spawn_children(brood(1, 2), step="fan")
        return [one.result for one in await ctx.await_children("fan")]

    assert execute(dsn, client, queue, handler).completed_payload == [1, 2]


def test_a_child_that_fails_is_enough_if_all_have_to_succeed(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    def handler(ctx: teguh.TaskContext) -> list[Any]:
        ctx.spawn_children(brood("bad", "slow"))
        results = ctx.await_children(on_failure="fail_fast", cancel_rest=True)
        return [[one.state, (one.failure_reason or {}).get("message")] for one in results]

    def child(ctx: teguh.TaskContext) -> None:
        if ctx.params == "bad":
            raise ValueError("broken")
        ctx.sleep_for(3600)

    result = execute(dsn, client, queue, handler, child)
    assert result.completed_payload == [["failed", "broken"], ["cancelled", None]]


def test_children_that_take_too_long_are_an_event_that_did_not_come(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    def handler(ctx: teguh.TaskContext) -> str:
        (child,) = ctx.spawn_children(brood(1), on_parent_end="cancel")
        try:
            ctx.await_children(mode=1, timeout=0.1)
        except teguh.EventTimeout:
            if ctx.failures == 0:
                raise ValueError("replay") from None
            return str(child.task_id)
        return "in time"

    result = execute(
        dsn, client, queue, handler, lambda ctx: ctx.sleep_for(3600),
        max_attempts=2, retry_strategy=AT_ONCE,
    )  # fmt: skip
    child = client.get_task_result(queue, result.completed_payload)
    assert child.parent_task_id == result.task_id


def test_steps_are_undone_when_a_later_task_of_the_sequence_fails(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    undone: list[str] = []
    failed: list[str] = []
    tasks = teguh.Registry()

    @tasks.task("book")
    def book(ctx: teguh.TaskContext) -> dict[str, str]:
        ctx.compensate("cancel", {"what": "car"})
        ctx.compensate("cancel", {"what": "hotel"})
        return {"booked": "both"}

    @tasks.task("pay")
    def pay(ctx: teguh.TaskContext) -> None:
        assert ctx.params == {"trip": 1, "booked": "both"}
        raise ValueError("no money")

    @tasks.task("cancel")
    def cancel(ctx: teguh.TaskContext) -> None:
        undone.append(ctx.params["what"])

    @tasks.task("sorry")
    def sorry(ctx: teguh.TaskContext) -> None:
        failed.append(ctx.params["$error"]["message"])

    client.spawn_task(
        queue, "book", {"trip": 1},
        sequence=[{"task_name": "pay", "options": {"max_attempts": 1}}],
        compensate={"task_name": "cancel", "params": {"what": "trip"}},
        on_failure={"task_name": "sorry"},
    )  # fmt: skip
    with running(dsn, queue, tasks, poll_interval=0.1):
        until(lambda: len(undone) == 3 and failed)
    assert undone == ["trip", "hotel", "car"]
    assert failed == ["no money"]


def test_a_task_repeats_until_it_returns(dsn: str, client: teguh.Client, queue: str) -> None:
    looked: list[int] = []

    def handler(ctx: teguh.TaskContext) -> int:
        looked.append(ctx.step("look", lambda: len(looked)))
        if len(looked) < 3:
            ctx.repeat(0.01)
        return len(looked)

    assert execute(dsn, client, queue, handler).completed_payload == 3
    assert looked == [0, 1, 2]


def test_a_period_is_not_negative(dsn: str, client: teguh.Client, queue: str) -> None:
    result = execute(dsn, client, queue, lambda ctx: ctx.repeat(-1))
    assert result.state == "failed"


def test_a_client_of_its_own_goes_the_same_way(client: teguh.Client, queue: str) -> None:
    client.spawn_task(queue, "parent")
    (run,) = client.claim_task(queue)
    children = client.spawn_children(queue, run.run_id, "s", brood(1, 2), on_parent_end="cancel")
    assert [(one.queue_name, one.created) for one in children] == [(queue, True)] * 2
    assert [
        one.task_id for one in client.spawn_children(queue, run.run_id, "s", brood("other"))
    ] == [one.task_id for one in children]

    client.add_compensation(
        queue, run.task_id, run.run_id, "s", {"task_name": "undo", "options": {"tags": ("a",)}}
    )
    awaited = client.await_children(queue, run.task_id, run.run_id, "s", mode="any", timeout=0)
    assert awaited == teguh.AwaitedChildren(False, [], True)
    with pytest.raises(teguh.WrongState):
        client.await_children(queue, run.task_id, run.run_id, "none")
    client.spawn_children(queue, run.run_id, "t", brood(3))
    assert client.await_children(queue, run.task_id, run.run_id, "t").should_suspend
    for child in client.claim_task(queue, qty=5):
        client.complete_run(queue, child.run_id, child.params)
    (run,) = until(lambda: client.claim_task(queue))
    awaited = client.await_children(queue, run.task_id, run.run_id, "t")
    assert [(one.state, one.result) for one in awaited.children] == [("completed", 3)]

    following = client.repeat_run(queue, run.run_id, 0)
    (run,) = client.claim_task(queue)
    assert (run.run_id, run.task_name) == (following, "parent")
