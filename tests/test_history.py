"""What is asked of a queue does not read its history."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import psycopg

# Under the settings and statistics of a table that has just grown.
FILL = """
insert into teguh.t_q as t (
  task_id, run_id, turn, attempt, state, created_at, available_at, started_at, finished_at,
  task_name, claimed_by, params
)
select i.id, teguh._run_id(i.id, 1), 1, 1, 'completed', now(), now(), now(), now(), 'old', 'w', '{}'
from (select teguh._task_id(now()) as id from generate_series(1, 20000)) as i
"""

ASKED = (
    "select * from teguh.queue_stats('q')",
    "select * from teguh.metrics()",
    "select teguh.prometheus()",
    "select teguh.health()",
    "select * from teguh.list_workers('q')",
    "select * from teguh.limit_usage('q')",
    "select * from teguh.list_tasks('q')",
    "select teguh.next_due('q')",
    "select * from teguh.claim_task('q', 'w', 30, 5)",
    "select * from teguh.claim_any('{q}', 'w', 30, 5, '{\"task_names\": [\"live\"]}')",
    "select teguh.ticker('q')",
)


@pytest.fixture(params=[False, True], ids=["plain", "by rules"])
def busy(
    request: pytest.FixtureRequest, conn: psycopg.Connection[tuple[Any, ...]]
) -> psycopg.Connection[tuple[Any, ...]]:
    """A queue with history, and some tasks that are ready and that are held."""
    conn.autocommit = True
    conn.execute("select teguh.create_queue('q')")
    conn.execute(FILL)
    conn.execute("analyze teguh.t_q")
    if request.param:
        conn.execute("select teguh.set_limit('q', 'key', '*', '{\"max_running\": 3}')")
    for _ in range(60):
        conn.execute("select teguh.spawn_task('q', 'live', '{}', %s)", (json.dumps({"key": "k"}),))
    conn.execute("select count(*) from teguh.claim_task('q', 'w', 30, 20)")
    return conn


@pytest.mark.parametrize("statement", ASKED)
def test_history_is_not_read(busy: psycopg.Connection[tuple[Any, ...]], statement: str) -> None:
    with busy.transaction():
        busy.execute(statement.encode()).fetchall()
        read = busy.execute(
            "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables"
            " where schemaname = 'teguh' and relname = 't_q'"
        ).fetchone()
    assert read is not None
    assert read[0] < 1000
