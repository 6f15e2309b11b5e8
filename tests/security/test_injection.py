"""Hostile values in every text and JSON argument of every public function, from the catalog."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.cluster import ROOT
from tests.security.support import nested, public_functions, settle, text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.security.support import Connection, Function, Ids

PAGE = ROOT / "docs" / "security.md"

TEXTS = [
    "", " ", "'", "''", "\\", "\\'", "\\' or 1; --", "$$", "$function$", "$1", "%s %I %L %", "%%",
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
    "null", "true", "0", "-1", "1.5", "1e5000", "-1e5000", "1e-5000", '""', '" "',
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

    def trap(self, function: Function) -> None:
        """Trap changes of the catalog, unless they are what the function is for."""
        trapped = function.name not in CHANGES_CATALOG
        self.connection.execute(
            "select set_config('test.trapped', %s, false)", ("on" if trapped else "off",)
        )

    def call(self, function: Function, name: str, value: object) -> psycopg.Error | None:
        """Call with one argument that is hostile."""
        values = function.given(**vars(self.ids)) | {name: value}
        self.calls += 1
        try:
            with self.connection.transaction(force_rollback=True):
                self.connection.execute(function.statement(), values)
        except psycopg.Error as error:
            self._judge(function, name, value, error)
            return error
        return None

    def _judge(self, function: Function, name: str, value: object, error: psycopg.Error) -> None:
        said = error.diag
        state = error.sqlstate or ""
        if CLEAR.fullmatch(state):
            clear = None not in (said.message_primary, said.message_detail, said.message_hint)
        else:
            # an order that a handler gives; a procedure that would commit
            clear = state in BEFORE or (state, function.kind) in {("P0004", "f"), ("2D000", "p")}
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
    values: dict[str, list[Any]] = {
        "text": [None, *TEXTS],
        "text[]": [[], [None], *([value] for value in TEXTS)],
        "jsonb": [None, *VALUES],
        "double precision": [None if value == "null" else value for value in SECONDS],
        "timestamp with time zone": [None if value == "null" else value for value in MOMENTS],
        "integer": [None if value == "null" else value for value in NUMBERS],
        "uuid": [None, "00000000-0000-0000-0000-000000000000", "f" * 32],
        "teguh.job": [None],
    }
    return values[kind]


def test_hostile_arguments_meet_clear_errors_and_change_nothing_else(attack: Attack) -> None:
    for function in public_functions(attack.connection):
        attack.trap(function)
        for name, kind in function.arguments:
            for value in hostile(kind):
                attack.call(function, name, value)
            if kind == "jsonb":
                attack.call(function, name, "9" * 100_000)
                attack.call(function, name, nested(5_000))
                for place, key in enumerate(attack.keys_of(function, name)):
                    for value in VALUES[place % 3 :: 3]:  # the others at other keys
                        attack.call(function, name, f"{{{text(key)}: {value}}}")
    assert attack.unclear == {}
    assert attack.calls > 9_000


def test_so_they_do_where_a_backslash_escapes(attack: Attack) -> None:
    attack.connection.execute(b"set standard_conforming_strings = off")
    attack.connection.execute(b"set escape_string_warning = off")
    for function in public_functions(attack.connection):
        attack.trap(function)
        for name, kind in function.arguments:
            for value in hostile(kind):
                if re.search(r"""['"$\\\\]""", str(value)):
                    attack.call(function, name, value)
    assert attack.unclear == {}
    assert attack.calls > 1_000


# Each `execute` of the sources is of one kind, which docs/security.md explains.
KINDS = {
    "`_call`, `_from`": r"teguh\._(call|from)\(|v_call into",
    "names quoted": r"format\(\s*'[^']*teguh\.%I\(",
    "names looked up":
        r"((pg_catalog\.)?format\(\s*)?'select [^']*"
        r"(teguh\._\w+_(%(1\$)?s\(|'\s*\|\|\s*p_queue_name)|teguh\._%s_%s\(|teguh\.l_%s)",
    "the template": r"teguh\._stamp\(|v_ddl;|p_ddl;|v_drop;|'(lock|drop) table '|replace\(",
    "objects and roles": r"(pg_catalog\.)?format\(\s*'(drop|alter|revoke|grant) |'alter extension",
    "handlers": r"pg_catalog\.format\(\s*'select %s\(\$1\)|teguh\._step_call\(",
    "once, by the installation": r"'select teguh\.version\(\)'|format\(\s*\$sql\$",
}  # fmt: skip


def test_each_statement_that_is_put_together_is_of_a_kind_that_the_page_explains() -> None:
    found = dict.fromkeys(KINDS, 0)
    for path in sorted((ROOT / "sql" / "src").glob("*.sql")):
        source = re.sub(r"--.*", "", path.read_text(encoding="utf-8"))
        for match in re.finditer(r"\bexecute\s+(?!on routine|')(?=\S)|\bexecute\s+(?='\w)", source):
            rest = source[match.end() : match.end() + 400]
            # `_from` comes late in a statement of several lines
            kinds = [
                kind for kind, pattern in KINDS.items()
                if re.match(pattern, rest)
                or (kind == "`_call`, `_from`" and re.match(r"[^;]*?teguh\._(call|from)\(", rest))
            ]  # fmt: skip
            assert kinds, f"{path.name}: {rest[:80]!r} is explained nowhere"
            found[kinds[0]] += 1
    rows = re.findall(
        r"^\| (.+?) \| .+ \| (\d+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert {kind: int(count) for kind, count in rows if kind in KINDS} == found
