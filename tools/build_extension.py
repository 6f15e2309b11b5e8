"""Build the files of the PostgreSQL extension from the committed SQL.

usage: python tools/build_extension.py [DIRECTORY]      default: build/extension

teguh.control, teguh--VERSION.sql, teguh--A--B.sql
    What `create extension teguh` and `alter extension teguh update` read: the same statements as
    sql/teguh.sql and sql/upgrade/*.sql, without transaction and schema, which come with the
    command, and with the registries' rows marked as data that pg_dump copies.
teguh-pgtle.sql
    The same for pg_tle, where no file can be put on the server: it registers the scripts in a
    database, and `create extension teguh` works there from then on.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.build_sql import RELEASED, SETTINGS, UPGRADES, version  # noqa: E402 - after the path

# Not `trusted`: the bootstrap superuser would own the functions, of which many run with the rights
# of their owner.  Any role that may create a schema can create the extension anyway.
CONTROL = """\
comment = '{abstract}'
default_version = '{version}'
schema = teguh
relocatable = false
superuser = false
"""
# Where what opens a teguh.sql ends: transaction, guards, schema.
SECOND_MODULE = "\n-- sql/src/01_version.sql\n"
SCHEMA = "create schema if not exists teguh;\n"
# What refuses a schema that somebody else has made.
GUARD = re.compile(r"-- A schema of that name.*?\n\$\$;\n", re.DOTALL)
NO_PSQL = r'\echo Use "{command}" to load this file. \quit'
PGTLE = """\
-- Register teguh {version} with pg_tle: run this in the database, as a member of pgtle_admin, then
-- create extension teguh, or alter extension teguh update.
do $_register_$
declare
  v_version text := {version_literal};
begin
  if not exists (select from pgtle.available_extensions() as e where e.name = 'teguh') then
    perform pgtle.install_extension('teguh', v_version, {abstract}, $_pgtle_${fresh}$_pgtle_$);
  elsif not exists (
    select
    from pgtle.available_extension_versions() as e
    where e.name = 'teguh' and e.version = v_version
  ) then
    perform pgtle.install_extension_version_sql('teguh', v_version, $_pgtle_${fresh}$_pgtle_$);
  end if;
end;
$_register_$;

{paths}
select pgtle.set_default_version('teguh', {version_literal});
"""
PGTLE_PATH = """\
do $_register_$
begin
  if not exists (
    select
    from pgtle.extension_update_paths('teguh') as p
    where p.source = {old} and p.target = {new} and p.path = {old} || '--' || {new}
  ) then
    perform pgtle.install_update_path('teguh', {old}, {new}, $_pgtle_${script}$_pgtle_$);
  end if;
end;
$_register_$;
"""


def meta(root: Path = ROOT) -> dict[str, object]:
    """Return META.json."""
    found: dict[str, object] = json.loads((root / "META.json").read_text(encoding="utf-8"))
    return found


def literal(text: object) -> str:
    """Return a string as SQL."""
    return "'" + str(text).replace("'", "''") + "'"


def fresh(text: str, root: Path = ROOT) -> str:
    """Return a teguh.sql as the script of an extension, without its schema."""
    _, found, body = text.partition(SECOND_MODULE)
    if not found:  # 0.1.0 has all of it in the first
        _, found, body = text.partition(SCHEMA)
    if not found:
        raise ValueError("what opens teguh.sql does not end where it was expected")
    guard = GUARD.search((root / "sql" / "src" / "00_install.sql").read_text(encoding="utf-8"))
    if not guard:
        raise ValueError("sql/src/00_install.sql has lost its guard of the schema")
    body = guard[0] + body.removesuffix("\ncommit;\n")
    return SETTINGS + body + "\n" + registries(root)


def update(text: str, root: Path = ROOT) -> str:
    """Return an upgrade script as that of an extension."""
    _, _, body = text.partition("\nbegin;\n\n")
    return body.removesuffix("\ncommit;\n") + "\n" + registries(root)


def registries(root: Path = ROOT) -> str:
    """Return the statement that marks what pg_dump copies."""
    return (root / "sql" / "extension" / "registries.sql").read_text(encoding="utf-8")


def updates(root: Path = ROOT) -> dict[tuple[str, str], str]:
    """Return every update script by (from, to)."""
    found = {}
    for path in sorted((root / UPGRADES).glob("teguh--*.sql")):
        old, new = re.findall(r"--([\w.]+?)(?=--|\.sql$)", path.name)
        found[old, new] = update(path.read_text(encoding="utf-8"), root)
    return found


def files(root: Path = ROOT, *, released: bool = False) -> dict[str, str]:
    """Return the extension's files by name; `released`: also those of the versions before."""
    current = version(root)
    abstract = meta(root)["abstract"]
    create = NO_PSQL.format(command="create extension teguh")
    alter = NO_PSQL.format(command="alter extension teguh update")
    text = fresh((root / "sql" / "teguh.sql").read_text(encoding="utf-8"), root)
    built = {
        "teguh.control": CONTROL.format(abstract=abstract, version=current),
        f"teguh--{current}.sql": f"{create}\n\n{text}",
    }
    paths = updates(root)
    for (old, new), script in paths.items():
        built[f"teguh--{old}--{new}.sql"] = f"{alter}\n\n{script}"
    built["teguh-pgtle.sql"] = PGTLE.format(
        version=current,
        version_literal=literal(current),
        abstract=literal(abstract),
        fresh=f"\n{SCHEMA}{text}",
        paths="\n".join(
            PGTLE_PATH.format(old=literal(old), new=literal(new), script=f"\n{script}")
            for (old, new), script in paths.items()
        ),
    )
    if released:
        for path in (root / RELEASED).glob("*/teguh.sql"):
            text = fresh(path.read_text(encoding="utf-8"), root)
            built[f"teguh--{path.parent.name}.sql"] = f"{create}\n\n{text}"
    return built


def main() -> int:
    """Write the files into a directory of their own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "build" / "extension")
    target = parser.parse_args().directory
    target.mkdir(parents=True, exist_ok=True)
    for old in [*target.glob("teguh*.sql"), *target.glob("*.control")]:
        old.unlink()
    for name, text in files().items():
        (target / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
