"""Teguh's SQL functions, called by a loop of a few lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar

from bench.peers.base import connect
from bench.peers.teguh import ONE, Teguh

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.peers.base import Sink

CLAIM = "select run_id, task_id, task_name, params from teguh.claim_task('bench', 'sql', 30, %s)"
COMPLETE = """
select count(*) from teguh.complete_runs('bench', (
  select jsonb_agg(jsonb_build_object('run_id', run_id, 'state', null))
  from unnest(%s::uuid[]) as run_id
))
"""
STEP = """
select teguh.set_task_checkpoint_state('bench', task_id, %s, '1', run_id)
from unnest(%s::uuid[], %s::uuid[]) as flow (task_id, run_id)
"""
WAIT = "select extract(epoch from teguh.next_due('bench') - clock_timestamp())::float8"


class TeguhSql(Teguh):
    """A worker that anybody could write."""

    name = "teguh_sql"
    title = "teguh, plain SQL"
    settings: ClassVar = {
        "default": "claim_task and complete_runs, batch 10, LISTEN, next_due",
        "tuned": "the same, batch 100; a step of all workflows of a batch commits at once",
    }
    absent: ClassVar[dict[str, str]] = {}
    flows = 5000

    def work(self, dsn: str, setting: str, sink: Sink) -> None:
        """Claim, execute and complete in batches."""
        batch = 100 if setting == "tuned" else 10
        listener, connection = connect(dsn), connect(dsn)
        listener.execute("listen teguh_bench")
        while True:
            runs = connection.execute(CLAIM, (batch,)).fetchall()
            if not runs:
                row = connection.execute(WAIT).fetchone()
                due = 30.0 if row is None or row[0] is None else min(max(row[0], 0.0), 30.0)
                for _ in listener.notifies(timeout=due, stop_after=1):
                    pass
                continue
            for run in runs:
                sink.hit(run[3]["i"])
            flows = [run for run in runs if run[2] == "flow"]
            for name in ("one", "two", "three") if flows else ():
                ids = [run[1] for run in flows], [run[0] for run in flows]
                connection.execute(STEP, (name, *ids))
            connection.execute(COMPLETE, ([run[0] for run in runs],))

    def cycle(self, dsn: str) -> Callable[[], bool]:
        """Three calls, each its own commit."""
        connection = connect(dsn)
        payload = json.dumps({"i": 1})

        def once() -> bool:
            connection.execute(ONE, (payload,))
            run = connection.execute(CLAIM, (1,)).fetchone()
            if run is not None:
                connection.execute("select teguh.complete_run('bench', %s, 'null')", run[:1])
            return run is not None

        return once


PEER = TeguhSql()
