"""How long it takes to look at a queue that has run ten million tasks.

The history is put into the tables by plain inserts, not by spawning and completing each task: it
is only there to be searched.  On top come live tasks, made by the functions.  Of each function and
each filter the median and the worst of 20 calls are printed, in milliseconds.

usage: python bench/inspection.py [--tasks 10000000] [--live 1000] [--plans]
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from bench.common import (
    TEGUH_SQL,
    add_server_options,
    connect,
    database_of,
    percentile,
    scalar,
    server_of,
)

if TYPE_CHECKING:
    from bench.common import Conn

CALLS = 20
BATCH = 500_000

# Task n of p_tasks, a millisecond after the one before: every name, tag and so on is spread evenly
# but "old", which only the first thousandth has.
FILL = """
with made as (
  select
    n,
    encode(substr(int8send(1700000000000 + n), 3) || '\\x70008000000000'
      || substr(int4send((n %% 65536)::integer), 3) || '\\x00', 'hex')::uuid as task_id,
    to_timestamp((1700000000000 + n) / 1000.0) as at,
    case when n %% 1000 <> 0 then 'completed'
      else (array['failed', 'failed', 'cancelled', 'expired'])[1 + n / 1000 %% 4] end as state
  from generate_series(%(first)s::bigint, %(last)s::bigint) as n
),
tasks as (
  insert into teguh.t_q as t (
    task_id, run_id, turn, attempt, state, created_at, available_at, first_started_at, started_at,
    finished_at, task_name, claimed_by, params, result, tags, correlation_id, parent_task_id,
    workflow_run_id
  )
  select
    m.task_id, teguh._run_id(m.task_id, 1), 1, 1, m.state, m.at, m.at, m.at, m.at,
    m.at + interval '1 second',
    case when m.n %% 1000003 = 0 then 'rare' else 'task_' || m.n %% 20 end, 'w', '{}', 'null',
    case when m.n <= %(total)s / 1000 then '{old}'::text[]
      when m.n %% 10 = 0 then array['common', 'tag_' || m.n %% 100000] end,
    case when m.n %% 5 = 0 then 'matter_' || m.n / 50 end,
    case when m.n %% 4 = 0 then m.task_id end,
    case when m.n %% 4 = 1 then m.task_id end
  from made as m
  returning t.task_id, t.tags
),
tagged as (
  insert into teguh.g_q (tag, task_id)
  select u.tag, t.task_id from tasks as t cross join lateral unnest(t.tags) as u(tag)
)
insert into teguh.d_q (state, task_id, ended_at)
select m.state, m.task_id, m.at from made as m where m.state <> 'completed'
"""

LIVE = """
select count(*) from teguh.spawn_tasks('q', (
  select jsonb_agg(jsonb_build_object('task_name', 'live', 'options', jsonb_build_object(
    'delay_seconds', case when n %% 2 = 0 then 3600 else 0 end)))
  from generate_series(1, %s) as n
))
"""

FILTERS = [
    "{}",
    '{"state": "pending"}', '{"state": "running"}', '{"state": "sleeping"}',
    '{"state": "completed"}', '{"state": "failed"}', '{"state": "cancelled"}',
    '{"state": "expired"}', '{"state": ["failed", "running"]}',
    '{"task_name": "task_1"}', '{"task_name": "rare"}', '{"task_name": "none"}',
    '{"tag": "common"}', '{"tag": "tag_50"}', '{"tag": "old"}', '{"tag": "none"}',
    '{"tags": ["common", "tag_50"]}',
    '{"correlation_id": "matter_7"}', '{"correlation_id": "none"}',
    '{"parent_task_id": "00000000-0000-7000-8000-000000000000"}',
    '{"workflow_run_id": "00000000-0000-7000-8000-000000000000"}',
    '{"created_before": "2023-11-14T23:00:00+00"}', '{"created_after": "2000-01-01T00:00:00+00"}',
    '{"created_after": "2100-01-01T00:00:00+00"}',
    '{"task_name": "task_0", "state": "failed"}', '{"task_name": "rare", "tag": "old"}',
    '{"state": "running", "task_name": "task_1"}', '{"tag": "common", "state": "cancelled"}',
]  # fmt: skip


def main() -> None:
    """Fill a queue, then time each question."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_server_options(parser)
    parser.add_argument("--tasks", type=int, default=10_000_000, help="finished tasks")
    parser.add_argument("--live", type=int, default=1000, help="ready, sleeping and held tasks")
    parser.add_argument("--plans", action="store_true", help="print the plans of the first pages")
    options = parser.parse_args()
    with server_of(options) as server, database_of(server, "inspect", TEGUH_SQL) as dsn:
        connection = connect(dsn)
        fill(connection, options.tasks, options.live)
        for name, statement in questions(connection):
            ask(connection, name, statement)
        if options.plans:
            plans(connection)


def fill(connection: Conn, tasks: int, live: int) -> None:
    """Make the history and the live tasks."""
    begun = time.monotonic()
    connection.execute("select teguh.create_queue('q')")
    connection.execute("set synchronous_commit = off")
    for first in range(1, tasks + 1, BATCH):
        last = min(first + BATCH - 1, tasks)
        connection.execute(FILL.encode(), {"first": first, "last": last, "total": tasks})
        print(f"{last:>10} tasks, {time.monotonic() - begun:.0f} s", flush=True)
    connection.execute("select teguh._census_q()")
    connection.execute("reset synchronous_commit")
    connection.execute(LIVE.encode(), (live,))
    connection.execute("select count(*) from teguh.claim_task('q', 'w', 3600, %s)", (live // 4,))
    for table in ("t", "d", "g"):
        connection.execute(f"vacuum analyze teguh.{table}_q".encode())
    size = scalar(connection, "select pg_size_pretty(pg_total_relation_size('teguh.t_q'))")
    print(f"{tasks} tasks finished, {live} live, {size}, {time.monotonic() - begun:.0f} s\n")
    print(f"{'':64} {'median':>9} {'worst':>9}")


def questions(connection: Conn) -> list[tuple[str, str]]:
    """Return what is asked: a name and a statement each."""
    deep = scalar(
        connection,
        "select task_id::text from teguh.t_q where created_at <="
        " (select created_at from teguh.t_q order by task_id limit 1) + interval '200 seconds'"
        " and task_id < (select teguh._first_uuid(created_at + interval '200 seconds')"
        " from teguh.t_q order by task_id limit 1) order by task_id desc limit 1",
    )
    task = scalar(connection, "select task_id::text from teguh.t_q where state = 'running' limit 1")
    asked = [
        (f"{name}({filters})", f"select * from teguh.list_tasks('q', '{filters}', {cursor})")
        for filters in FILTERS
        for name, cursor in (("list_tasks", "null"), ("  deep", f"'{deep}'"))
    ]
    of_task = ("get_task", "get_task_result", "list_runs", "get_task_history")
    of_queue = ("queue_stats", "list_workers", "list_actions", "list_dead_letters")
    asked += [(name, f"select * from teguh.{name}('q', '{task}')") for name in of_task]
    asked += [(name, f"select * from teguh.{name}('q')") for name in of_queue]
    of_all = ("queue_stats", "metrics", "prometheus", "health", "list_namespaces")
    return [*asked, *((name, f"select * from teguh.{name}()") for name in of_all)]


def ask(connection: Conn, name: str, statement: str) -> None:
    """Time one question."""
    rows = connection.execute(statement.encode()).fetchall()
    times = []
    for _ in range(CALLS):
        begun = time.perf_counter()
        connection.execute(statement.encode()).fetchall()
        times.append(1000 * (time.perf_counter() - begun))
    print(
        f"{name:64} {percentile(times, 0.5):>9.2f} {max(times):>9.2f}   {len(rows)} rows",
        flush=True,
    )


def plans(connection: Conn) -> None:
    """Print the plans of the statements behind each kind of filter, as auto_explain sees them."""
    connection.execute("load 'auto_explain'")
    connection.execute("set auto_explain.log_min_duration = 0")
    connection.execute("set auto_explain.log_nested_statements = on")
    connection.execute("set client_min_messages = log")
    connection.add_notice_handler(lambda notice: print(notice.message_primary))
    for filters in FILTERS:
        print(f"\n=== {filters}")
        connection.execute("select * from teguh.list_tasks('q', %s, null, 50)", (filters,))


if __name__ == "__main__":
    main()
