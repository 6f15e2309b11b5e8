-- Lock the task of a run that a worker holds, or raise why it does not.
--
-- Every call of a worker comes through here, or makes the same checks in one
-- update.  The row lock keeps the run from ending under the caller until commit.
create or replace function teguh._hold_template(p_run_id uuid)
  returns teguh.t_template
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template;
begin
  select t.* into v_task
  from teguh.t_template as t
  where t.task_id = teguh._run_task(p_run_id)
  for no key update;

  if (v_task.run_id = p_run_id and v_task.state = 'running') is not true then
    perform teguh._deny_template(v_task, p_run_id);
  end if;
  return v_task;
end;
$$;

-- Raise why a run is not held, whose task stands like this; null: there is no such task.
create or replace function teguh._deny_template(p_task teguh.t_template, p_run_id uuid)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_late boolean := teguh._run_number(p_run_id) < teguh._run_number(p_task.run_id);
begin
  if p_task.task_id is null
    or teguh._run_number(p_run_id) not between 1 and teguh._run_number(p_task.run_id)
  then
    raise exception 'run "%" does not exist', p_run_id
      using
        errcode = 'TG002',
        detail = 'No task of this queue has a run with that id.',
        hint = 'Check the queue, and that the id is a run''s and not a task''s.';
  elsif p_task.state = 'cancelled' then
    raise exception 'task "%" is cancelled', p_task.task_id
      using
        errcode = 'AB001',
        detail = format('It was cancelled at %s.', p_task.finished_at),
        hint = 'Stop working on it.';
  elsif v_late or p_task.state in ('completed', 'failed', 'expired') then
    raise exception 'run "%" has ended', p_run_id
      using
        errcode = 'AB002',
        detail = format('Its task is %s, in run "%s".', p_task.state, p_task.run_id),
        hint = 'Stop working on it: it was finished, or its lease was lost.';
  end if;

  raise exception 'run "%" is not running', p_run_id
    using
      errcode = 'TG004',
      detail = format('It is %s: no worker holds it.', p_task.state),
      hint = 'Claim it first.';
end;
$$;

-- The same, and the run must be one of this task.
create or replace function teguh._own_template(p_task_id uuid, p_run_id uuid)
  returns teguh.t_template
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_task_id is distinct from teguh._run_task(p_run_id) then
    raise exception 'run "%" is not a run of task "%"', p_run_id, p_task_id
      using
        errcode = 'TG002',
        detail = 'A run may write only to its own task.',
        hint = 'Pass the task_id and run_id that claim_task returned together.';
  end if;

  return teguh._hold_template(p_run_id);
end;
$$;

-- End a run with success.
create or replace function teguh._done_template(p_run_id uuid, p_state jsonb)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task_id uuid := teguh._run_task(p_run_id);
  v_now     timestamptz := teguh.current_time();
  v_turn    integer;
  v_name    text;
  v_started timestamptz;
  v_links   jsonb;
  v_seconds double precision;
begin
  update teguh.t_template as t
  set
    state = 'completed',
    result = p_state,
    failure_reason = null,
    finished_at = v_now
  where t.task_id = v_task_id
    and t.run_id = p_run_id
    and t.state = 'running'
  returning t.turn, t.task_name, t.started_at, t.links into v_turn, v_name, v_started, v_links;
  if not found then
    perform teguh._hold_template(p_run_id);
  end if;

  v_seconds := date_part('epoch', v_now - v_started);
  perform teguh._tally_template(
    v_name, 'r', 'c', 1, teguh._bound(v_seconds, q.buckets), v_seconds
  )
  from teguh.queues as q
  where q.queue_name = substr('_template', 2);

  if v_links is not null then
    perform teguh._linked_template(v_task_id, 'completed');
  end if;
  -- a task in its first turn has never waited
  if v_turn > 1 then
    delete from teguh.w_template as w
    where w.task_id = v_task_id;
  end if;
end;
$$;

-- Complete a run.
create or replace function teguh.complete_run(
  p_queue_name text,
  p_run_id     uuid,
  p_state      jsonb default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  execute teguh._call('done', p_queue_name, 2) using p_run_id, p_state;
end;
$$;

comment on function teguh.complete_run(text, uuid, jsonb) is
  'Ends a run with success and stores p_state as the result of its task. Raises '
  'TG001 for an unknown queue, TG002 for an unknown run, TG004 if nobody holds the '
  'run, AB001 if the task is cancelled, AB002 if the run has ended.';

-- End many runs with success, in the order of their ids: the rows are locked as they are
-- updated.  A run that is no longer held is reported, and does not keep the others from
-- ending.
create or replace function teguh._flush_template(p_run_ids uuid[], p_states jsonb[])
  returns table(run_id uuid, applied boolean, error text)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now     timestamptz := teguh.current_time();
  v_done    uuid[];
  v_waited  uuid[];
  v_linked  uuid[];
  v_errors  text[];
  v_names   text[];
  v_seconds double precision[];
  v_least   double precision;
  v_most    double precision;
  v_sum     double precision;
begin
  with runs as materialized (
    select teguh._run_task(u.run_id) as task_id, u.run_id, u.state
    from unnest(p_run_ids, p_states) as u(run_id, state)
    order by 1
  ),

  done as (
    update teguh.t_template as t
    set
      state = 'completed',
      result = r.state,
      failure_reason = null,
      finished_at = v_now
    from runs as r
    where t.task_id = r.task_id
      and t.run_id = r.run_id
      and t.state = 'running'
    returning
      t.task_id, t.run_id, t.turn, t.task_name, t.links is not null as linked,
      date_part('epoch', v_now - t.started_at) as seconds
  )

  select
    array_agg(d.run_id), array_agg(d.task_name),
    array_agg(d.task_id) filter (where d.turn > 1), array_agg(d.task_id) filter (where d.linked),
    array_agg(d.seconds), min(d.seconds), max(d.seconds), sum(d.seconds)
  into v_done, v_names, v_waited, v_linked, v_seconds, v_least, v_most, v_sum
  from done as d;
  perform teguh._tally_template(
    v_names[1], 'r', 'c', cardinality(v_names), teguh._bound(v_most, q.buckets), v_sum
  )
  from teguh.queues as q
  where q.queue_name = substr('_template', 2)
    and v_names[1] = all (v_names)
    and teguh._bound(v_least, q.buckets) = teguh._bound(v_most, q.buckets);
  if not found then
    perform teguh._finish_template(v_names, v_seconds);
  end if;
  if v_linked is not null then
    perform teguh._linked_template(u.task_id, 'completed')
    from unnest(v_linked) as u(task_id);
  end if;

  -- a task in its first turn has never waited
  if v_waited is not null then
    delete from teguh.w_template as w
    where w.task_id = any (v_waited);
  end if;

  if cardinality(v_done) is distinct from cardinality(p_run_ids) then
    v_errors := array(
      select case when u.run_id = any (v_done) then null else teguh._why_template(u.run_id) end
      from unnest(p_run_ids) as u(run_id)
    );
  end if;

  return query
  select u.run_id, u.error is null, u.error
  from unnest(p_run_ids, v_errors) as u(run_id, error);
end;
$$;

-- Why a run could not be completed, as the SQLSTATE that complete_run() raises.  Its task is not
-- locked: the caller holds others, and whoever holds this one may wait for those.
create or replace function teguh._why_template(p_run_id uuid)
  returns text
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template;
begin
  select t.* into v_task
  from teguh.t_template as t
  where t.task_id = teguh._run_task(p_run_id);
  if (v_task.run_id = p_run_id and v_task.state = 'running') is not true then
    perform teguh._deny_template(v_task, p_run_id);
  end if;
  return 'AB002';
exception
  when sqlstate 'AB001' or sqlstate 'AB002' or sqlstate 'TG002' or sqlstate 'TG004' then
    return sqlstate;
end;
$$;

-- Read an array of runs to complete, or raise TG005.
create or replace function teguh._read_runs(
  p_runs      jsonb,
  out run_ids uuid[],
  out states  jsonb[]
)
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_good boolean;
begin
  if jsonb_typeof(p_runs) is distinct from 'array' then
    raise exception 'runs must be a JSON array'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(coalesce(p_runs::text, 'null'), 200)),
        hint = 'For instance [{"run_id": "…", "state": {}}].';
  end if;

  begin
    select
      array_agg((a.run ->> 'run_id')::uuid),
      array_agg(nullif(a.run -> 'state', 'null')),
      bool_and(coalesce(a.run - '{run_id,state}'::text[] = '{}', false))
    into run_ids, states, v_good
    from jsonb_array_elements(p_runs) as a(run);
  exception
    when invalid_text_representation or invalid_parameter_value then
      v_good := false;
  end;
  if not v_good or array_position(run_ids, null) is not null then
    perform teguh._explain_bad_run(p_runs);
  end if;

  if (select count(distinct u.run_id) from unnest(run_ids) as u(run_id)) < cardinality(run_ids) then
    raise exception 'a run is listed twice'
      using
        errcode = 'TG005',
        detail = 'A run ends once, with one result.',
        hint = 'List each run_id once.';
  end if;
end;
$$;

-- Raise which element of an array is no run.
create or replace function teguh._explain_bad_run(p_runs jsonb)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_bad jsonb;
begin
  select a.run into v_bad
  from jsonb_array_elements(p_runs) as a(run)
  where jsonb_typeof(a.run) <> 'object'
    or a.run - '{run_id,state}'::text[] <> '{}'
    or coalesce(a.run ->> 'run_id', '') !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
  limit 1;

  raise exception 'not a run to complete'
    using
      errcode = 'TG005',
      detail = format('Found: %s.', left(v_bad::text, 200)),
      hint = 'An element is {"run_id": a run''s id, "state": its result}, and nothing else.';
end;
$$;

-- Complete many runs with one statement.
create or replace function teguh.complete_runs(p_queue_name text, p_runs jsonb)
  returns table(run_id uuid, applied boolean, error text)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_runs record;
begin
  v_runs := teguh._read_runs(p_runs);
  return query execute teguh._call('flush', p_queue_name, 2) using v_runs.run_ids, v_runs.states;
end;
$$;

comment on function teguh.complete_runs(text, jsonb) is
  'Ends an array of {"run_id", "state"} with success. Each run comes back with '
  'applied; where that is false, error is the SQLSTATE that complete_run() would '
  'have raised, and the other runs are completed all the same. Raises TG001 for an '
  'unknown queue, TG005 for anything but an array.';

-- End a run of a locked task with failure: queue the next run, or end the task.
--
-- The task keeps its current run only, so what ended goes to the history when
-- another run follows.  A retry that could not start before the task's deadline
-- is a cancellation.
create or replace function teguh._end_template(
  p_task     teguh.t_template,
  p_reason   jsonb,
  p_retry_at timestamptz,
  p_now      timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_failures integer := p_task.failures + 1;
  v_number   integer := teguh._run_number(p_task.run_id) + 1;
  v_retry_at timestamptz := coalesce(
    p_retry_at,
    teguh._after(p_now, teguh._backoff(p_task.retry_strategy, v_failures, p_task.task_id))
  );
begin
  if v_failures >= p_task.max_attempts or v_number > 1048575 then
    update teguh.t_template as t
    set
      state = 'failed',
      failures = v_failures,
      failure_reason = p_reason,
      finished_at = p_now
    where t.task_id = p_task.task_id;
    perform teguh._lost_template(p_task.task_id, 'failed', p_now);
    perform teguh._moved_template(p_task, 'f', p_now);
    return;
  end if;

  if v_retry_at >= p_task.deadline_at then
    update teguh.t_template as t
    set
      failures = v_failures,
      failure_reason = p_reason
    where t.task_id = p_task.task_id;
    perform teguh._close_template(p_task, p_now);
    return;
  end if;

  perform teguh._file_template(p_task, 'failed', p_reason, p_now);
  perform teguh._again_template(p_task, v_number, v_failures, p_reason, v_retry_at, p_now);
end;
$$;

-- Note that a locked task has ended without success: it waits for nothing, is found among its
-- like, and is followed by what there is for that case.
create or replace function teguh._lost_template(p_task_id uuid, p_state text, p_now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  delete from teguh.w_template as w
  where w.task_id = p_task_id;
  insert into teguh.d_template as d (state, task_id, ended_at)
  values (p_state, p_task_id, p_now)
  on conflict do nothing;
  perform teguh._linked_template(p_task_id, p_state)
  from teguh.t_template as t
  where t.task_id = p_task_id
    and t.links is not null;
end;
$$;

-- Write the run that a locked task is leaving behind into the history, if the queue keeps one.
create or replace function teguh._file_template(
  p_task   teguh.t_template,
  p_state  text,
  p_reason jsonb,
  p_now    timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into teguh.r_template as r (
    task_id, run_id, attempt, state, claimed_by, started_at, lease_expires_at, finished_at,
    failure_reason
  )
  select
    p_task.task_id, p_task.run_id, p_task.attempt, p_state, p_task.claimed_by,
    p_task.started_at, p_task.lease_expires_at, p_now, p_reason
  from teguh.queues as q
  where q.queue_name = substr('_template', 2)
    and coalesce((q.policy ->> 'history')::boolean, true);
end;
$$;

-- Why the current run of a task has failed; null if it has not.  Until then the task's row says
-- why the last one that did has: of a task that is over, the number of failures tells them apart.
create or replace function teguh._blame_template(p_task teguh.t_template)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when p_task.state = 'failed' then p_task.failure_reason
    when p_task.state in ('expired', 'cancelled') and p_task.failures > (
      select count(*)
      from teguh.r_template as r
      where r.task_id = p_task.task_id
        and r.failure_reason is not null
    ) then p_task.failure_reason
    else nullif(p_task.failure_reason, (
      select r.failure_reason
      from teguh.r_template as r
      where r.task_id = p_task.task_id
        and r.failure_reason is not null
      order by r.run_id desc
      limit 1
    ))
  end;
end;
$$;

-- Begin the next run of a locked task: at once, or when p_at has come.
create or replace function teguh._again_template(
  p_task     teguh.t_template,
  p_number   integer,
  p_failures integer,
  p_reason   jsonb,
  p_at       timestamptz,
  p_now      timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  update teguh.t_template as t
  set
    run_id = teguh._run_id(p_task.task_id, p_number),
    turn = p_task.turn + 1,
    laned = false,
    failures = p_failures,
    state = case when p_at > p_now then 'sleeping' else 'pending' end,
    available_at = greatest(p_at, p_now),
    claimed_by = null,
    lease_expires_at = null,
    finished_at = null,
    wake_event = null,
    event_payload = null,
    failure_reason = p_reason
  where t.task_id = p_task.task_id;

  perform teguh._queue_template(p_task.task_id, p_task.turn + 1, p_at, p_now);
  perform teguh._moved_template(
    p_task,
    case when p_at > p_now then 's' else 'p' end::"char",
    case when p_failures > p_task.failures then p_now end
  );
end;
$$;

-- Queue a task for a turn that begins at once, or when p_at has come.
create or replace function teguh._queue_template(
  p_task_id uuid,
  p_turn    integer,
  p_at      timestamptz,
  p_now     timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_at > p_now then
    perform teguh._push_template('s', array[p_task_id], array[p_turn], array[p_at]);
  else
    perform teguh._push_template('r', array[p_task_id], array[p_turn]);
  end if;
end;
$$;

-- End a run with failure.
create or replace function teguh._fail_template(
  p_run_id   uuid,
  p_reason   jsonb,
  p_retry_at timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._end_template(
    teguh._hold_template(p_run_id), coalesce(p_reason, 'null'), p_retry_at, teguh.current_time()
  );
end;
$$;

-- Fail a run.
create or replace function teguh.fail_run(
  p_queue_name text,
  p_run_id     uuid,
  p_reason     jsonb,
  p_retry_at   timestamptz default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  execute teguh._call('fail', p_queue_name, 3) using p_run_id, p_reason, p_retry_at;
end;
$$;

comment on function teguh.fail_run(text, uuid, jsonb, timestamptz) is
  'Ends a run with failure. While the task has failed fewer than max_attempts times '
  'another run follows, at p_retry_at or, if that is null, after the delay of its '
  'retry strategy; else the task ends as failed. p_reason is kept per run. Raises '
  'TG001 for an unknown queue, TG002 for an unknown run, TG004 if nobody holds the '
  'run, AB001 if the task is cancelled, AB002 if the run has ended.';

-- Put a run to sleep.
create or replace function teguh._nap_template(p_run_id uuid, p_wake_at timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template := teguh._hold_template(p_run_id);
  v_now  timestamptz := teguh.current_time();
begin
  update teguh.t_template as t
  set
    turn = v_task.turn + 1,
    state = case when p_wake_at > v_now then 'sleeping' else 'pending' end,
    available_at = greatest(p_wake_at, v_now),
    claimed_by = null,
    lease_expires_at = null,
    wake_event = null,
    event_payload = null
  where t.task_id = v_task.task_id;

  perform teguh._queue_template(v_task.task_id, v_task.turn + 1, p_wake_at, v_now);
  perform teguh._moved_template(
    v_task, case when p_wake_at > v_now then 's' else 'p' end::"char"
  );
end;
$$;

-- Let a run sleep until a moment.
create or replace function teguh.schedule_run(
  p_queue_name text,
  p_run_id     uuid,
  p_wake_at    timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_wake_at is null then
    raise exception 'wake time must not be null'
      using
        errcode = '22004',
        detail = 'A run that sleeps must have a time to wake at.',
        hint = 'Pass a timestamp; one in the past wakes the run at once.';
  end if;

  execute teguh._call('nap', p_queue_name, 2) using p_run_id, p_wake_at;
end;
$$;

comment on function teguh.schedule_run(text, uuid, timestamptz) is
  'Lets a run sleep until p_wake_at; at once if that has passed. It keeps its id and '
  'consumes no attempt of max_attempts. Raises 22004 for a null time, TG001 for an '
  'unknown queue, TG002 for an unknown run, TG004 if nobody holds the run, AB001 if '
  'the task is cancelled, AB002 if the run has ended.';

-- Hand a run back as if it had not been claimed.
create or replace function teguh._free_template(p_run_id uuid, p_delay double precision)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task    teguh.t_template := teguh._hold_template(p_run_id);
  v_now     timestamptz := teguh.current_time();
  v_at      timestamptz := teguh._after(v_now, p_delay);
  v_unbegun boolean := v_task.attempt = 1;
  v_limit   timestamptz := v_task.deadline_at;
begin
  if v_unbegun then
    v_limit := least(
      v_task.expires_at,
      teguh._after(v_at, (v_task.cancellation ->> 'max_delay')::double precision)
    );
  end if;

  update teguh.t_template as t
  set
    turn = v_task.turn + 1,
    attempt = v_task.attempt - 1,
    state = case when v_at > v_now then 'sleeping' else 'pending' end,
    available_at = v_at,
    deadline_at = v_limit,
    first_started_at = case when not v_unbegun then t.first_started_at end,
    claimed_by = null,
    lease_expires_at = null
  where t.task_id = v_task.task_id;

  if v_unbegun and v_limit is not null then
    perform teguh._push_template('l', array[v_task.task_id], array[0], array[v_limit]);
  end if;
  perform teguh._queue_template(v_task.task_id, v_task.turn + 1, v_at, v_now);
  perform teguh._moved_template(
    v_task,
    teguh._letter(
      case when v_at > v_now then 'sleeping' else 'pending' end,
      v_task.attempt - 1,
      v_task.wake_event
    )
  );
end;
$$;

-- Hand a run back.
create or replace function teguh.release_run(
  p_queue_name text,
  p_run_id     uuid,
  p_delay      double precision default 0
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_seconds('delay', p_delay, true);
  execute teguh._call('free', p_queue_name, 2) using p_run_id, p_delay;
end;
$$;

comment on function teguh.release_run(text, uuid, double precision) is
  'Hands a run back to the queue, claimable again after p_delay seconds. Neither its '
  'attempt nor its failures change: for a worker that shuts down, or does not know '
  'the task. Raises TG001 for an unknown queue, TG002 for an unknown run, TG004 if '
  'nobody holds the run, TG005 for a bad delay, AB001 if the task is cancelled, AB002 '
  'if the run has ended.';

-- Move the end of a lease.  An earlier end than before needs a timer of its own; a
-- later one is found out when the present timer comes due.
create or replace function teguh._keep_template(p_run_id uuid, p_extend_by double precision)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task  teguh.t_template := teguh._hold_template(p_run_id);
  v_until timestamptz := least(
    teguh._after(teguh.current_time(), p_extend_by),
    teguh._after(v_task.started_at, v_task.timeout_seconds)
  );
begin
  update teguh.t_template as t
  set lease_expires_at = v_until
  where t.task_id = v_task.task_id;

  if v_task.lease_expires_at is null or v_until < v_task.lease_expires_at then
    perform teguh._push_template(
      'l', array[v_task.task_id], array[v_task.turn], array[v_until]
    );
  end if;
end;
$$;

-- Extend a lease: the heartbeat.
create or replace function teguh.extend_claim(
  p_queue_name text,
  p_run_id     uuid,
  p_extend_by  double precision
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_seconds('extension', p_extend_by, false);
  execute teguh._call('keep', p_queue_name, 2) using p_run_id, p_extend_by;
end;
$$;

comment on function teguh.extend_claim(text, uuid, double precision) is
  'Sets the end of a run''s lease to p_extend_by seconds from now: it never adds up, and '
  'never goes past the run''s timeout. '
  'Raises TG001 for an unknown queue, TG002 for an unknown run, TG004 if nobody holds '
  'the run, TG005 unless p_extend_by is positive, AB001 if the task is cancelled, '
  'AB002 if the run has ended.';
