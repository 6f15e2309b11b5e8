"""The page on the worker says what there is, and its snippets do what it says."""

from __future__ import annotations

import argparse
import contextvars
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import prometheus_client
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import teguh
from teguh.cli import add_core
from teguh.logs import FIELDS, JsonFormatter, TaskFilter
from teguh.metrics import OUTCOMES, REASONS, Metrics
from tests.cluster import ROOT
from tests.python.support import PATIENCE, finished, running, until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

TEXT = (ROOT / "docs" / "worker.md").read_text()
PROGRAM, TRACES, LOGS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
OPTIONS = re.findall(r"^\| `--([\w-]+)` \| `(\w+)` \|", TEXT, re.MULTILINE)


def test_the_page_names_every_option_and_where_the_command_line_has_it() -> None:
    assert {keyword for _, keyword in OPTIONS} == set(teguh.WorkerOptions.__annotations__)
    commands = argparse.ArgumentParser().add_subparsers()
    add_core(commands)
    actions = commands.choices["worker"]._actions
    taken = {name[2:]: action.dest for action in actions for name in action.option_strings}
    assert {option: taken[option] for option, _ in OPTIONS} == dict(OPTIONS)
    others = set(taken) - {option for option, _ in OPTIONS} - {"help", "h", "", "queue"}
    assert others == set(re.findall(r"`--([\w-]+)`", TEXT.partition("Besides,")[2].split("\n")[0]))


def test_the_page_names_every_metric_and_its_labels() -> None:
    rows = re.findall(r"^\| `(teguh_worker_\w+)` \| ([\w, ]+) \|", TEXT, re.MULTILINE)
    metrics = Metrics()
    known = {}
    for value in vars(metrics).values():
        if isinstance(value, prometheus_client.Counter | prometheus_client.Histogram):
            (family,) = value.describe()
            end = "_total" if family.type == "counter" else ""
            known[family.name + end] = ", ".join(value._labelnames)
    known |= {family.name: "queue" for family in metrics.collect()}
    assert dict(rows) == known
    for value in (*OUTCOMES, *REASONS):
        assert f"`{value}`" in TEXT


def test_the_page_names_every_field_of_a_record() -> None:
    assert all(f"`{field}`" in TEXT for field in FIELDS)


def test_the_command_of_the_page_works_until_sigterm(
    dsn: str, client: teguh.Client, tmp_path: Path
) -> None:
    (command,) = re.findall(r"^    teguh (worker .*)$", TEXT, re.MULTILINE)
    (tmp_path / "shop").mkdir()
    source = "import teguh\ntasks = teguh.Registry()\ntasks.task('n')(lambda _: 1 / 0)\n"
    (tmp_path / "shop" / "orders.py").write_text(source)
    client.create_queue("orders")
    arguments = shlex.split(command.replace("9464", "0"))
    with subprocess.Popen(
        [sys.executable, "-m", "teguh.cli", *arguments], cwd=tmp_path,
        env={**os.environ, "TEGUH_DSN": dsn}, stderr=subprocess.PIPE, text=True,
    ) as worker:  # fmt: skip
        watchdog = threading.Timer(PATIENCE, worker.kill)
        watchdog.start()
        try:
            assert worker.stderr is not None
            lines = (json.loads(line) for line in worker.stderr)
            assert next(lines)["message"] == "starting on queue orders: n"
            served = next(lines)["message"].removeprefix("serving metrics at ")
            task = client.spawn_task("orders", "n", max_attempts=1)
            failed = next(lines)
            assert failed["message"].endswith("failed: ZeroDivisionError: division by zero")
            assert failed["task_id"] == str(task.task_id)
            answer = httpx.get(served.replace("/metrics", "/health"))
            assert answer.json() == {"status": "ok", "problems": []}
            worker.send_signal(signal.SIGTERM)
            assert worker.wait() == 0
        finally:
            watchdog.cancel()
            worker.kill()


def test_the_program_of_the_page_shows_the_worker_in_its_registry(
    dsn: str, client: teguh.Client, tasks: teguh.Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    monkeypatch.setattr(prometheus_client, "REGISTRY", registry)
    client.create_queue("orders")
    tasks.task("n")(lambda _: None)
    space: dict[str, Any] = {"dsn": dsn, "tasks": tasks}
    exec(PROGRAM, space)  # noqa: S102 - our own document
    worker, metrics = space["worker"], space["metrics"]
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        finished(client, "orders", client.spawn_task("orders", "n").task_id)
        assert b"teguh_worker_runs_claimed_total" in prometheus_client.generate_latest(registry)
        assert metrics.health()["status"] == "ok"
        with metrics.serve("127.0.0.1:0") as address:
            assert httpx.get(f"http://{address}/metrics").text == metrics.render()
    finally:
        worker.stop()
        thread.join(PATIENCE)


def test_the_traces_of_the_page_reach_its_exporter(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def set_tracer_provider(provider: trace.TracerProvider) -> None:
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)

    monkeypatch.setattr(trace, "set_tracer_provider", set_tracer_provider)
    space: dict[str, Any] = {"exporter": InMemorySpanExporter()}
    exec(TRACES, space)  # noqa: S102 - our own document
    tasks.task("n")(lambda ctx: ctx.step("s", int))
    with running(dsn, queue, tasks):
        finished(client, queue, client.spawn_task(queue, "n").task_id)
    space["provider"].shutdown()
    assert [span.name for span in space["exporter"].get_finished_spans()] == ["s", "n"]


def test_the_logging_of_the_page_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(logging.root, "handlers", [])
        patch.setattr(logging.root, "level", logging.WARNING)
        exec(LOGS, {})  # noqa: S102 - our own document
        (handler,) = logging.root.handlers
        assert logging.root.level == logging.INFO
    assert isinstance(handler.formatter, JsonFormatter)
    assert [type(found) for found in handler.filters] == [TaskFilter]
    (form,) = re.findall(r'`"(%\(task_name\)s.*)"`', TEXT)
    record = logging.LogRecord("n", logging.INFO, "f", 1, "at work", None, None)
    assert handler.filter(record)
    assert logging.Formatter(form).format(record) == "None None: at work"


def test_a_thread_of_a_handler_logs_as_the_page_says(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    seen = []

    @tasks.task("n")
    def n(ctx: teguh.TaskContext) -> None:
        def look() -> None:
            record = logging.LogRecord("n", logging.INFO, "f", 1, "m", None, None)
            TaskFilter().filter(record)
            seen.append(record.__dict__["task_id"])

        for target in (look, partial(contextvars.copy_context().run, look)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()

    with running(dsn, queue, tasks):
        task = client.spawn_task(queue, "n")
        until(lambda: len(seen) == 2)
    assert seen == [None, str(task.task_id)]
