"""A stranger who does what docs/quickstart.md says sees what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.test_docs import played, snippets
from tools.servers import find_build

if TYPE_CHECKING:
    import psycopg

PAGE = Path(__file__).parent.parent / "docs" / "quickstart.md"
PYTHON, SQL = PAGE.read_text("utf-8").split("## In SQL")
VERSION = re.compile(r"\d+\.\d+\.\d+")
MARK = "-- end of the output --"


class Shell:
    """A shell that is told one command after the other."""

    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        self.process = subprocess.Popen(
            ["bash"], env=environment, cwd=directory, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, command: str) -> str:
        """Return what a command prints."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\necho '{MARK}'\n")
        self.process.stdin.flush()
        printed = "".join(iter(self.process.stdout.readline, f"{MARK}\n"))
        return re.sub(r"^bash: line .*\n", "", printed, flags=re.MULTILINE)  # it was killed


def test_the_python_of_the_quickstart_survives_its_worker(empty_dsn: str, tmp_path: Path) -> None:
    for name, source in zip(("signup.py", "visit.py"), snippets("python", PYTHON), strict=True):
        (tmp_path / name).write_text(source, "utf-8")
    build = find_build("embedded")  # psql, of any version
    places = [Path(sys.executable).parent, build.bin, "/usr/bin", "/bin"]
    environment = {
        **build.libraries,
        "PATH": os.pathsep.join(map(str, places)),
        "PYTHONPATH": str(tmp_path),
        "TEGUH_DSN": empty_dsn,
    }
    shell = Shell(environment, tmp_path)
    try:
        for block in snippets("console", PYTHON):
            for command, shown in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE):
                deadline = time.monotonic() + 60
                while VERSION.sub("", printed := shell.run(command)) != VERSION.sub("", shown):
                    assert "select" in command, printed  # which may come too early
                    assert time.monotonic() < deadline, printed
                    time.sleep(0.1)
    finally:
        shell.run("kill -9 $(jobs -p)")
        shell.process.communicate()


def test_the_sql_of_the_quickstart_does_the_same(conn: psycopg.Connection[Any]) -> None:
    (made,) = snippets("sql", SQL)
    conn.execute(made.encode())
    assert played(conn, SQL) == SQL
