-- Handlers that are SQL functions, and the worker that runs them: the database itself.
--
-- A handler is run from its first line, in a pass.  Steps that have a checkpoint give it.  The
-- first one that has none raises an order, which ends the pass and takes back what it has written;
-- work() catches the order, carries it out, commits, and begins another pass.  So every step is a
-- transaction of its own, though a function cannot commit.  The pass that comes to the handler's
-- end commits together with the completion.
--
-- An order has the SQLSTATE P0004, which "when others" does not catch: a handler's own exception
-- blocks let it through.

-- Find a function by its name, which must be qualified, and one of these lists of arguments that
-- it may have.  Gives its name as it is to be called.
create or replace function teguh._find_function(p_function text, p_arguments text[])
  returns text
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_parts text[];
  v_found regprocedure;
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

  select p.oid into v_found
  from pg_proc as p
  join pg_namespace as n on n.oid = p.pronamespace
  where (n.nspname, p.proname) = (v_parts[1], v_parts[2])
    and oidvectortypes(p.proargtypes) = any (p_arguments)
    and p.prorettype = 'jsonb'::regtype
    and p.prokind = 'f'
    and not p.proretset
  order by p.pronargs desc;
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
          ),
          'There is none of that name.'
        ),
        hint = format('It takes %s and returns jsonb.', array_to_string(p_arguments, ' or '));
  end if;

  return format('%I.%I', v_parts[1], v_parts[2]);
end;
$$;

-- Set the handler of a task; null: take it away.  Gives whether there was one.
create or replace function teguh._hire_template(p_task_name text, p_handler text)
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
  if p_handler is not null then
    insert into teguh.handlers as h (queue_name, task_name, handler, registered_at)
    values (substr('_template', 2), p_task_name, p_handler, teguh.current_time());
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
  using p_task_name, teguh._find_function(p_function, array['teguh.job']);
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
  returns table(queue_name text, task_name text, handler text, registered_at timestamptz)
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
  returns table(queue_name text, task_name text, handler text, registered_at timestamptz)
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
    return query execute teguh._call('staff', v_queue_name, 0);
  end loop;
end;
$$;

comment on function teguh.list_handlers(text) is
  'The handlers of a queue (null: of each queue the caller may look at) by queue and task name: '
  'handler is the function''s schema and name. Raises TG001 for an unknown queue.';

-- The handlers of a queue by task name, for whoever is about to run them.
--
-- Refuses one whose owner could not act as the caller anyway: who may register handlers, or
-- replace the function, must not gain the rights of whoever calls work(), which by pg_cron is
-- teguh's owner.
create or replace function teguh._handlers(p_queue_name text)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_handler record;
  v_owner   regrole;
  v_found   jsonb := '{}'::jsonb;
begin
  for v_handler in
    select h.task_name, h.handler
    from teguh.list_handlers(p_queue_name) as h
  loop
    v_found := v_found || jsonb_build_object(
      v_handler.task_name, teguh._find_function(v_handler.handler, array['teguh.job'])
    );
    select p.proowner into v_owner
    from pg_proc as p
    where p.oid = (v_handler.handler || '(teguh.job)')::regprocedure;
    if not pg_has_role(v_owner, current_user, 'member') then
      raise exception 'function % is not for role "%" to run', v_handler.handler, current_user
        using
          errcode = '42501',
          detail = format('It is %s''s, who is not a member of that role.', v_owner),
          hint = format(
            'Call work() as the owner of its handlers, or: grant %I to %s;', current_user, v_owner
          );
    end if;
  end loop;

  if v_found = '{}' then
    raise exception 'queue "%" has no handlers', p_queue_name
      using
        errcode = 'TG004',
        detail = 'Its tasks are for workers elsewhere, or for nobody.',
        hint = format(
          'Register functions: select teguh.register_handler(%L, task name, function);',
          p_queue_name
        );
  end if;
  return v_found;
end;
$$;

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
  'is given by schema and name, takes jsonb, or teguh.job and jsonb, and returns jsonb. What it '
  'writes commits together with that it is done: exactly once. An error in it fails the run, and '
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
  'does, with the options of both. Returns what became of them, an array in the order in which they were '
  'given; SQL null if that is not known within p_timeout seconds (null: however long it takes). '
  'Raises TG004 outside of a handler, TG005 for a bad name; the run fails with what the two raise.';

-- What the steps of a run have given, as teguh.job has it.
create or replace function teguh._past_steps(p_queue_name text, p_task_id uuid, p_run_id uuid)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select coalesce(
      jsonb_object_agg(
        s.checkpoint_name,
        case s.status when 'timed_out' then '[]' else jsonb_build_array(s.state) end
      ),
      '{}'
    )
    from teguh.get_task_checkpoint_states(p_queue_name, p_task_id, p_run_id) as s
  );
end;
$$;

-- Claim runs: of any name or, if so wanted, of those that there are handlers for.
create or replace function teguh._claim_jobs(
  p_queue_name text,
  p_handlers   jsonb,
  p_shift      teguh._shift
)
  returns teguh.job[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := case
    when p_shift.known_only
      then jsonb_build_object('task_names', array(select jsonb_object_keys(p_handlers)))
    else '{}'
  end;
begin
  if p_shift.known_only and p_handlers ? '*' then
    raise exception 'known_only does not go with a handler for *'
      using
        errcode = 'TG005',
        detail = 'That handler knows every name.',
        hint = 'Leave one of them out.';
  end if;

  return array(
    select (
      c.queue_name, c.task_id, c.run_id, c.task_name, c.params, c.headers, c.attempt, c.failures,
      c.wake_event, c.event_payload,
      case when c.checkpoints = '{}' then c.checkpoints
        else teguh._past_steps(c.queue_name, c.task_id, c.run_id)
      end
    )::teguh.job
    from teguh.claim_any(
      array[p_queue_name], p_shift.worker_id, p_shift.lease,
      least(p_shift.batch, p_shift.left_to_claim), v_options
    ) as c
  );
end;
$$;

-- Lock the task of a run that was claimed until the transaction ends, so that nobody takes it for
-- lost however long that is.  False if its time is over.
create or replace function teguh._grip_template(p_run_id uuid)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template := teguh._hold_template(p_run_id);
begin
  return coalesce(
    teguh._after(v_task.started_at, v_task.timeout_seconds) > teguh.current_time(), true
  );
end;
$$;

-- Begin a pass, unless the run was lost, cancelled, or has no handler and is handed back.
create or replace function teguh._begin_pass(
  p_job     teguh.job,
  p_handler text,
  p_delay   double precision
)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_held boolean;
begin
  execute teguh._call('grip', p_job.queue_name, 1) into v_held using p_job.run_id;
  if p_handler is null then
    perform teguh.release_run(p_job.queue_name, p_job.run_id, p_delay);
    return false;
  end if;
  return v_held;
exception
  when sqlstate 'AB001' or sqlstate 'AB002' or sqlstate 'TG002' or sqlstate 'TG004' then
    return false;
end;
$$;

-- Read an error: it is an order, or else fails the run, with a reason as other workers give it.
create or replace function teguh._read_error(
  p_sqlstate text,
  p_message  text,
  p_detail   text,
  p_hint     text,
  p_context  text
)
  returns jsonb
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_sqlstate = 'P0004' and p_message = 'an order for teguh.work()' then
    return p_detail;
  end if;

  return jsonb_build_object('do', 'fail', 'reason', jsonb_strip_nulls(jsonb_build_object(
    'name', p_sqlstate,
    'message', p_message,
    'detail', nullif(p_detail, ''),
    'hint', nullif(p_hint, ''),
    'traceback', left(p_context, 10000)
  )));
end;
$$;

-- Do with a locked run what a pass has come to.  Gives what its steps have given by then, null if
-- the run is not ours any more; it is not, either, if the handler or step itself has ended it.
create or replace function teguh._carry_out(
  p_job    teguh.job,
  p_order  jsonb,
  p_result jsonb,
  p_lease  double precision
)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_step  text := p_order ->> 'step';
  v_given jsonb := jsonb_build_array(p_result);
  v_waits boolean := false;
begin
  case p_order ->> 'do'
    when 'complete' then
      perform teguh.complete_run(p_job.queue_name, p_job.run_id, p_result);
      return null;
    when 'fail' then
      perform teguh.fail_run(p_job.queue_name, p_job.run_id, p_order -> 'reason');
      return null;
    when 'step' then
      perform teguh.set_task_checkpoint_state(
        p_job.queue_name, p_job.task_id, v_step, p_result, p_job.run_id
      );
    when 'sleep' then
      perform teguh.set_task_checkpoint_state(
        p_job.queue_name, p_job.task_id, v_step, p_order -> 'until', p_job.run_id
      );
      perform teguh.schedule_run(
        p_job.queue_name, p_job.run_id, (p_order ->> 'until')::timestamptz
      );
      return null;
    when 'await' then
      select a.should_suspend, case when a.timed_out then '[]' else jsonb_build_array(a.payload) end
      into v_waits, v_given
      from teguh.await_event(
        p_job.queue_name, p_job.task_id, p_job.run_id, v_step, p_order ->> 'event',
        (p_order ->> 'timeout')::double precision
      ) as a;
    when 'children' then
      perform teguh.spawn_children(
        p_job.queue_name, p_job.run_id, v_step, p_order -> 'tasks',
        (p_order -> 'options') - array['on_failure', 'cancel_rest']
      );
      select a.should_suspend, case when a.timed_out then '[]' else jsonb_build_array(a.payload) end
      into v_waits, v_given
      from teguh.await_children(
        p_job.queue_name, p_job.task_id, p_job.run_id, v_step, p_order ->> 'mode',
        (p_order ->> 'timeout')::double precision, (p_order -> 'options') - 'on_parent_end'
      ) as a;
  end case;

  if v_waits then
    return null;
  end if;
  perform teguh.extend_claim(p_job.queue_name, p_job.run_id, p_lease);
  return p_job.steps || jsonb_build_object(v_step, v_given);
exception
  when sqlstate 'AB001' or sqlstate 'AB002' or sqlstate 'TG004' then
    return null;
end;
$$;

-- Run a handler.  If it comes to its end, so does its run, in one piece; p_order is null then.
-- Otherwise what it has written is taken back, and p_order is what it has come to.
--
-- User code finds its own search_path here: every name is qualified.
create or replace procedure teguh._run_pass(
  p_job     teguh.job,
  p_handler text,
  inout p_order jsonb
)
  language plpgsql
as $$
declare
  v_result  pg_catalog.jsonb;
  v_state   pg_catalog.text;
  v_message pg_catalog.text;
  v_detail  pg_catalog.text;
  v_hint    pg_catalog.text;
  v_context pg_catalog.text;
begin
  perform pg_catalog.set_config('teguh.steps', '{}', true);
  execute pg_catalog.format('select %s($1)', p_handler) into v_result using p_job;
  set constraints all immediate;
  perform teguh._carry_out(p_job, '{"do": "complete"}', v_result, null);
  p_order := null;
exception
  when others or assert_failure then
    get stacked diagnostics
      v_state = returned_sqlstate,
      v_message = message_text,
      v_detail = pg_exception_detail,
      v_hint = pg_exception_hint,
      v_context = pg_exception_context;
    p_order := teguh._read_error(v_state, v_message, v_detail, v_hint, v_context);
end;
$$;

-- The statement that calls a step's function with its argument, $1, and the job, $2.
create or replace function teguh._step_call(p_order jsonb)
  returns text
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_function text := teguh._find_function(
    p_order ->> 'function', array['jsonb', 'teguh.job, jsonb']
  );
begin
  return format(
    case
      when to_regprocedure(v_function || '(teguh.job, jsonb)') is null then 'select %s($1)'
      else 'select %s($2, $1)'
    end,
    v_function
  );
end;
$$;

-- Carry out an order: run the step's function, or let the run wait.  Gives in p_job what is known
-- then, and whether the run is still held.  An error takes all of it back and fails the run.
create or replace procedure teguh._obey(
  inout p_job  teguh.job,
  inout p_held boolean,
  p_order      jsonb,
  p_lease      double precision
)
  language plpgsql
as $$
declare
  v_result  pg_catalog.jsonb;
  v_state   pg_catalog.text;
  v_message pg_catalog.text;
  v_detail  pg_catalog.text;
  v_hint    pg_catalog.text;
  v_context pg_catalog.text;
begin
  if pg_catalog.jsonb_exists(p_order, 'function') then
    execute teguh._step_call(p_order)
    into v_result
    using pg_catalog.jsonb_extract_path(p_order, 'argument'), p_job;
    set constraints all immediate;
  end if;
  p_job.steps := teguh._carry_out(p_job, p_order, v_result, p_lease);
  p_held := p_job.steps is not null;
exception
  when others or assert_failure then
    get stacked diagnostics
      v_state = returned_sqlstate,
      v_message = message_text,
      v_detail = pg_exception_detail,
      v_hint = pg_exception_hint,
      v_context = pg_exception_context;
    perform teguh._carry_out(
      p_job, teguh._read_error(v_state, v_message, v_detail, v_hint, v_context), null, null
    );
    p_held := false;
end;
$$;

-- Read the options of work().
create or replace function teguh._begin_shift(p_options jsonb)
  returns teguh._shift
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
  v_shift   teguh._shift;
begin
  perform teguh._check_keys('work options', v_options, array[
    'batch', 'claim_timeout', 'known_only', 'limit', 'max_seconds', 'poll_seconds',
    'unknown_delay', 'worker_id'
  ]);
  v_shift.worker_id := coalesce(
    teguh._name_option(v_options, 'worker_id'), format('work:%s', pg_backend_pid())
  );
  v_shift.batch := coalesce(teguh._integer_option(v_options, 'batch', 1), 1);
  v_shift.lease := coalesce(teguh._number_option(v_options, 'claim_timeout', 0.001, 1e9), 30);
  v_shift.known_only := teguh._flag_option(v_options, 'known_only');
  v_shift.unknown_delay := coalesce(
    teguh._number_option(v_options, 'unknown_delay', 0.01, 1e9), 10
  );
  v_shift.poll_seconds := coalesce(
    teguh._number_option(v_options, 'poll_seconds', 0.01, 3600), 1
  );
  v_shift.until := teguh._after(
    clock_timestamp(), teguh._number_option(v_options, 'max_seconds', 0, 1e9)
  );
  v_shift.left_to_claim := coalesce(
    teguh._integer_option(v_options, 'limit', 1), 2147483647
  );
  return v_shift;
end;
$$;

-- Tick, at most every ten seconds, before claiming.
create or replace function teguh._begin_round(p_queue_name text, p_shift teguh._shift)
  returns teguh._shift
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_shift teguh._shift := p_shift;
begin
  if v_shift.ticks_at > clock_timestamp() then
    return v_shift;
  end if;

  perform teguh.ticker(p_queue_name);
  v_shift.ticks_at := clock_timestamp() + interval '10 seconds';
  return v_shift;
end;
$$;

-- See how long to pause after so many runs: until the next one is due.
create or replace function teguh._end_round(
  p_queue_name text,
  p_shift      teguh._shift,
  p_claimed    integer
)
  returns teguh._shift
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now   timestamptz := clock_timestamp();
  v_shift teguh._shift := p_shift;
  v_next  double precision;
begin
  v_shift.left_to_claim := p_shift.left_to_claim - p_claimed;
  if v_shift.left_to_claim <= 0
    or v_shift.until <= v_now
    or (v_shift.until is null and p_claimed = 0)
  then
    v_shift.pause := null;
  elsif p_claimed > 0 then
    v_shift.pause := 0;
  else
    v_next := date_part('epoch', teguh.next_due(p_queue_name) - teguh.current_time());
    v_shift.pause := least(
      date_part('epoch', v_shift.until - v_now), v_shift.poll_seconds,
      case when v_next < 0.01 then 0.01 else v_next end
    );
  end if;
  return v_shift;
end;
$$;

-- The handler of a task; null if there is none.
create or replace function teguh._handler_of(p_handlers jsonb, p_task_name text)
  returns text
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(p_handlers ->> p_task_name, p_handlers ->> '*');
$$;

-- Take a run a step further, in a transaction of its own.
--
-- The task is locked from the beginning of the pass until what came of a step is committed.  To
-- wait it is let go of before: an event's row is locked before the task's.
create or replace procedure teguh._advance(
  inout p_job  teguh.job,
  inout p_held boolean,
  p_handler    text,
  p_lease      double precision
)
  language plpgsql
as $$
declare
  v_order pg_catalog.jsonb;
begin
  call teguh._run_pass(p_job, p_handler, v_order);
  if v_order is null then
    p_held := false;
    return;
  end if;

  if not pg_catalog.jsonb_exists(v_order, 'function') then
    rollback;
  end if;
  call teguh._obey(p_job, p_held, v_order, p_lease);
end;
$$;

-- Work as a worker.
--
-- A procedure that commits cannot pin its search_path: every name is qualified.
create or replace procedure teguh.work(p_queue_name text, p_options jsonb default '{}')
  language plpgsql
as $$
declare
  v_shift    teguh._shift := teguh._begin_shift(p_options);
  v_handlers pg_catalog.jsonb;
  v_handler  pg_catalog.text;
  v_jobs     teguh.job[];
  v_job      teguh.job;
  v_held     boolean;
begin
  loop
    v_handlers := teguh._handlers(p_queue_name);
    v_shift := teguh._begin_round(p_queue_name, v_shift);
    commit;
    v_jobs := teguh._claim_jobs(p_queue_name, v_handlers, v_shift);
    commit;

    foreach v_job in array v_jobs loop
      v_handler := teguh._handler_of(v_handlers, v_job.task_name);
      loop
        v_held := teguh._begin_pass(v_job, v_handler, v_shift.unknown_delay);
        if v_held then
          call teguh._advance(v_job, v_held, v_handler, v_shift.lease);
        end if;
        commit;
        exit when not v_held;
      end loop;
    end loop;

    v_shift := teguh._end_round(p_queue_name, v_shift, pg_catalog.cardinality(v_jobs));
    commit;
    exit when v_shift.pause is null;
    perform pg_catalog.pg_sleep(v_shift.pause);
  end loop;
end;
$$;

comment on procedure teguh.work(text, jsonb) is
  'Works as a worker of a queue: claims runs, runs their handlers (register_handler()) with the '
  'rights and the search_path of the caller, commits after each step, and returns when nothing is '
  'due. Options: max_seconds (go on for so long, waiting for what becomes due), poll_seconds (the '
  'longest wait between two looks, default 1), limit (of runs), batch (how many to claim at a '
  'time, default 1), claim_timeout (seconds after which the run of a session that died is taken '
  'from it, default 30; a step may take longer), known_only (claim only tasks that there are '
  'handlers for: see claim_any()), unknown_delay (seconds for which others are handed back, '
  'default 10), worker_id. Not for a transaction block. Raises TG001 for an unknown queue, TG004 '
  'if it has no handlers, TG005 for a bad option, 42883 if a handler''s function is gone, 42501 if '
  'its owner is no member of the caller''s role, 25001 unless transactions are READ COMMITTED.';
