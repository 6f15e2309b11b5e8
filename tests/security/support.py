"""A call of every public function with arguments it takes, read from the catalog."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import psycopg

Connection = psycopg.Connection[tuple[Any, ...]]

MOMENT = "2031-05-01 12:00:00+00"

# Arguments that are taken, by name, of {function}.{name} or else of {name}.
GIVEN: dict[str, object] = {
    "p_access": "observer",
    "p_after": MOMENT,
    "p_argument": "{}",
    "p_attributes": '{"colour": "red"}',
    "p_changes": "{}",
    "p_claim_timeout": 30,
    "p_cursor": None,
    "p_event_name": "event",
    "p_filter": "{}",
    "p_function": "public.handles",
    "step.p_function": "public.charges",
    "p_job": None,
    "p_limit": 10,
    "set_limit.p_limit": '{"max_running": 5}',
    "p_mode": "all",
    "p_name": "name",
    "p_only": None,
    "p_options": "{}",
    "ticker_loop.p_options": '{"max_seconds": 0}',
    "p_owner_run": "{run}",
    "p_params": "{}",
    "p_payload": "{}",
    "p_policy": "{}",
    "p_queue_name": "own",
    "drop_queue.p_queue_name": "brief",
    "p_queue_names": ["own"],
    "p_qty": 1,
    "p_reason": "reason",
    "fail_run.p_reason": "{}",
    "p_retry_at": None,
    "p_role": "teguh_guest",
    "p_run_id": "{run}",
    "p_runs": "[]",
    "p_schedule": "@daily",
    "p_schedule_name": "of own",
    "p_scope": "task",
    "p_state": "{}",
    "p_step_name": "step",
    "p_task": '{"task_name": "undo"}',
    "p_task_id": "{task}",
    "p_task_name": "task",
    "p_tasks": '[{"task_name": "one"}]',
    "p_timeout": 1,
    "p_timezone": "UTC",
    "p_topic": "topic",
    "p_ttl_seconds": 86400,
    "p_until": MOMENT,
    "p_uuid": "{task}",
    "p_wake_at": MOMENT,
    "p_workflow_run_id": "{flow}",
    "p_worker_id": "worker",
}
# Of what none is named here, a second is enough.
SECONDS = 1.0


@dataclass(frozen=True)
class Function:
    """A public function."""

    name: str
    kind: str
    arguments: tuple[tuple[str, str], ...]

    def statement(self) -> bytes:
        """Return a call with a placeholder for each argument."""
        places = ", ".join(f"{name} => %({name})s::{kind}" for name, kind in self.arguments)
        verb = "call" if self.kind == "p" else "select * from"
        return f"{verb} teguh.{self.name}({places})".encode()

    def given(self, **ids: object) -> dict[str, object]:
        """Return arguments that are taken."""
        found: dict[str, object] = {}
        for name, kind in self.arguments:
            value = GIVEN.get(f"{self.name}.{name}", GIVEN.get(name, SECONDS))
            if isinstance(value, str) and value in ("{run}", "{task}", "{flow}"):
                value = ids[value.strip("{}")]
            assert value is not SECONDS or kind == "double precision", (self.name, name)
            found[name] = value
        return found


def public_functions(connection: Connection) -> list[Function]:
    """Return every public function of the catalog."""
    rows = connection.execute(
        """
        select
          p.proname, p.prokind::text,
          array(
            select array[a.name, format_type(a.type, null)]
            from unnest(p.proargnames, p.proargtypes::oid[]) with ordinality as a(name, type, n)
            where a.type is not null
            order by a.n
          )
        from pg_proc as p
        where p.pronamespace = 'teguh'::regnamespace and p.proname !~ '^_'
        order by p.proname
        """
    ).fetchall()
    return [
        Function(str(name), str(kind), tuple((str(a), str(t)) for a, t in arguments or ()))
        for name, kind, arguments in rows
    ]


@dataclass(frozen=True)
class Ids:
    """A run that is held, its task, a workflow run."""

    run: object
    task: object
    flow: object


def settle(connection: Connection) -> Ids:
    """Make the queues `own`, `other` and `brief`, with a task, a schedule and a handler each."""
    connection.execute(
        "create function public.handles(job teguh.job) returns jsonb"
        " language sql as 'select null::jsonb';"
        "create function public.charges(argument jsonb) returns jsonb"
        " language sql as 'select null::jsonb'"
    )
    for queue in ("brief", "other", "own"):
        schedule = f"of {queue}"
        for call, values in (
            ("create_queue(%s)", (queue,)),
            ("create_schedule(%s, %s, 'task', '@daily')", (schedule, queue)),
            ("register_handler(%s, 'task', 'public.handles')", (queue,)),
            ("spawn_task(%s, 'task', '{}')", (queue,)),
        ):
            connection.execute(f"select teguh.{call}".encode(), values)
    ((run, task),) = connection.execute(
        "select run_id, task_id from teguh.claim_task('own', 'worker', 3600)"
    ).fetchall()
    ((flow,),) = connection.execute(
        "select workflow_run_id from teguh.create_workflow_run('flow')"
    ).fetchall()
    return Ids(run, task, flow)


def nested(levels: int) -> str:
    """Return a JSON text of arrays in arrays."""
    return "[" * levels + "]" * levels


def text(value: object) -> str:
    """Return a value as JSON."""
    return json.dumps(value, ensure_ascii=False)
