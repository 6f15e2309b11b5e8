"""Which verb calls what: methods of the client, and the few things that take several calls.

The help of a verb is the first line of its docstring; its arguments and options are those of its
signature.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast

import typer

from teguh._cli.show import progress
from teguh._sync.client import Client, Id
from teguh._types import (
    AwaitedChildren,
    ClaimedRun,
    Cleaned,
    CompletedRun,
    Filter,
    Happening,
    NewTask,
    Order,
    Status,
    given,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    number = None if which else stats.failed
    with client.connection.transaction():
        return _until_none(
            "replayed",
            lambda: client.replay_dead_letters(queue, limit=BATCH, **options, **which),
            number,
        )


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
    return _until_none(
        "deleted",
        lambda: client.purge_dead_letters(
            queue, ttl_seconds=ttl_seconds, limit=BATCH, reason=reason
        ),
    )


def cleanup_tasks(client: Client, queue: str, *, ttl_seconds: float | None = None) -> int:
    """Delete tasks that ended some time ago, until none are left; by default by the policy."""
    return _until_none(
        "deleted", lambda: client.cleanup_tasks(queue, ttl_seconds=ttl_seconds, limit=BATCH)
    )


def cleanup_events(client: Client, queue: str, *, ttl_seconds: float | None = None) -> int:
    """Delete old events that nobody awaits, until none are left; by default by the policy."""
    return _until_none(
        "deleted", lambda: client.cleanup_events(queue, ttl_seconds=ttl_seconds, limit=BATCH)
    )


def cleanup_workflow_runs(client: Client, *, ttl_seconds: float | None = None) -> int:
    """Delete workflow runs that were over long ago and have no task, until none are left."""
    return _until_none("deleted", lambda: client.cleanup_workflow_runs(ttl_seconds, BATCH))


def spawn_tasks(client: Client, queue: str, file: str = "-") -> int:
    """Spawn the tasks of a file, an object per line, all or none; show how many."""
    total = 0
    with _lines(file) as lines, client.connection.transaction(), progress("spawned") as done:
        numbered = enumerate(lines, 1)
        while tasks := [_task(n, line) for n, line in itertools.islice(numbered, BATCH)]:
            client.spawn_tasks(queue, tasks)
            total += len(tasks)
            done(len(tasks))
    return total


@contextmanager
def _lines(file: str) -> Iterator[Iterable[str]]:
    """Yield the lines of a file, - being standard input."""
    try:
        if file == "-":
            yield sys.stdin
        else:
            with Path(file).open(encoding="utf-8") as lines:
                yield lines
    except OSError as error:
        raise typer.BadParameter(f"{file!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{file!r} is not in UTF-8") from None


def _task(number: int, line: str) -> NewTask:
    try:
        task = NewTask(**json.loads(line))
        return NewTask(task.task_name, task.params, dict(task.options or {}))  # type: ignore[arg-type]
    except (ValueError, TypeError, RecursionError) as error:
        raise typer.BadParameter(
            f"line {number} is no object of task_name, params, options: {error}"
        ) from None


def cancel_tasks(
    client: Client,
    queue: str,
    *,
    everything: bool = False,
    limit: int | None = None,
    reason: str | None = None,
    **which: Unpack[Filter],
) -> int:
    """Cancel the tasks that a filter means: so many, or else until none are left.

    Each batch is a transaction.
    """

    most = BATCH if limit is None else limit

    def batch() -> int:
        return client.cancel_tasks(queue, everything=everything, limit=most, reason=reason, **which)

    return _until_none("cancelled", batch) if limit is None else batch()


def requeue_tasks(
    client: Client,
    queue: str,
    *,
    worker_id: str | None = None,
    everything: bool = False,
    limit: int | None = None,
    reason: str | None = None,
    **which: Unpack[Filter],
) -> int:
    """Take running tasks from their workers: so many, or else all, in a transaction."""

    most = BATCH if limit is None else limit

    def batch() -> int:
        return client.requeue_tasks(
            queue,
            worker_id=worker_id,
            everything=everything,
            limit=most,
            reason=reason,
            **which,
        )

    if limit is not None:
        return batch()
    with client.connection.transaction():
        return _until_none("requeued", batch)


def requeue_task(
    client: Client, queue: str, task_id: Id, *, reason: str | None = None
) -> dict[str, Any]:
    """Take a running task from a worker known to be dead; show its next run."""
    return {"run_id": client.requeue_task(queue, task_id, reason=reason)}


def repeat_run(
    client: Client, queue: str, run_id: Id, *, after_seconds: float = 0
) -> dict[str, Any]:
    """End a run with success and begin its task anew; show the next run."""
    return {"run_id": client.repeat_run(queue, run_id, after_seconds)}


def release_run(client: Client, queue: str, run_id: Id, *, delay_seconds: float = 0) -> None:
    """Hand a run back, without counting a failure."""
    client.release_run(queue, run_id, delay_seconds)


def complete_runs(client: Client, queue: str, results: Mapping[str, Any]) -> list[CompletedRun]:
    """Complete many runs in one statement; what is lost does not fail the others."""
    return client.complete_runs(queue, results)


def claim_any(
    client: Client,
    worker_id: str = "worker",
    *,
    queues: Sequence[str] | None = None,
    claim_timeout: float = 30,
    qty: int = 1,
    task_names: Sequence[str] | None = None,
    order: Order | None = None,
) -> list[ClaimedRun]:
    """Claim runs of several queues, by default of all."""
    return client.claim_any(
        queues, worker_id, claim_timeout=claim_timeout, qty=qty, task_names=task_names, order=order
    )


def next_due(client: Client, queue: str) -> dict[str, Any]:
    """Show when the next task is due, null if none is."""
    return {"next_due": client.next_due(queue)}


def get_checkpoint(client: Client, queue: str, task_id: Id, step_name: str) -> dict[str, Any]:
    """Show the state of a step, null if there is none."""
    return {"state": client.get_task_checkpoint_state(queue, task_id, step_name)}


def await_children(
    client: Client,
    queue: str,
    task_id: Id,
    run_id: Id,
    step_name: str,
    *,
    mode: str = "all",
    timeout: float | None = None,
    on_failure: Literal["collect", "fail_fast"] = "collect",
    cancel_rest: bool = False,
) -> AwaitedChildren:
    """Show what became of a step's children, or put the run to sleep until it is known."""
    return client.await_children(
        queue,
        task_id,
        run_id,
        step_name,
        mode=cast("Any", mode),
        timeout=timeout,
        on_failure=on_failure,
        cancel_rest=cancel_rest,
    )


def start(
    client: Client,
    *,
    ticker_schedule: str | None = None,
    cleanup_schedule: str | None = None,
    work: Sequence[str] | None = None,
) -> Status:
    """Schedule ticker and cleanup in pg_cron, if that is there; show who ticks."""
    client.start(ticker_schedule=ticker_schedule, cleanup_schedule=cleanup_schedule, work=work)
    return client.status()


def _until_none(what: str, batch: Callable[[], int], number: int | None = None) -> int:
    """Do batch after batch until one has nothing to do; show how far it is."""
    total = 0
    with progress(what, number) as done:
        while count := batch():
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
        "actions": Client.list_actions,
        "metrics": Client.metrics,
        "next-due": next_due,
        "rebuild": Client.rebuild_dispatch,
        "cleanup": cleanup,
    },
    "tasks": {
        "spawn": Client.spawn_task,
        "spawn-many": spawn_tasks,
        "list": Client.list_tasks,
        "get": Client.get_task,
        "result": Client.get_task_result,
        "history": Client.get_task_history,
        "watch": watch,
        "retry": Client.retry_task,
        "cancel": Client.cancel_task,
        "cancel-many": cancel_tasks,
        "requeue": requeue_task,
        "requeue-many": requeue_tasks,
        "claim": Client.claim_task,
        "claim-any": claim_any,
        "cleanup": cleanup_tasks,
    },
    "runs": {
        "list": Client.list_runs,
        "complete": Client.complete_run,
        "complete-many": complete_runs,
        "fail": Client.fail_run,
        "schedule": Client.schedule_run,
        "release": release_run,
        "extend": Client.extend_claim,
        "repeat": repeat_run,
        "compensate": Client.add_compensation,
    },
    "checkpoints": {
        "list": Client.get_task_checkpoint_states,
        "get": get_checkpoint,
        "set": Client.set_task_checkpoint_state,
    },
    "children": {"spawn": Client.spawn_children, "await": await_children},
    "events": {
        "emit": Client.emit_event,
        "list": Client.list_events,
        "await": Client.await_event,
        "cleanup": cleanup_events,
    },
    "messages": {
        "send": Client.send_message,
        "list": Client.list_messages,
        "receive": Client.receive_message,
    },
    "attributes": {"get": Client.get_attributes, "set": Client.set_attributes},
    "workflows": {
        "create": Client.create_workflow_run,
        "list": Client.list_workflow_runs,
        "get": Client.get_workflow_run,
        "tree": Client.get_workflow_tree,
        "update": Client.update_workflow_run,
        "cleanup": cleanup_workflow_runs,
    },
    "handlers": {
        "register": Client.register_handler,
        "unregister": Client.unregister_handler,
        "list": Client.list_handlers,
        "work": Client.work,
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
    "access": {"grant": Client.grant_access, "revoke": Client.revoke_access},
    "ticker": {
        "run": Client.ticker,
        "loop": Client.ticker_loop,
        "start": start,
        "stop": Client.stop,
        "status": Client.status,
    },
}
