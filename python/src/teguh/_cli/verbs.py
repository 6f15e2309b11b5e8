"""Which verb calls what: methods of the client, and the few things that take several calls.

The help of a verb is the first line of its docstring; its arguments and options are those of its
signature.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Unpack

import typer

from teguh._cli.show import progress
from teguh._sync.client import Client, Id
from teguh._types import Cleaned, Filter, Happening, given

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

BATCH = 1000


def delete_queue(client: Client, queue: str, *, yes: bool = False) -> None:
    """Drop a queue with all its tasks, once you say that you are sure."""
    _be_sure(f"Drop queue {queue!r} with all its tasks?", yes=yes)
    client.drop_queue(queue)


def cleanup(client: Client, queue: str | None = None) -> list[Cleaned]:
    """Delete old tasks and events of a queue, or of each, by its policy, until none are left."""
    total: dict[str, Cleaned] = {}
    with progress("deleted") as done:
        while True:
            round_ = client.cleanup_all_queues(queue)
            for one in round_:
                before = total.get(one.queue_name, Cleaned(one.queue_name, 0, 0))
                total[one.queue_name] = Cleaned(
                    one.queue_name,
                    before.tasks_deleted + one.tasks_deleted,
                    before.events_deleted + one.events_deleted,
                )
            deleted = sum(one.tasks_deleted + one.events_deleted for one in round_)
            done(deleted)
            if not deleted:
                return list(total.values())


def replay(
    client: Client,
    queue: str,
    *,
    limit: int | None = None,
    per_second: float | None = None,
    max_attempts: int | None = None,
    from_step: str | None = None,
    reason: str | None = None,
    **which: Unpack[Filter],
) -> int:
    """Run failed tasks again, from their checkpoints on: so many, or else all, in a transaction.

    One transaction, so that none that fails again meanwhile is replayed again.
    """
    options = given(max_attempts=max_attempts, from_step=from_step, reason=reason)
    if limit is not None or per_second is not None:
        return client.replay_dead_letters(
            queue, limit=limit, per_second=per_second, **options, **which
        )
    (stats,) = client.queue_stats(queue)
    total = 0
    number = None if which else stats.failed
    with client.connection.transaction(), progress("replayed", number) as done:
        while count := client.replay_dead_letters(queue, limit=BATCH, **options, **which):
            total += count
            done(count)
    return total


def purge(
    client: Client,
    queue: str,
    *,
    ttl_seconds: float | None = None,
    reason: str | None = None,
    yes: bool = False,
) -> int:
    """Delete tasks that failed some time ago, until none are left; by default what cleanup would.

    Each batch is a transaction.
    """
    _be_sure(f"Delete tasks of queue {queue!r} that failed?", yes=yes)
    total = 0
    with progress("deleted") as done:
        while count := client.purge_dead_letters(
            queue, ttl_seconds=ttl_seconds, limit=BATCH, reason=reason
        ):
            total += count
            done(count)
    return total


def watch(client: Client, queue: str, task_id: Id, *, interval: float = 1) -> Iterator[Happening]:
    """Print what happens to a task until it is over; the status is 0 if it has completed."""
    if not 0 < interval <= 86400:
        raise typer.BadParameter("the interval is more than 0 and at most a day")
    told: set[str] = set()
    while True:
        result = client.get_task_result(queue, task_id)
        for happening in client.get_task_history(queue, task_id):
            if repr(happening) not in told:
                told.add(repr(happening))
                yield happening
        if result.finished_at is not None:
            raise typer.Exit(0 if result.state == "completed" else 1)
        time.sleep(interval)


def next_fire_time(
    client: Client,
    schedule: str,
    after: datetime | None = None,
    timezone: str = "UTC",
    *,
    count: int = 1,
) -> list[dict[str, Any]]:
    """Show when a schedule fires next: after a time, or from the database's clock on."""
    after = after or client.current_time()
    times: list[dict[str, Any]] = []
    while len(times) < count and after:
        after = client.next_fire_time(schedule, after, timezone)
        times += [{"fires_at": after}] if after else []
    return times


def list_namespaces(client: Client) -> list[dict[str, Any]]:
    """Return how many queues are in each namespace."""
    return [{"namespace": n, "queues": count} for n, count in client.list_namespaces().items()]


def _be_sure(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("what cannot be undone needs --yes where nobody can be asked")
    typer.confirm(question, abort=True, err=True)


VERBS: dict[str, dict[str, Callable[..., Any]]] = {
    "queues": {
        "create": Client.create_queue,
        "list": Client.list_queues,
        "get": Client.get_queue_policy,
        "update": Client.set_queue_policy,
        "delete": delete_queue,
        "stats": Client.queue_stats,
        "pause": Client.pause_queue,
        "resume": Client.resume_queue,
        "cleanup": cleanup,
    },
    "tasks": {
        "spawn": Client.spawn_task,
        "list": Client.list_tasks,
        "get": Client.get_task,
        "result": Client.get_task_result,
        "history": Client.get_task_history,
        "watch": watch,
        "retry": Client.retry_task,
        "cancel": Client.cancel_task,
        "claim": Client.claim_task,
    },
    "runs": {
        "list": Client.list_runs,
        "complete": Client.complete_run,
        "fail": Client.fail_run,
        "schedule": Client.schedule_run,
    },
    "events": {"emit": Client.emit_event},
    "messages": {"send": Client.send_message, "list": Client.list_messages},
    "workflows": {
        "create": Client.create_workflow_run,
        "list": Client.list_workflow_runs,
        "get": Client.get_workflow_run,
        "tree": Client.get_workflow_tree,
        "update": Client.update_workflow_run,
    },
    "handlers": {
        "register": Client.register_handler,
        "unregister": Client.unregister_handler,
        "list": Client.list_handlers,
    },
    "schedules": {
        "create": Client.create_schedule,
        "list": Client.list_schedules,
        "get": Client.get_schedule,
        "update": Client.update_schedule,
        "pause": Client.pause_schedule,
        "resume": Client.resume_schedule,
        "trigger": Client.trigger_schedule,
        "delete": Client.drop_schedule,
        "next": next_fire_time,
    },
    "dlq": {"list": Client.list_dead_letters, "replay": replay, "purge": purge},
    "limits": {"set": Client.set_limit, "usage": Client.limit_usage},
    "workers": {"list": Client.list_workers},
    "namespaces": {"list": list_namespaces},
}
