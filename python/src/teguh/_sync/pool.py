# Generated from teguh/_async/pool.py by tools/make_sync.py: edit that file instead.
"""A few connections, opened when they are needed."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from psycopg.pq import TransactionStatus

from teguh._connect import is_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from teguh._connect import Conn


class Pool:
    """Up to `size` connections, each lent to one user at a time, the last used first."""

    def __init__(self, connect: Callable[[], Conn], size: int) -> None:
        self._connect = connect
        self._idle: list[Conn] = []
        self._slots = threading.Semaphore(size)
        self._closed = False

    @contextmanager
    def connection(self) -> Iterator[Conn]:
        """Lend a connection. If it comes back broken, the idle ones are suspect, too."""
        with self._slots:
            connection = self._take()
            try:
                yield connection
            finally:
                healthy = connection.pgconn.transaction_status == TransactionStatus.IDLE
                if healthy and not self._closed:
                    self._idle.append(connection)
                else:
                    connection.close()
                if not healthy:
                    self._close_idle()

    def fetch(self, statement: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Execute one statement in its own transaction and return its rows."""
        with self.connection() as connection:
            cursor = connection.execute(statement.encode(), params)
            return cursor.fetchall()

    def close(self) -> None:
        """Close the idle connections now and the lent ones when they come back."""
        self._closed = True
        self._close_idle()

    def _take(self) -> Conn:
        while self._idle:
            connection = self._idle.pop()
            if is_alive(connection.pgconn):
                return connection
            connection.close()
        return self._connect()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()
