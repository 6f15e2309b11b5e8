"""Log records say which task they are about."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

import teguh
from teguh.cli import main
from teguh.logs import FIELDS, JsonFormatter, TaskFilter
from tests.python.support import finished, lose_lease, running, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

mine = logging.getLogger("shop.orders")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a logging handler with the filter and the formatter writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(TaskFilter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def read(stream: io.StringIO, **which: object) -> list[dict[str, Any]]:
    """The lines that have these values."""
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [line for line in found if which.items() <= line.items()]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_handler_logs_carries_its_task(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    lines: io.StringIO,
    kind: str,
) -> None:
    @tasks.task("sync")
    def sync(ctx: teguh.TaskContext) -> None:
        ctx.step("s", lambda: mine.info("params are %s", ctx.params))
        if ctx.attempt == 1:
            ctx.sleep_for(0.001)

    @tasks.task("async")
    async def async_(ctx: teguh.AsyncTaskContext) -> None:
        await ctx.step("s", lambda: mine.info("params are %s", ctx.params))
        if ctx.attempt == 1:
            await ctx.sleep_for(0.001)
        mine.info("awake")

    with running(dsn, queue, tasks, worker_id="w-1", concurrency=2):
        spawned = client.spawn_tasks(queue, [teguh.NewTask(kind, n) for n in range(5)])
        for task in spawned:
            finished(client, queue, task.task_id)
    for n, task in enumerate(spawned):
        (line,) = read(lines, message=f"params are {n}")
        assert line == {
            "time": line["time"],
            "level": "INFO",
            "logger": "shop.orders",
            "message": f"params are {n}",
            "queue": queue,
            "task_name": kind,
            "task_id": str(task.task_id),
            "run_id": str(task.run_id),
            "attempt": 1,
            "worker_id": "w-1",
        }
    if kind == "async":
        assert [line["attempt"] for line in read(lines, message="awake")] == [2] * 5
    assert datetime.fromisoformat(line["time"]).utcoffset() is not None


def test_the_records_of_a_worker_carry_the_task_they_are_about(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "teguh.worker")
    tasks.task("fails")(lambda _: 1 / 0)

    @tasks.task("lost")
    def lost(ctx: teguh.TaskContext) -> None:
        lose_lease(client, queue, ctx.run_id)

    with running(dsn, queue, tasks, worker_id="w-1"):
        failed = client.spawn_task(queue, "fails", max_attempts=1)
        finished(client, queue, failed.task_id)
        late = client.spawn_task(queue, "lost", max_attempts=1)
        client.spawn_task(queue, "unknown")
        until(lambda: "was discarded" in caplog.text and "no handler" in caplog.text)
    records = [record.__dict__ for record in caplog.records if record.name == "teguh.worker"]
    assert records
    for record in records:
        assert record.keys() >= set(FIELDS)
        assert (record["queue"], record["worker_id"]) == (queue, "w-1")
    about = {
        "failed: ZeroDivisionError": failed,
        "failed here": failed,
        "was discarded": late,
        "no handler for 'unknown'": None,
    }
    for text, task in about.items():
        found = [record for record in records if text in record["message"]]
        assert found, text
        assert {record["task_id"] for record in found} == {task and str(task.task_id)}
        assert {record["run_id"] for record in found} == {task and str(task.run_id)}


def test_a_thread_does_not_remember_the_task_before(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry, lines: io.StringIO
) -> None:
    tasks.task("n")(lambda ctx: mine.info("n is %s", ctx.params))
    with running(dsn, queue, tasks, concurrency=1):
        first, second = (client.spawn_task(queue, "n", n) for n in (1, 2))
        finished(client, queue, second.task_id)
    mine.info("outside")
    assert read(lines, message="n is 1")[0]["task_id"] == str(first.task_id)
    assert read(lines, message="n is 2")[0]["task_id"] == str(second.task_id)
    assert not set(FIELDS) & read(lines, message="outside")[0].keys()


def test_a_record_keeps_what_it_says_itself_and_all_can_be_formatted() -> None:
    record = logging.LogRecord("n", logging.INFO, "f", 1, "m", None, None)
    record.queue = "mine"
    assert TaskFilter().filter(record)
    text = logging.Formatter("%(queue)s %(task_name)s %(task_id)s %(attempt)s").format(record)
    assert text == "mine None None None"


def test_json_is_one_line_whatever_is_logged() -> None:
    try:
        raise ValueError("first\nsecond \udc80")
    except ValueError:
        record = logging.LogRecord(
            "n", logging.ERROR, "f", 1, "two\nlines %s", ("\u2028",), sys.exc_info(), sinfo="stack"
        )
    text = JsonFormatter().format(record)
    assert text.isascii()
    assert "\n" not in text
    line = json.loads(text)
    assert line["message"] == "two\nlines \u2028"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: first\nsecond \udc80")
    assert line["stack"] == "stack"


TASKS = """
import logging, os, signal, teguh
tasks = teguh.Registry()

@tasks.task("n")
def n(ctx):
    logging.getLogger("shop").warning("at work")
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("form", ["json", "text", None])
def test_the_worker_of_the_command_line_logs_as_it_is_told(
    dsn: str, client: teguh.Client, queue: str, tmp_path: Path, form: str | None
) -> None:
    (tmp_path / "logging_tasks.py").write_text(TASKS)
    task = client.spawn_task(queue, "n")
    options = [] if form is None else ["--log-format", form]
    done = subprocess.run(
        [
            sys.executable, "-m", "teguh.cli", "worker", "logging_tasks:tasks",
            "--dsn", dsn, "--queue", queue, *options,
        ],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    if form == "json":
        records = [json.loads(line) for line in done.stderr.splitlines()]
        (line,) = [record for record in records if record["logger"] == "shop"]
        assert (line["level"], line["message"]) == ("WARNING", "at work")
        assert line["task_id"] == str(task.task_id)
        assert records[0]["message"] == f"starting on queue {queue}: n"
        assert records[-1]["message"] == "stopped"
    else:
        assert "WARNING shop: at work\n" in done.stderr


def test_a_format_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["worker", "a:b", "--queue", "q", "--log-format", "xml"]
    with pytest.raises(SystemExit):
        main(command)
    assert "invalid choice: 'xml'" in capsys.readouterr().err
