-- What follows when a task is over: the next of a sequence, compensation, a report to the parent.
-- All of it happens in the transaction that ends the task.

-- Read what is to follow a task from its options.
create or replace function teguh._links_option(p_queue_name text, p_options jsonb)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_sequence jsonb := nullif(p_options -> 'sequence', 'null');
  v_one      jsonb;
  v_tasks    jsonb := '[]'::jsonb;
begin
  if v_sequence is not null and jsonb_typeof(v_sequence) <> 'array' then
    raise exception '"sequence" must be an array of tasks'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_sequence::text, 200)),
        hint = 'For instance [{"task_name": "pack"}, {"task_name": "ship"}].';
  end if;

  for v_one in
    select s.task
    from jsonb_array_elements(coalesce(v_sequence, '[]')) as s(task)
  loop
    perform teguh._check_keys('task of the sequence', v_one, array[
      'queue_name', 'task_name', 'params', 'options', 'compensate'
    ]);
    v_tasks := v_tasks || (
      teguh._read_link(p_queue_name, v_one - 'compensate')
      || coalesce(teguh._present(jsonb_build_object(
        'compensate', teguh._read_link(p_queue_name, v_one -> 'compensate')
      )), '{}')
    );
  end loop;

  return teguh._present(jsonb_build_object(
    'sequence', nullif(v_tasks, '[]'),
    'on_failure', teguh._read_link(p_queue_name, p_options -> 'on_failure'),
    'compensate', teguh._read_link(p_queue_name, p_options -> 'compensate')
  ));
end;
$$;

-- Read a task that is to be spawned later, in this queue unless it names another; null is none.
create or replace function teguh._read_link(p_queue_name text, p_task jsonb)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text;
begin
  if nullif(p_task, 'null') is null then
    return null;
  end if;

  perform teguh._check_keys(
    'task that follows', p_task, array['queue_name', 'task_name', 'params', 'options']
  );
  v_queue_name := coalesce(teguh._text_option(p_task, 'queue_name'), p_queue_name);
  perform teguh._read_task(v_queue_name, p_task - 'queue_name', teguh._policy(v_queue_name));
  perform teguh._check_spawner(p_queue_name, v_queue_name);
  if p_task -> 'options'
    ?| '{sequence,on_failure,compensate,unique,idempotency_key,parent_run_id}'
  then
    raise exception 'a task that follows cannot have such options'
      using
        errcode = 'TG005',
        detail = 'sequence, on_failure, compensate, unique, idempotency_key and parent_run_id '
          'are for what is spawned by hand.',
        hint = 'Name the tasks one after another in one sequence.';
  elsif jsonb_typeof(coalesce(p_task -> 'params', 'null')) not in ('null', 'object') then
    raise exception 'params of a task that follows must be an object'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left((p_task -> 'params')::text, 200)),
        hint = 'It gets more params from the task before it.';
  end if;

  return teguh._present(p_task || jsonb_build_object('queue_name', v_queue_name));
end;
$$;

-- Spawn a task that follows a locked one, in a full queue, too.  If that cannot be, the locked
-- one says why.
create or replace function teguh._trail_template(
  p_task   teguh.t_template,
  p_what   text,
  p_next   jsonb,
  p_params jsonb,
  p_links  jsonb
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text := coalesce(p_next ->> 'queue_name', substr('_template', 2));
  v_policy     jsonb;
  v_spawn      teguh._spawn;
  v_detail     text;
begin
  perform teguh._reach_queue(v_queue_name);
  v_policy := teguh._policy(v_queue_name);
  v_spawn := teguh._read_task(
    v_queue_name,
    jsonb_build_object(
      'task_name', p_next -> 'task_name', 'params', p_params, 'options', p_next -> 'options'
    ),
    v_policy
  );
  v_spawn.parent_task_id := coalesce(v_spawn.parent_task_id, p_task.task_id);
  v_spawn.workflow_run_id := coalesce(v_spawn.workflow_run_id, p_task.workflow_run_id);
  v_spawn.correlation_id := coalesce(v_spawn.correlation_id, p_task.correlation_id);
  if not coalesce(p_next -> 'options' ? 'tags', false) then
    v_spawn.tags := p_task.tags;
  end if;
  v_spawn.links := teguh._present(p_links);
  perform teguh._revouch(v_spawn);
  execute format('select count(*) from teguh._put_%s($1)', v_queue_name) using array[v_spawn];
  perform teguh._abide(v_queue_name, v_policy, v_spawn.priority is not null, false);
exception
  when sqlstate 'TG001' or sqlstate 'TG005' then
    get stacked diagnostics v_detail = message_text;
    update teguh.t_template as t
    set failure_reason = jsonb_build_object('name', p_what, 'message', v_detail)
    where t.task_id = p_task.task_id;
end;
$$;

-- Do what is to follow a locked task, now that it is over.
create or replace function teguh._linked_template(p_task_id uuid, p_state text)
  returns void
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

  if p_state <> 'completed' then
    perform teguh._undo_template(v_task);
    if v_task.links ? 'children' then
      perform teguh._orphan_template(p_task_id);
    end if;
  elsif v_task.links ? 'sequence' then
    perform teguh._ensue_template(v_task);
  end if;

  if v_task.links ? 'join' then
    perform teguh._answer(v_task.links -> 'join', p_state);
  end if;
end;
$$;

-- Spawn the next task of the sequence that a completed one is in.
--
-- Its params are the data gathered so far, with its own on top.  A result that is no object is
-- filed under the name of its task.
create or replace function teguh._ensue_template(p_task teguh.t_template)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_links  jsonb := p_task.links;
  v_next   jsonb := v_links -> 'sequence' -> 0;
  v_result jsonb := coalesce(p_task.result, 'null');
  v_data   jsonb := coalesce(v_links -> 'data', '{}');
begin
  if not v_links ? 'backwards' then
    v_data := v_data
              || case when jsonb_typeof(p_task.params) = 'object' then p_task.params else '{}' end
              || case
                when jsonb_typeof(v_result) = 'object' then v_result
                when v_result = 'null' then '{}'
                else jsonb_build_object(p_task.task_name, v_result)
              end;
  end if;

  perform teguh._trail_template(
    p_task, '$Sequence', v_next,
    case
      when v_links ? 'backwards' then coalesce(v_next -> 'params', '{}')
      else v_data || coalesce(v_next -> 'params', '{}')
    end,
    jsonb_build_object(
      'sequence', nullif((v_links -> 'sequence') - 0, '[]'),
      'data', case when not v_links ? 'backwards' then v_data end,
      'backwards', v_links -> 'backwards',
      'on_failure', v_links -> 'on_failure',
      'compensate', v_next -> 'compensate',
      'undo', nullif(
        teguh._undoings(p_task.task_id, p_task.task_name, p_task.params, v_result, v_links), '[]'
      )
    )
  );
end;
$$;

-- What undoes a task that is done and those before it, the last first.
create or replace function teguh._undoings(
  p_task_id   uuid,
  p_task_name text,
  p_params    jsonb,
  p_result    jsonb,
  p_links     jsonb
)
  returns jsonb
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_links ? 'compensate' then jsonb_build_array(
      p_links -> 'compensate' || jsonb_build_object(
        'params',
        coalesce(p_links -> 'compensate' -> 'params', '{}') || jsonb_build_object(
          '$task_id', p_task_id, '$task_name', p_task_name, '$params', p_params,
          '$result', p_result
        )
      )
    )
    else '[]'
  end || coalesce(p_links -> 'undo', '[]');
$$;

-- Spawn what undoes the steps that are done, one after another, and what is to follow a failure.
-- If that is larger than a jsonb can be, the task says so: whoever ends it must be able to.
create or replace function teguh._undo_template(p_task teguh.t_template)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_undo   jsonb := p_task.links -> 'undo';
  v_follow jsonb := p_task.links -> 'on_failure';
begin
  if v_undo is not null then
    perform teguh._trail_template(
      p_task, '$Compensation', v_undo -> 0, coalesce(v_undo -> 0 -> 'params', '{}'),
      jsonb_build_object('sequence', nullif(v_undo - 0, '[]'), 'backwards', true)
    );
    update teguh.t_template as t
    set links = t.links - 'undo'
    where t.task_id = p_task.task_id;
  end if;

  if v_follow is not null then
    perform teguh._trail_template(
      p_task, '$OnFailure', v_follow,
      coalesce(v_follow -> 'params', '{}') || jsonb_build_object(
        '$error', p_task.failure_reason, '$state', p_task.state, '$params', p_task.params,
        '$task_id', p_task.task_id, '$task_name', p_task.task_name
      ),
      null
    );
  end if;
exception
  when program_limit_exceeded then
    update teguh.t_template as t
    set failure_reason = jsonb_build_object(
      'name', '$OnFailure', 'message', 'what is to follow is larger than a jsonb can be'
    )
    where t.task_id = p_task.task_id;
end;
$$;

-- Have a task spawned for a step, should the run's task end without success.
create or replace function teguh._repent_template(
  p_task_id   uuid,
  p_run_id    uuid,
  p_step_name text,
  p_task      jsonb
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template := teguh._own_template(p_task_id, p_run_id);
  v_undo jsonb := coalesce(v_task.links -> 'undo', '[]');
begin
  perform teguh._check_named(substr('_template', 2), array(
    select n.name
    from teguh._queues_named(jsonb_build_object('compensate', p_task)) as n(name)
  ));
  if v_undo @> jsonb_build_array(jsonb_build_object(
    'step', p_step_name, 'params', jsonb_build_object('$task_id', p_task_id)
  )) then
    return;
  end if;

  update teguh.t_template as t
  set links = coalesce(t.links, '{}') || jsonb_build_object(
    'undo',
    jsonb_build_array(p_task || jsonb_build_object(
      'step', p_step_name,
      'params', coalesce(p_task -> 'params', '{}') || jsonb_build_object(
        '$task_id', p_task_id, '$task_name', v_task.task_name, '$step', p_step_name
      )
    )) || v_undo
  )
  where t.task_id = p_task_id;
end;
$$;

-- Register the compensation of a step.
create or replace function teguh.add_compensation(
  p_queue_name text,
  p_task_id    uuid,
  p_run_id     uuid,
  p_step_name  text,
  p_task       jsonb
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_name('step name', p_step_name);
  if nullif(p_task, 'null') is null then
    raise exception 'the compensation must not be null'
      using
        errcode = '22004',
        detail = 'There is no task to spawn.',
        hint = 'For instance {"task_name": "refund", "params": {"amount": 10}}.';
  end if;

  execute teguh._call('repent', p_queue_name, 4)
  using p_task_id, p_run_id, p_step_name, teguh._read_link(p_queue_name, p_task);
end;
$$;

comment on function teguh.add_compensation(text, uuid, uuid, text, jsonb) is
  'Registers a task ({"task_name", "params", "options", "queue_name"}) that is spawned if the '
  'run''s task, or a later one of its sequence, fails, expires or is cancelled: the compensations '
  'of all steps run one after another, that of the last step first, each when the one before is '
  'completed. In the caller''s transaction, so that it stands or falls with what it is to undo. '
  'Its params also have $task_id, $task_name and $step. A second time for the same step changes '
  'nothing. Raises TG001 for an unknown queue, TG002 for an unknown run or one of another task, '
  'TG004 if nobody holds the run, TG005 for a bad task, 22004 for none, 42501 if the caller may '
  'not spawn it, AB001 if the task is cancelled, AB002 if the run has ended.';

-- End a run with success, and begin the task anew after some time, with no checkpoints, no
-- children, and nothing to undo of its own.  Messages that it has not received stay.
-- max_duration begins anew, too; when it expires does not change.
create or replace function teguh._repeat_template(p_run_id uuid, p_after double precision)
  returns uuid
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task   teguh.t_template := teguh._hold_template(p_run_id);
  v_now    timestamptz := teguh.current_time();
  v_number integer := teguh._run_number(v_task.run_id) + 1;
  v_at     timestamptz := teguh._after(v_now, p_after);
begin
  if v_number > 1048575 then
    raise exception 'task "%" has no run left', v_task.task_id
      using
        errcode = 'TG004',
        detail = 'A task has at most 1048575 runs.',
        hint = 'Spawn another like it, and complete this one.';
  end if;

  perform teguh._file_template(v_task, 'completed', null, v_now);
  perform teguh._moved_template(v_task, 'c', v_now);
  perform teguh._blank_template(v_task, v_at);
  v_task.state := 'completed';
  perform teguh._again_template(v_task, v_number, 0, null, v_at, v_now);
  return teguh._run_id(v_task.task_id, v_number);
end;
$$;

-- Take from a locked task what belongs to the repetition that is over.
create or replace function teguh._blank_template(p_task teguh.t_template, p_at timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_limit timestamptz := least(
    p_task.expires_at,
    teguh._after(p_at, (p_task.cancellation ->> 'max_duration')::double precision)
  );
begin
  delete from teguh.c_template as c
  where c.task_id = p_task.task_id;
  delete from teguh.w_template as w
  where w.task_id = p_task.task_id;
  delete from teguh.j_template as j
  where j.task_id = p_task.task_id;
  delete from teguh.f_template as f
  where f.task_id = p_task.task_id;
  perform teguh._tidy_template(p_task.task_id);

  update teguh.t_template as t
  set
    deadline_at = v_limit,
    links = teguh._present(p_task.links - 'children' || jsonb_build_object('undo', (
      select jsonb_agg(u.one order by u.place)
      from jsonb_array_elements(p_task.links -> 'undo') with ordinality as u(one, place)
      where u.one -> 'params' ->> '$task_id' <> p_task.task_id::text
    )))
  where t.task_id = p_task.task_id;
  if v_limit is not null then
    perform teguh._push_template('l', array[p_task.task_id], array[0], array[v_limit]);
  end if;
end;
$$;

-- Repeat a run.
create or replace function teguh.repeat_run(
  p_queue_name    text,
  p_run_id        uuid,
  p_after_seconds double precision default 0
)
  returns uuid
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run_id uuid;
begin
  perform teguh._check_seconds('period', p_after_seconds, true);
  execute teguh._call('repeat', p_queue_name, 2) into v_run_id using p_run_id, p_after_seconds;
  return v_run_id;
end;
$$;

comment on function teguh.repeat_run(text, uuid, double precision) is
  'Ends a run with success, and begins the same task anew in p_after_seconds: another run, without '
  'the checkpoints and children of this one, with all its attempts, and with the messages that it '
  'has not received. Returns its id. A ttl goes on, max_duration begins anew. Raises TG001 for an '
  'unknown queue, TG002 for an unknown run, TG004 if nobody holds the run or after 1048575 runs, '
  'TG005 for a bad period, AB001 if the task is cancelled, AB002 if the run has ended.';
