"""pg-boss, all of it in Node.js."""

from __future__ import annotations

from typing import ClassVar

from bench.peers.base import HERE, Peer


class PgBoss(Peer):
    """Polls, or LISTEN where it is told to."""

    name = "pgboss"
    title = "pg-boss"
    npm = ("pg-boss@12.38.0",)
    settings: ClassVar = {
        "default": "work(queue, handler): one job every 2 s",
        "tuned": "batchSize 100, burstWhenBatchFull, useListenNotify",
    }
    keeps = "job and output, for a retention time"
    absent: ClassVar = {"steps": "flows of jobs, no steps of one job"}
    waiting = """
      select count(*) from pgboss.job
      where name = 'bench' and state in ('created', 'retry', 'active') and start_after <= now()
    """
    script = HERE / "pgboss.mjs"
    scripted = frozenset({"install", "fill", "single", "bulk", "paced", "work", "cycle"})


PEER = PgBoss()
