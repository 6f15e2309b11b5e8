"""Break the engine in one line after another, and say which tests notice.

usage: python -m tools.mutants [--detectors core pg_tap ...] [MUTANT...]

A mutant is one of tests/mutants.py, or a part of the names of several.  It is tried by one detector
after another until one fails: a model, the pgTAP file of its module, the others, and so on.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.mutants import Mutant, mutated
from tests.mutants import MUTANTS

ROOT = Path(__file__).resolve().parent.parent
DETECTORS = {
    "core": "tests/model/test_core.py",
    "pg_tap": "pg_tap/{module}.sql",
    "others": "pg_tap",
    "composition": "tests/model/test_model.py",
    "interleavings": "tests/model/test_interleavings.py",
    "races": "tests/test_races.py",
    "storm": "tests/chaos/test_chaos.py::test_nothing_is_lost_and_nothing_runs_twice",
}


def module_of(mutant: Mutant) -> str:
    """Return the name of the module that a mutant's function is in."""
    for path in sorted((ROOT / "sql" / "src").glob("*.sql")):
        if f"create or replace function {mutant.function}(" in path.read_text(encoding="utf-8"):
            return path.stem
    raise LookupError(f"there is no {mutant.function}")


def try_out(tests: str, sql: Path) -> str | None:
    """Return how tests noticed what is wrong with a SQL file, None if they did not."""
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--tb=line", tests],
        cwd=ROOT,
        env={**os.environ, "TEGUH_SQL": str(sql)},
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode == 0:
        return None
    if ended.returncode != 1:
        raise RuntimeError(ended.stdout[-2000:] + ended.stderr[-2000:])
    calls = re.search(r"after \d+ calls", ended.stdout)
    return calls[0] if calls else ""


def main() -> int:
    """Try every mutant that is asked for; fail if nobody noticed one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--detectors", nargs="*", choices=DETECTORS, default=list(DETECTORS))
    parser.add_argument("mutants", nargs="*", metavar="MUTANT")
    options = parser.parse_args()
    text = (ROOT / "sql" / "teguh.sql").read_text(encoding="utf-8")
    chosen = {
        name: mutant
        for name, mutant in MUTANTS.items()
        if not options.mutants or any(part in name for part in options.mutants)
    }
    noticed = 0
    with tempfile.TemporaryDirectory() as directory:
        sql = Path(directory) / "teguh.sql"
        for name, mutant in chosen.items():
            sql.write_text(mutated(text, mutant), encoding="utf-8")
            started = time.monotonic()
            by = ""
            for detector in options.detectors:
                how = try_out(DETECTORS[detector].format(module=module_of(mutant)), sql)
                if how is not None:
                    by = f"{detector} {how}".strip()
                    noticed += 1
                    break
            seconds = time.monotonic() - started
            print(f"{module_of(mutant):13} {name:62} {by or '-':32} {seconds:5.0f} s", flush=True)
    print(f"{noticed} of {len(chosen)} were noticed")
    return int(noticed < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
