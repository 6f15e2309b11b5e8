"""Freeze a release under tests/upgrade/released: its teguh.sql, and the Python package as a wheel.

usage: python tools/freeze.py [REVISION]      default: HEAD

It takes what git has of that revision, whatever the checkout looks like.  Upgrades are tested from
what is frozen, so a release is frozen once.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.build_sql import RELEASED, version  # noqa: E402 - after the path is set


def git(*arguments: str) -> bytes:
    """Run git in the checkout and return what it printed."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout


def freeze(revision: str) -> Path:
    """Freeze one revision and return the directory that holds it."""
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "tree"
        with tarfile.open(fileobj=io.BytesIO(git("archive", revision))) as archive:
            archive.extractall(tree, filter="data")
        target = ROOT / RELEASED / version(tree)
        if target.exists():
            sys.exit(f"{target} is there already: remove it if that version is not out yet")
        target.mkdir(parents=True)
        (target / "teguh.sql").write_bytes((tree / "sql" / "teguh.sql").read_bytes())
        # The same revision gives the same wheel, byte by byte.
        moment = git("log", "-1", "--format=%ct", revision).decode().strip()
        subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet",
             "--no-deps", "--wheel-dir", target, tree],
            check=True,
            env={**os.environ, "SOURCE_DATE_EPOCH": moment},
        )  # fmt: skip
    return target


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("revision", nargs="?", default="HEAD")
    target = freeze(parser.parse_args().revision)
    for path in sorted(target.iterdir()):
        print(path.relative_to(ROOT), path.stat().st_size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
