"""What task contexts ask the worker for."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import psycopg

from teguh import _sql
from teguh._connect import is_lost
from teguh._json import dumps
from teguh._traces import propagated
from teguh._types import (
    Awaited,
    AwaitedChildren,
    ClaimedRun,
    FollowUp,
    Spawned,
    SpawnedChild,
    SpawnOptions,
    awaited_children,
    child_json,
    follow_up_json,
    options_json,
    spawned,
)
from teguh.errors import Abandoned

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
    from uuid import UUID

    from teguh._async.pool import AsyncPool
    from teguh._connect import AsyncConn, Conn
    from teguh._sync.pool import Pool
    from teguh._worker.store import Store
    from teguh.registry import Registry

T = TypeVar("T")

# Enough to share a commit among many, few enough to keep each statement short.
_BATCH = 500


class _Write(NamedTuple):
    """A checkpoint on its way to the database."""

    run: ClaimedRun
    step: str
    state: str
    done: asyncio.Future[None]


class WorkerAsyncCalls:
    """The calls of async handlers, on the event loop.

    Checkpoints that come in while one is being written share the next statement and commit.
    `timer_set` is called when the queue's next due time may have come nearer.
    """

    def __init__(
        self,
        queue: str,
        claim_timeout: float,
        registry: Registry,
        store: Store,
        transactions: AsyncPool,
        timer_set: Callable[[], None],
    ) -> None:
        self.queue = queue
        self._claim_timeout = claim_timeout
        self._registry = registry
        self._store = store
        self._transactions = transactions
        self._timer_set = timer_set
        self._writes: list[_Write] = []
        self._writing: asyncio.Task[None] | None = None

    async def checkpoint(self, run: ClaimedRun, step: str, state: str) -> None:
        """Store a step's state, given as JSON text."""
        done = asyncio.get_running_loop().create_future()
        self._writes.append(_Write(run, step, state, done))
        if self._writing is None:
            self._writing = self._store.background(self._write_all())
        await done

    async def sleep_for(self, run: ClaimedRun, step: str, seconds: float) -> None:
        """Store the wake time as the step's state and put the run to sleep until then."""
        await self._store.fetch(_sql.SLEEP_FOR, {**self._step(run, step), "seconds": seconds})
        self._timer_set()

    async def sleep_until(self, run: ClaimedRun, step: str, wake_at: str) -> None:
        """Store the wake time as the step's state and put the run to sleep until then."""
        await self._store.fetch(_sql.SLEEP_UNTIL, {**self._step(run, step), "wake_at": wake_at})
        self._timer_set()

    async def sleep_again(self, run: ClaimedRun, wake_at: str) -> bool:
        """Put the run to sleep until a stored wake time; return false if that is past."""
        if (await self._store.fetch(_sql.IS_PAST, {"wake_at": wake_at}))[0][0]:
            return False
        params = {"queue": self.queue, "run": run.run_id, "wake_at": wake_at}
        await self._store.fetch(_sql.SCHEDULE_RUN, params)
        self._timer_set()
        return True

    async def await_event(
        self, run: ClaimedRun, step: str, event: str, seconds: float | None
    ) -> Awaited:
        """Return the event's outcome, or put the run to sleep until there is one."""
        params = {**self._step(run, step), "event": event, "timeout": seconds}
        awaited = Awaited(*(await self._store.fetch(_sql.AWAIT_EVENT, params))[0])
        if awaited.should_suspend and seconds is not None:
            self._timer_set()
        return awaited

    async def emit_event(self, event: str, payload: str) -> None:
        """Emit an event with a payload given as JSON text."""
        params = {"queue": self.queue, "event": event, "payload": payload}
        await self._store.fetch(_sql.EMIT_EVENT, params)

    async def receive(
        self, run: ClaimedRun, step: str, topic: str, seconds: float | None
    ) -> Awaited:
        """Take the oldest message of a topic, or put the run to sleep until there is one."""
        params = {**self._step(run, step), "topic": topic, "timeout": seconds}
        received = Awaited(*(await self._store.fetch(_sql.RECEIVE_MESSAGE, params))[0])
        if received.should_suspend:
            self._timer_set()
        return received

    async def send(
        self,
        run: ClaimedRun,
        step: str,
        queue: str | None,
        task_id: UUID | str,
        topic: str,
        payload: object,
    ) -> int:
        """Send a message and store its id as the step's state, in one commit."""
        statement = {
            **self._step(run, step),
            "to_queue": queue or self.queue,
            "to_task": task_id,
            "topic": topic,
            "payload": dumps(payload, f"the payload of a message on {topic!r}"),
        }
        sent = await asyncio.shield(self._store.detach(self._send(statement)))
        self._timer_set()
        return sent

    async def spawn(
        self,
        run: ClaimedRun,
        step: str,
        queue: str | None,
        task_name: str,
        params: object,
        options: SpawnOptions,
    ) -> Spawned:
        """Spawn a task and store what was spawned as the step's state, in one commit."""
        merged: SpawnOptions = {
            "parent_run_id": run.run_id,
            "parent_queue_name": self.queue,
            **self._registry.options(task_name),
            **options,
        }
        statement = {
            **self._step(run, step),
            "to_queue": queue or self.queue,
            "task_name": task_name,
            "params": dumps(params, f"params of task {task_name!r}"),
            "options": dumps(options_json(propagated(merged)), f"options of task {task_name!r}"),
        }
        task = await asyncio.shield(self._store.detach(self._spawn(statement)))
        if "delay_seconds" in merged or "available_at" in merged:
            self._timer_set()
        return task

    async def spawn_children(
        self, run: ClaimedRun, step: str, tasks: Sequence[FollowUp], on_parent_end: str
    ) -> list[SpawnedChild]:
        """Spawn the children of a step, once."""
        given = [child_json(self._with_defaults(task)) for task in tasks]
        statement = {
            **self._step(run, step),
            "tasks": dumps(given, f"the children of step {step!r}"),
            "end": on_parent_end,
        }
        rows = await self._store.fetch(_sql.SPAWN_CHILDREN, statement)
        self._timer_set()
        return [SpawnedChild(*row) for row in rows]

    async def await_children(
        self,
        run: ClaimedRun,
        step: str,
        mode: str,
        seconds: float | None,
        on_failure: str,
        cancel_rest: bool,
    ) -> AwaitedChildren:
        """Return what became of children, or put the run to sleep until it is known."""
        statement = {
            **self._step(run, step),
            "mode": mode,
            "timeout": seconds,
            "on_failure": on_failure,
            "cancel_rest": cancel_rest,
        }
        awaited = awaited_children((await self._store.fetch(_sql.AWAIT_CHILDREN, statement))[0])
        if awaited.should_suspend:
            self._timer_set()
        return awaited

    async def compensate(self, run: ClaimedRun, step: str, task: FollowUp) -> None:
        """Have a task spawned for a step, should the task end without success."""
        given = follow_up_json(self._with_defaults(task))
        text = dumps(given, f"the compensation of step {step!r}")
        await self._store.fetch(
            _sql.ADD_COMPENSATION, {**self._step(run, step), "compensation": text}
        )

    async def set_attributes(self, run: ClaimedRun, attributes: str) -> None:
        """Publish attributes of the task, given as JSON text."""
        params = {"queue": self.queue, "run": run.run_id, "attributes": attributes}
        await self._store.fetch(_sql.SET_ATTRIBUTES, params)

    async def repeat(self, run: ClaimedRun, seconds: float) -> None:
        """End the run with success and begin the task anew."""
        params = {"queue": self.queue, "run": run.run_id, "after": seconds}
        await self._store.fetch(_sql.REPEAT_RUN, params)
        self._timer_set()

    def _with_defaults(self, task: FollowUp) -> FollowUp:
        """Return a task with the options that its handler was registered with."""
        options = {**self._registry.options(task["task_name"]), **task.get("options", {})}
        return {**task, "options": cast("SpawnOptions", options)}

    async def extend(self, run: ClaimedRun, seconds: float | None) -> None:
        """Set the end of the lease; None means the worker's claim timeout."""
        by = self._claim_timeout if seconds is None else seconds
        params = {"queue": self.queue, "run": run.run_id, "extend_by": by}
        await self._store.fetch(_sql.EXTEND_CLAIM, params)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConn]:
        """Lend a connection inside a transaction that commits when the block ends well."""
        async with self._transactions.connection() as connection, connection.transaction():
            yield connection

    def _step(self, run: ClaimedRun, step: str) -> dict[str, Any]:
        return {"queue": self.queue, "task": run.task_id, "run": run.run_id, "step": step}

    async def _spawn(self, statement: dict[str, Any]) -> Spawned:
        """Spawn once, also if the answer to the first try was lost with its connection."""
        row, known = await self._once(_sql.SPAWN_STEP, statement)
        return Spawned(*row[:4]) if row else spawned(known)

    async def _send(self, statement: dict[str, Any]) -> int:
        """Send once, also if the answer to the first try was lost with its connection."""
        row, known = await self._once(_sql.SEND_STEP, statement)
        return cast("int", row[0] if row else known)

    async def _once(self, query: str, statement: dict[str, Any]) -> tuple[Any, Any]:
        """Return the row of a query that stores a checkpoint, or else that checkpoint."""
        while True:
            try:
                return (await self._store.fetch_once(query, statement))[0], None
            except psycopg.Error as error:
                if not is_lost(error):
                    raise
            known = (await self._store.fetch(_sql.GET_TASK_CHECKPOINT_STATE, statement))[0][0]
            if known is not None:
                return None, known

    async def _write_all(self) -> None:
        try:
            while self._writes:
                batch, self._writes = self._writes[:_BATCH], self._writes[_BATCH:]
                await self._write(batch)
        finally:
            self._writing = None

    async def _write(self, batch: list[_Write]) -> None:
        """Write checkpoints together; if one is refused, one by one."""
        batch.sort(key=lambda write: write.run.task_id)
        try:
            await self._store.fetch(
                _sql.CHECKPOINT_BATCH,
                {
                    "queue": self.queue,
                    "tasks": [write.run.task_id for write in batch],
                    "steps": [write.step for write in batch],
                    "states": [write.state for write in batch],
                    "runs": [write.run.run_id for write in batch],
                },
            )
        except Exception as error:  # noqa: BLE001 - goes to those who wait for it
            if len(batch) > 1:
                for write in batch:
                    await self._write([write])
            elif not batch[0].done.done():
                batch[0].done.set_exception(error)
        else:
            for write in batch:
                if not write.done.done():
                    write.done.set_result(None)


class WorkerCalls:
    """The calls of sync handlers, from their threads: the event loop makes them."""

    def __init__(
        self, calls: WorkerAsyncCalls, transactions: Pool, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.queue = calls.queue
        self._calls = calls
        self._transactions = transactions
        self._loop = loop

    def checkpoint(self, run: ClaimedRun, step: str, state: str) -> None:
        """Store a step's state, given as JSON text."""
        self._wait(self._calls.checkpoint(run, step, state))

    def sleep_for(self, run: ClaimedRun, step: str, seconds: float) -> None:
        """Store the wake time as the step's state and put the run to sleep until then."""
        self._wait(self._calls.sleep_for(run, step, seconds))

    def sleep_until(self, run: ClaimedRun, step: str, wake_at: str) -> None:
        """Store the wake time as the step's state and put the run to sleep until then."""
        self._wait(self._calls.sleep_until(run, step, wake_at))

    def sleep_again(self, run: ClaimedRun, wake_at: str) -> bool:
        """Put the run to sleep until a stored wake time; return false if that is past."""
        return self._wait(self._calls.sleep_again(run, wake_at))

    def await_event(self, run: ClaimedRun, step: str, event: str, seconds: float | None) -> Awaited:
        """Return the event's outcome, or put the run to sleep until there is one."""
        return self._wait(self._calls.await_event(run, step, event, seconds))

    def emit_event(self, event: str, payload: str) -> None:
        """Emit an event with a payload given as JSON text."""
        self._wait(self._calls.emit_event(event, payload))

    def spawn(
        self,
        run: ClaimedRun,
        step: str,
        queue: str | None,
        task_name: str,
        params: object,
        options: SpawnOptions,
    ) -> Spawned:
        """Spawn a task and store what was spawned as the step's state, in one commit."""
        return self._wait(self._calls.spawn(run, step, queue, task_name, params, options))

    def receive(self, run: ClaimedRun, step: str, topic: str, seconds: float | None) -> Awaited:
        """Take the oldest message of a topic, or put the run to sleep until there is one."""
        return self._wait(self._calls.receive(run, step, topic, seconds))

    def send(
        self,
        run: ClaimedRun,
        step: str,
        queue: str | None,
        task_id: UUID | str,
        topic: str,
        payload: object,
    ) -> int:
        """Send a message and store its id as the step's state, in one commit."""
        return self._wait(self._calls.send(run, step, queue, task_id, topic, payload))

    def spawn_children(
        self, run: ClaimedRun, step: str, tasks: Sequence[FollowUp], on_parent_end: str
    ) -> list[SpawnedChild]:
        """Spawn the children of a step, once."""
        return self._wait(self._calls.spawn_children(run, step, tasks, on_parent_end))

    def await_children(
        self,
        run: ClaimedRun,
        step: str,
        mode: str,
        seconds: float | None,
        on_failure: str,
        cancel_rest: bool,
    ) -> AwaitedChildren:
        """Return what became of children, or put the run to sleep until it is known."""
        return self._wait(
            self._calls.await_children(run, step, mode, seconds, on_failure, cancel_rest)
        )

    def compensate(self, run: ClaimedRun, step: str, task: FollowUp) -> None:
        """Have a task spawned for a step, should the task end without success."""
        self._wait(self._calls.compensate(run, step, task))

    def set_attributes(self, run: ClaimedRun, attributes: str) -> None:
        """Publish attributes of the task, given as JSON text."""
        self._wait(self._calls.set_attributes(run, attributes))

    def repeat(self, run: ClaimedRun, seconds: float) -> None:
        """End the run with success and begin the task anew."""
        self._wait(self._calls.repeat(run, seconds))

    def extend(self, run: ClaimedRun, seconds: float | None) -> None:
        """Set the end of the lease; None means the worker's claim timeout."""
        self._wait(self._calls.extend(run, seconds))

    @contextmanager
    def transaction(self) -> Iterator[Conn]:
        """Lend a connection inside a transaction that commits when the block ends well."""
        with self._transactions.connection() as connection, connection.transaction():
            yield connection

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            return asyncio.run_coroutine_threadsafe(call, self._loop).result()
        except CancelledError:
            raise Abandoned("the worker has stopped") from None
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            call.close()
            raise Abandoned("the worker has stopped") from None
