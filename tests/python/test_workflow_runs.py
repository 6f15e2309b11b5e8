"""Workflow runs and attributes, by clients and by handlers."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

import teguh
from tests.python.support import finished, running

if TYPE_CHECKING:
    from collections.abc import Mapping


def test_a_workflow_run_from_its_creation_to_its_removal(client: teguh.Client, queue: str) -> None:
    made = client.create_workflow_run(
        "order", version="1", inputs={"n": 17}, tags=("eu",), created_by="ada",
        idempotency_key="order-17",
    )  # fmt: skip
    assert made.created
    assert client.create_workflow_run("order", idempotency_key="order-17") == (
        teguh.CreatedWorkflowRun(made.workflow_run_id, False)
    )
    with pytest.raises(teguh.Conflict):
        client.create_workflow_run("refund", idempotency_key="order-17")
    client.update_workflow_run(made.workflow_run_id, version="2", tags=None)
    task = client.spawn_task(queue, "charge", workflow_run_id=made.workflow_run_id)

    run = client.get_workflow_run(made.workflow_run_id)
    assert (run.name, run.version, run.status, run.tags) == ("order", "2", "pending", None)
    assert (run.inputs, run.created_by, run.pending) == ({"n": 17}, "ada", 1)
    assert run.created_at is not None
    (listed,) = client.list_workflow_runs(
        name="order", status=["pending", "running"], created_by="ada",
        created_after=run.created_at - timedelta(seconds=1), limit=5,
    )  # fmt: skip
    assert (listed.workflow_run_id, listed.pending) == (made.workflow_run_id, 1)
    assert client.list_workflow_runs(cursor=listed.cursor) == []
    (node,) = client.get_workflow_tree(made.workflow_run_id, limit=1)
    assert (node.depth, node.queue_name, node.task_id, node.state, node.attributes, node.cut) == (
        0, queue, task.task_id, "pending", {}, False
    )  # fmt: skip
    assert client.cleanup_workflow_runs(0, 10) == 0


def test_what_is_no_workflow_run_is_an_error_of_its_own(client: teguh.Client) -> None:
    with pytest.raises(teguh.WorkflowRunNotFound):
        client.get_workflow_run(uuid4())
    with pytest.raises(teguh.WorkflowRunNotFound):
        client.get_workflow_tree(uuid4())
    with pytest.raises(teguh.WorkflowRunNotFound):
        client.update_workflow_run(uuid4(), version="1")
    with pytest.raises(teguh.InvalidOption):
        client.create_workflow_run("order", version="")


def test_a_client_of_its_own_publishes_attributes(client: teguh.Client, queue: str) -> None:
    client.spawn_task(queue, "a")
    client.spawn_task(queue, "b")
    for run in client.claim_task(queue, qty=2):
        client.set_attributes(queue, run.run_id, {"name": run.task_name, "n": 1, "gone": True})
        client.set_attributes(queue, run.run_id, {"gone": None})
        assert client.get_attributes(queue, run.task_id) == {"name": run.task_name, "n": 1}
        assert client.get_task(queue, run.task_id).attributes == {"name": run.task_name, "n": 1}
    (found,) = client.list_tasks(queue, attributes={"name": "b", "n": 1.0})
    assert (found.task_name, found.attributes) == ("b", {"name": "b", "n": 1})
    with pytest.raises(teguh.InvalidOption):
        client.list_tasks(queue, attributes={"name": [1]})  # type: ignore[dict-item]
    assert client.cancel_tasks(queue, attributes={"name": "a"}) == 1


def test_handlers_publish_attributes_and_their_children_belong_to_the_run(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    tasks = teguh.Registry()

    @tasks.task("order")
    def order(ctx: teguh.TaskContext) -> list[object]:
        ctx.set_attributes({"customer": ctx.params["customer"], "stage": "packing"})
        ctx.spawn_children([{"task_name": "pack", "params": n} for n in range(2)])
        packed = [child.result for child in ctx.await_children()]
        ctx.set_attributes({"stage": None, "packed": len(packed)})
        return packed

    @tasks.task("pack")
    async def pack(ctx: teguh.AsyncTaskContext) -> object:
        await ctx.set_attributes({"box": ctx.params})
        return ctx.params

    run_id = client.create_workflow_run("order").workflow_run_id
    task = client.spawn_task(queue, "order", {"customer": "c-17"}, workflow_run_id=run_id)
    with running(dsn, queue, tasks, poll_interval=0.1):
        assert finished(client, queue, task.task_id).completed_payload == [0, 1]

    run = client.get_workflow_run(run_id)
    assert (run.status, run.completed) == ("completed", 3)
    assert run.finished_at is not None
    tree = client.get_workflow_tree(run_id)
    assert [(node.depth, node.task_name) for node in tree] == [
        (0, "order"), (1, "pack"), (1, "pack")
    ]  # fmt: skip
    said: list[Mapping[str, object]] = [node.attributes for node in tree]
    assert said[0] == {"customer": "c-17", "packed": 2}
    assert [one["box"] for one in said[1:]] in ([0, 1], [1, 0])
    (found,) = client.list_tasks(queue, attributes={"customer": "c-17", "packed": 2})
    assert found.task_id == task.task_id


def test_attributes_that_cannot_be_fail_the_handler(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    tasks = teguh.Registry()

    @tasks.task("bad", max_attempts=1)
    def bad(ctx: teguh.TaskContext) -> None:
        ctx.set_attributes({"list": [1]})  # type: ignore[dict-item]

    task = client.spawn_task(queue, "bad", None, **tasks.options("bad"))
    with running(dsn, queue, tasks, poll_interval=0.1):
        result = finished(client, queue, task.task_id)
    assert result.state == "failed"
    assert 'attribute "list" must be a string' in result.failure_reason["message"]
