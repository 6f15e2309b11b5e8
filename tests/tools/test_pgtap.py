"""tools/pgtap.py runs a pgTAP file as psql would, and judges what comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools.pgtap import Tap, TapError, run, statements

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cluster import Cluster


@pytest.fixture
def tap_dsn(cluster: Cluster) -> Iterator[str]:
    """A fresh database with teguh and pgTAP."""
    with cluster.database("pgtap") as name:
        yield cluster.owner_dsn(name)


def tap(text: str) -> Tap:
    """Return what a text of TAP lines says."""
    result = Tap()
    for line in text.splitlines():
        result.add(line)
    return result


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1..2\nok 1 - a\nok 2", None),
        ("1..2\nok 1\nnot ok 2 - a # TODO later", None),
        ("1..1\nok 1 # SKIP no server", None),
        ("ok 1\n1..1", None),
        ("1..2\nok 1\nnot ok 2 - a", "failed: 2"),
        ("1..3\nok 1\nok 2", "3 tests planned, 2 ran"),
        ("1..1\nok 1\nok 2", "1 tests planned, 2 ran"),
        ("ok 1", "no plan: a file says `select plan(n);` first"),
        ("1..1\nBail out! no queue", "bailed out"),
    ],
)
def test_a_file_passes_when_all_that_was_planned_came_and_is_ok(
    text: str, problem: str | None
) -> None:
    assert tap(text).problem() == problem


def test_a_plan_of_none_skips_the_file() -> None:
    assert tap("1..0 # SKIP no pg_cron").skip_all == "SKIP no pg_cron"


def test_failures_are_shown_with_their_diagnostics() -> None:
    told = tap("1..2\nok 1\n# fine\nnot ok 2 - b\n# have: 1\n# want: 2\n# Looks bad")
    assert told.failures() == "not ok 2 - b\n# have: 1\n# want: 2\n# Looks bad"


def test_quotes_and_comments_hide_semicolons() -> None:
    text = """-- a; b
select ';', $$ ; $$, $x$ $$; $x$, E'\\';'; /* ; */

select ";" -- ;
from t;
"""
    assert [(line, body.split()[0]) for line, body in statements(text)] == [
        (2, "select"),
        (4, "select"),
    ]


def test_a_file_runs_to_its_end(tmp_path: Path, tap_dsn: str) -> None:
    path = tmp_path / "00_x.sql"
    path.write_text(
        "begin;\nselect plan(2);\nselect is(1, 1, 'one;');\n"
        "select throws_ok($$ select 1/0; $$, '22012', null, 'b');\n"
        "select * from finish();\nrollback;\n"
    )
    told = run(tap_dsn, path)
    assert (told.problem(), told.ran) == (None, 2)


def test_a_statement_that_fails_is_named_by_its_line(tmp_path: Path, tap_dsn: str) -> None:
    path = tmp_path / "00_x.sql"
    path.write_text("begin;\nselect plan(2);\nselect ok(true);\n\nselect nothing();\nrollback;\n")
    with pytest.raises(TapError, match=r"00_x\.sql:5: 42883 .*\n(.*\n)*after 1 of 2 tests"):
        run(tap_dsn, path)


def test_psql_commands_are_refused(tmp_path: Path, tap_dsn: str) -> None:
    path = tmp_path / "00_x.sql"
    path.write_text("-- X.\n\\ir setup.psql\nselect plan(1);\n")
    with pytest.raises(TapError, match="psql commands are not for these files"):
        run(tap_dsn, path)
