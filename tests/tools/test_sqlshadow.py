"""tools/sqlshadow.py lifts the SQL out of function bodies, line by line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools import sqlshadow

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """\
-- Take a task.
create function teguh._take_template(p_id uuid)
  returns uuid
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_id uuid;
begin
  select t.task_id
  into strict v_id
  from teguh.t_template as t
  where t.task_id = p_id;

  if found then
    insert into teguh.r_template (task_id)
    values (v_id);
  end if;

  for v_id in
    select r.task_id
    from teguh.r_template as r
  loop
    perform teguh._touch(v_id);
  end loop;

  return v_id;
end;
$$;
"""
SHADOW = """\









select t.task_id

from teguh.t_template as t
where t.task_id = p_id;


insert into teguh.r_template (task_id)
values (v_id);



select r.task_id
from teguh.r_template as r;

select teguh._touch(v_id);
"""


def test_a_shadow_keeps_the_lines_and_holds_only_plain_sql() -> None:
    assert sqlshadow.shadow(SOURCE) == SHADOW


@pytest.mark.parametrize(
    ("statement", "wanted"),
    [
        ("select 1 into v_a from t", "select 1 from t"),
        ("select 1, 2 into v_a, v_b.c from t", "select 1, 2 from t"),
        ("delete from t returning t.a into v_a", "delete from t returning t.a"),
        ("insert into t (a) values (1)", "insert into t (a) values (1)"),
        ("perform 1 from t", "select 1 from t"),
        ("select (select x into y) from t", "select (select x into y) from t"),
    ],
)
def test_targets_and_perform_are_not_sql(statement: str, wanted: str) -> None:
    assert sqlshadow.without_targets(statement) == wanted


def test_one_shadow_per_file_with_bodies_and_none_left_over(tmp_path: Path) -> None:
    (tmp_path / "10_a.sql").write_text(SOURCE)
    (tmp_path / "20_b.sql").write_text("create schema teguh;\n")
    shadows = tmp_path / "shadows"
    shadows.mkdir()
    (shadows / "99_old.sql").write_text("select 1;\n")
    files = [str(path) for path in tmp_path.glob("*.sql")]
    assert sqlshadow.main(["--into", str(shadows), *files]) == 0
    assert sorted(path.name for path in shadows.iterdir()) == [".sqlfluff", "10_a.sql"]
