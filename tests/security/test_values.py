"""Values that PostgreSQL stores and Python does not read stop no worker and no client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

import teguh
from teguh._json import loads
from tests.python.support import finished, running, until
from tests.security.support import nested
from tests.server.support import api

if TYPE_CHECKING:
    from tests.security.support import Connection

VALUES = {
    "digits": ('{"n": 1e5000}', {"n": "1" + "0" * 5000}),
    "beyond a float": ('{"n": 1.5e-1, "m": 1e400}', {"n": 0.15, "m": 10**400}),
    "deep": (nested(5_000), nested(5_000)),
}


def test_a_number_beyond_a_float_comes_as_its_digits() -> None:
    assert loads("[" + "9" * 400 + ".5, -1.5, 7]") == ["9" * 400 + ".5", -1.5, 7]
    with pytest.raises(ValueError, match="Expecting value"):
        loads("[1,")


@pytest.mark.parametrize("name", VALUES)
def test_a_worker_goes_on_whatever_the_params_of_a_task(
    dsn: str, conn: Connection, name: str
) -> None:
    given, read = VALUES[name]
    seen: list[object] = []
    tasks = teguh.Registry()

    @tasks.task("bad")
    def bad(ctx: teguh.TaskContext) -> None:
        seen.append(ctx.params)

    @tasks.task("good")
    def good(ctx: teguh.TaskContext) -> object:
        return ctx.params

    conn.execute("select teguh.create_queue('jobs')")
    with teguh.Client.connect(dsn) as client:
        for task in ("bad", "good"):
            conn.execute("select teguh.spawn_task('jobs', %s, %s)", (task, given))
        last = client.spawn_task("jobs", "good", 7)
        with running(dsn, "jobs", tasks):
            assert finished(client, "jobs", last.task_id).completed_payload == 7
            until(lambda: seen, "the handler")
        assert seen == [read]
        assert len(client.list_tasks("jobs")) == 3


def test_the_service_shows_and_hands_out_such_values(dsn: str, conn: Connection) -> None:
    with api(dsn) as service:
        service.put("/queues/jobs")
        for given, _ in VALUES.values():
            conn.execute("select teguh.spawn_task('jobs', 'bad', %s)", (given,))
        runs = service.post("/queues/jobs/tasks/claim", qty=10)
        assert [run["params"] for run in runs] == [read for _, read in VALUES.values()]
        for run in runs:
            assert service.get(f"/queues/jobs/tasks/{run['task_id']}")["params"] == run["params"]


def test_what_jsonb_cannot_hold_is_refused_by_the_database(conn: Connection) -> None:
    conn.execute("select teguh.create_queue('jobs')")
    for given, state in (
        ("1e200000", "22003"),
        ('"\\u0000"', "22P05"),
        ('"\\ud800"', "22P02"),
        (nested(100_000), "54001"),
    ):
        with pytest.raises(psycopg.Error) as caught:
            conn.execute("select teguh.spawn_task('jobs', 'bad', %s)", (given,))
        assert caught.value.sqlstate == state
