"""Check the types, columns and variables in teguh's function bodies with plpgsql_check.

The extension is Debian's (postgresql-15-plpgsql-check); PyPI and npm have none.

usage: python tools/plpgsql_check.py      exit 1 if something was found, or the extension is missing
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.servers import Server, ServerError  # noqa: E402 - after the path is set

DATABASE = "checked"
PROBLEMS = r"""
select p.oid::regprocedure::text, c.lineno, c.level, c.sqlstate, c.message, c.detail, c.hint
from pg_catalog.pg_proc as p
join pg_catalog.pg_language as l on l.oid = p.prolang and l.lanname = 'plpgsql'
cross join lateral plpgsql_check_function_tb(
  p.oid, fatal_errors => false, extra_warnings => true
) as c
where p.pronamespace = 'teguh'::regnamespace
  -- What a dispatcher's dynamic statement returns, nobody can know.
  and c.detail is distinct from 'cannot to determine result of dynamic SQL'
  -- An array variable that starts as '{}'.
  and not (c.sqlstate = '42804' and c.detail ~ '^cast "text" value to ".*\[\]" type$')
order by 1, 2
"""
COUNT = """
select count(*)
from pg_catalog.pg_proc as p
join pg_catalog.pg_language as l on l.oid = p.prolang and l.lanname = 'plpgsql'
where p.pronamespace = 'teguh'::regnamespace
"""


def main() -> int:
    """Install teguh on Debian's server and check every PL/pgSQL function."""
    try:
        with Server("debian", {"cron.database_name": DATABASE}) as server:
            if not server.has_extension("plpgsql_check"):
                raise ServerError(
                    "plpgsql_check is missing: apt-get install postgresql-15-plpgsql-check"
                )
            server.create_database(DATABASE)
            server.execute("create extension plpgsql_check", DATABASE)
            if server.has_extension("pg_cron"):
                server.execute("create extension pg_cron", DATABASE)
            server.execute((ROOT / "sql" / "teguh.sql").read_text(encoding="utf-8"), DATABASE)
            rows = server.execute(PROBLEMS, DATABASE)
            ((count,),) = server.execute(COUNT, DATABASE)
    except ServerError as error:
        print(f"plpgsql-check: {error}", file=sys.stderr)
        return 1
    for name, line, level, state, message, detail, hint in rows:
        print(f"{name}:{line or ''}: {level} {state} {message}")
        for more in (detail, hint):
            if more:
                print(f"    {more}")
    print(f"plpgsql-check: {count} functions, {len(rows)} problems")
    return int(bool(rows))


if __name__ == "__main__":
    sys.exit(main())
