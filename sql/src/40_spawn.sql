-- Insert tasks and queue them.  Rows come back in the order of p_tasks.
--
-- Tasks with a key are inserted in the order of their keys, so that callers who
-- spawn the same keys wait for each other in one direction only.
create or replace function teguh._put_template(p_tasks teguh._spawn[])
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now      timestamptz;
  v_ids      uuid[];
  v_added    uuid[];
  v_ready    uuid[];
  v_sleepers uuid[];
  v_due_at   timestamptz[];
  v_limited  uuid[];
  v_limits   timestamptz[];
  v_tagged   uuid[];
begin
  perform pg_current_xact_id();
  v_now := teguh.current_time();

  with spawns as materialized (
    select s.*, teguh._task_id(v_now) as task_id
    from unnest(p_tasks) with ordinality as s(
      task_name, params, headers, retry_strategy, max_attempts, cancellation, idempotency_key,
      return_mismatch, available_at, tags, correlation_id, parent_task_id, workflow_run_id,
      timeout_seconds, expires_at, on_expired, place
    )
  ),

  added as (
    insert into teguh.t_template as t (
      task_id, run_id, turn, state, created_at, available_at, deadline_at, max_attempts,
      task_name, params, headers, retry_strategy, cancellation, idempotency_key, tags,
      correlation_id, parent_task_id, workflow_run_id, timeout_seconds, expires_at, on_expired
    )
    select
      s.task_id, teguh._run_id(s.task_id, 1), 1,
      case when s.available_at > v_now then 'sleeping' else 'pending' end,
      v_now, coalesce(s.available_at, v_now),
      least(s.expires_at, teguh._after(
        greatest(s.available_at, v_now), (s.cancellation ->> 'max_delay')::double precision
      )),
      s.max_attempts, s.task_name, s.params, s.headers, s.retry_strategy, s.cancellation,
      s.idempotency_key, s.tags, s.correlation_id, s.parent_task_id, s.workflow_run_id,
      s.timeout_seconds, s.expires_at, s.on_expired
    from spawns as s
    order by s.idempotency_key nulls first, s.place
    on conflict (idempotency_key) where idempotency_key is not null do nothing
    returning t.task_id, t.state, t.available_at, t.deadline_at, t.tags
  )

  select
    array(select s.task_id from spawns as s order by s.place),
    array_agg(a.task_id),
    array_agg(a.task_id) filter (where a.state = 'pending'),
    array_agg(a.task_id) filter (where a.state = 'sleeping'),
    array_agg(a.available_at) filter (where a.state = 'sleeping'),
    array_agg(a.task_id) filter (where a.deadline_at is not null),
    array_agg(a.deadline_at) filter (where a.deadline_at is not null),
    array_agg(a.task_id) filter (where a.tags is not null)
  into v_ids, v_added, v_ready, v_sleepers, v_due_at, v_limited, v_limits, v_tagged
  from added as a;

  perform teguh._push_template('r', v_ready, teguh._fill(1, v_ready));
  perform teguh._push_template('s', v_sleepers, teguh._fill(1, v_sleepers), v_due_at);
  perform teguh._push_template('l', v_limited, teguh._fill(0, v_limited), v_limits);
  if v_tagged is not null then
    perform teguh._tag_template(v_tagged);
  end if;

  if cardinality(v_added) = cardinality(p_tasks) then
    return query
    select u.task_id, teguh._run_id(u.task_id, 1), 1, true
    from unnest(v_ids) as u(task_id);
  else
    return query select * from teguh._found_template(p_tasks, v_ids, v_added);
  end if;
end;
$$;

-- Insert one task without an idempotency key, and queue it.  Returns its id.  Most spawns
-- are such, and this costs half of what _put_template does.
create or replace function teguh._new_template(p_spawn teguh._spawn)
  returns uuid
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now      timestamptz;
  v_task_id  uuid;
  v_due_at   timestamptz;
  v_deadline timestamptz := p_spawn.expires_at;
begin
  perform pg_current_xact_id();
  v_now := teguh.current_time();
  v_task_id := teguh._task_id(v_now);
  v_due_at := coalesce(p_spawn.available_at, v_now);
  if p_spawn.cancellation is not null then
    v_deadline := least(v_deadline, teguh._after(
      greatest(v_due_at, v_now), (p_spawn.cancellation ->> 'max_delay')::double precision
    ));
  end if;

  insert into teguh.t_template as t (
    task_id, run_id, turn, state, created_at, available_at, deadline_at, max_attempts,
    task_name, params, headers, retry_strategy, cancellation, tags, correlation_id,
    parent_task_id, workflow_run_id, timeout_seconds, expires_at, on_expired
  )
  values (
    v_task_id, teguh._run_id(v_task_id, 1), 1,
    case when v_due_at > v_now then 'sleeping' else 'pending' end,
    v_now, v_due_at, v_deadline, p_spawn.max_attempts, p_spawn.task_name, p_spawn.params,
    p_spawn.headers, p_spawn.retry_strategy, p_spawn.cancellation, p_spawn.tags,
    p_spawn.correlation_id, p_spawn.parent_task_id, p_spawn.workflow_run_id,
    p_spawn.timeout_seconds, p_spawn.expires_at, p_spawn.on_expired
  );

  perform teguh._queue_template(v_task_id, 1, v_due_at, v_now);
  if v_deadline is not null then
    perform teguh._push_template('l', array[v_task_id], array[0], array[v_deadline]);
  end if;
  if p_spawn.tags is not null then
    perform teguh._tag_template(array[v_task_id]);
  end if;
  return v_task_id;
end;
$$;

-- Let new tasks be found by their tags.
create or replace function teguh._tag_template(p_task_ids uuid[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into teguh.g_template as g (tag, task_id)
  select distinct u.tag, t.task_id
  from teguh.t_template as t
  cross join lateral unnest(t.tags) as u(tag)
  where t.task_id = any (p_task_ids);
end;
$$;

-- The results of a spawn that met idempotency keys already in use.
create or replace function teguh._found_template(
  p_tasks teguh._spawn[],
  p_ids   uuid[],
  p_added uuid[]
)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template;
begin
  for v_place in 1 .. cardinality(p_tasks) loop
    task_id := p_ids[v_place];
    created := coalesce(task_id = any (p_added), false);
    if created then
      run_id := teguh._run_id(task_id, 1);
      attempt := 1;
      return next;
      continue;
    end if;

    select t.* into v_task
    from teguh.t_template as t
    where t.idempotency_key = p_tasks[v_place].idempotency_key;
    if not found then
      raise exception 'the task with idempotency key "%" was just removed',
        p_tasks[v_place].idempotency_key
        using
          errcode = '40001',
          detail = 'It was there when this spawn began, and is gone now.',
          hint = 'Spawn again.';
    end if;

    if not p_tasks[v_place].return_mismatch
      and (v_task.task_name, v_task.params)
          is distinct from (p_tasks[v_place].task_name, p_tasks[v_place].params)
    then
      raise exception 'idempotency key "%" belongs to another task', v_task.idempotency_key
        using
          errcode = 'TG006',
          detail = format('Task %s was spawned with another name or other params.',
            v_task.task_id),
          hint = 'Use another key, or "idempotency_mismatch": "return" to get that task.';
    end if;

    task_id := v_task.task_id;
    run_id := v_task.run_id;
    attempt := greatest(v_task.attempt, 1);
    return next;
  end loop;
end;
$$;

-- Spawn one task.
create or replace function teguh.spawn_task(
  p_queue_name text,
  p_task_name  text,
  p_params     jsonb,
  p_options    jsonb default '{}'
)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_spawn teguh._spawn := teguh._check_spawn(
    p_queue_name, p_task_name, p_params, p_options, teguh._policy(p_queue_name)
  );
begin
  if v_spawn.idempotency_key is not null then
    return query execute 'select * from teguh._put_' || p_queue_name || '($1)'
    using array[v_spawn];
    return;
  end if;

  execute 'select teguh._new_' || p_queue_name || '($1)' into task_id using v_spawn;
  run_id := teguh._run_id(task_id, 1);
  attempt := 1;
  created := true;
  return next;
end;
$$;

comment on function teguh.spawn_task(text, text, jsonb, jsonb) is
  'Spawns a task in the caller''s transaction: it exists once that commits. Options: '
  'headers (object), retry_strategy ({"kind": none, fixed, exponential, linear, quadratic, '
  '"base_seconds", "factor", "max_seconds", "jitter"}), max_attempts (null: '
  'unlimited), cancellation ({"max_delay", "max_duration"} in seconds), '
  'idempotency_key, idempotency_mismatch (error or return), available_at, '
  'delay_seconds, timeout_seconds (how long a worker may hold it at a time), ttl_seconds or '
  'deadline_at (when it expires unless it is over), on_expired ({"queue_name", "task_name", '
  '"params", "options"}: spawned when it expires), tags (array of strings), correlation_id, '
  'parent_task_id (a task of any queue), workflow_run_id; parent_run_id (with '
  'parent_queue_name if that is another: the run that spawns this one, from which it has '
  'parent_task_id and, unless they are given, tags, correlation_id, workflow_run_id). created '
  'is false when the idempotency key was in use and the existing task is returned. Raises '
  'TG001 for an unknown queue, TG005 for a bad option, TG006 for a key that belongs '
  'to another task.';

-- Spawn many tasks with one statement.
create or replace function teguh.spawn_tasks(p_queue_name text, p_tasks jsonb)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb := teguh._policy(p_queue_name);
  v_spawns teguh._spawn[];
begin
  if jsonb_typeof(p_tasks) is distinct from 'array' then
    raise exception 'tasks must be a JSON array'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(coalesce(p_tasks::text, 'null'), 200)),
        hint = 'For instance [{"task_name": "send", "params": {}, "options": {}}].';
  end if;

  select array_agg(teguh._read_task(p_queue_name, a.task, v_policy) order by a.place) into v_spawns
  from jsonb_array_elements(p_tasks) with ordinality as a(task, place);
  if v_spawns is null then
    return;
  end if;

  return query execute 'select * from teguh._put_' || p_queue_name || '($1)'
  using v_spawns;
end;
$$;

comment on function teguh.spawn_tasks(text, jsonb) is
  'Spawns an array of {"task_name", "params", "options"}, all or none; the rows come '
  'back in the order of the array. Options and errors are those of spawn_task().';

-- Read one element of an array of tasks.
create or replace function teguh._read_task(p_queue_name text, p_task jsonb, p_policy jsonb)
  returns teguh._spawn
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_keys('task', p_task, array['task_name', 'params', 'options']);
  return teguh._check_spawn(
    p_queue_name,
    teguh._text_option(p_task, 'task_name'),
    p_task -> 'params',
    nullif(p_task -> 'options', 'null'),
    p_policy
  );
end;
$$;
