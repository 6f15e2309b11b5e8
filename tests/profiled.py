"""A pytest plugin for tools/coverage.py: which statements of the engine the tests run.

The session's server is Debian's with the profiler of plpgsql_check.  Each database tells the
server's log what ran in it before it is dropped, and before something is done to a function that
makes the profiler forget it.  At the end of the session this goes to a file in the directory
TEGUH_COVERAGE: which statements of each function ran, and all that there are.

pgTAP files commit: what the functions of a queue ran cannot be told when the queue is rolled back.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster import Cluster, keep_cluster
from tools.servers import Server, find_build

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

SETTINGS = {
    "plpgsql_check.profiler": "on",
    "plpgsql_check.profiler_max_shared_chunks": "50000",
    "track_functions": "all",
}

# What the superuser puts into the database that all others are copies of.
PROBE = """
create schema measured;
create extension plpgsql_check schema measured;

create function measured.tell()
  returns void
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set log_error_verbosity = terse
  set log_min_error_statement = panic
as $$
declare
  v_profile record;
begin
  for v_profile in
    select
      p.oid,
      p.proname,
      (
        select string_agg(s.stmtid::text, ' ')
        from measured.plpgsql_profiler_function_statements_tb(p.oid) as s
        where s.exec_stmts + s.exec_stmts_err > 0
      ) as ran
    from measured.plpgsql_profiler_functions_all() as f
    join pg_proc as p on p.oid = f.funcoid
    where p.pronamespace = to_regnamespace('teguh')
  loop
    raise log 'coverage % %', v_profile.proname, v_profile.ran;
    perform measured.plpgsql_profiler_reset(v_profile.oid);
  end loop;
end;
$$;

create function measured.tell_calls()
  returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
  set log_error_verbosity = terse
  set log_min_error_statement = panic
as $$
declare
  v_name name;
begin
  for v_name in
    select p.proname
    from pg_proc as p
    where p.pronamespace = to_regnamespace('teguh')
      and pg_stat_get_function_calls(p.oid) > 0
  loop
    raise log 'coverage %', v_name;
  end loop;
end;
$$;

create function measured.tell_before()
  returns event_trigger
  language plpgsql
as $$
begin
  perform measured.tell();
end;
$$;

grant usage on schema measured to public;
create event trigger measured on ddl_command_start
  when tag in ('ALTER FUNCTION', 'DROP FUNCTION', 'DROP SCHEMA', 'GRANT')
  execute function measured.tell_before();
"""

# After a dynamic statement the profiler evaluates its text again, which here needs the schedule.
SPARE_DROPS = """
alter function teguh.drop_schedule set plpgsql_check.profiler = off;
alter function teguh._steer_template set plpgsql_check.profiler = on
"""

OTHERS = """
select count(*)
from pg_stat_get_activity(null) as a
join pg_database as d on d.oid = a.datid and d.datname = current_database()
where a.pid <> pg_backend_pid()
"""

STATEMENTS = """
select p.proname, s.stmtid, s.lineno
from pg_proc as p
join pg_language as l on l.oid = p.prolang and l.lanname = 'plpgsql'
cross join lateral measured.plpgsql_profiler_function_statements_tb(p.oid) as s
where p.pronamespace = 'teguh'::regnamespace and s.stmtname <> 'statement block'
"""

TOLD = re.compile(r"LOG:  coverage (\w+)([ \d]*)$", re.MULTILINE)


class ProfiledCluster(Cluster):
    """A cluster whose databases tell what ran in them."""

    server: Server

    def template(self, kind: str) -> str:
        """Return the name of a template database; a new one has the probe."""
        made = kind not in self._templates
        name = super().template(kind)
        if made and kind == "empty":
            self.server.execute(PROBE, name)
        elif made and kind == "teguh":
            self.server.execute(SPARE_DROPS, name)
        return name

    @contextmanager
    def copy(self, database: str) -> Iterator[str]:
        """Yield the name of a copy that tells what ran in it before it is dropped."""
        with super().copy(database) as name:
            yield name
            self.tell(name)

    def tell(self, database: str) -> None:
        """Have a database tell what ran in it, once its sessions have ended and so told, too."""
        with self.server.connect(database) as connection:
            deadline = time.monotonic() + 1
            while connection.execute(OTHERS).fetchone() != (0,) and time.monotonic() < deadline:
                time.sleep(0.005)
            connection.execute("select measured.tell(), measured.tell_calls()")

    def close(self) -> None:
        """Write down what was told, and drop the templates."""
        teguh = self.template("teguh")
        for name in self._templates.values():
            self.tell(name)
        ran = defaultdict[str, set[int]](set)
        for name, numbers in TOLD.findall(self.server.log()):
            ran[name].update(map(int, numbers.split()))
        ((version,),) = self.server.execute("show server_version")
        measured = {
            "server": version,
            "statements": self.server.execute(STATEMENTS, teguh),
            "ran": {name: sorted(numbers) for name, numbers in ran.items()},
        }
        path = Path(os.environ["TEGUH_COVERAGE"]) / f"{os.getpid()}.json"
        path.write_text(json.dumps(measured), encoding="utf-8")
        super().close()


def pytest_configure(config: pytest.Config) -> None:
    """Take the profiled server as the session's, in each process that runs tests."""
    if not getattr(config.option, "numprocesses", None) or hasattr(config, "workerinput"):
        preloaded = dict(find_build("debian").settings).get("shared_preload_libraries")
        libraries = ", ".join(filter(None, [preloaded, "plpgsql_check"]))
        server = Server("debian", {**SETTINGS, "shared_preload_libraries": libraries})
        keep_cluster(config, server, lambda: ProfiledCluster(server))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let pgTAP files of one transaction end with a commit."""
    for item in items:
        if item.path.suffix == ".sql":
            before, *after = item.path.read_text(encoding="utf-8").split("\nrollback;")
            if len(after) == 1:
                item.path = Path(os.environ["TEGUH_COVERAGE"]) / f"{os.getpid()}_{item.path.name}"
                item.path.write_text(f"{before}\ncommit;{after[0]}", encoding="utf-8")
