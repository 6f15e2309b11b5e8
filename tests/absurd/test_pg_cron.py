"""enable_cron() and disable_cron(), where pg_cron is: `TEGUH_PG=debian make test`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.absurd.calls import Calls
from tests.cluster import ABSURD_SQL, TEGUH_SQL, send
from tools.servers import OWNER, Databases, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

HOME = "with_cron"
JOBS = "select jobname, schedule, command from cron.job order by jobname"


@pytest.fixture
def cron(server: Databases) -> Iterator[Calls]:
    """Calls of a queue in a database with pg_cron."""
    if not isinstance(server, Server) or not server.has_extension("pg_cron"):
        pytest.skip(f"pg_cron is not installed on the {server.kind} server; Debian's can have it")
    with Server(server.kind, {"cron.database_name": HOME}) as own:
        dsn = own.create_database(HOME, owner=OWNER)
        send(dsn, TEGUH_SQL.read_text())
        send(dsn, ABSURD_SQL.read_text())
        own.execute("create extension pg_cron", HOME)
        own.execute(f"grant usage on schema cron to {OWNER}", HOME)
        calls = Calls(dsn, "My jobs")
        with calls.connection:
            calls.call("create_queue")
            yield calls


def test_upkeep_is_scheduled_and_unscheduled(cron: Calls) -> None:
    [job] = cron.call("enable_cron", "5 * * * *", "1 2 * * *")
    [everywhere] = cron.rows("select * from absurd.enable_cron()")
    assert everywhere["job_name"] == "absurd_cleanup_all"
    cron.rows("select cron.schedule('absurd_partitions_all', '5 * * * *', 'select 1')")
    cron.rows("select cron.schedule('absurd_drop_run_all_x_y', '5 * * * *', 'select 1')")
    jobs = {row["jobname"]: row for row in cron.rows(JOBS)}
    assert {"teguh_ticker", "teguh_maint"} < set(jobs)
    assert jobs[job["job_name"]]["schedule"] == "1 2 * * *"
    for name in (job["job_name"], "absurd_cleanup_all"):
        [row] = cron.rows(jobs[name]["command"])
        assert row["queue_name"] == "My jobs"
    assert cron.call("enable_cron") == [job]

    gone = cron.rows("select * from absurd.disable_cron()")
    assert [row["job_name"] for row in gone] == [
        "absurd_cleanup_all", "absurd_drop_run_all_x_y", "absurd_partitions_all",
    ]  # fmt: skip
    assert cron.rows("select * from absurd.disable_cron()") == []
    cron.call("drop_queue")
    assert [row["jobname"] for row in cron.rows(JOBS)] == ["teguh_maint", "teguh_ticker"]


def test_a_job_for_a_partition_that_is_not_there_ends_itself(cron: Calls) -> None:
    name = "absurd_drop_run_all_x_y"
    cron.rows("select cron.schedule(%s, '5 * * * *', 'select 1')", name)
    cron.rows("select cron.schedule('mine', '5 * * * *', 'select 1')")
    for job in (name, "mine"):
        cron.rows("select absurd.drop_detached_partition('t_x', %s)", job)
    assert [row["jobname"] for row in cron.rows(JOBS)] == ["mine"]
