"""Graphile Worker: the worker in Node.js, jobs added by its SQL functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.peers.base import HERE, Peer, SqlProducer, fill_by

if TYPE_CHECKING:
    from bench.peers.base import Producer

ONE = "select id from graphile_worker.add_job('noop', %s::json)"
MANY = """
select count(*) from graphile_worker.add_jobs((
  select array_agg(
    row('noop', json_build_object('i', i), null, null, null, null, null, null)
    ::graphile_worker.job_spec)
  from unnest(%s::integer[]) as i
))
"""
FILL = """
select count(*) from graphile_worker.add_jobs((
  select array_agg(
    row('noop', json_build_object('i', i), null, now() + make_interval(secs => %(delay)s::float8),
      null, null, null, null)::graphile_worker.job_spec)
  from generate_series(%(first)s::integer, %(last)s::integer) as i
))
"""


class Graphile(Peer):
    """LISTEN and a poll every two seconds."""

    name = "graphile"
    title = "graphile-worker"
    npm = ("graphile-worker@0.18.0",)
    settings: ClassVar = {
        "default": "run({concurrency: 5}), LISTEN, poll 2 s",
        "tuned": "its fast preset: concurrentJobs 24, localQueue 500, completeJobBatchDelay 0",
    }
    keeps = "nothing: a finished job is deleted"
    absent: ClassVar = {
        "steps": "has no steps",
        "cycle": "no public call claims one job",
    }
    waiting = """
      select count(*) from graphile_worker._private_jobs
      where run_at <= now() or locked_at is not null
    """
    script = HERE / "graphile.mjs"
    scripted = frozenset({"install", "work"})

    def producer(self, dsn: str) -> Producer:
        """Call the SQL functions."""
        return SqlProducer(dsn, ONE, MANY)

    def fill(self, dsn: str, first: int, number: int, delay: float | None) -> None:
        """Call the SQL function."""
        fill_by(dsn, FILL, first, number, delay)


PEER = Graphile()
