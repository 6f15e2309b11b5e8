"""Workers: processes that execute tasks."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, TypedDict, Unpack

from teguh._worker.engine import Engine, Settings
from teguh.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from teguh.metrics import Metrics
    from teguh.registry import Registry


class WorkerOptions(TypedDict, total=False):
    """The options of a worker. Durations in seconds.

    ``concurrency`` (10): how many handlers run at the same time.
    ``batch_size`` (None): how many runs one claim may take; None means all free slots.
    ``claim_timeout`` (30): the length of a lease, after which a dead worker's runs are taken.
    ``heartbeat`` (a third of the lease, at most 10): how often leases are renewed, and so how
    soon a handler is stopped whose task was cancelled; at most a third of ``claim_timeout``.
    ``poll_interval`` (30): how long to wait for a notification before looking all the same.
    ``ticker_interval`` (10): how often to do the queue's housekeeping; None means never.
    ``shutdown_timeout`` (10): how long handlers may go on once the worker is to stop.
    ``unknown_delay`` (10): how long a run is handed back for that no handler is registered for.
    ``known_only`` (False): claim only tasks whose names are registered, and leave others to
    other workers; with it, a registry cannot have ``*``.
    ``listen`` (True): False does without LISTEN, session state and prepared statements, as a
    pooler in transaction mode needs it; then ``poll_interval`` is how late a task may start.
    ``worker_id`` (host:pid): the name under which the lease is held.
    ``metrics`` (None): ``HOST:PORT`` serves ``/metrics`` and ``/health`` there while the worker
    runs; a :class:`teguh.metrics.Metrics` is counted into. Needs the extra ``metrics``.
    """

    concurrency: int
    batch_size: int | None
    claim_timeout: float
    heartbeat: float | None
    poll_interval: float
    ticker_interval: float | None
    shutdown_timeout: float
    unknown_delay: float
    known_only: bool
    listen: bool
    worker_id: str | None
    metrics: Metrics | str | None


def _settings(options: WorkerOptions) -> Settings:
    known = WorkerOptions.__annotations__.keys()
    for name in options:
        if name not in known:
            raise ConfigurationError(f"no worker option {name!r}; there are {', '.join(known)}")
    concurrency = options.get("concurrency", 10)
    batch_size = options.get("batch_size")
    claim_timeout = options.get("claim_timeout", 30.0)
    heartbeat = options.get("heartbeat")
    ticker_interval = options.get("ticker_interval", 10.0)
    settings = Settings(
        concurrency=concurrency,
        batch_size=concurrency if batch_size is None else batch_size,
        claim_timeout=claim_timeout,
        heartbeat=min(10.0, claim_timeout / 3) if heartbeat is None else heartbeat,
        poll_interval=options.get("poll_interval", 30.0),
        ticker_interval=ticker_interval,
        shutdown_timeout=options.get("shutdown_timeout", 10.0),
        unknown_delay=options.get("unknown_delay", 10.0),
        known_only=options.get("known_only", False),
        listen=options.get("listen", True),
        worker_id=options.get("worker_id") or f"{socket.gethostname()}:{os.getpid()}",
    )
    for name in ("concurrency", "batch_size", "claim_timeout", "heartbeat", "poll_interval"):
        if getattr(settings, name) <= 0:
            raise ConfigurationError(f"{name} has to be more than 0")
    for name in ("shutdown_timeout", "unknown_delay"):
        if getattr(settings, name) < 0:
            raise ConfigurationError(f"{name} cannot be less than 0")
    if ticker_interval is not None and ticker_interval <= 0:
        raise ConfigurationError("ticker_interval has to be more than 0, or None")
    if settings.heartbeat > settings.claim_timeout / 3:
        raise ConfigurationError(
            f"a heartbeat every {settings.heartbeat} s does not keep a lease of "
            f"{settings.claim_timeout} s safe: at most {settings.claim_timeout / 3:g} s"
        )
    return settings


def _metrics(given: Metrics | str | None) -> tuple[Metrics | None, str | None]:
    """Return what to count into, and where to serve it."""
    if given is None:
        return None, None
    try:
        from teguh.metrics import Metrics, parse_address
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise ConfigurationError(str(error)) from None
    if isinstance(given, Metrics):
        return given, None
    if not isinstance(given, str):
        raise ConfigurationError(f"metrics is HOST:PORT or a teguh.metrics.Metrics, not {given!r}")
    parse_address(given)
    return Metrics(), given


def _check_names(names: list[str]) -> None:
    """Refuse what cannot be claimed by name."""
    if "*" in names:
        raise ConfigurationError(
            "known_only does not go with a handler for *, which knows every name"
        )
    if not names:
        raise ConfigurationError("known_only needs a registry with tasks, and there are none")


class AsyncWorker:
    """Executes the tasks of one queue, as a coroutine in an event loop of yours.

    It opens connections of its own from the conninfo: one that claims, one that listens, one
    that renews leases, and a few for what handlers store. See :class:`WorkerOptions`.

    A lost connection or a server restart is waited out. A handler whose lease is lost or whose
    task is cancelled is stopped: an async one is cancelled, a sync one is stopped by its next
    context call; its result is discarded. A handler's exception fails the run, and the task is
    retried by its strategy.
    """

    def __init__(
        self,
        conninfo: str,
        queue: str,
        registry: Registry,
        **options: Unpack[WorkerOptions],
    ) -> None:
        self._conninfo = conninfo
        self._queue = queue
        self._registry = registry
        self._settings = _settings(options)
        self._metrics, self._address = _metrics(options.get("metrics"))
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False

    async def run(self, *, signals: bool = False) -> None:
        """Work until :meth:`stop` is called, or this coroutine is cancelled.

        With `signals`, SIGTERM and SIGINT stop the worker, the second one at once. Raise what
        makes going on pointless:
        :class:`teguh.QueueNotFound`, a database that cannot be reached at the start, missing
        rights; :class:`teguh.ConfigurationError` if the registry does not go with `known_only`.
        """
        if self._settings.known_only:
            _check_names(self._registry.names())
        engine = Engine(self._conninfo, self._queue, self._registry, self._settings, self._metrics)
        with self._lock:
            if self._stopped:
                return
            self._engine, self._loop = engine, asyncio.get_running_loop()
        try:
            with (
                _stopped_by_signals(engine) if signals else nullcontext(),
                self._served(),
            ):
                await engine.run()
        finally:
            with self._lock:
                self._engine = self._loop = None

    def _served(self) -> AbstractContextManager[object]:
        if self._metrics is None or self._address is None:
            return nullcontext()
        return self._metrics.serve(self._address)

    def stop(self, *, wait: bool = True) -> None:
        """Stop claiming, let handlers end, hand the rest back; may be called in any thread.

        Handlers get `shutdown_timeout`; without `wait`, nothing. A worker is run once.
        """
        with self._lock:
            self._stopped = True
            if self._engine is not None and self._loop is not None:
                self._loop.call_soon_threadsafe(partial(self._engine.stop, wait=wait))


class Worker:
    """Executes the tasks of one queue, blocking the calling thread.

    ::

        teguh.Worker("postgresql:///shop", "orders", tasks, concurrency=20).run()

    For all else see :class:`AsyncWorker`; the handlers of both may be sync or async.
    """

    def __init__(
        self,
        conninfo: str,
        queue: str,
        registry: Registry,
        **options: Unpack[WorkerOptions],
    ) -> None:
        self._worker = AsyncWorker(conninfo, queue, registry, **options)

    def run(self) -> None:
        """Work until SIGTERM or SIGINT (in the main thread) or :meth:`stop`.

        Raise what :meth:`AsyncWorker.run` raises.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()
        asyncio.run(self._worker.run(signals=in_main_thread))

    def stop(self, *, wait: bool = True) -> None:
        """Stop as :meth:`AsyncWorker.stop` does; may be called in any thread."""
        self._worker.stop(wait=wait)


@contextmanager
def _stopped_by_signals(engine: Engine) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, engine.stop_by_signal)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
