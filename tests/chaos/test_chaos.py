"""Nothing is lost and nothing runs twice, whatever breaks; and the checks would notice.

TEGUH_CHAOS_SECONDS says how long it storms, TEGUH_CHAOS_SEED how.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.chaos.mutants import MUTANTS, mutated
from tests.chaos.storm import Storm
from tests.chaos.verdict import figures, violations
from tests.cluster import TEGUH_SQL, Cluster, send
from tools.servers import OWNER, Databases, Server

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = float(os.environ.get("TEGUH_CHAOS_SECONDS") or 4)
SEED = int(os.environ.get("TEGUH_CHAOS_SEED") or os.getpid())


@pytest.mark.chaos
@pytest.mark.parametrize("rules", [False, True], ids=["plain", "by rules"])
def test_nothing_is_lost_and_nothing_runs_twice(
    rules: bool,
    server: Databases,
    cluster: Cluster,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = tmp_path / "errors"
    log.touch()
    with ExitStack() as stack:
        own = stack.enter_context(Server(server.kind)) if isinstance(server, Server) else None
        name = f"{cluster.prefix}_storm"
        dsn = (own or server).create_database(name, owner=OWNER)
        stack.callback((own or server).drop_database, name)
        send(dsn, TEGUH_SQL.read_text(encoding="utf-8"))
        storm = Storm(dsn, (own or server).dsn(name), log, seed=SEED, server=own, rules=rules)
        storm.rage(SECONDS)
        with capsys.disabled():
            print(f"\n{figures(storm)}")
        found = violations(storm)
        assert not found, "\n".join(found)


@pytest.mark.parametrize("name", MUTANTS)
def test_the_checks_notice(name: str, cluster: Cluster, tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    log = tmp_path / "errors"
    text = mutated(TEGUH_SQL.read_text(encoding="utf-8"), mutant)
    # what is broken shows with some luck only: most often in the first storm
    for attempt in range(10):
        log.write_bytes(b"")
        with cluster.database("empty") as database:
            send(cluster.owner_dsn(database), text)
            storm = Storm(
                cluster.owner_dsn(database),
                cluster.server.dsn(database),
                log,
                seed=SEED + attempt,
                rules=mutant.rules,
            )
            storm.rage(2.5, patience=2)
            found = violations(storm)
        if any(line.startswith(mutant.noticed) for line in found):
            return
    pytest.fail("nobody noticed: " + "\n".join(found))
