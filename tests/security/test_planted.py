"""What strangers and sessions plant beside teguh is never called.

Planted are a function for each of pg_catalog that teguh's sources name, an operator for each of
pg_catalog, types with the names of its types, and temporary tables with the names of teguh's and
the catalog's.  What is called counts in a sequence, which no rollback takes back.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest

import teguh
from tests.cluster import ROOT, TEGUH_SQL, released_sql, send
from tests.test_access import allowed
from tools.build_extension import files as extension_files
from tools.build_sql import version
from tools.servers import GUEST, OWNER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster import Cluster
    from tests.security.support import Connection

PLANT = """
create sequence public.caught;
grant all on sequence public.caught to public;

do $plant$
declare
  v_one record;
begin
  for v_one in
    select
      format(
        'create function public.%I(%s) returns %s language plpgsql as %L', p.proname,
        pg_get_function_identity_arguments(p.oid), pg_get_function_result(p.oid),
        'begin perform pg_catalog.nextval(''public.caught''); return'
        || case when p.proretset or p.prorettype = 'void'::regtype then '' else ' null' end
        || '; end'
      ) as ddl
    from pg_proc as p
    where p.pronamespace = 'pg_catalog'::regnamespace
      and p.proname = any (current_setting('test.names')::text[])
      and p.prokind = 'f'
    union all
    select format(
      'create function public.planted_%1$s(a %2$s, b %3$s) returns %4$s language plpgsql as %5$L;'
      'create operator public.%6$s'
      ' (leftarg = %2$s, rightarg = %3$s, function = public.planted_%1$s)',
      o.oid, o.oprleft::regtype, o.oprright::regtype, o.oprresult::regtype,
      'begin perform pg_catalog.nextval(''public.caught''); return null; end', o.oprname
    )
    from pg_operator as o
    where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprkind = 'b'
  loop
    begin
      execute v_one.ddl;
    exception
      when others then null;  -- no PL/pgSQL function can have those arguments
    end;
  end loop;
end;
$plant$;

create function public.counted() returns boolean language plpgsql as $$
begin perform pg_catalog.nextval('public.caught'); return false; end $$;
"""
TYPES = (
    "text", "jsonb", "int4", "int8", "bool", "uuid", "timestamptz", "interval", "float8", "name",
    "oid", "regclass", "regprocedure", "regtype", "xid8", "numeric", "record",
)  # fmt: skip
DOMAIN = 'create domain {}."{}" as pg_catalog.int4 check (public.counted())'
CATALOG = (
    "pg_class", "pg_proc", "pg_namespace", "pg_roles", "pg_extension", "pg_sequences", "pg_depend",
    "pg_constraint", "pg_index", "pg_attribute", "pg_attrdef", "pg_type", "pg_locks",
    "pg_available_extensions",
)  # fmt: skip
HANDLER = """
create function public.handles(job teguh.job) returns jsonb
  language plpgsql set search_path = pg_catalog as $$
begin
  perform teguh.step(job, 'charge', 'public.charges');
  perform teguh.sleep_for(job, 'nap', 0);
  return teguh.children(job, 'pair', '[{"task_name": "simple"}]', 'all', 0);
end $$;
create function public.charges(argument jsonb) returns jsonb
  language sql set search_path = pg_catalog as 'select null::jsonb';
create function public.simple(job teguh.job) returns jsonb
  language sql set search_path = pg_catalog as 'select null::jsonb';
"""
RUN = "(select r.run_id from teguh.claim_task('walk', 'w', 60) as r)"
WALK = [
    "select teguh.create_queue('walk', '{\"max_pending\": 50}')",
    "select teguh.set_limit('walk', 'key', '*', '{\"max_running\": 5}')",
    "select teguh.register_handler('walk', 'order', 'public.handles')",
    "select teguh.register_handler('walk', 'simple', 'public.simple')",
    (
        'select * from teguh.spawn_task(\'walk\', \'order\', \'{}\', \'{"tags": ["a"], "key": "k",'
        ' "ttl_seconds": 60, "unique": {"key": "u"}, "on_expired": {"task_name": "late"},'
        ' "sequence": [{"task_name": "simple", "compensate": {"task_name": "simple"}}]}\')'
    ),
    "select * from teguh.spawn_task('walk', 'simple', '{}', '{\"delay_seconds\": 0.01}')",
    "select teguh.create_schedule('walks', 'walk', 'simple', 'every second')",
    "select * from teguh.trigger_schedule('walks')",
    "call teguh.work('walk')",
    "call teguh.work('walk')",
    "select * from teguh.spawn_task('walk', 'by hand', '{}', '{\"max_attempts\": 2}')",
    f"select teguh.set_attributes('walk', {RUN}, '{{\"a\": 1}}')",
    'select * from teguh.list_tasks(\'walk\', \'{"attributes": {"a": 1}, "tag": "a"}\')',
    "set teguh.fake_now = '2040-01-01'",
    "select teguh.ticker()",
    f"select teguh.fail_run('walk', {RUN}, '{{}}', '2039-01-01')",
    f"select teguh.complete_run('walk', {RUN})",
    "select teguh.ticker('walk')",
    "select * from teguh.cleanup_all_queues()",
    "reset teguh.fake_now",
    "select teguh.rebuild_dispatch('walk')",
    "select teguh.drop_queue('walk')",
]


def caught(connection: Connection) -> int:
    """Return how many calls of what is planted were counted."""
    ((last, called),) = connection.execute(
        "select last_value, is_called from public.caught"
    ).fetchall()
    return int(last) if called else 0


@contextmanager
def planted(dsn: str) -> Iterator[Connection]:
    """Plant as a role that may create in public; yield a superuser whom all of it is in the way."""
    source = "".join(path.read_text() for path in (ROOT / "sql" / "src").glob("*.sql"))
    names = ",".join(sorted(set(re.findall(r"\b([a-z_][a-z0-9_]*)\(", source))))
    with psycopg.connect(dsn, autocommit=True) as superuser:
        superuser.execute(f"grant create on schema public to {GUEST}".encode())
        superuser.execute(f"set role {GUEST}".encode())
        superuser.execute("select set_config('test.names', %s, false)", (f"{{{names}}}",))
        superuser.execute(PLANT.encode())
        for name in TYPES:
            superuser.execute(DOMAIN.format("public", name).encode())
        superuser.execute(b"reset role")
        ((functions, operators),) = superuser.execute(
            "select count(*) filter (where proname !~ '^planted_'),"
            " count(*) filter (where proname ~ '^planted_')"
            " from pg_proc where pronamespace = 'public'::regnamespace"
        ).fetchall()
        assert functions > 100
        assert operators > 600
        ((database,),) = superuser.execute("select current_database()").fetchall()
        superuser.execute(
            f'alter database "{database}" set search_path = public, pg_catalog'.encode()
        )
        superuser.execute(b"set search_path = public, pg_catalog")
        assert superuser.execute(b"select length('a') + 1, now() > now()").fetchall()
        assert caught(superuser) > 1  # the traps are set
        superuser.execute(b"alter sequence public.caught restart")
        yield superuser


def shadow(connection: Connection) -> None:
    """Let temporary tables and types of this session stand before teguh's and the catalog's."""
    tables = connection.execute(
        b"select c.relname from pg_catalog.pg_class as c"
        b" where c.relnamespace operator(pg_catalog.=) 'teguh'::pg_catalog.regnamespace"
        b" and c.relkind operator(pg_catalog.=) 'r'"
    ).fetchall()
    for name in (*CATALOG, *(str(table) for (table,) in tables)):
        connection.execute(f'create temp table "{name}" (queue_name pg_catalog.text)'.encode())
    for name in TYPES:
        connection.execute(DOMAIN.format("pg_temp", name).encode())


@pytest.fixture
def hostile(conn: Connection, superuser_dsn: str) -> Iterator[Connection]:
    """A session of the owner in a database with queues, where everything is planted."""
    conn.execute(HANDLER.encode())
    for name in ("own", "brief"):
        conn.execute("select teguh.create_queue(%s)", (name,))
    conn.execute("select teguh.create_schedule('of own', 'own', 't', '@daily')")
    with planted(superuser_dsn), psycopg.connect(conn.info.dsn, autocommit=True) as owner:
        yield owner


@pytest.mark.parametrize("temporary", [False, True])
def test_nothing_planted_is_called_by_any_function_nor_along_a_tasks_way(
    hostile: Connection, temporary: bool
) -> None:
    if temporary:
        shadow(hostile)
    for statement in WALK:
        hostile.execute(statement.encode())
    assert caught(hostile) == 0
    allowed(hostile, "own")
    assert caught(hostile) == 0


def test_nothing_planted_is_called_by_installing_upgrading_and_removing(
    cluster: Cluster, empty_dsn: str
) -> None:
    with psycopg.connect(empty_dsn) as owner:
        database = owner.info.dbname
    with planted(cluster.server.dsn(database)) as superuser:
        dsn = cluster.server.dsn(database, OWNER)
        send(dsn, released_sql("0.1.0"))
        send(dsn, "select teguh.create_queue('old')")
        teguh.upgrade(dsn)
        send(dsn, TEGUH_SQL.read_text(encoding="utf-8"))
        send(dsn, "select teguh.drop_queue('old')")
        send(dsn, (ROOT / "sql" / "uninstall.sql").read_text(encoding="utf-8"))
        send(dsn, TEGUH_SQL.read_text(encoding="utf-8"))
        assert caught(superuser) == 0


def test_a_pgcrypto_that_a_stranger_could_replace_is_not_used(
    cluster: Cluster, empty_dsn: str
) -> None:
    if not cluster.server.has_extension("pgcrypto"):
        pytest.skip("the server has no pgcrypto")
    with psycopg.connect(empty_dsn) as owner:
        superuser_dsn = cluster.server.dsn(owner.info.dbname)
    random_bytes = "select prosrc ~ 'gen_random_bytes' from pg_proc where proname = '_random_bytes'"
    with psycopg.connect(superuser_dsn, autocommit=True) as superuser:
        superuser.execute(b"drop extension if exists pgcrypto")
        superuser.execute(f"create schema strange authorization {GUEST}".encode())
        superuser.execute(b"create extension pgcrypto schema strange")
        for owner_, used in ((GUEST, False), ("postgres", True)):
            superuser.execute(f"alter schema strange owner to {owner_}".encode())
            send(empty_dsn, TEGUH_SQL.read_text(encoding="utf-8"))
            assert superuser.execute(random_bytes.encode()).fetchall() == [(used,)]


def test_an_extension_is_not_made_in_a_strangers_schema() -> None:
    script = extension_files()[f"teguh--{version()}.sql"]
    guard, _, rest = script.partition("create or replace function teguh.version()")
    assert "belongs to" in guard
    assert rest


def test_a_steps_function_is_not_replaced_by_one_with_other_arguments(conn: Connection) -> None:
    conn.execute(HANDLER.encode())
    conn.execute("select teguh.create_queue('q')")
    conn.execute("select teguh.register_handler('q', '*', 'public.handles')")
    conn.execute(
        b"create function public.charges(job teguh.job, argument jsonb) returns jsonb"
        b" language sql as 'select null::jsonb'"
    )
    conn.execute("select teguh.spawn_task('q', 't', '{}', '{\"max_attempts\": 1}')")
    conn.execute("call teguh.work('q')")
    assert conn.execute(
        "select state, failure_reason ->> 'name' from teguh.list_tasks('q')"
    ).fetchall() == [("failed", "TG005")]
