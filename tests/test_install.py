"""Installing: as one string, by a role that owns only its database, twice, beside pgcrypto."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import pytest

from tests.catalog import contents, definitions
from tests.cluster import PGCRYPTO_PLACES, TEGUH_SQL, add_pgcrypto, send
from tools.build_sql import version
from tools.servers import OWNER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster import Cluster

Connection = psycopg.Connection[tuple[Any, ...]]

TEXT = TEGUH_SQL.read_text(encoding="utf-8")


def installed(dsn: str) -> str:
    """Return the version that a database holds."""
    with psycopg.connect(dsn) as connection:
        ((found,),) = connection.execute("select teguh.version()").fetchall()
    return str(found)


def fill(connection: Connection) -> None:
    """Make two queues with tasks in every state, checkpoints, events and waits."""
    connection.execute("select teguh.create_queue('jobs', '{\"notify\": \"always\"}')")
    connection.execute("select teguh.create_queue('other')")
    connection.execute(
        "select teguh.spawn_task('jobs', 't', jsonb_build_object('n', n),"
        " '{\"max_attempts\": 1}') from generate_series(1, 8) as n"
    )
    connection.execute("select teguh.spawn_task('jobs', 'd', '{}', '{\"delay_seconds\": 3600}')")
    connection.execute("select teguh.emit_event('jobs', 'early', '1')")
    runs = connection.execute(
        "select run_id, task_id from teguh.claim_task('jobs', 'w', 3600, 6)"
    ).fetchall()
    (done, failed, cancelled, waiting, sleeping, _running) = runs
    connection.execute(
        "select teguh.set_task_checkpoint_state('jobs', %s, 'step', '1', %s)", (done[1], done[0])
    )
    connection.execute("select teguh.complete_run('jobs', %s, '\"ok\"')", (done[0],))
    connection.execute("select teguh.fail_run('jobs', %s, '{}')", (failed[0],))
    connection.execute("select teguh.cancel_task('jobs', %s)", (cancelled[1],))
    connection.execute(
        "select teguh.await_event('jobs', %s, %s, 'wait', 'late')", (waiting[1], waiting[0])
    )
    connection.execute(
        "select teguh.schedule_run('jobs', %s, teguh.current_time() + '1 hour')", (sleeping[0],)
    )


def test_the_whole_file_installs_as_one_simple_protocol_string(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        result = connection.pgconn.exec_(TEXT.encode())
        assert result.error_message == b""
    assert installed(empty_dsn) == version()


def test_a_driver_that_has_begun_a_transaction_installs_it_too(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn) as connection:
        connection.execute(TEXT.encode())
    assert installed(empty_dsn) == version()


def test_installing_says_nothing(empty_dsn: str) -> None:
    notices: list[str] = []
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
        connection.execute(TEXT.encode())
        connection.execute(TEXT.encode())
    assert notices == []


def test_sent_twice_nothing_changes(dsn: str, conn: Connection) -> None:
    fill(conn)
    before = definitions(conn), contents(conn)
    send(dsn, TEXT)
    after = definitions(conn), contents(conn)
    assert after[0] == before[0]
    assert after[1] == before[1]


def test_work_goes_on_over_a_second_installation(dsn: str, conn: Connection) -> None:
    fill(conn)
    ((run_id,),) = conn.execute("select run_id from teguh.claim_task('jobs', 'w')").fetchall()
    send(dsn, TEXT)
    conn.execute("select teguh.complete_run('jobs', %s)", (run_id,))
    conn.execute("select teguh.emit_event('jobs', 'late', '2')")
    ((woken,),) = conn.execute(
        "select event_payload from teguh.claim_task('jobs', 'w', 30, 5) where wake_event = 'late'"
    ).fetchall()
    assert woken == 2


def test_a_second_installation_puts_changed_functions_right(dsn: str, conn: Connection) -> None:
    conn.execute("select teguh.create_queue('jobs')")
    before = definitions(conn)
    changed = names_of_functions(conn)
    for name in changed:
        conn.execute(f"alter function {name} reset search_path".encode())
    assert definitions(conn) != before
    send(dsn, TEXT)
    assert definitions(conn) == before


def names_of_functions(connection: Connection) -> list[str]:
    """Return the signatures of the schema's functions, those of queues included."""
    rows = connection.execute(
        "select oid::regprocedure::text from pg_proc"
        " where pronamespace = 'teguh'::regnamespace and prokind = 'f'"
    ).fetchall()
    return [str(row[0]) for row in rows]


def test_a_role_that_owns_only_its_database_installs_and_works(conn: Connection) -> None:
    ((name, is_super),) = conn.execute(
        "select rolname, rolsuper from pg_roles where rolname = current_user"
    ).fetchall()
    assert (name, is_super) == (OWNER, False)
    fill(conn)
    ((state,),) = conn.execute(
        "select distinct state from teguh.t_jobs where task_name = 't' and state = 'completed'"
    ).fetchall()
    assert state == "completed"


def test_a_role_that_may_create_nothing_is_refused_and_leaves_nothing(
    cluster: Cluster, empty_dsn: str
) -> None:
    with psycopg.connect(empty_dsn) as connection:
        database = connection.info.dbname
    with (
        psycopg.connect(cluster.guest_dsn(database), autocommit=True) as guest,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        guest.execute(TEXT.encode())
    with psycopg.connect(empty_dsn) as connection:
        rows = connection.execute("select 1 from pg_namespace where nspname = 'teguh'").fetchall()
    assert rows == []


@pytest.mark.parametrize("found", ["0.0.9", "99.0.0"])
def test_over_another_version_it_stops_and_names_the_way_out(
    dsn: str, conn: Connection, found: str
) -> None:
    conn.execute(
        "create or replace function teguh.version() returns text language sql immutable"
        f" set search_path = pg_catalog, pg_temp as $$ select '{found}'::text $$".encode()
    )
    before = definitions(conn)
    with pytest.raises(psycopg.Error) as caught:
        send(dsn, TEXT)
    assert caught.value.sqlstate == "TG010"
    assert found in str(caught.value.diag.message_primary)
    assert caught.value.diag.message_hint
    assert definitions(conn) == before


def test_the_callers_search_path_is_not_trusted(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute("create schema evil")
        for arguments, result in (
            ("text, variadic text[]", "text"),
            ("text, text", "text"),
            ("text", "text"),
        ):
            connection.execute(
                f"create function evil.format({arguments}) returns {result} language plpgsql"
                " as $$ begin raise exception 'hijacked'; end; $$".encode()
            )
        connection.execute(
            "create function evil.same(text, text) returns boolean language plpgsql"
            " as $$ begin raise exception 'hijacked'; end; $$"
        )
        connection.execute(
            "create operator evil.<> (leftarg = text, rightarg = text, function = evil.same)"
        )
        connection.execute("set search_path = evil, pg_catalog")
        connection.execute(TEXT.encode())
        connection.execute(TEXT.encode())
        connection.execute("select teguh.create_queue('jobs')")
        depends = connection.execute(
            "select classid::regclass, objid from pg_depend as d"
            " join pg_proc as p on p.oid = d.refobjid and d.refclassid = 'pg_proc'::regclass"
            " where p.pronamespace = 'evil'::regnamespace and d.classid = 'pg_rewrite'::regclass"
        ).fetchall()
    assert depends == []


# pgcrypto and the identifiers


@contextmanager
def database_with_pgcrypto(cluster: Cluster, place: str) -> Iterator[str]:
    """Yield a database with pgcrypto in that place, and no teguh."""
    if place != "absent" and not cluster.server.has_extension("pgcrypto"):
        pytest.skip(f"the {cluster.server.kind} server has no pgcrypto")
    name = f"{cluster.prefix}_pgcrypto_{place}"
    dsn = cluster.server.create_database(name, owner=OWNER)
    try:
        add_pgcrypto(cluster.server.dsn(name), place)
        yield dsn
    finally:
        cluster.server.drop_database(name)


def sources_of_randomness(dsn: str) -> set[str]:
    """Return which generators the installed functions name."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            r"""
            select distinct m[1]
            from pg_proc as p
            cross join lateral regexp_matches(
              p.prosrc, '((?:\w+\.)?gen_random_bytes|\muuidv7)\(', 'g'
            ) as m
            where p.pronamespace = 'teguh'::regnamespace
            """
        ).fetchall()
        built_in = connection.info.server_version >= 180000
    found = {str(row[0]) for row in rows}
    assert ("uuidv7" in found) == built_in
    return found - {"uuidv7"}


@pytest.mark.parametrize("place", PGCRYPTO_PLACES)
def test_pgcrypto_is_found_where_it_is(cluster: Cluster, place: str) -> None:
    with database_with_pgcrypto(cluster, place) as dsn:
        send(dsn, TEXT)
        wanted = set() if place == "absent" else {f"{place}.gen_random_bytes"}
        assert sources_of_randomness(dsn) == wanted


def test_a_second_installation_picks_pgcrypto_up(cluster: Cluster) -> None:
    with database_with_pgcrypto(cluster, "absent") as dsn:
        if not cluster.server.has_extension("pgcrypto"):
            pytest.skip(f"the {cluster.server.kind} server has no pgcrypto")
        send(dsn, TEXT)
        with psycopg.connect(dsn) as connection:
            superuser = cluster.server.dsn(connection.info.dbname)
        add_pgcrypto(superuser, "extensions")
        send(dsn, TEXT)
        assert sources_of_randomness(dsn) == {"extensions.gen_random_bytes"}


@pytest.mark.parametrize("place", PGCRYPTO_PLACES)
@pytest.mark.parametrize("clock", ["", "2026-01-02T03:04:05.678Z"])
def test_ids_have_74_random_bits(cluster: Cluster, place: str, clock: str) -> None:
    with database_with_pgcrypto(cluster, place) as dsn:
        send(dsn, TEXT)
        with psycopg.connect(dsn) as connection:
            connection.execute("select set_config('teguh.fake_now', %s, false)", (clock,))
            rows = connection.execute(
                "select teguh.portable_uuidv7() from generate_series(1, 10000)"
            ).fetchall()
            stamps = connection.execute(
                "select distinct teguh.uuidv7_timestamp(x) = %s::timestamptz"
                " from unnest(%s::uuid[]) as x",
                (clock or "infinity", [row[0] for row in rows]),
            ).fetchall()
    assert stamps == [(bool(clock),)]
    values = [row[0].int for row in rows]
    assert len(set(values)) == 10000
    assert {UUID(int=value).version for value in values} == {7}
    ones, zeros = 0, 0
    for value in values:
        ones |= value
        zeros |= ~value
    random_bits = (0xFFF << 64) | ((1 << 62) - 1)
    assert random_bits.bit_count() == 74
    assert ones & zeros & random_bits == random_bits
    # Each bit is set in about half of the ids: 4,700 of 10,000 is six deviations away.
    bits = [bit for bit in range(128) if random_bits >> bit & 1]
    if clock:
        counts = [sum(value >> bit & 1 for value in values) for bit in bits]
        assert min(counts) > 4700
        assert max(counts) < 5300
