"""What the catalog and the sources promise, read back: names, comments, rights, error codes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.cluster import ROOT
from tools.servers import GUEST

if TYPE_CHECKING:
    from collections.abc import Iterator

Connection = psycopg.Connection[tuple[Any, ...]]

# The longest name a queue may have.
LONG_QUEUE = "q" * 55

# function(arguments) -> result, as clients in any language rely on them.
SIGNATURES = """
version() -> text
current_time() -> timestamp with time zone
portable_uuidv7() -> uuid
uuidv7_timestamp(p_uuid uuid) -> timestamp with time zone
start(p_options jsonb) -> void
stop() -> void
status() -> TABLE(scheduler text, ticker_job text, cleanup_job text, last_tick_at timestamp with
  time zone, lag_seconds double precision, work_jobs text[])
ticker(p_queue_name text) -> integer
ticker_loop(IN p_options jsonb) -> None
validate_queue_name(p_queue_name text) -> text
create_queue(p_queue_name text, p_policy jsonb) -> void
drop_queue(p_queue_name text) -> void
list_queues() -> TABLE(queue_name text, created_at timestamp with time zone, policy jsonb,
  paused_until timestamp with time zone, namespace text)
list_namespaces() -> TABLE(namespace text, queues bigint)
get_queue_policy(p_queue_name text) -> jsonb
set_queue_policy(p_queue_name text, p_policy jsonb) -> void
pause_queue(p_queue_name text, p_until timestamp with time zone, p_reason text, p_only jsonb)
  -> void
resume_queue(p_queue_name text, p_reason text, p_only jsonb) -> void
set_limit(p_queue_name text, p_scope text, p_name text, p_limit jsonb) -> void
limit_usage(p_queue_name text)
  -> TABLE(scope text, name text, max_running integer, running bigint, rate integer,
  period_seconds double precision, started bigint, waiting bigint, fifo boolean, fair boolean,
  paused_until timestamp with time zone)
spawn_task(p_queue_name text, p_task_name text, p_params jsonb, p_options jsonb)
  -> TABLE(task_id uuid, run_id uuid, attempt integer, created boolean)
spawn_tasks(p_queue_name text, p_tasks jsonb)
  -> TABLE(task_id uuid, run_id uuid, attempt integer, created boolean)
claim_task(p_queue_name text, p_worker_id text, p_claim_timeout double precision, p_qty integer)
  -> TABLE(run_id uuid, task_id uuid, attempt integer, task_name text, params jsonb,
  retry_strategy jsonb, max_attempts integer, headers jsonb, wake_event text, event_payload jsonb,
  failures integer, checkpoints jsonb, lease_expires_at timestamp with time zone,
  timeout_seconds double precision)
claim_any(p_queue_names text[], p_worker_id text, p_claim_timeout double precision,
  p_qty integer, p_options jsonb)
  -> TABLE(run_id uuid, task_id uuid, attempt integer, task_name text, params jsonb,
  retry_strategy jsonb, max_attempts integer, headers jsonb, wake_event text, event_payload jsonb,
  failures integer, checkpoints jsonb, lease_expires_at timestamp with time zone,
  timeout_seconds double precision, queue_name text)
next_due(p_queue_name text) -> timestamp with time zone
complete_run(p_queue_name text, p_run_id uuid, p_state jsonb) -> void
complete_runs(p_queue_name text, p_runs jsonb)
  -> TABLE(run_id uuid, applied boolean, error text)
fail_run(p_queue_name text, p_run_id uuid, p_reason jsonb, p_retry_at timestamp with time zone)
  -> void
schedule_run(p_queue_name text, p_run_id uuid, p_wake_at timestamp with time zone) -> void
release_run(p_queue_name text, p_run_id uuid, p_delay double precision) -> void
extend_claim(p_queue_name text, p_run_id uuid, p_extend_by double precision) -> void
set_task_checkpoint_state(p_queue_name text, p_task_id uuid, p_step_name text, p_state jsonb,
  p_owner_run uuid, p_extend_claim_by double precision) -> void
get_task_checkpoint_state(p_queue_name text, p_task_id uuid, p_step_name text) -> jsonb
get_task_checkpoint_states(p_queue_name text, p_task_id uuid, p_run_id uuid)
  -> TABLE(checkpoint_name text, state jsonb, status text, owner_run_id uuid,
  updated_at timestamp with time zone)
await_event(p_queue_name text, p_task_id uuid, p_run_id uuid, p_step_name text,
  p_event_name text, p_timeout double precision)
  -> TABLE(should_suspend boolean, payload jsonb, timed_out boolean)
emit_event(p_queue_name text, p_event_name text, p_payload jsonb) -> void
next_fire_time(p_schedule text, p_after timestamp with time zone, p_timezone text)
  -> timestamp with time zone
create_schedule(p_schedule_name text, p_queue_name text, p_task_name text, p_schedule text,
  p_options jsonb) -> void
update_schedule(p_schedule_name text, p_changes jsonb) -> void
pause_schedule(p_schedule_name text, p_reason text) -> void
resume_schedule(p_schedule_name text, p_reason text) -> void
drop_schedule(p_schedule_name text, p_reason text) -> void
trigger_schedule(p_schedule_name text, p_reason text)
  -> TABLE(task_id uuid, run_id uuid, attempt integer, created boolean)
get_schedule(p_schedule_name text)
  -> TABLE(schedule_name text, queue_name text, task_name text, schedule text, options jsonb,
  created_at timestamp with time zone, paused_at timestamp with time zone,
  next_fire_at timestamp with time zone, last_planned_at timestamp with time zone,
  last_fired_at timestamp with time zone, last_skipped_at timestamp with time zone,
  last_task_id uuid, last_error text)
list_schedules(p_queue_name text)
  -> TABLE(schedule_name text, queue_name text, task_name text, schedule text, options jsonb,
  created_at timestamp with time zone, paused_at timestamp with time zone,
  next_fire_at timestamp with time zone, last_planned_at timestamp with time zone,
  last_fired_at timestamp with time zone, last_skipped_at timestamp with time zone,
  last_task_id uuid, last_error text)
spawn_children(p_queue_name text, p_run_id uuid, p_step_name text, p_tasks jsonb, p_options jsonb)
  -> TABLE(queue_name text, task_id uuid, created boolean)
await_children(p_queue_name text, p_task_id uuid, p_run_id uuid, p_step_name text, p_mode text,
  p_timeout double precision, p_options jsonb)
  -> TABLE(should_suspend boolean, payload jsonb, timed_out boolean)
send_message(p_queue_name text, p_task_id uuid, p_topic text, p_payload jsonb, p_options jsonb)
  -> TABLE(message_id bigint, created boolean)
receive_message(p_queue_name text, p_task_id uuid, p_run_id uuid, p_step_name text, p_topic text,
  p_timeout double precision)
  -> TABLE(should_suspend boolean, payload jsonb, timed_out boolean)
list_events(p_queue_name text, p_filter jsonb, p_cursor text, p_limit integer)
  -> TABLE(event_name text, created_at timestamp with time zone,
  emitted_at timestamp with time zone, payload jsonb, waiters bigint, cursor text)
list_messages(p_queue_name text, p_task_id uuid)
  -> TABLE(message_id bigint, topic text, payload jsonb, sent_at timestamp with time zone,
  idempotency_key text)
add_compensation(p_queue_name text, p_task_id uuid, p_run_id uuid, p_step_name text, p_task jsonb)
  -> void
repeat_run(p_queue_name text, p_run_id uuid, p_after_seconds double precision) -> uuid
create_workflow_run(p_name text, p_options jsonb)
  -> TABLE(workflow_run_id uuid, created boolean)
update_workflow_run(p_workflow_run_id uuid, p_options jsonb) -> void
get_workflow_run(p_workflow_run_id uuid)
  -> TABLE(workflow_run_id uuid, name text, version text, status text, tags text[],
  created_by text, created_at timestamp with time zone, started_at timestamp with time zone,
  finished_at timestamp with time zone, pending bigint, running bigint, sleeping bigint,
  completed bigint, failed bigint, cancelled bigint, expired bigint, inputs jsonb)
list_workflow_runs(p_filter jsonb, p_cursor text, p_limit integer)
  -> TABLE(workflow_run_id uuid, name text, version text, status text, tags text[],
  created_by text, created_at timestamp with time zone, started_at timestamp with time zone,
  finished_at timestamp with time zone, pending bigint, running bigint, sleeping bigint,
  completed bigint, failed bigint, cancelled bigint, expired bigint, cursor text)
get_workflow_tree(p_workflow_run_id uuid, p_limit integer)
  -> TABLE(depth integer, queue_name text, task_id uuid, parent_task_id uuid, task_name text,
  state text, attempts integer, failures integer, created_at timestamp with time zone,
  started_at timestamp with time zone, finished_at timestamp with time zone,
  failure_reason jsonb, attributes jsonb, cut boolean)
cleanup_workflow_runs(p_ttl_seconds double precision, p_limit integer) -> integer
set_attributes(p_queue_name text, p_run_id uuid, p_attributes jsonb) -> void
get_attributes(p_queue_name text, p_task_id uuid) -> jsonb
register_handler(p_queue_name text, p_task_name text, p_function text) -> void
unregister_handler(p_queue_name text, p_task_name text) -> boolean
list_handlers(p_queue_name text)
  -> TABLE(queue_name text, task_name text, function_name text,
  registered_at timestamp with time zone)
work(IN p_queue_name text, IN p_options jsonb) -> None
step(p_job teguh.job, p_name text, p_function text, p_argument jsonb) -> jsonb
sleep_for(p_job teguh.job, p_name text, p_seconds double precision) -> void
sleep_until(p_job teguh.job, p_name text, p_wake_at timestamp with time zone) -> void
await(p_job teguh.job, p_name text, p_event_name text, p_timeout double precision) -> jsonb
receive(p_job teguh.job, p_name text, p_topic text, p_timeout double precision) -> jsonb
children(p_job teguh.job, p_name text, p_tasks jsonb, p_mode text, p_timeout double precision,
  p_options jsonb) -> jsonb
cancel_task(p_queue_name text, p_task_id uuid, p_reason text) -> void
cancel_tasks(p_queue_name text, p_filter jsonb, p_options jsonb) -> integer
requeue_task(p_queue_name text, p_task_id uuid, p_reason text) -> uuid
requeue_tasks(p_queue_name text, p_filter jsonb, p_options jsonb) -> integer
retry_task(p_queue_name text, p_task_id uuid, p_options jsonb)
  -> TABLE(task_id uuid, run_id uuid, attempt integer, created boolean)
get_task_result(p_queue_name text, p_task_id uuid)
  -> TABLE(task_id uuid, state text, attempts integer, completed_payload jsonb,
  cancelled_at timestamp with time zone, failure_reason jsonb, failures integer, task_name text,
  created_at timestamp with time zone, available_at timestamp with time zone,
  first_started_at timestamp with time zone, finished_at timestamp with time zone, tags text[],
  correlation_id text, parent_task_id uuid, workflow_run_id uuid)
get_task(p_queue_name text, p_task_id uuid)
  -> TABLE(task_id uuid, state text, attempts integer, completed_payload jsonb,
  cancelled_at timestamp with time zone, failure_reason jsonb, failures integer, task_name text,
  created_at timestamp with time zone, available_at timestamp with time zone,
  first_started_at timestamp with time zone, finished_at timestamp with time zone, tags text[],
  correlation_id text, parent_task_id uuid, workflow_run_id uuid, run_id uuid, params jsonb,
  headers jsonb, started_at timestamp with time zone, claimed_by text,
  lease_expires_at timestamp with time zone, wake_event text, event_payload jsonb,
  max_attempts integer, retry_strategy jsonb, timeout_seconds double precision,
  cancellation jsonb, deadline_at timestamp with time zone,
  expires_at timestamp with time zone, on_expired jsonb, idempotency_key text,
  priority smallint, flow_key text, attributes jsonb)
list_tasks(p_queue_name text, p_filter jsonb, p_cursor text, p_limit integer)
  -> TABLE(task_id uuid, task_name text, state text, attempts integer, failures integer,
  created_at timestamp with time zone, available_at timestamp with time zone,
  started_at timestamp with time zone, finished_at timestamp with time zone, claimed_by text,
  lease_expires_at timestamp with time zone, failure_reason jsonb, tags text[], correlation_id text,
  parent_task_id uuid, workflow_run_id uuid, cursor text, attributes jsonb)
list_runs(p_queue_name text, p_task_id uuid)
  -> TABLE(run_id uuid, number integer, state text, attempt integer, claimed_by text,
  started_at timestamp with time zone, lease_expires_at timestamp with time zone,
  finished_at timestamp with time zone, failure_reason jsonb)
get_task_history(p_queue_name text, p_task_id uuid)
  -> TABLE(at timestamp with time zone, event text, run_id uuid, attempt integer, detail jsonb)
list_workers(p_queue_name text)
  -> TABLE(worker_id text, queue_name text, runs bigint, oldest_start timestamp with time zone,
  soonest_lease_end timestamp with time zone)
list_actions(p_queue_name text, p_cursor text, p_limit integer)
  -> TABLE(at timestamp with time zone, action text, by_role text, reason text, task_id uuid,
  run_id uuid, detail jsonb, cursor text)
list_dead_letters(p_queue_name text, p_filter jsonb, p_cursor text, p_limit integer)
  -> TABLE(task_id uuid, task_name text, state text, attempts integer, failures integer,
  created_at timestamp with time zone, available_at timestamp with time zone,
  started_at timestamp with time zone, finished_at timestamp with time zone, claimed_by text,
  lease_expires_at timestamp with time zone, failure_reason jsonb, tags text[], correlation_id text,
  parent_task_id uuid, workflow_run_id uuid, cursor text, attributes jsonb)
replay_dead_letters(p_queue_name text, p_filter jsonb, p_options jsonb) -> integer
purge_dead_letters(p_queue_name text, p_ttl_seconds double precision, p_limit integer,
  p_reason text) -> integer
cleanup_tasks(p_queue_name text, p_ttl_seconds double precision, p_limit integer) -> integer
cleanup_events(p_queue_name text, p_ttl_seconds double precision, p_limit integer) -> integer
cleanup_all_queues(p_queue_name text)
  -> TABLE(queue_name text, tasks_deleted integer, events_deleted integer)
rebuild_dispatch(p_queue_name text) -> bigint
queue_stats(p_queue_name text)
  -> TABLE(queue_name text, pending bigint, delayed bigint, running bigint, sleeping bigint,
  waiting bigint, completed bigint, failed bigint, cancelled bigint, expired bigint,
  oldest_pending_age_seconds double precision, oldest_lease_age_seconds double precision,
  paused boolean, unclaimable bigint)
metrics() -> TABLE(name text, labels jsonb, value double precision)
prometheus() -> text
health() -> jsonb
grant_access(p_role text, p_access text, p_queue_names text[]) -> void
revoke_access(p_role text, p_access text, p_queue_names text[]) -> void
"""

# The catalogue of errors: teguh's own codes, and PostgreSQL's where one fits.
SQLSTATES = {
    "AB001": "the task is cancelled",
    "AB002": "the run has ended or its lease was taken",
    "TG001": "the queue does not exist",
    "TG002": "the run does not exist",
    "TG003": "the task does not exist",
    "TG004": "not in a state for that",
    "TG005": "unknown option or bad value",
    "TG006": "the idempotency key belongs to another task, the unique key is in use",
    "TG007": "the queue is full",
    "TG008": "the schedule does not exist",
    "TG009": "the workflow run does not exist",
    "TG010": "another version is installed",
    "22004": "null where a value is needed",
    "25001": "claim_task outside READ COMMITTED",
    "40001": "serialization failure: try again",
    "42501": "no right to do that",
    "42602": "a name that cannot be",
    "42883": "the function does not exist",
    "42704": "the role does not exist",
    "42939": "a reserved name",
    "55P03": "a lock could not be had in time",
    "P0004": "a handler's order to work(): nobody else meets it",
}


@pytest.fixture
def catalog(superuser_dsn: str) -> Iterator[Connection]:
    """The catalog of a database with teguh and one queue of the longest name."""
    with psycopg.connect(superuser_dsn, autocommit=True) as connection:
        connection.execute("select teguh.create_queue(%s)", (LONG_QUEUE,))
        yield connection


def names(connection: Connection, query: str) -> list[str]:
    """Return the first column of a query's rows."""
    return [str(row[0]) for row in connection.execute(query.encode()).fetchall()]


def test_the_public_functions_are_exactly_those_of_the_contract(catalog: Connection) -> None:
    found = names(
        catalog,
        """
        select format(
          '%s(%s) -> %s', p.proname, regexp_replace(
            pg_get_function_arguments(p.oid), ' DEFAULT [^,)]*', '', 'g'
          ),
          coalesce(pg_get_function_result(p.oid), 'None')
        )
        from pg_proc as p
        where p.pronamespace = 'teguh'::regnamespace and p.proname !~ '^_'
        """,
    )
    wanted = re.sub(r"\n +", " ", SIGNATURES).split("\n")[1:-1]
    assert sorted(found) == sorted(wanted)


def test_every_public_function_says_what_it_does(catalog: Connection) -> None:
    silent = names(
        catalog,
        r"""
        select p.oid::regprocedure
        from pg_proc as p
        where p.pronamespace = 'teguh'::regnamespace
          and p.proname !~ '^_'
          and coalesce(obj_description(p.oid, 'pg_proc'), '') !~ '^[A-Z][^.]{10,}\.'
        """,
    )
    assert silent == []


def test_every_function_pins_its_search_path_or_is_an_expression(catalog: Connection) -> None:
    """Of an expression the linter (T023) sees that it has no name to be looked up."""
    loose = names(
        catalog,
        """
        select p.oid::regprocedure
        from pg_proc as p
        join pg_language as l on l.oid = p.prolang
        where p.pronamespace = 'teguh'::regnamespace
          and p.prokind <> 'p'
          and not coalesce(p.proconfig, '{}') @> array['search_path=pg_catalog, pg_temp']
          and (l.lanname <> 'sql' or p.prosecdef or p.proconfig is not null)
        """,
    )
    assert loose == []


def test_every_expression_is_put_in_the_place_of_its_call(catalog: Connection) -> None:
    calls = names(
        catalog,
        """
        select format('select %s(%s) from (select %s offset 0) as a', p.proname, a.used, a.given)
        from pg_proc as p
        join pg_language as l on l.oid = p.prolang
        cross join lateral (
          select
            string_agg('a.a' || t.n, ', ') as used,
            string_agg(format('null::%s as a%s', format_type(t.type, null), t.n), ', ') as given
          from unnest(p.proargtypes) with ordinality as t(type, n)
        ) as a
        where p.pronamespace = 'teguh'::regnamespace
          and l.lanname = 'sql'
          and p.proconfig is null
          and p.proname !~ '_q+$'
        """,
    )
    assert len(calls) > 5
    for call in calls:
        plan = "\n".join(
            names(catalog, f"explain (verbose, costs off) {call.replace(' ', ' teguh.', 1)}")
        )
        assert not re.search(r"teguh\.\w+\(", plan), plan


def test_no_function_holds_a_backslash(catalog: Connection) -> None:
    """What it means in a string is for the caller's setting standard_conforming_strings to say."""
    found = names(
        catalog,
        """
        select p.oid::regprocedure
        from pg_proc as p
        where p.pronamespace = 'teguh'::regnamespace and strpos(p.prosrc, chr(92)) > 0
        """,
    )
    assert found == []


def test_no_public_function_is_overloaded(catalog: Connection) -> None:
    overloaded = names(
        catalog,
        """
        select p.proname
        from pg_proc as p
        where p.pronamespace = 'teguh'::regnamespace
        group by p.proname
        having count(*) > 1
        """,
    )
    assert overloaded == []


def test_public_may_not_execute_or_read_anything(catalog: Connection) -> None:
    allowed = names(
        catalog,
        f"""
        select 'schema'
        where has_schema_privilege('{GUEST}', 'teguh', 'usage, create')
        union all
        select p.oid::regprocedure::text
        from pg_proc as p
        where p.pronamespace = 'teguh'::regnamespace
          and has_function_privilege('{GUEST}', p.oid, 'execute')
        union all
        select c.oid::regclass::text
        from pg_class as c
        where c.relnamespace = 'teguh'::regnamespace
          and c.relkind in ('r', 'v', 'm', 'p')
          and has_table_privilege('{GUEST}', c.oid, 'select, insert, update, delete, truncate')
        union all
        select c.oid::regclass::text
        from pg_class as c
        where c.relnamespace = 'teguh'::regnamespace
          and case when c.relkind = 'S' then
            has_sequence_privilege('{GUEST}', c.oid, 'usage, select, update')
          end
        """,
    )
    assert allowed == []


def test_every_object_of_the_template_has_its_like_in_a_queue_of_the_longest_name(
    catalog: Connection,
) -> None:
    rows = catalog.execute(
        """
        select 'relation', relname from pg_class where relnamespace = 'teguh'::regnamespace
        union all
        select 'function', proname from pg_proc where pronamespace = 'teguh'::regnamespace
        union all
        select 'constraint', conname from pg_constraint
        where connamespace = 'teguh'::regnamespace and contype <> 'n'
        union all
        select 'trigger', tgname from pg_trigger where not tgisinternal
        """
    ).fetchall()
    objects = {(str(kind), str(name)) for kind, name in rows}
    template = {(kind, name) for kind, name in objects if name.endswith("_template")}
    wanted = {(kind, name.removesuffix("template") + LONG_QUEUE) for kind, name in template}
    assert len(template) > 10
    assert {name for _, name in wanted if len(name) > 63} == set()
    assert wanted - objects == set()


def test_queues_whose_long_names_differ_in_the_last_letter_do_not_meet(
    catalog: Connection,
) -> None:
    other = LONG_QUEUE[:-1] + "z"
    catalog.execute("select teguh.create_queue(%s)", (other,))
    catalog.execute("select teguh.drop_queue(%s)", (LONG_QUEUE,))
    spawned = catalog.execute("select * from teguh.spawn_task(%s, 'a', '{}')", (other,))
    assert spawned.rowcount == 1


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("a", "a_d"), ("a", "t_a"), ("a", "a_pkey"), ("p0_a", "a"), ("a", "key_a"), ("c", "c_c"),
        ("claim", "claim_a"), ("a_template", "template_a"), ("x_template", "x"),
    ],
)  # fmt: skip
def test_queues_with_names_like_tables_or_functions_do_not_meet(
    conn: Connection, one: str, two: str
) -> None:
    for name in (one, two):
        conn.execute("select teguh.create_queue(%s)", (name,))
    for name in (one, two):
        conn.execute("select teguh.spawn_task(%s, %s, '{}')", (name, f"for {name}"))
    claimed = {
        name: conn.execute("select task_name from teguh.claim_task(%s, 'w')", (name,)).fetchall()
        for name in (one, two)
    }
    assert claimed == {name: [(f"for {name}",)] for name in (one, two)}
    conn.execute("select teguh.drop_queue(%s)", (one,))
    assert names(conn, "select queue_name from teguh.list_queues()") == [two]
    conn.execute("select teguh.spawn_task(%s, 'again', '{}')", (two,))


def test_no_helper_is_named_as_a_function_of_some_queue_would_be(catalog: Connection) -> None:
    met = names(
        catalog,
        r"""
        select helper.proname
        from pg_proc as helper
        join pg_proc as f
          on f.pronamespace = helper.pronamespace
          and f.proname ~ '_template$'
          and starts_with(helper.proname, regexp_replace(f.proname, 'template$', ''))
        where helper.pronamespace = 'teguh'::regnamespace
          and helper.proname !~ '_(template|q+)$'
        """,
    )
    assert met == []


def test_nothing_of_a_dropped_queue_is_left(catalog: Connection) -> None:
    catalog.execute("select teguh.drop_queue(%s)", (LONG_QUEUE,))
    left = names(
        catalog,
        f"""
        select relname from pg_class where relname like '%{LONG_QUEUE}'
        union all
        select proname from pg_proc where proname like '%{LONG_QUEUE}'
        union all
        select typname from pg_type where typname like '%{LONG_QUEUE}'
        union all
        select queue_name from teguh.queues
        """,
    )
    assert left == []


def test_every_table_and_view_says_what_it_holds(catalog: Connection) -> None:
    silent = names(
        catalog,
        """
        select c.oid::regclass
        from pg_class as c
        where c.relnamespace = 'teguh'::regnamespace
          and c.relkind in ('r', 'v', 'p')
          and coalesce(obj_description(c.oid, 'pg_class'), '') = ''
        """,
    )
    assert silent == []


def test_every_module_has_its_pgtap_file_and_none_is_left_over() -> None:
    modules = {path.name for path in (ROOT / "sql" / "src").glob("*.sql")}
    tests = {path.name for path in (ROOT / "pg_tap").glob("*.sql")}
    assert tests == modules


def test_every_sqlstate_raised_is_in_the_catalogue() -> None:
    raised = {
        state
        for path in (ROOT / "sql" / "src").glob("*.sql")
        for state in re.findall(r"errcode = '(\w+)'", path.read_text())
    }
    assert raised - set(SQLSTATES) == set()
    assert {state for state in SQLSTATES if state[:2] in ("AB", "TG")} - raised == set()
