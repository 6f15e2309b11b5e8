"""Make the archive for PGXN: dist/teguh-VERSION.zip.

It holds what git has of the present commit, without the tests' frozen releases, and the built
files of the extension, so that `make install` needs nothing but pg_config.

usage: python tools/make_dist.py
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.build_extension import files  # noqa: E402 - after the path is set
from tools.build_sql import RELEASED, version  # noqa: E402 - after the path is set

BUILT = "build/extension"


def main() -> int:
    """Make the archive and say where it is."""
    name = f"teguh-{version()}"
    target = ROOT / "dist" / f"{name}.zip"
    target.parent.mkdir(exist_ok=True)
    subprocess.run(
        ["git", "archive", "--format=zip", f"--prefix={name}/", f"--output={target}", "HEAD",
         "--", ".", f":(exclude){RELEASED}"],
        cwd=ROOT,
        check=True,
    )  # fmt: skip
    with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as archive:
        # Later than the sources, or make would build them again.
        latest = max(datetime(*file.date_time, tzinfo=UTC) for file in archive.infolist())
        moment = (latest + timedelta(seconds=2)).timetuple()[:6]
        for file, text in files().items():
            archive.writestr(zipfile.ZipInfo(f"{name}/{BUILT}/{file}", moment), text)
    print(target.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
