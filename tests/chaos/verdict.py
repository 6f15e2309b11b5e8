"""What must be true after a storm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from tests.chaos.actors import INSIDE, QUEUE, Conn

if TYPE_CHECKING:
    from uuid import UUID

    from tests.chaos.storm import Storm

# Each query returns what contradicts its name. {q} is the queue, {inside} that of SQL handlers.
CHECKS = {
    "every committed task exists": """
        select distinct s.task_id from chaos.spawned as s
        where not exists (select from teguh.t_{q} as t where t.task_id = s.task_id)
    """,
    "no task exists whose spawn was not committed": """
        select t.task_id from teguh.t_{q} as t
        where t.task_name not in ('next', 'tide')
          and not exists (select from chaos.spawned as s where s.task_id = t.task_id)
    """,
    "a schedule fires once each second": """
        select p.at, f.fired from (
          select teguh.next_fire_time('every second', s.at - interval '1 second') as at
          from (
            select
              min((t.headers ->> 'planned_at')::timestamptz) as low,
              max((t.headers ->> 'planned_at')::timestamptz) as high
            from teguh.t_{q} as t
            where t.task_name = 'tide'
          ) as e
          cross join lateral generate_series(e.low, e.high, interval '1 second') as s(at)
        ) as p
        cross join lateral (
          select count(*) as fired from teguh.t_{q} as t
          where t.task_name = 'tide'
            and (t.headers ->> 'planned_at')::timestamptz = p.at
            and not exists (
              select from teguh.a_{q} as a where a.detail ->> 'task_id' = t.task_id::text
            )
        ) as f
        where f.fired <> 1
        union all
        select null, 0
        where not exists (select from teguh.t_{q} as t where t.task_name = 'tide')
    """,
    "a task of a sequence is followed once, if and only if it is completed": """
        select t.task_id, t.state, f.followers from teguh.t_{q} as t
        cross join lateral (
          select count(*) as followers from teguh.t_{q} as n
          where n.parent_task_id = t.task_id
            and n.task_name = 'next'
            and not exists (
              select from teguh.a_{q} as a where a.detail ->> 'task_id' = n.task_id::text
            )
        ) as f
        where f.followers <> (t.state = 'completed' and t.links ? 'sequence')::integer
    """,
    "the children of a step are spawned once": """
        select t.parent_task_id, t.links -> 'join' ->> 'step_name', count(*) from teguh.t_{q} as t
        where t.links ? 'join'
        group by 1, 2 having count(*) <> 3
    """,
    "every child that is over has told its parent how": """
        select t.task_id, t.state, f.state from teguh.t_{q} as t
        left join teguh.f_{q} as f
          on f.task_id = t.parent_task_id
          and f.step_name = t.links -> 'join' ->> 'step_name'
          and f.place = (t.links -> 'join' ->> 'place')::integer
        where t.links ? 'join' and f.state is distinct from t.state
    """,
    "a task that waits for all its children goes on when all are over": """
        select o.task_id, o.step, o.outcome from chaos.outcomes as o
        join teguh.t_{q} as t on t.task_id = o.task_id
        where o.step ~ '^brood'
          and t.params ->> 'mode' = 'all'
          and t.params -> 'options' ->> 'on_failure' = 'collect'
          and o.outcome ~ 'pending|running|sleeping'
          and not exists (
            select from teguh.a_{q} as a
            join teguh.t_{q} as c on c.task_id = a.task_id
            where c.parent_task_id = t.task_id
          )
    """,
    "a message that was sent is received by its task, or waits for it": """
        select s.task_id, s.payload, m.received_by from chaos.sent as s
        left join teguh.m_{q} as m on (m.task_id, m.payload) = (s.task_id, to_jsonb(s.payload))
        left join teguh.c_{q} as c
          on (c.task_id, c.checkpoint_name) = (m.task_id, m.received_by) and c.state = m.payload
        where m.received_by is null or (m.received_by = '') is distinct from (c.task_id is null)
    """,
    "a message is there if and only if its sender committed": """
        select m.task_id, m.payload from teguh.m_{q} as m
        left join chaos.sent as s on (s.task_id, to_jsonb(s.payload)) = (m.task_id, m.payload)
        group by m.task_id, m.payload having count(s.task_id) <> 1
    """,
    "a message is received once": """
        select o.outcome, array_agg(distinct o.step) from chaos.outcomes as o
        where o.step ~ '^hear' and o.outcome <> 'timeout'
        group by o.outcome having count(distinct (o.task_id, o.step)) > 1
    """,
    "what is received was sent": """
        select o.task_id, o.step, o.outcome from chaos.outcomes as o
        where o.step ~ '^hear'
          and o.outcome <> 'timeout'
          and not exists (
            select from chaos.sent as s where (s.task_id, s.payload) = (o.task_id, o.outcome)
          )
    """,
    "messages of one sender are received in order": """
        select a.task_id, a.payload, b.payload from chaos.sent as a
        join chaos.sent as b
          on (b.task_id, b.topic, b.sender) = (a.task_id, a.topic, a.sender) and b.n > a.n
        join teguh.m_{q} as first
          on (first.task_id, first.payload) = (a.task_id, to_jsonb(a.payload))
        join teguh.m_{q} as second
          on (second.task_id, second.payload) = (b.task_id, to_jsonb(b.payload))
        where second.received_by <> ''
          and (first.received_by = '' or first.received_by > second.received_by)
    """,
    "a task has the attributes that its steps have set": """
        select t.task_id, t.step, v.name from (
          select s.task_id, s.step from chaos.steps as s where s.step ~ '^tell'
          union
          select s.task_id, s.step from chaos.inside as s where s.step ~ '^tell'
        ) as t
        full join (
          select * from teguh.v_{q} union all select * from teguh.v_{inside}
        ) as v on (v.task_id, v.name) = (t.task_id, t.step)
        where t.task_id is null or v.task_id is null
    """,
    "a workflow run counts the tasks that it has": """
        select w.name, w.completed, t.completed, w.failed, t.failed, w.cancelled, t.cancelled
        from teguh.list_workflow_runs() as w
        cross join lateral (
          select
            count(*) filter (where t.state = 'completed') as completed,
            count(*) filter (where t.state = 'failed') as failed,
            count(*) filter (where t.state = 'cancelled') as cancelled
          from teguh.t_{inside} as t
          where t.workflow_run_id = w.workflow_run_id
        ) as t
        where (w.completed, w.failed, w.cancelled) <> (t.completed, t.failed, t.cancelled)
          or w.completed = 0
    """,
    "a step in the database is done if and only if it has a checkpoint": """
        select s.task_id, s.step, c.checkpoint_name from (
          select * from chaos.inside as s where s.step <> 'end'
        ) as s
        full join (
          select * from teguh.c_{inside} as c
          where c.checkpoint_name !~ '^(sleep|wait|brood|hear)'
        ) as c on c.task_id = s.task_id and c.checkpoint_name = s.step
        where s.task_id is null or c.task_id is null
    """,
    "a step in the database is done once": """
        select s.task_id, s.step, count(*) from chaos.inside as s
        group by s.task_id, s.step having count(*) > 1
    """,
    "a handler in the database comes to its end if and only if its task is completed": """
        select t.task_id, t.state, s.step from teguh.t_{inside} as t
        left join chaos.inside as s on s.task_id = t.task_id and s.step = 'end'
        where (t.state = 'completed') is distinct from (s.task_id is not null)
    """,
    "every task in the database is over": """
        select t.task_id, t.state, t.turn, t.available_at, t.lease_expires_at
        from teguh.t_{inside} as t
        where t.state not in ('completed', 'failed', 'cancelled')
    """,
    "every task is over": """
        select t.task_id, t.state, t.turn, t.available_at, t.lease_expires_at from teguh.t_{q} as t
        where t.state not in ('completed', 'failed', 'cancelled')
    """,
    "a run is handed out once, and once more each time it was handed back": """
        select c.run_id, c.claims, r.returns
        from (select run_id, count(*) as claims from chaos.claimed group by run_id) as c
        left join (select run_id, count(*) as returns from chaos.returned group by run_id) as r
          on r.run_id = c.run_id
        where c.claims > 1 + coalesce(r.returns, 0)
    """,
    "attempt counts how often the task was handed out and not released": """
        select t.task_id, t.attempt, c.claims from teguh.t_{q} as t
        cross join lateral (
          select
            (select count(*) from chaos.claimed as c where c.task_id = t.task_id)
            - (
              select count(*) from chaos.returned as r
              where r.task_id = t.task_id and r.how = 'released'
            ) as claims
        ) as c
        where t.attempt <> c.claims
    """,
    "a task is completed once, and only if it says so": """
        select t.task_id, t.state, c.completions from teguh.t_{q} as t
        cross join lateral (
          select count(*) as completions from chaos.completed as c where c.task_id = t.task_id
        ) as c
        where c.completions <> (t.state = 'completed')::integer
    """,
    "a step is run once": """
        select s.task_id, s.step, count(*) from chaos.steps as s
        group by s.task_id, s.step having count(*) > 1
    """,
    "a step is run if and only if it has a checkpoint": """
        select s.task_id, s.step, c.checkpoint_name from chaos.steps as s
        full join (
          select * from teguh.c_{q} as c where c.checkpoint_name !~ '^(wait|brood|hear)'
        ) as c on c.task_id = s.task_id and c.checkpoint_name = s.step
        where s.task_id is null or c.task_id is null
    """,
    "a completed task has done all its steps": """
        select t.task_id, p.step from teguh.t_{q} as t
        cross join jsonb_array_elements_text(t.params -> 'plan') as p(step)
        where t.state = 'completed'
          and not exists (
            select from teguh.c_{q} as c
            where c.task_id = t.task_id and c.checkpoint_name = p.step
          )
    """,
    "a wait ends one way, whenever it is asked": """
        select o.task_id, o.step, array_agg(distinct o.outcome) from chaos.outcomes as o
        group by o.task_id, o.step having count(distinct o.outcome) > 1
    """,
    "an event brings its own payload": """
        select o.task_id, o.step, o.outcome from chaos.outcomes as o
        join teguh.t_{q} as t on t.task_id = o.task_id
        where o.step ~ '^wait' and o.outcome not in ('timeout', t.params ->> 'event')
    """,
    "a task fails when its attempts are used up, not before and not after": """
        select t.task_id, t.state, t.failures, t.max_attempts from teguh.t_{q} as t
        where t.failures > t.max_attempts
          or (t.state = 'failed' and t.failures is distinct from t.max_attempts)
    """,
    "the run before each run is in the history": """
        select t.task_id, t.run_id, r.runs from teguh.t_{q} as t
        cross join lateral (
          select count(*) as runs from teguh.r_{q} as r where r.task_id = t.task_id
        ) as r
        where r.runs <> teguh._run_number(t.run_id) - 1
    """,
    "nobody waits for an event any more": """
        select w.task_id, w.event_name from teguh.w_{q} as w
    """,
    "nothing is left to be claimed": """
        select c.run_id from teguh.claim_task('{q}', 'verdict', 1, 10) as c
    """,
    "nothing is due": """
        select d.at from (select teguh.next_due('{q}') as at) as d where d.at is not null
    """,
    "nothing stands in a lane or takes up room": """
        select l.task_id from teguh.l_{q} as l
        union all
        select h.task_id from teguh.h_{q} as h
    """,
    "the statistics count what is there": """
        select coalesce(c.letter, t.letter), c.qty, t.qty
        from (
          select s.letter, sum(s.qty) as qty
          from teguh._count_{q}() as c
          cross join lateral (values (c.became, c.qty), (c.was, - c.qty)) as s(letter, qty)
          where s.letter <> '-'
          group by s.letter
          having sum(s.qty) <> 0
        ) as c
        full join (
          select teguh._letter(t.state, t.attempt, t.wake_event) as letter, count(*) as qty
          from teguh.t_{q} as t
          group by 1
        ) as t on t.letter = c.letter
        where c.qty is distinct from t.qty
    """,
    "dispatch rows are never updated or deleted": """
        select s.relname, s.n_tup_upd, s.n_tup_del from pg_stat_user_tables as s
        where s.schemaname = 'teguh' and s.relname ~ '^[pkn][01]_{q}$'
          and s.n_tup_upd + s.n_tup_del > 0
    """,
}


def violations(storm: Storm) -> list[str]:
    """Return what went wrong in a storm that is over: nothing, of a sound engine."""
    found = [f"an error reached a caller: {line}" for line in storm.errors]
    with psycopg.connect(storm.dsn, autocommit=True) as connection:
        for table in ("spawned", "claimed", "returned", "completed", "outcomes", "steps"):
            connection.execute(f"create index on chaos.{table} (task_id)".encode())
        connection.execute("analyze")
        for name, query in CHECKS.items():
            statement = query.replace("{q}", QUEUE).replace("{inside}", INSIDE)
            try:
                rows = connection.execute(statement.encode()).fetchall()
            except psycopg.errors.DeadlockDetected as error:
                found.append(f"an error reached a caller: verdict: {error}")
                continue
            if rows:
                found.append(f"{name}: not so for {len(rows)}: {rows[:3]}")
        task_ids = _task_ids(connection)
    for known, name in (
        (storm.committed - task_ids, "committed for its spawner, but not there"),
        (storm.rolled_back & (task_ids - storm.committed), "rolled back by its spawner, but there"),
    ):
        if known:
            found.append(f"{name}: {len(known)}: {sorted(map(str, known))[:3]}")
    return found


def figures(storm: Storm) -> str:
    """Return how much of everything there was."""
    with psycopg.connect(storm.dsn, autocommit=True) as connection:
        connection.execute("select pg_sleep(1.1)")  # counters are sent once a second
        states = connection.execute(
            f"select state, count(*) from teguh.t_{QUEUE} group by 1 order by 1"
        ).fetchall()
        inside = connection.execute(
            f"select state, count(*) from teguh.t_{INSIDE} group by 1 order by 1"
        ).fetchall()
        counts = connection.execute(
            "select (select count(*) from chaos.claimed), (select count(*) from chaos.steps),"
            f" (select count(*) from teguh.r_{QUEUE}),"
            f" (select last_value from teguh.ring_{QUEUE}) / 2"
        ).fetchall()[0]
        dead = connection.execute(
            "select relname, n_dead_tup, pg_table_size(relid) from pg_stat_user_tables"
            " where schemaname = 'teguh' and relname ~ %s order by 1",
            (f"^[a-z][01]?_{QUEUE}$",),
        ).fetchall()
    lines = [
        f"seed {storm.seed}: " + ", ".join(f"{number} {state}" for state, number in states),
        "in the database: " + ", ".join(f"{number} {state}" for state, number in inside),
        "{} claims, {} steps, {} runs in the history, {} segments".format(*counts),
        ", ".join(f"{number} {what}" for what, number in sorted(storm.counts.items())),
        "dead rows and bytes: " + ", ".join(f"{n} {d} {b}" for n, d, b in dead),
    ]
    return "\n".join(lines)


def _task_ids(connection: Conn) -> set[UUID]:
    rows = connection.execute(
        sql.SQL("select task_id from {}").format(sql.Identifier("teguh", f"t_{QUEUE}"))
    ).fetchall()
    return {row[0] for row in rows}
