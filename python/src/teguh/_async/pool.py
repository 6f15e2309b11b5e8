"""A few connections, opened when they are needed."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from psycopg.pq import TransactionStatus

from teguh._connect import is_alive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from teguh._connect import AsyncConn


class AsyncPool:
    """Up to `size` connections, each lent to one user at a time, the last used first."""

    def __init__(self, connect: Callable[[], Awaitable[AsyncConn]], size: int) -> None:
        self._connect = connect
        self._idle: list[AsyncConn] = []
        self._slots = asyncio.Semaphore(size)
        self._closed = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConn]:
        """Lend a connection. If it comes back broken, the idle ones are suspect, too."""
        async with self._slots:
            connection = await self._take()
            try:
                yield connection
            finally:
                healthy = connection.pgconn.transaction_status == TransactionStatus.IDLE
                if healthy and not self._closed:
                    self._idle.append(connection)
                else:
                    await connection.close()
                if not healthy:
                    await self._close_idle()

    async def fetch(self, statement: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Execute one statement in its own transaction and return its rows."""
        async with self.connection() as connection:
            cursor = await connection.execute(statement.encode(), params)
            return await cursor.fetchall()

    async def close(self) -> None:
        """Close the idle connections now and the lent ones when they come back."""
        self._closed = True
        await self._close_idle()

    async def _take(self) -> AsyncConn:
        while self._idle:
            connection = self._idle.pop()
            if is_alive(connection.pgconn):
                return connection
            await connection.close()
        return await self._connect()

    async def _close_idle(self) -> None:
        while self._idle:
            await self._idle.pop().close()
