-- Children: tasks that a step spawns and may wait for.
--
-- A child that is over leaves a row with its parent's queue, and a timer that makes somebody count
-- them a moment later, when all that committed at the same time can be seen.  Nobody locks the
-- parent for that, so that ten thousand children can end side by side.

-- Lock the task of a run, and see which children a step has (null: none yet) and what they would
-- have of it.
create or replace function teguh._brood_template(
  p_run_id            uuid,
  p_step_name         text,
  out child_ids       uuid[],
  out child_queues    text[],
  out task_id         uuid,
  out workflow_run_id uuid,
  out correlation_id  text,
  out tags            text[]
)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_task teguh.t_template := teguh._hold_template(p_run_id);
begin
  select j.child_ids, j.child_queues into child_ids, child_queues
  from teguh.j_template as j
  where j.task_id = v_task.task_id
    and j.step_name = p_step_name;
  task_id := v_task.task_id;
  workflow_run_id := v_task.workflow_run_id;
  correlation_id := v_task.correlation_id;
  tags := v_task.tags;
end;
$$;

-- Write down which children a step of a locked task has.
create or replace function teguh._bind_template(
  p_run_id       uuid,
  p_step_name    text,
  p_ids          uuid[],
  p_queues       text[],
  p_ends_with_us boolean
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task_id uuid := teguh._run_task(p_run_id);
begin
  perform teguh._check_named(substr('_template', 2), p_queues);
  insert into teguh.j_template as j (
    task_id, step_name, run_id, spawned_at, child_ids, child_queues, ends_with_us
  )
  values (
    v_task_id, p_step_name, p_run_id, teguh.current_time(), p_ids, p_queues, p_ends_with_us
  );
  if p_ends_with_us then
    update teguh.t_template as t
    set links = coalesce(t.links, '{}') || '{"children": true}'
    where t.task_id = v_task_id;
  end if;
end;
$$;

-- Read one child to spawn.  One of another workflow run than its parent's is apart: its end
-- matters there.
create or replace function teguh._read_child(
  p_queue_name text,
  p_join       jsonb,
  p_task       jsonb,
  p_like       teguh._spawn
)
  returns teguh._spawn
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_spawn teguh._spawn := teguh._read_task(
    p_queue_name, p_task - 'queue_name', teguh._policy(p_queue_name)
  );
begin
  if v_spawn.idempotency_key is not null or v_spawn.uniqueness is not null then
    raise exception 'a child cannot have an idempotency key or a unique key'
      using
        errcode = 'TG005',
        detail = 'The task of that key might be another''s child, or nobody''s.',
        hint = 'The step''s name makes sure that children are spawned once.';
  elsif v_spawn.links ? 'sequence' then
    raise exception 'a child cannot have a sequence'
      using
        errcode = 'TG005',
        detail = 'Its parent waits for one task.',
        hint = 'Let the child itself spawn what is to follow, and await it.';
  end if;

  v_spawn.parent_task_id := coalesce(v_spawn.parent_task_id, p_like.parent_task_id);
  v_spawn.workflow_run_id := coalesce(v_spawn.workflow_run_id, p_like.workflow_run_id);
  v_spawn.correlation_id := coalesce(v_spawn.correlation_id, p_like.correlation_id);
  if not coalesce(p_task -> 'options' ? 'tags', false) then
    v_spawn.tags := p_like.tags;
  end if;
  v_spawn.links := coalesce(v_spawn.links, '{}') || jsonb_build_object(
    'join',
    p_join || case
      when v_spawn.workflow_run_id is distinct from p_like.workflow_run_id
        then '{"apart": true}'
      else '{}'
    end::jsonb
  );
  return v_spawn;
end;
$$;

-- The queue of each child, the parent's unless it names another.
create or replace function teguh._child_queues(p_queue_name text, p_tasks jsonb)
  returns text[]
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if jsonb_typeof(p_tasks) is distinct from 'array'
    or jsonb_path_exists(p_tasks, '$[*] ? (@.type() != "object")')
  then
    raise exception 'children must be a JSON array of tasks'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(coalesce(p_tasks::text, 'null'), 200)),
        hint = 'For instance [{"task_name": "resize", "params": {"width": 100}}].';
  end if;

  return array(
    select coalesce(teguh._text_option(t.task, 'queue_name'), p_queue_name)
    from jsonb_array_elements(p_tasks) with ordinality as t(task, place)
    order by t.place
  );
end;
$$;

-- Spawn children in one queue.  Returns their ids in the order given.
create or replace function teguh._birth(p_queue_name text, p_spawns teguh._spawn[])
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ids uuid[];
begin
  execute format(
    'select array_agg(p.task_id order by p.place) from teguh.%I($1) with ordinality '
    'as p(task_id, run_id, attempt, created, place)', '_put_' || p_queue_name
  ) into v_ids using p_spawns;
  perform teguh._abide(
    p_queue_name,
    teguh._policy(p_queue_name),
    exists (select from unnest(p_spawns) as s where s.priority is not null),
    true
  );
  return v_ids;
end;
$$;

-- Spawn the children of a step.
create or replace function teguh.spawn_children(
  p_queue_name text,
  p_run_id     uuid,
  p_step_name  text,
  p_tasks      jsonb,
  p_options    jsonb default '{}'
)
  returns table(queue_name text, task_id uuid, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_like   teguh._spawn;
  v_join   jsonb := jsonb_build_object('queue_name', p_queue_name, 'step_name', p_step_name);
  v_cancel boolean := teguh._cancel_option(p_options);
  v_queues text[] := teguh._child_queues(p_queue_name, p_tasks);
  v_queue  text;
  v_places bigint[];
  v_spawns teguh._spawn[];
  v_here   teguh._spawn[];
  v_known  text[];
  v_some   uuid[];
  v_ids    uuid[];
begin
  perform teguh._check_name('step name', p_step_name);
  execute teguh._call('brood', p_queue_name, 2)
  into
    v_ids, v_known, v_like.parent_task_id, v_like.workflow_run_id, v_like.correlation_id,
    v_like.tags
  using p_run_id, p_step_name;
  if v_ids is not null then
    return query
    select u.queue_name, u.task_id, false
    from unnest(v_known, v_ids) as u(queue_name, task_id);
    return;
  end if;

  v_join := v_join || jsonb_build_object('task_id', v_like.parent_task_id, 'run_id', p_run_id);
  for v_place in 1 .. cardinality(v_queues) loop
    v_spawns[v_place] := teguh._read_child(
      v_queues[v_place], v_join || jsonb_build_object('place', v_place), p_tasks -> v_place - 1,
      v_like
    );
  end loop;

  for v_queue, v_places in
    select q.name, array_agg(q.place order by q.place)
    from unnest(v_queues) with ordinality as q(name, place)
    group by q.name
    order by q.name
  loop
    perform teguh._check_spawner(v_queue, p_queue_name);
    perform teguh._check_spawner(p_queue_name, v_queue);
    -- in a loop, as a query would copy all of them for each
    v_here := '{}';
    for v_place in 1 .. cardinality(v_places) loop
      v_here[v_place] := v_spawns[v_places[v_place]];
    end loop;
    v_some := teguh._birth(v_queue, v_here);
    for v_place in 1 .. cardinality(v_places) loop
      v_ids[v_places[v_place]] := v_some[v_place];
    end loop;
  end loop;

  execute teguh._call('bind', p_queue_name, 5)
  using p_run_id, p_step_name, coalesce(v_ids, '{}'), v_queues, v_cancel;
  return query
  select u.queue_name, u.task_id, true
  from unnest(v_queues, v_ids) as u(queue_name, task_id);
end;
$$;

comment on function teguh.spawn_children(text, uuid, text, jsonb, jsonb) is
  'Spawns tasks ({"task_name", "params", "options", "queue_name"}) for a step of a run, in the '
  'caller''s transaction: of any queue, as many as there are, and once, whatever is given the '
  'second time. They come back in the order given; created is false if they were there. They have '
  'the run''s task as parent_task_id and, unless they say otherwise, its workflow_run_id, '
  'correlation_id and tags. Options: on_parent_end (leave or cancel: what becomes of them if the '
  'task ends without success; default leave). Raises TG001 for an unknown queue, TG002 for an '
  'unknown run, TG004 if nobody holds the run, TG005 for a bad task or option, TG007 when a queue '
  'is full, AB001 if the task is cancelled, AB002 if the run has ended.';

-- Read whether children are to be cancelled when their parent ends without success.
create or replace function teguh._cancel_option(p_options jsonb)
  returns boolean
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
begin
  perform teguh._check_keys('options', v_options, array['on_parent_end']);
  if teguh._text_option(v_options, 'on_parent_end') not in ('leave', 'cancel') then
    raise exception 'unknown on_parent_end "%"', left(v_options ->> 'on_parent_end', 200)
      using
        errcode = 'TG005',
        detail = 'Known values: leave, cancel.',
        hint = 'leave is the default.';
  end if;
  return coalesce(v_options ->> 'on_parent_end' = 'cancel', false);
end;
$$;

-- Tell a parent that a child is over; null: that it is not over any more.  A queue that was
-- dropped is told nothing.
create or replace function teguh._answer(p_join jsonb, p_state text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if teguh._reach_queue(p_join ->> 'queue_name') then
    execute format(
      'select teguh.%I($1, $2, $3, $4, $5)', '_report_' || (p_join ->> 'queue_name')
    )
    using
      (p_join ->> 'task_id')::uuid, p_join ->> 'step_name', (p_join ->> 'run_id')::uuid,
      (p_join ->> 'place')::integer, p_state;
  end if;
end;
$$;

-- Write down that a child is over, and see to it that the children are counted a moment later;
-- unless its parent is gone, or has begun anew without it.
create or replace function teguh._report_template(
  p_task_id   uuid,
  p_step_name text,
  p_run_id    uuid,
  p_place     integer,
  p_state     text
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_state is null then
    delete from teguh.f_template as f
    where (f.task_id, f.step_name) = (p_task_id, p_step_name)
      and (f.run_id, f.place) = (p_run_id, p_place);
    return;
  end if;

  perform from teguh.j_template as j
  where (j.task_id, j.step_name, j.run_id) = (p_task_id, p_step_name, p_run_id);
  if not found then
    return;
  end if;

  insert into teguh.f_template as f (task_id, step_name, run_id, place, state)
  values (p_task_id, p_step_name, p_run_id, p_place, p_state)
  on conflict (task_id, step_name, run_id, place) do update
  set state = excluded.state;
  perform teguh._tell_template(p_task_id);
end;
$$;

-- Have it looked in a moment whether what a task waits for is there: its children, with whatever
-- else ends until then, or a message.
create or replace function teguh._tell_template(p_task_id uuid)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._push_template(
    's', array[p_task_id], array[-1], array[teguh.current_time() + interval '20 milliseconds']
  );
end;
$$;

-- How the children of a step stand: whether what is awaited has come true, and whether it still
-- can.  Null if no children were spawned.
create or replace function teguh._judge_template(
  p_task_id   uuid,
  p_step_name text,
  p_mode      text,
  p_fail_fast boolean
)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_all    integer;
  v_run_id uuid;
  v_over   integer;
  v_good   integer;
  v_want   integer;
begin
  select cardinality(j.child_ids), j.run_id into v_all, v_run_id
  from teguh.j_template as j
  where j.task_id = p_task_id
    and j.step_name = p_step_name;
  select count(*), count(*) filter (where f.state = 'completed') into v_over, v_good
  from teguh.f_template as f
  where f.task_id = p_task_id
    and f.step_name = p_step_name
    and f.run_id = v_run_id;

  v_want := case p_mode when 'all' then v_all when 'any' then 1 else p_mode::integer end;
  return v_over >= v_all
         or (p_mode <> 'all' and v_good >= v_want)
         or (p_fail_fast and v_all - (v_over - v_good) < v_want);
end;
$$;

-- Whether the children or the message that a task waits for are there.
create or replace function teguh._ripe_template(p_wait teguh.w_template)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_wait.event_name = '$children' then
    return (
      select teguh._judge_template(j.task_id, j.step_name, j.wanted, j.fail_fast)
      from teguh.j_template as j
      where (j.task_id, j.step_name) = (p_wait.task_id, p_wait.step_name)
    );
  end if;

  return starts_with(p_wait.event_name, '$message:') and exists (
    select from teguh.m_template as m
    where m.task_id = p_wait.task_id
      and m.received_by = ''
      and m.topic = substr(p_wait.event_name, length('$message:') + 1)
  );
end;
$$;

-- Wake those of the tasks given whose children have done what they wait for, or who have got the
-- message.  Returns how many.  One that somebody holds locked is looked at again in a second:
-- whoever it is may roll back.  Messages to a task that was removed meanwhile go, too.
create or replace function teguh._gather_template(p_task_ids uuid[], p_now timestamptz)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_wait  record;
  v_task  teguh.t_template;
  v_count integer := 0;
begin
  if coalesce(p_task_ids, '{}') = '{}' then
    return 0;
  end if;

  delete from teguh.m_template as m
  where m.task_id = any (array(
    select u.task_id
    from unnest(p_task_ids) as u(task_id)
    where not exists (
      select from teguh.t_template as t where t.task_id = u.task_id offset 0
    )
  ));

  for v_wait in
    select w.task_id, w.turn
    from unnest(p_task_ids) as u(task_id)
    join teguh.w_template as w on w.task_id = u.task_id
    where teguh._ripe_template(w)
    order by w.task_id
  loop
    select t.* into v_task
    from teguh.t_template as t
    where (t.task_id, t.turn) = (v_wait.task_id, v_wait.turn)
      and t.state = 'sleeping'
    for no key update skip locked;
    if not found then
      perform teguh._push_template(
        's', array[t.task_id], array[-1], array[p_now + interval '1 second']
      )
      from teguh.t_template as t
      where (t.task_id, t.turn, t.state) = (v_wait.task_id, v_wait.turn, 'sleeping');
      continue;
    end if;

    update teguh.t_template as t
    set
      turn = v_task.turn + 1,
      laned = false,
      state = 'pending',
      available_at = p_now
    where t.task_id = v_task.task_id;
    perform teguh._push_template('r', array[v_task.task_id], array[v_task.turn + 1]);
    perform teguh._moved_template(v_task, 'p');
    v_count := v_count + 1;
  end loop;

  return v_count;
end;
$$;

-- Wait for the children of a step, or learn what became of them.
--
-- The children are counted after the wait is written down, by a timer of its own: of a child that
-- ends at the same moment either this sees that it is over, or that count does.
create or replace function teguh._rally_template(
  p_task_id   uuid,
  p_run_id    uuid,
  p_step_name text,
  p_mode      text,
  p_timeout   double precision,
  p_fail_fast boolean,
  p_cancel    boolean
)
  returns table(should_suspend boolean, payload jsonb, timed_out boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now     timestamptz := teguh.current_time();
  v_task    teguh.t_template := teguh._own_template(p_task_id, p_run_id);
  v_timeout timestamptz;
  v_done    boolean;
begin
  select false, c.state, c.status = 'timed_out' into should_suspend, payload, timed_out
  from teguh.c_template as c
  where c.task_id = p_task_id
    and c.checkpoint_name = p_step_name;
  if found then
    payload := case when not timed_out then payload end;
    return next;
    return;
  end if;

  v_done := teguh._judge_template(p_task_id, p_step_name, p_mode, p_fail_fast);
  if v_done is null then
    raise exception 'step "%" has no children', left(p_step_name, 200)
      using
        errcode = 'TG004',
        detail = 'None were spawned under that name.',
        hint = 'Call spawn_children() with the same step name first.';
  end if;

  select w.timeout_at into v_timeout
  from teguh.w_template as w
  where w.task_id = p_task_id
    and w.step_name = p_step_name
    and w.event_name = '$children';
  v_timeout := coalesce(v_timeout, teguh._after(v_now, p_timeout));
  if not v_done and (v_timeout is null or v_timeout > v_now) then
    update teguh.j_template as j
    set
      wanted = p_mode,
      fail_fast = p_fail_fast
    where j.task_id = p_task_id
      and j.step_name = p_step_name;
    perform teguh._park_template(v_task, p_step_name, '$children', v_timeout);
    perform teguh._tell_template(p_task_id);
    return query select true, null::jsonb, false;
    return;
  end if;

  if p_cancel then
    perform teguh._dismiss(j.child_queues, j.child_ids, true)
    from teguh.j_template as j
    where j.task_id = p_task_id
      and j.step_name = p_step_name;
  end if;
  payload := case when v_done then teguh._crop_template(p_task_id, p_step_name) end;
  perform teguh._note_template(
    p_task_id, p_step_name, payload, case when v_done then 'committed' else 'timed_out' end,
    p_run_id
  );
  delete from teguh.w_template as w
  where w.task_id = p_task_id;
  return query select false, payload, not v_done;
end;
$$;

-- What became of the children of a step, in the order in which they were spawned.  Of one that is
-- gone with its queue, or was removed, only the state is known.
create or replace function teguh._crop_template(p_task_id uuid, p_step_name text)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_children teguh.j_template;
  v_queue    text;
  v_some     jsonb;
  v_all      jsonb := '{}'::jsonb;
begin
  select j.* into v_children
  from teguh.j_template as j
  where j.task_id = p_task_id
    and j.step_name = p_step_name;
  for v_queue in
    select distinct q.name
    from unnest(v_children.child_queues) as q(name)
  loop
    continue when not teguh._reach_queue(v_queue);
    execute format('select teguh.%I($1)', '_yield_' || v_queue)
    into v_some using v_children.child_ids;
    v_all := v_all || coalesce(v_some, '{}');
  end loop;

  return coalesce(
    (
      select jsonb_agg(
        jsonb_build_object('task_id', c.task_id, 'queue_name', c.queue_name)
        || coalesce(v_all -> c.task_id::text, jsonb_build_object(
          'state', f.state, 'result', null, 'failure_reason', null
        ))
        order by c.place
      )
      from unnest(v_children.child_ids, v_children.child_queues) with ordinality
        as c(task_id, queue_name, place)
      left join lateral (
        select f.state
        from teguh.f_template as f
        where (f.task_id, f.step_name) = (p_task_id, p_step_name)
          and (f.run_id, f.place) = (v_children.run_id, c.place::integer)
        offset 0
      ) as f on true
    ),
    '[]'
  );
end;
$$;

-- What became of those tasks that are of this queue, by their ids.
create or replace function teguh._yield_template(p_task_ids uuid[])
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select jsonb_object_agg(t.task_id, jsonb_build_object(
      'state', t.state, 'result', t.result, 'failure_reason', t.failure_reason
    ))
    from unnest(p_task_ids) as u(task_id)
    cross join lateral (
      select t.* from teguh.t_template as t where t.task_id = u.task_id offset 0
    ) as t
  );
end;
$$;

-- Cancel those of some tasks that are not over: p_wait for those that somebody holds locked, or
-- leave them to a timer.
create or replace function teguh._dismiss(p_queues text[], p_task_ids uuid[], p_wait boolean)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue text;
begin
  for v_queue in
    select distinct q.name
    from unnest(p_queues) as q(name)
    order by q.name
  loop
    continue when not teguh._reach_queue(v_queue);
    execute format('select teguh.%I($1, $2)', '_ditch_' || v_queue) using p_task_ids, p_wait;
  end loop;
end;
$$;

-- Cancel those of some tasks that are of this queue and not over, in the order of their ids.
create or replace function teguh._ditch_template(p_task_ids uuid[], p_wait boolean)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now      timestamptz := teguh.current_time();
  v_task_ids uuid[];
begin
  if p_wait then
    perform from teguh.t_template as t
    where t.task_id = any (p_task_ids)
      and t.state in ('pending', 'running', 'sleeping')
    order by t.task_id
    for no key update;
  end if;
  v_task_ids := array(
    select t.task_id
    from teguh.t_template as t
    where t.task_id = any (p_task_ids)
      and t.state in ('pending', 'running', 'sleeping')
    order by t.task_id
    for no key update skip locked
  );
  perform teguh._stop_template(u.task_id, v_now)
  from unnest(v_task_ids) as u(task_id);

  v_task_ids := array(
    select t.task_id
    from teguh.t_template as t
    where t.task_id = any (p_task_ids)
      and t.state in ('pending', 'running', 'sleeping')
  );
  if v_task_ids <> '{}' then
    perform teguh._push_template(
      'l', v_task_ids, teguh._fill(-1, v_task_ids),
      array_fill(v_now + interval '1 second', array[cardinality(v_task_ids)])
    );
  end if;
end;
$$;

-- Tell the parents and the workflow runs of tasks that go down with their queue: to them they
-- are cancelled.
create or replace function teguh._perish_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._answer(t.links -> 'join', 'cancelled')
  from teguh.t_template as t
  where t.links -> 'join' ->> 'queue_name' <> substr('_template', 2)
    and t.state in ('pending', 'running', 'sleeping');
  perform teguh._score_template(array(
    select t.task_id from teguh.t_template as t where t.workflow_run_id is not null
  ));
end;
$$;

-- Cancel the children that are to end with a task which has.  Claims and tickers end tasks, too,
-- and never wait: a child that somebody holds locked is cancelled a second later.
create or replace function teguh._orphan_template(p_task_id uuid)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._dismiss(j.child_queues, j.child_ids, false)
  from teguh.j_template as j
  where j.task_id = p_task_id
    and j.ends_with_us;
end;
$$;

-- Wait for the children of a step.
create or replace function teguh.await_children(
  p_queue_name text,
  p_task_id    uuid,
  p_run_id     uuid,
  p_step_name  text,
  p_mode       text default 'all',
  p_timeout    double precision default null,
  p_options    jsonb default '{}'
)
  returns table(should_suspend boolean, payload jsonb, timed_out boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
begin
  perform teguh._check_isolation('await_children');
  perform teguh._check_name('step name', p_step_name);
  perform teguh._check_keys('options', v_options, array['on_failure', 'cancel_rest']);
  if coalesce(p_mode, '') !~ '^(all|any|[1-9][0-9]{0,8})$'
    or coalesce(teguh._text_option(v_options, 'on_failure'), 'collect')
    not in ('collect', 'fail_fast')
  then
    raise exception 'children are awaited all, any or so many; on_failure is collect or fail_fast'
      using
        errcode = 'TG005',
        detail = format('Found: %s, %s.', left(p_mode, 200), left(v_options::text, 200)),
        hint = 'For instance all, with {"on_failure": "fail_fast"}.';
  end if;
  if p_timeout is not null then
    perform teguh._check_seconds('timeout', p_timeout, true);
  end if;

  return query execute teguh._call('rally', p_queue_name, 7)
  using
    p_task_id, p_run_id, p_step_name, p_mode, p_timeout,
    coalesce(v_options ->> 'on_failure' = 'fail_fast', false),
    teguh._flag_option(v_options, 'cancel_rest');
end;
$$;

comment on function teguh.await_children(
  text, uuid, uuid, text, text, double precision, jsonb
) is
  'Waits for the children that spawn_children() has spawned for a step: p_mode all (over, in '
  'whatever way), any (one completed) or a number (so many completed); if that cannot come true '
  'any more, until all are over. should_suspend: the run now sleeps; the worker lets go of it and '
  'calls again when it is claimed next. Otherwise payload is an array in the order in which they '
  'were spawned, of {"task_id", "queue_name", "state", "result", "failure_reason"}, or timed_out '
  'is true; and so it stays for this step. Options: on_failure (collect, the default; fail_fast: '
  'over as soon as so many have failed that p_mode cannot come true), cancel_rest (true: those not '
  'over by then are cancelled). Raises TG001 for an unknown queue, TG002 for an unknown run or one '
  'of another task, TG004 if nobody holds the run or the step has no children, TG005 for a bad '
  'mode or option, AB001 if the task is cancelled, AB002 if the run has ended, 25001 unless the '
  'transaction is READ COMMITTED.';
