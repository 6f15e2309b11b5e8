"""What an upgrade does by itself, shown on a version that is made up.

The checkout is copied, its version raised, and its modules changed in every way that the mechanism
promises to follow without a word in the delta.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.catalog import definitions
from tests.cluster import ROOT, TEGUH_SQL, send
from tools import build_extension, build_sql
from tools.build_sql import RELEASED, UPGRADES, version

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster import Cluster

QUEUES = ["jobs", "a_d", "q" * 55]
NEXT = "0.99.0"

TABLE = """\
-- Notes.
create table if not exists teguh.y_template (
  task_id uuid not null,
  note    text not null,
  constraint ykey_template primary key (task_id),
  constraint ylong_template check (length(note) > 1)
)
with (fillfactor = 50);

create index if not exists ynote_template
  on teguh.y_template (note);

create sequence if not exists teguh.notes_template;

comment on table teguh.y_template is
  'Notes.';
comment on table teguh.e_template is
  'Events, with another comment.';

create table if not exists teguh.noticed (
  what text not null,
  constraint noticed_pkey primary key (what)
);

comment on table teguh.noticed is
  'A new registry.';

-- A function of the queue over its new table.
create or replace function teguh._jot_template(p_note teguh.y_template)
  returns setof teguh.y_template
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query select n.* from teguh.y_template as n;
end;
$$;
"""


@pytest.fixture
def next_version(tmp_path: Path) -> Path:
    """A checkout of a later version, which comes after the present one."""
    shutil.copytree(ROOT / "sql", tmp_path / "sql")
    meta = json.loads((ROOT / "META.json").read_text())
    (tmp_path / "META.json").write_text(json.dumps({**meta, "version": NEXT}))
    released = tmp_path / RELEASED / version()
    released.mkdir(parents=True)
    shutil.copy(TEGUH_SQL, released)
    (tmp_path / UPGRADES / "src" / f"{version()}--{NEXT}.sql").write_text(
        "select teguh._each_queue('alter table teguh.e_template add column source text');\n"
        "select teguh._each_queue('alter table teguh.r_template drop column claimed_by');\n"
    )
    return tmp_path


def change(root: Path, module: str, changes: str) -> None:
    """Replace lines of a module: blocks of `- old` and `+ new`, each of which must be there."""
    path = root / "sql" / "src" / module
    text = path.read_text()
    for block in changes.strip("\n").split("\n\n"):
        lines = block.split("\n")
        old = "".join(f"{line[2:]}\n" for line in lines if line[0] in " -")
        new = "".join(f"{line[2:]}\n" for line in lines if line[0] in " +")
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)


# A column at the end, and one gone from the middle.
TABLES = """
    payload    jsonb,
+   source     text,
    constraint ekey_template primary key (event_name)

    state            text        not null,
-   claimed_by       text,
    started_at       timestamptz,
    lease_expires_at timestamptz,
    finished_at      timestamptz not null,
"""

# An attribute in the middle of a type.
TYPES = """
      params          jsonb,
+     extra           text,
"""

# Another result, other arguments, another comment, and none.
CONTROL = """
      state             text,
+     said              text,

      v_task.state,
+     'so',
      v_task.attempt,

  create or replace function teguh._renew_template(
    p_task         teguh.t_template,
+   p_more         text,
    p_max_attempts integer,

  comment on function teguh.cancel_task(text, uuid, text) is
+   'Something else. '

- comment on function teguh.retry_task(text, uuid, jsonb) is
+ comment on function teguh.cancel_task(text, uuid, text) is
"""

# An argument that has no default any more.
EVENTS = """
-   p_payload    jsonb default null
+   p_payload    jsonb
"""


def change_everything(root: Path) -> None:
    """Change what may change between versions."""
    change(root, "20_tables.sql", TABLES)
    change(root, "12_types.sql", TYPES)
    change(root, "44_control.sql", CONTROL)
    change(root, "43_events.sql", EVENTS)
    (root / "sql" / "src" / "22_notes.sql").write_text(TABLE)
    # and one renamed, of both segments
    for path in (root / "sql" / "src").glob("*.sql"):
        path.write_text(path.read_text().replace("_trim0_template", "_shorten0_template"))


@pytest.fixture
def later(next_version: Path) -> Path:
    """The later version, built."""
    change_everything(next_version)
    assert build_sql.main([], next_version) == 0
    return next_version


def queues_of(dsn: str) -> None:
    """Create the queues."""
    for queue in QUEUES:
        send(dsn, f"select teguh.create_queue('{queue}')")


def test_an_upgrade_follows_every_change_of_the_modules_by_itself(
    cluster: Cluster, empty_dsn: str, later: Path
) -> None:
    send(empty_dsn, TEGUH_SQL.read_text(encoding="utf-8"))
    queues_of(empty_dsn)
    script = later / UPGRADES / f"teguh--{version()}--{NEXT}.sql"
    send(empty_dsn, script.read_text(encoding="utf-8"))
    with cluster.database("empty") as name:
        other = cluster.owner_dsn(name)
        send(other, (later / "sql" / "teguh.sql").read_text(encoding="utf-8"))
        queues_of(other)
        with psycopg.connect(empty_dsn) as one, psycopg.connect(other) as two:
            found, wanted = definitions(one), definitions(two)
    assert found.keys() == wanted.keys()
    assert {k: v for k, v in found.items() if wanted[k] != v} == {}
    assert ("relation", f"y_{QUEUES[0]}") in found
    assert ("relation", f"notes_{QUEUES[2]}") in found


def test_what_somebody_built_upon_a_changed_function_stops_the_upgrade_whole(
    empty_dsn: str, later: Path
) -> None:
    send(empty_dsn, TEGUH_SQL.read_text(encoding="utf-8"))
    queues_of(empty_dsn)
    send(
        empty_dsn,
        "create view public.results as select r.state"
        " from teguh.get_task_result('jobs', gen_random_uuid()) as r",
    )
    with psycopg.connect(empty_dsn) as connection:
        before = definitions(connection)
    script = later / UPGRADES / f"teguh--{version()}--{NEXT}.sql"
    with pytest.raises(psycopg.errors.DependentObjectsStillExist, match=r"view public\.results"):
        send(empty_dsn, script.read_text(encoding="utf-8"))
    with psycopg.connect(empty_dsn) as connection:
        assert definitions(connection) == before


def test_a_script_of_the_extension_is_that_of_the_upgrade(later: Path) -> None:
    plain = (later / UPGRADES / f"teguh--{version()}--{NEXT}.sql").read_text(encoding="utf-8")
    script = build_extension.files(later)[f"teguh--{version()}--{NEXT}.sql"]
    body = plain.partition("\nbegin;\n\n")[2].removesuffix("\ncommit;\n")
    assert body in script
    assert "\nbegin;\n" not in script
    assert "\ncommit;\n" not in script
