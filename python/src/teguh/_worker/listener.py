"""Hears notifications."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from teguh import _sql
from teguh._connect import is_alive, is_lost
from teguh._worker.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from teguh._connect import AsyncConn

log = logging.getLogger("teguh.worker")

# A probe without an answer for so long has found the connection dead.
_PROBE_SECONDS = 10.0


async def listen(
    connect: Callable[[], Awaitable[AsyncConn]],
    channel: str,
    probe_interval: float,
    wake: Callable[[], None],
) -> None:
    """Call `wake` at every notification on a channel, and whenever one may have been missed.

    The connection is opened again, with backoff, when it is lost. That it is lost shows in the
    socket or, should the network have dropped it without a word, in a probe now and then.
    """
    backoff = Backoff()
    while True:
        try:
            async with await connect() as connection:
                await connection.execute(
                    sql.SQL(_sql.LISTEN).format(channel=sql.Identifier(channel))
                )
                if backoff.tries:
                    log.info("listening again on channel %s", channel)
                backoff.reset()
                wake()
                await _hear(connection, probe_interval, wake)
        except (psycopg.Error, TimeoutError) as error:
            if isinstance(error, psycopg.Error) and not is_lost(error):
                raise
            if backoff.tries == 0:
                log.warning("lost the connection that listens, polling meanwhile: %s", error)
        await asyncio.sleep(backoff.next())


async def _hear(connection: AsyncConn, probe_interval: float, wake: Callable[[], None]) -> None:
    """Wait for notifications until the connection is lost; sleep in the socket meanwhile."""
    loop = asyncio.get_running_loop()
    pgconn = connection.pgconn
    socket = pgconn.socket
    lost = asyncio.Event()

    def readable() -> None:
        if not is_alive(pgconn):  # this reads what has arrived
            loop.remove_reader(socket)
            lost.set()
        while pgconn.notifies():
            wake()

    connection.add_notify_handler(lambda _: wake())  # for those that come during a probe
    while not lost.is_set():
        loop.add_reader(socket, readable)
        try:
            async with asyncio.timeout(probe_interval):
                await lost.wait()
        except TimeoutError:
            pass
        finally:
            loop.remove_reader(socket)
        if not lost.is_set():
            async with asyncio.timeout(min(_PROBE_SECONDS, probe_interval)):
                await connection.execute(_sql.PROBE)
            readable()
