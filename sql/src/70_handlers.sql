-- Handlers that are SQL functions, and what they can call; 71_work runs them.
--
-- A handler is run from its first line, in a pass.  Steps that have a checkpoint give it.  The
-- first one that has none raises an order, which ends the pass and takes back what it has written.
--
-- An order has the SQLSTATE P0004, which "when others" does not catch: a handler's own exception
-- blocks let it through.

-- Find a function by its name, which must be qualified, and one of these lists of arguments that
-- it may have.  Gives its name as it is to be called.
create or replace function teguh._resolve_function(p_function text, p_arguments text[])
  returns text
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_parts text[];
begin
  begin
    v_parts := parse_ident(p_function);
  exception
    when invalid_parameter_value then
      null;
  end;
  if cardinality(v_parts) is distinct from 2 then
    raise exception 'not the name of a function: "%"', left(coalesce(p_function, 'null'), 200)
      using
        errcode = 'TG005',
        detail = 'A schema and a name are needed: nothing is looked up in a search_path.',
        hint = 'For instance shop.charge, without arguments.';
  end if;

  perform from pg_proc as p
  join pg_namespace as n on n.oid = p.pronamespace
  where (n.nspname, p.proname) = (v_parts[1], v_parts[2])
    and oidvectortypes(p.proargtypes) = any (p_arguments)
    and p.prorettype = 'jsonb'::regtype
    and p.prokind = 'f'
    and not p.proretset;
  if not found then
    raise exception 'function %(%) does not exist', left(p_function, 200), p_arguments[1]
      using
        errcode = '42883',
        detail = coalesce(
          (
            select format(
              'There is: %s.', string_agg(
                p.oid::regprocedure || ' returning ' || pg_get_function_result(p.oid), '; '
              )
            )
            from pg_proc as p
            join pg_namespace as n on n.oid = p.pronamespace
            where (n.nspname, p.proname) = (v_parts[1], v_parts[2])
              and p.prokind = 'f'
            having count(*) > 0
          ),
          'There is none of that name.'
        ),
        hint = format('It takes %s and returns jsonb.', array_to_string(p_arguments, ' or '));
  end if;

  return format('%I.%I', v_parts[1], v_parts[2]);
end;
$$;

-- Set the handler of a task; null: take it away.  Gives whether there was one.
create or replace function teguh._hire_template(p_task_name text, p_function text)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_known boolean;
begin
  delete from teguh.handlers as h
  where h.queue_name = substr('_template', 2)
    and h.task_name = p_task_name;
  v_known := found;
  if p_function is not null then
    insert into teguh.handlers as h (queue_name, task_name, function_name, registered_at)
    values (substr('_template', 2), p_task_name, p_function, teguh.current_time());
  end if;
  return v_known;
end;
$$;

-- Register a handler.
create or replace function teguh.register_handler(
  p_queue_name text,
  p_task_name  text,
  p_function   text
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_name('task name', p_task_name);
  execute teguh._call('hire', p_queue_name, 2)
  using p_task_name, teguh._resolve_function(p_function, array['teguh.job']);
end;
$$;

comment on function teguh.register_handler(text, text, text) is
  'Lets work() run a function for a queue''s tasks of a name, * for all those that have no handler '
  'of their own. It is given by schema and name, takes one argument of the type teguh.job and '
  'returns jsonb, the task''s result. What was registered before for that name is replaced. '
  'Raises TG001 for an unknown queue, TG005 for a bad name, 42883 if there is no such function.';

-- Take a handler away.
create or replace function teguh.unregister_handler(p_queue_name text, p_task_name text)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_known boolean;
begin
  execute teguh._call('hire', p_queue_name, 2) into v_known using p_task_name, null::text;
  return v_known;
end;
$$;

comment on function teguh.unregister_handler(text, text) is
  'Takes back what register_handler() did. Returns whether there was a handler. Raises TG001 for '
  'an unknown queue.';

-- The handlers of the queue.
create or replace function teguh._staff_template()
  returns table(
    queue_name    text,
    task_name     text,
    function_name text,
    registered_at timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select h.*
  from teguh.handlers as h
  where h.queue_name = substr('_template', 2)
  order by h.task_name;
end;
$$;

-- List handlers.
create or replace function teguh.list_handlers(p_queue_name text default null)
  returns table(
    queue_name    text,
    task_name     text,
    function_name text,
    registered_at timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text;
begin
  if p_queue_name is not null then
    perform teguh._policy(p_queue_name);
  end if;

  for v_queue_name in
    select q.queue_name
    from teguh.list_queues() as q
    where q.queue_name = p_queue_name
      or (p_queue_name is null and teguh._may('staff', q.queue_name))
  loop
    continue when p_queue_name is null and not teguh._share_queue(v_queue_name);
    return query execute teguh._call('staff', v_queue_name, 0);
  end loop;
end;
$$;

comment on function teguh.list_handlers(text) is
  'The handlers of a queue (null: of each queue the caller may look at) by queue and task name: '
  'function_name is with its schema. Raises TG001 for an unknown queue.';

-- What a step is called in this pass.  A name that comes again is numbered, as by the Python
-- context.  The names so far are kept in a setting; where an exception block is undone, so are the
-- names of the steps in it, and it finds the same steps when it is tried again.
create or replace function teguh._number_step(p_name text)
  returns text
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_names text[] := nullif(current_setting('teguh.steps', true), '');
  v_count integer := cardinality(array_positions(v_names, p_name));
begin
  perform teguh._check_name('step name', p_name);
  if p_name ~ '#[0-9]+$' then
    raise exception 'a step cannot be named "%"', left(p_name, 200)
      using
        errcode = 'TG005',
        detail = 'That is how steps are numbered whose name comes again.',
        hint = 'Give it another name.';
  elsif v_names is null then
    raise exception 'step "%" is not in a handler', left(p_name, 200)
      using
        errcode = 'TG004',
        detail = 'A handler''s steps are run by work(), and have no steps themselves.',
        hint = 'Register the handler, spawn its task, and: call teguh.work(queue);';
  end if;

  perform set_config('teguh.steps', (v_names || p_name)::text, true);
  return p_name || case when v_count > 0 then '#' || v_count + 1 else '' end;
end;
$$;

-- End a pass: what is to be done now, work() has to do.
create or replace function teguh._order(p_order jsonb)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'an order for teguh.work()'
    using
      errcode = 'P0004',
      detail = p_order::text,
      hint = 'Whoever catches this loses a step: let it pass.';
end;
$$;

-- Run a step.
create or replace function teguh.step(
  p_job      teguh.job,
  p_name     text,
  p_function text,
  p_argument jsonb default 'null'
)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_step text := teguh._number_step(p_name);
begin
  if p_job.steps ? v_step then
    return p_job.steps -> v_step -> 0;
  end if;

  return teguh._order(jsonb_build_object(
    'do', 'step', 'step', v_step, 'function', p_function, 'argument', coalesce(p_argument, 'null')
  ));
end;
$$;

comment on function teguh.step(teguh.job, text, text, jsonb) is
  'For handlers: what a function returns for an argument, or what it returned the first time. It '
  'is given by schema and name, takes jsonb, or teguh.job and jsonb (if there are both, the run '
  'fails), and returns jsonb. What it writes commits together with that it is done: exactly once. '
  'An error in it fails the run, and '
  'is not for the handler to catch. A name used again in a handler is numbered (charge, charge#2): '
  'the steps must come in the same order each time. Raises TG004 outside of a handler, TG005 for a '
  'bad name.';

-- Sleep until a moment, which the first pass that comes here says.
create or replace function teguh._doze(p_job teguh.job, p_name text, p_until timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_step  text := teguh._number_step(p_name);
  v_until timestamptz := coalesce((p_job.steps -> v_step ->> 0)::timestamptz, p_until);
begin
  if not p_job.steps ? v_step or v_until > teguh.current_time() then
    perform teguh._order(jsonb_build_object('do', 'sleep', 'step', v_step, 'until', v_until));
  end if;
end;
$$;

-- Let a handler sleep.
create or replace function teguh.sleep_for(
  p_job     teguh.job,
  p_name    text,
  p_seconds double precision
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_seconds('sleep', p_seconds, true);
  perform teguh._doze(p_job, p_name, teguh._after(teguh.current_time(), p_seconds));
end;
$$;

comment on function teguh.sleep_for(teguh.job, text, double precision) is
  'For handlers: lets the task sleep for some seconds, counted once. Meanwhile nobody holds it. '
  'Raises TG004 outside of a handler, TG005 for a bad name or number of seconds.';

-- Let a handler sleep until a moment.
create or replace function teguh.sleep_until(p_job teguh.job, p_name text, p_wake_at timestamptz)
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
        detail = 'A task that sleeps must have a time to wake at.',
        hint = 'Pass a timestamp; one in the past does not let it sleep.';
  end if;
  perform teguh._doze(p_job, p_name, p_wake_at);
end;
$$;

comment on function teguh.sleep_until(teguh.job, text, timestamptz) is
  'For handlers: lets the task sleep until a moment; the one given first counts. Raises 22004 for '
  'a null time, TG004 outside of a handler, TG005 for a bad name.';

-- Wait for an event in a handler.
create or replace function teguh.await(
  p_job        teguh.job,
  p_name       text,
  p_event_name text,
  p_timeout    double precision default null
)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_step text := teguh._number_step(p_name);
begin
  if p_job.steps ? v_step then
    return p_job.steps -> v_step -> 0;
  end if;

  perform teguh._check_event(p_event_name);
  if p_timeout is not null then
    perform teguh._check_seconds('timeout', p_timeout, true);
  end if;
  return teguh._order(jsonb_build_object(
    'do', 'await', 'step', v_step, 'event', p_event_name, 'timeout', p_timeout
  ));
end;
$$;

comment on function teguh.await(teguh.job, text, text, double precision) is
  'For handlers: the payload of an event of the task''s queue, JSON null if it has none; SQL null '
  'if it has not come within p_timeout seconds (null: however long it takes). Meanwhile nobody '
  'holds the task. Raises TG004 outside of a handler, TG005 for a bad name or timeout.';

-- Receive a message in a handler.
create or replace function teguh.receive(
  p_job     teguh.job,
  p_name    text,
  p_topic   text,
  p_timeout double precision default null
)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_step text := teguh._number_step(p_name);
begin
  if p_job.steps ? v_step then
    return p_job.steps -> v_step -> 0;
  end if;

  return teguh._order(jsonb_build_object(
    'do', 'receive', 'step', v_step, 'topic', p_topic, 'timeout', p_timeout
  ));
end;
$$;

comment on function teguh.receive(teguh.job, text, text, double precision) is
  'For handlers: takes the oldest message of a topic out of the task''s mailbox, as '
  'receive_message() does, or waits for one. Returns its payload, JSON null if it has none; SQL '
  'null if none has come within p_timeout seconds (null: however long it takes). Meanwhile nobody '
  'holds the task. Raises TG004 outside of a handler, TG005 for a bad name; the run fails with '
  'what receive_message() raises.';

-- Spawn children in a handler and wait for them.
create or replace function teguh.children(
  p_job     teguh.job,
  p_name    text,
  p_tasks   jsonb,
  p_mode    text default 'all',
  p_timeout double precision default null,
  p_options jsonb default '{}'
)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_step text := teguh._number_step(p_name);
begin
  if p_job.steps ? v_step then
    return p_job.steps -> v_step -> 0;
  end if;

  return teguh._order(jsonb_build_object(
    'do', 'children', 'step', v_step, 'tasks', p_tasks, 'mode', p_mode, 'timeout', p_timeout,
    'options', coalesce(p_options, '{}')
  ));
end;
$$;

comment on function teguh.children(
  teguh.job, text, jsonb, text, double precision, jsonb
) is
  'For handlers: spawns tasks as spawn_children() does, and waits for them as await_children() '
  'does, with the options of both. Returns what became of them, an array in the order in which '
  'they were given; SQL null if that is not known within p_timeout seconds (null: however long it '
  'takes). Raises TG004 outside of a handler, TG005 for a bad name; the run fails with what the '
  'two raise.';
