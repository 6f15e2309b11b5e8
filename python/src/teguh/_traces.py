"""Spans of OpenTelemetry, where its API is installed.

Only what has been imported can have opened a span: a client looks whether the program has
imported the API, and imports nothing by itself.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from teguh.errors import Interrupt, Suspended

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

    from teguh._types import ClaimedRun, SpawnOptions
    from teguh.logs import WorkerLog

# The checkpoint that tells the next execution of a task of the span before.
SPAN_STEP = "$teguh:span"

NO_SPAN: AbstractContextManager[object] = nullcontext()

_KEYS = ("traceparent", "tracestate", "baggage")


def propagated(options: Mapping[str, Any]) -> SpawnOptions:
    """Return spawn options whose headers name the active span, unless they name one already."""
    given = cast("SpawnOptions", options)
    if "opentelemetry.trace" not in sys.modules:
        return given
    headers = given.get("headers") or {}
    if any(key in headers for key in _KEYS):
        return given
    carrier = _inject()
    return {**given, "headers": {**headers, **carrier}} if carrier else given


def _inject() -> dict[str, str]:
    from opentelemetry import trace
    from opentelemetry.baggage.propagation import W3CBaggagePropagator
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    if trace.get_current_span().get_span_context().is_valid:
        TraceContextTextMapPropagator().inject(carrier)
        W3CBaggagePropagator().inject(carrier)
    return carrier


def _extract(headers: Mapping[str, Any]) -> Context:
    """Return the context that headers name, which is empty if they name none."""
    from opentelemetry.baggage.propagation import W3CBaggagePropagator
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {key: headers[key] for key in _KEYS if isinstance(headers.get(key), str)}
    if not carrier:
        return Context()
    context = TraceContextTextMapPropagator().extract(carrier, Context())
    return W3CBaggagePropagator().extract(carrier, context)


class Traces:
    """Opens the spans of one worker."""

    def __init__(
        self, tracer: Tracer, queue: str, worker_id: str, log: WorkerLog, *, passes_on: bool
    ) -> None:
        self._tracer = tracer
        self._log = log
        self._passes_on = passes_on
        self._shared = {
            "messaging.system": "teguh",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": queue,
            "messaging.client.id": worker_id,
        }

    @classmethod
    def of_worker(cls, queue: str, worker_id: str, log: WorkerLog) -> Traces | None:
        """Return what traces a worker, or None without OpenTelemetry.

        If the program has set no provider, spans are only passed on.
        """
        try:
            from opentelemetry import trace
        except ModuleNotFoundError:
            return None
        passes_on = isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        return cls(trace.get_tracer("teguh"), queue, worker_id, log, passes_on=passes_on)

    def begin(self, claim: ClaimedRun) -> RunTrace | None:
        """Open the span of one execution of a run; None if there is nothing to tell."""
        if self._passes_on and not (claim.headers and "traceparent" in claim.headers):
            return None
        try:
            return self._begin(claim)
        except Exception:  # noqa: BLE001 - a sampler or processor: tasks go on without
            self._log.exception("no span for task %r %s", claim.task_name, claim.task_id)
            return None

    def _begin(self, claim: ClaimedRun) -> RunTrace:
        from opentelemetry.trace import Link, SpanKind, get_current_span

        context = _extract(claim.headers or {})
        if self._passes_on:
            return RunTrace(None, get_current_span(context), context, self._log)
        before = (claim.checkpoints or {}).get(SPAN_STEP)
        links = []
        if isinstance(before, str):
            known = get_current_span(_extract({"traceparent": before})).get_span_context()
            links = [Link(known)] if known.is_valid else []
        span = self._tracer.start_span(
            claim.task_name,
            context,
            SpanKind.CONSUMER,
            {
                **self._shared,
                "messaging.message.id": str(claim.task_id),
                "teguh.task.name": claim.task_name,
                "teguh.run.id": str(claim.run_id),
                "teguh.attempt": claim.attempt,
                "teguh.failures": claim.failures,
            },
            links,
        )
        return RunTrace(self._tracer, span, context, self._log)


class RunTrace:
    """The span of one execution of a run; without a tracer, that which its headers name."""

    __slots__ = ("_context", "_log", "_span", "_to_keep", "_tracer")

    def __init__(self, tracer: Tracer | None, span: Span, context: Context, log: WorkerLog) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracer = tracer
        self._span = span
        self._log = log
        self._context = set_span_in_context(span, context)
        self._to_keep = span.is_recording()

    def enter(self) -> None:
        """Make it the active span of this context of Python's."""
        from opentelemetry.context import attach

        attach(self._context)

    def step(self, name: str) -> AbstractContextManager[object]:
        """Open a span of a step, which notes what the step raises."""
        if self._tracer is None:
            return NO_SPAN
        return self._tracer.start_as_current_span(name, attributes={"teguh.step.name": name})

    def to_keep(self) -> str | None:
        """Return what the next execution needs for its link, once; None if nobody would see it."""
        if not self._to_keep:
            return None
        self._to_keep = False
        found = self._span.get_span_context()
        return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"

    def end(self, error: BaseException | None) -> None:
        """Close the span: the handler has returned, or was ended by this."""
        try:
            self._end(error)
        except Exception:  # noqa: BLE001 - a processor: how the task ended is what matters
            self._log.exception("a span could not be ended")

    def _end(self, error: BaseException | None) -> None:
        from opentelemetry.trace import Status, StatusCode

        outcome = "completed"
        if isinstance(error, Suspended):
            outcome = "suspended"
        elif isinstance(error, Interrupt):
            outcome = "abandoned"
            self._span.set_attribute("teguh.reason", str(error))
        elif error is not None:
            outcome = "failed"
            self._span.record_exception(error)
            kind = type(error)
            name = kind.__qualname__
            if kind.__module__ != "builtins":
                name = f"{kind.__module__}.{name}"
            self._span.set_attribute("error.type", name)
            self._span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        self._span.set_attribute("teguh.outcome", outcome)
        self._span.end()
