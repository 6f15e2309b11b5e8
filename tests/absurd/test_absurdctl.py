"""The published absurdctl, on teguh and on absurd itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.absurd.calls import Calls
from tools.servers import find_build

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster import Cluster

ABSURDCTL = Path(sys.executable).with_name("absurdctl")


class Tool:
    """The command line on one database."""

    def __init__(self, dsn: str, environment: dict[str, str]) -> None:
        self.dsn = dsn
        self.environment = environment

    def __call__(self, command: str, *arguments: str, fails: bool = False) -> str:
        """Run a command; return what it prints."""
        done = subprocess.run(
            [sys.executable, ABSURDCTL, command, "--database", self.dsn, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def task_id(self, *arguments: str) -> str:
        """Spawn a task; return its id."""
        found = re.search(r"Task ID: (\S+)", self("spawn-task", *arguments))
        assert found is not None
        return found[1]


@pytest.fixture
def tool(cluster: Cluster, both_dsn: str) -> Tool:
    """The tool, with the psql that it needs."""
    environment = dict(os.environ)
    if not shutil.which("psql"):
        build = find_build(cluster.server.kind)
        if not (build.bin / "psql").exists():
            pytest.skip("absurdctl needs psql")
        environment["PATH"] = f"{build.bin}{os.pathsep}{environment.get('PATH', '')}"
        if build.lib is not None:
            environment["LD_LIBRARY_PATH"] = str(build.lib)
    return Tool(both_dsn, environment)


@pytest.fixture
def db(both_dsn: str) -> Iterator[Calls]:
    """What a worker does meanwhile, in the queue default."""
    calls = Calls(both_dsn, "default")
    with calls.connection:
        yield calls


def test_the_schema_has_a_version(tool: Tool) -> None:
    assert tool("schema-version").strip() == "0.5.1"


def test_init_and_migrate_leave_what_is_there(tool: Tool, db: Calls) -> None:
    tool("create-queue", "default")
    tool("init", fails=True)
    assert "already at 0.5.1" in tool("migrate")
    row = db.spawn()
    assert db.claim_one()["run_id"] == row["run_id"]


def test_queues_are_created_listed_and_dropped(tool: Tool) -> None:
    tool("create-queue", "default")
    tool("create-queue", "Große 'Queue'", "--storage-mode", "partitioned")
    assert sorted(tool("list-queues").splitlines()) == ["Große 'Queue'", "default"]
    tool("drop-queue", "--yes", "Große 'Queue'")
    tool("drop-queue", "--yes", "Große 'Queue'", fails=True)
    assert tool("list-queues").splitlines() == ["default"]


def test_a_policy_is_shown_and_changed(tool: Tool) -> None:
    tool("create-queue", "default")
    shown = tool("queue-policy", "default")
    assert "cleanup_ttl: 30 days" in shown
    assert "cleanup_limit: 1000" in shown
    shown = tool(
        "queue-policy", "default", "--cleanup-ttl", "7 days", "--cleanup-limit", "20",
        "--detach-mode", "empty", "--detach-min-age", "1 day", "--partition-lookahead", "3 days",
        "--partition-lookback", "2 days",
    )  # fmt: skip
    for line in (
        "storage_mode: unpartitioned", "cleanup_ttl: 7 days", "cleanup_limit: 20",
        "detach_mode: empty", "detach_min_age: 1 day", "partition_lookahead: 3 days",
        "partition_lookback: 2 days",
    ):  # fmt: skip
        assert line in shown
    tool("queue-policy", "default", "--default-partition", "disabled", fails=True)


def test_a_task_is_spawned_with_all_options(tool: Tool, db: Calls) -> None:
    tool("create-queue", "default")
    task_id = tool.task_id(
        "hello", "-P", "user.name=Ada", "-P", "n:=3", "--params", '{"x": 1}', "-H", "h=v",
        "--max-attempts", "4", "--retry-kind", "exponential", "--retry-base", "2",
        "--retry-factor", "3", "--retry-max", "60", "--max-duration", "100", "--max-delay", "50",
    )  # fmt: skip
    [task] = db.relation("t")
    assert str(task["task_id"]) == task_id
    assert task["params"] == {"x": 1, "n": 3, "user": {"name": "Ada"}}
    assert task["headers"] == {"h": "v"}
    assert task["max_attempts"] == 4
    assert task["retry_strategy"] == {
        "kind": "exponential", "base_seconds": 2, "factor": 3, "max_seconds": 60,
    }  # fmt: skip
    assert task["cancellation"] == {"max_duration": 100, "max_delay": 50}


def test_tasks_are_listed(tool: Tool, db: Calls) -> None:
    tool("create-queue", "default")
    tool("create-queue", "Other one")
    failed = tool.task_id("bad", "--max-attempts", "1")
    db.fail(db.claim_one()["run_id"])
    pending = tool.task_id("good")
    other = tool.task_id("good", "-q", "Other one")
    shown = tool("list-tasks")
    assert [one in shown for one in (failed, pending, other)] == [True] * 3
    assert "Total: 3 task(s)" in shown
    shown = tool("list-tasks", "--queue", "default", "--status", "failed")
    assert (failed in shown, pending in shown) == (True, False)
    assert "attempts=1/1" in shown
    shown = tool("list-tasks", "--task-name", "good", "--limit", "1")
    assert "Total: 1 task(s)" in shown


def test_a_task_is_dumped(tool: Tool, db: Calls) -> None:
    tool("create-queue", "default")
    task_id = tool.task_id("hello", "-P", "x=1")
    first = db.claim_one()
    db.checkpoint(first, "one", {"stored": "early"})
    db.fail(first["run_id"])
    second = db.claim_one()
    db.wait(second, "approval", 3600)
    shown = tool("dump-task", "--task-id", task_id)
    for text in (
        str(first["run_id"]), str(second["run_id"]), "Current status:    failed",
        "Current status:    sleeping", "one (committed)", "early", "Event wait", "approval",
        "Attempt:           2 of unlimited", "FAILURE",
    ):  # fmt: skip
        assert text in shown, text
    shown = tool("dump-task", "--run-id", str(second["run_id"]))
    assert str(first["run_id"]) not in shown
    assert "wait approval" in shown
    db.call("emit_event", "approval", {"by": "Ada"})
    db.call("complete_run", db.claim_one()["run_id"], {"done": "yes"})
    shown = tool("dump-task", "--run-id", str(second["run_id"]))
    assert "FINAL STATE" in shown
    assert "Completed:" in shown
    tool("dump-task", "--task-id", "01a20f05-a735-7000-9783-b1efc6b93f00", fails=True)


def test_a_task_is_retried(tool: Tool, db: Calls) -> None:
    tool("create-queue", "default")
    task_id = tool.task_id("bad", "--max-attempts", "1")
    db.fail(db.claim_one()["run_id"])
    shown = tool("retry-task", task_id, "--spawn-new")
    assert "Task respawned successfully" in shown
    assert task_id not in shown
    shown = tool("retry-task", task_id, "--max-attempts", "5")
    assert "Task retried successfully" in shown
    assert f"Task ID: {task_id}" in shown
    assert "Attempt: 2" in shown
    tool("retry-task", task_id, fails=True)


def test_a_task_is_cancelled(tool: Tool, db: Calls) -> None:
    tool("create-queue", "default")
    task_id = tool.task_id("hello")
    tool("cancel-task", task_id)
    assert db.relation("t")[0]["state"] == "cancelled"
    assert db.claim() == []
    tool("cancel-task", "01a20f05-a735-7000-9783-b1efc6b93f00", fails=True)


def test_an_event_is_emitted(tool: Tool, db: Calls) -> None:
    tool("create-queue", "default")
    tool("emit-event", "ready", "-P", "id:=7", "--payload", '{"x": 1}')
    assert db.relation("e")[0]["payload"] == {"x": 1, "id": 7}


def test_cleanup_says_what_it_would_remove_and_removes_it(tool: Tool, db: Calls) -> None:
    tool("create-queue", "default")
    db.set_time(-86400 * 365 * 2)
    for last in ("complete_run", "fail_run"):
        db.spawn(max_attempts=1)
        run_id = db.claim_one()["run_id"]
        db.call(last, run_id, *([{}] if last == "fail_run" else []))
    db.call("cancel_task", db.spawn()["task_id"])
    db.call("emit_event", "old")
    assert "Would delete 3 tasks and 1 events" in tool("cleanup", "--dry-run", "default", "30")
    assert "3 tasks, 1 events deleted" in tool("cleanup", "default", "30")
    assert db.relation("t") == db.relation("r") == db.relation("e") == []


def test_there_is_nothing_to_detach(tool: Tool) -> None:
    tool("create-queue", "default")
    assert "No detach candidates found" in tool("list-detach-candidates")
    tool("detach-candidate", "t_default_401", fails=True)
