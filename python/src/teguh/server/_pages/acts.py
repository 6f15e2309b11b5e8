"""What can be done from the dashboard: each a page that asks, and what it calls when sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from teguh._async.client import AsyncClient as Client
from teguh.server._pages.filters import LIVE, filter_of
from teguh.server._routes import RULE, USE
from teguh.server._shape import Misshapen, from_text, parse

if TYPE_CHECKING:
    from teguh._types import Filter, Only

# A page that asks counts up to here what it is about.
COUNTED = 1000

# What an action is about: the names in the query of its page. A filter's come besides.
Target = Mapping[str, Any]
Typed = Mapping[str, str]
About = Literal["task", "queue", "schedule", "filter", "worker"]

# Does it, and returns how many tasks it was done to, or the task that came of it.
Call = Callable[[Client, Target, Typed], Awaitable[int | UUID | None]]


@dataclass(frozen=True, slots=True)
class Input:
    """A field of the form."""

    name: str
    label: str
    kind: Literal["text", "number", "box", "json"] = "text"
    note: str = ""
    required: bool = False
    value: str = ""


REASON = Input("reason", "Reason", note="Kept with the action, for whoever asks later.")
LIMIT = Input("limit", "At most", "number", "Tasks at a time, the newest first.", value="1000")
ATTEMPTS = Input("max_attempts", "Attempts", "number", "Empty: room for at least one more run.")
STEP = Input("from_step", "From step", note="Its checkpoint and all after it are deleted.")
TASK_NAME = Input("task_name", "Only task name", note="Empty: the whole queue.")
KEY = Input("key", "Only key", note="Instead of a task name.")


@dataclass(frozen=True, slots=True)
class Act:
    """An action: who may do it, about what, what its page says and asks, and what is said after."""

    scopes: tuple[str, ...]
    name: str
    about: About
    title: str
    text: str
    inputs: tuple[Input, ...]
    call: Call
    done: str
    grave: bool = False


def _number(typed: Typed, name: str, kind: type[int | float] = int) -> Any:
    text = typed.get(name, "").strip()
    return from_text([text], kind, name) if text else None


def _text(typed: Typed, name: str) -> str | None:
    return typed.get(name) or None


def _reason(typed: Typed) -> str | None:
    return typed.get("reason", "").strip() or None


def _only(typed: Typed) -> Only | None:
    only: Only = {}
    if name := _text(typed, "task_name"):
        only["task_name"] = name
    if key := _text(typed, "key"):
        only["key"] = key
    return only or None


async def cancel_task(client: Client, target: Target, typed: Typed) -> None:
    await client.cancel_task(target["queue"], target["task_id"], reason=_reason(typed))


async def retry_task(client: Client, target: Target, typed: Typed) -> None:
    await client.retry_task(
        target["queue"],
        target["task_id"],
        max_attempts=_number(typed, "max_attempts"),
        from_step=_text(typed, "from_step"),
        reason=_reason(typed),
    )


async def replay_task(client: Client, target: Target, typed: Typed) -> UUID:
    spawned = await client.retry_task(
        target["queue"],
        target["task_id"],
        spawn_new=True,
        max_attempts=_number(typed, "max_attempts"),
        reason=_reason(typed),
    )
    return spawned.task_id


async def requeue_task(client: Client, target: Target, typed: Typed) -> None:
    await client.requeue_task(target["queue"], target["task_id"], reason=_reason(typed))


async def cancel_tasks(client: Client, target: Target, typed: Typed) -> int:
    return await client.cancel_tasks(
        target["queue"],
        everything="everything" in typed,
        limit=_number(typed, "limit"),
        reason=_reason(typed),
        **filter_of(target["fields"]),
    )


async def requeue_tasks(client: Client, target: Target, typed: Typed) -> int:
    return await client.requeue_tasks(
        target["queue"],
        worker_id=target["worker_id"],
        limit=_number(typed, "limit"),
        reason=_reason(typed),
    )


async def replay_dead_letters(client: Client, target: Target, typed: Typed) -> int:
    return await client.replay_dead_letters(
        target["queue"],
        limit=_number(typed, "limit"),
        per_second=_number(typed, "per_second", float),
        max_attempts=_number(typed, "max_attempts"),
        from_step=_text(typed, "from_step"),
        reason=_reason(typed),
        **filter_of(target["fields"]),
    )


async def purge_dead_letters(client: Client, target: Target, typed: Typed) -> int:
    limit = _number(typed, "limit")
    return await client.purge_dead_letters(
        target["queue"],
        ttl_seconds=_number(typed, "ttl_seconds", float),
        limit=1000 if limit is None else limit,
        reason=_reason(typed),
    )


async def pause_queue(client: Client, target: Target, typed: Typed) -> None:
    seconds = _number(typed, "seconds", float)
    until = None
    if seconds is not None:
        try:
            until = await client.current_time() + timedelta(seconds=seconds)
        except OverflowError:
            raise Misshapen("seconds", "is out of range") from None
    await client.pause_queue(target["queue"], until, reason=_reason(typed), only=_only(typed))


async def resume_queue(client: Client, target: Target, typed: Typed) -> None:
    await client.resume_queue(target["queue"], reason=_reason(typed), only=_only(typed))


async def emit_event(client: Client, target: Target, typed: Typed) -> None:
    payload = typed.get("payload", "").strip()
    await client.emit_event(
        target["queue"],
        typed.get("event_name", ""),
        parse(payload.encode(), "payload") if payload else None,
    )


async def pause_schedule(client: Client, target: Target, typed: Typed) -> None:
    await client.pause_schedule(target["name"], reason=_reason(typed))


async def resume_schedule(client: Client, target: Target, typed: Typed) -> None:
    await client.resume_schedule(target["name"], reason=_reason(typed))


async def trigger_schedule(client: Client, target: Target, typed: Typed) -> UUID:
    return (await client.trigger_schedule(target["name"], reason=_reason(typed))).task_id


async def drop_schedule(client: Client, target: Target, typed: Typed) -> None:
    await client.drop_schedule(target["name"], reason=_reason(typed))


ACTS = {
    act.name: act
    for act in (
        Act(
            USE, "cancel-task", "task", "Cancel this task",
            "It ends as cancelled. A worker that holds it meets AB001 at its next call.",
            (REASON,), cancel_task, "The task is cancelled.", grave=True,
        ),
        Act(
            USE, "retry-task", "task", "Retry this task",
            "It runs once more, from its checkpoints on.",
            (ATTEMPTS, STEP, REASON), retry_task, "The task runs again.",
        ),
        Act(
            USE, "replay-task", "task", "Replay as a new task",
            "A new task of the same name, params and options begins; this one stays as it is.",
            (ATTEMPTS, REASON), replay_task, "This is the new task.",
        ),
        Act(
            RULE, "requeue-task", "task", "Requeue this task",
            "It is taken from its worker and queued at once, with its checkpoints. No failure is "
            "counted. A worker that is alive after all meets AB002.",
            (REASON,), requeue_task, "The task was taken from its worker.", grave=True,
        ),
        Act(
            USE, "cancel-tasks", "filter", "Cancel what matches",
            "Tasks that are not over and match the filter end as cancelled.",
            (LIMIT, REASON), cancel_tasks, "Cancelled: {}.", grave=True,
        ),
        Act(
            RULE, "replay-dead-letters", "filter", "Replay dead letters",
            "Failed tasks that match run once more, from their checkpoints on.",
            (
                LIMIT,
                Input("per_second", "Per second", "number", "Empty: all start at once."),
                ATTEMPTS, STEP, REASON,
            ),
            replay_dead_letters, "Replayed: {}.",
        ),
        Act(
            RULE, "purge-dead-letters", "queue", "Purge dead letters",
            "Failed tasks are deleted for good, with all that is known of them.",
            (
                Input(
                    "ttl_seconds", "Failed more than so many seconds ago", "number",
                    "Empty: what the policy of the queue says of cleanup. 0: all.",
                ),
                LIMIT, REASON,
            ),
            purge_dead_letters, "Purged: {}.", grave=True,
        ),
        Act(
            RULE, "requeue-tasks", "worker", "Requeue what this worker holds",
            "What it holds in this queue is taken from it and queued at once. No failure is "
            "counted. Do so when the worker is known to be dead.",
            (LIMIT, REASON), requeue_tasks, "Requeued: {}.", grave=True,
        ),
        Act(
            RULE, "pause-queue", "queue", "Pause the queue",
            "Claims get nothing more. What runs goes on, and so do spawns, events and timers.",
            (
                Input("seconds", "For so many seconds", "number", "Empty: until it is resumed."),
                TASK_NAME, KEY, REASON,
            ),
            pause_queue, "The queue is paused.",
        ),
        Act(
            RULE, "resume-queue", "queue", "Resume the queue",
            "The pause ends, and the workers are woken.",
            (TASK_NAME, KEY, REASON), resume_queue, "The queue is resumed.",
        ),
        Act(
            USE, "emit-event", "queue", "Emit an event",
            "Whoever awaits it goes on. The first payload of a name wins.",
            (
                Input("event_name", "Event name", required=True),
                Input("payload", "Payload", "json", "JSON; empty: null."),
            ),
            emit_event, "The event is emitted.",
        ),
        Act(
            RULE, "pause-schedule", "schedule", "Pause the schedule",
            "It does not fire until it is resumed.",
            (REASON,), pause_schedule, "The schedule is paused.",
        ),
        Act(
            RULE, "resume-schedule", "schedule", "Resume the schedule",
            "It fires again, from its next time on.",
            (REASON,), resume_schedule, "The schedule is resumed.",
        ),
        Act(
            RULE, "trigger-schedule", "schedule", "Trigger the schedule",
            "Its task is spawned at once, besides those planned.",
            (REASON,), trigger_schedule, "This is the task that was triggered.",
        ),
        Act(
            RULE, "drop-schedule", "schedule", "Drop the schedule",
            "It is deleted and fires no more. The tasks that it spawned stay.",
            (REASON,), drop_schedule, "The schedule is dropped.", grave=True,
        ),
    )
}  # fmt: skip


async def count_meant(client: Client, act: Act, queue: str, which: Filter) -> int:
    """Return how many tasks an action would be done to, or COUNTED + 1 if there are more."""
    if act.name == "replay-dead-letters":
        return len(await client.list_dead_letters(queue, limit=COUNTED + 1, **which))
    wanted = which.get("state", LIVE)
    states = [wanted] if isinstance(wanted, str) else wanted
    live = [state for state in LIVE if state in states]
    if not live:
        return 0
    meant: Filter = {**which, "state": live}
    return len(await client.list_tasks(queue, limit=COUNTED + 1, **meant))
