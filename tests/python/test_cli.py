"""The command line and the demo."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

import teguh
from teguh.cli import main
from teguh.demo import LEDGER, Demo, Story
from teguh.demo.orders import write
from tests.cluster import ROOT
from tests.python.support import finished, running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster import Cluster


def test_install_installs_and_creates_queues_and_may_be_repeated(
    empty_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(["install", "--dsn", empty_dsn, "--queue", "a", "--queue", "b"]) == 0
    with teguh.Client.connect(empty_dsn) as client:
        assert [queue.queue_name for queue in client.list_queues()] == ["a", "b"]
        assert f"teguh {client.version()} is installed" in capsys.readouterr().out


def test_install_and_upgrade_say_the_version_whatever_the_encoding(
    empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")  # as if the database had it
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("select 'a'").fetchone() == (b"a",)
    version = teguh.install(empty_dsn)
    assert version == teguh.upgrade(empty_dsn)
    assert (ROOT / "sql" / "teguh.sql").read_text().startswith(f"-- Teguh {version}: ")


def test_install_brings_the_schema_for_clients_of_absurd_when_asked(empty_dsn: str) -> None:
    for options in ([], ["--absurd"], ["--absurd"]):
        assert main(["install", "--dsn", empty_dsn, *options]) == 0
        with psycopg.connect(empty_dsn) as connection:
            row = connection.execute("select to_regclass('absurd.queues') is not null").fetchone()
        assert row == (bool(options),)


def test_install_on_a_connection_leaves_it_as_it_was(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn) as connection:
        version = teguh.install(connection)
        assert not connection.autocommit
        assert teguh.Client(connection).version() == version
        with pytest.raises(ValueError, match="end yours first"):
            teguh.install(connection)


def test_install_leaves_another_version_alone(owner_dsn: str) -> None:
    with psycopg.connect(owner_dsn) as connection:
        connection.execute(
            "create or replace function teguh.version() returns text language sql"
            " as $$ select '0' $$"
        )
        connection.commit()
        with pytest.raises(teguh.VersionMismatch, match="hint"):
            teguh.install(connection)
        assert teguh.Client(connection).version() == "0"


def test_install_says_what_to_do_over_another_version_and_without_the_right(
    owner_dsn: str, empty_dsn: str, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(owner_dsn) as connection:
        connection.execute(
            "create or replace function teguh.version() returns text language sql"
            " as $$ select '0' $$"
        )
    assert main(["install", "--dsn", owner_dsn]) == 1
    assert capsys.readouterr().err.endswith("hint: Run `teguh upgrade`.\n")
    name = str(conninfo_to_dict(empty_dsn)["dbname"])
    assert main(["install", "--dsn", cluster.guest_dsn(name)]) == 1
    assert "(42501)\nhint: the role needs the right to create" in capsys.readouterr().err


def test_upgrade_says_who_may_upgrade(
    owner_dsn: str, cluster: Cluster, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(owner_dsn) as connection:
        connection.execute(
            "create or replace function teguh.version() returns text language sql"
            " as $$ select '0.1.0' $$"
        )
    assert main(["upgrade", "--dsn", cluster.guest_dsn(database)]) == 1
    assert "(42501)\nhint: run it as the role that owns" in capsys.readouterr().err


def test_an_option_is_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["spawn", "jobs", "n", "--max-attempt", "3"])
    assert end.value.code == 2
    assert "unrecognized arguments: --max-attempt" in capsys.readouterr().err


def test_spawn_prints_the_id_of_a_task_that_a_worker_then_executes(
    dsn: str,
    client_dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks.task("echo")(lambda ctx: ctx.params)
    monkeypatch.setenv("TEGUH_DSN", client_dsn)
    options = ["--max-attempts", "2", "--delay", "0.01", "--idempotency-key", "k"]
    assert main(["spawn", queue, "echo", '{"x": [1]}', *options]) == 0
    task_id = capsys.readouterr().out.strip()
    with running(dsn, queue, tasks):
        assert finished(client, queue, UUID(task_id)).completed_payload == {"x": [1]}


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["spawn", "nowhere", "n"], 1, "(TG001)"),
        (["spawn", "jobs", "n", "{"], 2, "params are not JSON"),
        (["spawn", "jobs", "n", '"\\u0000"'], 2, "NUL character"),
        (["spawn", "jobs", "\udcff"], 2, "not in UTF-8"),
        (["spawn", "jobs", "n", "--max-attempts", "0"], 1, "hint:"),
        (["worker", "nothing", "--queue", "jobs"], 2, "is no module:registry"),
        (["worker", "no.such.module:tasks", "--queue", "jobs"], 2, "there is no module"),
        (["worker", "teguh.demo.orders:nothing", "--queue", "jobs"], 2, "has no 'nothing'"),
        (["worker", "teguh.demo.orders:order", "--queue", "jobs"], 2, "is no teguh.Registry"),
        (["worker", "teguh.demo.orders:tasks", "--queue", "nowhere"], 1, "nowhere"),
        (
            ["worker", "teguh.demo.orders:tasks", "--queue", "jobs", "--heartbeat", "20"],
            2,
            "at most 10 s",
        ),
    ],
)
def test_what_cannot_be_done_is_said_without_a_stack_trace(
    dsn: str,
    queue: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    says: str,
) -> None:
    monkeypatch.setenv("TEGUH_DSN", dsn)
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert queue == "jobs"
    assert main(arguments) == status
    error = capsys.readouterr().err
    assert error.startswith("teguh: ")
    assert says in error


@pytest.mark.parametrize("arguments", [["spawn", "jobs", "n"], ["serve", "--port", "0"]])
def test_a_database_without_teguh_is_told_how_to_get_it(
    empty_dsn: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--dsn", empty_dsn]) == 1
    assert "teguh install" in capsys.readouterr().err


def test_output_that_nobody_reads_any_more_is_no_trouble(dsn: str, queue: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as output:
        done = subprocess.run(
            [sys.executable, "-m", "teguh.cli", "spawn", "--dsn", dsn, queue, "n"],
            stdout=output, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")


def test_a_module_that_cannot_import_something_shows_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_tasks.py").write_text("import this_is_missing\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ModuleNotFoundError, match="this_is_missing"):
        main(["worker", "broken_tasks:tasks", "--queue", "jobs"])


def test_a_worker_can_be_told_to_claim_only_what_it_knows(
    dsn: str,
    queue: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = "import teguh\ntasks = teguh.Registry()\ntasks.task('*')(print)\n"
    (tmp_path / "any_tasks.py").write_text(source)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    command = ["worker", "any_tasks:tasks", "--dsn", dsn, "--queue", queue]
    assert main([*command, "--known-only"]) == 2
    assert "known_only does not go with" in capsys.readouterr().err


def test_the_demo_proves_that_every_step_happened_once(
    empty_dsn: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert Demo(empty_dsn, Story()).run() == 0
    told = capfd.readouterr().out
    assert "Every step happened exactly once." in told
    assert "Traceback" not in told


@pytest.mark.parametrize("steps", [["charge", "pack"], ["charge", "pack", "pack", "ship"]])
def test_the_demo_fails_when_a_step_is_missing_or_happened_twice(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    capsys: pytest.CaptureFixture[str],
    steps: list[str],
) -> None:
    client.connection.execute(LEDGER)
    for step in steps:
        write(client.connection, 42, step, "")
    tasks.task("order")(lambda _: None)
    task = client.spawn_task(queue, "order")
    with running(dsn, queue, tasks):
        result = finished(client, queue, task.task_id)
    assert Demo(dsn, Story())._prove(client, result) == 1
    assert "This is wrong" in capsys.readouterr().out


def test_the_sync_half_is_what_make_sync_generates() -> None:
    command = [sys.executable, str(ROOT / "tools" / "make_sync.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0
