"""One connection that listens for all."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from teguh import _sql
from teguh._worker.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from collections.abc import Set as AbstractSet

    from teguh._connect import AsyncConn

log = logging.getLogger("teguh.server")

# So often an idle connection is asked whether it is alive, and has so long to answer.
_PROBE_SECONDS = 30.0
_ANSWER_SECONDS = 10.0


class Listener:
    """Calls `heard` with the channel of each notification; with None if some may be missed.

    The connection is opened when the first channel is wanted, again when it is lost, and closed
    with the listener. Waiting sleeps in the socket and asks the database nothing.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[AsyncConn]], heard: Callable[[str | None], None]
    ) -> None:
        self._connect = connect
        self._heard = heard
        self._wanted: Counter[str] = Counter()
        self._listening: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._said = asyncio.Condition()
        self._down = False

    async def want(self, channels: AbstractSet[str]) -> None:
        """Listen on channels, too; return when that is so, or the database does not answer."""
        self._wanted.update(channels)
        self._woken.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        with suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_SECONDS), self._said:
                await self._said.wait_for(lambda: self._down or channels <= self._listening)

    def unwant(self, channels: Iterable[str]) -> None:
        """Listen on channels no more, unless somebody else wants them."""
        self._wanted.subtract(channels)
        self._wanted += Counter()  # without those nobody wants
        self._woken.set()

    async def close(self) -> None:
        """Hang up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        backoff = Backoff()
        while True:
            try:
                connection = await self._connect()
                try:
                    connection.add_notify_handler(lambda note: self._heard(note.channel))
                    await self._say(connection)
                    backoff.reset()
                    self._heard(None)
                    while True:
                        await self._hear(connection)
                        await self._say(connection)
                finally:
                    self._listening.clear()
                    await connection.close()
            except (psycopg.Error, OSError, TimeoutError) as error:
                if backoff.tries == 0:
                    log.warning("lost the connection that listens: %s", error)
                self._down = True
                await self._tell()
                self._heard(None)
            await asyncio.sleep(backoff.next())

    async def _say(self, connection: AsyncConn) -> None:
        """Tell the server what is wanted and what is wanted no more."""
        self._woken.clear()
        wanted = set(self._wanted)
        for statement, channels in (
            (_sql.LISTEN, wanted - self._listening),
            (_sql.UNLISTEN, self._listening - wanted),
        ):
            for channel in channels:
                query = sql.SQL(statement).format(channel=sql.Identifier(channel))
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await connection.execute(query)
        self._listening = wanted
        self._down = False
        await self._tell()

    async def _tell(self) -> None:
        async with self._said:
            self._said.notify_all()

    async def _hear(self, connection: AsyncConn) -> None:
        """Wait for notifications, until something else is wanted or it is time for a probe."""
        pgconn, loop = connection.pgconn, asyncio.get_running_loop()
        loop.add_reader(pgconn.socket, self._woken.set)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PROBE_SECONDS):
                    await self._woken.wait()
        finally:
            loop.remove_reader(pgconn.socket)
        if not self._woken.is_set():
            async with asyncio.timeout(_ANSWER_SECONDS):
                await connection.execute(_sql.PROBE.encode())
        pgconn.consume_input()  # raises if the server has hung up
        while note := pgconn.notifies():
            self._heard(note.relname.decode())
