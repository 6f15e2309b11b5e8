"""Spans of OpenTelemetry, and how they find each other across tasks, attempts and sleeps."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

import teguh
from teguh._traces import SPAN_STEP
from tests.python.support import finished, running, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

AT_ONCE: teguh.RetryStrategy = {"kind": "none"}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(params=["sampled"])
def provider(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TracerProvider]:
    """The provider of tracers, for one test; those that workers get come from it."""
    sampled = request.param == "sampled"
    provider = TracerProvider() if sampled else TracerProvider(sampler=ALWAYS_OFF)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield provider
    provider.shutdown()


@pytest.fixture
def exporter(provider: TracerProvider) -> InMemorySpanExporter:
    """What keeps the spans."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


def named(exporter: InMemorySpanExporter, name: str, number: int = 1) -> list[ReadableSpan]:
    """Wait for so many spans with a name, and return all in the order of their beginning."""

    def there() -> list[ReadableSpan]:
        spans = [span for span in exporter.get_finished_spans() if span.name == name]
        return spans if len(spans) >= number else []

    spans = until(there, f"{number} spans {name}")
    return sorted(spans, key=lambda span: span.start_time or 0)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def stored_headers(client: teguh.Client, queue: str, task_id: UUID) -> dict[str, Any]:
    (row,) = client.connection.execute(
        f"select headers from teguh.t_{queue} where task_id = %s", [task_id]
    ).fetchall()
    return row[0] or {}


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_execution_is_a_span_under_the_one_that_the_headers_name(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    exporter: InMemorySpanExporter,
    kind: str,
) -> None:
    seen: list[Any] = []

    def look() -> int:
        seen.append(trace.get_current_span().get_span_context())
        return 1

    @tasks.task("sync")
    def sync(ctx: teguh.TaskContext) -> None:
        look()
        ctx.step("charge", look)
        ctx.transaction("ship", lambda _: look())

    @tasks.task("async")
    async def async_(ctx: teguh.AsyncTaskContext) -> None:
        async def ship(_: object) -> int:
            return look()

        look()
        await ctx.step("charge", look)
        await ctx.transaction("ship", ship)

    headers = {"traceparent": PARENT, "tracestate": "vendor=1"}
    with running(dsn, queue, tasks, worker_id="w-1"):
        task = client.spawn_task(queue, kind, headers=headers)
        finished(client, queue, task.task_id)
    (span,), (charge,), (ship_,) = (named(exporter, name) for name in (kind, "charge", "ship"))
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == PARENT[3:-3]
    assert span.context.trace_state["vendor"] == "1"
    assert span.kind is SpanKind.CONSUMER
    assert span.links == ()
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span) == {
        "messaging.system": "teguh",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": queue,
        "messaging.client.id": "w-1",
        "messaging.message.id": str(task.task_id),
        "teguh.task.name": kind,
        "teguh.run.id": str(task.run_id),
        "teguh.attempt": 1,
        "teguh.failures": 0,
        "teguh.outcome": "completed",
    }
    for step in (charge, ship_):
        assert step.parent == span.context
        assert attributes(step) == {"teguh.step.name": step.name}
    assert seen == [span.context, charge.context, ship_.context]
    assert client.get_task_checkpoint_state(queue, task.task_id, SPAN_STEP) is None


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_attempts_and_wake_ups_are_linked_to_the_execution_before(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    exporter: InMemorySpanExporter,
    kind: str,
) -> None:
    @tasks.task("sync")
    def sync(ctx: teguh.TaskContext) -> None:
        ctx.step("once", int)
        if ctx.failures == 0:
            raise KeyError("no")
        ctx.sleep_for(0.01)
        ctx.await_event("go")

    @tasks.task("async")
    async def async_(ctx: teguh.AsyncTaskContext) -> None:
        await ctx.step("once", int)
        if ctx.failures == 0:
            raise KeyError("no")
        await ctx.sleep_for(0.01)
        await ctx.await_event("go")

    task = client.spawn_task(queue, kind, retry_strategy=AT_ONCE)
    with running(dsn, queue, tasks):
        named(exporter, kind, 3)
    client.emit_event(queue, "go")
    with running(dsn, queue, tasks):  # another one: what is linked is in the database
        finished(client, queue, task.task_id)
        spans = named(exporter, kind, 4)
    outcomes = [attributes(span)["teguh.outcome"] for span in spans]
    assert outcomes == ["failed", "suspended", "suspended", "completed"]
    assert spans[0].links == ()
    for before, span in pairwise(spans):
        assert span.parent is None
        (link,) = span.links
        assert link.context.span_id == before.context.span_id
        assert link.context.trace_id == before.context.trace_id
    assert len(named(exporter, "once")) == 1  # a replay runs no step
    failed = spans[0]
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description == "KeyError: 'no'"
    assert attributes(failed)["error.type"] == "KeyError"
    (event,) = failed.events
    assert event.name == "exception"
    assert (event.attributes or {})["exception.type"] == "KeyError"
    assert attributes(spans[1])["teguh.failures"] == 1


def test_waits_for_messages_children_and_instants_are_linked_too(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    exporter: InMemorySpanExporter,
) -> None:
    tasks.task("child")(lambda _: None)

    @tasks.task("parent")
    def parent(ctx: teguh.TaskContext) -> None:
        ctx.sleep_until(client_time)
        ctx.receive("topic")
        ctx.spawn_children([{"task_name": "child"}])
        ctx.await_children()

    client_time = client.current_time()
    with running(dsn, queue, tasks):
        task = client.spawn_task(queue, "parent")
        named(exporter, "parent", 2)
        client.send_message(queue, task.task_id, "topic")
        finished(client, queue, task.task_id)
    spans = sorted(
        (span for span in exporter.get_finished_spans() if span.name == "parent"),
        key=lambda span: span.start_time or 0,
    )
    assert len(spans) >= 3
    for before, span in pairwise(spans):
        assert [link.context.span_id for link in span.links] == [before.context.span_id]


def test_a_step_that_raises_notes_it_and_a_result_that_cannot_be_stored_fails_the_span(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    exporter: InMemorySpanExporter,
) -> None:
    @tasks.task("raises")
    def raises(ctx: teguh.TaskContext) -> None:
        ctx.step("divide", lambda: 1 / 0)

    tasks.task("returns")(lambda _: object())
    with running(dsn, queue, tasks):
        for name in ("raises", "returns"):
            finished(client, queue, client.spawn_task(queue, name, max_attempts=1).task_id)
    (step,), (handler,), (result,) = (
        named(exporter, name) for name in ("divide", "raises", "returns")
    )
    for span in (step, handler, result):
        assert span.status.status_code is StatusCode.ERROR
        assert [event.name for event in span.events] == ["exception"]
    assert attributes(result)["error.type"] == "teguh.errors.NotStorable"


def test_a_cancelled_task_ends_its_span_with_the_reason(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    exporter: InMemorySpanExporter,
) -> None:
    began = asyncio.Event()

    @tasks.task("waits")
    async def waits(ctx: teguh.AsyncTaskContext) -> None:
        began.set()
        await asyncio.sleep(600)

    with running(dsn, queue, tasks, claim_timeout=0.6):
        task = client.spawn_task(queue, "waits")
        until(began.is_set)
        client.cancel_task(queue, task.task_id)
        (span,) = named(exporter, "waits")
    assert attributes(span)["teguh.outcome"] == "abandoned"
    assert "cancelled" in attributes(span)["teguh.reason"]
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("provider", ["not sampled"], indirect=True)
def test_what_is_not_sampled_stores_nothing(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    exporter: InMemorySpanExporter,
) -> None:
    tasks.task("sleeps")(lambda ctx: ctx.sleep_for(0.001))
    with running(dsn, queue, tasks):
        task = client.spawn_task(queue, "sleeps")
        finished(client, queue, task.task_id)
    assert exporter.get_finished_spans() == ()
    stored = client.get_task_checkpoint_states(queue, task.task_id, task.run_id)
    names = {checkpoint.checkpoint_name for checkpoint in stored}
    assert names == {"sleep"}


def test_the_client_names_the_active_span_in_the_headers(
    client: teguh.Client, queue: str, provider: TracerProvider
) -> None:
    tracer = provider.get_tracer("test")
    run = client.spawn_task(queue, "parent").run_id
    (claimed,) = client.claim_task(queue)
    assert claimed.run_id == run
    with tracer.start_as_current_span("request") as span:
        token = attach(baggage.set_baggage("tenant", "t-1"))
        spawned = [
            client.spawn_task(queue, "n", headers={"mine": 1}).task_id,
            *(task.task_id for task in client.spawn_tasks(queue, [teguh.NewTask("n", 1)])),
            *(c.task_id for c in client.spawn_children(queue, run, "c", [{"task_name": "n"}])),
        ]
        given = client.spawn_task(queue, "n", headers={"traceparent": PARENT}).task_id
        detach(token)
    context = span.get_span_context()
    for task_id in spawned:
        headers = stored_headers(client, queue, task_id)
        expected = f"00-{context.trace_id:032x}-{context.span_id:016x}-"
        assert headers["traceparent"].startswith(expected)
        assert headers["baggage"] == "tenant=t-1"
    assert stored_headers(client, queue, spawned[0])["mine"] == 1
    assert stored_headers(client, queue, given) == {"traceparent": PARENT}
    outside = client.spawn_task(queue, "n").task_id
    assert stored_headers(client, queue, outside) == {}


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_handler_spawns_is_under_its_span_and_has_its_baggage(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    exporter: InMemorySpanExporter,
    kind: str,
) -> None:
    tenants: list[object] = []

    @tasks.task("sync")
    def sync(ctx: teguh.TaskContext) -> None:
        ctx.spawn("child")
        ctx.spawn_children([{"task_name": "brood"}])

    @tasks.task("async")
    async def async_(ctx: teguh.AsyncTaskContext) -> None:
        await ctx.spawn("child")
        await ctx.spawn_children([{"task_name": "brood"}])

    for name in ("child", "brood"):
        tasks.task(name)(lambda _: tenants.append(baggage.get_baggage("tenant")))
    with running(dsn, queue, tasks):
        headers = {"traceparent": PARENT, "baggage": "tenant=t-1"}
        client.spawn_task(queue, kind, headers=headers)
        (child,), (brood,), (span,) = (named(exporter, name) for name in ("child", "brood", kind))
    assert child.parent is not None
    assert brood.parent is not None
    assert {child.parent.span_id, brood.parent.span_id} == {span.context.span_id}
    assert child.context.trace_id == int(PARENT[3:35], 16)
    assert tenants == ["t-1", "t-1"]


@pytest.mark.parametrize("headers", [{"traceparent": "nonsense"}, {"traceparent": 1}, {}])
def test_headers_that_name_no_span_are_no_hindrance(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    exporter: InMemorySpanExporter,
    headers: dict[str, Any],
) -> None:
    tasks.task("n")(lambda _: None)
    with running(dsn, queue, tasks):
        task = client.spawn_task(queue, "n", headers=headers)
        assert finished(client, queue, task.task_id).state == "completed"
    assert named(exporter, "n")[0].parent is None


class Broken(SpanProcessor):
    """A processor that raises at one end of a span."""

    def __init__(self, at: str) -> None:
        self._at = at

    def on_start(self, span: object, parent_context: object = None) -> None:
        if self._at == "start":
            raise RuntimeError("broken")

    def on_end(self, span: ReadableSpan) -> None:
        if self._at == "end":
            raise RuntimeError("broken")


@pytest.mark.parametrize("at", ["start", "end"])
def test_a_processor_that_raises_costs_the_span_and_not_the_task(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    provider: TracerProvider,
    caplog: pytest.LogCaptureFixture,
    at: str,
) -> None:
    provider.add_span_processor(Broken(at))
    tasks.task("n")(lambda _: None)
    with running(dsn, queue, tasks):
        task = client.spawn_task(queue, "n")
        assert finished(client, queue, task.task_id).state == "completed"
    assert ("no span for task 'n'" if at == "start" else "could not be ended") in caplog.text


def test_without_a_provider_the_span_of_the_headers_is_passed_on(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    @tasks.task("parent")
    def parent(ctx: teguh.TaskContext) -> list[str]:
        def spawn() -> str:
            with teguh.Client.connect(dsn) as mine:
                return str(mine.spawn_task(queue, "child").task_id)

        return [str(ctx.spawn("child").task_id), ctx.step("spawn", spawn)]

    with running(dsn, queue, tasks, known_only=True):
        for headers in ({"traceparent": PARENT}, {}):
            task = client.spawn_task(queue, "parent", headers=headers)
            for child in finished(client, queue, task.task_id).completed_payload:
                assert stored_headers(client, queue, child) == headers


def test_without_the_package_all_else_works(dsn: str, client: teguh.Client, queue: str) -> None:
    """The package is not there, and nothing tries for it where no program has imported it."""
    source = f"""
import sys
sys.modules["opentelemetry"] = None
import teguh
tasks = teguh.Registry()

@tasks.task("n")
def n(ctx):
    ctx.step("one", int)
    ctx.spawn("m")
    ctx.sleep_for(0.001)
    worker.stop()

worker = teguh.Worker({dsn!r}, {queue!r}, tasks, known_only=True)
with teguh.Client.connect({dsn!r}) as client:
    client.spawn_task({queue!r}, "n")
worker.run()
"""
    subprocess.run([sys.executable, "-c", source], check=True)
    (done,) = client.list_tasks(queue, state=["completed"])
    assert done.task_name == "n"


def test_a_client_imports_nothing_by_itself(client_dsn: str, queue: str) -> None:
    source = f"""
import sys, teguh
with teguh.Client.connect({client_dsn!r}) as client:
    client.spawn_task({queue!r}, "n")
sys.exit("opentelemetry" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0
