"""Break the engine in one line after another, and say which tests notice.

usage: python -m tools.mutants [--detectors core ...] [--jobs N] [--report FILE] [MUTANT...]

A mutant is one of tests/mutants.py, or a part of the names of several.  It is tried by one detector
after another until one fails: the pgTAP file of its module, the storm that is meant for it, a
model, the other pgTAP files, and so on.  First, all detectors have to pass on the engine as it is.
The report is a table in Markdown.
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
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.chaos.mutants import Mutant, mutated
from tests.cluster import send
from tests.mutants import MUTANTS
from tools.servers import Databases, server_from_environment

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "sql" / "teguh.sql"
STORM = "storm"
DETECTORS = {
    "module": ["pg_tap/{module}.sql"],
    STORM: ["tests/chaos/test_chaos.py::test_the_checks_notice[{name}]"],
    "core": ["tests/model/test_core.py"],
    "pg_tap": ["pg_tap"],
    "races": ["tests/test_races.py", "tests/test_order.py", "tests/test_schedules.py"],
    "composition": ["tests/model/test_model.py"],
    "interleavings": ["tests/model/test_interleavings.py"],
}
WORDS = {
    "module": "the pgTAP file of its module",
    STORM: "a storm",
    "core": "the model of the core",
    "pg_tap": "another pgTAP file",
    "races": "a test with several sessions",
    "composition": "the model of composition",
    "interleavings": "interleavings of a model",
}


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


def failure(output: str) -> str:
    """Return what failed first, by pytest's output."""
    test = re.search(r"^(?:FAILED|ERROR) (\S+?)(?: - |$)", output, re.MULTILINE)
    name = test[1].rpartition("::")[2] if test else "?"
    if calls := re.search(r"after \d+ calls", output):
        return calls[0]
    if line := re.search(r"^not ok \d+ - (.*)$", output, re.MULTILINE):
        return f'`{name}`: "{line[1]}"'
    return f"`{name}`"


def try_out(tests: list[str], sql: Path, server: Databases) -> str | None:
    """Return what noticed that something is wrong with a SQL file, None if nothing did."""
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--tb=line", "--timeout=180",
         *tests],
        cwd=ROOT,
        env={**os.environ, "TEGUH_SQL": str(sql), "TEGUH_TEST_DSN": server.dsn()},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if ended.returncode == 0:
        return None
    if ended.returncode != 1:
        raise RuntimeError(ended.stdout[-2000:] + ended.stderr[-2000:])
    return failure(ended.stdout)


def check_that_it_installs(text: str, mutant: Mutant, server: Databases) -> None:
    """Raise if a mutant's function cannot be: then every test fails, and none has noticed."""
    start = text.index(f"create or replace function {mutant.function}(")
    with server.connect(ENGINE.stem) as connection:
        connection.execute(text[start : text.index("\n$$;\n", start) + 5].encode())


def examine(name: str, mutant: Mutant, detectors: list[str], server: Databases) -> Outcome:
    """Try a mutant by one detector after another."""
    module, started = module_of(mutant), time.monotonic()
    found, how = "", None
    with tempfile.TemporaryDirectory() as directory:
        sql = Path(directory) / "teguh.sql"
        text = mutated(ENGINE.read_text(encoding="utf-8"), mutant)
        check_that_it_installs(text, mutant, server)
        sql.write_text(text, encoding="utf-8")
        for detector in detectors:
            tests = [t.format(module=module, name=name) for t in DETECTORS[detector]]
            if detector != STORM:
                how = try_out(tests, sql, server)
            elif mutant.noticed:
                # the test breaks the engine itself, and passes if that shows
                unseen = try_out(tests, ENGINE, server)
                how = " or ".join(f'"{check}"' for check in mutant.noticed) if not unseen else None
            if how is not None:
                found = detector
                break
    seconds = time.monotonic() - started
    outcome = Outcome(name, module, found, how or "", seconds)
    print(f"{module:18} {name:62} {found or '-':13} {outcome.how:60} {seconds:4.0f} s", flush=True)
    return outcome


def check_the_detectors(detectors: list[str], modules: set[str], server: Databases) -> None:
    """Raise if a detector fails though nothing is wrong."""
    for detector in detectors:
        if detector == STORM:
            continue
        tests = [t.format(module=m) for t in DETECTORS[detector] for m in sorted(modules)]
        how = try_out(list(dict.fromkeys(tests)), ENGINE, server)
        if how is not None:
            raise RuntimeError(f"{detector} fails on the engine as it is: {how}")


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
    score, *by = summary(outcomes)
    rows = [
        f"| {o.name} | `{o.module}` | {f'{o.detector}: {o.how}' if o.detector else 'nobody'} |"
        for o in outcomes
    ]
    return "\n".join([
        "# Mutants", "",
        "The engine is broken in one line after another (`tests/mutants.py`), and tests that are"
        " there anyway have to notice. `make test-mutants ARGS='--report docs/mutants.md'` makes"
        " this page.", "",
        f"{score}, {', '.join(by)}.", "",
        "| what is wrong | module | noticed by |", "| --- | --- | --- |", *rows, "",
    ])  # fmt: skip


def main() -> int:
    """Try every mutant that is asked for; fail if nobody noticed one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--detectors", nargs="*", choices=DETECTORS, default=list(DETECTORS))
    parser.add_argument("--jobs", type=int, default=2, help="how many mutants at a time")
    parser.add_argument("--report", type=Path, metavar="FILE", help="where the table is written")
    parser.add_argument("mutants", nargs="*", metavar="MUTANT")
    options = parser.parse_args()
    chosen = {
        name: mutant
        for name, mutant in MUTANTS.items()
        if not options.mutants or any(part in name for part in options.mutants)
    }
    servers: SimpleQueue[Databases] = SimpleQueue()

    def one(name: str) -> Outcome:
        server = servers.get()
        try:
            return examine(name, chosen[name], options.detectors, server)
        finally:
            servers.put(server)

    with ExitStack() as stack:
        jobs = 1 if os.environ.get("TEGUH_TEST_DSN") else options.jobs
        for _ in range(jobs):
            server = stack.enter_context(server_from_environment())
            send(server.create_database(ENGINE.stem), ENGINE.read_text(encoding="utf-8"))
            servers.put(server)
        with ThreadPoolExecutor(jobs) as pool:
            outcomes = list(pool.map(one, chosen))
    if options.report:
        options.report.write_text(table(outcomes), encoding="utf-8")
    print("\n".join(summary(outcomes)))
    return int(any(not o.detector for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
