"""What each page shows. A view returns the values of the template of its name.

Those called ``…_value`` return a value that a page shows the beginning of.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from teguh.errors import WorkflowRunNotFound
from teguh.server._errors import Problem
from teguh.server._pages import plots
from teguh.server._pages.acts import COUNTED, Act, count_meant
from teguh.server._pages.family import family, find
from teguh.server._pages.filters import STATES, fields_of, filter_of, moment
from teguh.server._pages.text import is_id
from teguh.server._pages.timeline import timeline
from teguh.server._shape import Misshapen, from_text

if TYPE_CHECKING:
    from datetime import datetime

    from starlette.datastructures import QueryParams

    from teguh._async.client import AsyncClient as Client
    from teguh._types import LimitUsage, QueueStats, Schedule, WorkflowRunFilter
    from teguh.server._pages.samples import Samples

PAGE = 50
QUEUES_SHOWN = 100

# Limits are asked for of so many queues on one page, and not again before so long.
_LIMITED_QUEUES = 20
_USAGE_SECONDS = 5.0


class Moved(Exception):
    """What was asked for is elsewhere: `parts` of a path, and a query."""

    def __init__(self, *parts: str, **query: str) -> None:
        super().__init__(parts)
        self.parts = parts
        self.query = query


class Usage:
    """How much of the limits is used, the same for all who look within a few seconds.

    Counting takes the longer, the more tasks wait for their turn; so one that took long is kept
    twenty times as long.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, list[LimitUsage]]] = {}

    async def of(self, client: Client, queue: str) -> list[LimitUsage]:
        """Return the limits of a queue."""
        begun = time.monotonic()
        until, rows = self._kept.get(queue, (0.0, []))
        if begun >= until:
            rows = await client.limit_usage(queue)
            ended = time.monotonic()
            for name in [name for name, (kept, _) in self._kept.items() if kept < ended]:
                del self._kept[name]
            self._kept[queue] = (ended + max(_USAGE_SECONDS, 20 * (ended - begun)), rows)
        return rows

    def forget(self) -> None:
        """Ask again, because something was done."""
        self._kept.clear()


@dataclass(frozen=True, slots=True)
class Ask:
    """What a view is asked: by path and query, of a client, and what the service knows itself."""

    client: Client
    path: dict[str, str]
    query: QueryParams
    now: datetime
    samples: Samples
    usage: Usage
    wall: float = field(default_factory=time.time)

    @property
    def queue(self) -> str:
        return self.path["queue"]

    @property
    def cursor(self) -> str | None:
        return self.query.get("cursor") or None

    def uuid(self, name: str, text: str) -> UUID:
        found: UUID = from_text([text], UUID, name)
        return found


Values = dict[str, Any]
View = Callable[[Ask], Awaitable[Values]]


async def overview(ask: Ask) -> Values:
    queues = {queue.queue_name: queue for queue in await ask.client.list_queues()}
    every = await ask.client.queue_stats()
    wanted = ask.query.get("name", "")
    namespace = ask.query.get("namespace", "")
    names = {q.queue_name for q in queues.values() if namespace in ("", q.namespace)}
    found = [row for row in every if wanted in row.queue_name and row.queue_name in names]
    stats = found[:QUEUES_SHOWN]
    points = ask.samples.points()
    sparks = {
        row.queue_name: plots.spark(ask.samples.completed(row.queue_name), ask.wall)
        for row in stats
    }
    limits = [
        (row.queue_name, limit)
        for row in stats[:_LIMITED_QUEUES]
        for limit in await ask.usage.of(ask.client, row.queue_name)
    ]
    return {
        "stats": stats,
        "more": len(found) - len(stats),
        "total": summed(every),
        "queues": queues,
        "namespaces": sorted({queue.namespace for queue in queues.values()}),
        "name": wanted,
        "namespace": namespace,
        "health": await ask.client.health(),
        "plots": [plots.throughput(points, ask.wall), plots.durations(points, ask.wall)],
        "sparks": sparks,
        "limits_used": limits,
        "limits_cut": len(stats) > _LIMITED_QUEUES,
    }


def summed(rows: Iterable[QueueStats]) -> dict[str, int]:
    """Return how many tasks of all queues stand where."""
    names = ("pending", "delayed", "running", "sleeping", "waiting", "completed", "failed",
             "cancelled", "expired")  # fmt: skip
    kept = list(rows)
    return {name: sum(getattr(row, name) for row in kept) for name in names}


async def queue(ask: Ask) -> Values:
    (stats,) = await ask.client.queue_stats(ask.queue)
    points = ask.samples.points(ask.queue)
    queues = {row.queue_name: row for row in await ask.client.list_queues()}
    return {
        "stats": stats,
        "about": queues.get(ask.queue),
        "policy": await ask.client.get_queue_policy(ask.queue),
        "limits_used": [(ask.queue, row) for row in await ask.usage.of(ask.client, ask.queue)],
        "actions": await ask.client.list_actions(ask.queue, limit=10),
        "workers": await ask.client.list_workers(ask.queue),
        "plots": [plots.throughput(points, ask.wall), plots.durations(points, ask.wall)],
    }


async def actions(ask: Ask) -> Values:
    rows = await ask.client.list_actions(ask.queue, cursor=ask.cursor, limit=PAGE)
    return {"actions": rows, "next": rows[-1].cursor if len(rows) == PAGE else None}


async def tasks(ask: Ask) -> Values:
    fields = fields_of(ask.query)
    if is_id(fields.get("task_name", "")):
        raise Moved("find", q=fields["task_name"])
    which = filter_of(fields)
    rows = await ask.client.list_tasks(ask.queue, cursor=ask.cursor, limit=PAGE, **which)
    return {
        "tasks": rows,
        "fields": fields,
        "states": STATES,
        "next": rows[-1].cursor if len(rows) == PAGE else None,
    }


async def dead_letters(ask: Ask) -> Values:
    fields = fields_of(ask.query)
    fields.pop("state", None)
    which = filter_of(fields)
    rows = await ask.client.list_dead_letters(ask.queue, cursor=ask.cursor, limit=PAGE, **which)
    return {
        "tasks": rows,
        "fields": fields,
        "next": rows[-1].cursor if len(rows) == PAGE else None,
    }


async def task(ask: Ask) -> Values:
    task_id = ask.uuid("task_id", ask.path["task_id"])
    client = ask.client
    found = await client.get_task(ask.queue, task_id)
    assert found.run_id is not None
    steps = await client.get_task_checkpoint_states(ask.queue, task_id, found.run_id)
    runs = await client.list_runs(ask.queue, task_id)
    history = await client.get_task_history(ask.queue, task_id)
    queues = [row.queue_name for row in await client.list_queues()]
    around = await family(client, ask.queue, found, queues)
    children = [member for member in around.members if member.parent_task_id == task_id]
    return {
        "task": found,
        "steps": steps,
        "runs": runs,
        "history": history,
        "messages": await client.list_messages(ask.queue, task_id),
        "family": around,
        "timeline": timeline(found, runs, steps, history, children, ask.now),
    }


async def task_value(ask: Ask) -> Any:
    task_id = ask.uuid("task_id", ask.path["task_id"])
    of, name = ask.query.get("of", ""), ask.query.get("name", "")
    if of == "step":
        return await ask.client.get_task_checkpoint_state(ask.queue, task_id, name)
    if of == "message":
        for message in await ask.client.list_messages(ask.queue, task_id):
            if str(message.message_id) == name:
                return message.payload
        raise Problem("there is no such message", "42883")
    found = await ask.client.get_task(ask.queue, task_id)
    known = {
        "params": found.params,
        "headers": found.headers,
        "result": found.completed_payload,
        "failure": found.failure_reason,
        "event": found.event_payload,
    }
    if of not in known:
        raise Misshapen("of", f"is not one of {', '.join([*known, 'step', 'message'])}")
    return known[of]


async def workflow_run_value(ask: Ask) -> Any:
    run_id = ask.uuid("workflow_run_id", ask.path["workflow_run_id"])
    return (await ask.client.get_workflow_run(run_id)).inputs


async def schedule_value(ask: Ask) -> Any:
    return (await ask.client.get_schedule(ask.query.get("name", ""))).options


async def events(ask: Ask) -> Values:
    query = ask.query
    which: dict[str, Any] = {
        key: moment(query[key], key)
        for key in ("created_after", "created_before")
        if query.get(key)
    }
    if prefix := query.get("prefix"):
        which["prefix"] = prefix
    if emitted := query.get("emitted"):
        which["emitted"] = emitted == "yes"
    rows = await ask.client.list_events(ask.queue, cursor=ask.cursor, limit=PAGE, **which)
    return {
        "events": rows,
        "fields": {key: value for key, value in query.items() if value and key != "cursor"},
        "next": rows[-1].cursor if len(rows) == PAGE else None,
    }


async def schedules(ask: Ask) -> Values:
    wanted = ask.query.get("queue", "")
    rows = await ask.client.list_schedules(wanted or None)
    return {"schedules": rows, "queue_name": wanted}


async def schedule(ask: Ask) -> Values:
    found = await ask.client.get_schedule(ask.query.get("name", ""))
    return {"schedule": found, "times": await _next_times(ask, found)}


async def _next_times(ask: Ask, found: Schedule) -> list[datetime]:
    """Return when a schedule is to fire next, five times at most."""
    times: list[datetime] = []
    at = found.next_fire_at
    zone = found.options.get("timezone") or "UTC"
    ends_at = found.options.get("ends_at")
    until = moment(ends_at, "ends_at") if ends_at else None
    while at is not None and len(times) < 5 and (until is None or at <= until):
        times.append(at)
        at = await ask.client.next_fire_time(found.schedule, at, zone)
    return times


async def workers(ask: Ask) -> Values:
    wanted = ask.query.get("queue", "")
    return {"workers": await ask.client.list_workers(wanted or None), "queue_name": wanted}


async def workflow_runs(ask: Ask) -> Values:
    query = ask.query
    which: WorkflowRunFilter = {}
    if name := query.get("name"):
        which["name"] = name
    if tag := query.get("tag"):
        which["tags"] = [tag]
    if status := query.get("status"):
        which["status"] = status  # type: ignore[typeddict-item]
    if is_id(which.get("name", "")):
        raise Moved("workflow-runs", which["name"])
    rows = await ask.client.list_workflow_runs(cursor=ask.cursor, limit=PAGE, **which)
    return {
        "runs": rows,
        "fields": {key: query[key] for key in ("name", "tag", "status") if query.get(key)},
        "states": [state for state in STATES if state != "expired"],
        "next": rows[-1].cursor if len(rows) == PAGE else None,
    }


async def workflow_run(ask: Ask) -> Values:
    run_id = ask.uuid("workflow_run_id", ask.path["workflow_run_id"])
    return {
        "run": await ask.client.get_workflow_run(run_id),
        "tree": await ask.client.get_workflow_tree(run_id, limit=500),
    }


async def search(ask: Ask) -> Values:
    """Find a task or a workflow run by its id, wherever it is."""
    text = ask.query.get("q", "").strip()
    if not is_id(text):
        raise Misshapen("the search", "takes the id of a task or of a workflow run")
    wanted = ask.uuid("q", text)
    names = [row.queue_name for row in await ask.client.list_queues()]
    if found := await find(ask.client, names, wanted):
        raise Moved("queues", found[0], "tasks", str(wanted))
    try:
        await ask.client.get_workflow_run(wanted)
    except WorkflowRunNotFound:
        raise Problem(
            "nothing has this id", "TG003",
            f"Neither a task of a queue nor a workflow run is {wanted}.",
            "It may have been cleaned up. The id of a run is found on the page of its task.",
        ) from None  # fmt: skip
    raise Moved("workflow-runs", str(wanted))


async def about(ask: Ask, act: Act, target: dict[str, Any]) -> Values:
    """Return what the page that asks before an action says of what it is about."""
    client = ask.client
    if act.about == "schedule":
        return {"schedule": await client.get_schedule(target["name"]), "steps": []}
    queue_name = target["queue"]
    if act.about == "task":
        found = await client.get_task(queue_name, target["task_id"])
        assert found.run_id is not None
        steps = await client.get_task_checkpoint_states(queue_name, found.task_id, found.run_id)
        return {"task": found, "steps": steps[:200] if act.name == "retry-task" else []}
    (stats,) = await client.queue_stats(queue_name)
    values: Values = {"stats": stats, "steps": []}
    if act.about == "worker":
        held = await client.list_workers(queue_name)
        values["held"] = sum(row.runs for row in held if row.worker_id == target["worker_id"])
    elif act.about == "filter":
        which = filter_of(target["fields"])
        meant = await count_meant(client, act, queue_name, which)
        values |= {"meant": min(meant, COUNTED), "more": meant > COUNTED}
    return values
