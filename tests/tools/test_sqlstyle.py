"""tools/sqlstyle.py finds each thing it is there for, and nothing in good code."""

from __future__ import annotations

import pytest

from tools import sqlstyle

GOOD = """\
-- Finish a run.
create or replace function teguh.finish(
  p_run_id uuid,
  p_result jsonb,
  out state text
)
  returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task_id uuid;
  v_n       integer := 0;
begin
  for v_n in 1..3 loop
    null;
  end loop;

  if not found then
    raise exception 'run % is not active; "No" TALK', p_run_id
      using
        errcode = 'TG002',
        detail = 'Its lease ended.',
        hint = 'Stop this attempt.';
  end if;
end;
$$;

comment on function teguh.finish(uuid, jsonb) is
  $doc$Ends a run. It doesn't raise.$doc$;
"""


def rules(source: str) -> set[str]:
    """Return the rules that a source breaks."""
    return {problem.rule for problem in sqlstyle.check(source)}


def test_good_code_has_no_problem() -> None:
    assert sqlstyle.check(GOOD) == []


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ("T001", "-- Finish a run.", "-- " + "x" * 98),
        ("T002", "    null;", "\tnull;"),
        ("T002", "    null;", "    null; "),
        ("T002", "raise.$doc$;\n", "raise.$doc$;"),
        ("T003", "-- Finish a run.", "-- ==========\n-- Finish a run."),
        ("T004", "-- Finish a run.", "\\set x 1\n-- Finish a run."),
        ("T010", "    null;", "    execute 'select ''a'',\n      1';"),
        ("T011", "    null;", "    NULL;"),
        ("T011", "if not found", "IF not found"),
        ("T011", "    null;", "    v_Task_id := null;"),
        ("T011", "    null;", "    execute $sql$ SELECT 1 $sql$;"),
        ("T012", "returns text", "returns"),
        ("T020", "-- Finish a run.\n", ""),
        ("T020", "-- Finish a run.\n", "-- Finish a run.\n\n"),
        ("T021", "comment on function teguh.finish", "comment on function teguh.other"),
        ("T022", "teguh.finish(\n", "teguh.finish (\n"),
        ("T023", "  set search_path = pg_catalog, pg_temp\n", ""),
        ("T023", "pg_catalog, pg_temp\n", "public\n"),
        ("T024", "p_run_id uuid", "run_id uuid"),
        ("T025", "  v_n       integer", "  v_n integer"),
        ("T026", "  v_task_id uuid", "  x_task_id uuid"),
        ("T026", "for v_n in", "for n in"),
        ("T030", "        errcode = 'TG002',\n", ""),
        ("T031", "        detail = 'Its lease ended.',\n", ""),
        ("T032", ",\n        hint = 'Stop this attempt.'", ""),
        ("T040", "    null;\n", "    null;\n" * 80),
    ],
)
def test_each_rule_bites(rule: str, old: str, new: str) -> None:
    assert old in GOOD
    assert rules(GOOD.replace(old, new, 1)) == {rule}


def test_private_functions_and_the_template_need_no_comment_on_function() -> None:
    for name in ("_finish", "finish_template"):
        source = GOOD.replace("function teguh.finish(", f"function teguh.{name}(", 1)
        assert rules(source) == set()


def test_procedures_need_no_search_path_because_they_commit() -> None:
    source = GOOD.replace("function teguh.finish(\n", "procedure teguh._finish(\n", 1)
    source = source.replace("  returns text\n", "").replace("  out state text\n", "  p_s text\n")
    assert rules(source.replace("  set search_path = pg_catalog, pg_temp\n", "")) == set()


EXPRESSION = """\
-- The later of two moments, a second on.
create or replace function teguh._later(p_a timestamptz, p_b timestamptz)
  returns timestamptz
  language sql
  stable
as $$
  select greatest(p_a, p_b) operator(pg_catalog.+) pg_catalog.make_interval(secs => 1);
$$;
"""


def test_an_expression_needs_no_search_path_if_all_its_names_are_qualified() -> None:
    assert rules(EXPRESSION) == set()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pg_catalog.make_interval", "make_interval"),
        ("operator(pg_catalog.+)", "+"),
        ("greatest(p_a, p_b)", "p_b::timestamptz"),
        ("greatest(p_a, p_b)", "nullif(p_a, p_b)"),
        (";\n$$;", "\n  from teguh.queues;\n$$;"),
    ],
)
def test_an_expression_with_an_unqualified_name_needs_a_search_path(old: str, new: str) -> None:
    assert old in EXPRESSION
    assert rules(EXPRESSION.replace(old, new)) == {"T023"}


def test_a_problem_is_reported_on_its_line() -> None:
    (problem,) = sqlstyle.check(GOOD.replace("    null;", "    NULL;"))
    assert GOOD.split("\n")[problem.line - 1] == "    null;"
