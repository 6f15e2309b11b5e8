"""What a handler is given: the task, and the durable operations."""

from __future__ import annotations

import inspect
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    cast,
    overload,
)

import psycopg

from teguh import _sql
from teguh._json import dumps, stored
from teguh._traces import NO_SPAN, SPAN_STEP
from teguh._types import (
    Awaited,
    AwaitedChildren,
    ChildResult,
    ClaimedRun,
    FollowUp,
    Spawned,
    SpawnedChild,
    SpawnOptions,
    children,
    iso,
    spawned,
)
from teguh.errors import (
    Abandoned,
    EventTimeout,
    Interrupt,
    RunEnded,
    Suspended,
    from_psycopg,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from datetime import datetime
    from types import TracebackType
    from uuid import UUID

    from teguh._connect import AsyncConn
    from teguh._traces import RunTrace

P = ParamSpec("P")
T = TypeVar("T")


class AsyncCalls(Protocol):
    """What a context asks the worker for. Calls may raise psycopg's errors or teguh's."""

    queue: str

    async def checkpoint(self, run: ClaimedRun, step: str, state: str) -> None:
        """Store a step's state, given as JSON text."""

    async def sleep_for(self, run: ClaimedRun, step: str, seconds: float) -> None:
        """Store the wake time as the step's state and put the run to sleep until then."""

    async def sleep_until(self, run: ClaimedRun, step: str, wake_at: str) -> None:
        """Store the wake time as the step's state and put the run to sleep until then."""

    async def sleep_again(self, run: ClaimedRun, wake_at: str) -> bool:
        """Put the run to sleep until a stored wake time; return false if that is past."""

    async def await_event(
        self, run: ClaimedRun, step: str, event: str, seconds: float | None
    ) -> Awaited:
        """Return the event's outcome, or put the run to sleep until there is one."""

    async def emit_event(self, event: str, payload: str) -> None:
        """Emit an event with a payload given as JSON text."""

    async def receive(
        self, run: ClaimedRun, step: str, topic: str, seconds: float | None
    ) -> Awaited:
        """Take the oldest message of a topic, or put the run to sleep until there is one."""

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

    async def spawn_children(
        self, run: ClaimedRun, step: str, tasks: Sequence[FollowUp], on_parent_end: str
    ) -> list[SpawnedChild]:
        """Spawn the children of a step, once."""

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

    async def compensate(self, run: ClaimedRun, step: str, task: FollowUp) -> None:
        """Have a task spawned for a step, should the task end without success."""

    async def set_attributes(self, run: ClaimedRun, attributes: str) -> None:
        """Publish attributes of the task, given as JSON text."""

    async def repeat(self, run: ClaimedRun, seconds: float) -> None:
        """End the run with success and begin the task anew."""

    async def extend(self, run: ClaimedRun, seconds: float | None) -> None:
        """Set the end of the lease; None means the worker's claim timeout."""

    def transaction(self) -> AbstractAsyncContextManager[AsyncConn]:
        """Lend a connection inside a transaction that commits when the block ends well."""


class AsyncTaskContext:
    """A task being executed, with the operations that survive a crash.

    After a crash, a failure, a sleep or a wait the handler runs again from its first line, and
    every step that has a checkpoint returns it instead of running. So everything with an effect
    belongs into a step, and the steps must come in the same order each time. A name used again
    is numbered: ``charge``, ``charge#2``, and so on.

    Calls raise :class:`teguh.Suspended` to end the handler until it is due again, and
    :class:`teguh.Abandoned` once the run is lost, the task cancelled, or the worker stopping.
    """

    def __init__(self, calls: AsyncCalls, run: ClaimedRun) -> None:
        self._calls = calls
        self._run = run
        self._checkpoints = run.checkpoints or {}
        self._names: set[str] = set()
        self._broods: dict[str, str] = {}
        self._interrupt: Interrupt | None = None
        self._trace: RunTrace | None = None

    @property
    def queue(self) -> str:
        """The queue the task belongs to."""
        return self._calls.queue

    @property
    def task_id(self) -> UUID:
        """The task's id."""
        return self._run.task_id

    @property
    def run_id(self) -> UUID:
        """The run's id: the same across sleeps, another one after a failure."""
        return self._run.run_id

    @property
    def task_name(self) -> str:
        """The name the task was spawned with."""
        return self._run.task_name

    @property
    def attempt(self) -> int:
        """How often a worker has been handed the task, this time included."""
        return self._run.attempt

    @property
    def failures(self) -> int:
        """How many runs of the task have failed."""
        return self._run.failures

    @property
    def params(self) -> Any:
        """The params the task was spawned with."""
        return self._run.params

    @property
    def headers(self) -> dict[str, Any]:
        """The headers the task was spawned with."""
        return self._run.headers or {}

    @property
    def wake_event(self) -> str | None:
        """The event that woke the task, or whose wait timed out; None if neither."""
        return self._run.wake_event

    @property
    def event_payload(self) -> Any:
        """The payload of the event that woke the task."""
        return self._run.event_payload

    # [async only]
    @overload
    async def step(
        self, name: str, fn: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    @overload
    async def step(self, name: str, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...

    async def step(
        self,
        name: str,
        fn: Callable[P, Awaitable[T]] | Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return `fn(*args, **kwargs)`, or what it returned the first time.

        `fn` may be sync or async. It runs again if the worker dies before its result is
        stored: make its effect repeatable, or use :meth:`transaction`. Raise
        :class:`teguh.NotStorable`, naming the step, for a result that is not JSON.
        """
        step = self._number(name)
        if step in self._checkpoints:
            return cast("T", self._checkpoints[step])
        with self._span(step):
            value = fn(*args, **kwargs)
            if inspect.isawaitable(value):
                value = await value
            return cast("T", await self._store(step, value))

    # [end]
    # [sync only]
    # def step(self, name: str, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    #     """Return `fn(*args, **kwargs)`, or what it returned the first time.
    #
    #     `fn` runs again if the worker dies before its result is stored: make its effect
    #     repeatable, or use :meth:`transaction`. Raise :class:`teguh.NotStorable`, naming the
    #     step, for a result that is not JSON.
    #     """
    #     step = self._number(name)
    #     if step in self._checkpoints:
    #         return cast("T", self._checkpoints[step])
    #     with self._span(step):
    #         return cast("T", self._store(step, fn(*args, **kwargs)))
    #
    # [end]
    async def transaction(
        self,
        name: str,
        fn: Callable[Concatenate[AsyncConn, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return `fn(connection, *args, **kwargs)`, run in one transaction with its checkpoint.

        What `fn` writes through the connection commits if and only if the step is remembered:
        it happens exactly once. An exception, a lost lease or a cancelled task roll it back.
        """
        step = self._number(name)
        if step in self._checkpoints:
            return cast("T", self._checkpoints[step])
        with self._span(step):
            async with self._calls.transaction() as connection:
                value = await fn(connection, *args, **kwargs)
                text = dumps(value, f"the result of step {step!r}")
                with self._guard():
                    await connection.execute(
                        _sql.SET_TASK_CHECKPOINT_STATE.encode(),
                        {
                            "queue": self._calls.queue,
                            "task": self._run.task_id,
                            "step": step,
                            "state": text,
                            "run": self._run.run_id,
                            "extend_by": None,
                        },
                    )
            return cast("T", self._remember(step, value, text))

    async def sleep_for(self, seconds: float, name: str | None = None) -> None:
        """Suspend the task for some seconds, counted once by the database's clock.

        The wake time is stored: a replay before it sleeps on, a replay after it goes on.
        """
        if seconds < 0:
            raise ValueError(f"cannot sleep for {seconds} seconds")
        step = self._number(name or "sleep")
        with self._guard():
            if step in self._checkpoints:
                await self._sleep_again(step)
            else:
                await self._keep_span()
                await self._calls.sleep_for(self._run, step, seconds)
                raise Suspended(f"asleep for {seconds} seconds")

    async def sleep_until(self, wake_at: datetime, name: str | None = None) -> None:
        """Suspend the task until an instant. A stored wake time wins over a new one."""
        at = iso(wake_at, "wake_at")
        step = self._number(name or "sleep")
        with self._guard():
            if step in self._checkpoints:
                await self._sleep_again(step)
            else:
                await self._keep_span()
                await self._calls.sleep_until(self._run, step, at)
                raise Suspended(f"asleep until {at}")

    async def await_event(
        self,
        name: str,
        timeout: float | None = None,  # noqa: ASYNC109 - the database waits, not this call
        step: str | None = None,
    ) -> Any:
        """Return an event's payload, suspending the task until it is emitted.

        It does not matter whether the event was emitted before or after. Raise
        :class:`teguh.EventTimeout` if it has not come after `timeout` seconds; None waits for
        ever. Payload or timeout, a replay meets the same outcome.
        """
        key = self._number(step or f"await:{name}")
        if key in self._checkpoints:
            return self._checkpoints[key]
        with self._guard():
            await self._keep_span()
            awaited = await self._calls.await_event(self._run, key, name, timeout)
            if awaited.should_suspend:
                raise Suspended(f"awaiting event {name!r}")
        if awaited.timed_out:
            raise EventTimeout(f"event {name!r} did not come in time")
        return awaited.payload

    async def emit_event(self, name: str, payload: object = None) -> None:
        """Emit an event in this task's queue; the first payload of a name wins.

        It needs no step: emitting it again changes nothing.
        """
        text = dumps(payload, f"the payload of event {name!r}")
        with self._guard():
            await self._calls.emit_event(name, text)

    async def receive(
        self,
        topic: str,
        timeout: float | None = None,  # noqa: ASYNC109 - the database waits, not this call
        step: str | None = None,
    ) -> Any:
        """Return the payload of the oldest message on a topic that this task has not received.

        Suspend the task until there is one. Each message is received once, and a replay meets
        the same. Raise :class:`teguh.EventTimeout` if none has come after `timeout` seconds;
        None waits for ever.
        """
        key = self._number(step or f"receive:{topic}")
        if key in self._checkpoints:
            return self._checkpoints[key]
        with self._guard():
            await self._keep_span()
            received = await self._calls.receive(self._run, key, topic, timeout)
            if received.should_suspend:
                raise Suspended(f"awaiting a message on {topic!r}")
        if received.timed_out:
            raise EventTimeout(f"no message on {topic!r} came in time")
        return received.payload

    async def send(
        self,
        task_id: UUID | str,
        topic: str,
        payload: object = None,
        *,
        queue: str | None = None,
        step: str | None = None,
    ) -> None:
        """Send a message to a task exactly once, in this task's queue if no other is given.

        The message and the step that remembers it commit together. Raise
        :class:`teguh.TaskNotFound`, or :class:`teguh.WrongState` if the task is over.
        """
        key = self._number(step or f"send:{topic}")
        if key in self._checkpoints:
            return
        with self._guard():
            await self._calls.send(self._run, key, queue, task_id, topic, payload)

    async def spawn(
        self,
        task_name: str,
        params: object = None,
        *,
        queue: str | None = None,
        step: str | None = None,
        **options: Unpack[SpawnOptions],
    ) -> Spawned:
        """Spawn a task exactly once, in this task's queue if no other is given.

        The new task and the step that remembers it commit together.
        """
        key = self._number(step or f"spawn:{task_name}")
        if key in self._checkpoints:
            return spawned(self._checkpoints[key])
        with self._guard():
            return await self._calls.spawn(self._run, key, queue, task_name, params, options)

    async def spawn_children(
        self,
        tasks: Sequence[FollowUp],
        *,
        step: str = "children",
        on_parent_end: Literal["leave", "cancel"] = "leave",
    ) -> list[SpawnedChild]:
        """Spawn tasks of any queue exactly once, as children of a step; see await_children.

        ``cancel`` cancels those that are not over if this task ends without success.
        """
        key = self._broods[step] = self._number(step)
        if key in self._checkpoints:
            known = children(self._checkpoints[key])
            return [SpawnedChild(one.queue_name, one.task_id, False) for one in known]
        with self._guard():
            return await self._calls.spawn_children(self._run, key, tasks, on_parent_end)

    async def await_children(
        self,
        step: str = "children",
        *,
        mode: Literal["all", "any"] | int = "all",
        timeout: float | None = None,  # noqa: ASYNC109 - the database waits, not this call
        on_failure: Literal["collect", "fail_fast"] = "collect",
        cancel_rest: bool = False,
    ) -> list[ChildResult]:
        """Return what became of the children of a step, suspending the task until it is known.

        That is when all are over, any one or so many are completed, or no more can be; with
        ``fail_fast`` as soon as it cannot come true. `cancel_rest` cancels those not over by
        then. Raise :class:`teguh.EventTimeout` after `timeout` seconds; None waits for ever.
        A replay meets the same outcome.
        """
        key = self._broods.get(step, step)
        if key in self._checkpoints:
            return children(self._checkpoints[key])
        with self._guard():
            await self._keep_span()
            awaited = await self._calls.await_children(
                self._run, key, str(mode), timeout, on_failure, cancel_rest
            )
            if awaited.should_suspend:
                raise Suspended(f"awaiting the children of step {step!r}")
        if awaited.timed_out:
            raise EventTimeout(f"the children of step {step!r} were not over in time")
        return awaited.children

    async def compensate(
        self,
        task_name: str,
        params: dict[str, Any] | None = None,
        *,
        queue: str | None = None,
        step: str | None = None,
        **options: Unpack[SpawnOptions],
    ) -> None:
        """Have a task spawned if this one, or a later one of its sequence, ends without success.

        The compensations of all steps run one after another, the last first. Register one before
        the step that it undoes, and let it find out whether there is something to undo.
        """
        key = self._number(step or f"compensate:{task_name}")
        task: FollowUp = {
            "queue_name": queue or self.queue,
            "task_name": task_name,
            "params": params,
            "options": options,
        }
        with self._guard():
            await self._calls.compensate(self._run, key, task)

    async def set_attributes(self, attributes: Mapping[str, str | float | bool | None]) -> None:
        """Publish attributes by which the task is found: see the filter of ``list_tasks``.

        Those not named stay as they are; None takes one away. It needs no step: setting them
        again changes nothing.
        """
        text = dumps(attributes, "the attributes")
        with self._guard():
            await self._calls.set_attributes(self._run, text)

    async def repeat(self, seconds: float = 0) -> None:
        """End this run with success and begin the task anew after some seconds.

        The next run has no checkpoints of this one, and all its attempts.
        """
        if seconds < 0:
            raise ValueError(f"cannot repeat after {seconds} seconds")
        with self._guard():
            await self._calls.repeat(self._run, seconds)
            raise Suspended(f"repeated in {seconds} seconds")

    async def heartbeat(self, seconds: float | None = None) -> None:
        """Set the lease to end `seconds` from now; None means the worker's claim timeout.

        The worker does this by itself. Call it to learn at once of a lost lease or a cancelled
        task, or before something that needs a longer lease than usual.
        """
        with self._guard():
            await self._calls.extend(self._run, seconds)

    def check(self) -> None:
        """Raise :class:`teguh.Abandoned` if the worker knows that the run is over.

        It asks nobody, so a handler with a long loop can call it in every round.
        """
        if self._interrupt is not None:
            raise self._interrupt

    def _number(self, name: str) -> str:
        """Return the step's name, numbered if this execution has used it before."""
        self.check()
        if not name or "\0" in name:
            raise ValueError(f"a step cannot be named {name!r}")
        step, n = name, 1
        while step in self._names:
            n += 1
            step = f"{name}#{n}"
        self._names.add(step)
        return step

    async def _store(self, step: str, value: object) -> Any:
        text = dumps(value, f"the result of step {step!r}")
        with self._guard():
            await self._calls.checkpoint(self._run, step, text)
        return self._remember(step, value, text)

    def _remember(self, step: str, value: object, text: str) -> Any:
        seen = stored(value, text)
        self._checkpoints[step] = seen
        return seen

    async def _sleep_again(self, step: str) -> None:
        wake_at = self._checkpoints[step]
        await self._keep_span()
        if await self._calls.sleep_again(self._run, wake_at):
            raise Suspended(f"asleep until {wake_at}")

    def _span(self, step: str) -> AbstractContextManager[object]:
        """Open a span of a step, if the worker traces."""
        return NO_SPAN if self._trace is None else self._trace.step(step)

    async def _keep_span(self) -> None:
        """Store what the next execution links to, before the run is put to sleep."""
        state = None if self._trace is None else self._trace.to_keep()
        if state is not None:
            await self._calls.checkpoint(self._run, SPAN_STEP, dumps(state, "the span"))

    def _guard(self) -> _Guard:
        self.check()
        return _Guard(self)

    def _abandon(self, reason: str) -> None:
        """Make every further call raise; the worker discards the handler's result."""
        if self._interrupt is None:
            self._interrupt = Abandoned(reason)


class _Guard:
    """Turns errors of the database into teguh's, and those that end the run into interrupts.

    It remembers an interrupt, so that a handler that goes on regardless is noticed.
    """

    __slots__ = ("_context",)

    def __init__(self, context: AsyncTaskContext) -> None:
        self._context = context

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        known = from_psycopg(exc) if isinstance(exc, psycopg.Error) else exc
        if isinstance(known, RunEnded):
            known = Abandoned(known.message)
        if isinstance(known, Interrupt):
            self._context._interrupt = known
        if known is not None and known is not exc:
            raise known from exc
