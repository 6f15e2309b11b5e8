"""Claims that wait for a task: any number, without a thread or a statement while nothing happens.

Those that would claim the same wait in one line. When something may be there, the line is served
from its front, until a claim comes back empty; so what one task wakes is one claim, and one more
that finds nothing and leaves word with the engine that somebody waits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from teguh import _sql
from teguh._worker.backoff import Backoff
from teguh.errors import TeguhError
from teguh.server._listener import Listener

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from teguh._async.client import AsyncClient
    from teguh._connect import AsyncConn
    from teguh._types import ClaimedRun, Order

    Borrow = Callable[[], AbstractAsyncContextManager[AsyncClient]]

log = logging.getLogger("teguh.server")

# A line is looked after so often though nothing was heard, and all lines together no more often.
_LOOK_SECONDS = 30.0
_SPACING_SECONDS = 4.0
# How long to wait when the database does not say.
_RETRY_SECONDS = 1.0
# What is due within so many seconds is due.
_AT_ONCE = 0.05
# So long a line is remembered to be without work after the last has left it.
_LINGER_SECONDS = 90.0

_TROUBLE = (psycopg.Error, TeguhError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a claim is for; queues of None are all there are."""

    queues: tuple[str, ...] | None
    task_names: tuple[str, ...] | None = None
    order: Order | None = None
    any: bool = False  # claim_any, and not claim_task


@dataclass(frozen=True, slots=True)
class Terms:
    """What one worker asks for."""

    worker_id: str
    claim_timeout: float
    qty: int


@dataclass(eq=False, slots=True)
class _Waiter:
    terms: Terms
    answer: asyncio.Future[list[ClaimedRun]]
    served: bool = False  # its claim is under way: it cannot leave


async def claim(client: AsyncClient, wanted: Wanted, terms: Terms) -> list[ClaimedRun]:
    """Claim what there is."""
    if not wanted.any and wanted.queues is not None:
        return await client.claim_task(
            wanted.queues[0], terms.worker_id, claim_timeout=terms.claim_timeout, qty=terms.qty
        )
    return await client.claim_any(
        wanted.queues,
        terms.worker_id,
        claim_timeout=terms.claim_timeout,
        qty=terms.qty,
        task_names=wanted.task_names,
        order=wanted.order,
    )


class Claims:
    """The lines of all that wait."""

    def __init__(self, borrow: Borrow, connect: Callable[[], Awaitable[AsyncConn]]) -> None:
        self.borrow = borrow
        self.listener = Listener(connect, self._heard)
        self.lines: dict[Wanted, _Line] = {}
        self.closing = False

    async def claim(
        self, gone: asyncio.Future[None], wanted: Wanted, terms: Terms, seconds: float
    ) -> list[ClaimedRun]:
        """Claim what there is, or wait for it for so many seconds, or until the client has gone."""
        if seconds <= 0 or self.closing:
            async with self.borrow() as client:
                return await claim(client, wanted, terms)
        line = self.lines.get(wanted)
        if line is None:
            self.lines[wanted] = line = _Line(self, wanted)
        return await line.wait(gone, terms, seconds)

    def _heard(self, channel: str | None) -> None:
        for line in self.lines.values():
            if channel is None or channel in line.channels:
                line.stir()

    def end_waits(self) -> None:
        """Let all that wait go with nothing, and nobody wait from here on."""
        self.closing = True
        for line in self.lines.values():
            line.dismiss()

    async def close(self) -> None:
        """End the waits, and the lines."""
        self.end_waits()
        tasks = [line.task for line in self.lines.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.listener.close()


class _Line:
    """Those that wait for the same."""

    def __init__(self, claims: Claims, wanted: Wanted) -> None:
        self._claims = claims
        self._wanted = wanted
        self._waiters: deque[_Waiter] = deque()
        self._changed = asyncio.Event()
        self._look_at = 0.0  # on the clock of time.monotonic()
        self._empty = Backoff()
        self._failed = False
        self.channels: set[str] = set()
        self.task = asyncio.create_task(self._run())

    async def wait(
        self, gone: asyncio.Future[None], terms: Terms, seconds: float
    ) -> list[ClaimedRun]:
        """Wait in the line; what was claimed for a client that has gone is handed back."""
        waiter = _Waiter(terms, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._changed.set()
        either: list[asyncio.Future[Any]] = [waiter.answer, gone]
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self._leave(waiter)
        found = await waiter.answer if waiter.served or waiter.answer.done() else []
        if found and gone.done():
            await self._hand_back(found)
        return found

    def _leave(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    async def _hand_back(self, runs: list[ClaimedRun]) -> None:
        """Release what nobody has taken; its lease would end by itself, too."""
        try:
            async with self._claims.borrow() as client:
                for run in runs:
                    await client.release_run(
                        run.queue_name or (self._wanted.queues or ("",))[0], run.run_id
                    )
        except _TROUBLE as error:
            log.warning("a run that nobody took is not released before its lease: %s", error)

    def stir(self) -> None:
        """Look again: something may be there."""
        self._look_at = 0.0
        if self._waiters:
            self._changed.set()

    def dismiss(self) -> None:
        """Let all go with nothing, but the one whose claim is under way."""
        for waiter in [waiter for waiter in self._waiters if not waiter.served]:
            self._leave(waiter)
            waiter.answer.set_result([])

    async def _run(self) -> None:
        try:
            await self._listen()
            while True:
                self._changed.clear()
                if self._waiters and time.monotonic() >= self._look_at:
                    await self._look()
                elif self._failed or not await self._stirred():
                    return
        finally:
            self._claims.lines.pop(self._wanted, None)
            self._claims.listener.unwant(self.channels)
            self.dismiss()

    async def _listen(self) -> None:
        """Listen to the line's queues, which may have become others."""
        queues = self._wanted.queues
        if queues is None:
            try:
                async with self._claims.borrow() as client:
                    queues = tuple(queue.queue_name for queue in await client.list_queues())
            except _TROUBLE:
                queues = ()  # the claim that follows says what is wrong
        before, self.channels = self.channels, {f"teguh_{queue}" for queue in queues}
        await self._claims.listener.want(self.channels)
        self._claims.listener.unwant(before)

    async def _stirred(self) -> bool:
        """Wait for a reason to look; tell whether there was one before the line grew cold."""
        wait = self._look_at - time.monotonic() if self._waiters else _LINGER_SECONDS
        try:
            async with asyncio.timeout(max(wait, 0)):
                await self._changed.wait()
        except TimeoutError:
            return bool(self._waiters)
        return True

    async def _look(self) -> None:
        """Serve the line until a claim comes back empty, and say when to look again."""
        spacing = max(_LOOK_SECONDS, _SPACING_SECONDS * len(self._claims.lines))
        self._look_at = time.monotonic() + spacing
        if self._wanted.queues is None:
            await self._listen()
        while self._waiters:
            if not await self._serve(self._waiters[0]):
                break
        else:
            self._empty.reset()
            self._look_at = 0.0  # there may be more: the next to come looks at once
            return
        try:
            wait = await self._until_due()
        except _TROUBLE:
            wait = _RETRY_SECONDS
        self._look_at = min(self._look_at, time.monotonic() + wait)

    async def _serve(self, waiter: _Waiter) -> bool:
        """Claim for one that waits; tell whether the next may be served, too."""
        waiter.served = True
        try:
            async with self._claims.borrow() as client:
                runs = await claim(client, self._wanted, waiter.terms)
        except Exception as error:  # noqa: BLE001 - those who asked are told, whatever it is
            self._failed = True
            alike = [waiter] if isinstance(error, TeguhError) else [waiter, *self._waiters]
            for each in dict.fromkeys(alike):  # what is no answer of the engine is so for all
                self._leave(each)
                each.answer.set_exception(error)
            return True
        except asyncio.CancelledError:
            self._leave(waiter)
            waiter.answer.set_result([])
            raise
        self._failed = False
        # or its time was up meanwhile, or everybody's is
        if runs or waiter not in self._waiters or self._claims.closing:
            self._leave(waiter)
            waiter.answer.set_result(runs)
        waiter.served = False
        return bool(runs)

    async def _until_due(self) -> float:
        """Return in how many seconds something is due.

        Should the database say "at once" again and again without handing anything out (others
        were faster, or a transaction is about to commit), the answers get longer.
        """
        queues = [channel.removeprefix("teguh_") for channel in self.channels]
        async with self._claims.borrow() as client:
            due = [at for queue in queues if (at := await _seconds_until_due(client, queue))]
        wait = min(due, default=math.inf)
        if wait > _AT_ONCE:
            self._empty.reset()
            return wait
        return max(wait, self._empty.next())


async def _seconds_until_due(client: AsyncClient, queue: str) -> float | None:
    cursor = await client.connection.execute(_sql.SECONDS_UNTIL_DUE.encode(), {"queue": queue})
    rows = await cursor.fetchall()
    # A millisecond more, lest a timer that fires early finds nothing yet.
    return None if rows[0][0] is None else max(0.0, float(rows[0][0])) + 0.001
