-- Read a task, or raise TG003.
create or replace function teguh._fetch_template(p_task_id uuid)
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
  where t.task_id = p_task_id;
  if not found then
    raise exception 'task "%" does not exist', p_task_id
      using
        errcode = 'TG003',
        detail = 'This queue has no task with that id.',
        hint = 'Check the queue; or the task was removed by cleanup.';
  end if;

  return v_task;
end;
$$;

-- Cancel a task that is not over.  Its dispatch rows and timers mean nothing from
-- then on; a worker that holds it meets AB001 at its next call.
create or replace function teguh._stop_template(p_task_id uuid, p_now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template;
begin
  select t.* into v_task
  from teguh.t_template as t
  where t.task_id = p_task_id
    and t.state in ('pending', 'running', 'sleeping')
  for no key update;
  if not found then
    perform teguh._fetch_template(p_task_id);
    return;
  end if;

  update teguh.t_template as t
  set
    state = 'cancelled',
    lease_expires_at = null,
    finished_at = p_now
  where t.task_id = p_task_id;
  delete from teguh.w_template as w
  where w.task_id = p_task_id;
  perform teguh._moved_template(v_task, 'x');
end;
$$;

-- Cancel a task.
create or replace function teguh.cancel_task(p_queue_name text, p_task_id uuid)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  execute teguh._call('stop', p_queue_name, 2) using p_task_id, teguh.current_time();
end;
$$;

comment on function teguh.cancel_task(text, uuid) is
  'Cancels a task. One that is over stays as it is; a worker that holds it meets '
  'AB001 at its next call. Raises TG001 for an unknown queue, TG003 for an unknown task.';

-- Run a task that is over once more: in place, keeping its checkpoints, or as a new
-- task of the same name, params and options.
create or replace function teguh._rerun_template(
  p_task_id      uuid,
  p_spawn_new    boolean,
  p_max_attempts integer
)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now  timestamptz := teguh.current_time();
  v_task teguh.t_template;
begin
  select t.* into v_task
  from teguh.t_template as t
  where t.task_id = p_task_id
  for no key update;
  if not found then
    perform teguh._fetch_template(p_task_id);
  elsif v_task.state not in ('failed', 'cancelled', 'expired')
    and not (p_spawn_new and v_task.state = 'completed')
  then
    raise exception 'task "%" is %', p_task_id, v_task.state
      using
        errcode = 'TG004',
        detail = 'Only a task that failed, expired or was cancelled can be retried in place.',
        hint = 'With {"spawn_new": true} a completed one can be run again as a new task.';
  end if;

  if p_spawn_new then
    return query
    select *
    from teguh._put_template(array[row(
      v_task.task_name, v_task.params, v_task.headers, v_task.retry_strategy,
      coalesce(p_max_attempts, v_task.max_attempts), v_task.cancellation, null, false, null,
      v_task.tags, v_task.correlation_id, v_task.parent_task_id, v_task.workflow_run_id,
      v_task.timeout_seconds, null, v_task.on_expired, null
    )::teguh._spawn]);
    return;
  end if;

  if p_max_attempts <= v_task.failures then
    raise exception 'max_attempts % is used up', p_max_attempts
      using
        errcode = 'TG005',
        detail = format('The task has failed %s times.', v_task.failures),
        hint = format('Give at least %s.', v_task.failures + 1);
  end if;

  perform teguh._file_template(
    v_task, v_task.state, v_task.failure_reason, v_task.finished_at
  );
  perform teguh._again_template(
    v_task, teguh._run_number(v_task.run_id) + 1, v_task.failures, v_task.failure_reason,
    v_now, v_now
  );
  perform teguh._renew_template(v_task, p_max_attempts, v_now);

  return query
  select t.task_id, t.run_id, t.attempt + 1, false
  from teguh.t_template as t
  where t.task_id = p_task_id;
end;
$$;

-- Give a task that is retried in place room for another run and a new deadline.  One that
-- expired does not expire again.
create or replace function teguh._renew_template(
  p_task         teguh.t_template,
  p_max_attempts integer,
  p_now          timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_key   text := case
    when p_task.first_started_at is null then 'max_delay' else 'max_duration'
  end;
  v_limit timestamptz := teguh._after(
    p_now, (p_task.cancellation ->> v_key)::double precision
  );
begin
  update teguh.t_template as t
  set
    max_attempts = case
      when p_max_attempts is not null then p_max_attempts
      when t.max_attempts <= t.failures then t.failures + 1
      else t.max_attempts
    end,
    deadline_at = v_limit,
    expires_at = null
  where t.task_id = p_task.task_id;

  if v_limit is not null then
    perform teguh._push_template('l', array[p_task.task_id], array[0], array[v_limit]);
  end if;
end;
$$;

-- Retry a task.
create or replace function teguh.retry_task(
  p_queue_name text,
  p_task_id    uuid,
  p_options    jsonb default '{}'
)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options   jsonb := coalesce(p_options, '{}');
  v_spawn_new jsonb := coalesce(nullif(v_options -> 'spawn_new', 'null'), 'false');
begin
  perform teguh._check_keys('retry options', v_options, array['spawn_new', 'max_attempts']);
  if jsonb_typeof(v_spawn_new) <> 'boolean' then
    raise exception '"spawn_new" must be true or false'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_spawn_new::text, 200)),
        hint = 'true spawns a new task, false runs the same one again.';
  end if;

  return query execute teguh._call('rerun', p_queue_name, 3)
  using
    p_task_id,
    v_spawn_new::boolean,
    teguh._integer_option(v_options, 'max_attempts', 1);
end;
$$;

comment on function teguh.retry_task(text, uuid, jsonb) is
  'Runs a failed, expired or cancelled task once more, from its checkpoints on, without '
  'its old time to live. Options: '
  'spawn_new (true: leave the task and spawn a new one like it; also for completed '
  'tasks), max_attempts (default: room for at least one more run). attempt is the '
  'number that the next claim will show. Raises TG001 for an unknown queue, TG003 for '
  'an unknown task, TG004 if it is not over, TG005 for a bad option.';

-- A task's state and result.
create or replace function teguh._show_template(p_task_id uuid)
  returns table(
    task_id           uuid,
    state             text,
    attempts          integer,
    completed_payload jsonb,
    cancelled_at      timestamptz,
    failure_reason    jsonb,
    failures          integer,
    task_name         text,
    created_at        timestamptz,
    available_at      timestamptz,
    first_started_at  timestamptz,
    finished_at       timestamptz,
    tags              text[],
    correlation_id    text,
    parent_task_id    uuid,
    workflow_run_id   uuid
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template := teguh._fetch_template(p_task_id);
begin
  return query
  select
    v_task.task_id,
    v_task.state,
    v_task.attempt,
    v_task.result,
    case when v_task.state = 'cancelled' then v_task.finished_at end,
    v_task.failure_reason,
    v_task.failures,
    v_task.task_name,
    v_task.created_at,
    v_task.available_at,
    v_task.first_started_at,
    v_task.finished_at,
    v_task.tags,
    v_task.correlation_id,
    v_task.parent_task_id,
    v_task.workflow_run_id;
end;
$$;

-- Look up a task's result.
create or replace function teguh.get_task_result(p_queue_name text, p_task_id uuid)
  returns table(
    task_id           uuid,
    state             text,
    attempts          integer,
    completed_payload jsonb,
    cancelled_at      timestamptz,
    failure_reason    jsonb,
    failures          integer,
    task_name         text,
    created_at        timestamptz,
    available_at      timestamptz,
    first_started_at  timestamptz,
    finished_at       timestamptz,
    tags              text[],
    correlation_id    text,
    parent_task_id    uuid,
    workflow_run_id   uuid
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('show', p_queue_name, 1) using p_task_id;
end;
$$;

comment on function teguh.get_task_result(text, uuid) is
  'Where a task stands and what came of it. state is pending, running, sleeping, '
  'completed, failed, cancelled or expired; attempts is how often it was handed to a '
  'worker; failure_reason is why its last failed run failed; tags, correlation_id, '
  'parent_task_id and workflow_run_id are what it was spawned with. Raises TG001 for an unknown '
  'queue, TG003 for an unknown task.';
