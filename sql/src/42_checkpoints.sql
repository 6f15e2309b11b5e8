-- Store a step's state under the fence of a run that is held.  The lock on the
-- task lasts until the caller commits, so what the caller writes in the same
-- transaction and the checkpoint stand or fall together.  A checkpoint of a later
-- run is never overwritten by an earlier one.
create or replace function teguh._mark_template(
  p_task_id   uuid,
  p_step_name text,
  p_state     jsonb,
  p_run_id    uuid,
  p_extend_by double precision
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._own_template(p_task_id, p_run_id);
  perform teguh._note_template(p_task_id, p_step_name, p_state, 'committed', p_run_id);
  if p_extend_by is not null then
    perform teguh._keep_template(p_run_id, p_extend_by);
  end if;
end;
$$;

-- Write a checkpoint of a task that is locked.
create or replace function teguh._note_template(
  p_task_id   uuid,
  p_step_name text,
  p_state     jsonb,
  p_status    text,
  p_run_id    uuid
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into teguh.c_template as c (
    task_id, checkpoint_name, state, status, owner_run_id, updated_at
  )
  values (
    p_task_id, p_step_name, coalesce(p_state, 'null'), p_status, p_run_id, teguh.current_time()
  )
  on conflict (task_id, checkpoint_name) do update
  set
    state = excluded.state,
    status = excluded.status,
    owner_run_id = excluded.owner_run_id,
    updated_at = excluded.updated_at
  where teguh._run_number(c.owner_run_id) <= teguh._run_number(excluded.owner_run_id);
end;
$$;

-- Store the state of a step.
create or replace function teguh.set_task_checkpoint_state(
  p_queue_name      text,
  p_task_id         uuid,
  p_step_name       text,
  p_state           jsonb,
  p_owner_run       uuid,
  p_extend_claim_by double precision default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_name('step name', p_step_name);
  if p_extend_claim_by is not null then
    perform teguh._check_seconds('extension', p_extend_claim_by, false);
  end if;

  execute teguh._call('mark', p_queue_name, 5)
  using p_task_id, p_step_name, p_state, p_owner_run, p_extend_claim_by;
end;
$$;

comment on function teguh.set_task_checkpoint_state(
  text, uuid, text, jsonb, uuid, double precision
) is
  'Stores the state of a step, null as JSON null, in the caller''s transaction: '
  'business writes made there commit together with it. p_extend_claim_by also sets '
  'the end of the lease to that many seconds from now. Raises TG001 for an unknown '
  'queue, TG002 for an unknown run or one of another task, TG004 if nobody holds the '
  'run, TG005 for a bad name or extension, AB001 if the task is cancelled, AB002 if '
  'the run has ended.';

-- The state of one checkpoint.
create or replace function teguh._recall_template(p_task_id uuid, p_step_name text)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_state jsonb;
begin
  select c.state into v_state
  from teguh.c_template as c
  where c.task_id = p_task_id
    and c.checkpoint_name = p_step_name;
  if not found then
    perform teguh._fetch_template(p_task_id);
  end if;

  return v_state;
end;
$$;

-- Read the state of a step.
create or replace function teguh.get_task_checkpoint_state(
  p_queue_name text,
  p_task_id    uuid,
  p_step_name  text
)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_state jsonb;
begin
  execute teguh._call('recall', p_queue_name, 2) into v_state using p_task_id, p_step_name;
  return v_state;
end;
$$;

comment on function teguh.get_task_checkpoint_state(text, uuid, text) is
  'The stored state of a step; SQL null if there is none, JSON null if that is what '
  'was stored or the step is a wait that timed out. Raises TG001 for an unknown '
  'queue, TG003 for an unknown task.';

-- The checkpoints of a task that a run may see: its own and those of earlier runs.
create or replace function teguh._list_template(p_task_id uuid, p_run_id uuid)
  returns table(
    checkpoint_name text,
    state           jsonb,
    status          text,
    owner_run_id    uuid,
    updated_at      timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select c.checkpoint_name, c.state, c.status, c.owner_run_id, c.updated_at
  from teguh.c_template as c
  where c.task_id = p_task_id
    and (
      p_run_id is null
      or teguh._run_number(c.owner_run_id) <= teguh._run_number(p_run_id)
    )
  order by c.updated_at, c.checkpoint_name;
  if not found then
    perform teguh._fetch_template(p_task_id);
  end if;
end;
$$;

-- List the checkpoints of a task.
create or replace function teguh.get_task_checkpoint_states(
  p_queue_name text,
  p_task_id    uuid,
  p_run_id     uuid
)
  returns table(
    checkpoint_name text,
    state           jsonb,
    status          text,
    owner_run_id    uuid,
    updated_at      timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('list', p_queue_name, 2) using p_task_id, p_run_id;
end;
$$;

comment on function teguh.get_task_checkpoint_states(text, uuid, uuid) is
  'The checkpoints of a task that were written by this run or earlier ones (null: '
  'all), oldest first. status is committed, or timed_out for a wait that timed out. '
  'Raises TG001 for an unknown queue, TG003 for an unknown task.';
