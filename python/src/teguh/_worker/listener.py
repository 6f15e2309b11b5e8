"""Hears notifications."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from teguh import _sql
from teguh._connect import is_alive, is_lost
from teguh._worker.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from psycopg.pq.abc import PGconn

    from teguh._connect import AsyncConn
    from teguh.logs import WorkerLog

# A probe without an answer for so long has found the connection dead.
_PROBE_SECONDS = 10.0


async def listen(
    connect: Callable[[], Awaitable[AsyncConn]],
    channel: str,
    probe_interval: float,
    wake: Callable[[], None],
    log: WorkerLog,
) -> None:
    """Call `wake` at every notification on a channel, and whenever one may have been missed.

    The connection is opened again, with backoff, when it is lost. That it is lost shows in the
    socket or, should the network have dropped it without a word, in a probe now and then.
    """
    backoff = Backoff()
    while True:
        try:
            connection = await connect()
            try:
                await connection.execute(
                    sql.SQL(_sql.LISTEN).format(channel=sql.Identifier(channel))
                )
                if backoff.tries:
                    log.info("listening again on channel %s", channel)
                backoff.reset()
                wake()
                await _hear(connection.pgconn, probe_interval, wake)
            finally:
                await connection.close()
        except psycopg.Error as error:
            if not is_lost(error):
                raise
            if backoff.tries == 0:
                log.warning("lost the connection that listens, polling meanwhile: %s", error)
        await asyncio.sleep(backoff.next())


async def _hear(pgconn: PGconn, probe_interval: float, wake: Callable[[], None]) -> None:
    """Wait for notifications until the connection is lost; sleep in the socket meanwhile.

    It speaks to libpq itself: waiting costs nothing then, and a connection that has gone dumb
    can be dropped without waiting for it.
    """
    loop = asyncio.get_running_loop()
    socket = pgconn.socket
    lost = asyncio.Event()
    probing = False

    def readable() -> None:
        nonlocal probing
        if not is_alive(pgconn):  # this reads what has arrived
            loop.remove_reader(socket)
            lost.set()
        while pgconn.notifies():
            wake()
        if probing and not pgconn.is_busy():
            while pgconn.get_result():
                pass
            probing = False

    loop.add_reader(socket, readable)
    try:
        while not await _is_set(lost, probe_interval):
            probing = True
            pgconn.send_query(_sql.PROBE.encode())
            pgconn.flush()
            if await _is_set(lost, min(_PROBE_SECONDS, probe_interval)):
                break
            if probing:
                raise psycopg.OperationalError("a probe was not answered")
    finally:
        loop.remove_reader(socket)
    raise psycopg.OperationalError("the server has closed the connection")


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, at most so long, and tell whether it has come."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
