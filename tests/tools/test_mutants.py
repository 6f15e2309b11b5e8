"""tools/mutants.py tells who notices an engine that is wrong in one line, and who does not."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.chaos.mutants import mutated
from tests.mutants import MUTANTS
from tools.mutants import ENGINE, ROOT, Failure, first_failure, module_of, neighbours

if TYPE_CHECKING:
    from pathlib import Path

PAGE = ROOT / "docs" / "mutants.md"


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_one(name: str) -> None:
    text = ENGINE.read_text(encoding="utf-8")
    assert mutated(text, MUTANTS[name]) != text


def test_the_page_is_about_the_mutants_that_there_are() -> None:
    rows = re.findall(r"^\| (.+?) \| `(\w+)` \| .+ \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert rows == [(name, module_of(mutant)) for name, mutant in MUTANTS.items()]


def test_the_page_names_tests_that_there_are() -> None:
    page = PAGE.read_text("utf-8")
    sources = "".join(
        path.read_text("utf-8")
        for folder, pattern in (("tests", "**/*.py"), ("pg_tap", "*.sql"))
        for path in (ROOT / folder).glob(pattern)
    )
    tests = re.findall(r"`(test_\w+)[`\[]", page)
    assert all(f"def {test}(" in sources for test in tests)
    assert len(tests) + len(re.findall(r"`\d\d_\w+`: ", page)) > len(MUTANTS) / 2


@pytest.mark.parametrize(
    ("output", "failure"),
    [
        (
            "not ok 7 - a lease - ends\n# have: 1\nFAILED pg_tap/41_runs.sql::41_runs",
            Failure("pg_tap/41_runs.sql::41_runs", '`41_runs`: "a lease - ends"'),
        ),
        (
            "FAILED tests/a.py::test_two[claim, emit] - AssertionError: 1 - 2",
            Failure("tests/a.py::test_two[claim, emit]", "`test_two[claim, emit]`"),
        ),
        (
            "noticed after 12 calls\nFAILED tests/a.py::test_model - x",
            Failure("tests/a.py::test_model", "`test_model`, after 12 calls"),
        ),
    ],
)
def test_what_failed_is_read_from_what_pytest_says(output: str, failure: Failure) -> None:
    assert first_failure(output) == failure


def test_the_nearest_files_come_first() -> None:
    files = neighbours("41_runs")
    assert files[0] == "pg_tap/41_runs.sql"
    assert set(files[1:3]) == {"pg_tap/40_spawn.sql", "pg_tap/42_checkpoints.sql"}
    assert len(files) == len(list((ROOT / "pg_tap").glob("*.sql")))


def test_who_notices_and_who_does_not_is_reported(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    ended = subprocess.run(
        [sys.executable, "-m", "tools.mutants", "--detectors", "module", f"--report={report}",
         "a retry begins at the deadline", "cleanup leaves unique keys"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert "1 of 2 are noticed: 50 %\n1 by the pgTAP file of its module\n" in ended.stdout
    assert report.read_text("utf-8").endswith(
        "| what is wrong | module | noticed by |\n| --- | --- | --- |\n"
        "| a retry begins at the deadline | `41_runs` |"
        ' `41_runs`: "no retry begins at the deadline" |\n'
        "| cleanup leaves unique keys | `45_cleanup` | nobody |\n"
    )
