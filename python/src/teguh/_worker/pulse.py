"""Keeps the leases of running handlers."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg

from teguh import _sql
from teguh._connect import is_lost
from teguh._worker.backoff import Backoff
from teguh.errors import RunEnded, RunNotFound, from_psycopg

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Collection

    from teguh._connect import Conn
    from teguh._worker.meter import Meter
    from teguh._worker.run import Run
    from teguh.logs import WorkerLog

_BATCH = 500


class Pulse:
    """Renews leases from a thread and a connection of its own.

    A handler that keeps the event loop or every other connection busy does not starve it. It
    opens its connection when the first run is old enough to need it, and sends nothing while
    no run is.
    """

    def __init__(
        self,
        connect: Callable[[], Conn],
        queue: str,
        claim_timeout: float,
        interval: float,
        runs: Callable[[], Collection[Run]],
        loop: AbstractEventLoop,
        lost: Callable[[Run, str], None],
        log: WorkerLog,
        meter: Meter | None,
    ) -> None:
        self._connect = connect
        self._queue = queue
        self._claim_timeout = claim_timeout
        self._interval = interval
        self._runs = runs
        self._loop = loop
        self._lost = lost
        self._log = log
        self._meter = meter
        self._connection: Conn | None = None
        self._backoff = Backoff(limit=min(5.0, interval))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="teguh-pulse", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; it does at once unless the database keeps it waiting."""
        self._stopping.set()

    def join(self, timeout: float) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout)

    def _work(self) -> None:
        wait = self._interval
        while not self._stopping.wait(wait):
            # A run renewed less than half an interval ago can wait for the next beat: no gap
            # gets longer than one and a half intervals, half a lease.
            before = time.monotonic() - self._interval / 2
            due = [run for run in self._runs() if run.renewed_at < before]
            wait = self._interval
            try:
                for start in range(0, len(due), _BATCH):
                    self._renew(due[start : start + _BATCH])
                self._backoff.reset()
            except psycopg.Error as error:
                if self._meter is not None:
                    self._meter.heartbeat_failed(error)
                if self._backoff.tries == 0:
                    self._log.warning("cannot renew leases, trying on: %s", error)
                self._close()
                wait = self._backoff.next()
        self._close()

    def _renew(self, runs: list[Run]) -> None:
        """Renew leases together; if one is refused, one by one."""
        runs.sort(key=lambda run: run.claim.run_id)
        now = time.monotonic()
        params: dict[str, Any] = {"queue": self._queue, "extend_by": self._claim_timeout}
        try:
            self._execute(_sql.EXTEND_BATCH, {**params, "runs": [r.claim.run_id for r in runs]})
        except psycopg.Error as error:
            if is_lost(error):
                raise
            for run in runs:
                self._renew_one(run, params)
        else:
            for run in runs:
                run.renewed_at = now

    def _renew_one(self, run: Run, params: dict[str, Any]) -> None:
        now = time.monotonic()
        try:
            self._execute(_sql.EXTEND_CLAIM, {**params, "run": run.claim.run_id})
        except psycopg.Error as error:
            known = from_psycopg(error)
            if not isinstance(known, RunEnded | RunNotFound):
                raise
            try:
                self._loop.call_soon_threadsafe(self._lost, run, known.message)
            except RuntimeError:  # the loop is closed: nobody is left to tell
                self._stopping.set()
        else:
            run.renewed_at = now

    def _execute(self, statement: str, params: dict[str, Any]) -> None:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        self._connection.execute(statement.encode(), params)
        if self._meter is not None:
            self._meter.heard()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
