"""Every release becomes the present version: the same objects, and every task goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import teguh
from teguh._install import check_version, path, scripts
from tests.catalog import contents, definitions
from tests.cluster import RELEASES, ROOT, TEGUH_SQL, released_sql, send
from tests.dumps import dump, normalised
from tests.every_state import fill, go_on
from tests.python.support import until
from tools.build_sql import RELEASED, version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster import Cluster

Connection = psycopg.Connection[tuple[Any, ...]]

HERE = Path(__file__).parent
LONG_QUEUE = "q" * 55
STILL = ["jobs", "a_d", LONG_QUEUE]  # nobody works on them during the upgrade
BUSY = "busy"

pytestmark = pytest.mark.parametrize("release", RELEASES)


@pytest.fixture
def old_dsn(empty_dsn: str, release: str) -> str:
    """A database with an old release, as its owner."""
    send(empty_dsn, released_sql(release))
    return empty_dsn


def wheel(release: str) -> str:
    """Return the Python package of a release."""
    (found,) = (ROOT / RELEASED / release).glob("*.whl")
    return str(found)


def rows(dsn: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    """Run one query on a connection of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query.encode(), values).fetchall()


@contextmanager
def old_worker(release: str, dsn: str, queue: str) -> Iterator[subprocess.Popen[str]]:
    """Run a worker of an old release's package in a process; it must not end by itself."""
    process = subprocess.Popen(
        [sys.executable, HERE / "old_worker.py", wheel(release), dsn, queue],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        yield process
        assert process.poll() is None, process.communicate()[1]
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def spawning(dsn: str, queue: str) -> Iterator[list[tuple[str, str]]]:
    """Spawn tasks one after the other, trying again where an upgrade came in between."""
    spawned: list[tuple[str, str]] = []
    trouble: list[BaseException] = []
    stop = threading.Event()

    def spawn() -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                while not stop.is_set():
                    name = ("echo", "steps")[len(spawned) % 2]
                    try:
                        row = connection.execute(
                            "select task_id from teguh.spawn_task(%s, %s, '5')", (queue, name)
                        ).fetchone()
                    except psycopg.errors.SerializationFailure:
                        continue
                    assert row is not None
                    spawned.append((str(row[0]), name))
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            trouble.append(error)

    thread = threading.Thread(target=spawn)
    thread.start()
    try:
        yield spawned
    finally:
        stop.set()
        thread.join()
    assert trouble == []


def fresh(cluster: Cluster, dsn: str, queues: list[str]) -> None:
    """Install the present version, with queues, into an empty database."""
    del cluster
    send(dsn, TEGUH_SQL.read_text(encoding="utf-8"))
    for queue in queues:
        send(dsn, f"select teguh.create_queue('{queue}')")


def assert_same(cluster: Cluster, upgraded: str, queues: list[str]) -> None:
    """An upgraded database and a fresh one with the same queues hold the same objects."""
    with cluster.database("empty") as name:
        other = cluster.owner_dsn(name)
        fresh(cluster, other, queues)
        with psycopg.connect(upgraded) as one, psycopg.connect(other) as two:
            found, wanted = definitions(one), definitions(two)
        assert found.keys() == wanted.keys()
        assert {k: v for k, v in found.items() if wanted[k] != v} == {}


def assert_same_dump(cluster: Cluster, upgraded: str, queues: list[str]) -> None:
    """`pg_dump --schema-only` prints the same of both."""
    with cluster.database("empty") as name:
        other = cluster.owner_dsn(name)
        fresh(cluster, other, queues)
        one, two = (
            normalised(dump(cluster.server, dsn, "--schema-only", "--schema=teguh"))
            for dsn in (upgraded, other)
        )
        assert one == two


def assert_found(dsn: str, queue: str) -> None:
    """Tasks from before the upgrade are counted and listed by their states."""
    there = dict(rows(dsn, f"select state, count(*) from teguh.t_{queue} group by 1"))
    for state in ("failed", "cancelled", "running", "sleeping", "pending", "completed"):
        listed = rows(
            dsn, f"select 1 from teguh.list_tasks('{queue}', '{{\"state\": \"{state}\"}}')"
        )
        assert len(listed) == there.get(state, 0), state
    counted = "pending, running, completed, failed, cancelled"
    assert rows(dsn, f"select {counted} from teguh.queue_stats('{queue}')") == [
        tuple(there.get(state, 0) for state in counted.split(", "))
    ]


def test_an_upgrade_with_workers_running_gives_what_a_fresh_installation_has(
    cluster: Cluster, old_dsn: str, release: str
) -> None:
    for queue in STILL:
        fill(old_dsn, queue)
    send(old_dsn, f"select teguh.create_queue('{BUSY}')")
    with psycopg.connect(old_dsn) as connection:
        before = contents(connection)
    with old_worker(release, old_dsn, BUSY):
        with spawning(old_dsn, BUSY) as spawned:
            until(lambda: len(spawned) > 20)
            assert teguh.upgrade(old_dsn) == version()
            count = len(spawned)
            until(lambda: len(spawned) > count + 20)
        # Those of both ages come to their ends, by the hands of the old worker.
        until(lambda: not rows(old_dsn, f"select 1 from teguh.t_{BUSY} where state <> 'completed'"))
    assert dict(rows(old_dsn, f"select task_id::text, result from teguh.t_{BUSY}")) == {
        task: {"echo": 5, "steps": 3}[name] for task, name in spawned
    }

    # Of the other queues nothing has changed: the rows are what they were, with new columns.
    with psycopg.connect(old_dsn) as connection:
        after = contents(connection)
    for table in before:
        if table.endswith(tuple(f"_{queue}" for queue in STILL)):
            rests = [
                now.removeprefix(then.removesuffix(")")).strip(",)")
                for now, then in zip(after[table], before[table], strict=True)
            ]
            assert set(rests) <= {"", "f"}, table

    assert_same(cluster, old_dsn, [*STILL, BUSY])
    for queue in STILL:
        assert_found(old_dsn, queue)
        go_on(old_dsn, queue)
    assert_same(cluster, old_dsn, [*STILL, BUSY])


def test_pg_dump_prints_the_same_of_an_upgraded_and_of_a_fresh_schema(
    cluster: Cluster, old_dsn: str, release: str
) -> None:
    del release
    for queue in STILL:
        send(old_dsn, f"select teguh.create_queue('{queue}')")
    teguh.upgrade(old_dsn)
    assert_same_dump(cluster, old_dsn, STILL)


def test_the_client_of_the_release_before_works_on_the_present_schema(
    old_dsn: str, release: str
) -> None:
    teguh.upgrade(old_dsn)
    ran = subprocess.run(
        [sys.executable, HERE / "old_client.py", wheel(release), old_dsn, "jobs"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.stdout, ran.stderr) == (f"{version()}\n", "")


def test_on_an_older_schema_the_present_worker_stops_and_says_what_to_do(
    old_dsn: str, release: str
) -> None:
    del release
    send(old_dsn, "select teguh.create_queue('jobs')")
    with pytest.raises(teguh.VersionMismatch, match="teguh upgrade"):
        teguh.Worker(old_dsn, "jobs", teguh.Registry()).run()


def test_over_an_older_version_teguh_sql_stops_and_names_the_script(
    old_dsn: str, release: str
) -> None:
    with psycopg.connect(old_dsn) as connection:
        before = definitions(connection)
    with pytest.raises(psycopg.Error) as caught:
        send(old_dsn, TEGUH_SQL.read_text(encoding="utf-8"))
    assert caught.value.sqlstate == "TG010"
    script = f"sql/upgrade/teguh--{release}--{version()}.sql"
    assert script in str(caught.value.diag.message_hint)
    assert (ROOT / script).exists()
    with psycopg.connect(old_dsn) as connection:
        assert definitions(connection) == before


def test_a_script_run_twice_stops_and_says_that_all_is_done(old_dsn: str, release: str) -> None:
    teguh.upgrade(old_dsn)
    with psycopg.connect(old_dsn) as connection:
        before = definitions(connection)
    with pytest.raises(psycopg.Error) as caught:
        send(old_dsn, scripts()[release, version()])
    assert caught.value.sqlstate == "TG010"
    assert version() in str(caught.value.diag.message_detail)
    assert caught.value.diag.message_hint
    assert teguh.upgrade(old_dsn) == version()
    send(old_dsn, TEGUH_SQL.read_text(encoding="utf-8"))
    with psycopg.connect(old_dsn) as connection:
        assert definitions(connection) == before


def test_a_script_returns_no_rows_that_psql_would_print(old_dsn: str, release: str) -> None:
    with psycopg.connect(old_dsn, autocommit=True) as connection:
        cursor = connection.execute(scripts()[release, version()].encode())
        assert {result.description for result in cursor.results()} == {None}


def test_a_script_in_a_database_without_teguh_stops_and_says_so(
    empty_dsn: str, release: str
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        send(empty_dsn, scripts()[release, version()])
    assert caught.value.sqlstate == "TG010"
    assert caught.value.diag.message_detail == "No teguh is installed."
    with pytest.raises(teguh.VersionMismatch, match="teguh install"):
        teguh.upgrade(empty_dsn)


@pytest.mark.timeout(600)
def test_a_transaction_that_never_ends_stops_the_upgrade_and_nothing_else(
    old_dsn: str, release: str
) -> None:
    del release
    send(old_dsn, "select teguh.create_queue('jobs')")
    with psycopg.connect(old_dsn) as connection:
        before = definitions(connection)
    # Few tries are enough here.
    few = scripts()[RELEASES[0], version()].replace("in 1..200 loop", "in 1..12 loop")
    with (
        psycopg.connect(old_dsn) as idle,
        psycopg.connect(old_dsn, autocommit=True) as other,
        spawning(old_dsn, "jobs") as spawned,
    ):
        idle.execute("select * from teguh.spawn_task('jobs', 'a', '1')")
        with pytest.raises(psycopg.Error) as caught:
            other.execute(few.encode())
        assert caught.value.sqlstate == "55P03"
        assert str(idle.info.backend_pid) in str(caught.value.diag.message_detail)
        assert "try again" in str(caught.value.diag.message_hint)
        count = len(spawned)
        until(lambda: len(spawned) > count)
    with psycopg.connect(old_dsn) as connection:
        assert definitions(connection) == before


def test_a_call_that_waits_for_the_upgrade_is_to_be_tried_again(old_dsn: str, release: str) -> None:
    send(old_dsn, "select teguh.create_queue('jobs')")
    script = scripts()[release, version()].removesuffix("\ncommit;\n")
    caught: list[str | None] = []

    def call(connection: Connection) -> None:
        try:
            connection.execute("select * from teguh.spawn_task('jobs', 'a', '1')")
        except psycopg.Error as error:
            caught.append(error.sqlstate)

    with (
        psycopg.connect(old_dsn, autocommit=True) as caller,
        psycopg.connect(old_dsn, autocommit=True) as upgrading,
    ):
        caller.execute("select * from teguh.spawn_task('jobs', 'a', '1')")
        upgrading.execute(script.encode())
        thread = threading.Thread(target=call, args=(caller,))
        thread.start()
        until(
            lambda: upgrading.execute(
                "select 1 from pg_locks where pid = %s and not granted", (caller.info.backend_pid,)
            ).fetchone()
        )
        upgrading.execute("commit")
        thread.join()
        assert caught == ["40001"]
        call(caller)
        assert caught == ["40001"]


def test_rights_and_owners_outlive_an_upgrade_by_a_superuser(
    cluster: Cluster, old_dsn: str, release: str
) -> None:
    del release
    with psycopg.connect(old_dsn, autocommit=True) as connection:
        connection.execute("select teguh.create_queue('jobs')")
        ((owner,),) = connection.execute("select current_user").fetchall()
        guest = conninfo_user(cluster.guest_dsn(connection.info.dbname))
        connection.execute(
            f"grant execute on function teguh.get_task_result(text, uuid) to {guest}"
            " with grant option".encode()
        )
        superuser = cluster.server.dsn(connection.info.dbname)
    teguh.upgrade(superuser)
    owners = rows(
        old_dsn,
        "select distinct r from (select proowner::regrole::text as r from pg_proc where"
        " pronamespace = 'teguh'::regnamespace union all select relowner::regrole::text from"
        " pg_class where relnamespace = 'teguh'::regnamespace) as o",
    )
    assert owners == [(owner,)]
    assert rows(
        old_dsn,
        "select has_function_privilege(%s, 'teguh.get_task_result(text, uuid)',"
        " 'execute with grant option')",
        guest,
    ) == [(True,)]


def conninfo_user(dsn: str) -> str:
    """Return the role that a connection string names."""
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["user"])


def test_there_is_a_way_from_every_release(release: str) -> None:
    assert path(release, version(), set(scripts()))[-1][1] == version()
    with pytest.raises(teguh.VersionMismatch) as caught:
        path("99.0.0", version(), set(scripts()))
    assert caught.value.sqlstate == "TG010"
    assert caught.value.hint


def test_the_way_may_have_several_steps(release: str) -> None:
    steps = {("1", "2"), ("2", "3"), ("3", "4"), ("2", "4"), (release, "1")}
    assert path(release, "4", steps) == [(release, "1"), ("1", "2"), ("2", "4")]
    assert path("4", "4", steps) == []


def test_a_schema_that_is_newer_than_the_package_is_fine(release: str) -> None:
    check_version("99.0.0")
    with pytest.raises(teguh.VersionMismatch):
        check_version(release, "99.0.0")


def test_what_was_frozen_is_the_release_that_it_says(release: str) -> None:
    assert released_sql(release).startswith(f"-- Teguh {release}:")
    assert Path(wheel(release)).name == f"teguh-{release}-py3-none-any.whl"
    assert json.loads((ROOT / "META.json").read_text())["version"] != release
