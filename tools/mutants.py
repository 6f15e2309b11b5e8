"""Break the engine in one line after another, and say which tests notice.

usage: python -m tools.mutants [--detectors core ...] [--jobs N] [--report FILE] [MUTANT...]

A mutant is one of tests/mutants.py, or a part of the names of several.  It is tried by one detector
after another until one notices: the pgTAP file of its module, the storm that is meant for it, the
other pgTAP files, a model, and so on.  A test has noticed if it fails, and passes on the engine
as it is.  The report is a table in Markdown; whoever noticed by the one that is there is asked
first.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from tests.chaos.mutants import Mutant, mutated
from tests.cluster import send
from tests.mutants import MUTANTS
from tools.servers import Databases, server_from_environment

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "sql" / "teguh.sql"
DATABASE = "teguh_mutants"
CLUE = "clue"
STORM = "storm"
DETECTORS = {
    "module": ["pg_tap/{module}.sql"],
    STORM: ["tests/chaos/test_chaos.py::test_the_checks_notice[{name}]"],
    "pg_tap": ["pg_tap"],
    "core": ["tests/model/test_core.py"],
    "composition": ["tests/model/test_model.py"],
    "races": [
        "tests/test_races.py",
        "tests/test_schedules.py",
        "tests/test_messages.py",
        "tests/test_composition.py",
    ],
    "interleavings": ["tests/model/test_interleavings.py"],
}
WORDS = {
    "module": "the pgTAP file of its module",
    STORM: "a storm",
    "pg_tap": "another pgTAP file",
    "core": "the model of the core",
    "composition": "the model of composition",
    "races": "a test of several sessions",
    "interleavings": "what a model says of interleavings",
}
PAGE = """# Mutants

The engine, wrong in one line at a time (`tests/mutants.py`), and the first test that notices.
`make test-mutants ARGS='--report docs/mutants.md'` writes this page.

{summary}.

| what is wrong | module | noticed by |
| --- | --- | --- |
{rows}"""


@dataclass(frozen=True)
class Failure:
    """The first test that failed, and how."""

    test: str
    how: str


@dataclass(frozen=True)
class Outcome:
    """Who noticed a mutant, and how; nobody: an empty detector."""

    name: str
    module: str
    detector: str
    how: str
    seconds: float


def module_of(mutant: Mutant) -> str:
    """Return the name of the module that a mutant's function is in."""
    for path in sorted((ROOT / "sql" / "src").glob("*.sql")):
        if f"create or replace function {mutant.function}(" in path.read_text(encoding="utf-8"):
            return path.stem
    raise LookupError(f"there is no {mutant.function}")


def neighbours(module: str) -> list[str]:
    """Return the pgTAP files, those first that stand closest to a module's."""
    files = [f"pg_tap/{path.name}" for path in sorted((ROOT / "pg_tap").glob("*.sql"))]
    place = files.index(f"pg_tap/{module}.sql")
    return sorted(files, key=lambda file: abs(files.index(file) - place))


def detector_of(test: str, module: str) -> str:
    """Return the detector that a test belongs to."""
    path = test.partition("::")[0]
    if path.startswith("pg_tap/"):
        return "module" if path == f"pg_tap/{module}.sql" else "pg_tap"
    return next(detector for detector, tests in DETECTORS.items() if path in tests)


def clues(report: str) -> dict[str, list[str]]:
    """Return the tests that have noticed mutants, by a report."""
    homes = {path.stem: f"pg_tap/{path.name}" for path in (ROOT / "pg_tap").glob("*.sql")}
    for path in {path for tests in DETECTORS.values() for path in tests if path.endswith(".py")}:
        text = (ROOT / path).read_text(encoding="utf-8")
        tests = re.findall(r"^def (test_\w+)", text, re.MULTILINE)
        homes |= {test: f"{path}::{test}" for test in tests}
    rows = re.findall(r"^\| (.+?) \| `\w+` \| `(\w+)", report, re.MULTILINE)
    return {name: [homes[test]] for name, test in rows if test in homes}


def first_failure(output: str) -> Failure:
    """Return what failed, by pytest's output."""
    test = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
    if test is None:
        raise RuntimeError(output[-2000:])
    how = f"`{test[1].rpartition('::')[2]}`"
    if calls := re.search(r"after (\d+) calls", output):
        how += f", after {calls[1]} calls"
    elif line := re.search(r"^not ok \d+ - (.*)$", output, re.MULTILINE):
        how += f': "{line[1]}"'
    return Failure(test[1], how)


def try_out(tests: list[str], sql: Path, server: Databases) -> Failure | None:
    """Return the first test that fails with a SQL file, None if all pass."""
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--tb=line",
         "-p", "pytest_timeout", *tests],
        cwd=ROOT,
        env={
            **os.environ,
            "TEGUH_SQL": str(sql),
            "TEGUH_TEST_DSN": server.dsn(),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # half of what a small test takes
        },
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if ended.returncode == 0:
        return None
    if ended.returncode != 1:
        raise RuntimeError(ended.stdout[-2000:] + ended.stderr[-2000:])
    return first_failure(ended.stdout)


def check_that_it_installs(text: str, mutant: Mutant, server: Databases) -> None:
    """Raise if a mutant's function cannot be: then every test fails, and none has noticed."""
    start = text.index(f"create or replace function {mutant.function}(")
    with server.connect(DATABASE) as connection:
        connection.execute(text[start : text.index("\n$$;\n", start) + 5].encode())


@dataclass
class Examiner:
    """Tries mutants by detectors, as many at a time as there are servers."""

    detectors: list[str]
    clues: dict[str, list[str]]
    servers: SimpleQueue[Databases] = field(default_factory=SimpleQueue)
    sound: dict[str, bool] = field(default_factory=dict)

    def add(self, server: Databases) -> None:
        """Take a server into use."""
        send(server.create_database(DATABASE), ENGINE.read_text(encoding="utf-8"))
        self.servers.put(server)

    def is_sound(self, failure: Failure, server: Databases) -> bool:
        """Tell whether a test that failed passes on the engine as it is."""
        if failure.test not in self.sound:
            self.sound[failure.test] = try_out([failure.test], ENGINE, server) is None
            if not self.sound[failure.test]:
                print(f"{failure.test} fails on the engine as it is", file=sys.stderr)
        return self.sound[failure.test]

    def notice(
        self, detector: str, name: str, module: str, sql: Path, server: Databases
    ) -> tuple[str, str] | None:
        """Return which detector notices a mutant, and how; None if this one does not."""
        if detector == STORM:
            # the test breaks the engine itself, and passes if the storm shows it
            checks = MUTANTS[name].noticed
            tests = [test.format(name=name) for test in DETECTORS[STORM]]
            if not checks or try_out(tests, ENGINE, server):
                return None
            return STORM, " or ".join(f'storm: "{check}"' for check in checks)

        if detector == CLUE:
            tests = [
                test
                for test in self.clues.get(name, [])
                if detector_of(test, module) in self.detectors
            ]
        elif detector == "pg_tap":
            tests = neighbours(module)
        else:
            tests = [test.format(module=module) for test in DETECTORS[detector]]
        failure = try_out(tests, sql, server) if tests else None
        if failure is None or not self.is_sound(failure, server):
            return None
        return detector_of(failure.test, module), failure.how

    def examine(self, name: str) -> Outcome:
        """Try a mutant by one detector after another."""
        mutant, server = MUTANTS[name], self.servers.get()
        module, started = module_of(mutant), time.monotonic()
        text = mutated(ENGINE.read_text(encoding="utf-8"), mutant)
        found = None
        try:
            check_that_it_installs(text, mutant, server)
            with tempfile.TemporaryDirectory() as directory:
                sql = Path(directory) / "teguh.sql"
                sql.write_text(text, encoding="utf-8")
                for detector in self.detectors:
                    found = self.notice(detector, name, module, sql, server)
                    if found is not None:
                        break
        finally:
            self.servers.put(server)
        seconds = time.monotonic() - started
        outcome = Outcome(name, module, *(found or ("", "nobody")), seconds)
        print(f"{name:62} {outcome.detector:13} {outcome.how}  {seconds:.0f} s", flush=True)
        return outcome


def summary(outcomes: list[Outcome]) -> list[str]:
    """Return how many were noticed, and by whom."""
    by = Counter(o.detector for o in outcomes if o.detector)
    score = 100 * by.total() / len(outcomes)
    return [
        f"{by.total()} of {len(outcomes)} are noticed: {score:.0f} %",
        *(f"{by[detector]} by {WORDS[detector]}" for detector in DETECTORS if by[detector]),
    ]


def table(outcomes: list[Outcome]) -> str:
    """Return the report."""
    rows = [f"| {o.name} | `{o.module}` | {o.how.replace('|', '&#124;')} |\n" for o in outcomes]
    return PAGE.format(summary=", ".join(summary(outcomes)), rows="".join(rows))


def main() -> int:
    """Try every mutant that is asked for; fail if nobody noticed one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--detectors", nargs="*", choices=DETECTORS, default=list(DETECTORS))
    parser.add_argument("--jobs", type=int, default=2, help="how many mutants at a time")
    parser.add_argument("--report", type=Path, metavar="FILE", help="where the table is written")
    parser.add_argument("mutants", nargs="*", metavar="MUTANT")
    options = parser.parse_args()
    chosen = [
        name
        for name in MUTANTS
        if not options.mutants or any(part in name for part in options.mutants)
    ]
    if not chosen:
        parser.error("no mutant has such a name")
    # somebody's own server is one
    jobs = 1 if os.environ.get("TEGUH_TEST_DSN") else options.jobs
    before = options.report.read_text("utf-8") if options.report and options.report.exists() else ""
    examiner = Examiner([CLUE, *options.detectors], clues(before))
    with ExitStack() as stack:
        for _ in range(jobs):
            server = stack.enter_context(server_from_environment())
            stack.callback(server.drop_database, DATABASE)
            examiner.add(server)
        with ThreadPoolExecutor(jobs) as pool:
            outcomes = list(pool.map(examiner.examine, chosen))
    if options.report:
        options.report.write_text(table(outcomes), encoding="utf-8")
    print("\n".join(summary(outcomes)))
    return int(any(not o.detector for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
