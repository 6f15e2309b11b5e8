"""Run the suite on several servers, one after the other, and say how each went.

usage: python tools/matrix.py [--majors 14 15 ...] [--pgcrypto public ...] [-- PYTEST-ARGUMENT...]

Debian's own PostgreSQL, with pg_cron, is added where it is installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.servers import MAJORS, ServerError, find_build  # noqa: E402 - after the path is set


def cells(majors: list[int], places: list[str]) -> list[tuple[str, str]]:
    """Return the (kind of server, place of pgcrypto) pairs to run."""
    pairs = [(f"npm:{major}", place) for major in majors for place in places]
    try:
        find_build("debian")
    except ServerError:
        return pairs
    return [*pairs, ("debian", places[0])]


def main() -> int:
    """Run every cell, also after a failure; fail if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--majors", nargs="*", type=int, default=list(MAJORS))
    parser.add_argument("--pgcrypto", nargs="*", default=["public", "extensions", "absent"])
    parser.add_argument("pytest", nargs="*")
    options = parser.parse_args()
    rows: list[tuple[str, str, str, float]] = []
    for kind, place in cells(options.majors, options.pgcrypto):
        print(f"\n=== {kind}, pgcrypto {place}", flush=True)
        started = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *options.pytest],
            cwd=ROOT,
            env={**os.environ, "TEGUH_PG": kind, "TEGUH_PGCRYPTO": place},
            check=False,
        )
        verdict = "passed" if ended.returncode == 0 else f"FAILED ({ended.returncode})"
        rows.append((kind, place, verdict, time.monotonic() - started))
    print()
    for kind, place, verdict, seconds in rows:
        print(f"{kind:8} pgcrypto {place:10} {verdict:12} {seconds:6.1f} s")
    return int(any(verdict != "passed" for _, _, verdict, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
