"""Who may execute and touch what, by the catalog, as docs/security.md says it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.cluster import ROOT, TEGUH_SQL, send
from tools.servers import GUEST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.security.support import Connection

PAGE = ROOT / "docs" / "security.md"
# Columns of the page: access, and to which queues.
ROLES = (
    ("client", "{own}"), ("worker", "{own}"), ("observer", "{own}"), ("admin", "{own}"),
    ("admin", None),
)  # fmt: skip


@pytest.fixture
def guest(conn: Connection, guest_dsn: str) -> Iterator[Connection]:
    """A role without rights, beside two queues."""
    for queue in ("own", "other"):
        conn.execute("select teguh.create_queue(%s)", (queue,))
    with psycopg.connect(guest_dsn, autocommit=True) as connection:
        yield connection


def executable(guest: Connection, pattern: str) -> set[str]:
    """Return the functions of these names that a role may execute."""
    rows = guest.execute(
        "select proname from pg_proc where pronamespace = 'teguh'::regnamespace"
        " and proname ~ %s and has_function_privilege(oid, 'execute')",
        (pattern,),
    ).fetchall()
    return {str(name) for (name,) in rows}


def matrix(conn: Connection, guest: Connection) -> list[str]:
    """Return the rows of the page's table: who may execute what."""
    found: dict[str, list[bool]] = {name: [] for name in executable(conn, "^[^_]")}
    for access, queues in ROLES:
        conn.execute("select teguh.grant_access(%s, %s, %s::text[])", (GUEST, access, queues))
        allowed = executable(guest, "^[^_]")
        for name, marks in found.items():
            marks.append(name in allowed)
        conn.execute("select teguh.revoke_access(%s)", (GUEST,))
    groups: dict[tuple[bool, ...], list[str]] = {}
    for name, marks in sorted(found.items()):
        groups.setdefault(tuple(marks), []).append(f"`{name}`")
    return [
        f"| {' | '.join('x' if mark else '' for mark in marks)} | {', '.join(names)} |"
        for marks, names in sorted(groups.items(), reverse=True)
    ]


def test_the_page_says_who_may_execute_what(conn: Connection, guest: Connection) -> None:
    rows = re.findall(r"^\|(?: x? \|){5} `.*\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == matrix(conn, guest)


@pytest.mark.parametrize(("access", "queues"), ROLES)
def test_no_role_may_touch_a_relation_or_make_anything_in_the_schema(
    conn: Connection, guest: Connection, access: str, queues: str | None
) -> None:
    conn.execute("select teguh.grant_access(%s, %s, %s::text[])", (GUEST, access, queues))
    rows = guest.execute(
        """
        select c.relname
        from pg_class as c
        where c.relnamespace = 'teguh'::regnamespace
          and case
            when c.relkind = 'S' then has_sequence_privilege(c.oid, 'usage, select, update')
            when c.relkind in ('r', 'p', 'v', 'm', 'f') then
              has_table_privilege(
                c.oid, 'select, insert, update, delete, truncate, references, trigger'
              )
              or has_any_column_privilege(c.oid, 'select, insert, update, references')
          end
        union all
        select 'the schema' where has_schema_privilege('teguh', 'create')
        """
    ).fetchall()
    assert rows == []


@pytest.mark.parametrize(("access", "queues"), ROLES)
def test_what_has_all_rights_is_for_the_queues_and_the_access_that_it_is_listed_for(
    conn: Connection, guest: Connection, access: str, queues: str | None
) -> None:
    conn.execute("select teguh.grant_access(%s, %s, %s::text[])", (GUEST, access, queues))
    definers = {
        str(name)
        for (name,) in guest.execute(
            "select proname from pg_proc where pronamespace = 'teguh'::regnamespace and prosecdef"
            " and has_function_privilege(oid, 'execute')"
        ).fetchall()
    }
    doors = {
        f"_{verb}_{queue}"
        for queue in (("own", "other") if queues is None else ("own",))
        for (verb,) in conn.execute(
            "select unnest(verbs) from teguh._rights where %s = any (access)", (access,)
        ).fetchall()
    }
    public = {
        str(name)
        for (name,) in conn.execute(
            "select routine from teguh._rights where %s = any (access) and (not everywhere or %s)",
            (access, queues is None),
        ).fetchall()
    }
    helpers = {
        "_overall_usage", "_policy", "_recorded_run", "_recorded_runs", "_recorded_tallies",
        "_scheduled_in", "_set_ticked", "_xmin_age",
    }  # fmt: skip
    assert {name for name in definers if name not in public} - helpers == doors


def test_a_client_that_may_only_call_functions_cannot_run_a_statement(
    conn: Connection, guest: Connection
) -> None:
    """As through PostgREST: helpers execute no text that they are given."""
    conn.execute("select teguh.grant_access(%s, 'client', '{own}')", (GUEST,))
    refused = {
        "_advance", "_each_queue", "_leave_extension", "_obey", "_run_pass", "_stamp_function",
        "_stamp_queues", "_stamp_relation",
    }  # fmt: skip
    assert executable(conn, "^_") >= refused
    assert executable(guest, "^_") & refused == set()
    text = "own(null); create temp table injected (a int); --"
    for call, values in (
        ("teguh._birth(%s, null)", (text,)),
        ("teguh._abide(%s, '{\"max_pending\": 1}', true, true)", (text,)),
        ("teguh._abide(%s, '{\"max_pending\": 1}', false, true)", (text,)),
        ("teguh._call(%s, 'own', 0)", (text,)),
        ("teguh._from(%s, 'own')", (text,)),
        ("teguh._dismiss(array[%s], null, true)", (text,)),
        ("teguh._answer(jsonb_build_object('queue_name', %s::text), 'completed')", (text,)),
        ("teguh._order_queues(array[%s], 'oldest')", (text,)),
        ("teguh._remember_names(array[%s], null)", (text,)),
    ):
        said = told(guest, f"select ({call})::text", values)
        known = {"42883", "42501", "42601", "42602", "TG001"}
        assert said in known or not said or '"' in said, call  # refused, not done, or quoted
    assert guest.execute("select to_regclass('pg_temp.injected')").fetchall() == [(None,)]


def told(connection: Connection, query: str, values: tuple[object, ...]) -> str | None:
    """Return the value of a query, or the SQLSTATE of its error."""
    try:
        ((value,),) = connection.execute(query.encode(), values).fetchall()
    except psycopg.Error as error:
        return error.sqlstate
    return None if value is None else str(value)


def test_who_has_all_access_cannot_take_the_owners(conn: Connection, guest: Connection) -> None:
    conn.execute("select teguh.grant_access(%s, 'admin')", (GUEST,))
    owner = conn.info.user
    with pytest.raises(psycopg.Error) as caught:
        guest.execute("select teguh.revoke_access(%s)", (owner,))
    assert (caught.value.sqlstate, bool(caught.value.diag.message_hint)) == ("TG004", True)
    guest.execute("select teguh.create_queue('after')")


def test_the_owners_default_privileges_give_public_no_function(
    conn: Connection, guest: Connection, dsn: str
) -> None:
    conn.execute("alter default privileges grant execute on functions to public")
    send(dsn, TEGUH_SQL.read_text(encoding="utf-8"))
    conn.execute("select teguh.create_queue('new')")
    conn.execute(f"grant usage on schema teguh to {GUEST}".encode())
    assert executable(guest, ".") == set()
