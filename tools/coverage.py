"""Say which statements of the engine's functions the tests run: docs/coverage.md.

usage: python -m tools.coverage [--page FILE] [--tests PATH...] [PYTEST_OPTION...]

tests/profiled.py measures, with Debian's plpgsql_check.  Functions of queues, and those of segment
1, count as the ones in sql/src that they are copies of.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.servers import ServerError, find_build

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parent.parent
MODULES = ROOT / "sql" / "src"
PAGE = ROOT / "docs" / "coverage.md"

# On servers of their own, or about documents.
ELSEWHERE = {"docs", "links", "pg_cron", "quickstart", "reference", "restore"}
TESTS = [
    "pg_tap",
    "tests/model",
    *(
        str(path.relative_to(ROOT))
        for path in sorted(ROOT.glob("tests/test_*.py"))
        if path.stem.removeprefix("test_") not in ELSEWHERE
    ),
]

# After a dynamic statement the profiler evaluates its text again: names of what an upgrade dropped.
UPGRADES = "tests/test_schedules.py::test_a_queue_from_before_has_schedules_after_an_upgrade"

INTRODUCTION = """\
# Coverage

What the tests run of the functions in `sql/src`, as the profiler of plpgsql_check sees it on
PostgreSQL {server}. Written by `make coverage` from these: {tests}.

A statement is one of PL/pgSQL, however many branches the SQL in it has. It was run if it was begun.
Functions in SQL have none: they are called or not. Those that are expressions
([decision 2](decisions/0002-expressions.md)) are not called, nor listed. The functions of a queue,
and those of segment 1, count as the ones that they are copies of. What a Python test rolls back is
not counted if it created the queue, too, nor what runs on a server that a test has of its own:
jobs of pg_cron, restored copies. `revoke_access` takes away rights on itself, by which the profiler
loses sight of it.
"""

DEFINITION = re.compile(
    r"^create or replace (?:function|procedure) teguh\.(\w+)\(.*?^as \$\$$",
    re.MULTILINE | re.DOTALL,
)
EXPRESSION = re.compile(r"^  language sql\n(?!.*^  set )", re.MULTILINE | re.DOTALL)
COPY = re.compile(r"(?P<verb>_[a-z]+)(?P<segment>[01]?)_\w+")


@dataclass
class Function:
    """A function in sql/src: where it is, the lines of its statements, and which of them ran."""

    name: str
    module: str
    line: int
    body: int  # the line that a statement's line is counted from
    statements: dict[int, int] = field(default_factory=dict)
    called: bool = False
    ran: set[int] = field(default_factory=set)

    def never(self) -> Iterator[tuple[int, int]]:
        """Yield the lines, first and last, of statements that follow each other and never ran."""
        stretch: list[int] = []
        for number in sorted(self.statements):
            if number not in self.ran:
                stretch.append(self.body + self.statements[number])
            elif stretch:
                yield stretch[0], stretch[-1]
                stretch = []
        if stretch:
            yield stretch[0], stretch[-1]


def functions_of(modules: Iterable[Path]) -> dict[str, Function]:
    """Return the functions that modules define, by name; without expressions."""
    found = {}
    for path in sorted(modules):
        text = path.read_text(encoding="utf-8")
        for definition in DEFINITION.finditer(text):
            if EXPRESSION.search(definition[0]):
                continue
            line, body = (text.count("\n", 0, at) for at in definition.span())
            name = definition[1]
            found[name] = Function(name, path.name, line + 1, body)
    return found


def original(name: str, functions: dict[str, Function]) -> Function | None:
    """Return the function that one of the database is, or is a copy of; None if there is none."""
    if name in functions:
        return functions[name]
    copy = COPY.fullmatch(name)
    if copy is None:
        return None
    segment = copy["segment"] and "0"
    return functions.get(f"{copy['verb']}{segment}_template")


def take_in(measured: dict[str, Any], functions: dict[str, Function]) -> None:
    """Add what a process of tests has measured."""
    for name, number, line in measured["statements"]:
        if name in functions:
            functions[name].statements[number] = line
    for name, numbers in measured["ran"].items():
        function = original(name, functions)
        if function is not None:
            function.called = True
            function.ran.update(numbers)
            if len(function.statements) == 1:  # also where the profiler was off
                function.ran.update(function.statements)


def row(name: str, functions: list[Function]) -> str:
    """Return the numbers of some functions as a row of the table."""
    statements = sum(len(f.statements) for f in functions)
    ran = sum(len(f.ran & f.statements.keys()) for f in functions)
    share = f"{100 * ran / statements:.1f}" if statements else ""
    called = sum(f.called for f in functions)
    return f"| {name} | {len(functions)} | {called} | {statements} | {ran} | {share} |"


def gaps(functions: list[Function], lines: list[str]) -> Iterator[str]:
    """Yield what never ran in a module, as lines of the page."""
    uncalled = [f"`{f.name}` ({f.line})" for f in functions if not f.called]
    unrun = [
        f"{first}{f'-{last}' if last > first else ''} {f.name}: {lines[first - 1].strip()}"
        for f in functions
        if f.called
        for first, last in f.never()
    ]
    if uncalled or unrun:
        yield from ("", f"### {functions[0].module}")
    if uncalled:
        yield from ("", f"Never called: {', '.join(uncalled)}.")
    if unrun:
        yield from ("", "```text", *unrun, "```")


def page_of(functions: dict[str, Function], sources: Path, server: str, tests: list[str]) -> str:
    """Return the page."""
    named = ", ".join(f"`{test}`" for test in tests)
    modules: dict[str, list[Function]] = {}
    for function in functions.values():
        modules.setdefault(function.module, []).append(function)
    page = [
        *INTRODUCTION.format(server=server, tests=named).splitlines(),
        "",
        "| module | functions | called | statements | run | % |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        row("all", list(functions.values())),
        *(row(f"`{module}`", found) for module, found in modules.items()),
        "",
        "## What is never run",
        "",
        "Functions, with the lines where they begin; statements of those that are called.",
    ]
    for module, found in modules.items():
        page += gaps(found, (sources / module).read_text(encoding="utf-8").splitlines())
    return "\n".join(page) + "\n"


def measure(tests: list[str], options: list[str]) -> tuple[dict[str, Function], str]:
    """Run tests; return all functions and the server's version."""
    functions = functions_of(MODULES.glob("*.sql"))
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-p", "tests.profiled"),
                *("--deselect", UPGRADES),
                *options,
                *tests,
            ],
            cwd=ROOT,
            env={**os.environ, "TEGUH_COVERAGE": directory},
            check=True,
        )
        for path in Path(directory).glob("*.json"):
            measured = json.loads(path.read_text(encoding="utf-8"))
            take_in(measured, functions)
    return functions, measured["server"]


def available() -> bool:
    """Tell whether Debian's server is there, with plpgsql_check."""
    try:
        return (find_build("debian").extensions / "plpgsql_check.control").exists()
    except ServerError:
        return False


def main() -> int:
    """Run the tests and write the page; fail, and write nothing, if one of them does."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="PATH")
    chosen, options = parser.parse_known_args()
    if not available():
        print("coverage: apt-get install postgresql-15-plpgsql-check", file=sys.stderr)
        return 1
    try:
        functions, server = measure(chosen.tests, options)
    except subprocess.CalledProcessError as error:
        print(f"coverage: pytest ended with {error.returncode}", file=sys.stderr)
        return 1
    chosen.page.write_text(page_of(functions, MODULES, server, chosen.tests), encoding="utf-8")
    print(row("all", list(functions.values())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
