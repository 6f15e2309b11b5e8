"""tools/build_sql.py puts the modules together, with a map that is right."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tools import build_sql

if TYPE_CHECKING:
    from pathlib import Path

FIRST = """\
-- Install: the house.

create schema teguh;

-- The version.
create or replace function teguh.version()
  returns text
  language sql
as $$
  select '@TEGUH_VERSION@';
$$;
"""
SECOND = """\
create table if not exists teguh.t_template (task_id uuid);

do $$
begin
  execute $sql$
    create or replace function teguh.chosen()
      returns void
  $sql$;
end;
$$;
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project of two modules."""
    source = tmp_path / "sql" / "src"
    source.mkdir(parents=True)
    (tmp_path / "META.json").write_text(json.dumps({"version": "1.2.3"}))
    (source / "20_tables.sql").write_text(SECOND)
    (source / "00_install.sql").write_text(FIRST)
    return tmp_path


def test_modules_stand_in_the_order_of_their_names_each_under_its_own(checkout: Path) -> None:
    text = build_sql.build(checkout)
    assert text.index("-- sql/src/00_install.sql\n") < text.index("-- sql/src/20_tables.sql\n")
    assert text.endswith(f"-- sql/src/20_tables.sql\n{SECOND}")


def test_the_version_is_the_one_in_the_meta_file(checkout: Path) -> None:
    text = build_sql.build(checkout)
    assert "select '1.2.3';" in text
    assert build_sql.PLACEHOLDER not in text


def test_the_table_of_contents_names_the_right_lines(checkout: Path) -> None:
    lines = build_sql.build(checkout).split("\n")
    entries = [line.split() for line in lines if line.startswith("--  ")]
    found = {words[2]: lines[int(words[1]) - 1] for words in entries if words[1].isdigit()}
    assert found == {
        "00_install.sql:": "-- sql/src/00_install.sql",
        "version": "create or replace function teguh.version()",
        "20_tables.sql": "-- sql/src/20_tables.sql",
        "t_template": "create table if not exists teguh.t_template (task_id uuid);",
        "chosen": "    create or replace function teguh.chosen()",
    }


def test_check_tells_a_fresh_file_from_a_stale_one(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_sql.main(["--check"], checkout) == 1
    assert build_sql.main([], checkout) == 0
    assert build_sql.main(["--check"], checkout) == 0
    (checkout / "sql" / "src" / "20_tables.sql").write_text("-- gone\n")
    capsys.readouterr()
    assert build_sql.main(["--check"], checkout) == 1
    assert "sql/teguh.sql is stale: run `make sql`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tables.sql", "", "a module is named NN_topic.sql"),
        ("30_x.sql", "\\echo x\n", "psql commands do not pass a driver"),
    ],
)
def test_a_module_that_cannot_be_part_of_the_file_is_refused(
    checkout: Path, name: str, text: str, message: str
) -> None:
    (checkout / "sql" / "src" / name).write_text(text)
    with pytest.raises(build_sql.BuildError, match=message):
        build_sql.build(checkout)


def test_the_version_is_written_once() -> None:
    meta = json.loads((build_sql.ROOT / "META.json").read_text())
    assert meta["provides"]["teguh"]["version"] == meta["version"]
    sources = [*(build_sql.ROOT / "sql" / "src").glob("*.sql"), build_sql.ROOT / "pyproject.toml"]
    assert [path.name for path in sources if f"'{meta['version']}'" in path.read_text()] == []
