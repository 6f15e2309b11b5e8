"""What one worker counts; nothing of this is there in a worker without metrics."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import psycopg

from teguh._async.pool import AsyncPool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from teguh._connect import AsyncConn, Conn
    from teguh._worker.engine import Settings
    from teguh.metrics import Metrics
    from teguh.registry import Registry

T = TypeVar("T")

Outcome = Literal["completed", "failed", "suspended", "released", "lost"]
Reason = Literal["notification", "time", "worker"]

# An event loop that has not come round for so long is blocked by a handler.
_BLOCKED_SECONDS = 10.0
_BEAT_SECONDS = 1.0


class Meter:
    """Counts for one worker, from its event loop and its threads."""

    def __init__(
        self, metrics: Metrics, queue: str, registry: Registry, settings: Settings
    ) -> None:
        self.queue = queue
        self.settings = settings
        self.up = False
        self.heard_at: float | None = None  # Unix time
        self.executing: Callable[[], int] = int
        self._metrics = metrics
        self._names = set(registry.names())
        self._began_at = time.monotonic()
        self._beat_at = self._began_at
        self._answered_at: float | None = None  # monotonic
        self._lock = threading.Lock()
        self._connections: list[AsyncConn | Conn] = []
        self._missing = 0
        self._next_beat: asyncio.TimerHandle | None = None

    def start(self, executing: Callable[[], int]) -> None:
        """Begin, on the worker's event loop; `executing` tells how many handlers run."""
        self.executing = executing
        self._metrics.add(self, self._names)
        self._beat(asyncio.get_running_loop())

    def stop(self) -> None:
        """End: the counters stay, the gauges go."""
        self._metrics.remove(self)
        if self._next_beat is not None:
            self._next_beat.cancel()

    # What happens to runs

    def claimed(self, names: Iterable[str], seconds: float) -> None:
        """Runs of tasks with these names were claimed by a statement that took so long."""
        self._metrics.claim_seconds.labels(self.queue).observe(seconds)
        for name in names:
            self._metrics.claimed.labels(self.queue, self._label(name)).inc()

    def executed(self, name: str, seconds: float) -> None:
        """A handler has returned or raised."""
        self._metrics.handler_seconds.labels(self.queue, self._label(name)).observe(seconds)

    def ended(self, name: str, outcome: Outcome) -> None:
        """A run has left the worker's hands."""
        self._metrics.ended.labels(self.queue, self._label(name), outcome).inc()

    def woken(self, reason: Reason) -> None:
        """The worker waits no more."""
        self._metrics.woken.labels(self.queue, reason).inc()

    def _label(self, name: str) -> str:
        """Return the name that the handler is registered under: those are not without number."""
        if name in self._names:
            return name
        return "*" if "*" in self._names else ""

    # What is heard from the database

    def heard(self) -> None:
        """The database has answered."""
        self.up = True
        self.heard_at = time.time()
        self._answered_at = time.monotonic()

    def unheard(self, error: psycopg.Error) -> None:
        """A statement has failed: perhaps since the database is away."""
        if error.sqlstate is None or error.sqlstate[:2] in {"08", "57"}:
            self.up = False
        else:
            self.heard()

    def heartbeat_failed(self, error: psycopg.Error) -> None:
        """Leases could not be renewed."""
        self.unheard(error)
        self._metrics.heartbeat_failures.labels(self.queue).inc()

    def pool(self, connect: Callable[[], Awaitable[AsyncConn]], size: int) -> AsyncPool:
        """Return a pool that tells whether the database answers."""
        return MeteredPool(connect, size, self)

    def counted_async(
        self, connect: Callable[[], Awaitable[AsyncConn]]
    ) -> Callable[[], Awaitable[AsyncConn]]:
        """Return a way to connect that is counted."""

        async def connected() -> AsyncConn:
            return self._opened(await connect())

        return connected

    def counted(self, connect: Callable[[], Conn]) -> Callable[[], Conn]:
        """Return a way to connect that is counted."""
        return lambda: self._opened(connect())

    def _opened(self, connection: T) -> T:
        """Count a connection that takes the place of one that is closed."""
        with self._lock:
            there = [known for known in self._connections if not known.closed]
            self._missing += len(self._connections) - len(there)
            self._connections = [*there, connection]  # type: ignore[list-item]
            again, self._missing = self._missing > 0, max(0, self._missing - 1)
        if again:
            self._metrics.reconnects.labels(self.queue).inc()
        return connection

    # How the worker is

    def problems(self) -> list[str]:
        """Return what is wrong with the worker, in words."""
        now = time.monotonic()
        found = []
        if now - self._beat_at > _BLOCKED_SECONDS:
            found.append(
                f"queue {self.queue}: a handler has blocked the event loop for "
                f"{now - self._beat_at:.0f} s"
            )
        silent = now - (self._answered_at or self._began_at)
        if self._answered_at is None:
            found.append(f"queue {self.queue}: the database has not answered yet")
        elif silent > self.patience:
            found.append(f"queue {self.queue}: the database has not answered for {silent:.0f} s")
        return found

    @property
    def patience(self) -> float:
        """After how many seconds without an answer a worker is not well.

        Twice the longest time that a worker sends nothing to a database that is well.
        """
        settings = self.settings
        look = settings.poll_interval
        if settings.ticker_interval is not None:
            look = min(look, settings.ticker_interval)
        return 2 * max(look, 1.5 * settings.heartbeat)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beat_at = time.monotonic()
        self._next_beat = loop.call_later(_BEAT_SECONDS, self._beat, loop)


class MeteredPool(AsyncPool):
    """A pool that tells a meter whether the database answers."""

    def __init__(
        self, connect: Callable[[], Awaitable[AsyncConn]], size: int, meter: Meter
    ) -> None:
        super().__init__(connect, size)
        self._meter = meter

    async def fetch(self, statement: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Execute one statement in its own transaction and return its rows."""
        try:
            rows = await super().fetch(statement, params)
        except psycopg.Error as error:
            self._meter.unheard(error)
            raise
        self._meter.heard()
        return rows
