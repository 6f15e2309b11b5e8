"""Every statement this package sends, one constant each."""

from __future__ import annotations

# Life cycle

VERSION = "select teguh.version()"
CURRENT_TIME = "select teguh.current_time()"
PORTABLE_UUIDV7 = "select teguh.portable_uuidv7()"
UUIDV7_TIMESTAMP = "select teguh.uuidv7_timestamp(%(id)s)"
START = "select teguh.start(%(options)s::jsonb)"
STOP = "select teguh.stop()"
STATUS = """
select scheduler, ticker_job, cleanup_job, last_tick_at, lag_seconds, work_jobs
from teguh.status()
"""
TICKER = "select teguh.ticker(%(queue)s)"
TICKER_LOOP = "call teguh.ticker_loop(%(options)s::jsonb)"

# Queues. Python knows no infinity of time.

VALIDATE_QUEUE_NAME = "select teguh.validate_queue_name(%(queue)s)"
CREATE_QUEUE = "select teguh.create_queue(%(queue)s, %(policy)s::jsonb)"
DROP_QUEUE = "select teguh.drop_queue(%(queue)s)"
LIST_QUEUES = """
select queue_name, created_at, policy,
       case when paused_until is not null then least(paused_until, '9999-12-31 00:00+00') end,
       namespace
from teguh.list_queues()
"""
LIST_NAMESPACES = "select namespace, queues from teguh.list_namespaces()"
GET_QUEUE_POLICY = "select teguh.get_queue_policy(%(queue)s)"
SET_QUEUE_POLICY = "select teguh.set_queue_policy(%(queue)s, %(policy)s::jsonb)"
PAUSE_QUEUE = """
select teguh.pause_queue(
  %(queue)s, coalesce(%(until)s, 'infinity'::timestamptz), %(reason)s, %(only)s::jsonb)
"""
RESUME_QUEUE = "select teguh.resume_queue(%(queue)s, %(reason)s, %(only)s::jsonb)"

# Limits

SET_LIMIT = "select teguh.set_limit(%(queue)s, %(scope)s, %(name)s, %(limit)s::jsonb)"
LIMIT_USAGE = """
select scope, name, max_running, running, rate, period_seconds, started, waiting, fifo, fair,
       case when paused_until is not null then least(paused_until, '9999-12-31 00:00+00') end
from teguh.limit_usage(%(queue)s)
"""

# Statistics

QUEUE_STATS = """
select queue_name, pending, delayed, running, sleeping, waiting, completed, failed, cancelled,
       expired, oldest_pending_age_seconds, oldest_lease_age_seconds, paused, unclaimable
from teguh.queue_stats(%(queue)s)
"""
METRICS = "select name, labels, value from teguh.metrics()"
PROMETHEUS = "select teguh.prometheus()"
HEALTH = "select teguh.health()"

# Spawning

SPAWN_TASK = """
select task_id, run_id, attempt, created
from teguh.spawn_task(%(queue)s, %(task_name)s, %(params)s::jsonb, %(options)s::jsonb)
"""
SPAWN_TASKS = """
select task_id, run_id, attempt, created
from teguh.spawn_tasks(%(queue)s, %(tasks)s::jsonb)
"""

# Working

CLAIM_TASK = """
select run_id, task_id, attempt, task_name, params, retry_strategy, max_attempts, headers,
       wake_event, event_payload, failures, checkpoints, lease_expires_at, timeout_seconds
from teguh.claim_task(%(queue)s, %(worker)s, %(claim_timeout)s, %(qty)s)
"""
CLAIM_ANY = """
select run_id, task_id, attempt, task_name, params, retry_strategy, max_attempts, headers,
       wake_event, event_payload, failures, checkpoints, lease_expires_at, timeout_seconds,
       queue_name
from teguh.claim_any(
  %(queues)s::text[], %(worker)s, %(claim_timeout)s, %(qty)s, %(options)s::jsonb)
"""
NEXT_DUE = "select teguh.next_due(%(queue)s)"
COMPLETE_RUN = "select teguh.complete_run(%(queue)s, %(run)s, %(state)s::jsonb)"
COMPLETE_RUNS = """
select run_id, applied, error
from teguh.complete_runs(%(queue)s, %(runs)s::jsonb)
"""
FAIL_RUN = "select teguh.fail_run(%(queue)s, %(run)s, %(reason)s::jsonb, %(retry_at)s)"
SCHEDULE_RUN = "select teguh.schedule_run(%(queue)s, %(run)s, %(wake_at)s)"
RELEASE_RUN = "select teguh.release_run(%(queue)s, %(run)s, %(delay)s)"
EXTEND_CLAIM = "select teguh.extend_claim(%(queue)s, %(run)s, %(extend_by)s)"
SET_TASK_CHECKPOINT_STATE = """
select teguh.set_task_checkpoint_state(
  %(queue)s, %(task)s, %(step)s, %(state)s::jsonb, %(run)s, %(extend_by)s)
"""
GET_TASK_CHECKPOINT_STATE = """
select teguh.get_task_checkpoint_state(%(queue)s, %(task)s, %(step)s)
"""
GET_TASK_CHECKPOINT_STATES = """
select checkpoint_name, state, status, owner_run_id, updated_at
from teguh.get_task_checkpoint_states(%(queue)s, %(task)s, %(run)s)
"""
AWAIT_EVENT = """
select should_suspend, payload, timed_out
from teguh.await_event(%(queue)s, %(task)s, %(run)s, %(step)s, %(event)s, %(timeout)s)
"""
SPAWN_CHILDREN = """
select queue_name, task_id, created
from teguh.spawn_children(
  %(queue)s, %(run)s, %(step)s, %(tasks)s::jsonb,
  jsonb_build_object('on_parent_end', %(end)s::text))
"""
AWAIT_CHILDREN = """
select should_suspend, payload, timed_out
from teguh.await_children(
  %(queue)s, %(task)s, %(run)s, %(step)s, %(mode)s, %(timeout)s,
  jsonb_build_object('on_failure', %(on_failure)s::text, 'cancel_rest', %(cancel_rest)s::boolean))
"""
ADD_COMPENSATION = """
select teguh.add_compensation(%(queue)s, %(task)s, %(run)s, %(step)s, %(compensation)s::jsonb)
"""
REPEAT_RUN = "select teguh.repeat_run(%(queue)s, %(run)s, %(after)s)"
SEND_MESSAGE = """
select message_id, created
from teguh.send_message(
  %(queue)s, %(task)s, %(topic)s, %(payload)s::jsonb,
  jsonb_build_object('idempotency_key', %(key)s::text))
"""
RECEIVE_MESSAGE = """
select should_suspend, payload, timed_out
from teguh.receive_message(%(queue)s, %(task)s, %(run)s, %(step)s, %(topic)s, %(timeout)s)
"""
LIST_MESSAGES = """
select message_id, topic, payload, sent_at, idempotency_key
from teguh.list_messages(%(queue)s, %(task)s)
"""
SET_ATTRIBUTES = "select teguh.set_attributes(%(queue)s, %(run)s, %(attributes)s::jsonb)"
GET_ATTRIBUTES = "select teguh.get_attributes(%(queue)s, %(task)s)"
EMIT_EVENT = "select teguh.emit_event(%(queue)s, %(event)s, %(payload)s::jsonb)"
LIST_EVENTS = """
select event_name, created_at, emitted_at, payload, waiters, cursor
from teguh.list_events(%(queue)s, %(filter)s::jsonb, %(cursor)s, %(limit)s)
"""

# Schedules

CREATE_SCHEDULE = """
select teguh.create_schedule(%(name)s, %(queue)s, %(task_name)s, %(schedule)s, %(options)s::jsonb)
"""
UPDATE_SCHEDULE = "select teguh.update_schedule(%(name)s, %(changes)s::jsonb)"
PAUSE_SCHEDULE = "select teguh.pause_schedule(%(name)s, %(reason)s)"
RESUME_SCHEDULE = "select teguh.resume_schedule(%(name)s, %(reason)s)"
DROP_SCHEDULE = "select teguh.drop_schedule(%(name)s, %(reason)s)"
TRIGGER_SCHEDULE = """
select task_id, run_id, attempt, created
from teguh.trigger_schedule(%(name)s, %(reason)s)
"""
GET_SCHEDULE = """
select schedule_name, queue_name, task_name, schedule, options, created_at, paused_at,
       next_fire_at, last_planned_at, last_fired_at, last_skipped_at, last_task_id, last_error
from teguh.get_schedule(%(name)s)
"""
LIST_SCHEDULES = """
select schedule_name, queue_name, task_name, schedule, options, created_at, paused_at,
       next_fire_at, last_planned_at, last_fired_at, last_skipped_at, last_task_id, last_error
from teguh.list_schedules(%(queue)s)
"""
NEXT_FIRE_TIME = "select teguh.next_fire_time(%(schedule)s, %(after)s, %(timezone)s)"

# Workflow runs

CREATE_WORKFLOW_RUN = """
select workflow_run_id, created
from teguh.create_workflow_run(%(name)s, %(options)s::jsonb)
"""
UPDATE_WORKFLOW_RUN = "select teguh.update_workflow_run(%(id)s, %(options)s::jsonb)"
GET_WORKFLOW_RUN = """
select workflow_run_id, name, version, status, tags, created_by, created_at, started_at,
       finished_at, pending, running, sleeping, completed, failed, cancelled, expired, inputs
from teguh.get_workflow_run(%(id)s)
"""
LIST_WORKFLOW_RUNS = """
select workflow_run_id, name, version, status, tags, created_by, created_at, started_at,
       finished_at, pending, running, sleeping, completed, failed, cancelled, expired, cursor
from teguh.list_workflow_runs(%(filter)s::jsonb, %(cursor)s, %(limit)s)
"""
GET_WORKFLOW_TREE = """
select depth, queue_name, task_id, parent_task_id, task_name, state, attempts, failures,
       created_at, started_at, finished_at, failure_reason, attributes, cut
from teguh.get_workflow_tree(%(id)s, %(limit)s)
"""
CLEANUP_WORKFLOW_RUNS = "select teguh.cleanup_workflow_runs(%(ttl)s, %(limit)s)"

# Handlers that are SQL functions

REGISTER_HANDLER = "select teguh.register_handler(%(queue)s, %(task_name)s, %(function)s)"
UNREGISTER_HANDLER = "select teguh.unregister_handler(%(queue)s, %(task_name)s)"
WORK = "call teguh.work(%(queue)s, %(options)s::jsonb)"
LIST_HANDLERS = """
select queue_name, task_name, function_name, registered_at
from teguh.list_handlers(%(queue)s)
"""

# Rights and repair

GRANT_ACCESS = "select teguh.grant_access(%(role)s, %(access)s, %(queues)s)"
REVOKE_ACCESS = "select teguh.revoke_access(%(role)s, %(access)s, %(queues)s)"
REBUILD_DISPATCH = "select teguh.rebuild_dispatch(%(queue)s)"

# Controlling and looking

CANCEL_TASK = "select teguh.cancel_task(%(queue)s, %(task)s, %(reason)s)"
CANCEL_TASKS = "select teguh.cancel_tasks(%(queue)s, %(filter)s::jsonb, %(options)s::jsonb)"
REQUEUE_TASK = "select teguh.requeue_task(%(queue)s, %(task)s, %(reason)s)"
REQUEUE_TASKS = "select teguh.requeue_tasks(%(queue)s, %(filter)s::jsonb, %(options)s::jsonb)"
RETRY_TASK = """
select task_id, run_id, attempt, created
from teguh.retry_task(%(queue)s, %(task)s, %(options)s::jsonb)
"""
GET_TASK_RESULT = """
select task_id, state, attempts, completed_payload, cancelled_at, failure_reason, failures,
       task_name, created_at, available_at, first_started_at, finished_at,
       tags, correlation_id, parent_task_id, workflow_run_id
from teguh.get_task_result(%(queue)s, %(task)s)
"""
GET_TASK = """
select task_id, state, attempts, completed_payload, cancelled_at, failure_reason, failures,
       task_name, created_at, available_at, first_started_at, finished_at,
       tags, correlation_id, parent_task_id, workflow_run_id,
       run_id, params, headers, started_at, claimed_by, lease_expires_at, wake_event,
       event_payload, max_attempts, retry_strategy, timeout_seconds, cancellation, deadline_at,
       expires_at, on_expired, idempotency_key, attributes
from teguh.get_task(%(queue)s, %(task)s)
"""
LIST_TASKS = """
select task_id, task_name, state, attempts, failures, created_at, available_at, started_at,
       finished_at, claimed_by, lease_expires_at, failure_reason, tags, correlation_id,
       parent_task_id, workflow_run_id, cursor, attributes
from teguh.list_tasks(%(queue)s, %(filter)s::jsonb, %(cursor)s, %(limit)s)
"""
LIST_RUNS = """
select run_id, number, state, attempt, claimed_by, started_at, lease_expires_at, finished_at,
       failure_reason
from teguh.list_runs(%(queue)s, %(task)s)
"""
GET_TASK_HISTORY = """
select at, event, run_id, attempt, detail
from teguh.get_task_history(%(queue)s, %(task)s)
"""
LIST_WORKERS = """
select worker_id, queue_name, runs, oldest_start, soonest_lease_end
from teguh.list_workers(%(queue)s)
"""
LIST_ACTIONS = """
select at, action, by_role, reason, task_id, run_id, detail, cursor
from teguh.list_actions(%(queue)s, %(cursor)s, %(limit)s)
"""
LIST_DEAD_LETTERS = """
select task_id, task_name, state, attempts, failures, created_at, available_at, started_at,
       finished_at, claimed_by, lease_expires_at, failure_reason, tags, correlation_id,
       parent_task_id, workflow_run_id, cursor, attributes
from teguh.list_dead_letters(%(queue)s, %(filter)s::jsonb, %(cursor)s, %(limit)s)
"""
REPLAY_DEAD_LETTERS = """
select teguh.replay_dead_letters(%(queue)s, %(filter)s::jsonb, %(options)s::jsonb)
"""
PURGE_DEAD_LETTERS = """
select teguh.purge_dead_letters(%(queue)s, %(ttl)s, %(limit)s, %(reason)s)
"""
CLEANUP_TASKS = "select teguh.cleanup_tasks(%(queue)s, %(ttl)s, %(limit)s)"
CLEANUP_EVENTS = "select teguh.cleanup_events(%(queue)s, %(ttl)s, %(limit)s)"
CLEANUP_ALL_QUEUES = """
select queue_name, tasks_deleted, events_deleted
from teguh.cleanup_all_queues(%(queue)s)
"""

# What a worker sends beside these

LISTEN = "listen {channel}"
UNLISTEN = "unlisten {channel}"
PROBE = "select 1"

# Seconds until the next task is due, by the database's clock; null if none is.
SECONDS_UNTIL_DUE = """
select extract(epoch from teguh.next_due(%(queue)s) - teguh.current_time())::double precision
"""

# Only the runs that could not be completed come back.
COMPLETE_BATCH = """
select run_id, error
from teguh.complete_runs(%(queue)s, %(runs)s::jsonb)
where not applied
"""

# Many runs in one statement and one commit. One refused run refuses them all: the caller
# then goes one by one. Sorted by id, so that two such statements cannot deadlock.
CHECKPOINT_BATCH = """
select teguh.set_task_checkpoint_state(%(queue)s, x.task, x.step, x.state, x.run)
from unnest(%(tasks)s::uuid[], %(steps)s::text[], %(states)s::jsonb[], %(runs)s::uuid[])
  as x (task, step, state, run)
"""
EXTEND_BATCH = """
select teguh.extend_claim(%(queue)s, x.run, %(extend_by)s)
from unnest(%(runs)s::uuid[]) as x (run)
"""
RELEASE_BATCH = """
select teguh.release_run(%(queue)s, x.run, %(delay)s)
from unnest(%(runs)s::uuid[]) as x (run)
"""

# A sleep: the wake time becomes a checkpoint and the run is put to sleep until then, in one
# commit. `offset 0` keeps the clock from being read twice.
SLEEP_FOR = """
select x.wake_at::text,
       teguh.set_task_checkpoint_state(
         %(queue)s, %(task)s, %(step)s, to_jsonb(x.wake_at), %(run)s),
       teguh.schedule_run(%(queue)s, %(run)s, x.wake_at)
from (
  select teguh.current_time() + make_interval(secs => %(seconds)s) as wake_at
  offset 0
) as x
"""
SLEEP_UNTIL = """
select teguh.set_task_checkpoint_state(
         %(queue)s, %(task)s, %(step)s, to_jsonb(%(wake_at)s::timestamptz), %(run)s),
       teguh.schedule_run(%(queue)s, %(run)s, %(wake_at)s::timestamptz)
"""
IS_PAST = "select teguh.current_time() >= %(wake_at)s::timestamptz"

# A spawn from inside a task: the new task and the checkpoint that remembers it, in one commit.
SPAWN_STEP = """
select s.task_id, s.run_id, s.attempt, s.created,
       teguh.set_task_checkpoint_state(
         %(queue)s, %(task)s, %(step)s,
         jsonb_build_object('task_id', s.task_id, 'run_id', s.run_id,
                            'attempt', s.attempt, 'created', s.created),
         %(run)s)
from teguh.spawn_task(%(to_queue)s, %(task_name)s, %(params)s::jsonb, %(options)s::jsonb) as s
"""

# Send a message and remember that as a step's state, in one commit.
SEND_STEP = """
select s.message_id,
       teguh.set_task_checkpoint_state(
         %(queue)s, %(task)s, %(step)s, to_jsonb(s.message_id), %(run)s)
from teguh.send_message(%(to_queue)s, %(to_task)s, %(topic)s, %(payload)s::jsonb) as s
"""
