"""The schema has what absurd's has: functions, arguments, defaults, results, relations."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.absurd.calls import Calls
from tests.cluster import ABSURD_SQL, send

if TYPE_CHECKING:
    from tests.cluster import Cluster

FUNCTIONS = """
    select p.proname || '(' || pg_get_function_arguments(p.oid) || ') -> '
      || pg_get_function_result(p.oid)
    from pg_proc as p
    where p.pronamespace = 'absurd'::regnamespace and p.proname !~ '^_'
    order by 1
"""

COLUMNS = """
    select c.relname, array_agg(a.attname || ' ' || format_type(a.atttypid, -1) order by a.attnum)
    from pg_class as c
    join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0
    where c.relnamespace = 'absurd'::regnamespace and c.relkind in ('r', 'v')
      and c.relname !~ '^_'
    group by c.relname
    order by c.relname
"""


def rows(dsn: str, query: str) -> list[Any]:
    """The rows of a query."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


def test_every_function_of_absurd_is_here(absurd_dsn: str, real_dsn: str) -> None:
    wanted = {text for (text,) in rows(real_dsn, FUNCTIONS)}
    # one function with a default is called like the two that absurd has
    wanted.discard("create_queue(p_queue_name text) -> void")
    wanted.discard("create_queue(p_queue_name text, p_storage_mode text) -> void")
    wanted.add(
        "create_queue(p_queue_name text, p_storage_mode text DEFAULT 'unpartitioned'::text) -> void"
    )
    found = {text for (text,) in rows(absurd_dsn, FUNCTIONS)}
    assert {f for f in found if not f.startswith("copy_from_schema(")} == wanted


def test_every_relation_of_absurd_is_here(absurd_dsn: str, real_dsn: str) -> None:
    for dsn in (absurd_dsn, real_dsn):
        rows(dsn, "select absurd.create_queue('a queue')")
    assert rows(absurd_dsn, COLUMNS) == rows(real_dsn, COLUMNS)


def test_every_function_says_what_it_does_and_pins_its_search_path(absurd_dsn: str) -> None:
    rows(absurd_dsn, "select absurd.create_queue('jobs')")
    assert not rows(
        absurd_dsn,
        r"""
        select p.oid::regprocedure
        from pg_proc as p
        where p.pronamespace = 'absurd'::regnamespace
          and (
            p.proname !~ '^_'
            and coalesce(obj_description(p.oid, 'pg_proc'), '') !~ '^[A-Z][^.]{10,}\.'
            or p.proconfig is null
            or not p.proconfig @> array['search_path=pg_catalog, pg_temp']
          )
        """,
    )


def test_nothing_is_for_everybody(absurd_dsn: str) -> None:
    rows(absurd_dsn, "select absurd.create_queue('jobs')")
    assert not rows(
        absurd_dsn,
        """
        select p.oid::regprocedure
        from pg_proc as p
        cross join aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a
        where p.pronamespace = 'absurd'::regnamespace and a.grantee = 0
        """,
    )


def test_no_name_is_too_long(absurd_dsn: str) -> None:
    rows(absurd_dsn, f"select absurd.create_queue('{'q' * 55}')")
    rows(absurd_dsn, f"select absurd.create_queue('{'ü' * 28}')")
    [(longest,)] = rows(
        absurd_dsn,
        "select max(length(proname)) from pg_proc where pronamespace = 'absurd'::regnamespace",
    )
    assert longest == 63
    [(functions,)] = rows(
        absurd_dsn,
        "select count(*) from pg_proc where pronamespace = 'absurd'::regnamespace"
        f" and proname like '%{'q' * 55}'",
    )
    [(template,)] = rows(
        absurd_dsn,
        "select count(*) from pg_proc where pronamespace = 'absurd'::regnamespace"
        " and proname ~ '^_[a-z]+_template$'",
    )
    assert functions == template


def test_the_file_may_be_run_again(absurd_dsn: str) -> None:
    jobs = Calls(absurd_dsn, "My jobs")
    with jobs.connection:
        jobs.call("create_queue")
        jobs.call("set_queue_policy", {"cleanup_limit": 3})
        row = jobs.spawn()
        before = rows(absurd_dsn, FUNCTIONS)
        send(absurd_dsn, ABSURD_SQL.read_text())
        assert rows(absurd_dsn, FUNCTIONS) == before
        assert jobs.call("get_queue_policy")[0]["cleanup_limit"] == 3
        assert jobs.claim_one()["run_id"] == row["run_id"]


def test_the_file_needs_teguh(empty_dsn: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        send(empty_dsn, ABSURD_SQL.read_text())
    assert caught.value.sqlstate == "TG010"


def test_the_file_does_not_run_over_absurd_itself(dsn: str) -> None:
    from absurdctl import BUNDLED_SCHEMA_SQL

    send(dsn, BUNDLED_SCHEMA_SQL)
    with pytest.raises(psycopg.errors.DuplicateSchema, match="absurd itself"):
        send(dsn, ABSURD_SQL.read_text())


def test_the_file_is_plain_sql_in_one_transaction() -> None:
    text = ABSURD_SQL.read_text()
    assert not re.search(r"(?m)^\\", text)
    assert re.findall(r"(?m)^(?:begin|commit|rollback);$", text) == ["begin;", "commit;"]


def test_the_engine_knows_nothing_of_absurd() -> None:
    for module in (ABSURD_SQL.parent.parent / "src").glob("*.sql"):
        assert "absurd" not in module.read_text().lower(), module.name


def test_a_queue_that_teguh_has_is_taken_over(ours: Calls) -> None:
    ours.rows("select teguh.create_queue('shared')")
    ours.rows("select task_id from teguh.spawn_task('shared', 'job', '{}')")
    ours.queue = "shared"
    ours.call("create_queue")
    assert ours.claim_one()["attempt"] == 1


def test_teguh_does_not_drop_a_queue_that_absurd_shows(ours: Calls) -> None:
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        ours.rows("select teguh.drop_queue('jobs')")
    ours.spawn()
    ours.call("drop_queue")
    assert ours.rows("select queue_name from teguh.list_queues()") == []


def test_two_sessions_may_create_the_same_queue(absurd_dsn: str) -> None:
    first, second, watch = (Calls(absurd_dsn, "same") for _ in range(3))
    with first.connection, second.connection, watch.connection:
        pid = second.connection.info.backend_pid
        with first.connection.transaction():
            first.call("create_queue")
            thread = threading.Thread(target=second.call, args=("create_queue",))
            thread.start()
            waits = "select wait_event_type as w from pg_stat_activity where pid = %s"
            while watch.rows(waits, pid) != [{"w": "Lock"}]:
                assert thread.is_alive()
        thread.join()
        assert second.spawn()["created"]


def test_simple_columns_of_the_relations_can_be_updated(ours: Calls) -> None:
    row = ours.spawn()
    claimed = ours.claim_one()
    ours.checkpoint(claimed, "s", 1)
    ours.rows("update absurd.t_jobs set params = '2' returning 1")
    ours.rows("update absurd.c_jobs set state = '3' returning 1")
    ours.rows("update absurd.queues set cleanup_limit = 4 returning 1")
    assert ours.task(row["task_id"])["params"] == 2
    assert ours.relation("c")[0]["state"] == 3
    ours.rows("delete from absurd.c_jobs returning 1")
    assert ours.relation("c") == []


def test_a_role_needs_rights_on_the_schema_absurd_only(cluster: Cluster, absurd_dsn: str) -> None:
    owner = Calls(absurd_dsn)
    guest = Calls(cluster.guest_dsn(owner.connection.info.dbname))
    with owner.connection, guest.connection:
        owner.call("create_queue")
        assert guest.error("spawn_task", "job", {}) == "42501"
        owner.connection.execute(
            "grant usage on schema absurd to teguh_guest;"
            "grant execute on all functions in schema absurd to teguh_guest;"
            "grant select on all tables in schema absurd to teguh_guest"
        )
        guest.spawn()
        row = guest.claim_one()
        guest.checkpoint(row, "s", 1, 10)
        guest.wait(row, "e", 0)
        guest.fail(row["run_id"])
        assert guest.run(row["run_id"])["state"] == "failed"
        assert guest.task(row["task_id"])["attempts"] == 2
        guest.call("complete_run", guest.claim_one()["run_id"])
        assert guest.call("get_task_result", row["task_id"])[0]["state"] == "completed"
        guest.call("cleanup_tasks", 0)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            guest.rows("select 1 from teguh.t_jobs")
