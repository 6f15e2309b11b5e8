"""The published TypeScript SDK, on teguh and on absurd itself.

`make absurd-npm` fetches it; without npm there is nothing to test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.cluster import ROOT

if TYPE_CHECKING:
    from pathlib import Path

NPM = ROOT / ".cache" / "absurd-npm"
SCRIPT = ROOT / "tests" / "absurd" / "sdk.mjs"


def run(script: Path, dsn: str) -> dict[str, Any]:
    """Run the script on a database; return what it saw."""
    parts = conninfo_to_dict(dsn)
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
    variables = {names[k]: str(v) for k, v in parts.items() if k in names}
    if "password" in parts:
        variables["PGPASSWORD"] = str(parts["password"])
    done = subprocess.run(
        ["node", script],
        env={**os.environ, **variables, "ABSURD_NPM": str(NPM)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.mark.skipif(
    not (shutil.which("node") and (NPM / "node_modules" / "absurd-sdk").exists()),
    reason="no npm, or `make absurd-npm` was not run",
)
def test_everything_the_sdk_does(both_dsn: str) -> None:
    assert run(SCRIPT, both_dsn) == {
        "queues": ["children", "default"],
        "policy": {
            "queueName": "children",
            "storageMode": "partitioned",
            "partitionLookahead": "28 days",
            "partitionLookback": "1 day",
            "cleanupTtl": "30 days",
            "cleanupLimit": 7,
            "detachMode": "none",
            "detachMinAge": "30 days",
        },
        "order": {"payment": {"id": "pay-42"}, "tracking": "XYZ"},
        "sleepsStill": "sleeping",
        "sleepy": "awake",
        "patient": "gave up",
        "flaky": [1, 1, 3],
        "bad": "bad",
        "retried": [True, 2, False],
        "cancelled": "cancelled",
        "doomed": "cancelled",
        "beats": 0,
        "limited": "cancelled",
        "once": [True, True, False],
        "parent": {"state": "completed", "result": 42},
        "traced": [
            "order", "sleepy", "patient", "flaky", "bad", "doomed", "beats", "limited", "parent",
        ],
        "hello": {"state": "completed", "result": {"greeting": "World, World!"}},
    }  # fmt: skip
