# Generated from teguh/_async/client.py by tools/make_sync.py: edit that file instead.
"""One method per SQL function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, cast
from uuid import UUID

from teguh import _sql
from teguh._connect import Conn, open_sync
from teguh._json import dumps
from teguh._traces import propagated
from teguh._types import (
    Access,
    Action,
    Awaited,
    AwaitedChildren,
    Checkpoint,
    ClaimedRun,
    Cleaned,
    CompletedRun,
    CreatedWorkflowRun,
    Event,
    EventFilter,
    Filter,
    FollowUp,
    Handler,
    Happening,
    Holder,
    Limit,
    LimitUsage,
    ListedTask,
    ListedWorkflowRun,
    Message,
    Metric,
    NewTask,
    Only,
    Order,
    Queue,
    QueuePolicy,
    QueueStats,
    Run,
    Schedule,
    ScheduleChanges,
    ScheduleOptions,
    Scope,
    SentMessage,
    Spawned,
    SpawnedChild,
    SpawnOptions,
    Status,
    Task,
    TaskResult,
    WorkflowRun,
    WorkflowRunFilter,
    WorkflowRunOptions,
    WorkflowTask,
    WorkOptions,
    awaited_children,
    child_json,
    filter_json,
    follow_up_json,
    given,
    options_json,
    tasks_json,
)
from teguh.errors import translated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from types import TracebackType

Id = UUID | str


class Client:
    """The SQL functions of teguh on one connection.

    ``Client(connection)`` borrows a psycopg connection: each method is one statement in
    whatever transaction the caller has open, so that ``spawn_task`` commits or rolls back with
    the caller's own writes. ``Client.connect(conninfo)`` opens a connection of its
    own in autocommit mode; close it, or use the client in a ``with`` statement. Either way one
    client is for one thread at a time.

    Durations are seconds and may have fractions. Params, payloads and states are JSON values;
    what is not JSON raises :class:`teguh.NotStorable` before anything is sent. Every method
    may raise :class:`teguh.QueueNotFound`, and psycopg's errors for what is not teguh's.

    A connection that is borrowed must give text as ``str``: if the database has the encoding
    SQL_ASCII, connect with ``client_encoding="utf8"``.
    """

    def __init__(self, connection: Conn) -> None:
        self.connection = connection
        self._owned = False

    @classmethod
    def connect(cls, conninfo: str = "") -> Self:
        """Open a connection; an empty conninfo leaves all to libpq's PG* environment."""
        client = cls(open_sync(conninfo))
        client._owned = True
        return client

    def close(self) -> None:
        """Close the connection if it is the client's own."""
        if self._owned:
            self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _all(self, statement: str, **params: Any) -> list[tuple[Any, ...]]:
        with translated():
            cursor = self.connection.execute(statement.encode(), params)
            return cursor.fetchall()

    def _one(self, statement: str, **params: Any) -> Any:
        rows = self._all(statement, **params)
        return rows[0][0]

    # Life cycle

    def version(self) -> str:
        """Return the version installed in the database. SQL: ``version``."""
        return cast("str", self._one(_sql.VERSION))

    def current_time(self) -> datetime:
        """Return the engine's clock. SQL: ``current_time``."""
        return cast("datetime", self._one(_sql.CURRENT_TIME))

    def portable_uuidv7(self) -> UUID:
        """Return a fresh version 7 UUID. SQL: ``portable_uuidv7``."""
        return cast("UUID", self._one(_sql.PORTABLE_UUIDV7))

    def uuidv7_timestamp(self, uuid: Id) -> datetime | None:
        """Return the time inside a version 7 UUID, else None. SQL: ``uuidv7_timestamp``."""
        return cast("datetime | None", self._one(_sql.UUIDV7_TIMESTAMP, id=uuid))

    def start(
        self,
        *,
        ticker_schedule: str | None = None,
        cleanup_schedule: str | None = None,
        work: Sequence[str] | None = None,
    ) -> None:
        """Schedule ticker and cleanup in pg_cron; without it, do nothing. SQL: ``start``.

        Schedules are in pg_cron's syntax; None takes the engine's. `work` names the queues whose
        handlers the database is to run; None means all that have handlers.
        """
        given = {
            "ticker_schedule": ticker_schedule,
            "cleanup_schedule": cleanup_schedule,
            "work": work if work is None else list(work),
        }
        options = {name: value for name, value in given.items() if value is not None}
        self._all(_sql.START, options=dumps(options, "options"))

    def stop(self) -> None:
        """Unschedule what ``start`` has scheduled. SQL: ``stop``."""
        self._all(_sql.STOP)

    def status(self) -> Status:
        """Return who ticks and how far behind. SQL: ``status``."""
        rows = self._all(_sql.STATUS)
        return Status(*rows[0])

    def ticker(self, queue: str | None = None) -> int:
        """Do the housekeeping of one queue, or all: due tasks, expired leases, rotation.

        Return how many tasks became claimable. SQL: ``ticker``.
        """
        return cast("int", self._one(_sql.TICKER, queue=queue))

    def ticker_loop(self, *, tick_seconds: float = 0.1, max_seconds: float = 55) -> None:
        """Tick every `tick_seconds` for `max_seconds`, with a commit between the ticks.

        The connection has to be in autocommit mode. SQL: ``ticker_loop``.
        """
        options = {"tick_seconds": tick_seconds, "max_seconds": max_seconds}
        with translated():
            self.connection.execute(
                _sql.TICKER_LOOP.encode(), {"options": dumps(options, "options")}
            )

    # Queues

    def validate_queue_name(self, queue: str) -> str:
        """Return the name, or raise if no queue may have it. SQL: ``validate_queue_name``."""
        return cast("str", self._one(_sql.VALIDATE_QUEUE_NAME, queue=queue))

    def create_queue(self, queue: str, **policy: Unpack[QueuePolicy]) -> None:
        """Create a queue; if it exists, set the policy keys given. SQL: ``create_queue``.

        Raise :class:`teguh.InvalidOption` for a bad policy.
        """
        self._all(_sql.CREATE_QUEUE, queue=queue, policy=dumps(policy, "the policy"))

    def drop_queue(self, queue: str) -> None:
        """Drop a queue with all its tasks. SQL: ``drop_queue``."""
        self._all(_sql.DROP_QUEUE, queue=queue)

    def list_queues(self) -> list[Queue]:
        """Return all queues. SQL: ``list_queues``."""
        return [Queue(*row) for row in self._all(_sql.LIST_QUEUES)]

    def get_queue_policy(self, queue: str) -> dict[str, Any]:
        """Return a queue's policy, defaults included. SQL: ``get_queue_policy``."""
        return cast("dict[str, Any]", self._one(_sql.GET_QUEUE_POLICY, queue=queue))

    def set_queue_policy(self, queue: str, **policy: Unpack[QueuePolicy]) -> None:
        """Set the policy keys given; None sets one back. SQL: ``set_queue_policy``.

        Create the queue if there is none. Raise :class:`teguh.InvalidOption` for a bad policy.
        """
        self._all(_sql.SET_QUEUE_POLICY, queue=queue, policy=dumps(policy, "the policy"))

    def list_namespaces(self) -> dict[str, int]:
        """Return how many queues are in each namespace. SQL: ``list_namespaces``."""
        return dict(self._all(_sql.LIST_NAMESPACES))

    def pause_queue(
        self,
        queue: str,
        until: datetime | None = None,
        *,
        reason: str | None = None,
        only: Only | None = None,
    ) -> None:
        """Let claims return nothing until a time, or until ``resume_queue``.

        With `only`, nothing of that task name or key. What is running goes on. SQL:
        ``pause_queue``. Raise :class:`teguh.InvalidOption` for a bad `only`.
        """
        self._all(
            _sql.PAUSE_QUEUE,
            queue=queue,
            until=until,
            reason=reason,
            only=None if only is None else dumps(only, "what to pause"),
        )

    def resume_queue(
        self, queue: str, *, reason: str | None = None, only: Only | None = None
    ) -> None:
        """End the pause of a queue, or of a task name or key, and wake its workers.

        SQL: ``resume_queue``. Raise :class:`teguh.InvalidOption` for a bad `only`.
        """
        self._all(
            _sql.RESUME_QUEUE,
            queue=queue,
            reason=reason,
            only=None if only is None else dumps(only, "what to resume"),
        )

    def set_limit(
        self, queue: str | None, scope: Scope, name: str | None = None, **limit: Unpack[Limit]
    ) -> None:
        """Limit what runs of a queue, a task name or a key; without a limit, take it away.

        For `scope` ``all``, over all queues together, the queue is None. The `name` of a task or
        key may be ``*`` or None: each of them by itself. It replaces the limit that was. SQL:
        ``set_limit``. Raise :class:`teguh.InvalidOption` for a bad limit.
        """
        self._all(
            _sql.SET_LIMIT, queue=queue, scope=scope, name=name, limit=dumps(limit, "the limit")
        )

    def limit_usage(self, queue: str) -> list[LimitUsage]:
        """Return how much of a queue's limits is used. SQL: ``limit_usage``.

        A limit for each task name or key comes once for each that runs or waits.
        """
        return [LimitUsage(*row) for row in self._all(_sql.LIMIT_USAGE, queue=queue)]

    def rebuild_dispatch(self, queue: str) -> int:
        """Build a queue's dispatch tables anew from its tasks. SQL: ``rebuild_dispatch``.

        Return how many tasks wait for a worker or a time.
        """
        return cast("int", self._one(_sql.REBUILD_DISPATCH, queue=queue))

    def grant_access(self, role: str, access: Access, queues: Sequence[str] | None = None) -> None:
        """Let a role use the queues named, or all, also those to come. SQL: ``grant_access``."""
        self._all(_sql.GRANT_ACCESS, role=role, access=access, queues=queues and list(queues))

    def revoke_access(
        self, role: str, access: Access | None = None, queues: Sequence[str] | None = None
    ) -> None:
        """Take access away: one kind or all, for some queues or all. SQL: ``revoke_access``."""
        self._all(_sql.REVOKE_ACCESS, role=role, access=access, queues=queues and list(queues))

    # Statistics

    def queue_stats(self, queue: str | None = None) -> list[QueueStats]:
        """Return how many tasks of a queue, or of each, stand where. SQL: ``queue_stats``."""
        return [QueueStats(*row) for row in self._all(_sql.QUEUE_STATS, queue=queue)]

    def metrics(self) -> list[Metric]:
        """Return what there is to measure. SQL: ``metrics``."""
        return [Metric(*row) for row in self._all(_sql.METRICS)]

    def prometheus(self) -> str:
        """Return the metrics in the text format of Prometheus. SQL: ``prometheus``."""
        return cast("str", self._one(_sql.PROMETHEUS))

    def health(self) -> dict[str, Any]:
        """Return whether all is well, and if not, what to do. SQL: ``health``."""
        return cast("dict[str, Any]", self._one(_sql.HEALTH))

    # Spawning

    def spawn_task(
        self, queue: str, task_name: str, params: object = None, **options: Unpack[SpawnOptions]
    ) -> Spawned:
        """Spawn a task. SQL: ``spawn_task``.

        Raise :class:`teguh.InvalidOption` for a bad option and :class:`teguh.Conflict` if the
        idempotency key belongs to a task with another name or other params.
        """
        rows = self._all(
            _sql.SPAWN_TASK,
            queue=queue,
            task_name=task_name,
            params=dumps(params, f"params of task {task_name!r}"),
            options=dumps(options_json(propagated(options)), f"options of task {task_name!r}"),
        )
        return Spawned(*rows[0])

    def spawn_tasks(self, queue: str, tasks: Sequence[NewTask]) -> list[Spawned]:
        """Spawn many tasks in one statement, all or none; results in the order given.

        SQL: ``spawn_tasks``. Raise what :meth:`spawn_task` raises.
        """
        rows = self._all(_sql.SPAWN_TASKS, queue=queue, tasks=dumps(tasks_json(tasks), "the tasks"))
        return [Spawned(*row) for row in rows]

    # Working

    def claim_task(
        self,
        queue: str,
        worker_id: str = "worker",
        *,
        claim_timeout: float = 30,
        qty: int = 1,
    ) -> list[ClaimedRun]:
        """Claim up to `qty` runs under a lease of `claim_timeout` seconds, oldest due first.

        A timeout of 0 or less is a lease without end. The transaction has to be READ
        COMMITTED; better, use autocommit. SQL: ``claim_task``.
        """
        rows = self._all(
            _sql.CLAIM_TASK, queue=queue, worker=worker_id, claim_timeout=claim_timeout, qty=qty
        )
        return [ClaimedRun(*row) for row in rows]

    def claim_any(
        self,
        queues: Sequence[str] | None = None,
        worker_id: str = "worker",
        *,
        claim_timeout: float = 30,
        qty: int = 1,
        task_names: Sequence[str] | None = None,
        order: Order | None = None,
    ) -> list[ClaimedRun]:
        """Claim up to `qty` runs of several queues; None are all that the caller may claim from.

        With `task_names`, no others. `order` (None: round_robin) is that in which the queues
        are looked through. For all else see :meth:`claim_task`. SQL: ``claim_any``. Raise
        :class:`teguh.InvalidOption`.
        """
        names = None if task_names is None else list(task_names)
        rows = self._all(
            _sql.CLAIM_ANY,
            queues=None if queues is None else list(queues),
            worker=worker_id,
            claim_timeout=claim_timeout,
            qty=qty,
            options=dumps(given(task_names=names, order=order), "options"),
        )
        return [ClaimedRun(*row) for row in rows]

    def next_due(self, queue: str) -> datetime | None:
        """Return when the next task is due, None if none is. SQL: ``next_due``."""
        return cast("datetime | None", self._one(_sql.NEXT_DUE, queue=queue))

    def complete_run(self, queue: str, run_id: Id, state: object = None) -> None:
        """Complete a run with a result. SQL: ``complete_run``.

        Raise :class:`teguh.TaskCancelled`, :class:`teguh.RunLost`, :class:`teguh.RunNotFound`.
        """
        self._all(_sql.COMPLETE_RUN, queue=queue, run=run_id, state=dumps(state, "the result"))

    def complete_runs(
        self, queue: str, results: Mapping[UUID, object] | Mapping[str, object]
    ) -> list[CompletedRun]:
        """Complete many runs, given as run id → result, in one statement.

        A lost run does not fail the others: each answer says whether it was applied, and the
        SQLSTATE if not. SQL: ``complete_runs``.
        """
        runs = [{"run_id": str(run), "state": state} for run, state in results.items()]
        rows = self._all(_sql.COMPLETE_RUNS, queue=queue, runs=dumps(runs, "the results"))
        return [CompletedRun(*row) for row in rows]

    def fail_run(
        self, queue: str, run_id: Id, reason: object, *, retry_at: datetime | None = None
    ) -> None:
        """Fail a run: the task is retried by its strategy, or at `retry_at`, or has failed.

        SQL: ``fail_run``. Raise what :meth:`complete_run` raises.
        """
        self._all(
            _sql.FAIL_RUN,
            queue=queue,
            run=run_id,
            reason=dumps(reason, "the reason"),
            retry_at=retry_at,
        )

    def schedule_run(self, queue: str, run_id: Id, wake_at: datetime) -> None:
        """Put a run to sleep until an instant. SQL: ``schedule_run``.

        Raise what :meth:`complete_run` raises.
        """
        self._all(_sql.SCHEDULE_RUN, queue=queue, run=run_id, wake_at=wake_at)

    def release_run(self, queue: str, run_id: Id, delay: float = 0) -> None:
        """Hand a run back, claimable after `delay` seconds, without counting a failure.

        SQL: ``release_run``. Raise what :meth:`complete_run` raises.
        """
        self._all(_sql.RELEASE_RUN, queue=queue, run=run_id, delay=delay)

    def extend_claim(self, queue: str, run_id: Id, extend_by: float) -> None:
        """Set the end of the lease to `extend_by` seconds from now. SQL: ``extend_claim``.

        Raise what :meth:`complete_run` raises.
        """
        self._all(_sql.EXTEND_CLAIM, queue=queue, run=run_id, extend_by=extend_by)

    def set_task_checkpoint_state(
        self,
        queue: str,
        task_id: Id,
        step_name: str,
        state: object,
        owner_run: Id,
        *,
        extend_claim_by: float | None = None,
    ) -> None:
        """Store a step's state. SQL: ``set_task_checkpoint_state``.

        On a borrowed connection the checkpoint commits with the caller's own writes: a step
        that happens exactly once. Raise what :meth:`complete_run` raises.
        """
        self._all(
            _sql.SET_TASK_CHECKPOINT_STATE,
            queue=queue,
            task=task_id,
            step=step_name,
            state=dumps(state, f"the state of step {step_name!r}"),
            run=owner_run,
            extend_by=extend_claim_by,
        )

    def get_task_checkpoint_state(self, queue: str, task_id: Id, step_name: str) -> Any:
        """Return a step's state, None if there is none. SQL: ``get_task_checkpoint_state``."""
        return self._one(_sql.GET_TASK_CHECKPOINT_STATE, queue=queue, task=task_id, step=step_name)

    def get_task_checkpoint_states(self, queue: str, task_id: Id, run_id: Id) -> list[Checkpoint]:
        """Return the checkpoints a run may see. SQL: ``get_task_checkpoint_states``."""
        rows = self._all(_sql.GET_TASK_CHECKPOINT_STATES, queue=queue, task=task_id, run=run_id)
        return [Checkpoint(*row) for row in rows]

    def await_event(
        self,
        queue: str,
        task_id: Id,
        run_id: Id,
        step_name: str,
        event_name: str,
        *,
        timeout: float | None = None,
    ) -> Awaited:
        """Return an event's payload, or put the run to sleep until it is emitted.

        When `should_suspend` is true the run is no longer the caller's. A timeout of None
        waits for ever. SQL: ``await_event``. Raise what :meth:`complete_run` raises.
        """
        rows = self._all(
            _sql.AWAIT_EVENT,
            queue=queue,
            task=task_id,
            run=run_id,
            step=step_name,
            event=event_name,
            timeout=timeout,
        )
        return Awaited(*rows[0])

    def spawn_children(
        self,
        queue: str,
        run_id: Id,
        step_name: str,
        tasks: Sequence[FollowUp],
        *,
        on_parent_end: Literal["leave", "cancel"] = "leave",
    ) -> list[SpawnedChild]:
        """Spawn the children of a step, once; results in the order given.

        `on_parent_end` says what becomes of them if the run's task ends without success.
        SQL: ``spawn_children``. Raise what :meth:`complete_run` and :meth:`spawn_task` raise.
        """
        rows = self._all(
            _sql.SPAWN_CHILDREN,
            queue=queue,
            run=run_id,
            step=step_name,
            tasks=dumps([child_json(task) for task in tasks], "the children"),
            end=on_parent_end,
        )
        return [SpawnedChild(*row) for row in rows]

    def await_children(
        self,
        queue: str,
        task_id: Id,
        run_id: Id,
        step_name: str,
        *,
        mode: Literal["all", "any"] | int = "all",
        timeout: float | None = None,
        on_failure: Literal["collect", "fail_fast"] = "collect",
        cancel_rest: bool = False,
    ) -> AwaitedChildren:
        """Return what became of a step's children, or put the run to sleep until it is known.

        When `should_suspend` is true the run is no longer the caller's. A timeout of None
        waits for ever. SQL: ``await_children``. Raise what :meth:`complete_run` raises.
        """
        rows = self._all(
            _sql.AWAIT_CHILDREN,
            queue=queue,
            task=task_id,
            run=run_id,
            step=step_name,
            mode=str(mode),
            timeout=timeout,
            on_failure=on_failure,
            cancel_rest=cancel_rest,
        )
        return awaited_children(rows[0])

    def add_compensation(
        self, queue: str, task_id: Id, run_id: Id, step_name: str, task: FollowUp
    ) -> None:
        """Have a task spawned for a step if its task, or a later one in sequence, fails.

        On a borrowed connection it stands or falls with the caller's own writes.
        SQL: ``add_compensation``. Raise what :meth:`complete_run` raises.
        """
        self._all(
            _sql.ADD_COMPENSATION,
            queue=queue,
            task=task_id,
            run=run_id,
            step=step_name,
            compensation=dumps(follow_up_json(task), "the compensation"),
        )

    def repeat_run(self, queue: str, run_id: Id, after_seconds: float = 0) -> UUID:
        """End a run with success, begin its task anew, and return the next run's id.

        SQL: ``repeat_run``. Raise what :meth:`complete_run` raises.
        """
        return cast(
            "UUID", self._one(_sql.REPEAT_RUN, queue=queue, run=run_id, after=after_seconds)
        )

    def send_message(
        self,
        queue: str,
        task_id: Id,
        topic: str,
        payload: object = None,
        *,
        idempotency_key: str | None = None,
    ) -> SentMessage:
        """Send a message to a task that is not over; of one key it is sent once.

        SQL: ``send_message``. Raise :class:`teguh.TaskNotFound`, :class:`teguh.WrongState` if the
        task is over, :class:`teguh.Conflict` if the key belongs to another message,
        :class:`teguh.QueueFull` if the mailbox is full.
        """
        rows = self._all(
            _sql.SEND_MESSAGE,
            queue=queue,
            task=task_id,
            topic=topic,
            payload=dumps(payload, f"the payload of a message on {topic!r}"),
            key=idempotency_key,
        )
        return SentMessage(*rows[0])

    def receive_message(
        self,
        queue: str,
        task_id: Id,
        run_id: Id,
        step_name: str,
        topic: str,
        timeout: float | None = None,
    ) -> Awaited:
        """Take the oldest message of a topic for a step, or put the run to sleep until one comes.

        When `should_suspend` is true the run is no longer the caller's. A timeout of None
        waits for ever. SQL: ``receive_message``. Raise what :meth:`complete_run` raises.
        """
        rows = self._all(
            _sql.RECEIVE_MESSAGE,
            queue=queue,
            task=task_id,
            run=run_id,
            step=step_name,
            topic=topic,
            timeout=timeout,
        )
        return Awaited(*rows[0])

    def list_messages(self, queue: str, task_id: Id) -> list[Message]:
        """Return the messages in a task's mailbox, in the order in which they were sent.

        SQL: ``list_messages``. Raise :class:`teguh.TaskNotFound`.
        """
        rows = self._all(_sql.LIST_MESSAGES, queue=queue, task=task_id)
        return [Message(*row) for row in rows]

    def set_attributes(
        self, queue: str, run_id: Id, attributes: Mapping[str, str | float | bool | None]
    ) -> None:
        """Publish attributes by which the run's task is found; None takes one away.

        SQL: ``set_attributes``. Raise what :meth:`complete_run` raises, and
        :class:`teguh.InvalidOption`.
        """
        self._all(
            _sql.SET_ATTRIBUTES,
            queue=queue,
            run=run_id,
            attributes=dumps(attributes, "the attributes"),
        )

    def get_attributes(self, queue: str, task_id: Id) -> dict[str, Any]:
        """Return what a task has published. SQL: ``get_attributes``.

        Raise :class:`teguh.TaskNotFound`.
        """
        return cast("dict[str, Any]", self._one(_sql.GET_ATTRIBUTES, queue=queue, task=task_id))

    def emit_event(self, queue: str, event_name: str, payload: object = None) -> None:
        """Emit an event; the first payload of a name wins. SQL: ``emit_event``."""
        self._all(
            _sql.EMIT_EVENT,
            queue=queue,
            event=event_name,
            payload=dumps(payload, f"the payload of event {event_name!r}"),
        )

    def list_events(
        self,
        queue: str,
        *,
        cursor: str | None = None,
        limit: int = 50,
        **which: Unpack[EventFilter],
    ) -> list[Event]:
        """Return a page of a queue's events, the newest first. SQL: ``list_events``.

        `cursor` is that of the last event of the page before. Raise
        :class:`teguh.InvalidOption`.
        """
        rows = self._all(
            _sql.LIST_EVENTS,
            queue=queue,
            filter=dumps(filter_json(which), "the filter"),
            cursor=cursor,
            limit=limit,
        )
        return [Event(*row) for row in rows]

    # Schedules

    def create_schedule(
        self,
        name: str,
        queue: str,
        task_name: str,
        schedule: str,
        **options: Unpack[ScheduleOptions],
    ) -> None:
        """Spawn a task at each time that a schedule names. SQL: ``create_schedule``.

        A schedule of that name becomes what is said here; if it is that already, nothing
        changes. Raise :class:`teguh.InvalidOption`, and :class:`teguh.WrongState` if it is
        another queue's.
        """
        self._all(
            _sql.CREATE_SCHEDULE,
            name=name,
            queue=queue,
            task_name=task_name,
            schedule=schedule,
            options=dumps(options_json(options), f"options of schedule {name!r}"),
        )

    def update_schedule(self, name: str, **changes: Unpack[ScheduleChanges]) -> None:
        """Set the parts given of a schedule; None sets one back. SQL: ``update_schedule``.

        Raise :class:`teguh.ScheduleNotFound` and :class:`teguh.InvalidOption`.
        """
        self._all(
            _sql.UPDATE_SCHEDULE,
            name=name,
            changes=dumps(options_json(changes), f"changes of schedule {name!r}"),
        )

    def pause_schedule(self, name: str, *, reason: str | None = None) -> None:
        """Let a schedule not fire until ``resume_schedule``. SQL: ``pause_schedule``.

        Raise :class:`teguh.ScheduleNotFound`.
        """
        self._all(_sql.PAUSE_SCHEDULE, name=name, reason=reason)

    def resume_schedule(self, name: str, *, reason: str | None = None) -> None:
        """Let a paused schedule fire again, from its next time on. SQL: ``resume_schedule``.

        Raise :class:`teguh.ScheduleNotFound`.
        """
        self._all(_sql.RESUME_SCHEDULE, name=name, reason=reason)

    def drop_schedule(self, name: str, *, reason: str | None = None) -> None:
        """Drop a schedule; its tasks stay. SQL: ``drop_schedule``.

        Raise :class:`teguh.ScheduleNotFound`.
        """
        self._all(_sql.DROP_SCHEDULE, name=name, reason=reason)

    def trigger_schedule(self, name: str, *, reason: str | None = None) -> Spawned:
        """Spawn a schedule's task now, besides those planned. SQL: ``trigger_schedule``.

        Raise :class:`teguh.ScheduleNotFound`, and what :meth:`spawn_task` raises.
        """
        rows = self._all(_sql.TRIGGER_SCHEDULE, name=name, reason=reason)
        return Spawned(*rows[0])

    def get_schedule(self, name: str) -> Schedule:
        """Return a schedule. SQL: ``get_schedule``. Raise :class:`teguh.ScheduleNotFound`."""
        rows = self._all(_sql.GET_SCHEDULE, name=name)
        return Schedule(*rows[0])

    def list_schedules(self, queue: str | None = None) -> list[Schedule]:
        """Return the schedules of a queue, or of each. SQL: ``list_schedules``."""
        return [Schedule(*row) for row in self._all(_sql.LIST_SCHEDULES, queue=queue)]

    def next_fire_time(
        self, schedule: str, after: datetime, timezone: str = "UTC"
    ) -> datetime | None:
        """Return when a schedule fires next after a time, None if never.

        SQL: ``next_fire_time``. Raise :class:`teguh.InvalidOption`.
        """
        return cast(
            "datetime | None",
            self._one(_sql.NEXT_FIRE_TIME, schedule=schedule, after=after, timezone=timezone),
        )

    # Workflow runs

    def create_workflow_run(
        self,
        name: str,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[WorkflowRunOptions],
    ) -> CreatedWorkflowRun:
        """Create a workflow run: its id is for the option ``workflow_run_id`` of a spawn.

        The same key again gives the same run, unchanged. SQL: ``create_workflow_run``. Raise
        :class:`teguh.InvalidOption`, and :class:`teguh.Conflict` if the key is that of a run of
        another name.
        """
        known = {**options_json(options), **given(idempotency_key=idempotency_key)}
        rows = self._all(
            _sql.CREATE_WORKFLOW_RUN,
            name=name,
            options=dumps(known, f"options of workflow run {name!r}"),
        )
        return CreatedWorkflowRun(*rows[0])

    def update_workflow_run(
        self, workflow_run_id: Id, **changes: Unpack[WorkflowRunOptions]
    ) -> None:
        """Set the parts given of a workflow run; None takes one away.

        SQL: ``update_workflow_run``. Raise :class:`teguh.WorkflowRunNotFound` and
        :class:`teguh.InvalidOption`.
        """
        self._all(
            _sql.UPDATE_WORKFLOW_RUN,
            id=workflow_run_id,
            options=dumps(options_json(changes), "changes of a workflow run"),
        )

    def get_workflow_run(self, workflow_run_id: Id) -> WorkflowRun:
        """Return a workflow run and how its tasks stand. SQL: ``get_workflow_run``.

        Raise :class:`teguh.WorkflowRunNotFound`.
        """
        rows = self._all(_sql.GET_WORKFLOW_RUN, id=workflow_run_id)
        return WorkflowRun(*rows[0])

    def get_workflow_tree(self, workflow_run_id: Id, *, limit: int = 1000) -> list[WorkflowTask]:
        """Return the tasks of a workflow run, each right below its parent.

        The `limit` oldest. SQL: ``get_workflow_tree``. Raise
        :class:`teguh.WorkflowRunNotFound`.
        """
        rows = self._all(_sql.GET_WORKFLOW_TREE, id=workflow_run_id, limit=limit)
        return [WorkflowTask(*row) for row in rows]

    def list_workflow_runs(
        self, *, cursor: str | None = None, limit: int = 50, **which: Unpack[WorkflowRunFilter]
    ) -> list[ListedWorkflowRun]:
        """Return a page of workflow runs, the newest first. SQL: ``list_workflow_runs``.

        Raise :class:`teguh.InvalidOption`.
        """
        rows = self._all(
            _sql.LIST_WORKFLOW_RUNS,
            filter=dumps(filter_json(which), "the filter"),
            cursor=cursor,
            limit=limit,
        )
        return [ListedWorkflowRun(*row) for row in rows]

    # Handlers that are SQL functions

    def register_handler(self, queue: str, task_name: str, function: str) -> None:
        """Let ``teguh.work()`` run an SQL function for tasks of a name. SQL: ``register_handler``.

        `function` is its schema and name. It takes a ``teguh.job`` and returns ``jsonb``.
        `task_name` may be ``*``, for all tasks that have no handler of their own.
        """
        self._all(_sql.REGISTER_HANDLER, queue=queue, task_name=task_name, function=function)

    def unregister_handler(self, queue: str, task_name: str) -> bool:
        """Take a handler away; return whether there was one. SQL: ``unregister_handler``."""
        return cast("bool", self._one(_sql.UNREGISTER_HANDLER, queue=queue, task_name=task_name))

    def list_handlers(self, queue: str | None = None) -> list[Handler]:
        """Return the handlers of a queue, or of each. SQL: ``list_handlers``."""
        return [Handler(*row) for row in self._all(_sql.LIST_HANDLERS, queue=queue)]

    def work(self, queue: str, **options: Unpack[WorkOptions]) -> None:
        """Let the database work on a queue whose handlers are SQL functions. SQL: ``work``.

        The connection has to be in autocommit mode. Raise :class:`teguh.WrongState` if the queue
        has no handlers, and :class:`teguh.InvalidOption`.
        """
        values = {"queue": queue, "options": dumps(dict(options), "options")}
        with translated():
            self.connection.execute(_sql.WORK.encode(), values)

    # Controlling and looking

    def cancel_task(self, queue: str, task_id: Id, *, reason: str | None = None) -> None:
        """Cancel a task; a finished one stays as it is. SQL: ``cancel_task``.

        Raise :class:`teguh.TaskNotFound`.
        """
        self._all(_sql.CANCEL_TASK, queue=queue, task=task_id, reason=reason)

    def cancel_tasks(
        self,
        queue: str,
        *,
        everything: bool = False,
        limit: int | None = None,
        reason: str | None = None,
        **which: Unpack[Filter],
    ) -> int:
        """Cancel the tasks that a filter means; return how many. SQL: ``cancel_tasks``.

        At most `limit` (None: 1000) at a time. A filter that names nothing needs
        `everything`, or raises :class:`teguh.InvalidOption`.
        """
        options = given(all=everything or None, limit=limit, reason=reason)
        return cast("int", self._filtered(_sql.CANCEL_TASKS, queue, which, options))

    def _filtered(
        self, statement: str, queue: str, which: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Any:
        return self._one(
            statement,
            queue=queue,
            filter=dumps(filter_json(which), "the filter"),
            options=dumps(options, "options"),
        )

    def requeue_task(self, queue: str, task_id: Id, *, reason: str | None = None) -> UUID:
        """Take a running task from a worker known to be dead; return its next run's id.

        No failure is counted. SQL: ``requeue_task``. Raise :class:`teguh.TaskNotFound` and
        :class:`teguh.WrongState`.
        """
        return cast("UUID", self._one(_sql.REQUEUE_TASK, queue=queue, task=task_id, reason=reason))

    def requeue_tasks(
        self,
        queue: str,
        *,
        worker_id: str | None = None,
        everything: bool = False,
        limit: int | None = None,
        reason: str | None = None,
        **which: Unpack[Filter],
    ) -> int:
        """Take the running tasks that a filter means from their workers; return how many.

        With `worker_id`, only what that worker holds. At most `limit` (None: 1000) at a time. A
        filter that names nothing needs `worker_id` or `everything`. SQL: ``requeue_tasks``. Raise
        :class:`teguh.InvalidOption`.
        """
        options = given(all=everything or None, limit=limit, reason=reason, worker_id=worker_id)
        return cast("int", self._filtered(_sql.REQUEUE_TASKS, queue, which, options))

    def retry_task(
        self,
        queue: str,
        task_id: Id,
        *,
        spawn_new: bool = False,
        max_attempts: int | None = None,
        from_step: str | None = None,
        reason: str | None = None,
    ) -> Spawned:
        """Run a failed or cancelled task again, in place or as a new task. SQL: ``retry_task``.

        `from_step` deletes the checkpoint of that step and all written after it. Raise
        :class:`teguh.TaskNotFound` and :class:`teguh.WrongState`.
        """
        options = given(
            spawn_new=spawn_new or None,
            max_attempts=max_attempts,
            from_step=from_step,
            reason=reason,
        )
        rows = self._all(
            _sql.RETRY_TASK, queue=queue, task=task_id, options=dumps(options, "options")
        )
        return Spawned(*rows[0])

    def get_task_result(self, queue: str, task_id: Id) -> TaskResult:
        """Return a task as it stands. SQL: ``get_task_result``.

        Raise :class:`teguh.TaskNotFound`.
        """
        rows = self._all(_sql.GET_TASK_RESULT, queue=queue, task=task_id)
        return TaskResult(*rows[0])

    def get_task(self, queue: str, task_id: Id) -> Task:
        """Return all about a task. SQL: ``get_task``. Raise :class:`teguh.TaskNotFound`."""
        rows = self._all(_sql.GET_TASK, queue=queue, task=task_id)
        return Task(*rows[0])

    def list_tasks(
        self, queue: str, *, cursor: str | None = None, limit: int = 50, **which: Unpack[Filter]
    ) -> list[ListedTask]:
        """Return a page of the tasks that a filter means, the newest first.

        `cursor` is that of the last task of the page before. SQL: ``list_tasks``. Raise
        :class:`teguh.InvalidOption`.
        """
        rows = self._all(
            _sql.LIST_TASKS,
            queue=queue,
            filter=dumps(filter_json(which), "the filter"),
            cursor=cursor,
            limit=limit,
        )
        return [ListedTask(*row) for row in rows]

    def list_runs(self, queue: str, task_id: Id) -> list[Run]:
        """Return a task's runs, the current one last. SQL: ``list_runs``.

        Raise :class:`teguh.TaskNotFound`.
        """
        return [Run(*row) for row in self._all(_sql.LIST_RUNS, queue=queue, task=task_id)]

    def get_task_history(self, queue: str, task_id: Id) -> list[Happening]:
        """Return what happened to a task, in order. SQL: ``get_task_history``.

        Raise :class:`teguh.TaskNotFound`.
        """
        rows = self._all(_sql.GET_TASK_HISTORY, queue=queue, task=task_id)
        return [Happening(*row) for row in rows]

    def list_workers(self, queue: str | None = None) -> list[Holder]:
        """Return the workers that hold runs of a queue, or of any. SQL: ``list_workers``."""
        return [Holder(*row) for row in self._all(_sql.LIST_WORKERS, queue=queue)]

    def list_actions(
        self, queue: str, *, cursor: str | None = None, limit: int = 50
    ) -> list[Action]:
        """Return what was done to a queue and its tasks, the latest first.

        SQL: ``list_actions``. Raise :class:`teguh.InvalidOption`.
        """
        rows = self._all(_sql.LIST_ACTIONS, queue=queue, cursor=cursor, limit=limit)
        return [Action(*row) for row in rows]

    def list_dead_letters(
        self, queue: str, *, cursor: str | None = None, limit: int = 50, **which: Unpack[Filter]
    ) -> list[ListedTask]:
        """Return a page of the tasks that failed, the newest first. SQL: ``list_dead_letters``.

        Raise :class:`teguh.InvalidOption`, also for a `state`.
        """
        rows = self._all(
            _sql.LIST_DEAD_LETTERS,
            queue=queue,
            filter=dumps(filter_json(which), "the filter"),
            cursor=cursor,
            limit=limit,
        )
        return [ListedTask(*row) for row in rows]

    def replay_dead_letters(
        self,
        queue: str,
        *,
        limit: int | None = None,
        per_second: float | None = None,
        max_attempts: int | None = None,
        from_step: str | None = None,
        reason: str | None = None,
        **which: Unpack[Filter],
    ) -> int:
        """Run failed tasks again, from their checkpoints on; return how many.

        At most `limit` (None: 1000) at a time; `per_second` spreads their starts over time.
        SQL: ``replay_dead_letters``. Raise :class:`teguh.InvalidOption`.
        """
        options = given(
            limit=limit,
            per_second=per_second,
            max_attempts=max_attempts,
            from_step=from_step,
            reason=reason,
        )
        return cast("int", self._filtered(_sql.REPLAY_DEAD_LETTERS, queue, which, options))

    def purge_dead_letters(
        self,
        queue: str,
        *,
        ttl_seconds: float | None = None,
        limit: int = 1000,
        reason: str | None = None,
    ) -> int:
        """Delete tasks that failed more than `ttl_seconds` ago; return how many.

        None takes the queue's policy. SQL: ``purge_dead_letters``.
        """
        return cast(
            "int",
            self._one(
                _sql.PURGE_DEAD_LETTERS, queue=queue, ttl=ttl_seconds, limit=limit, reason=reason
            ),
        )

    def cleanup_tasks(
        self, queue: str, *, ttl_seconds: float | None = None, limit: int | None = None
    ) -> int:
        """Delete tasks that ended more than `ttl_seconds` ago; return how many.

        None takes the queue's policy. SQL: ``cleanup_tasks``.
        """
        return cast("int", self._one(_sql.CLEANUP_TASKS, queue=queue, ttl=ttl_seconds, limit=limit))

    def cleanup_events(
        self, queue: str, *, ttl_seconds: float | None = None, limit: int | None = None
    ) -> int:
        """Delete old events that nobody awaits; return how many.

        None takes the queue's policy. SQL: ``cleanup_events``.
        """
        return cast(
            "int", self._one(_sql.CLEANUP_EVENTS, queue=queue, ttl=ttl_seconds, limit=limit)
        )

    def cleanup_workflow_runs(
        self, ttl_seconds: float | None = None, limit: int | None = None
    ) -> int:
        """Remove workflow runs that were over long ago and have no task; return how many.

        None: 30 days or the longest ``cleanup_ttl`` of any queue, and at most 1000 of them.
        SQL: ``cleanup_workflow_runs``.
        """
        return cast("int", self._one(_sql.CLEANUP_WORKFLOW_RUNS, ttl=ttl_seconds, limit=limit))

    def cleanup_all_queues(self, queue: str | None = None) -> list[Cleaned]:
        """Clean up every queue, or one, by its policy. SQL: ``cleanup_all_queues``."""
        return [Cleaned(*row) for row in self._all(_sql.CLEANUP_ALL_QUEUES, queue=queue)]
