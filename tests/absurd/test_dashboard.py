"""What absurd's dashboard reads, for tasks in every state, is what absurd itself shows it.

The dashboard is a Go program without a package that could be installed here. These are queries of
our own that read the same relations and columns, and join and filter them in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.absurd.calls import Calls
from tests.absurd.test_copy import fill
from tests.absurd.test_runs import at

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg.rows import DictRow

    Named = Callable[[DictRow], tuple[Any, ...]]

QUEUE = "My jobs"

QUEUES = "select q.queue_name from absurd.queues as q where q.queue_name = %s"

STATES = """
    select t.state, count(*) from absurd."t_My jobs" as t group by t.state order by t.state
"""

METRICS = """
    select
      count(*) as tasks,
      count(*) filter (where t.state in ('pending', 'sleeping')) as queued,
      count(*) filter (where t.state = 'pending' and r.available_at <= absurd.current_time()),
      min(r.created_at) filter (where t.state in ('pending', 'sleeping')) as oldest,
      max(r.created_at) filter (where t.state in ('pending', 'sleeping')) as newest
    from absurd."t_My jobs" as t
    left join absurd."r_My jobs" as r
      on r.task_id = t.task_id and r.run_id = t.last_attempt_run
"""

NAMES = """
    with newest as (
      select r.task_id from absurd."r_My jobs" as r order by r.run_id desc limit 5000
    )
    select distinct t.task_name
    from newest as n
    join absurd."t_My jobs" as t on t.task_id = n.task_id
    order by t.task_name
"""

RUNS = """
    select
      t.task_id, r.run_id, t.task_name, t.state as task_state, r.state, r.attempt,
      t.max_attempts, t.params, t.retry_strategy, t.headers, r.created_at, r.completed_at,
      coalesce(r.completed_at, r.failed_at, r.started_at, r.created_at) as updated_at,
      coalesce(r.failure_reason, r.result) as outcome, r.claimed_by
    from absurd."r_My jobs" as r
    join absurd."t_My jobs" as t on t.task_id = r.task_id
    where {}
    order by r.run_id desc
    limit 100
"""
FILTERS: dict[str, tuple[Any, ...]] = {
    "true": (),
    "r.state = %s": ("sleeping",),
    "r.state = 'failed' and t.state = 'failed' and r.run_id = t.last_attempt_run": (),
    "t.task_name = %s": ("failed",),
    "r.created_at >= %s and r.created_at <= %s": (at(5), at(15)),
}

CHECKPOINTS = """
    select c.checkpoint_name, c.state, c.status, c.owner_run_id = %(run)s as own, c.updated_at
    from absurd."c_My jobs" as c
    where c.task_id = %(task)s and c.owner_run_id = %(run)s
    order by c.updated_at desc, c.checkpoint_name
"""

WAITS = """
    select
      case
        when r.wake_event is not null then 'event'
        when r.available_at > absurd.current_time() then 'timer'
        else 'none'
      end as kind,
      r.available_at::text, r.wake_event, w.step_name, r.event_payload, w.created_at, e.emitted_at
    from absurd."r_My jobs" as r
    left join absurd."w_My jobs" as w on w.run_id = r.run_id
    left join absurd."e_My jobs" as e
      on e.event_name = r.wake_event and e.payload is not null
    where r.run_id = %(run)s and r.state = 'sleeping'
"""

EVENTS = """
    select e.event_name, e.payload, e.emitted_at
    from absurd."e_My jobs" as e
    where e.payload is not null
    order by e.emitted_at desc, e.event_name
    limit 100
"""


def shorten(row: DictRow) -> dict[str, Any]:
    """A run with its task's name and attempt for ids, and without the wording of a message."""
    row = {k: v for k, v in row.items() if k not in ("task_id", "run_id")}
    if isinstance(row["outcome"], dict):
        row["outcome"].pop("message", None)
    return row


def dashboard(db: Calls) -> dict[str, Any]:
    """All that the dashboard's pages show."""
    shown: dict[str, Any] = {
        "queues": db.rows(QUEUES, QUEUE),
        "states": db.rows(STATES),
        "metrics": db.rows(METRICS),
        "names": db.rows(NAMES),
        "events": db.rows(EVENTS),
    }
    for condition, values in FILTERS.items():
        rows = db.rows(RUNS.format(condition), *values)
        shown[condition] = sorted(map(shorten, rows), key=str)
    for row in db.rows(RUNS.format("true")):
        name = (row["task_name"], row["attempt"])
        ids = {"task": row["task_id"], "run": row["run_id"]}
        # by the run's id alone, as a link to a run has it
        [alone] = db.rows(RUNS.format("r.run_id = %s"), row["run_id"])
        assert alone == row
        for query in (CHECKPOINTS, WAITS):
            found = db.connection.execute(query.encode(), ids).fetchall()
            shown[f"{name} {query.split()[1]}"] = found
    return shown


@pytest.fixture
def filled(absurd_dsn: str, real_dsn: str) -> tuple[Calls, Calls]:
    """Ours and absurd itself, with the same tasks in every state."""
    both = Calls(absurd_dsn, QUEUE), Calls(real_dsn, QUEUE)
    for db in both:
        db.set_time(0)
        db.call("create_queue")
        fill(db)
    return both


def test_the_pages_of_the_dashboard_are_alike(filled: tuple[Calls, Calls]) -> None:
    ours, real = filled
    with ours.connection, real.connection:
        seen, wanted = dashboard(ours), dashboard(real)
        assert {row["state"] for row in wanted["states"]} == {
            "pending", "running", "sleeping", "completed", "failed", "cancelled",
        }  # fmt: skip
        assert list(seen) == list(wanted) or sorted(seen) == sorted(wanted)
        for page, rows in wanted.items():
            assert seen[page] == rows, page


@pytest.mark.parametrize("extra", [None, 2])
def test_the_dashboards_button_retries_a_task(
    filled: tuple[Calls, Calls], extra: int | None
) -> None:
    answers = []
    for db in filled:
        with db.connection:
            [task] = db.rows(
                'select t.task_id, t.attempts from absurd."t_My jobs" as t where t.task_name = %s',
                "failed",
            )
            options = f'{{"max_attempts": {task["attempts"] + extra}}}' if extra else "{}"
            [row] = db.rows(
                "select r.task_id, r.run_id, r.attempt, r.created"
                " from absurd.retry_task(%s, %s, %s::jsonb) as r",
                QUEUE,
                str(task["task_id"]),
                options,
            )
            assert row["task_id"] == task["task_id"]
            newest = db.task(row["task_id"])
            assert newest["last_attempt_run"] == row["run_id"]
            answers.append((row["attempt"], row["created"], newest["max_attempts"]))
    assert answers[0] == answers[1]
