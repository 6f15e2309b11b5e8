"""The doctor finds each thing that is wrong, and says so by its status."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import teguh
from teguh.cli import main
from tests.python.support import until
from tools.servers import CLIENT, GUEST, OWNER, Server

if TYPE_CHECKING:
    from tests.cluster import Cluster

CHECKS = [
    "version", "autovacuum", "isolation", "snapshots", "pgcrypto", "health", "scheduler", "rights",
    "bloat", "leases", "schedules",
]  # fmt: skip


class Doctor:
    """The doctor at a database, and what it has found."""

    def __init__(self, capsys: pytest.CaptureFixture[str], dsn: str) -> None:
        self._capsys, self._dsn = capsys, dsn
        self.status = -1

    def finds(self, *options: str, dsn: str | None = None) -> dict[str, list[tuple[str, str, Any]]]:
        """Return severity, message and hint of what was found, by check."""
        arguments = ["doctor", "--dsn", dsn or self._dsn, "--format", "json", *options]
        self.status = main(arguments)
        found: dict[str, list[tuple[str, str, Any]]] = {}
        for row in json.loads(self._capsys.readouterr().out):
            found.setdefault(row["check"], []).append(
                (row["severity"], row["message"], row["hint"])
            )
        wrong = any(one[0] in ("warning", "error") for some in found.values() for one in some)
        assert self.status == wrong
        return found


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], superuser_dsn: str) -> Doctor:
    """The doctor at a database in which somebody has ticked, with a queue."""
    with teguh.Client.connect(superuser_dsn) as client:
        client.connection.execute(f"set role {OWNER}")
        client.create_queue("jobs")
        client.ticker()
    return Doctor(capsys, superuser_dsn)


def later(dsn: str, seconds: int) -> str:
    """The same database when so much time has passed for the engine."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "select to_char(clock_timestamp() at time zone 'UTC' + make_interval(secs => %s),"
            ' \'YYYY-MM-DD"T"HH24:MI:SS"Z"\')',
            [seconds],
        ).fetchone()
    assert row is not None
    return make_conninfo(dsn, options=f"-c teguh.fake_now={row[0]}")


def test_nothing_is_wrong_with_a_healthy_database(
    doctor: Doctor, superuser_dsn: str, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    found = doctor.finds()
    assert list(found) == CHECKS
    assert doctor.status == 0
    severities = {check: [one[0] for one in some] for check, some in found.items()}
    if cluster.pgcrypto == "absent" and severities["pgcrypto"] == ["info"]:
        severities["pgcrypto"] = ["ok"]
    assert severities == {check: ["ok"] for check in CHECKS}
    assert "last tick at 20" in found["scheduler"][0][1]
    for form in ("table", "csv"):
        assert main(["doctor", "--dsn", superuser_dsn, "--format", form]) == 0
        out = capsys.readouterr().out
        assert all(check in out for check in CHECKS)
        if form == "csv":
            assert [row["check"] for row in csv.DictReader(io.StringIO(out))] == CHECKS


def test_the_table_shows_what_is_wrong_with_its_hint(
    doctor: Doctor, superuser_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(superuser_dsn) as connection:
        connection.execute("alter table teguh.t_jobs set (autovacuum_enabled = off)")
    assert doctor.finds()["autovacuum"][0][0] == "warning"
    assert main(["doctor", "--dsn", superuser_dsn]) == 1
    lines = capsys.readouterr().out.splitlines()
    (place,) = [n for n, line in enumerate(lines) if "autovacuum is off for teguh.t_jobs" in line]
    assert lines[place].split()[:2] == ["warning", "autovacuum"]
    assert "hint: Run: alter table teguh.t_jobs reset (autovacuum_enabled);" in lines[place + 1]


VERSION = (
    "create or replace function teguh.version() returns text language sql as $$ select '{}' $$"
)


DATABASE = "alter database {database} set"
OBSERVER = f"'{GUEST}', 'observer', '{{jobs}}'"

# What is done as superuser; then the check, the severity, and what is in message and hint.
PLANTED = {
    VERSION.format("0.0.1"): ("version", "error", "teguh 0.0.1", "teguh upgrade"),
    # Functions from before an upgrade refuse to go on.
    VERSION.format("99.0"): ("leases", "error", "cannot be looked at", "See to this first"),
    f"{DATABASE} default_transaction_isolation = serializable": (
        "isolation", "warning", 'of database "{database}" is serializable',
        'alter database "{database}" reset default_transaction_isolation;',
    ),
    f"alter role {GUEST} in database {{database}} set default_transaction_isolation ="
    " 'repeatable read'": (
        "isolation", "warning", f'of role "{GUEST}" in database "{{database}}" is repeatable read',
        f'alter role "{GUEST}" in database "{{database}}" reset default_transaction_isolation;',
    ),
    "alter table teguh.t_jobs set (autovacuum_enabled = off)": (
        "autovacuum", "warning", "for teguh.t_jobs", "reset (autovacuum_enabled)",
    ),
    "alter function teguh.spawn_task owner to postgres": (
        "rights", "warning", "owner of its schema: spawn_task", "owner to",
    ),
    f"grant create on schema teguh to {GUEST}": (
        "rights", "error", f"in the schema teguh: {GUEST}", "revoke create on schema teguh",
    ),
    "grant execute on function teguh.spawn_task to public": (
        "rights", "error", "functions of teguh: spawn_task", "from public",
    ),
    f"grant select on teguh.t_jobs to {GUEST}": (
        "rights", "warning", "granted to others: t_jobs", "grant_access",
    ),
    f"set role {OWNER}; select teguh.grant_access({OBSERVER});"
    f" revoke usage on schema teguh from {GUEST}": (
        "rights", "warning", f'"{GUEST}" was granted access as observer',
        f"select teguh.grant_access({OBSERVER});",
    ),
    "select teguh.create_schedule('nightly', 'jobs', 't', '@daily');"
    " update teguh.schedules set last_error = 'the queue is full'": (
        "schedules", "warning", '"nightly" cannot fire: the queue is full', "See to the cause",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", PLANTED)
def test_each_planted_problem_is_found_with_what_to_do(
    doctor: Doctor, superuser_dsn: str, database: str, change: str
) -> None:
    with psycopg.connect(superuser_dsn) as connection:
        connection.execute(change.replace("{database}", database).encode())
    check, severity, message, hint = PLANTED[change]
    (found,) = doctor.finds()[check]
    assert found[0] == severity
    assert message.replace("{database}", database) in found[1]
    assert hint.replace("{database}", database) in found[2]


def test_a_level_of_isolation_of_all_roles_is_found(doctor: Doctor, superuser_dsn: str) -> None:
    with psycopg.connect(superuser_dsn, autocommit=True) as connection:
        connection.execute("alter role all set default_transaction_isolation = serializable")
        try:
            ((severity, message, hint),) = doctor.finds()["isolation"]
        finally:
            connection.execute("alter role all reset default_transaction_isolation")
    assert severity == "warning"
    assert "of role all is serializable" in message
    assert "Run: alter role all reset default_transaction_isolation;" in hint


def test_a_newer_schema_is_no_more_than_information(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teguh._doctor.package_version", lambda: "0.1.0")
    ((severity, message, hint),) = doctor.finds()["version"]
    assert (severity, "this package is 0.1.0" in message) == ("info", True)
    assert "Upgrade the package" in hint
    assert doctor.status == 0


def test_a_database_without_teguh_is_looked_at_all_the_same(
    empty_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Doctor(capsys, empty_dsn).finds()
    assert found["version"] == [
        ("error", "teguh is not installed in this database", "Run `teguh install`.")
    ]
    assert list(found) == CHECKS[:5]


def test_an_isolation_level_of_the_connection_is_found(doctor: Doctor, superuser_dsn: str) -> None:
    dsn = make_conninfo(superuser_dsn, options="-c default_transaction_isolation=serializable")
    ((severity, message, _),) = doctor.finds(dsn=dsn)["isolation"]
    assert (severity, "is serializable" in message) == ("warning", True)


def test_a_role_that_sees_less_is_told_so(doctor: Doctor, cluster: Cluster, database: str) -> None:
    found = doctor.finds(dsn=cluster.server.dsn(database, CLIENT))
    assert found["snapshots"][0][0] == found["rights"][0][0] == "info"
    assert doctor.status == 0


def test_nobody_ticking_and_nobody_working_are_found(doctor: Doctor, superuser_dsn: str) -> None:
    with teguh.Client.connect(superuser_dsn) as client:
        client.spawn_task("jobs", "report")
    (found,) = doctor.finds(dsn=later(superuser_dsn, 3600))["health"]
    assert 'nobody works on queue "jobs"' in found[1]
    with psycopg.connect(superuser_dsn, autocommit=True) as connection:
        connection.execute("alter sequence teguh._ticked restart")
        connection.execute("select setval('teguh._ticked', 1)")
    assert "nobody ticks" in doctor.finds()["health"][0][1]


def test_an_old_snapshot_is_found_with_its_session(doctor: Doctor, superuser_dsn: str) -> None:
    with psycopg.connect(superuser_dsn) as holder:
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select count(*) from teguh.queues")
        (found,) = doctor.finds("--patience", "0")["snapshots"]
        assert found[0] == "warning"
        assert f"session {holder.info.backend_pid} of postgres (idle in transaction)" in found[1]
        assert f"pg_terminate_backend({holder.info.backend_pid})" in found[2]
        assert doctor.finds()["snapshots"][0][0] == "ok"


def test_a_prepared_transaction_and_an_unused_slot_are_found(
    capsys: pytest.CaptureFixture[str], cluster: Cluster
) -> None:
    settings = {"max_prepared_transactions": "2", "wal_level": "logical", "autovacuum": "off"}
    with Server(cluster.server.kind, settings) as server:
        dsn = server.create_database("db", owner=OWNER)
        teguh.install(dsn)
        with server.connect("db") as connection:
            connection.execute("select pg_create_logical_replication_slot('unused', 'pgoutput')")
            connection.execute("begin")
            connection.execute("create table forgotten ()")
            connection.execute("prepare transaction 'left over'")
        doctor = Doctor(capsys, server.dsn("db"))
        found = doctor.finds("--patience", "0")
        prepared, slot = found["snapshots"]
        assert prepared[1].startswith("prepared transaction left over of postgres keeps")
        assert "rollback prepared 'left over';" in prepared[2]
        assert slot[1].startswith("replication slot unused not in use keeps")
        assert "pg_drop_replication_slot('unused')" in slot[2]
        assert [one[1] for one in doctor.finds()["snapshots"]] == [slot[1]]
        assert found["autovacuum"][0][:2] == (
            "error",
            "autovacuum is off: nobody removes dead rows",
        )


def test_a_missing_pgcrypto_is_no_more_than_information(doctor: Doctor, superuser_dsn: str) -> None:
    with psycopg.connect(superuser_dsn, autocommit=True) as connection:
        connection.execute("drop extension if exists pgcrypto cascade")
        version = connection.info.server_version
    ((severity, _, hint),) = doctor.finds()["pgcrypto"]
    assert severity == ("info" if version < 180000 else "ok")
    assert doctor.status == 0
    assert version >= 180000 or "teguh install" in hint


def test_dead_rows_are_found(doctor: Doctor, superuser_dsn: str) -> None:
    with psycopg.connect(superuser_dsn, autocommit=True) as connection:
        connection.execute("alter table teguh.g_jobs set (autovacuum_enabled = off)")
        connection.execute(
            "insert into teguh.g_jobs (tag, task_id)"
            " select 'x', gen_random_uuid() from generate_series(1, 10500)"
        )
        connection.execute("delete from teguh.g_jobs")
    found = until(
        lambda: [one for one in doctor.finds()["bloat"] if one[0] == "warning"], "the statistics"
    )
    assert "teguh.g_jobs has 10500 dead rows and 0 live ones, never vacuumed" in found[0][1]
    assert "vacuum teguh.g_jobs;" in found[0][2]


def test_leases_that_are_over_or_without_end_are_found(doctor: Doctor, superuser_dsn: str) -> None:
    with teguh.Client.connect(superuser_dsn) as client:
        for timeout in (30, 0):
            task = client.spawn_task("jobs", "report")
            client.claim_task("jobs", "host-1", claim_timeout=timeout)
    assert doctor.finds()["leases"][0][0] == "ok"
    (over,) = doctor.finds(dsn=later(superuser_dsn, 1000))["leases"]
    assert over[1] == 'leases of queue "jobs" that are over, and nobody has noticed: 1'
    assert (
        doctor.finds("--patience", "2000", dsn=later(superuser_dsn, 1000))["leases"][0][0] == "ok"
    )
    endless, over = doctor.finds(dsn=later(superuser_dsn, 90000))["leases"]
    assert 'host-1 holds a task of queue "jobs" since' in endless[1]
    assert f"select teguh.requeue_task('jobs', '{task.task_id}');" in endless[2]


def test_a_schedule_that_nobody_fires_is_found(doctor: Doctor, superuser_dsn: str) -> None:
    with teguh.Client.connect(superuser_dsn) as client:
        client.create_schedule("often", "jobs", "report", "every 60 seconds")
        client.create_schedule("paused", "jobs", "report", "every 60 seconds")
        client.pause_schedule("paused")
    assert doctor.finds()["schedules"][0][0] == "ok"
    (found,) = doctor.finds(dsn=later(superuser_dsn, 1000))["schedules"]
    assert 'schedule "often" was to fire at' in found[1]
    assert "select teguh.ticker('jobs');" in found[2]


def test_pg_cron_without_jobs_or_with_failing_ones_or_not_running_is_found(
    capsys: pytest.CaptureFixture[str], cluster: Cluster
) -> None:
    if not cluster.server.has_extension("pg_cron"):
        pytest.skip("the server has no pg_cron")
    with Server(cluster.server.kind) as server:
        dsn = server.dsn("postgres")
        with server.connect() as connection:
            connection.execute("create extension pg_cron")
        teguh.install(dsn)
        doctor = Doctor(capsys, dsn)
        with teguh.Client.connect(dsn) as client:
            assert "has no job that ticks" in doctor.finds()["scheduler"][0][1]
            client.start(ticker_schedule="0 0 1 1 *", cleanup_schedule="0 0 1 1 *")
            assert doctor.finds()["scheduler"] == [("ok", "no tick yet; pg_cron runs", None)]
            client.connection.execute(
                "insert into cron.job_run_details (jobid, runid, status, return_message, end_time)"
                " select jobid, 1, 'failed', 'ERROR: disk full', now() from cron.job"
                " where jobname = 'teguh_ticker'"
            )
            ((severity, message, hint),) = doctor.finds()["scheduler"]
            assert (severity, hint) == ("warning", "Look at cron.job_run_details.")
            assert message == "job teguh_ticker of pg_cron failed: ERROR: disk full"
            client.connection.execute("update cron.job set active = false")
            assert [one[1] for one in doctor.finds()["scheduler"]] == [
                "job teguh_maint of pg_cron is not active",
                "job teguh_ticker of pg_cron is not active",
            ]
        server.stop()
        with (server.data / "postgresql.auto.conf").open("a") as file:
            file.write("shared_preload_libraries = ''\n")
        server.start()
        assert "pg_cron is installed, but does not run" in str(doctor.finds()["scheduler"])
