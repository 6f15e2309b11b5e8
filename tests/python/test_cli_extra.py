"""The extra of the command line: pages, loops, watching, asking, errors, and what is shown how."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from rich.console import Console
from typer.testing import CliRunner

import teguh
from teguh._cli import show, verbs
from teguh._cli.app import build
from teguh._cli.help import HELP
from teguh._cli.options import parameters
from teguh.cli import EXTRA, main
from tests.python.support import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster import Cluster


@pytest.fixture
def at(owner_dsn: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The database that the command line finds by TEGUH_DSN, with a queue."""
    with teguh.Client.connect(owner_dsn) as owner:
        owner.create_queue("jobs", default_max_attempts=1)
    monkeypatch.setenv("TEGUH_DSN", owner_dsn)
    return owner_dsn


def fail(dsn: str, number: int) -> None:
    """Let so many tasks fail."""
    with teguh.Client.connect(dsn) as client:
        client.spawn_tasks("jobs", [teguh.NewTask("report") for _ in range(number)])
        for run in client.claim_task("jobs", qty=number):
            client.fail_run("jobs", run.run_id, {"message": "no"})


def test_the_extra_has_the_verbs_that_the_core_says_it_has() -> None:
    assert list(EXTRA) == ["doctor", *verbs.VERBS]


def test_every_argument_and_option_has_its_help_and_none_is_left_over() -> None:
    used = set()
    for group in verbs.VERBS.values():
        for verb in group.values():
            for parameter in parameters(verb):
                own = f"{verb.__name__}.{parameter.name}"
                used.add(own if own in HELP else parameter.name)
    assert used == set(HELP)


@pytest.mark.parametrize(
    "arguments",
    [
        "queues", "nonsense", "queues nonsense", "queues create", "queues list --nonsense",
        "queues list --format xml", "tasks get jobs no-uuid", "tasks list jobs --state lost",
        "tasks list jobs --created-after noon", "tasks list jobs --created-after 0001-01-01",
        "tasks watch jobs ID --interval 0", "tasks watch jobs ID --interval nan",
        "doctor --patience -1", "doctor --patience nan", "tasks list jobs --limit many",
        "tasks spawn jobs t {", "runs schedule jobs ID later", "limits set nothing",
        "schedules next @daily --count x", "queues delete jobs", "dlq purge jobs",
        "tasks spawn-many jobs /nowhere", "tasks spawn-many jobs /", "access grant me nothing",
    ],
)  # fmt: skip
def test_what_makes_no_sense_ends_with_status_2(
    at: str, arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main([word.replace("ID", str(UUID(int=0))) for word in arguments.split()]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" or arguments == "queues"
    assert printed.err or arguments == "queues"
    with teguh.Client.connect(at) as client:
        assert [queue.queue_name for queue in client.list_queues()] == ["jobs"]


def test_what_the_engine_refuses_ends_with_status_1_and_says_why(
    at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["queues", "update", "jobs", "--max-pending", "-1"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("teguh: ")
    assert told[0].endswith("(TG005)")
    assert [line.partition(":")[0] for line in told[1:]] == ["detail", "hint"]
    assert main(["tasks", "get", "jobs", str(UUID(int=7))]) == 1
    assert "(TG003)" in capsys.readouterr().err


def test_what_postgresql_refuses_is_said_the_same_way(
    cluster: Cluster, empty_dsn: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["queues", "list", "--dsn", empty_dsn]) == 1
    assert "hint: run `teguh install`" in capsys.readouterr().err
    assert main(["queues", "list", "--dsn", cluster.guest_dsn(database)]) == 1
    told = capsys.readouterr().err
    assert "permission denied" in told
    assert "(42501)\nhint: teguh.grant_access()" in told
    assert main(["queues", "list", "--dsn", "host=/nowhere"]) == 1
    assert capsys.readouterr().err.startswith("teguh: ")


def test_an_older_schema_is_named_before_anything_is_asked(
    at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with teguh.Client.connect(at) as client:
        client.connection.execute(
            "create or replace function teguh.version() returns text language sql"
            " as $$ select '0.0.1' $$"
        )
    assert main(["queues", "list"]) == 1
    assert "(TG010)" in capsys.readouterr().err


def test_a_table_has_failures_without_their_traceback(
    at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = {"name": "KeyError", "message": "'id'", "traceback": "Traceback\nmore"}
    with teguh.Client.connect(at) as client:
        task_id = str(client.spawn_task("jobs", "report", max_attempts=1).task_id)
        (run,) = client.claim_task("jobs")
        client.fail_run("jobs", run.run_id, reason)
    for verb in (["tasks", "list"], ["dlq", "list"], ["tasks", "history", "jobs", task_id]):
        command = [*verb, "jobs"][: 4 if task_id in verb else 3]
        assert main(command) == 0
        told = capsys.readouterr().out
        assert "KeyError" in told
        assert "Traceback" not in told
        assert main([*command, "--format", "json"]) == 0
        assert "Traceback\\nmore" in capsys.readouterr().out
    assert main(["tasks", "get", "jobs", task_id]) == 0
    assert "Traceback" in capsys.readouterr().out


def test_an_empty_list_still_has_its_columns(at: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["workers", "list", "jobs"]) == 0
    assert capsys.readouterr().out == "(0 rows)\n"
    assert main(["workers", "list", "jobs", "--format", "json"]) == 0
    assert capsys.readouterr().out == "[]\n"
    assert main(["workers", "list", "jobs", "--format", "csv"]) == 0
    assert capsys.readouterr().out == "worker_id,queue_name,runs,oldest_start,soonest_lease_end\n"


def test_a_row_of_nulls_shows_its_columns(at: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queues", "next-due", "jobs"]) == 0
    assert capsys.readouterr().out.split() == ["next_due"]


def test_a_full_page_says_how_to_get_the_next(at: str, capsys: pytest.CaptureFixture[str]) -> None:
    fail(at, 3)
    seen = []
    more = ["--limit", "2"]
    for left in (2, 1):
        assert main(["dlq", "list", "jobs", "--format", "json", *more]) == 0
        page = json.loads(capsys.readouterr().out)
        assert len(page) == left
        seen += [task["task_id"] for task in page]
        assert main(["dlq", "list", "jobs", *more]) == 0
        told = capsys.readouterr().out
        assert ("more: --cursor" in told) == (left == 2)
        more = ["--limit", "2", "--cursor", told.rpartition(" ")[2].strip()]
    assert len(set(seen)) == 3


def test_replaying_takes_all_in_one_transaction_or_so_many_as_are_said(
    at: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(at, 7)
    monkeypatch.setattr(verbs, "BATCH", 2)
    assert main(["dlq", "replay", "jobs", "--limit", "3", "--format", "csv"]) == 0
    assert capsys.readouterr().out == "replay\n3\n"
    assert main(["dlq", "replay", "jobs", "--reason", "fixed", "--format", "csv"]) == 0
    assert capsys.readouterr().out == "replay\n4\n"
    with teguh.Client.connect(at) as client:
        replays = [row for row in client.list_actions("jobs") if row.action == "replay"]
        assert len(replays) == 7
        assert len({row.at for row in replays}) >= 2
        rows = client.connection.execute(
            "select count(distinct xmin::text) from teguh.t_jobs"
        ).fetchone()
    assert rows == (2,)


def test_replays_can_be_spread(at: str, capsys: pytest.CaptureFixture[str]) -> None:
    fail(at, 3)
    assert main(["dlq", "replay", "jobs", "--per-second", "0.01", "--format", "csv"]) == 0
    assert capsys.readouterr().out == "replay\n3\n"
    with teguh.Client.connect(at) as client:
        (stats,) = client.queue_stats("jobs")
    assert (stats.pending, stats.sleeping + stats.delayed) == (1, 2)


def test_purging_and_cleaning_up_go_on_until_nothing_is_left(
    at: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(at, 5)
    monkeypatch.setattr(verbs, "BATCH", 2)
    purge = ["dlq", "purge", "jobs", "--ttl-seconds", "0", "--yes", "--format", "csv"]
    assert main(purge) == 0
    assert capsys.readouterr().out == "purge\n5\n"
    fail(at, 5)
    with teguh.Client.connect(at) as client:
        client.emit_event("jobs", "paid")
        client.set_queue_policy("jobs", cleanup_ttl=0, cleanup_limit=2)
    assert main(["queues", "cleanup", "--format", "csv"]) == 0
    assert capsys.readouterr().out == "queue_name,tasks_deleted,events_deleted\njobs,5,1\n"


@pytest.mark.parametrize(
    "line",
    [b"{", b"7", b"[1]", b'{"name": "a"}', b'{"task_name": "a", "options": 7}', b"\n", b"\xff"],
)
def test_a_file_with_a_line_that_is_no_task_spawns_nothing(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    monkeypatch.setattr(verbs, "BATCH", 2)
    file = tmp_path / "tasks"
    file.write_bytes(b'{"task_name": "report"}\n' * 3 + line)
    assert main(["tasks", "spawn-many", "jobs", str(file)]) == 2
    with teguh.Client.connect(at) as client:
        assert client.list_tasks("jobs") == []


def test_tasks_are_spawned_from_standard_input_cancelled_and_requeued_until_none_is_left(
    at: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(*arguments: str) -> int:
        assert main([*arguments, "--format", "csv"]) == 0
        return int(capsys.readouterr().out.split()[1])

    monkeypatch.setattr(verbs, "BATCH", 2)
    lines = '{"task_name": "report", "options": {"tags": ["a"]}}\n' * 5
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert count("tasks", "spawn-many", "jobs") == 5
    assert not sys.stdin.closed
    with teguh.Client.connect(at) as client:
        client.claim_task("jobs", qty=5)
        assert count("tasks", "requeue-many", "jobs", "--limit", "1", "--everything") == 1
        assert count("tasks", "requeue-many", "jobs", "--tag", "a") == 4
        assert count("tasks", "cancel-many", "jobs", "--tag", "a", "--limit", "1") == 1
        assert count("tasks", "cancel-many", "jobs", "--everything") == 4
        assert main(["tasks", "cancel-many", "jobs"]) == 1
        assert main(["tasks", "cancel-many", "jobs", "--everything", "--limit", "0"]) == 1
        assert count("tasks", "cleanup", "jobs", "--ttl-seconds", "0") == 5


def test_watching_tells_what_happens_until_the_task_is_over(
    at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with teguh.Client.connect(at) as client:
        task = client.spawn_task("jobs", "report")
        told: list[str] = []
        status: list[int] = []

        def watch() -> None:
            arguments = ["tasks", "watch", "jobs", str(task.task_id), "--interval", "0.02"]
            status.append(main([*arguments, "--format", "json"]))

        def heard() -> list[str]:
            told.extend(capsys.readouterr().out.splitlines())
            return [json.loads(line)["event"] for line in told]

        thread = threading.Thread(target=watch)
        thread.start()
        until(lambda: heard() == ["created"], "the spawn")
        (run,) = client.claim_task("jobs")
        until(lambda: heard() == ["created", "started"], "the claim")
        client.fail_run("jobs", run.run_id, {"message": "no"})
        thread.join(20)
        assert heard() == ["created", "started", "failed"]
        assert status == [1]


def test_a_task_that_has_completed_is_watched_with_status_0(
    at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with teguh.Client.connect(at) as client:
        task = client.spawn_task("jobs", "report")
        (run,) = client.claim_task("jobs")
        client.complete_run("jobs", run.run_id)
    assert main(["tasks", "watch", "jobs", str(task.task_id)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["created", "started", "completed"]


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("n", 1)])
def test_what_cannot_be_undone_asks_at_a_terminal(at: str, answer: str, status: int) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "teguh.cli", "queues", "delete", "jobs"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.write(ours, f"{answer}\n".encode())
    assert process.wait(60) == status
    os.close(theirs)
    told = b""
    while True:
        try:
            told += os.read(ours, 1000)
        except OSError:  # the other end is closed, and all is read
            break
    os.close(ours)
    assert b"Drop queue 'jobs' with all its tasks?" in told
    with teguh.Client.connect(at) as client:
        assert bool(client.list_queues()) == bool(status)


def test_what_a_task_holds_can_neither_mark_up_a_table_nor_steer_a_terminal(
    at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "[bold]x[/bold]\x1b[2J\x9b1m\u202e"
    with teguh.Client.connect(at) as client:
        task = client.spawn_task("jobs", name, {"s": "\x1b]0;x\x07\u009b"})
    for verb in (["list", "jobs"], ["get", "jobs", str(task.task_id)]):
        for form in ("table", "json"):
            assert main(["tasks", *verb, "--format", form]) == 0
            out = capsys.readouterr().out
            assert not set("\x1b\x9b\x07\u202e") & set(out)
            assert "[bold]x[/bold]\\u001b[2J\\u009b1m\\u202e" in out
            if form == "json":
                read = json.loads(out)
                assert (read[0] if isinstance(read, list) else read)["task_name"] == name


def test_where_only_ascii_can_be_printed_all_is_readable(at: str) -> None:
    with teguh.Client.connect(at) as client:
        client.spawn_task("jobs", "größe")
    for form, shown in (
        ("json", "gr\\u00f6\\u00dfe"),
        ("csv", "gr\\xf6\\xdfe"),
        ("table", "\\xdf"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "teguh.cli", "tasks", "list", "jobs", "--format", form],
            env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=True,
        )  # fmt: skip
        assert shown in done.stdout.decode("ascii")


def test_a_reader_who_stops_reading_is_no_error(at: str) -> None:
    with teguh.Client.connect(at) as client:
        client.spawn_tasks("jobs", [teguh.NewTask("report") for _ in range(1000)])
    script = f"{sys.executable} -m teguh.cli tasks list jobs --limit 1000 --format csv | head -n 1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("task_id,")
    assert done.stderr == ""


def test_null_sets_back_and_json_may_be_empty_or_null(at: str) -> None:
    update = ["queues", "update", "jobs"]
    assert main([*update, "--default-retry-strategy", '{"kind":"none"}']) == 0
    with teguh.Client.connect(at) as client:
        assert client.get_queue_policy("jobs")["default_retry_strategy"] == {"kind": "none"}
        assert main([*update, "--default-retry-strategy", "null"]) == 0
        assert client.get_queue_policy("jobs")["default_retry_strategy"] is None
        assert main([*update, "--duration-buckets", "null", "--on-full", "null"]) == 0
        for params in ("[]", "null", "0", "false", '""'):
            assert main(["tasks", "spawn", "jobs", "report", params]) == 0
            (task,) = client.list_tasks("jobs", limit=1)
            assert client.get_task("jobs", task.task_id).params == json.loads(params)
            (run,) = client.claim_task("jobs")
            assert main(["runs", "fail", "jobs", str(run.run_id), params]) == 0
            failed = client.get_task("jobs", task.task_id)
            assert (failed.state, failed.failure_reason) == ("failed", json.loads(params))


def test_a_time_without_an_offset_is_that_of_the_clock_on_the_wall(
    at: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert at
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        arguments = ["schedules", "next", "0 * * * *", "2031-05-01 08:30", "--count", "2"]
        assert main([*arguments, "--format", "json"]) == 0
        rows = json.loads(capsys.readouterr().out)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert [datetime.fromisoformat(row["fires_at"]) for row in rows] == [
        datetime(2031, 5, 1, 0, tzinfo=UTC), datetime(2031, 5, 1, 1, tzinfo=UTC)
    ]  # fmt: skip


def test_progress_is_shown_on_a_terminal_and_not_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for terminal in (True, False):
        screen = io.StringIO()
        monkeypatch.setattr(
            show,
            "Console",
            lambda screen=screen, terminal=terminal, **_: Console(
                file=screen, force_terminal=terminal, width=80
            ),
        )
        with show.progress("replayed", 10) as done:
            done(10)
        assert ("replayed" in screen.getvalue()) == terminal
        assert ("10/10" in screen.getvalue()) == terminal


def test_a_table_fits_the_terminal_keeps_ids_whole_and_breaks_times_after_the_date(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(show, "_console", lambda: Console(file=screen, width=80))
    noon = datetime(2031, 5, 1, 12, tzinfo=UTC)
    row = {"task_id": UUID(int=1), "task_name": "x" * 200, "created_at": noon}
    show._table(list(row), [row], None)
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert str(UUID(int=1)) in lines[2]
    assert [line.split()[-1] for line in lines[2:4]] == ["2031-05-01", "12:00:00+00"]
    assert screen.getvalue().count("x") == 200


def test_the_verbs_of_the_core_are_verbs_of_the_app_too(at: str) -> None:
    runner = CliRunner()
    assert [group.name for group in build().registered_groups] == list(verbs.VERBS)
    assert runner.invoke(build(), ["install", "--queue", "a", "--queue", "b"]).exit_code == 0
    spawned = runner.invoke(
        build(), ["spawn", "a", "report", "--max-attempts", "7", "--delay", "9"]
    )
    with teguh.Client.connect(at) as client:
        assert [queue.queue_name for queue in client.list_queues()] == ["a", "b", "jobs"]
        task = client.get_task("a", spawned.output.strip())
    assert (task.params, task.max_attempts, task.state) == (None, 7, "sleeping")
