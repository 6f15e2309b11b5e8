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
-- then on; a worker that holds it meets AB001 at its next call.  Returns the run that it was
-- in, null if it was over.
create or replace function teguh._stop_template(p_task_id uuid, p_now timestamptz)
  returns uuid
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
    return null;
  end if;

  update teguh.t_template as t
  set
    state = 'cancelled',
    lease_expires_at = null,
    finished_at = p_now
  where t.task_id = p_task_id;
  perform teguh._lost_template(p_task_id, 'cancelled', p_now);
  perform teguh._moved_template(v_task, 'x');
  return v_task.run_id;
end;
$$;

-- Record what somebody has done, in the transaction that does it.
create or replace function teguh._act_template(
  p_action  text,
  p_reason  text,
  p_task_id uuid,
  p_run_id  uuid,
  p_detail  jsonb
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into teguh.a_template as a (n, acted_at, deed, reason, task_id, run_id, detail)
  values (
    nextval('teguh.seq_template'::regclass), teguh.current_time(), p_action, p_reason, p_task_id,
    p_run_id, p_detail
  );
end;
$$;

-- Cancel a task for somebody.
create or replace function teguh._halt_template(p_task_id uuid, p_reason text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run_id uuid := teguh._stop_template(p_task_id, teguh.current_time());
begin
  if v_run_id is not null then
    perform teguh._act_template('cancel', p_reason, p_task_id, v_run_id, null);
  end if;
end;
$$;

-- Cancel a task.
create or replace function teguh.cancel_task(
  p_queue_name text,
  p_task_id    uuid,
  p_reason     text default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  execute teguh._call('halt', p_queue_name, 2) using p_task_id, p_reason;
end;
$$;

comment on function teguh.cancel_task(text, uuid, text) is
  'Cancels a task. One that is over stays as it is; a worker that holds it meets '
  'AB001 at its next call. p_reason is shown by get_task_history() and list_actions(). Raises '
  'TG001 for an unknown queue, TG003 for an unknown task.';

-- Run a task that is over once more: in place, keeping its checkpoints, or as a new
-- task of the same name, params and options.
create or replace function teguh._rerun_template(
  p_task_id      uuid,
  p_spawn_new    boolean,
  p_max_attempts integer,
  p_from_step    text,
  p_reason       text
)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now   timestamptz := teguh.current_time();
  v_task  teguh.t_template;
  v_spawn teguh._spawn;
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
    v_spawn := row(
      v_task.task_name, v_task.params, v_task.headers, v_task.retry_strategy,
      coalesce(p_max_attempts, v_task.max_attempts), v_task.cancellation, null, false, null,
      v_task.tags, v_task.correlation_id, v_task.parent_task_id, v_task.workflow_run_id,
      v_task.timeout_seconds, null, v_task.on_expired, null, v_task.priority, v_task.flow_key,
      nullif(v_task.links - '{join,children,undo}'::text[], '{}')
    )::teguh._spawn;
    perform teguh._revouch(v_spawn);
    select p.* into task_id, run_id, attempt, created
    from teguh._put_template(array[v_spawn]) as p;
    perform teguh._act_template(
      'retry', p_reason, p_task_id, null, jsonb_build_object('task_id', task_id)
    );
    return next;
    return;
  end if;

  if p_max_attempts <= v_task.failures then
    raise exception 'max_attempts % is used up', p_max_attempts
      using
        errcode = 'TG005',
        detail = format('The task has failed %s times.', v_task.failures),
        hint = format('Give at least %s.', v_task.failures + 1);
  end if;

  if p_from_step is not null and not teguh._forget_template(p_task_id, p_from_step) then
    raise exception 'task "%" has no checkpoint "%"', p_task_id, left(p_from_step, 200)
      using
        errcode = 'TG005',
        detail = 'It cannot start again from a step that it never took.',
        hint = 'get_task_checkpoint_states() lists its checkpoints.';
  end if;
  perform teguh._redo_template(v_task, 'retry', p_max_attempts, p_reason, v_now);

  return query
  select t.task_id, t.run_id, t.attempt + 1, false
  from teguh.t_template as t
  where t.task_id = p_task_id;
end;
$$;

-- Delete the checkpoint of a step and all that were written after it, forget the children
-- spawned from then on, and put the messages back that were received.  False if there is none.
create or replace function teguh._forget_template(p_task_id uuid, p_from_step text)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_since timestamptz;
begin
  select min(s.at) into v_since
  from (
    select c.updated_at as at
    from teguh.c_template as c
    where (c.task_id, c.checkpoint_name) = (p_task_id, p_from_step)
    union all
    select j.spawned_at
    from teguh.j_template as j
    where (j.task_id, j.step_name) = (p_task_id, p_from_step)
  ) as s;

  perform teguh._unhear_template(p_task_id, v_since);
  delete from teguh.c_template as c
  where c.task_id = p_task_id
    and c.updated_at >= v_since;
  delete from teguh.f_template as f
  using teguh.j_template as j
  where j.task_id = p_task_id
    and j.spawned_at >= v_since
    and (f.task_id, f.step_name) = (j.task_id, j.step_name);
  delete from teguh.j_template as j
  where j.task_id = p_task_id
    and j.spawned_at >= v_since;
  return v_since is not null;
end;
$$;

-- Begin another run of a locked task that ended without success, when p_at has come.
create or replace function teguh._redo_template(
  p_task         teguh.t_template,
  p_action       text,
  p_max_attempts integer,
  p_reason       text,
  p_at           timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_number integer := teguh._run_number(p_task.run_id) + 1;
begin
  perform teguh._file_template(
    p_task, p_task.state, teguh._blame_template(p_task), p_task.finished_at
  );
  perform teguh._again_template(
    p_task, v_number, p_task.failures, p_task.failure_reason, p_at, teguh.current_time()
  );
  perform teguh._renew_template(p_task, p_max_attempts, p_at);
  delete from teguh.d_template as d
  where d.state = p_task.state
    and d.task_id = p_task.task_id;
  if p_task.links ? 'join' then
    perform teguh._answer(p_task.links -> 'join', null);
  end if;
  perform teguh._act_template(
    p_action, p_reason, p_task.task_id, teguh._run_id(p_task.task_id, v_number), null
  );
end;
$$;

-- Give a task that is retried in place room for another run and a new deadline, counted from
-- when it may start.  One that expired does not expire again.
create or replace function teguh._renew_template(
  p_task         teguh.t_template,
  p_max_attempts integer,
  p_at           timestamptz
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
    p_at, (p_task.cancellation ->> v_key)::double precision
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
  v_spawn_new boolean;
  v_from_step text;
begin
  perform teguh._check_keys(
    'retry options', v_options, array['spawn_new', 'max_attempts', 'from_step', 'reason']
  );
  v_spawn_new := teguh._flag_option(v_options, 'spawn_new');
  v_from_step := teguh._text_option(v_options, 'from_step');
  if v_spawn_new and v_from_step is not null then
    raise exception 'both "spawn_new" and "from_step" are given'
      using
        errcode = 'TG005',
        detail = 'A new task has no checkpoints, and starts with its first step.',
        hint = 'Leave one of them out.';
  end if;

  return query execute teguh._call('rerun', p_queue_name, 5)
  using
    p_task_id,
    v_spawn_new,
    teguh._integer_option(v_options, 'max_attempts', 1),
    v_from_step,
    teguh._text_option(v_options, 'reason');
end;
$$;

comment on function teguh.retry_task(text, uuid, jsonb) is
  'Runs a failed, expired or cancelled task once more, from its checkpoints on, without '
  'its old time to live. Options: '
  'spawn_new (true: leave the task and spawn a new one like it; also for completed '
  'tasks), max_attempts (default: room for at least one more run), from_step (delete the '
  'checkpoint of that step and all written after it; messages received since are in the mailbox '
  'again), reason (shown by get_task_history() and list_actions()). attempt is the '
  'number that the next claim will show. Raises TG001 for an unknown queue, TG003 for '
  'an unknown task, TG004 if it is not over, TG005 for a bad option or a step without '
  'checkpoint.';

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
  'worker; failure_reason is why its last failed run failed, null if one has succeeded since; '
  'tags, correlation_id, parent_task_id and workflow_run_id are what it was spawned with. Raises '
  'TG001 for an unknown queue, TG003 for an unknown task.';
