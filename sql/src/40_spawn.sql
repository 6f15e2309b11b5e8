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
  v_now   timestamptz;
  v_ids   uuid[];
  v_added uuid[];
begin
  perform teguh._check_follows(substr('_template', 2), s)
  from unnest(p_tasks) as s
  where num_nonnulls(s.links, s.on_expired) > 0;
  perform pg_current_xact_id();
  v_now := teguh.current_time();

  with spawns as materialized (
    select s.*, teguh._task_id(v_now) as task_id
    from unnest(p_tasks) with ordinality as s(
      task_name, params, headers, retry_strategy, max_attempts, cancellation,
      idempotency_key, return_mismatch, available_at, tags, correlation_id, parent_task_id,
      workflow_run_id, timeout_seconds, expires_at, on_expired, uniqueness, priority, flow_key,
      links, place
    )
  ),

  added as (
    insert into teguh.t_template as t (
      task_id, run_id, turn, state, created_at, available_at, deadline_at, max_attempts,
      task_name, params, headers, retry_strategy, cancellation, idempotency_key, tags,
      correlation_id, parent_task_id, workflow_run_id, timeout_seconds, expires_at, on_expired,
      priority, flow_key, links
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
      s.timeout_seconds, s.expires_at, s.on_expired, s.priority, s.flow_key,
      s.links
    from spawns as s
    order by s.idempotency_key nulls first, s.place
    on conflict (idempotency_key) where idempotency_key is not null do nothing
    returning t.task_id
  )

  select
    array(select s.task_id from spawns as s order by s.place),
    array_agg(a.task_id)
  into v_ids, v_added
  from added as a;

  perform teguh._enlist_template(v_added);

  if cardinality(v_added) = cardinality(p_tasks) then
    return query
    select u.task_id, teguh._run_id(u.task_id, 1), 1, true
    from unnest(v_ids) as u(task_id);
  else
    return query select * from teguh._found_template(p_tasks, v_ids, v_added);
  end if;
end;
$$;

-- Queue tasks that were just inserted, set their timers, count them.
create or replace function teguh._enlist_template(p_task_ids uuid[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ready         uuid[];
  v_ready_names   text[];
  v_sleepers      uuid[];
  v_sleeper_names text[];
  v_due_at        timestamptz[];
  v_limited       uuid[];
  v_limits        timestamptz[];
  v_tagged        uuid[];
begin
  select
    array_agg(t.task_id) filter (where t.state = 'pending'),
    array_agg(t.task_name) filter (where t.state = 'pending'),
    array_agg(t.task_id) filter (where t.state = 'sleeping'),
    array_agg(t.task_name) filter (where t.state = 'sleeping'),
    array_agg(t.available_at) filter (where t.state = 'sleeping'),
    array_agg(t.task_id) filter (where t.deadline_at is not null),
    array_agg(t.deadline_at) filter (where t.deadline_at is not null),
    array_agg(t.task_id) filter (where t.tags is not null)
  into
    v_ready, v_ready_names, v_sleepers, v_sleeper_names, v_due_at, v_limited, v_limits, v_tagged
  from unnest(p_task_ids) as u(task_id)
  join teguh.t_template as t on t.task_id = u.task_id;

  perform teguh._push_template('r', v_ready, teguh._fill(1, v_ready));
  perform teguh._push_template('s', v_sleepers, teguh._fill(1, v_sleepers), v_due_at);
  perform teguh._push_template('l', v_limited, teguh._fill(0, v_limited), v_limits);
  perform teguh._reckon_template(v_ready_names, teguh._letters('-', v_ready), 'p');
  perform teguh._reckon_template(v_sleeper_names, teguh._letters('-', v_sleepers), 'd');
  if v_tagged is not null then
    perform teguh._tag_template(v_tagged);
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
  if num_nonnulls(p_spawn.links, p_spawn.on_expired) > 0 then
    perform teguh._check_follows(substr('_template', 2), p_spawn);
  end if;
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
    parent_task_id, workflow_run_id, timeout_seconds, expires_at, on_expired, priority, flow_key,
    links
  )
  values (
    v_task_id, teguh._run_id(v_task_id, 1), 1,
    case when v_due_at > v_now then 'sleeping' else 'pending' end,
    v_now, v_due_at, v_deadline, p_spawn.max_attempts, p_spawn.task_name, p_spawn.params,
    p_spawn.headers, p_spawn.retry_strategy, p_spawn.cancellation, p_spawn.tags,
    p_spawn.correlation_id, p_spawn.parent_task_id, p_spawn.workflow_run_id,
    p_spawn.timeout_seconds, p_spawn.expires_at, p_spawn.on_expired, p_spawn.priority,
    p_spawn.flow_key, p_spawn.links
  );

  if v_due_at > v_now then
    perform teguh._push_template('s', array[v_task_id], array[1], array[v_due_at]);
  else
    perform teguh._push_template('r', array[v_task_id], array[1]);
  end if;
  if v_deadline is not null then
    perform teguh._push_template('l', array[v_task_id], array[0], array[v_deadline]);
  end if;
  perform teguh._tally_template(
    p_spawn.task_name, '-', case when v_due_at > v_now then 'd' else 'p' end::"char"
  );
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

-- See to it that no more tasks are waiting to start than the policy allows.
--
-- Spawns at the same moment do not see each other, and may together go past it.
create or replace function teguh._room_template(p_policy jsonb)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_most  bigint := (p_policy ->> 'max_pending')::bigint;
  v_extra bigint := (
    select s.pending + s.delayed - v_most
    from teguh._stat_template() as s
  );
begin
  if v_extra > 0 and p_policy ->> 'on_full' = 'drop_oldest' then
    v_extra := v_extra - teguh._shed_template(v_extra);
  end if;
  if v_extra > 0 then
    raise exception 'queue "%" is full', substr('_template', 2)
      using
        errcode = 'TG007',
        detail = format('%s tasks wait for their start, which is all its policy allows.', v_most),
        hint = 'Spawn again later, start more workers, or set "max_pending" higher.';
  end if;
end;
$$;

-- Cancel the tasks that are first in line, up to p_count.  Returns how many those were.
create or replace function teguh._shed_template(p_count bigint)
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ring     bigint := pg_sequence_last_value('teguh.ring_template'::regclass);
  v_task_ids uuid[];
begin
  -- what stands in a lane was spawned before what is still in dispatch
  v_task_ids := array(
    select t.task_id
    from (select l.* from teguh.l_template as l order by l.seq) as l
    cross join lateral (
      select t.task_id
      from teguh.t_template as t
      where (t.task_id, t.turn) = (l.task_id, l.turn)
        and t.state in ('pending', 'sleeping')
        and t.laned
        and t.attempt = 0
      for no key update skip locked
    ) as t
    limit p_count
  );
  for v_gen in v_ring / 2 .. (v_ring + 1) / 2 loop
    v_task_ids := v_task_ids || case
      when v_gen % 2 = 0 then teguh._first0_template(p_count - cardinality(v_task_ids))
      else teguh._first1_template(p_count - cardinality(v_task_ids))
    end;
  end loop;

  update teguh.t_template as t
  set failure_reason = '{"name": "$QueueFull", "message": "newer tasks took its place"}'
  where t.task_id = any (v_task_ids);
  perform teguh._stop_template(u.task_id, teguh.current_time())
  from unnest(v_task_ids) as u(task_id);
  return cardinality(v_task_ids);
end;
$$;

-- Lock the tasks of a segment that are first in line and have not started, up to p_count.
create or replace function teguh._first0_template(p_count bigint)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_from teguh.k0_template;
begin
  select k.* into v_from
  from teguh.k0_template as k
  where k.kind = 'r'
  order by k.kind desc, k.n desc
  limit 1;

  return array(
    select t.task_id
    from (
      select p.*
      from teguh.p0_template as p
      where p.kind = 'r'
        and (p.xid, p.seq) >= (coalesce(v_from.xid, '0'), coalesce(v_from.seq, 0))
      order by p.xid, p.seq
    ) as p
    cross join lateral (
      select t.task_id
      from teguh.t_template as t
      where (t.task_id, t.turn) = (p.task_id, p.turn)
        and t.state in ('pending', 'sleeping')
        and not t.laned
        and t.attempt = 0
      for no key update skip locked
    ) as t
    limit p_count
  );
end;
$$;

-- Insert one task that is to be the only one of its key, or deal with the one that is there.
--
-- The key's row is locked first, then the task.
create or replace function teguh._once_template(p_spawn teguh._spawn)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now  timestamptz := teguh.current_time();
  v_key  text := p_spawn.uniqueness ->> 'key';
  v_held uuid;
  v_new  record;
  v_task teguh.t_template;
begin
  perform teguh._check_follows(substr('_template', 2), p_spawn);
  -- cleanup may remove the row in between
  loop
    insert into teguh.u_template as u (unique_key, task_id)
    values (v_key, uuid '00000000-0000-0000-0000-000000000000')
    on conflict (unique_key) do nothing;
    select u.task_id into v_held
    from teguh.u_template as u
    where u.unique_key = v_key
    for update;
    exit when found;
  end loop;

  select t.* into v_task
  from teguh.t_template as t
  where t.task_id = v_held
  for no key update;
  if found and teguh._blocks(
    p_spawn.uniqueness, v_task.state, teguh._begun_template(v_task), v_task.created_at, v_now
  ) then
    perform teguh._meet_template(v_task, p_spawn, v_now);
    return query select v_task.task_id, v_task.run_id, greatest(v_task.attempt, 1), false;
    return;
  end if;

  select p.* into v_new
  from teguh._put_template(array[p_spawn]) as p;
  update teguh.u_template as u
  set task_id = v_new.task_id
  where u.unique_key = v_key;
  return query select v_new.task_id, v_new.run_id, v_new.attempt, v_new.created;
end;
$$;

-- Whether a task has begun.  One that was handed back has if it has done something before.
create or replace function teguh._begun_template(p_task teguh.t_template)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return p_task.attempt > 0
    or exists (select from teguh.c_template as c where c.task_id = p_task.task_id)
    or exists (select from teguh.j_template as j where j.task_id = p_task.task_id);
end;
$$;

-- Whether a task keeps another of the same key from being spawned.
create or replace function teguh._blocks(
  p_unique     jsonb,
  p_state      text,
  p_begun      boolean,
  p_created_at timestamptz,
  p_now        timestamptz
)
  returns boolean
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_unique ->> 'on_conflict' in ('replace', 'debounce') then
      not p_begun and p_state in ('pending', 'sleeping')
    else
      coalesce(p_unique -> 'states', '["pending", "running", "sleeping"]') ? p_state
      or coalesce(
        p_now < p_created_at + make_interval(
          secs => (p_unique ->> 'window_seconds')::double precision
        ),
        false
      )
  end;
$$;

-- Do with the locked task of a unique key what the spawn wants to be done.
create or replace function teguh._meet_template(
  p_task  teguh.t_template,
  p_spawn teguh._spawn,
  p_now   timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_spawn.uniqueness ->> 'on_conflict' = 'error' then
    raise exception 'unique key "%" is in use', p_spawn.uniqueness ->> 'key'
      using
        errcode = 'TG006',
        detail = format('Task %s has it and is %s.', p_task.task_id, p_task.state),
        hint = 'With "on_conflict": "return" that task is returned.';
  elsif p_spawn.uniqueness ->> 'on_conflict' in ('replace', 'debounce') then
    perform teguh._swap_template(
      p_task,
      p_spawn,
      least(
        greatest(p_spawn.available_at, p_now),
        case when p_spawn.uniqueness ? 'max_wait_seconds' then greatest(p_now, teguh._after(
          p_task.created_at, (p_spawn.uniqueness ->> 'max_wait_seconds')::double precision
        )) end
      ),
      p_now
    );
  end if;
end;
$$;

-- Make a locked task that has not started the one that is spawned now, for another time.
create or replace function teguh._swap_template(
  p_task  teguh.t_template,
  p_spawn teguh._spawn,
  p_at    timestamptz,
  p_now   timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_deadline timestamptz := least(
    p_spawn.expires_at,
    teguh._after(p_at, (p_spawn.cancellation ->> 'max_delay')::double precision)
  );
begin
  update teguh.t_template as t
  set
    turn = p_task.turn + 1,
    state = case when p_at > p_now then 'sleeping' else 'pending' end,
    available_at = p_at,
    deadline_at = v_deadline,
    task_name = p_spawn.task_name,
    params = p_spawn.params,
    headers = p_spawn.headers,
    retry_strategy = p_spawn.retry_strategy,
    max_attempts = p_spawn.max_attempts,
    cancellation = p_spawn.cancellation,
    tags = p_spawn.tags,
    correlation_id = p_spawn.correlation_id,
    parent_task_id = p_spawn.parent_task_id,
    workflow_run_id = p_spawn.workflow_run_id,
    timeout_seconds = p_spawn.timeout_seconds,
    expires_at = p_spawn.expires_at,
    on_expired = p_spawn.on_expired,
    priority = p_spawn.priority,
    flow_key = p_spawn.flow_key,
    links = p_spawn.links,
    laned = false
  where t.task_id = p_task.task_id;

  delete from teguh.g_template as g
  where g.task_id = p_task.task_id
    and g.tag collate "C" = any (p_task.tags);
  if p_spawn.tags is not null then
    perform teguh._tag_template(array[p_task.task_id]);
  end if;
  perform teguh._moved_template(p_task, '-');
  perform teguh._tally_template(
    p_spawn.task_name, '-', case when p_at > p_now then 'd' else 'p' end::"char"
  );
  perform teguh._queue_template(p_task.task_id, p_task.turn + 1, p_at, p_now);
  if v_deadline is not null then
    perform teguh._push_template('l', array[p_task.task_id], array[0], array[v_deadline]);
  end if;
end;
$$;

-- Insert tasks one by one, in the order of their unique keys.  Rows come back in the order of
-- p_tasks.
create or replace function teguh._series_template(p_tasks teguh._spawn[])
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_place   integer;
  v_one     record;
  v_ids     uuid[];
  v_runs    uuid[];
  v_tries   integer[];
  v_created boolean[];
begin
  for v_place in
    select g.i
    from generate_subscripts(p_tasks, 1) as g(i)
    order by (p_tasks[g.i]).uniqueness ->> 'key' nulls first, g.i
  loop
    if (p_tasks[v_place]).uniqueness is null then
      select p.* into v_one
      from teguh._put_template(array[p_tasks[v_place]]) as p;
    else
      select o.* into v_one
      from teguh._once_template(p_tasks[v_place]) as o;
    end if;
    v_ids[v_place] := v_one.task_id;
    v_runs[v_place] := v_one.run_id;
    v_tries[v_place] := v_one.attempt;
    v_created[v_place] := v_one.created;
  end loop;

  return query select u.* from unnest(v_ids, v_runs, v_tries, v_created) as u;
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

-- See to what a queue asks for when tasks were spawned into it: it goes by rules from the first
-- that has a priority (p_ranked), and may be full.
create or replace function teguh._abide(
  p_queue_name text,
  p_policy     jsonb,
  p_ranked     boolean,
  p_room       boolean
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_ranked and not p_policy ? 'ruled' then
    execute format('select teguh.%I(false)', '_rule_' || p_queue_name);
  end if;
  if p_room and p_policy ? 'max_pending' then
    execute format('select teguh.%I($1)', '_room_' || p_queue_name) using p_policy;
  end if;
end;
$$;

-- Every queue that is named by what is to follow a task: by its links, or by options of a spawn.
create or replace function teguh._queues_named(p_links jsonb)
  returns setof text
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  with recursive named as (
    select p_links as one
    union all
    select f.one
    from named as n
    cross join lateral (
      select n.one -> k.key as one
      from unnest('{on_expired,on_failure,compensate,options,join}'::text[]) as k(key)
      union all
      select e.one
      from unnest('{sequence,undo}'::text[]) as k(key)
      cross join lateral jsonb_array_elements(
        case jsonb_typeof(n.one -> k.key) when 'array' then n.one -> k.key else '[]' end
      ) as e(one)
    ) as f
    where jsonb_typeof(f.one) = 'object'
  )

  select distinct n.one ->> 'queue_name'
  from named as n
  where n.one ->> 'queue_name' is not null;
$$;

-- What proves that this transaction may name a queue.  Only the owner of teguh, and its functions,
-- can read what it is made of.  Without a secret, in a copy of the schema alone, it proves nothing.
create or replace function teguh._voucher(p_queue_name text)
  returns text
  language sql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
  select encode(
    sha256(convert_to(concat_ws('/', pg_current_xact_id(), p_queue_name, s.secret), 'UTF8')), 'hex'
  )
  from teguh.secrets as s;
$$;

-- Note that this transaction may name a queue: among its settings, which leave no dead rows.
create or replace function teguh._vouch(p_queue_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_known   text := coalesce(current_setting('teguh.vouched', true), '');
  v_voucher text := teguh._voucher(p_queue_name);
begin
  if strpos(v_known, v_voucher) = 0 then
    perform set_config('teguh.vouched', v_known || v_voucher, true);
  end if;
end;
$$;

-- Note that this transaction may name this queue: who may execute this may spawn here.
create or replace function teguh._vouch_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._vouch(substr('_template', 2));
end;
$$;

-- Refuse to store the name of another queue unless somebody has vouched for it in this transaction.
--
-- What is stored is carried out later, with all rights.  The function that stores it has all
-- rights, too, and may be called by itself: what _check_spawner() has found cannot be told it by an
-- argument.
create or replace function teguh._check_named(p_queue_name text, p_names text[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := (
    select u.name
    from unnest(p_names) as u(name)
    where u.name <> p_queue_name
      and strpos(current_setting('teguh.vouched', true), teguh._voucher(u.name)) > 0 is not true
    limit 1
  );
begin
  if v_name is not null then
    raise exception 'nobody who may spawn tasks in queue "%" has asked for that', left(v_name, 60)
      using
        errcode = '42501',
        detail = 'What follows a task is spawned where its spawner may spawn.',
        hint = 'Call the public function, with a role that has access to both queues.';
  end if;
end;
$$;

-- The same for what is to follow a task.
create or replace function teguh._check_follows(p_queue_name text, p_spawn teguh._spawn)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_named(p_queue_name, array(
    select n.name
    from teguh._queues_named(
      coalesce(p_spawn.links, '{}') || jsonb_build_object('on_expired', p_spawn.on_expired)
    ) as n(name)
  ));
end;
$$;

-- Vouch for what a task names that was checked when it was stored.
create or replace function teguh._revouch(p_spawn teguh._spawn)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._vouch(n.name)
  from teguh._queues_named(
    coalesce(p_spawn.links, '{}') || jsonb_build_object('on_expired', p_spawn.on_expired)
  ) as n(name);
end;
$$;

-- Refuse to have tasks spawned later, with all rights, where the caller may not spawn any; p_from
-- is the queue that stores the other's name.
create or replace function teguh._check_spawner(p_from text, p_queue_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if not has_function_privilege(
    format('teguh._put_%s(teguh._spawn[])', p_queue_name), 'execute'
  ) then
    raise exception 'role "%" may not spawn tasks in queue "%"', current_user, p_queue_name
      using
        errcode = '42501',
        detail = 'What follows a task is spawned where its spawner may spawn.',
        hint = 'grant_access() gives a role access to a queue.';
  end if;

  if p_queue_name <> p_from then
    execute format('select teguh.%I()', '_vouch_' || p_queue_name);
  end if;
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
  v_policy jsonb := teguh._policy(p_queue_name);
  v_spawn  teguh._spawn := teguh._check_spawn(
    p_queue_name, p_task_name, p_params, p_options, v_policy
  );
begin
  if v_spawn.uniqueness is not null then
    execute 'select * from teguh._once_' || p_queue_name || '($1)'
    into task_id, run_id, attempt, created
    using v_spawn;
  elsif v_spawn.idempotency_key is not null then
    execute 'select * from teguh._put_' || p_queue_name || '($1)'
    into task_id, run_id, attempt, created
    using array[v_spawn];
  else
    execute 'select teguh._new_' || p_queue_name || '($1)' into task_id using v_spawn;
    run_id := teguh._run_id(task_id, 1);
    attempt := 1;
    created := true;
  end if;
  return next;

  if v_spawn.priority is not null and not v_policy ? 'ruled' then
    execute 'select teguh._rule_' || p_queue_name || '(false)';
  end if;
  if created and v_policy ? 'max_pending' then
    execute 'select teguh._room_' || p_queue_name || '($1)' using v_policy;
  end if;
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
  'parent_task_id and, unless they are given, tags, correlation_id, workflow_run_id), unique '
  '({"key", "on_conflict"}: no second task while one of that key is pending, running or '
  'sleeping, or in the given states, or for window_seconds from its creation; on_conflict error '
  'raises, return returns it; replace turns one that has not started into the new one, debounce '
  'also, no later than max_wait_seconds after its creation), sequence (array of {"queue_name", '
  '"task_name", "params", "options", "compensate"}: each is spawned when the one before is '
  'completed, with its params and result), compensate (a task that undoes this one if a later one '
  'of the sequence ends without success), on_failure (a task to spawn if this one, or a later one '
  'of the sequence, does). created is false when the '
  'idempotency key or unique key was in use and the existing task '
  'is returned. Raises TG001 for an unknown queue, TG005 for a bad option, TG006 for a '
  'key that belongs to another task or is in use, TG007 when the queue is full, 42501 if the '
  'caller may not spawn in the queue of a task that is to follow.';

-- Spawn many tasks with one statement.
create or replace function teguh.spawn_tasks(p_queue_name text, p_tasks jsonb)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb := teguh._policy(p_queue_name);
  v_verb   text := 'put';
  v_spawns teguh._spawn[];
  v_new    boolean := false;
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

  if exists (select from unnest(v_spawns) as s where s.uniqueness is not null) then
    v_verb := 'series';
  end if;
  for task_id, run_id, attempt, created in
    execute format('select * from teguh._%s_%s($1)', v_verb, p_queue_name) using v_spawns
  loop
    v_new := v_new or created;
    return next;
  end loop;

  if not v_policy ? 'ruled' and exists (
    select from unnest(v_spawns) as s where s.priority is not null
  ) then
    execute 'select teguh._rule_' || p_queue_name || '(false)';
  end if;
  if v_new and v_policy ? 'max_pending' then
    execute 'select teguh._room_' || p_queue_name || '($1)' using v_policy;
  end if;
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
