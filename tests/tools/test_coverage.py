"""tools/coverage.py counts what runs, also in functions of queues, and shows what does not."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tools.coverage import ROOT, available, functions_of, page_of, take_in

if TYPE_CHECKING:
    from pathlib import Path

MODULE = """\
-- Take.
create or replace function teguh._take0_template(p_qty integer)
  returns integer
  language plpgsql
as $$
begin
  if p_qty < 1 then
    perform 1;
    return 0;
  end if;
  return 1;
end;
$$;

-- One.
create or replace function teguh._one()
  returns integer
  language sql
  set search_path = pg_catalog, pg_temp
as $$
  select 1;
$$;

-- Two.
create or replace function teguh._two()
  returns integer
  language sql
as $$
  select 2;
$$;
"""


def test_copies_count_as_the_original_and_stretches_are_shown_by_line(tmp_path: Path) -> None:
    (tmp_path / "31_claim.sql").write_text(MODULE, encoding="utf-8")
    functions = functions_of([tmp_path / "31_claim.sql"])
    listed = [("_take0_template", 1, 3), ("_take0_template", 2, 4), ("_take0_template", 3, 5)]
    measured = {
        "statements": [*listed, ("_take0_template", 4, 7), ("_take1_template", 1, 3)],
        "ran": {"_take0_jobs": [0, 1], "_take1_my_jobs": [0, 4], "_drop_jobs": [0, 1]},
    }
    take_in(measured, functions)
    page = page_of(functions, tmp_path, "15.0", ["pg_tap"])
    assert "| `31_claim.sql` | 2 | 1 | 4 | 2 | 50.0 |" in page
    assert "Never called: `_one` (16)." in page  # _two is an expression
    assert "\n8-9 _take0_template: perform 1;\n" in page


@pytest.mark.skipif(not available(), reason="needs Debian's postgresql-15-plpgsql-check")
def test_a_pgtap_file_runs_its_module(tmp_path: Path) -> None:
    page = tmp_path / "coverage.md"
    arguments = ["--page", str(page), "--tests", "pg_tap/65_attributes.sql", "-q"]
    subprocess.run(
        [sys.executable, "-m", "tools.coverage", *arguments],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    text = page.read_text(encoding="utf-8")
    assert re.search(r"\| `65_attributes.sql` \| (\d+) \| \1 \| (\d+) \| \2 \| 100.0 \|", text)
    assert re.search(r"\| `71_work.sql` \| \d+ \| 0 \| \d+ \| 0 \| 0.0 \|", text)
