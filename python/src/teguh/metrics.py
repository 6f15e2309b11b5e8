"""What workers show to Prometheus, and whether they are well. Needs the extra ``metrics``."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
from contextlib import contextmanager
from functools import partial
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, TypedDict
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from teguh._worker.meter import Meter
from teguh.errors import ConfigurationError

try:
    from prometheus_client import (
        CollectorRegistry,
        Counter,
        Histogram,
        generate_latest,
        make_wsgi_app,
    )
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "prometheus_client":
        raise
    raise ModuleNotFoundError(
        "metrics need an extra: run `pip install 'teguh[metrics]'`", name=error.name
    ) from None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIEnvironment

    from prometheus_client import Metric

    from teguh._worker.engine import Settings
    from teguh.registry import Registry

log = logging.getLogger("teguh.worker")

OUTCOMES = ("completed", "failed", "suspended", "released", "lost")
REASONS = ("notification", "time", "worker")

_CLAIM_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_HANDLER_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)

# A client that sends nothing for so long is hung up on.
_REQUEST_SECONDS = 10.0

# How long it takes at most to stop serving.
_STOP_SECONDS = 0.2


class Health(TypedDict):
    """Whether all workers are well, and if not, why."""

    status: str
    problems: list[str]


class Metrics(Collector):
    """The metrics of the workers that are given it, in one registry.

    ::

        metrics = teguh.metrics.Metrics(prometheus_client.REGISTRY)
        teguh.Worker("postgresql:///shop", "orders", tasks, metrics=metrics).run()

    Without `registry` it makes one of its own. A registry holds one of these: several workers of
    a process share it, also those of one queue, whose gauges are added up.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._meters: list[Meter] = []
        self._lock = threading.Lock()
        counter = partial(Counter, namespace="teguh_worker", registry=self.registry)
        histogram = partial(Histogram, namespace="teguh_worker", registry=self.registry)
        self.claimed = counter("runs_claimed", "Runs claimed.", ["queue", "task_name"])
        self.ended = counter(
            "runs_ended",
            "Runs that left the worker's hands, by how.",
            ["queue", "task_name", "outcome"],
        )
        self.handler_seconds = histogram(
            "handler_seconds",
            "How long handlers ran, until they ended or were suspended.",
            ["queue", "task_name"],
            buckets=_HANDLER_SECONDS,
        )
        self.claim_seconds = histogram(
            "claim_seconds", "How long claims took.", ["queue"], buckets=_CLAIM_SECONDS
        )
        self.woken = counter("wake_ups", "Why a worker looked for runs.", ["queue", "reason"])
        self.heartbeat_failures = counter(
            "heartbeat_failures", "Attempts to renew leases that failed.", ["queue"]
        )
        self.reconnects = counter(
            "reconnects", "Connections opened in place of lost ones.", ["queue"]
        )
        self.registry.register(self)

    def render(self) -> str:
        """Return all that is in the registry, in the text format of Prometheus."""
        return generate_latest(self.registry).decode()

    def health(self) -> Health:
        """Return whether all workers are well: alive, and heard by the database lately."""
        meters = self._attached()
        problems = [problem for meter in meters for problem in meter.problems()]
        if not meters:
            problems = ["no worker runs"]
        return {"status": "failing" if problems else "ok", "problems": problems}

    @contextmanager
    def serve(self, address: str) -> Iterator[str]:
        """Serve ``/metrics`` and ``/health`` at ``HOST:PORT`` from a thread.

        Give the address, with the port that was free if it was 0. Raise
        :class:`teguh.ConfigurationError` for what is no address or cannot be served at.
        """
        host, port = parse_address(address)
        try:
            server = _Server((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigurationError(f"metrics cannot be served at {address}: {error}") from None
        server.set_app(self._answer)
        served = f"{address.rpartition(':')[0]}:{server.server_port}"
        thread = threading.Thread(
            target=server.serve_forever, args=[_STOP_SECONDS], name="teguh-metrics", daemon=True
        )
        thread.start()
        log.info("serving metrics at http://%s/metrics", served)
        try:
            yield served
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def collect(self) -> Iterable[Metric]:
        """Return the gauges, by queue, for the registry."""
        queues: dict[str, list[Meter]] = {}
        for meter in self._attached():
            queues.setdefault(meter.queue, []).append(meter)
        for name, about, measure in _GAUGES:
            family = GaugeMetricFamily(f"teguh_worker_{name}", about, labels=["queue"])
            for queue, meters in queues.items():
                family.add_metric([queue], measure(meters))
            yield family

    def meter(self, queue: str, registry: Registry, settings: Settings) -> Meter:
        """Return what a worker counts with."""
        return Meter(self, queue, registry, settings)

    def add(self, meter: Meter, names: Iterable[str]) -> None:
        """Begin to show a worker; what it has not counted yet is 0."""
        queue = meter.queue
        for name in names:
            self.claimed.labels(queue, name)
            for outcome in OUTCOMES:
                self.ended.labels(queue, name, outcome)
        for reason in REASONS:
            self.woken.labels(queue, reason)
        self.heartbeat_failures.labels(queue)
        self.reconnects.labels(queue)
        with self._lock:
            self._meters.append(meter)

    def remove(self, meter: Meter) -> None:
        """Show a worker no longer."""
        with self._lock:
            self._meters.remove(meter)

    def _attached(self) -> list[Meter]:
        with self._lock:
            return list(self._meters)

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "GET":
            return _text(start, "405 Method Not Allowed", "There is only GET.\n", "text/plain")
        if path == "/metrics":
            answer: Iterable[bytes] = make_wsgi_app(self.registry)(environ, start)
            return answer
        if path == "/health":
            health = self.health()
            status = "200 OK" if health["status"] == "ok" else "503 Service Unavailable"
            return _text(start, status, json.dumps(health) + "\n", "application/json")
        return _text(start, "404 Not Found", "There are /metrics and /health.\n", "text/plain")


_GAUGES: tuple[tuple[str, str, Callable[[list[Meter]], float]], ...] = (
    ("handlers_running", "Handlers that run.", lambda all_: sum(m.executing() for m in all_)),
    (
        "slots_free",
        "Handlers that may run besides.",
        lambda all_: sum(m.settings.concurrency - m.executing() for m in all_),
    ),
    (
        "database_up",
        "Whether the last statement was answered.",
        lambda all_: float(all(m.up for m in all_)),
    ),
    (
        "last_contact_timestamp_seconds",
        "When the database last answered, 0: never.",
        lambda all_: min(m.heard_at or 0.0 for m in all_),
    ),
)


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``, ``[HOST]:PORT`` for IPv6."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ConfigurationError(f"metrics are served at HOST:PORT, and that is not {address!r}")
    return host, int(port)


def _text(start: StartResponse, status: str, text: str, kind: str) -> list[bytes]:
    body = text.encode()
    start(
        status,
        [("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body)))],
    )
    return [body]


class _Handler(WSGIRequestHandler):
    timeout = _REQUEST_SECONDS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        log.debug(f"metrics: {format}", *args)  # noqa: G004 - its format


class _Server(ThreadingMixIn, WSGIServer):
    """One thread a request: a slow client keeps nobody waiting, nor the process from ending."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without asking the DNS for a name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """Log what a client breaks."""
        log.debug("metrics: a request of %s failed: %s", client_address, sys.exception())
