-- The worker that runs handlers which are SQL functions: the database itself.
--
-- work() catches the order that a pass has come to, carries it out, commits, and begins another
-- pass.  So every step is a transaction of its own, though a function cannot commit.  The pass that
-- comes to the handler's end commits together with the completion.

-- The handlers of a queue by task name, for whoever is about to run them.
--
-- Refuses one whose owner could not act as the caller anyway: who may register handlers, or
-- replace the function, must not gain the rights of whoever calls work(), which by pg_cron is
-- teguh's owner.
create or replace function teguh._crew(p_queue_name text)
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
    select h.task_name, h.function_name
    from teguh.list_handlers(p_queue_name) as h
  loop
    v_found := v_found || jsonb_build_object(
      v_handler.task_name, teguh._resolve_function(v_handler.function_name, array['teguh.job'])
    );
    select p.proowner into v_owner
    from pg_proc as p
    where p.oid = (v_handler.function_name || '(teguh.job)')::regprocedure;
    if not pg_has_role(v_owner, current_user, 'member') then
      raise exception 'function % is not for role "%" to run', v_handler.function_name, current_user
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

-- What the steps of a run have given, as teguh.job has it; null if a jsonb cannot hold it: then the
-- run has failed.
create or replace function teguh._steps_given(p_queue_name text, p_task_id uuid, p_run_id uuid)
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
exception
  when program_limit_exceeded then
    perform teguh.fail_run(p_queue_name, p_run_id, jsonb_build_object(
      'name', '$Checkpoints', 'message', 'the checkpoints are together larger than a jsonb can be'
    ));
    return null;
end;
$$;

-- Claim runs: of any name or, if so wanted, of those that there are handlers for.
create or replace function teguh._claim_batch(
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
        else teguh._steps_given(c.queue_name, c.task_id, c.run_id)
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
    return p_detail::jsonb;
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
      v_given := jsonb_build_array(p_order -> 'until');
      v_waits := (p_order ->> 'until')::timestamptz > teguh.current_time();
      if v_waits then
        perform teguh.schedule_run(
          p_job.queue_name, p_job.run_id, (p_order ->> 'until')::timestamptz
        );
      end if;
    when 'await' then
      select a.should_suspend, case when a.timed_out then '[]' else jsonb_build_array(a.payload) end
      into v_waits, v_given
      from teguh.await_event(
        p_job.queue_name, p_job.task_id, p_job.run_id, v_step, p_order ->> 'event',
        (p_order ->> 'timeout')::double precision
      ) as a;
    when 'receive' then
      select a.should_suspend, case when a.timed_out then '[]' else jsonb_build_array(a.payload) end
      into v_waits, v_given
      from teguh.receive_message(
        p_job.queue_name, p_job.task_id, p_job.run_id, v_step, p_order ->> 'topic',
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

-- Run a handler.  If it comes to its end, so does its run, in one piece, and p_order is null.
-- Otherwise what it has written is taken back, and p_order is what it has come to.
--
-- User code finds its own search_path here: every name is qualified.
create or replace procedure teguh._run_pass(p_job teguh.job, p_handler text, out p_order jsonb)
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
  -- in one query with what is not for parallel workers, so that the handler is not, either
  execute pg_catalog.format(
    'select %s($1) where pg_catalog.set_config($2, $3, true) is not null', p_handler
  ) into v_result using p_job, 'teguh.steps', '{}';
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
  v_function text := teguh._resolve_function(
    p_order ->> 'function', array['jsonb', 'teguh.job, jsonb']
  );
begin
  if to_regprocedure(v_function || '(teguh.job, jsonb)') is null then
    return format('select %s($1)', v_function);
  elsif to_regprocedure(v_function || '(jsonb)') is not null then
    raise exception 'there are two functions %', v_function
      using
        errcode = 'TG005',
        detail = 'One takes jsonb, the other teguh.job and jsonb.',
        hint = 'Give them different names: whoever adds one must not take the place of the other.';
  end if;

  return format('select %s($2, $1)', v_function);
end;
$$;

-- Carry out an order: run the step's function, or let the run wait.  Gives what its steps have
-- given by then, null if the run is not ours any more.  An error takes all of it back and fails the
-- run.
create or replace procedure teguh._obey(
  p_job       teguh.job,
  p_order     jsonb,
  p_lease     double precision,
  out p_steps jsonb
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
  p_steps := teguh._carry_out(p_job, p_order, v_result, p_lease);
exception
  when others or assert_failure then
    get stacked diagnostics
      v_state = returned_sqlstate,
      v_message = message_text,
      v_detail = pg_exception_detail,
      v_hint = pg_exception_hint,
      v_context = pg_exception_context;
    p_steps := teguh._carry_out(
      p_job, teguh._read_error(v_state, v_message, v_detail, v_hint, v_context), null, null
    );
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
create or replace function teguh._leave_round(
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

-- Take a run a step further, in a transaction of its own.  Gives what its steps have given by then,
-- null if the run is not ours any more.
--
-- The task is locked from the beginning of the pass until what came of a step is committed.  To
-- wait it is let go of before: an event's row is locked before the task's.
create or replace procedure teguh._advance(
  p_job       teguh.job,
  p_handler   text,
  p_lease     double precision,
  out p_steps jsonb
)
  language plpgsql
as $$
declare
  v_order pg_catalog.jsonb;
begin
  call teguh._run_pass(p_job, p_handler, v_order);
  if v_order is not null then
    if not pg_catalog.jsonb_exists(v_order, 'function') then
      rollback;
    end if;
    call teguh._obey(p_job, v_order, p_lease, p_steps);
  end if;
  commit;
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
begin
  loop
    v_handlers := teguh._crew(p_queue_name);
    v_shift := teguh._begin_round(p_queue_name, v_shift);
    commit;
    v_jobs := teguh._claim_batch(p_queue_name, v_handlers, v_shift);
    commit;

    foreach v_job in array v_jobs loop
      v_handler := teguh._handler_of(v_handlers, v_job.task_name);
      if v_handler is null then  -- unless it was registered meanwhile
        v_handlers := teguh._crew(p_queue_name);
        v_handler := teguh._handler_of(v_handlers, v_job.task_name);
      end if;
      while v_job.steps is not null
        and teguh._begin_pass(v_job, v_handler, v_shift.unknown_delay)
      loop
        call teguh._advance(v_job, v_handler, v_shift.lease, v_job.steps);
      end loop;
      commit;
    end loop;

    v_shift := teguh._leave_round(p_queue_name, v_shift, pg_catalog.cardinality(v_jobs));
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
