"""Statements that have to get through."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from teguh._connect import is_lost
from teguh._worker.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from teguh._async.pool import AsyncPool
    from teguh.logs import WorkerLog

T = TypeVar("T")


class Store:
    """Executes statements, each its own transaction, until the database has answered.

    A statement whose answer was lost with its connection is sent again, so it has to be one
    that may be: teguh's are, for what has happened already answers with AB002. Statements run
    detached from their callers: cancelling a handler does not cut off what it has sent.
    """

    def __init__(self, pool: AsyncPool, log: WorkerLog) -> None:
        self._pool = pool
        self._log = log
        self._running: set[asyncio.Task[Any]] = set()

    async def fetch(self, statement: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Return the rows of a statement. Errors that will not pass by themselves are raised."""
        return await asyncio.shield(self.detach(self._fetch(statement, params)))

    async def fetch_once(self, statement: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Return the rows of a statement that must not be sent again unasked."""
        return await self._pool.fetch(statement, params)

    def detach(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Let something run to its end even if whoever waits for it is cancelled."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Let something run that nobody waits for; log it should it fail."""
        task = self.detach(work)
        task.add_done_callback(self._log_failure)
        return task

    async def drain(self) -> None:
        """Wait until nothing runs."""
        while self._running:
            await asyncio.wait(set(self._running))

    async def cancel(self) -> None:
        """Give up what still runs."""
        for task in self._running:
            task.cancel()
        await self.drain()

    async def _fetch(self, statement: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        backoff = Backoff()
        while True:
            try:
                return await self._pool.fetch(statement, params)
            except psycopg.Error as error:
                if not is_lost(error):
                    raise
                if backoff.tries == 1:  # the first try may just have met a stale connection
                    self._log.warning("the database does not answer, trying on: %s", error)
            await asyncio.sleep(backoff.next())

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has seen it

    def _log_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("something in the worker failed", exc_info=error)
