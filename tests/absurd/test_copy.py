"""An absurd installation moves over, with tasks in every state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import pytest
from absurdctl import BUNDLED_SCHEMA_SQL

from tests.absurd.calls import Calls
from tests.absurd.test_runs import at
from tests.cluster import ABSURD_SQL, send

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg.rows import DictRow

    # what is called, the tasks by name, what was shown before, what the copy said
    Moved = tuple[Calls, dict[str, DictRow], dict[str, list[DictRow]], list[DictRow]]


def shorter(given: UUID) -> UUID:
    """A task's id after the copy: bits 52 to 63 and 120 to 127 are zero."""
    return UUID(bytes=given.bytes[:6] + b"\x70\x00" + given.bytes[8:15] + b"\x00")


def fill(db: Calls) -> dict[str, DictRow]:
    """Spawn tasks and bring them into every state there is."""
    tasks: dict[str, DictRow] = {}

    def spawn(name: str, **options: Any) -> None:
        tasks[name] = db.spawn(name, {"for": name}, **options)

    def claim(name: str, timeout: int = 60) -> DictRow:
        row = db.claim_one(timeout)
        assert row["task_name"] == name
        return row

    def begin(name: str, timeout: int = 60, **options: Any) -> DictRow:
        spawn(name, **options)
        return claim(name, timeout)

    db.set_time(0)
    row = begin("completed", headers={"h": 1})
    db.checkpoint(row, "one", {"n": 1})
    db.call("complete_run", row["run_id"], {"ok": True})
    spawn("failed", max_attempts=2)
    for _ in range(2):
        row = claim("failed")
        db.checkpoint(row, f"step {row['attempt']}", row["attempt"])
        db.fail(row["run_id"])
    db.call("cancel_task", begin("cancelled", idempotency_key="gone")["task_id"])
    db.fail(begin("cancelled by failing", cancellation={"max_duration": 5})["run_id"], at(100))
    db.call("schedule_run", begin("sleeping")["run_id"], at(50))
    db.wait(begin("waiting"), "for ever")
    db.wait(begin("waiting with a timeout"), "limited", 60)
    db.wait(begin("timed out"), "silence", 5)
    db.fail(begin("retrying", retry_strategy={"kind": "exponential", "base_seconds": 45})["run_id"])
    db.set_time(10)
    assert claim("timed out", 1000)["wake_event"] == "silence"
    begin("running for ever", 0)
    begin("running", 30, cancellation={"max_duration": 1000})
    db.wait(begin("waiting too late"), "missed", 5)
    db.wait(begin("woken"), "heard")
    db.call("emit_event", "heard", {"n": 7})
    spawn("limited in delay", cancellation={"max_delay": 500})
    spawn("pending", max_attempts=3, idempotency_key="once")
    db.set_time(20)
    return tasks


def snapshot(db: Calls) -> dict[str, list[DictRow]]:
    """What the relations show, with ids as they are after the copy."""
    runs = db.rows(f'select r.run_id, r.task_id, r.attempt from absurd."r_{db.queue}" as r')
    numbers = {row["run_id"]: (shorter(row["task_id"]), row["attempt"]) for row in runs}
    shown: dict[str, list[DictRow]] = {}
    for letter in "trcew":
        rows = db.rows(
            f'select to_jsonb(o) as o from absurd."{letter}_{db.queue}" as o order by o::text'
        )
        shown[letter] = [row["o"] for row in rows]
        for row in shown[letter]:
            for name in ("run_id", "last_attempt_run", "owner_run_id"):
                if row.get(name):
                    row[name] = numbers[UUID(row[name])]
            if "task_id" in row:
                row["task_id"] = shorter(UUID(row["task_id"]))
    # what teguh does not keep
    for row in shown["r"]:
        if row["state"] in ("completed", "failed", "cancelled"):
            row["available_at"] = None
    for row in shown["w"]:
        row["created_at"] = None
    shown["e"] = [row for row in shown["e"] if row["payload"] is not None]
    return {k: sorted(v, key=str) for k, v in shown.items()}


def move(dsn: str) -> list[DictRow]:
    """Rename the schema, install ours, copy."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("alter schema absurd rename to absurd_old")
    send(dsn, ABSURD_SQL.read_text())
    with psycopg.connect(dsn, row_factory=psycopg.rows.dict_row) as connection:
        return connection.execute("select * from absurd.copy_from_schema('absurd_old')").fetchall()


@pytest.fixture(params=["unpartitioned", "partitioned"])
def moved(request: pytest.FixtureRequest, dsn: str) -> Iterator[Moved]:
    """A database that moved over, the tasks in it, and what was shown before."""
    send(dsn, BUNDLED_SCHEMA_SQL)
    db = Calls(dsn, "My jobs")
    with db.connection:
        db.set_time(0)
        db.call("create_queue", request.param)
        db.call("set_queue_policy", {"cleanup_ttl": "5 days", "cleanup_limit": 50})
        tasks = fill(db)
        before = snapshot(db)
    copied = move(dsn)
    after = Calls(dsn, "My jobs")
    after.set_time(20)
    with after.connection:
        yield after, tasks, before, copied


def test_all_is_copied(moved: Moved) -> None:
    db, tasks, before, copied = moved
    assert copied == [
        {
            "queue_name": "My jobs",
            "tasks": len(tasks),
            "runs": len(before["r"]),
            "checkpoints": len(before["c"]),
            "events": 4,
            "waits": 3,
        }
    ]
    after = snapshot(db)
    for letter in "trcew":
        assert after[letter] == before[letter], letter
    [policy] = db.call("get_queue_policy")
    assert (policy["cleanup_ttl"].days, policy["cleanup_limit"]) == (5, 50)


def test_old_ids_of_tasks_still_work(moved: Moved) -> None:
    db, tasks, _, _ = moved
    for name, state in (
        ("completed", "completed"), ("failed", "failed"), ("cancelled", "cancelled"),
        ("cancelled by failing", "cancelled"), ("sleeping", "sleeping"), ("waiting", "sleeping"),
        ("retrying", "sleeping"), ("woken", "pending"), ("running", "running"),
        ("pending", "pending"),
    ):  # fmt: skip
        [found] = db.call("get_task_result", tasks[name]["task_id"])
        assert found["state"] == state, name
        assert found["task_id"] == shorter(tasks[name]["task_id"])
    old = tasks["completed"]["task_id"]
    assert db.call("get_task_checkpoint_state", old, "one")[0]["state"] == {"n": 1}
    db.call("cancel_task", tasks["pending"]["task_id"])
    [again] = db.call("retry_task", tasks["failed"]["task_id"])
    assert again["attempt"] == 3
    assert db.spawn(idempotency_key="gone")["task_id"] == shorter(tasks["cancelled"]["task_id"])


def test_work_goes_on_where_it_was(moved: Moved) -> None:
    db, tasks, _, _ = moved

    def claimed() -> dict[str, tuple[int, str | None]]:
        rows = db.claim(10000, 50)
        return {row["task_name"]: (row["attempt"], row["wake_event"]) for row in rows}

    assert claimed() == {
        "woken": (1, None),
        "limited in delay": (1, None),
        "pending": (1, None),
        "waiting too late": (1, "missed"),
    }
    db.call("emit_event", "for ever", {"x": 1})
    assert claimed() == {"waiting": (1, None)}
    for name, step in (("waiting", "wait for ever"), ("woken", "wait heard")):
        assert len(db.call("get_task_checkpoint_state", tasks[name]["task_id"], step)) == 1
    db.set_time(40)
    assert claimed() == {"running": (2, None)}
    db.set_time(50)
    assert claimed() == {"sleeping": (1, None), "retrying": (2, None)}
    db.set_time(60)
    assert claimed() == {"waiting with a timeout": (1, "limited")}
    db.set_time(1010)
    assert claimed() == {"timed out": (2, None)}
    [found] = db.call("get_task_result", tasks["running"]["task_id"])
    assert found["state"] == "cancelled"
    [found] = db.call("get_task_result", tasks["running for ever"]["task_id"])
    assert found["state"] == "running"


def test_a_copy_is_all_or_nothing(dsn: str) -> None:
    send(dsn, BUNDLED_SCHEMA_SQL)
    db = Calls(dsn, "a")
    with db.connection:
        for name in ("a", "b"):
            db.queue = name
            db.call("create_queue")
            db.spawn()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("alter schema absurd rename to absurd_old")
    send(dsn, ABSURD_SQL.read_text())
    ours = Calls(dsn, "b")
    with ours.connection:
        ours.call("create_queue")
        ours.spawn()
        with pytest.raises(psycopg.Error, match="has tasks already"):
            ours.rows("select * from absurd.copy_from_schema('absurd_old')")
        assert ours.rows("select * from absurd.list_queues()") == [{"queue_name": "b"}]
        for schema in ("absurd", "nowhere"):
            with pytest.raises(psycopg.Error, match="no absurd installation"):
                ours.rows("select * from absurd.copy_from_schema(%s)", schema)
        ours.call("drop_queue")
        assert len(ours.rows("select * from absurd.copy_from_schema('absurd_old')")) == 2
        assert ours.claim_one()["attempt"] == 1
