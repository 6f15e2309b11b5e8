"""Claims runs, has them executed, and reports how they ended."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import psycopg

from teguh import _sql
from teguh._async.context import AsyncTaskContext
from teguh._async.pool import AsyncPool
from teguh._connect import is_lost, open_async, open_sync, worker_conninfo
from teguh._install import check_version
from teguh._json import dumps, printable
from teguh._sync.context import TaskContext
from teguh._sync.pool import Pool
from teguh._traces import SPAN_STEP, Traces
from teguh._types import ClaimedRun
from teguh._worker.backoff import Backoff
from teguh._worker.calls import WorkerAsyncCalls, WorkerCalls
from teguh._worker.listener import listen
from teguh._worker.pulse import Pulse
from teguh._worker.run import Run
from teguh._worker.store import Store
from teguh._worker.threads import Threads
from teguh.errors import NotStorable, RunEnded, Suspended, from_psycopg
from teguh.logs import WorkerLog, fields_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from uuid import UUID

    from teguh._connect import AsyncConn, Conn
    from teguh._traces import RunTrace
    from teguh._worker.meter import Outcome, Reason
    from teguh.metrics import Metrics
    from teguh.registry import AsyncHandler, Registry, SyncHandler

# A statement that completes more runs than this is not faster per run.
_BATCH = 500

# The statements of contexts, and the transactions of transaction steps, run on at most this
# many connections each; more would only wait for the same disk.
_CALL_CONNECTIONS = 3
_TRANSACTION_CONNECTIONS = 8

# A cancelled async handler has this long to clean up before its run is handed back.
_UNWIND_SECONDS = 1.0

# When stopping, what is on its way to the database has this long to get there.
_FLUSH_SECONDS = 5.0

# "Due at once" are also the few milliseconds the database gives work that is about to commit.
_AT_ONCE = 0.05

# next_due says at most so long while tasks wait for a limit that the end of a run may lift.
_LIMIT_SECONDS = 1.0

_TRACEBACK_LIMIT = 8_000


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of a worker, documented at :class:`teguh.Worker`."""

    concurrency: int
    batch_size: int
    claim_timeout: float
    heartbeat: float
    poll_interval: float
    ticker_interval: float | None
    shutdown_timeout: float
    unknown_delay: float
    known_only: bool
    listen: bool
    worker_id: str


class _Completion(NamedTuple):
    """A run that ended well, with its result as JSON text."""

    run: Run
    state: str


class Engine:
    """One worker at work, from its first claim until everything is handed in or back.

    All of it happens on one event loop, except sync handlers and the renewal of leases, which
    have threads of their own. Connections are never shared between the two: the loop has async
    ones, each thread borrows or owns a sync one.
    """

    def __init__(
        self,
        conninfo: str,
        queue: str,
        registry: Registry,
        settings: Settings,
        metrics: Metrics | None,
    ) -> None:
        self._queue = queue
        self._registry = registry
        self._settings = settings
        self._loop = asyncio.get_running_loop()

        self._log = WorkerLog(queue, settings.worker_id)
        self._traces = Traces.of_worker(queue, settings.worker_id, self._log)
        self._meter = None if metrics is None else metrics.meter(queue, registry, settings)

        # Wakes the claim loop: a notification, a slot that it waits for, a timer it has not
        # heard of, the end.
        self._wake = asyncio.Event()
        self._notified = False  # kept with metrics only

        self._connect(worker_conninfo(conninfo, settings.worker_id))
        self._store = Store(self._calls, self._log)
        self._async_calls = WorkerAsyncCalls(
            queue,
            settings.claim_timeout,
            registry,
            self._store,
            self._transactions,
            self._wake.set,
        )
        self._sync_calls = WorkerCalls(self._async_calls, self._thread_transactions, self._loop)
        self._threads = Threads(self._loop, settings.concurrency, self._handler_ended)
        self._pulse = Pulse(
            self._open_thread,
            queue,
            settings.claim_timeout,
            settings.heartbeat,
            lambda: list(self._runs.values()),
            self._loop,
            self._lost,
            self._log,
            self._meter,
        )

        # Runs in this worker's hands, also those whose completion is on its way.
        self._runs: dict[UUID, Run] = {}
        # How many of them occupy a slot: their handlers have not ended.
        self._executing = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._wants_slot = False
        # Whether tasks may wait for a limit, and whether a run has ended since the last claim.
        self._limited = False
        self._freed = False
        self._begun = asyncio.Event()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._completions: list[_Completion] = []
        self._completing: asyncio.Task[None] | None = None

    def _connect(self, conninfo: str) -> None:
        """Make the pools, which open connections when they need them."""
        prepare = self._settings.listen
        self._open: Callable[[], Awaitable[AsyncConn]]
        self._open = partial(open_async, conninfo, prepare=prepare)
        self._open_thread: Callable[[], Conn] = partial(open_sync, conninfo, prepare=prepare)
        pool: Callable[[Callable[[], Awaitable[AsyncConn]], int], AsyncPool] = AsyncPool
        if self._meter is not None:
            self._open = self._meter.counted_async(self._open)
            self._open_thread = self._meter.counted(self._open_thread)
            pool = self._meter.pool
        self._claims = pool(self._open, 1)
        self._calls = pool(self._open, _CALL_CONNECTIONS)
        self._transactions = pool(self._open, _TRANSACTION_CONNECTIONS)
        self._thread_transactions = Pool(self._open_thread, _TRANSACTION_CONNECTIONS)

    async def run(self) -> None:
        """Work until stopped. Raise what makes going on pointless, such as a missing queue."""
        settings = self._settings
        if self._meter is not None:
            self._meter.start(lambda: self._executing)
        parts = [asyncio.create_task(self._claim_loop(), name="teguh-claims")]
        if settings.listen:
            parts.append(asyncio.create_task(self._listen(), name="teguh-listener"))
        self._pulse.start()
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.stop()
            await self._shut_down(parts)
        for part in done:
            part.result()

    def stop(self, *, wait: bool = True) -> None:
        """Stop claiming and wind down; without `wait`, hand running handlers back at once."""
        self._stopping.set()
        if not wait:
            self._hurry.set()
        self._wake.set()

    async def _listen(self) -> None:
        """Listen from the moment on when the database has answered."""
        await self._begun.wait()
        await listen(
            self._open,
            f"teguh_{self._queue}",
            self._settings.poll_interval,
            self._wake.set if self._meter is None else self._notify,
            self._log,
        )

    def _notify(self) -> None:
        self._notified = True
        self._wake.set()

    def stop_by_signal(self) -> None:
        """Stop; the second time, do not wait."""
        self.stop(wait=not self._stopping.is_set())

    # Claiming

    async def _claim_loop(self) -> None:
        """Claim whenever there are free slots and reason to believe in work."""
        settings = self._settings
        backoff = Backoff()
        empty = Backoff(0.005, 1.0)
        # What fails before the first claim will hardly get better.
        ((version,),) = await self._claims.fetch(_sql.VERSION, {})
        check_version(version)
        self._begun.set()
        tick_at = time.monotonic()
        while not self._stopping.is_set():
            until_tick = settings.poll_interval
            try:
                if settings.ticker_interval is not None:
                    if time.monotonic() >= tick_at:
                        await self._tick()
                        tick_at = time.monotonic() + settings.ticker_interval
                    until_tick = tick_at - time.monotonic()
                self._wake.clear()
                free = self._free_slots()
                if free == 0:
                    self._wants_slot = True
                    await self._sleep(until_tick)
                    self._wants_slot = False
                    continue
                self._freed = False
                claimed = await self._claim(free)
                if backoff.tries:
                    self._log.info("claiming again from queue %s", self._queue)
                    backoff.reset()
                if claimed == free:
                    continue
                wait = await self._until_due(claimed, empty)
            except psycopg.Error as error:
                known = from_psycopg(error)
                if known is not None:
                    raise known from error
                if not is_lost(error):
                    raise
                if backoff.tries == 1:  # the first try may just have met a stale connection
                    self._log.warning("cannot claim, trying on: %s", error)
                wait = backoff.next()
            await self._sleep(min(wait, until_tick))

    def _free_slots(self) -> int:
        settings = self._settings
        if len(self._completions) > max(2 * settings.concurrency, _BATCH):
            return 0  # the database is behind with what has ended
        return min(settings.concurrency - self._executing, settings.batch_size)

    async def _claim(self, qty: int) -> int:
        """Claim up to `qty` runs and start them; return how many came."""
        settings = self._settings
        now = time.monotonic()
        params: dict[str, Any] = {
            "queue": self._queue,
            "worker": settings.worker_id,
            "claim_timeout": settings.claim_timeout,
            "qty": qty,
        }
        statement = _sql.CLAIM_TASK
        if settings.known_only:
            statement = _sql.CLAIM_ANY
            params["queues"] = [self._queue]
            params["options"] = dumps({"task_names": self._registry.names()}, "the names")
        rows = await self._claims.fetch(statement, params)
        if self._meter is not None:
            self._meter.claimed([row[3] for row in rows], time.monotonic() - now)
        unknown = []
        for row in rows:
            claim = ClaimedRun(*row)
            found = self._registry.find(claim.task_name)
            if self._stopping.is_set():
                self._release([claim], 0)
            elif found is None:
                unknown.append(claim)
            else:
                self._start(claim, now, *found)
        if unknown:
            names = sorted({claim.task_name for claim in unknown})
            self._log.warning("no handler for %s: handed back", ", ".join(map(repr, names)))
            self._release(unknown, settings.unknown_delay)
        return len(rows)

    async def _until_due(self, claimed: int, empty: Backoff) -> float:
        """Return how long nothing can be due, in seconds.

        Should the database say "at once" again and again without handing anything out (others
        were faster, or a transaction is about to commit), the answers get longer.
        """
        rows = await self._claims.fetch(_sql.SECONDS_UNTIL_DUE, {"queue": self._queue})
        due = rows[0][0]
        limit = min(self._settings.poll_interval, self._settings.claim_timeout)
        self._limited = due is not None and due <= _LIMIT_SECONDS
        if due is None:
            empty.reset()
            return limit
        # A millisecond more, lest a timer that fires early finds nothing yet.
        wait = max(0.0, float(due)) + 0.001
        if claimed or wait > _AT_ONCE:
            empty.reset()
        else:
            wait = max(wait, empty.next())
        if self._limited and self._freed:
            wait = 0.001
        return min(limit, wait)

    async def _tick(self) -> None:
        try:
            await self._claims.fetch(_sql.TICKER, {"queue": self._queue})
        except psycopg.Error as error:
            if is_lost(error) or from_psycopg(error) is not None:
                raise
            self._log.warning("the ticker failed: %s", error)

    async def _sleep(self, seconds: float) -> None:
        """Sleep until woken, at most so long."""
        if self._stopping.is_set():
            return
        reason: Reason = "worker"
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._wake.wait()
        except TimeoutError:
            reason = "time"
        if self._meter is not None:
            self._meter.woken("notification" if self._notified else reason)
            self._notified = False

    # Executing

    def _start(
        self, claim: ClaimedRun, now: float, handler: SyncHandler | AsyncHandler, is_async: bool
    ) -> None:
        self._executing += 1
        self._idle.clear()
        context = (
            AsyncTaskContext(self._async_calls, claim)
            if is_async
            else TaskContext(self._sync_calls, claim)
        )
        run = Run(claim, context, now, self._settings.worker_id)
        if self._traces is not None:
            run.trace = context._trace = self._traces.begin(claim)
        if self._meter is not None:
            run.began_at = time.monotonic()
        if is_async:
            run.task = self._loop.create_task(_call(cast("AsyncHandler", handler), run))
            run.task.add_done_callback(partial(self._task_ended, run))
        else:
            self._threads.submit(run, cast("SyncHandler", handler))
        self._runs[claim.run_id] = run
        if claim.timeout_seconds is not None:
            self._loop.call_later(claim.timeout_seconds, self._lost, run, "its timeout is over")

    def _task_ended(self, run: Run, task: asyncio.Task[object]) -> None:
        run.task = None  # its context knows the run
        if task.cancelled():
            self._handler_ended(run, None, asyncio.CancelledError("the handler was cancelled"))
        elif (error := task.exception()) is not None:
            self._handler_ended(run, None, error)
        else:
            self._handler_ended(run, task.result(), None)

    def _handler_ended(self, run: Run, result: object, error: BaseException | None) -> None:
        """Free the slot and send the outcome on its way."""
        run.ended = True
        self._executing -= 1
        if self._wants_slot:
            self._wake.set()
        if self._executing == 0:
            self._idle.set()
        interrupt = run.context._interrupt
        state = ""
        if interrupt is None and error is None:
            try:
                state = dumps(result, f"the result of task {run.claim.task_name!r}")
            except NotStorable as refused:
                error = refused
        if self._meter is not None:
            self._meter.executed(run.claim.task_name, time.monotonic() - run.began_at)
        if run.trace is not None:
            run.trace.end(interrupt or error)
        if interrupt is not None:
            if self._log.isEnabledFor(logging.DEBUG):
                self._log.debug("%s: %s", run, interrupt, extra=run.fields())
            self._runs.pop(run.claim.run_id, None)
            if not run.released:
                self._count(run.claim, "suspended" if isinstance(interrupt, Suspended) else "lost")
            self._run_ended()
        elif error is not None:
            self._fail(run, error)
        else:
            self._completions.append(_Completion(run, state))
            if self._completing is None:
                self._completing = self._store.background(self._complete_all())

    def _count(self, claim: ClaimedRun, outcome: Outcome) -> None:
        if self._meter is not None:
            self._meter.ended(claim.task_name, outcome)

    def _run_ended(self) -> None:
        """Look for what a slot, or the end of a run, makes room for."""
        self._freed = True
        if self._wants_slot or self._limited:
            self._wake.set()

    def _lost(self, run: Run, reason: str) -> None:
        """Stop a handler whose run is no longer its own."""
        if not run.ended and run.context._interrupt is None:
            self._log.warning("%s: stopped, %s", run, reason, extra=run.fields())
            self._abandon(run, reason)

    def _abandon(self, run: Run, reason: str) -> None:
        run.context._abandon(reason)
        if run.task is not None:
            run.task.cancel()

    # Outcomes

    async def _complete_all(self) -> None:
        """Hand in what has ended; what ends meanwhile goes into the next statement."""
        try:
            while self._completions:
                batch = self._completions[:_BATCH]
                del self._completions[:_BATCH]
                await self._complete(batch)
                for completion in batch:
                    self._runs.pop(completion.run.claim.run_id, None)
                self._run_ended()
        finally:
            self._completing = None

    async def _complete(self, batch: list[_Completion]) -> None:
        """Hand in results together; if the statement fails for one, one by one."""
        runs = ",".join(f'{{"run_id":"{c.run.claim.run_id}","state":{c.state}}}' for c in batch)
        try:
            refused = await self._store.fetch(
                _sql.COMPLETE_BATCH, {"queue": self._queue, "runs": f"[{runs}]"}
            )
        except psycopg.Error as error:
            if len(batch) > 1:
                for completion in batch:
                    await self._complete([completion])
            elif isinstance(from_psycopg(error), RunEnded):
                self._count(batch[0].run.claim, "lost")
            else:
                self._fail(batch[0].run, error)
        else:
            self._completed([completion.run for completion in batch], dict(refused))

    def _completed(self, runs: list[Run], refused: dict[UUID, str]) -> None:
        """Count results, and log those that were refused, with the SQLSTATE."""
        if self._meter is not None:
            for run in runs:
                lost = run.claim.run_id in refused
                self._count(run.claim, "lost" if lost else "completed")
        if refused:
            text = "the result of run %s was discarded: %s"
            for run in runs:
                if (sqlstate := refused.get(run.claim.run_id)) is not None:
                    self._log.info(text, run.claim.run_id, sqlstate, extra=run.fields())

    def _fail(self, run: Run, error: BaseException) -> None:
        extra = run.fields()
        self._log.warning("%s failed: %s: %s", run, type(error).__name__, error, extra=extra)
        self._log.debug("%s failed here", run, exc_info=error, extra=extra)
        text = "".join(traceback.format_exception(error))
        reason = {
            "name": type(error).__name__,
            "message": printable(str(error)),
            "traceback": printable(text[-_TRACEBACK_LIMIT:]),
        }
        params = {
            "queue": self._queue,
            "run": run.claim.run_id,
            "reason": dumps(reason, "the reason"),
            "retry_at": None,
        }
        self._report(_sql.FAIL_RUN, params, [run.claim], "failed", run.trace)

    def _release(self, claims: list[ClaimedRun], delay: float) -> None:
        """Hand runs back, to be claimed again after a delay, without counting a failure."""
        ids = sorted(claim.run_id for claim in claims)
        params = {"queue": self._queue, "runs": ids, "delay": delay}
        self._report(_sql.RELEASE_BATCH, params, claims, "released")

    def _report(
        self,
        statement: str,
        params: dict[str, Any],
        claims: list[ClaimedRun],
        outcome: Outcome,
        trace: RunTrace | None = None,
    ) -> None:
        async def report() -> None:
            try:
                if trace is not None and (span := trace.to_keep()) is not None:
                    with suppress(psycopg.Error):  # what matters is the next statement
                        state = dumps(span, "the span")
                        await self._async_calls.checkpoint(claims[0], SPAN_STEP, state)
                await self._store.fetch(statement, params)
            except psycopg.Error as error:
                if statement == _sql.RELEASE_BATCH and len(claims) > 1:
                    for claim in claims:
                        self._release([claim], params["delay"])
                    return
                self._count(claims[0], "lost")
                if not isinstance(from_psycopg(error), RunEnded):
                    extra = fields_of(claims[0], self._queue, self._settings.worker_id)
                    self._log.error("run %s: %s", claims[0].run_id, error, extra=extra)
            else:
                for claim in claims:
                    self._count(claim, outcome)
            finally:
                for claim in claims:
                    self._runs.pop(claim.run_id, None)
                self._wake.set()  # the runs may be due again soon

        self._store.background(report())

    # Stopping

    async def _shut_down(self, parts: list[asyncio.Task[None]]) -> None:
        """Let handlers end, hand the rest back, and close everything."""
        claiming, *others = parts
        try:
            await _at_most(_FLUSH_SECONDS, asyncio.wait([claiming]))
            await self._handlers_end()
            await self._hand_back()
            await _at_most(_FLUSH_SECONDS, self._store.drain())
        finally:
            if self._meter is not None:
                self._meter.stop()
            self._pulse.stop()
            self._threads.close()
            for part in (claiming, *others):
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            await _at_most(_UNWIND_SECONDS, self._store.cancel())
            for pool in (self._claims, self._calls, self._transactions):
                await pool.close()
            self._thread_transactions.close()
            self._pulse.join(1.0)

    async def _handlers_end(self) -> None:
        if self._executing:
            self._log.info("stopping: waiting for %d handlers", self._executing)
        waits = [asyncio.create_task(event.wait()) for event in (self._idle, self._hurry)]
        await asyncio.wait(
            waits,
            timeout=self._settings.shutdown_timeout,
            return_when=asyncio.FIRST_COMPLETED,
        )
        for wait in waits:
            wait.cancel()

    async def _hand_back(self) -> None:
        left = [
            run for run in self._runs.values() if run.context._interrupt is None and not run.ended
        ]
        if not left:
            return
        self._log.info("stopping: handing back %d runs", len(left))
        for run in left:
            run.released = True
            self._abandon(run, "the worker is stopping")
        await _at_most(_UNWIND_SECONDS, self._idle.wait())
        self._release([run.claim for run in left], 0)


async def _call(handler: AsyncHandler, run: Run) -> object:
    run.enter()
    try:
        return await handler(cast("AsyncTaskContext", run.context))
    except (SystemExit, KeyboardInterrupt) as error:
        # As they are, they would take the event loop down with them.
        raise RuntimeError(f"the handler raised {type(error).__name__}") from error


async def _at_most(seconds: float, work: Coroutine[Any, Any, Any]) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        pass
