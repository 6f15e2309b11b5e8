"""create extension, alter extension update, dump and restore, drop extension."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import teguh
from tests.catalog import definitions
from tests.cluster import RELEASES, TEGUH_SQL, WAYS, install, send
from tests.dumps import dump, restore
from tests.every_state import fill, go_on
from tools.build_extension import files
from tools.build_sql import version
from tools.servers import OWNER

if TYPE_CHECKING:
    from tests.cluster import Cluster

Connection = psycopg.Connection[tuple[Any, ...]]

QUEUES = ["jobs", "a_d", "q" * 55]


def rows(dsn: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    """Run one query on a connection of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query.encode(), values).fetchall()


def members(dsn: str) -> set[str]:
    """Return what belongs to the extension."""
    found = rows(
        dsn,
        "select pg_describe_object(d.classid, d.objid, 0) from pg_depend as d"
        " join pg_extension as e on e.oid = d.refobjid"
        " where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'"
        " and e.extname = 'teguh'",
    )
    return {str(row[0]) for row in found}


def create_queues(dsn: str) -> None:
    """Create the queues, each in a transaction of its own."""
    for queue in QUEUES:
        send(dsn, f"select teguh.create_queue('{queue}')")


def test_every_way_of_installing_gives_the_same_objects(extension_cluster: Cluster) -> None:
    found = {}
    for way in WAYS:
        with extension_cluster.database("empty") as name:
            dsn = extension_cluster.owner_dsn(name)
            install(dsn, way)
            create_queues(dsn)
            with psycopg.connect(dsn) as connection:
                found[way] = definitions(connection)
    for way in WAYS:
        assert found[way].keys() == found["fresh"].keys()
        differ = {k: v for k, v in found[way].items() if found["fresh"][k] != v}
        assert differ == {}, way


def test_a_role_that_owns_only_its_database_creates_the_extension(bare_dsn: str) -> None:
    send(bare_dsn, "create extension teguh")
    assert rows(
        bare_dsn,
        "select r.rolname, r.rolsuper, e.extversion, e.extnamespace::regnamespace::text"
        " from pg_extension as e join pg_roles as r on r.oid = e.extowner"
        " where e.extname = 'teguh'",
    ) == [(OWNER, False, version(), "teguh")]
    owners = rows(
        bare_dsn,
        "select distinct proowner::regrole::text from pg_proc"
        " where pronamespace = 'teguh'::regnamespace",
    )
    assert owners == [(OWNER,)]


def test_queues_do_not_belong_to_the_extension(bare_dsn: str) -> None:
    send(bare_dsn, "create extension teguh")
    before = members(bare_dsn)
    create_queues(bare_dsn)
    assert members(bare_dsn) == before
    send(bare_dsn, "select teguh.drop_queue('jobs')")


@pytest.mark.parametrize("release", RELEASES)
def test_an_update_leaves_the_queues_outside_and_every_task_goes_on(
    bare_dsn: str, release: str
) -> None:
    send(bare_dsn, f"create extension teguh version '{release}'")
    for queue in QUEUES:
        fill(bare_dsn, queue)
    send(bare_dsn, "alter extension teguh update")
    assert rows(bare_dsn, "select extversion, teguh.version() from pg_extension"
                          " where extname = 'teguh'") == [(version(), version())]  # fmt: skip
    assert [name for name in members(bare_dsn) for queue in QUEUES if f"_{queue}" in name] == []
    for queue in QUEUES:
        go_on(bare_dsn, queue)
        send(bare_dsn, f"select teguh.drop_queue('{queue}')")
    send(bare_dsn, "drop extension teguh; drop schema teguh")


def test_queues_and_their_tasks_come_back_with_a_dump(extension_cluster: Cluster) -> None:
    server = extension_cluster.server
    with (
        extension_cluster.database("empty") as one,
        extension_cluster.database("empty") as two,
    ):
        source, target = extension_cluster.owner_dsn(one), extension_cluster.owner_dsn(two)
        send(source, "create extension teguh")
        for queue in QUEUES:
            fill(source, queue)
        dumped = dump(server, source, "--inserts", "--extension=teguh", "--schema=teguh")
        assert "CREATE EXTENSION IF NOT EXISTS teguh" in dumped
        assert "CREATE TABLE teguh.t_jobs" in dumped
        assert "CREATE TABLE teguh.t_template" not in dumped
        # As its owner: an extension belongs to whoever restores it, and its functions with it.
        restore(target, dumped)
        assert members(target) == members(source)
        with psycopg.connect(source) as before, psycopg.connect(target) as after:
            assert definitions(after) == definitions(before)
        assert rows(target, "select queue_name from teguh.list_queues()") == rows(
            source, "select queue_name from teguh.list_queues()"
        )
        for queue in QUEUES:
            go_on(target, queue)


def test_drop_extension_refuses_while_there_are_queues(bare_dsn: str) -> None:
    send(bare_dsn, "create extension teguh; select teguh.create_queue('jobs')")
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        send(bare_dsn, "drop extension teguh")
    send(bare_dsn, "select teguh.drop_queue('jobs')")
    send(bare_dsn, "drop extension teguh")
    assert rows(
        bare_dsn,
        "select relname from pg_class where relnamespace = 'teguh'::regnamespace"
        " union all select proname from pg_proc where pronamespace = 'teguh'::regnamespace",
    ) == []  # fmt: skip
    send(bare_dsn, "drop schema teguh")
    send(bare_dsn, TEGUH_SQL.read_text(encoding="utf-8"))


def test_the_package_leaves_the_update_of_an_extension_to_the_server(bare_dsn: str) -> None:
    send(bare_dsn, f"create extension teguh version '{RELEASES[-1]}'")
    with pytest.raises(teguh.VersionMismatch, match="alter extension teguh update"):
        teguh.upgrade(bare_dsn)
    send(bare_dsn, "alter extension teguh update")
    assert teguh.upgrade(bare_dsn) == version()


def test_the_extension_is_not_created_over_an_installation(bare_dsn: str) -> None:
    send(bare_dsn, TEGUH_SQL.read_text(encoding="utf-8"))
    with psycopg.connect(bare_dsn) as connection:
        before = definitions(connection)
    with pytest.raises(psycopg.Error, match="not a member of extension"):
        send(bare_dsn, "create extension teguh")
    with psycopg.connect(bare_dsn) as connection:
        assert definitions(connection) == before


def test_the_same_file_refreshes_an_extension(bare_dsn: str) -> None:
    send(bare_dsn, "create extension teguh")
    create_queues(bare_dsn)
    with psycopg.connect(bare_dsn) as connection:
        before = definitions(connection)
    belong = members(bare_dsn)
    send(bare_dsn, TEGUH_SQL.read_text(encoding="utf-8"))
    with psycopg.connect(bare_dsn) as connection:
        assert definitions(connection) == before
    assert members(bare_dsn) == belong


# pg_tle: a stand-in with the documented functions that keeps what it is given.
PGTLE = """
create schema pgtle;
create table pgtle.kept (name text, version text, old text, script text, is_default boolean);
create function pgtle.available_extensions(
  out name name, out default_version text, out comment text
) returns setof record language sql as
  $$ select name::name, version, '' from pgtle.kept where is_default $$;
create function pgtle.available_extension_versions(
  out name name, out version text
) returns setof record language sql as
  $$ select name::name, version from pgtle.kept where old is null $$;
create function pgtle.extension_update_paths(
  name name, out source text, out target text, out path text
) returns setof record language sql as
  $$ select old, version, old || '--' || version from pgtle.kept where old is not null $$;
create function pgtle.install_extension(
  name text, version text, description text, ext text, requires text[] default null
) returns boolean language sql as
  $$ insert into pgtle.kept values (name, version, null, ext, true) returning true $$;
create function pgtle.install_extension_version_sql(name text, version text, ext text)
  returns boolean language sql as
  $$ insert into pgtle.kept values (name, version, null, ext, false) returning true $$;
create function pgtle.install_update_path(name text, fromvers text, tovers text, ext text)
  returns boolean language sql as
  $$ insert into pgtle.kept values (name, tovers, fromvers, ext, false) returning true $$;
create function pgtle.set_default_version(name text, version text)
  returns boolean language sql as $$
    update pgtle.kept as k set is_default = k.version = $2 where old is null returning true $$;
"""


def run_kept(dsn: str, query: str, *values: object) -> None:
    """Run a script that the stand-in was given, with what only an extension has taken out."""
    ((script,),) = rows(dsn, query, *values)
    with psycopg.connect(dsn) as connection:
        connection.execute(script.partition("-- Have pg_dump copy")[0].encode())


def test_the_file_for_pg_tle_registers_the_version_and_the_ways_to_it(bare_dsn: str) -> None:
    send(bare_dsn, PGTLE)
    text = files()["teguh-pgtle.sql"]
    send(bare_dsn, text)
    send(bare_dsn, text)
    assert rows(bare_dsn, "select name, version, old, is_default from pgtle.kept order by 3") == [
        *[("teguh", version(), release, False) for release in RELEASES],
        ("teguh", version(), None, True),
    ]
    run_kept(bare_dsn, "select script from pgtle.kept where old is null")
    create_queues(bare_dsn)
    with psycopg.connect(bare_dsn) as connection:
        found = definitions(connection)
    send(bare_dsn, "drop schema teguh cascade")
    send(bare_dsn, TEGUH_SQL.read_text(encoding="utf-8"))
    create_queues(bare_dsn)
    with psycopg.connect(bare_dsn) as connection:
        assert found == definitions(connection)


@pytest.mark.parametrize("release", RELEASES)
def test_the_way_for_pg_tle_upgrades(bare_dsn: str, release: str) -> None:
    install_old = (release, "an older one")
    send(bare_dsn, PGTLE)
    rows(bare_dsn, "select pgtle.install_extension('teguh', %s, '', %s)", *install_old)
    send(bare_dsn, files()["teguh-pgtle.sql"])
    assert rows(bare_dsn, "select version from pgtle.kept where is_default") == [(version(),)]
    send(bare_dsn, (TEGUH_SQL.parents[1] / "tests" / "upgrade" / "released" / release
                    / "teguh.sql").read_text(encoding="utf-8"))  # fmt: skip
    run_kept(bare_dsn, "select script from pgtle.kept where old = %s", release)
    assert rows(bare_dsn, "select teguh.version()") == [(version(),)]
