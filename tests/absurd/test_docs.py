"""The snippets of docs/absurd.md do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from absurdctl import BUNDLED_SCHEMA_SQL

from tests.absurd.calls import Calls
from tests.cluster import ROOT, send
from tools.servers import GUEST, find_build

if TYPE_CHECKING:
    from tests.cluster import Cluster

DOCUMENT = (ROOT / "docs" / "absurd.md").read_text()
SNIPPETS = re.findall(r"^```(\w+)\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
[FIRST, RENAME] = [text for language, text in SNIPPETS if language == "bash"]
[HELLO] = [text for language, text in SNIPPETS if language == "python"]
[COPY, GRANT, CRON, LATER] = [text for language, text in SNIPPETS if language == "sql"]


def shell(cluster: Cluster, text: str, dsn: str) -> None:
    """Run a snippet of shell at the top of the project."""
    build = find_build(cluster.server.kind) if cluster.server.can_restart else None
    paths = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    if build is not None:
        paths.append(str(build.bin))
    done = subprocess.run(
        ["bash", "-e", "-c", text],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": dsn, "PATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "psql: command not found" in done.stderr:
        pytest.skip("no psql")
    assert done.returncode == 0, done.stderr


def test_the_quickstart(cluster: Cluster, empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shell(cluster, FIRST, empty_dsn)
    monkeypatch.setenv("DATABASE_URL", empty_dsn)
    space: dict[str, Any] = {}
    exec(HELLO, space)  # noqa: S102 - our own document
    space["app"].close()
    db = Calls(empty_dsn, "default")
    with db.connection:
        [task] = db.relation("t")
        assert task["completed_payload"] == {"greeting": "Hello, World!"}
        db.rows(LATER)
        assert db.claim() == []
        with pytest.raises(psycopg.errors.RaiseException, match="pg_cron"):
            db.rows(CRON)


def test_a_database_is_switched_over(cluster: Cluster, empty_dsn: str) -> None:
    send(empty_dsn, BUNDLED_SCHEMA_SQL)
    before = Calls(empty_dsn, "default")
    with before.connection:
        before.call("create_queue")
        task = before.spawn("hello-world", {"name": "old"})
    shell(cluster, RENAME, empty_dsn)
    after = Calls(empty_dsn, "default")
    with after.connection:
        [copied] = after.rows(COPY)
        assert (copied["tasks"], copied["runs"]) == (1, 1)
        after.connection.execute(re.sub(r"\bapp\b", GUEST, GRANT).encode())
        name = after.connection.info.dbname
    guest = Calls(cluster.guest_dsn(name), "default")
    with guest.connection:
        assert guest.claim_one()["params"] == {"name": "old"}
        [found] = guest.call("get_task_result", task["task_id"])
        assert found["state"] == "running"
