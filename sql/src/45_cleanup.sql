-- Remove tasks that have been over for longer than p_ttl seconds, with their
-- checkpoints and history, up to p_limit; and as old actions that are about no task.
--
-- A task finished after it was made, and ids are in the order of their making, so
-- only tasks made before the limit are looked at.  Their state is read again under
-- the lock: a task that is being retried stays.
create or replace function teguh._purge_template(p_ttl double precision, p_limit integer)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_before   timestamptz := greatest(teguh._after(teguh.current_time(), -p_ttl), 'epoch');
  v_upto     uuid := teguh._first_uuid(v_before + interval '1 millisecond');
  v_task_ids uuid[];
begin
  v_task_ids := array(
    select t.task_id
    from teguh.t_template as t
    where t.task_id < v_upto
      and t.state in ('completed', 'failed', 'cancelled', 'expired')
      and t.finished_at <= v_before
    order by t.task_id
    limit p_limit
    for update skip locked
  );

  delete from teguh.a_template as a
  where a.task_id is null
    and a.acted_at <= v_before;
  return teguh._erase_template(v_task_ids);
end;
$$;

-- Remove locked tasks with all that belongs to them.  Returns how many.
create or replace function teguh._erase_template(p_task_ids uuid[])
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_names text[];
  v_was   "char"[];
begin
  perform teguh._score_template(p_task_ids);
  delete from teguh.g_template as g
  using teguh.t_template as t
  where t.task_id = any (p_task_ids)
    and t.tags is not null
    and g.task_id = t.task_id
    and g.tag collate "C" = any (t.tags);
  delete from teguh.d_template as d
  where d.state in ('failed', 'cancelled', 'expired')
    and d.task_id = any (p_task_ids);
  with gone as (
    delete from teguh.t_template as t
    where t.task_id = any (p_task_ids)
    returning t.task_name, t.state
  )

  select array_agg(g.task_name), array_agg(teguh._letter(g.state, 0, null))
  into v_names, v_was
  from gone as g;
  perform teguh._reckon_template(v_names, v_was, '-');

  delete from teguh.u_template as u
  where u.task_id = any (p_task_ids);
  delete from teguh.c_template as c
  where c.task_id = any (p_task_ids);
  delete from teguh.r_template as r
  where r.task_id = any (p_task_ids);
  delete from teguh.w_template as w
  where w.task_id = any (p_task_ids);
  delete from teguh.v_template as v
  where v.task_id = any (p_task_ids);
  delete from teguh.j_template as j
  where j.task_id = any (p_task_ids);
  delete from teguh.f_template as f
  where f.task_id = any (p_task_ids);
  delete from teguh.a_template as a
  where a.task_id = any (p_task_ids);
  delete from teguh.m_template as m
  where m.task_id = any (p_task_ids);
  return cardinality(p_task_ids);
end;
$$;

-- The least version 7 uuid of a millisecond.
create or replace function teguh._first_uuid(p_at timestamptz)
  returns uuid
  language sql
  immutable
  strict
  set search_path = pg_catalog, pg_temp
as $$
  select encode(
    substr(int8send(floor(
      date_part('epoch', greatest('epoch', least(p_at, '9999-12-31 00:00:00+00'))) * 1000
    )::bigint), 3)
    || decode('70008000000000000000', 'hex'),
    'hex'
  )::uuid;
$$;

-- Remove events that were emitted, or first awaited, longer than p_ttl seconds ago,
-- up to p_limit.  Never one that a task waits for: a waiter shares the lock of the
-- event's row, and is looked for when that row is locked.
create or replace function teguh._sweep_template(p_ttl double precision, p_limit integer)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_before timestamptz := teguh._after(teguh.current_time(), -p_ttl);
  v_names  text[];
  v_count  integer;
begin
  v_names := array(
    select e.event_name
    from teguh.e_template as e
    where e.created_at <= v_before
      and coalesce(e.emitted_at, e.created_at) <= v_before
      and not exists (
        select from teguh.w_template as w
        where w.event_name = e.event_name
        offset 0
      )
    order by e.created_at
    limit p_limit
    for update of e skip locked
  );

  delete from teguh.e_template as e
  where e.event_name = any (v_names)
    and not exists (
      select from teguh.w_template as w
      where w.event_name = e.event_name
      offset 0
    );
  get diagnostics v_count = row_count;
  return v_count;
end;
$$;

-- Check what cleanup was asked for, with the queue's policy for what was not said,
-- and do it.
create or replace function teguh._clean(
  p_verb       text,
  p_queue_name text,
  p_ttl        double precision,
  p_limit      integer
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb := teguh._policy(p_queue_name);
  v_ttl    double precision := coalesce(
    p_ttl, (v_policy ->> 'cleanup_ttl')::double precision, 2592000
  );
  v_limit  integer := coalesce(p_limit, (v_policy ->> 'cleanup_limit')::integer, 1000);
  v_count  integer;
begin
  perform teguh._check_seconds('ttl', v_ttl, true);
  if v_limit < 1 then
    raise exception 'limit must be at least 1'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', v_limit),
        hint = 'Leave it out for the limit of the queue''s policy.';
  end if;

  execute teguh._call(p_verb, p_queue_name, 2) into v_count using v_ttl, v_limit;
  return v_count;
end;
$$;

-- Remove old tasks.
create or replace function teguh.cleanup_tasks(
  p_queue_name  text,
  p_ttl_seconds double precision default null,
  p_limit       integer default null
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return teguh._clean('purge', p_queue_name, p_ttl_seconds, p_limit);
end;
$$;

comment on function teguh.cleanup_tasks(text, double precision, integer) is
  'Removes tasks that completed, failed, expired or were cancelled more than p_ttl_seconds '
  'ago, up to p_limit, and returns how many. Null: what the queue''s policy says, else 30 '
  'days and 1000. Raises TG001 for an unknown queue, TG005 for a bad argument.';

-- Remove old events.
create or replace function teguh.cleanup_events(
  p_queue_name  text,
  p_ttl_seconds double precision default null,
  p_limit       integer default null
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return teguh._clean('sweep', p_queue_name, p_ttl_seconds, p_limit);
end;
$$;

comment on function teguh.cleanup_events(text, double precision, integer) is
  'Removes events emitted more than p_ttl_seconds ago, up to p_limit, and returns how '
  'many. An event that a task waits for stays. Null: what the queue''s policy says, '
  'else 30 days and 1000. Raises TG001 for an unknown queue, TG005 for a bad argument.';

-- Remove old tasks and events of one queue or of all, and then old workflow runs.
create or replace function teguh.cleanup_all_queues(p_queue_name text default null)
  returns table(queue_name text, tasks_deleted integer, events_deleted integer)
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_queue_name is not null then
    perform teguh._policy(p_queue_name);
  end if;

  for queue_name in
    select q.queue_name
    from teguh.queues as q
    where p_queue_name is null or q.queue_name = p_queue_name
    order by q.queue_name
  loop
    continue when not teguh._share_queue(queue_name);
    tasks_deleted := teguh.cleanup_tasks(queue_name);
    events_deleted := teguh.cleanup_events(queue_name);
    return next;
  end loop;

  if p_queue_name is null then
    perform teguh.cleanup_workflow_runs();
  end if;
end;
$$;

comment on function teguh.cleanup_all_queues(text) is
  'Removes old tasks and events of a queue (null: of every queue) as its policy says, '
  'one bounded batch each, and returns the counts; for every queue also what '
  'cleanup_workflow_runs() removes. Raises TG001 for an unknown queue.';
