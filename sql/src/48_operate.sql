-- Cancel tasks, locked in the order of their ids.  What is over by then is passed over.
create or replace function teguh._abort_template(
  p_filter teguh._filter,
  p_limit  integer,
  p_reason text
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now      timestamptz := teguh.current_time();
  v_task_ids uuid[] := teguh._find_template(
    p_filter, 'ffffffff-ffff-ffff-ffff-ffffffffffff', p_limit
  );
  v_task_id  uuid;
  v_count    integer := 0;
begin
  for v_task_id in
    select t.task_id
    from teguh.t_template as t
    where t.task_id = any (v_task_ids)
      and t.state in ('pending', 'running', 'sleeping')
    order by t.task_id
    for no key update
  loop
    perform teguh._act_template(
      'cancel', p_reason, v_task_id, teguh._stop_template(v_task_id, v_now), null
    );
    v_count := v_count + 1;
  end loop;

  return v_count;
end;
$$;

-- Cancel the tasks that a filter means.
create or replace function teguh.cancel_tasks(
  p_queue_name text,
  p_filter     jsonb,
  p_options    jsonb default '{}'
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
  v_filter  teguh._filter := teguh._read_filter(p_filter);
  v_count   integer;
begin
  perform teguh._check_keys('cancel options', v_options, array['all', 'limit', 'reason']);
  perform teguh._check_meant(p_filter, v_options);

  v_filter.states := array(
    select s.state
    from unnest('{pending,running,sleeping}'::text[]) as s(state)
    where v_filter.states is null or s.state = any (v_filter.states)
  );
  execute teguh._call('abort', p_queue_name, 3) into v_count
  using
    v_filter, teguh._limit_option(v_options), teguh._text_option(v_options, 'reason');
  return v_count;
end;
$$;

comment on function teguh.cancel_tasks(text, jsonb, jsonb) is
  'Cancels tasks that are not over, and returns how many. The filter is that of list_tasks(). '
  'Options: limit (the newest so many, default 1000: call again until 0 comes back), reason, all '
  '(true: an empty filter is meant, and means every task). Raises TG001 for an unknown queue, '
  'TG005 for an unknown key, a bad value, or an empty filter without all.';

-- Refuse a filter that means every task, unless the options say so.
create or replace function teguh._check_meant(p_filter jsonb, p_options jsonb)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (
    select from jsonb_each(p_filter) as e where e.value not in ('null', '[]', '{}')
  )
    and not teguh._flag_option(p_options, 'all')
  then
    raise exception 'the filter is empty'
      using
        errcode = 'TG005',
        detail = 'It means every task of the queue.',
        hint = 'If that is what you want, say so: p_options => ''{"all": true}''.';
  end if;
end;
$$;

-- Read how many tasks a call may touch.
create or replace function teguh._limit_option(p_options jsonb)
  returns integer
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return teguh._check_limit(coalesce(teguh._integer_option(p_options, 'limit', 1), 1000));
end;
$$;

-- Take a task away from its worker and queue it.  The next run has another id, so that the
-- worker, should it be alive after all, meets AB002.
create or replace function teguh._retake_template(p_task_id uuid, p_reason text)
  returns uuid
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now    timestamptz := teguh.current_time();
  v_number integer;
  v_task   teguh.t_template;
begin
  select t.* into v_task
  from teguh.t_template as t
  where t.task_id = p_task_id
  for no key update;
  if not found then
    perform teguh._fetch_template(p_task_id);
  elsif v_task.state <> 'running' then
    raise exception 'task "%" is %', p_task_id, v_task.state
      using
        errcode = 'TG004',
        detail = 'No worker holds it.',
        hint = 'retry_task() runs a task that is over once more.';
  end if;

  v_number := teguh._run_number(v_task.run_id) + 1;
  perform teguh._file_template(v_task, 'released', null, v_now);
  perform teguh._again_template(
    v_task, v_number, v_task.failures, v_task.failure_reason, v_now, v_now
  );
  perform teguh._act_template(
    'requeue', p_reason, p_task_id, teguh._run_id(p_task_id, v_number), null
  );
  return teguh._run_id(p_task_id, v_number);
end;
$$;

-- Take a task away from a worker that is known to be dead.
create or replace function teguh.requeue_task(
  p_queue_name text,
  p_task_id    uuid,
  p_reason     text default null
)
  returns uuid
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run_id uuid;
begin
  execute teguh._call('retake', p_queue_name, 2) into v_run_id using p_task_id, p_reason;
  return v_run_id;
end;
$$;

comment on function teguh.requeue_task(text, uuid, text) is
  'Takes a running task away from its worker, for instance one that is known to be dead, before '
  'the lease ends, and queues it at once with its checkpoints. No failure is counted. Returns '
  'the id of the next run; the worker meets AB002 if it is alive after all. Raises TG001 for an '
  'unknown queue, TG003 for an unknown task, TG004 unless it is running.';

-- Take the tasks that a filter means away from their workers, locked in the order of their ids.
create or replace function teguh._regain_template(
  p_filter teguh._filter,
  p_limit  integer,
  p_reason text
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task_ids uuid[] := teguh._find_template(
    p_filter, 'ffffffff-ffff-ffff-ffff-ffffffffffff', p_limit
  );
  v_task_id  uuid;
  v_count    integer := 0;
begin
  for v_task_id in
    select t.task_id
    from teguh.t_template as t
    where t.task_id = any (v_task_ids)
      and t.state = 'running'
      and t.claimed_by = coalesce(p_filter.claimed_by, t.claimed_by)
    order by t.task_id
    for no key update
  loop
    perform teguh._retake_template(v_task_id, p_reason);
    v_count := v_count + 1;
  end loop;

  return v_count;
end;
$$;

-- Take the tasks that a filter means away from their workers.
create or replace function teguh.requeue_tasks(
  p_queue_name text,
  p_filter     jsonb,
  p_options    jsonb default '{}'
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
  v_filter  teguh._filter := teguh._read_filter(p_filter);
  v_count   integer;
begin
  perform teguh._check_keys(
    'requeue options', v_options, array['all', 'limit', 'reason', 'worker_id']
  );
  v_filter.claimed_by := teguh._text_option(v_options, 'worker_id');
  if v_filter.claimed_by is null then
    perform teguh._check_meant(p_filter, v_options);
  end if;

  v_filter.states := array['running'];
  execute teguh._call('regain', p_queue_name, 3) into v_count
  using
    v_filter, teguh._limit_option(v_options), teguh._text_option(v_options, 'reason');
  return v_count;
end;
$$;

comment on function teguh.requeue_tasks(text, jsonb, jsonb) is
  'Does requeue_task() for the running tasks that a filter means; returns how many. The filter is '
  'that of list_tasks(), whatever it says of states. Options: worker_id (only what that worker '
  'holds), limit (the newest so many, default 1000: call again until 0 comes back), reason, all '
  '(true: an empty filter without worker_id is meant, and means every running task). Raises TG001 '
  'for an unknown queue, TG005 for an unknown key, a bad value, or an empty filter without all.';

-- Dead letters are the tasks that failed.
create or replace function teguh.list_dead_letters(
  p_queue_name text,
  p_filter     jsonb default '{}',
  p_cursor     text default null,
  p_limit      integer default 50
)
  returns table(
    task_id          uuid,
    task_name        text,
    state            text,
    attempts         integer,
    failures         integer,
    created_at       timestamptz,
    available_at     timestamptz,
    started_at       timestamptz,
    finished_at      timestamptz,
    claimed_by       text,
    lease_expires_at timestamptz,
    failure_reason   jsonb,
    tags             text[],
    correlation_id   text,
    parent_task_id   uuid,
    workflow_run_id  uuid,
    cursor           text,
    attributes       jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('rows', p_queue_name, 3)
  using
    teguh._read_filter(p_filter, '{failed}'), teguh._read_cursor(p_cursor),
    teguh._check_limit(p_limit);
end;
$$;

comment on function teguh.list_dead_letters(text, jsonb, text, integer) is
  'The tasks of a queue that failed: list_tasks() with state failed, which the filter does not '
  'name again. Raises TG001 for an unknown queue, TG005 for an unknown key, a bad value, a bad '
  'cursor or limit.';

-- Run failed tasks once more, so many per second, locked in the order of their ids.
create or replace function teguh._replay_template(
  p_filter       teguh._filter,
  p_limit        integer,
  p_per_second   double precision,
  p_max_attempts integer,
  p_options      jsonb
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now      timestamptz := teguh.current_time();
  v_task_ids uuid[] := teguh._find_template(
    p_filter, 'ffffffff-ffff-ffff-ffff-ffffffffffff', p_limit
  );
  v_task     teguh.t_template;
  v_count    integer := 0;
begin
  for v_task in
    select t.*
    from teguh.t_template as t
    where t.task_id = any (v_task_ids)
      and t.state = 'failed'
    order by t.task_id
    for no key update
  loop
    perform teguh._forget_template(v_task.task_id, p_options ->> 'from_step');
    perform teguh._redo_template(
      v_task, 'replay', greatest(p_max_attempts, v_task.failures + 1), p_options ->> 'reason',
      teguh._after(v_now, coalesce(v_count / p_per_second, 0))
    );
    v_count := v_count + 1;
  end loop;

  return v_count;
end;
$$;

-- Run failed tasks once more.
create or replace function teguh.replay_dead_letters(
  p_queue_name text,
  p_filter     jsonb default '{}',
  p_options    jsonb default '{}'
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
  v_count   integer;
begin
  perform teguh._check_keys(
    'replay options', v_options,
    array['limit', 'per_second', 'max_attempts', 'from_step', 'reason']
  );
  perform teguh._text_option(v_options, 'from_step');
  perform teguh._text_option(v_options, 'reason');
  execute teguh._call('replay', p_queue_name, 5) into v_count
  using
    teguh._read_filter(p_filter, '{failed}'),
    teguh._limit_option(v_options),
    teguh._number_option(v_options, 'per_second', 1e-6, 1e6),
    teguh._integer_option(v_options, 'max_attempts', 1),
    v_options;
  return v_count;
end;
$$;

comment on function teguh.replay_dead_letters(text, jsonb, jsonb) is
  'Runs failed tasks once more, from their checkpoints on, and returns how many. The filter is '
  'that of list_dead_letters(). Options: limit (the newest so many, default 1000: call again '
  'until 0 comes back), per_second (they start one after another at this rate, not all at once), '
  'max_attempts (at least room for one more run), from_step (delete the checkpoint of that step '
  'and all written after it; a task without it goes on where it failed), reason. Raises TG001 for '
  'an unknown queue, TG005 for an unknown key or a bad value.';

-- Remove tasks that failed more than p_ttl seconds ago, up to p_limit.
create or replace function teguh._bury_template(
  p_ttl    double precision,
  p_limit  integer,
  p_reason text
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_before   timestamptz := teguh._after(teguh.current_time(), -p_ttl);
  v_upto     uuid := teguh._first_uuid(v_before + interval '1 millisecond');
  v_task_ids uuid[];
begin
  v_task_ids := array(
    select t.task_id
    from (
      select d.task_id
      from teguh.d_template as d
      where d.state = 'failed'
        and d.task_id < v_upto
        and d.ended_at <= v_before
      order by d.state, d.task_id
    ) as d
    join teguh.t_template as t on t.task_id = d.task_id
    where t.state = 'failed'
      and t.finished_at <= v_before
    limit p_limit
    for update of t skip locked
  );

  if v_task_ids <> '{}' then
    perform teguh._act_template(
      'purge', p_reason, null, null, jsonb_build_object('tasks', cardinality(v_task_ids))
    );
  end if;
  return teguh._erase_template(v_task_ids);
end;
$$;

-- Remove tasks that failed.
create or replace function teguh.purge_dead_letters(
  p_queue_name  text,
  p_ttl_seconds double precision default null,
  p_limit       integer default 1000,
  p_reason      text default null
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb := teguh._policy(p_queue_name);
  v_ttl    double precision := coalesce(
    p_ttl_seconds, (v_policy ->> 'cleanup_ttl')::double precision, 2592000
  );
  v_count  integer;
begin
  perform teguh._check_seconds('ttl', v_ttl, true);
  execute teguh._call('bury', p_queue_name, 3) into v_count
  using v_ttl, teguh._check_limit(p_limit), p_reason;
  return v_count;
end;
$$;

comment on function teguh.purge_dead_letters(text, double precision, integer, text) is
  'Removes tasks that failed more than p_ttl_seconds ago (null: what the queue''s policy says of '
  'cleanup, else 30 days), up to p_limit, and returns how many. Raises TG001 for an unknown '
  'queue, TG005 for a bad argument.';
