"""Who may do what: every public function, as every kind of role, on its queue and on another."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.cluster import TEGUH_SQL, Cluster, send
from tools.servers import GUEST

if TYPE_CHECKING:
    from collections.abc import Iterator

Connection = psycopg.Connection[tuple[Any, ...]]

TASK = "'00000000-0000-7000-8000-000000000000'"
RUN = "'00000000-0000-7000-8000-000000000001'"

# A call of each function. {q} is the queue.
CALLS = {
    "version": "select teguh.version()",
    "current_time": "select teguh.current_time()",
    "portable_uuidv7": "select teguh.portable_uuidv7()",
    "uuidv7_timestamp": f"select teguh.uuidv7_timestamp({TASK})",
    "validate_queue_name": "select teguh.validate_queue_name('{q}')",
    "list_queues": "select * from teguh.list_queues()",
    "status": "select * from teguh.status()",
    "get_task_result": f"select teguh.get_task_result('{{q}}', {TASK})",
    "get_task_checkpoint_state": f"select teguh.get_task_checkpoint_state('{{q}}', {TASK}, 's')",
    "get_task_checkpoint_states":
        f"select teguh.get_task_checkpoint_states('{{q}}', {TASK}, {RUN})",
    "get_task": f"select teguh.get_task('{{q}}', {TASK})",
    "list_tasks": "select * from teguh.list_tasks('{q}')",
    "list_runs": f"select teguh.list_runs('{{q}}', {TASK})",
    "get_task_history": f"select teguh.get_task_history('{{q}}', {TASK})",
    "list_workers": "select * from teguh.list_workers('{q}')",
    "list_actions": "select * from teguh.list_actions('{q}')",
    "list_dead_letters": "select * from teguh.list_dead_letters('{q}')",
    "list_events": "select * from teguh.list_events('{q}')",
    "list_messages": f"select * from teguh.list_messages('{{q}}', {TASK})",
    "list_namespaces": "select * from teguh.list_namespaces()",
    "spawn_task": "select teguh.spawn_task('{q}', 't', '{{}}')",
    "spawn_tasks": "select teguh.spawn_tasks('{q}', '[{{\"task_name\": \"t\"}}]')",
    "emit_event": "select teguh.emit_event('{q}', 'e')",
    "send_message": f"select teguh.send_message('{{q}}', {TASK}, 't')",
    "cancel_task": f"select teguh.cancel_task('{{q}}', {TASK})",
    "cancel_tasks": "select teguh.cancel_tasks('{q}', '{{\"tag\": \"none\"}}')",
    "retry_task": f"select teguh.retry_task('{{q}}', {TASK})",
    "claim_task": "select * from teguh.claim_task('{q}', 'w')",
    "claim_any": "select * from teguh.claim_any(array['{q}'], 'w')",
    "next_due": "select teguh.next_due('{q}')",
    "complete_run": f"select teguh.complete_run('{{q}}', {RUN})",
    "complete_runs": "select teguh.complete_runs('{q}', '[]')",
    "fail_run": f"select teguh.fail_run('{{q}}', {RUN}, '{{{{}}}}')",
    "schedule_run": f"select teguh.schedule_run('{{q}}', {RUN}, '2020-01-01')",
    "release_run": f"select teguh.release_run('{{q}}', {RUN})",
    "extend_claim": f"select teguh.extend_claim('{{q}}', {RUN}, 1)",
    "set_task_checkpoint_state":
        f"select teguh.set_task_checkpoint_state('{{q}}', {TASK}, 's', '1', {RUN})",
    "await_event": f"select teguh.await_event('{{q}}', {TASK}, {RUN}, 's', 'e')",
    "receive_message": f"select teguh.receive_message('{{q}}', {TASK}, {RUN}, 's', 't')",
    "spawn_children": f"select teguh.spawn_children('{{q}}', {RUN}, 's', '[]')",
    "await_children": f"select teguh.await_children('{{q}}', {TASK}, {RUN}, 's')",
    "add_compensation":
        f"select teguh.add_compensation('{{q}}', {TASK}, {RUN}, 's',"
        " '{{\"task_name\": \"t\"}}')",
    "repeat_run": f"select teguh.repeat_run('{{q}}', {RUN})",
    "create_workflow_run": "select teguh.create_workflow_run('w')",
    "update_workflow_run": f"select teguh.update_workflow_run({TASK}, '{{{{}}}}')",
    "get_workflow_run": f"select teguh.get_workflow_run({TASK})",
    "get_workflow_tree": f"select teguh.get_workflow_tree({TASK})",
    "list_workflow_runs": "select * from teguh.list_workflow_runs()",
    "cleanup_workflow_runs": "select teguh.cleanup_workflow_runs()",
    "set_attributes": f"select teguh.set_attributes('{{q}}', {RUN}, '{{{{}}}}')",
    "get_attributes": f"select teguh.get_attributes('{{q}}', {TASK})",
    "work": "call teguh.work('{q}')",
    "step": "select teguh.step(null, 's', 's.f')",
    "sleep_for": "select teguh.sleep_for(null, 's', 1)",
    "sleep_until": "select teguh.sleep_until(null, 's', '2020-01-01')",
    "await": "select teguh.await(null, 's', 'e')",
    "receive": "select teguh.receive(null, 's', 't')",
    "children": "select teguh.children(null, 's', '[]')",
    "register_handler": "select teguh.register_handler('{q}', 't', 'public.handles')",
    "unregister_handler": "select teguh.unregister_handler('{q}', 't')",
    "list_handlers": "select * from teguh.list_handlers('{q}')",
    "ticker": "select teguh.ticker('{q}')",
    "cleanup_tasks": "select teguh.cleanup_tasks('{q}')",
    "cleanup_events": "select teguh.cleanup_events('{q}')",
    "rebuild_dispatch": "select teguh.rebuild_dispatch('{q}')",
    "requeue_task": f"select teguh.requeue_task('{{q}}', {TASK})",
    "requeue_tasks": "select teguh.requeue_tasks('{q}', '{{\"tag\": \"none\"}}')",
    "replay_dead_letters": "select teguh.replay_dead_letters('{q}')",
    "purge_dead_letters": "select teguh.purge_dead_letters('{q}')",
    "pause_queue": "select teguh.pause_queue('{q}', '2020-01-01')",
    "resume_queue": "select teguh.resume_queue('{q}')",
    "next_fire_time": "select teguh.next_fire_time('@daily', '2031-05-01')",
    "get_schedule": "select teguh.get_schedule('of {q}')",
    "list_schedules": "select teguh.list_schedules('{q}')",
    "update_schedule": "select teguh.update_schedule('of {q}', '{{}}')",
    "pause_schedule": "select teguh.pause_schedule('of {q}')",
    "resume_schedule": "select teguh.resume_schedule('of {q}')",
    "trigger_schedule": "select teguh.trigger_schedule('of {q}')",
    "drop_schedule": "select teguh.drop_schedule('of {q}')",
    "create_schedule": "select teguh.create_schedule('of {q}', '{q}', 't', '@daily')",
    "set_limit": "select teguh.set_limit('{q}', 'queue')",
    "limit_usage": "select * from teguh.limit_usage('{q}')",
    "get_queue_policy": "select teguh.get_queue_policy('{q}')",
    "queue_stats": "select * from teguh.queue_stats('{q}')",
    "metrics": "select * from teguh.metrics()",
    "prometheus": "select teguh.prometheus()",
    "health": "select teguh.health()",
    "set_queue_policy": "select teguh.set_queue_policy('{q}', '{{}}')",
    "ticker_loop": "call teguh.ticker_loop('{{\"max_seconds\": 0}}')",
    "cleanup_all_queues": "select * from teguh.cleanup_all_queues()",
    "create_queue": "select teguh.create_queue('{q}')",
    "drop_queue": "select teguh.drop_queue('brief')",
    "start": "select teguh.start()",
    "stop": "select teguh.stop()",
    "grant_access": f"select teguh.grant_access('{GUEST}', 'observer')",
    "revoke_access": f"select teguh.revoke_access('{GUEST}', 'client')",
}  # fmt: skip
ANYWHERE = {"version", "current_time", "portable_uuidv7", "uuidv7_timestamp", "validate_queue_name",
            "list_queues", "list_namespaces", "status", "get_queue_policy", "metrics", "prometheus",
            "health", "next_fire_time", "get_workflow_run", "get_workflow_tree",
            "list_workflow_runs", "step", "sleep_for", "sleep_until", "await", "receive",
            "children"}  # fmt: skip
# What belongs to no queue, for all who have access to any but to look.
UNBOUND = {"create_workflow_run", "update_workflow_run"}
READ = {
    "get_task_result", "get_task_checkpoint_state", "get_task_checkpoint_states", "get_task",
    "list_tasks", "list_runs", "get_task_history", "list_workers", "list_actions",
    "list_dead_letters", "queue_stats", "limit_usage", "get_schedule", "list_schedules",
    "list_messages", "get_attributes", "list_handlers", "list_events",
}  # fmt: skip
CLIENT = READ | UNBOUND | {
    "spawn_task", "spawn_tasks", "emit_event", "cancel_task", "cancel_tasks", "retry_task",
    "send_message",
}  # fmt: skip
WORKER = CLIENT | {
    "claim_task", "claim_any", "next_due", "complete_run", "complete_runs", "fail_run",
    "schedule_run", "release_run", "extend_claim", "set_task_checkpoint_state", "await_event",
    "spawn_children", "await_children", "add_compensation", "repeat_run", "ticker", "work",
    "receive_message", "set_attributes",
}  # fmt: skip
UPKEEP = WORKER | {
    "cleanup_tasks", "cleanup_events", "rebuild_dispatch", "pause_queue", "resume_queue",
    "requeue_task", "requeue_tasks", "replay_dead_letters", "purge_dead_letters",
    "create_schedule", "update_schedule", "pause_schedule", "resume_schedule", "drop_schedule",
    "trigger_schedule", "register_handler", "unregister_handler",
}  # fmt: skip
MATRIX = {"client": CLIENT, "worker": WORKER, "observer": READ, "admin": UPKEEP}


@pytest.fixture
def queues(conn: Connection) -> None:
    """Queues `own`, `other` and `brief`, a schedule of each, and a function to handle tasks."""
    conn.execute(
        "create function public.handles(job teguh.job) returns jsonb"
        " language sql as 'select null::jsonb'"
    )
    for name in ("own", "other", "brief"):
        conn.execute("select teguh.create_queue(%s)", (name,))
        conn.execute(
            "select teguh.create_schedule('of ' || %s::text, %s, 't', '@daily')", (name, name)
        )


@pytest.fixture
def guest(guest_dsn: str) -> Iterator[Connection]:
    """A connection of a role without rights of its own."""
    with psycopg.connect(guest_dsn, autocommit=True) as connection:
        yield connection


def allowed(connection: Connection, queue: str) -> set[str]:
    """Return the functions that may be called: with or without success, but not refused."""
    found = set()
    for name, call in CALLS.items():
        try:
            connection.execute(call.format(q=queue).encode())
        except psycopg.errors.InsufficientPrivilege:
            continue
        except psycopg.Error as error:
            # it got through to look for a run, a task, a handler
            if error.sqlstate not in {"TG002", "TG003", "TG004", "TG009"}:
                raise
        found.add(name)
    return found


def test_the_list_names_every_public_function(conn: Connection) -> None:
    rows = conn.execute(
        "select distinct proname from pg_proc"
        " where pronamespace = 'teguh'::regnamespace and proname !~ '^_'"
    ).fetchall()
    assert {str(row[0]) for row in rows} == set(CALLS)


def test_a_role_without_access_may_do_nothing(guest: Connection, queues: None) -> None:
    assert allowed(guest, "own") == set()


@pytest.mark.parametrize("access", MATRIX)
def test_access_to_one_queue_allows_what_it_says_there_and_nothing_on_another(
    conn: Connection, guest: Connection, queues: None, access: str
) -> None:
    conn.execute("select teguh.grant_access(%s, %s, '{own}')", (GUEST, access))
    assert allowed(guest, "own") == ANYWHERE | MATRIX[access]
    assert allowed(guest, "other") == ANYWHERE | (MATRIX[access] & UNBOUND)


@pytest.mark.parametrize("access", MATRIX)
def test_access_to_all_queues_allows_it_on_each_and_admins_everything(
    conn: Connection, guest: Connection, queues: None, access: str
) -> None:
    conn.execute("select teguh.grant_access(%s, %s)", (GUEST, access))
    conn.execute("select teguh.create_queue('later')")
    conn.execute("select teguh.create_schedule('of later', 'later', 't', '@daily')")
    everything = set(CALLS) if access == "admin" else ANYWHERE | MATRIX[access]
    assert allowed(guest, "later") == everything


def test_whoever_has_access_still_has_no_right_to_any_table(
    conn: Connection, guest: Connection, queues: None
) -> None:
    conn.execute("select teguh.grant_access(%s, 'admin')", (GUEST,))
    rows = guest.execute(
        """
        select c.oid::regclass
        from pg_class as c
        where c.relnamespace = 'teguh'::regnamespace
          and case
            when c.relkind in ('r', 'v') then
              has_table_privilege(c.oid, 'select, insert, update, delete, truncate, references')
            when c.relkind = 'S' then has_sequence_privilege(c.oid, 'usage, select, update')
          end
        """
    ).fetchall()
    assert rows == []


def test_rights_survive_that_the_file_is_run_again(
    dsn: str, conn: Connection, guest: Connection, queues: None
) -> None:
    conn.execute("select teguh.grant_access(%s, 'worker', '{own}')", (GUEST,))
    send(dsn, TEGUH_SQL.read_text(encoding="utf-8"))
    assert allowed(guest, "own") == ANYWHERE | WORKER
    assert allowed(guest, "other") == ANYWHERE | UNBOUND


def test_a_role_can_be_dropped_once_its_access_is_revoked(
    conn: Connection, superuser_dsn: str, queues: None
) -> None:
    with psycopg.connect(superuser_dsn, autocommit=True) as superuser:
        superuser.execute('create role "Odd, role"')
        try:
            conn.execute("select teguh.grant_access('Odd, role', 'admin')")
            conn.execute("select teguh.revoke_access('Odd, role')")
        finally:
            superuser.execute('drop role "Odd, role"')
    assert conn.execute("select * from teguh.grants").fetchall() == []


def test_a_schema_that_somebody_else_has_made_is_not_installed_into(
    cluster: Cluster, empty_dsn: str
) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as owner:
        superuser_dsn = cluster.server.dsn(owner.info.dbname)
        with psycopg.connect(superuser_dsn, autocommit=True) as superuser:
            superuser.execute(f"create schema teguh authorization {GUEST}".encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="belongs to teguh_guest"):
            owner.execute(TEGUH_SQL.read_bytes())
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="belongs to teguh_guest"):
            send(superuser_dsn, TEGUH_SQL.read_text(encoding="utf-8"))


def rpc(connection: Connection, name: str, **arguments: object) -> list[dict[str, Any]]:
    """Call a function as PostgREST does: by names of arguments, which come as one JSON object."""
    types: dict[str, str] = dict(
        connection.execute(
            "select a.name, format_type(a.type, null) from pg_proc as p"
            " cross join lateral unnest(p.proargnames, p.proargtypes::oid[]) as a(name, type)"
            " where p.pronamespace = 'teguh'::regnamespace and p.proname = %s",
            (name,),
        ).fetchall()
    )
    columns = ", ".join(f'"{argument}" {types[argument]}' for argument in arguments)
    passed = ", ".join(f'"{argument}" := a."{argument}"' for argument in arguments)
    query = (
        f"select r.* from json_to_record(%s) as a({columns})"
        f" cross join lateral teguh.{name}({passed}) as r"
    )
    cursor = connection.cursor(row_factory=dict_row)
    return cursor.execute(query.encode(), (json.dumps(arguments, default=str),)).fetchall()


@pytest.fixture
def postgrest(conn: Connection, queues: None) -> Iterator[Connection]:
    """A transaction of PostgREST, which has become a role with a client's access to `own`."""
    conn.execute("select teguh.grant_access(%s, 'client', '{own}')", (GUEST,))
    with conn.transaction():
        conn.execute(f"set local role {GUEST}".encode())
        conn.execute("set local search_path = teguh, public")
        yield conn


def test_a_client_may_do_its_part_through_postgrest(postgrest: Connection) -> None:
    (task,) = rpc(
        postgrest, "spawn_task", p_queue_name="own", p_task_name="t", p_params={"n": 1},
        p_options={"tags": ["a"]},
    )  # fmt: skip
    which = {"p_queue_name": "own", "p_task_id": task["task_id"]}
    (found,) = rpc(postgrest, "get_task_result", **which)
    assert (found["state"], found["tags"]) == ("pending", ["a"])
    rpc(postgrest, "cancel_task", **which)
    rpc(postgrest, "emit_event", p_queue_name="own", p_event_name="e", p_payload={"n": 2})
    (again,) = rpc(postgrest, "retry_task", **which)
    assert again["task_id"] == task["task_id"]
    many = [{"task_name": "t", "params": n} for n in range(2)]
    assert len(rpc(postgrest, "spawn_tasks", p_queue_name="own", p_tasks=many)) == 2
    assert rpc(postgrest, "get_task_checkpoint_states", **which, p_run_id=None) == []
    assert rpc(postgrest, "get_queue_policy", p_queue_name="own")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("spawn_task", {"p_queue_name": "other", "p_task_name": "t", "p_params": 1}),
        ("claim_task", {"p_queue_name": "own", "p_worker_id": "w"}),
        ("create_queue", {"p_queue_name": "mine"}),
        ("grant_access", {"p_role": GUEST, "p_access": "admin"}),
    ],
)
def test_a_client_may_do_nothing_else_through_postgrest(
    postgrest: Connection, name: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege), postgrest.transaction():
        rpc(postgrest, name, **arguments)
