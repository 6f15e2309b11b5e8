"""Renew pg_tap/vendor: pgTAP as one SQL file, with its licence.

The npm package @electric-sql/pglite-pgtap carries the newest pgTAP that a package registry has
(Debian's is of 2021).  pgTAP is plain SQL and PL/pgSQL: a file made for one platform fits all.

usage: python tools/refresh_pgtap.py
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@electric-sql/pglite-pgtap"
VENDOR = Path(__file__).resolve().parent.parent / "pg_tap" / "vendor"


def member(archive: tarfile.TarFile, pattern: str) -> bytes:
    """Return the content of the one member whose name matches."""
    names = [name for name in archive.getnames() if re.fullmatch(pattern, name)]
    if len(names) != 1:
        raise SystemExit(f"refresh_pgtap: {PACKAGE} holds {len(names)} files like {pattern}")
    content = archive.extractfile(names[0])
    return content.read() if content else b""


def main() -> int:
    """Fetch the package and write the two files."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["npm", "pack", PACKAGE], cwd=directory, check=True, stdout=sys.stderr)
        (package,) = Path(directory).glob("*.tgz")
        with tarfile.open(package) as outer:
            inner = member(outer, r"package/dist/pgtap\.tar\.gz")
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        control = member(archive, r".*/pgtap\.control").decode()
        code = member(archive, r".*/pgtap\.sql").decode()
        manual = member(archive, r".*/pgtap\.md").decode()
    version = re.search(r"default_version = '([\d.]+)'", control)
    licence = re.search(r"^Copyright \(c\).*\Z", manual, re.MULTILINE | re.DOTALL)
    if version is None or licence is None:
        raise SystemExit("refresh_pgtap: the package has no version or no licence")
    # Trailing blanks go, so that the copy passes `git diff --check`.
    code = re.sub(r"[ \t]+$", "", code, flags=re.MULTILINE)
    (VENDOR / "pgtap.sql").write_text(f"-- pgTAP {version[1]}\n{code}", encoding="utf-8")
    (VENDOR / "LICENSE").write_text(licence[0].rstrip() + "\n", encoding="utf-8")
    print(f"pgTAP {version[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
