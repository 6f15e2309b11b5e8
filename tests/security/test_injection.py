"""Hostile values in every text and JSON argument of every public function, from the catalog."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.types.json import set_json_loads

from tests.security.support import (
    Connection,
    Function,
    Ids,
    nested,
    public_functions,
    settle,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXTS = [
    "", " ", "'", "''", "\\", "\\'", "\\' or true; --", "$$", "$function$", "$1", "%s %I %L %", "%%",
    "';drop schema teguh cascade;--", '";drop schema teguh cascade;--', "/*", "*/", "-- ",
    "x; select 1", "template", "_template", "t_template", "own_template", "teguh", "own; select 1",
    "own(null);--", "OWN", "own ", " own", '"own"', "own.x", "pg_catalog.pg_class", "a" * 63,
    "a" * 64, "a" * 1024, "a" * 1025, "\u00e4" * 55, "\u043ewn", "o\u200bwn", "\ufeffown", "own\n",
    "own\r\n--", "\x01\x1b[31m", "\x7f\x9f", "$children", "$message:x", "$Sequence", "null", "NaN",
    "Infinity", "-Infinity", "9" * 5000, "1e400", "-1", "now", "epoch", "infinity", "#2", "step#2",
    "{}", "{own}", "[]", '{"a":', "@daily", "* * * * *", "every 0 seconds", "Europe/../UTC", "*",
    "public.handles", "public.handles(teguh.job)", 'public."handles', "pg_sleep", "a.b.c",
]  # fmt: skip

# As JSON texts, so that what Python could not write is there, too.
VALUES = [
    "null", "true", "0", "-1", "1.5", "1e5000", "-1e5000", "1e-5000", "9" * 100_000, '""', '" "',
    '"x"', '"\'"', '"\\\\"', '"%s %I"', '"$1"', '"NaN"', '"Infinity"', '"-infinity"', '"now"',
    '"template"', '"own; select 1"', '"nowhere"', '"2031-01-01"', '"294277-01-01"',
    '"00000000-0000-0000-0000-000000000000"', '"\\u0001\\u001b"', '"' + "x" * 5000 + '"',
    '"$children"', "[]", "[null]", "[[]]", "[{}]", "[1]", '[""]', '["x", "x"]', '["own; x"]',
    "{}", '{"": 1}', '{"a": 1, "a": 2}', '{"x": null}', '{"queue_name": "template"}',
    '{"queue_name": "own; select 1", "task_name": "x"}', '{"task_name": "\'; --"}',
    '{"task_name": "x", "options": {"on_expired": {"queue_name": "\'"}}}',
    '{"key": "x", "on_conflict": "\'"}', '{"kind": "fixed", "base_seconds": "NaN"}',
    '{"kind": "exponential", "base_seconds": 1e300, "factor": 1e300}', nested(1_000),
]  # fmt: skip
SECONDS = ["NaN", "Infinity", "-Infinity", "1e308", "-1e308", "1e-308", "0", "-0", "null"]
MOMENTS = ["infinity", "-infinity", "294276-12-31", "4713-01-01 bc", "null"]
NUMBERS = ["0", "-1", "2147483647", "-2147483648", "null"]

# teguh's own, and those of PostgreSQL that teguh raises, each with its hint.
CLEAR = re.compile(r"AB00[12]|TG0(0[1-9]|10)|22004|25001|40001|42501|42602|42883|42704|42939|55P03")
# Of a handler's function outside of a handler, of a value that does not fit its type: what
# PostgreSQL says of it is clear, and comes before teguh sees it.
BEFORE = {"22P02", "22007", "22008", "22P05", "22003"}

TRAP = """
create function public.no_ddl() returns event_trigger language plpgsql as $trap$
begin
  if current_setting('test.trapped', true) = 'on' then
    raise exception 'the catalog was to be changed: %', tg_tag using errcode = 'ZZ001';
  end if;
end $trap$;
create event trigger no_ddl on ddl_command_start execute function public.no_ddl();
create function public.not_here() returns trigger language plpgsql as $trap$
begin
  raise exception 'a row of another queue was to be changed: %', tg_table_name
    using errcode = 'ZZ002';
end $trap$;
"""

# What makes or takes rights and queues, whose business is the catalog.
CHANGES_CATALOG = {
    "create_queue", "set_queue_policy", "drop_queue", "grant_access", "revoke_access",
}  # fmt: skip


class Attack:
    """Calls functions with hostile arguments, each in a transaction that is taken back."""

    def __init__(self, connection: Connection, ids: Ids) -> None:
        self.connection = connection
        self.ids = ids
        self.calls = 0
        self.unclear: dict[str, str] = {}
        self.known: set[str] = set()

    def call(self, function: Function, name: str, value: object) -> psycopg.Error | None:
        """Call with one argument that is hostile."""
        values = function.given(**vars(self.ids)) | {name: value}
        self.calls += 1
        trapped = "off" if function.name in CHANGES_CATALOG else "on"
        try:
            with self.connection.transaction(force_rollback=True):
                self.connection.execute(
                    "select set_config('test.trapped', %s, true)", (trapped,)
                )
                self.connection.execute(function.statement(), values)
        except psycopg.Error as error:
            self._judge(function, name, value, error)
            return error
        return None

    def _judge(self, function: Function, name: str, value: object, error: psycopg.Error) -> None:
        said = error.diag
        state = error.sqlstate or ""
        if CLEAR.fullmatch(state):
            clear = said.message_primary and said.message_detail and said.message_hint
        else:
            # an order that a handler gives; a procedure that would commit
            clear = state == "P0004" or (state == "2D000" and function.kind == "p")
            clear = clear or state in BEFORE
        if not clear:
            where = f"{function.name}({name}) {state}"
            self.unclear.setdefault(where, f"{str(value)[:120]}: {str(error)[:400]}")

    def keys_of(self, function: Function, name: str) -> list[str]:
        """Return the keys that a JSON argument may have, as its error tells them."""
        error = self.call(function, name, '{"?": 1}')
        found = re.match(r"Known keys: (.*)\.$", (error and error.diag.message_detail) or "")
        return found[1].split(", ") if found else []


@pytest.fixture
def attack(superuser_dsn: str) -> Iterator[Attack]:
    """An attack on a database whose catalog and other queues are trapped."""
    with psycopg.connect(superuser_dsn, autocommit=True) as connection:
        ids = settle(connection)
        connection.execute(TRAP.encode())
        for table, shared in connection.execute(
            "select relname, relname !~ '_other$' from pg_class"
            " where relnamespace = 'teguh'::regnamespace and relkind = 'r' and ("
            "  relname ~ '_other$' or exists (select from pg_attribute as a"
            "   where a.attrelid = pg_class.oid and a.attname = 'queue_name'"
            "   and relname !~ '_template$'))"
        ).fetchall():
            for deed, row in (("insert", "new"), ("update", "new"), ("delete", "old")):
                when = f"when ({row}.queue_name = 'other')" if shared else ""
                connection.execute(
                    f"create trigger not_here_{deed} before {deed} on teguh.{table}"
                    f" for each row {when} execute function public.not_here()".encode()
                )
        connection.execute("set teguh.steps = '{}'")
        yield Attack(connection, ids)


def hostile(kind: str) -> list[Any]:
    """Return hostile values of a type."""
    return {
        "text": [None, *TEXTS],
        "text[]": [[], [None], *([value] for value in TEXTS)],
        "jsonb": [None, *VALUES],
        "double precision": [None if value == "null" else value for value in SECONDS],
        "timestamp with time zone": [None if value == "null" else value for value in MOMENTS],
        "integer": [None if value == "null" else value for value in NUMBERS],
        "uuid": [None, "00000000-0000-0000-0000-000000000000", "f" * 32],
        "teguh.job": [None],
    }[kind]


@pytest.mark.parametrize("strings", ["on", "off"])
def test_hostile_arguments_meet_clear_errors_and_change_nothing_else(
    attack: Attack, strings: str
) -> None:
    attack.connection.execute(f"set standard_conforming_strings = {strings}".encode())
    attack.connection.execute(b"set escape_string_warning = off")
    for function in public_functions(attack.connection):
        for name, kind in function.arguments:
            for value in hostile(kind):
                attack.call(function, name, value)
            if kind == "jsonb":
                for key in attack.keys_of(function, name):
                    for value in VALUES:
                        attack.call(function, name, f"{{{text(key)}: {value}}}")
    assert attack.unclear == {}
    assert attack.calls > 10_000
