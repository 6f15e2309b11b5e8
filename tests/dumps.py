"""pg_dump and pg_restore of a server that a test talks to."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from tools.servers import Server, find_build

if TYPE_CHECKING:
    from tools.servers import Databases


def _programs(server: Databases) -> list[tuple[Path, dict[str, str]]]:
    """Directories that may hold pg_dump, each with the environment that its programs need."""
    builds = [server.build] if isinstance(server, Server) else []
    builds.append(find_build("embedded"))  # the newest there is
    found = [(build.bin, build.libraries) for build in builds]
    found += [(path, {}) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    return found


def dump(server: Databases, dsn: str, *options: str) -> str:
    """Return what pg_dump gives; skip the test where there is none for the server."""
    with psycopg.connect(dsn) as connection:
        major = connection.info.server_version // 10000
    for directory, extra in _programs(server):
        program = directory / "pg_dump"
        if not program.exists():
            continue
        environment = {**os.environ, **extra}
        said = subprocess.run(
            [program, "--version"], env=environment, capture_output=True, text=True, check=False
        )
        version = re.search(r"(\d+)\.", said.stdout)
        if version is None or int(version[1]) < major:
            continue
        made = subprocess.run(
            [program, *options, f"--dbname={dsn}"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        return made.stdout
    pytest.skip(f"there is no pg_dump for PostgreSQL {major}")


def normalised(dumped: str) -> list[str]:
    """Return the statements of a dump: without comments, settings and the key of this dump."""
    lines = [
        line
        for line in dumped.splitlines()
        if line
        and not line.startswith(("--", "SET ", "\\restrict", "\\unrestrict"))
        and "set_config('search_path'" not in line
    ]
    return "\n".join(lines).split(";\n")


def restore(dsn: str, dumped: str) -> None:
    """Run a plain dump that holds inserts, not copies, as psql would.

    A newer pg_dump also sets what an older server does not know.
    """
    strange = ("\\", "SET transaction_timeout")
    lines = [line for line in dumped.splitlines() if not line.startswith(strange)]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("\n".join(lines).encode())
