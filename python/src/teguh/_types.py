"""What the SQL functions take and return, as Python types."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict
from uuid import UUID

from teguh._traces import propagated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Access = Literal["client", "worker", "observer", "admin"]
Order = Literal["round_robin", "strict", "oldest"]
Scope = Literal["all", "queue", "task", "key"]
State = Literal["pending", "running", "sleeping", "completed", "failed", "cancelled", "expired"]
WorkflowStatus = Literal["pending", "running", "sleeping", "completed", "failed", "cancelled"]


class RetryStrategy(TypedDict, total=False):
    """How long to wait between failed runs. Durations in seconds."""

    kind: Literal["none", "fixed", "exponential", "linear", "quadratic"]
    base_seconds: float
    factor: float
    max_seconds: float
    jitter: float


class Cancellation(TypedDict, total=False):
    """When a task is cancelled by itself. Durations in seconds."""

    max_delay: float
    max_duration: float


class SpawnOptions(TypedDict, total=False):
    """The options of ``spawn_task``; what is left out is the queue's or the engine's default."""

    headers: Mapping[str, Any]
    retry_strategy: RetryStrategy
    max_attempts: int | None
    cancellation: Cancellation
    idempotency_key: str
    idempotency_mismatch: Literal["error", "return"]
    available_at: datetime
    delay_seconds: float
    timeout_seconds: float | None
    ttl_seconds: float | None
    deadline_at: datetime
    on_expired: FollowUp
    tags: Sequence[str]
    correlation_id: str
    parent_task_id: UUID | str
    parent_run_id: UUID | str
    parent_queue_name: str
    workflow_run_id: UUID | str
    unique: Unique
    priority: int
    key: str
    sequence: Sequence[SequenceTask]
    on_failure: FollowUp
    compensate: FollowUp


class Unique(TypedDict, total=False):
    """In what way a task is to be the only one of its key. Durations in seconds."""

    key: str
    states: Sequence[State]
    on_conflict: Literal["error", "return", "replace", "debounce"]
    window_seconds: float
    max_wait_seconds: float


class FollowUp(TypedDict, total=False):
    """A task to spawn when another is over, or as its child; in the same queue by default."""

    queue_name: str
    task_name: str
    params: Any
    options: SpawnOptions


class WorkOptions(TypedDict, total=False):
    """The options of ``work``, durations in seconds. What is left out, or None, is the default.

    ``max_seconds`` (None): how long to go on; None means until nothing is due.
    ``poll_seconds`` (1): the longest wait between two looks.
    ``limit`` (None): how many runs to claim at most.
    ``batch`` (1): how many to claim at a time.
    ``claim_timeout`` (30): after how long the run of a session that died is taken from it.
    ``known_only`` (False): claim only tasks that there are handlers for.
    ``unknown_delay`` (10): how long others are handed back for.
    ``worker_id``: the name under which the lease is held.
    """

    max_seconds: float | None
    poll_seconds: float | None
    limit: int | None
    batch: int | None
    claim_timeout: float | None
    known_only: bool | None
    unknown_delay: float | None
    worker_id: str | None


class ScheduleOptions(TypedDict, total=False):
    """The options of a schedule; what is left out, or None, is the default."""

    params: Any
    task_options: SpawnOptions | None
    timezone: str | None
    catch_up: Literal["one", "all", "skip"] | None
    overlap: Literal["allow", "skip"] | None
    jitter_seconds: float | None
    starts_at: datetime | None
    ends_at: datetime | None


class ScheduleChanges(ScheduleOptions, total=False):
    """What ``update_schedule`` may change; what is left out stays as it is."""

    task_name: str
    schedule: str


class SequenceTask(FollowUp, total=False):
    """A task of a sequence, and the one that undoes it should a later one fail."""

    compensate: FollowUp


class QueuePolicy(TypedDict, total=False):
    """The policy of a queue; what is left out keeps its value."""

    notify: Literal["auto", "always", "off"]
    cleanup_ttl: float | None
    cleanup_limit: int | None
    default_max_attempts: int | None
    default_retry_strategy: RetryStrategy | None
    default_timeout: float | None
    default_ttl: float | None
    duration_buckets: Sequence[float] | None
    max_pending: int | None
    max_messages: int | None
    on_full: Literal["reject", "drop_oldest"] | None
    namespace: str | None
    history: bool | None


class Limit(TypedDict, total=False):
    """What ``set_limit`` lets run; what is left out is without limit.

    ``rate`` starts within any ``period_seconds``. ``fifo`` and ``fair`` are for keys.
    """

    max_running: int | None
    rate: int | None
    period_seconds: float | None
    fifo: bool
    fair: bool


class Only(TypedDict, total=False):
    """The one task name, or the one key, that a pause is for."""

    task_name: str
    key: str


class Filter(TypedDict, total=False):
    """Which tasks are meant: those for which all that is given holds. Ages in seconds."""

    state: State | Sequence[State]
    task_name: str
    tag: str
    tags: Sequence[str]
    correlation_id: str
    parent_task_id: UUID | str
    workflow_run_id: UUID | str
    attributes: dict[str, str | float | bool]
    created_after: datetime
    created_before: datetime
    older_than_seconds: float


class EventFilter(TypedDict, total=False):
    """Which events are meant: those for which all that is given holds. Ages in seconds."""

    prefix: str
    emitted: bool
    awaited: bool
    created_after: datetime
    created_before: datetime
    older_than_seconds: float


class WorkflowRunOptions(TypedDict, total=False):
    """What is known of a workflow run beside its name; None is nothing."""

    version: str | None
    inputs: Any
    tags: Sequence[str] | None
    created_by: str | None


class WorkflowRunFilter(TypedDict, total=False):
    """Which workflow runs are meant: those for which all that is given holds."""

    name: str
    version: str
    tags: Sequence[str]
    created_by: str
    created_after: datetime
    created_before: datetime
    status: WorkflowStatus | Sequence[WorkflowStatus]


@dataclass(frozen=True, slots=True)
class NewTask:
    """One task of ``spawn_tasks``."""

    task_name: str
    params: Any = None
    options: SpawnOptions | None = None


@dataclass(frozen=True, slots=True)
class Spawned:
    """A spawned task. ``created`` is false if the idempotency key found an existing one."""

    task_id: UUID
    run_id: UUID
    attempt: int
    created: bool


@dataclass(slots=True)  # not frozen: that would make it four times as slow to create
class ClaimedRun:
    """A run handed to a worker under a lease. Of which queue, ``claim_any`` tells."""

    run_id: UUID
    task_id: UUID
    attempt: int
    task_name: str
    params: Any
    retry_strategy: dict[str, Any] | None
    max_attempts: int | None
    headers: dict[str, Any] | None
    wake_event: str | None
    event_payload: Any
    failures: int
    checkpoints: dict[str, Any] | None
    lease_expires_at: datetime | None
    timeout_seconds: float | None = None
    queue_name: str | None = None


@dataclass(frozen=True, slots=True)
class CompletedRun:
    """What became of one run of ``complete_runs``; ``error`` is an SQLSTATE or None."""

    run_id: UUID
    applied: bool
    error: str | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A stored step. ``status`` is ``timed_out`` for an event that did not come in time."""

    checkpoint_name: str
    state: Any
    status: Literal["committed", "timed_out"]
    owner_run_id: UUID
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Awaited:
    """The answer of ``await_event`` or ``receive_message``.

    Suspend, or go on with the payload or the timeout.
    """

    should_suspend: bool
    payload: Any
    timed_out: bool


@dataclass(frozen=True, slots=True)
class SentMessage:
    """A message to a task. ``created`` is false if one of the same key had been sent before."""

    message_id: int
    created: bool


@dataclass(frozen=True, slots=True)
class Message:
    """A message that waits in a task's mailbox."""

    message_id: int
    topic: str
    payload: Any
    sent_at: datetime
    idempotency_key: str | None


@dataclass(frozen=True, slots=True)
class Event:
    """An event; ``emitted_at`` is None while it is only awaited, by so many ``waiters``."""

    event_name: str
    created_at: datetime
    emitted_at: datetime | None
    payload: Any
    waiters: int
    cursor: str


@dataclass(frozen=True, slots=True)
class SpawnedChild:
    """A child of a step. ``created`` is false if the step had spawned it before."""

    queue_name: str
    task_id: UUID
    created: bool


@dataclass(frozen=True, slots=True)
class ChildResult:
    """What became of a child. ``state`` is None for one that is gone without a trace."""

    task_id: UUID
    queue_name: str
    state: State | None
    result: Any
    failure_reason: Any


@dataclass(frozen=True, slots=True)
class AwaitedChildren:
    """The answer of ``await_children``: suspend, or go on with the children or the timeout."""

    should_suspend: bool
    children: list[ChildResult]
    timed_out: bool


@dataclass(frozen=True, slots=True)
class TaskResult:
    """A task as it stands."""

    task_id: UUID
    state: State
    attempts: int
    completed_payload: Any
    cancelled_at: datetime | None
    failure_reason: Any
    failures: int
    task_name: str
    created_at: datetime
    available_at: datetime | None
    first_started_at: datetime | None
    finished_at: datetime | None
    tags: list[str] | None = None
    correlation_id: str | None = None
    parent_task_id: UUID | None = None
    workflow_run_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Task(TaskResult):
    """All about a task: where it stands, and what it was asked for. Durations in seconds."""

    workflow_run_id: UUID | None = None
    run_id: UUID | None = None
    params: Any = None
    headers: dict[str, Any] | None = None
    started_at: datetime | None = None
    claimed_by: str | None = None
    lease_expires_at: datetime | None = None
    wake_event: str | None = None
    event_payload: Any = None
    max_attempts: int | None = None
    retry_strategy: dict[str, Any] | None = None
    timeout_seconds: float | None = None
    cancellation: dict[str, Any] | None = None
    deadline_at: datetime | None = None
    expires_at: datetime | None = None
    on_expired: dict[str, Any] | None = None
    idempotency_key: str | None = None
    attributes: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ListedTask:
    """A task in a list. Pass the ``cursor`` of the last one for the next page."""

    task_id: UUID
    task_name: str
    state: State
    attempts: int
    failures: int
    created_at: datetime
    available_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    claimed_by: str | None
    lease_expires_at: datetime | None
    failure_reason: Any
    tags: list[str] | None
    correlation_id: str | None
    parent_task_id: UUID | None
    workflow_run_id: UUID | None
    cursor: str
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CreatedWorkflowRun:
    """A workflow run. ``created`` is false if the idempotency key found an existing one."""

    workflow_run_id: UUID
    created: bool


@dataclass(frozen=True, slots=True)
class WorkflowRun:
    """A workflow run, and how many of its tasks stand where.

    ``name`` and ``created_at`` are None for an id that was only given to tasks.
    """

    workflow_run_id: UUID
    name: str | None
    version: str | None
    status: WorkflowStatus
    tags: list[str] | None
    created_by: str | None
    created_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    pending: int
    running: int
    sleeping: int
    completed: int
    failed: int
    cancelled: int
    expired: int
    inputs: Any


@dataclass(frozen=True, slots=True)
class ListedWorkflowRun:
    """A workflow run in a list. Pass the ``cursor`` of the last one for the next page."""

    workflow_run_id: UUID
    name: str
    version: str | None
    status: WorkflowStatus
    tags: list[str] | None
    created_by: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    pending: int
    running: int
    sleeping: int
    completed: int
    failed: int
    cancelled: int
    expired: int
    cursor: str


@dataclass(frozen=True, slots=True)
class WorkflowTask:
    """A task of a workflow run, ``depth`` levels below the first.

    ``cut`` is true in all of them if the run has more tasks than are shown.
    """

    depth: int
    queue_name: str
    task_id: UUID
    parent_task_id: UUID | None
    task_name: str
    state: State
    attempts: int
    failures: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    failure_reason: Any
    attributes: dict[str, Any]
    cut: bool


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a task; one that was followed by another may also be ``released``."""

    run_id: UUID
    number: int
    state: State | Literal["released"]
    attempt: int
    claimed_by: str | None
    started_at: datetime | None
    lease_expires_at: datetime | None
    finished_at: datetime | None
    failure_reason: Any


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened to a task."""

    at: datetime
    event: str
    run_id: UUID | None
    attempt: int | None
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Holder:
    """A worker that holds runs of a queue under live leases."""

    worker_id: str
    queue_name: str
    runs: int
    oldest_start: datetime
    soonest_lease_end: datetime | None


@dataclass(frozen=True, slots=True)
class Action:
    """What somebody did to a task, or to the queue if ``task_id`` is None."""

    at: datetime
    action: str
    by_role: str
    reason: str | None
    task_id: UUID | None
    run_id: UUID | None
    detail: dict[str, Any] | None
    cursor: str


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue and its policy."""

    queue_name: str
    created_at: datetime
    policy: dict[str, Any]
    paused_until: datetime | None = None
    namespace: str = "default"


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule: what it spawns when, and what it last did. ``options`` has all of them."""

    schedule_name: str
    queue_name: str
    task_name: str
    schedule: str
    options: dict[str, Any]
    created_at: datetime
    paused_at: datetime | None
    next_fire_at: datetime | None
    last_planned_at: datetime | None
    last_fired_at: datetime | None
    last_skipped_at: datetime | None
    last_task_id: UUID | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Handler:
    """An SQL function that handles tasks of a name, ``*`` for all that have none of their own."""

    queue_name: str
    task_name: str
    function_name: str
    registered_at: datetime


@dataclass(frozen=True, slots=True)
class QueueStats:
    """How many tasks of a queue stand where, and for how long the oldest have, in seconds.

    ``unclaimable``: how many of the pending ones no worker has asked for lately.
    """

    queue_name: str
    pending: int
    delayed: int
    running: int
    sleeping: int
    waiting: int
    completed: int
    failed: int
    cancelled: int
    expired: int
    oldest_pending_age_seconds: float | None
    oldest_lease_age_seconds: float | None
    paused: bool
    unclaimable: int


@dataclass(frozen=True, slots=True)
class LimitUsage:
    """How much of a limit is used. ``name`` is None for the whole queue.

    ``started``: within the period of the rate; ``waiting``: in the lanes, for their turn.
    """

    scope: Scope
    name: str | None
    max_running: int | None
    running: int
    rate: int | None
    period_seconds: float | None
    started: int
    waiting: int
    fifo: bool
    fair: bool
    paused_until: datetime | None


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of ``metrics``."""

    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What ``cleanup_all_queues`` removed from one queue."""

    queue_name: str
    tasks_deleted: int
    events_deleted: int


@dataclass(frozen=True, slots=True)
class Status:
    """Who ticks. Without a scheduler, ``scheduler`` is None and workers tick.

    ``work_jobs``: the queues whose handlers the database runs by a scheduled job.
    """

    scheduler: str | None
    ticker_job: str | None
    cleanup_job: str | None
    last_tick_at: datetime | None
    lag_seconds: float | None
    work_jobs: list[str] | None


_FOLLOW_UPS = {"on_expired", "on_failure", "compensate"}


def options_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON values: instants in ISO 8601, with their offset."""
    return {name: _option_json(name, value) for name, value in options.items()}


def _option_json(name: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return iso(value, name)
    if isinstance(value, UUID):
        return str(value)
    if name == "tags" and value is not None:
        return list(value)
    if name == "task_options" and value is not None:
        return options_json(value)
    if name in _FOLLOW_UPS and value is not None:
        return follow_up_json(value)
    if name == "sequence":
        return [follow_up_json(task) for task in value]
    return value


def follow_up_json(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task to be spawned as JSON values."""
    return {
        key: options_json(value)
        if key == "options"
        else follow_up_json(value)
        if key == "compensate"
        else value
        for key, value in task.items()
    }


def child_json(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return a child to be spawned as JSON values; its headers name the active span."""
    return follow_up_json({**task, "options": propagated(task.get("options", {}))})


def filter_json(which: Mapping[str, Any]) -> dict[str, Any]:
    """Return a filter as JSON values."""
    values: dict[str, Any] = {}
    for key, value in which.items():
        if isinstance(value, datetime):
            values[key] = iso(value, key)
        elif isinstance(value, UUID):
            values[key] = str(value)
        elif isinstance(value, str | int | float | dict):
            values[key] = value
        else:
            values[key] = list(value)
    return values


def given(**options: Any) -> dict[str, Any]:
    """Return the options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def iso(at: datetime, what: str) -> str:
    """Return an instant as text. A datetime without a time zone names no instant."""
    if at.tzinfo is None:
        raise ValueError(f"{what} needs a time zone: {at.isoformat()} is ambiguous")
    return at.isoformat()


def tasks_json(tasks: Sequence[NewTask]) -> list[dict[str, Any]]:
    """Return the tasks of ``spawn_tasks`` as JSON values."""
    return [
        {
            "task_name": task.task_name,
            "params": task.params,
            "options": options_json(propagated(task.options or {})),
        }
        for task in tasks
    ]


def awaited_children(row: tuple[Any, ...]) -> AwaitedChildren:
    """Return a row of ``await_children`` with what became of each child."""
    should_suspend, payload, timed_out = row
    return AwaitedChildren(should_suspend, children(payload or []), timed_out)


def children(states: Sequence[dict[str, Any]]) -> list[ChildResult]:
    """Return what a checkpoint remembers of children."""
    return [ChildResult(**{**state, "task_id": UUID(state["task_id"])}) for state in states]


def spawned(state: dict[str, Any]) -> Spawned:
    """Return what the checkpoint of a spawn remembers."""
    return Spawned(
        UUID(state["task_id"]), UUID(state["run_id"]), state["attempt"], state["created"]
    )
