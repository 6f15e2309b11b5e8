-- Schedules: rows that a tick or a claim of their queue looks at when they are due.
--
-- A schedule fires in one transaction, under the lock of its row: what is due is spawned and
-- planned_at moves on.  So each planned time fires once, whoever and however many look.
--
-- The register agenda_<queue> tells from when on there is something to look at: no schedule that
-- is committed, or may yet be, has a next_at before.  To fire only moves next_at on, so that needs
-- no care.  Whoever brings a next_at forward sets the register to 0 and shares a lock until the
-- end of the transaction; it is only raised, by a tick, when nobody does, to what is committed.
-- So a look costs one probe of the index, whatever dead rows an old snapshot has it keep.

-- Number of the advisory lock that those share who bring a schedule of the queue forward.
create or replace function teguh._planning_number(p_queue_name text)
  returns bigint
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select hashtextextended('teguh.agenda_' || p_queue_name, 0);
$$;

-- Have the queue's schedules looked at anew, also by workers that wait.
create or replace function teguh._replan_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_xact_lock_shared(teguh._planning_number(substr('_template', 2)));
  perform setval('teguh.agenda_template'::regclass, 0);
  perform pg_notify('teguh_template', '');
end;
$$;

-- The first moment at which a schedule of the queue may be due.
create or replace function teguh._agenda_template()
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_micros bigint := coalesce(pg_sequence_last_value('teguh.agenda_template'::regclass), 0);
begin
  return case
    when v_micros < teguh._beyond() then timestamptz 'epoch' + v_micros * interval '1 microsecond'
    else 'infinity'
  end;
end;
$$;

-- When the next schedule of the queue is due; 10 ms from now if one is that nobody has fired.
create or replace function teguh._future_template(p_now timestamptz)
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_from timestamptz := teguh._agenda_template();
  v_next timestamptz;
begin
  if v_from < 'infinity' then
    select s.next_at into v_next
    from teguh.schedules as s
    where s.queue_name = substr('_template', 2)
      and s.next_at >= v_from
    order by s.next_at
    limit 1;
  end if;
  return case
    when v_next <= p_now then p_now + interval '10 milliseconds'
    else v_next
  end;
end;
$$;

-- Fire the schedules of the queue that are due, up to p_limit; those that somebody else has
-- locked are being fired.  Returns how many tasks were spawned.  p_fresh: the transaction has
-- written nothing before, so when nothing is due the register may be raised.
create or replace function teguh._strike_template(
  p_now   timestamptz,
  p_fresh boolean,
  p_limit integer
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_from  timestamptz := teguh._agenda_template();
  v_plan  teguh.schedules;
  v_found boolean := false;
  v_count integer := 0;
begin
  if v_from > p_now then
    return 0;
  end if;

  for v_plan in
    select s.*
    from teguh.schedules as s
    where s.queue_name = substr('_template', 2)
      and s.next_at >= v_from
      and s.next_at <= p_now
    order by s.next_at
    limit p_limit
    for no key update skip locked
  loop
    v_found := true;
    v_count := v_count + teguh._chime_template(v_plan, p_now);
  end loop;

  if p_fresh
    and not v_found
    and pg_try_advisory_xact_lock(teguh._planning_number(substr('_template', 2)))
  then
    perform setval('teguh.agenda_template'::regclass, coalesce(
      (
        select greatest(teguh._micros(s.next_at) - 1, 0)
        from teguh.schedules as s
        where s.queue_name = substr('_template', 2)
          and s.next_at >= v_from
        order by s.next_at
        limit 1
      ),
      teguh._beyond()
    ));
  end if;
  return v_count;
end;
$$;

-- Fire a locked schedule that is due.  Returns how many tasks it spawned.  If that cannot be, say
-- why, and have it looked at again in 10 seconds.
create or replace function teguh._chime_template(p_plan teguh.schedules, p_now timestamptz)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_due    record := teguh._due_times(p_plan, p_now);
  v_at     timestamptz;
  v_open   uuid[] := p_plan.open_task_ids || p_plan.last_task_id;
  v_task   uuid;
  v_fired  timestamptz;
  v_missed timestamptz := v_due.missed_at;
  v_count  integer := 0;
  v_error  text;
begin
  foreach v_at in array v_due.planned loop
    if p_plan.overlap = 'skip' then
      v_open := teguh._undone_template(v_open || v_task);
      if v_open <> '{}' then
        v_missed := v_at;
        continue;
      end if;
    end if;

    select s.task_id into v_task
    from teguh._spawn_scheduled(p_plan, v_at, false, p_now) as s;
    v_fired := v_at;
    v_count := v_count + 1;
  end loop;

  update teguh.schedules as s
  set
    planned_at = v_due.next_at,
    next_at = v_due.next_at,
    last_planned_at = coalesce(v_fired, s.last_planned_at),
    last_fired_at = case when v_fired is null then s.last_fired_at else p_now end,
    last_skipped_at = coalesce(v_missed, s.last_skipped_at),
    last_task_id = coalesce(v_task, s.last_task_id),
    last_error = null,
    open_task_ids = case s.overlap when 'skip' then v_open else '{}' end
  where s.schedule_name = p_plan.schedule_name;
  return v_count;
exception
  when data_exception or sqlstate 'TG005' or sqlstate 'TG006' or sqlstate 'TG007' then
    get stacked diagnostics v_error = message_text;
    update teguh.schedules as s
    set
      next_at = p_now + interval '10 seconds',
      last_error = v_error
    where s.schedule_name = p_plan.schedule_name;
    return 0;
end;
$$;

-- Those of some tasks that are not over.
create or replace function teguh._undone_template(p_task_ids uuid[])
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select distinct u.task_id
    from unnest(p_task_ids) as u(task_id)
    cross join lateral (
      select t.state from teguh.t_template as t where t.task_id = u.task_id offset 0
    ) as t
    where t.state in ('pending', 'running', 'sleeping')
  );
end;
$$;

-- When a schedule fires next after a moment, within the time it is for; null if not any more.
create or replace function teguh._planned_after(p_plan teguh.schedules, p_after timestamptz)
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_next timestamptz := teguh._cron_next(
    teguh._read_schedule(p_plan.schedule),
    greatest(p_after, p_plan.starts_at - interval '1 microsecond'),
    p_plan.timezone
  );
begin
  return case when v_next < coalesce(p_plan.ends_at, 'infinity') then v_next end;
end;
$$;

-- What a schedule that is due has to fire, and when it fires next.  All that was missed, up to
-- 100 at a time; or the last, unless what is more than a minute late is not made up for.
create or replace function teguh._due_times(
  p_plan        teguh.schedules,
  p_now         timestamptz,
  out planned   timestamptz[],
  out next_at   timestamptz,
  out missed_at timestamptz
)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_last timestamptz := p_plan.planned_at;
  v_upto timestamptz := p_now;
  v_half timestamptz;
begin
  planned := array[v_last];
  next_at := teguh._planned_after(p_plan, v_last);
  if p_plan.catch_up = 'all' then
    while next_at <= p_now and cardinality(planned) < 100 loop
      planned := planned || next_at;
      next_at := teguh._planned_after(p_plan, next_at);
    end loop;
    return;
  end if;

  if next_at <= p_now then
    -- the last one that is due lies between these two
    v_last := next_at;
    while v_upto - v_last >= interval '1 second' loop
      v_half := v_last + (v_upto - v_last) / 2;
      next_at := teguh._planned_after(p_plan, v_half);
      if next_at <= p_now then
        v_last := next_at;
      else
        v_upto := v_half;
      end if;
    end loop;
    next_at := teguh._planned_after(p_plan, v_last);
    planned := array[v_last];
  end if;
  if p_plan.catch_up = 'skip' and v_last < p_now - interval '60 seconds' then
    missed_at := v_last;
    planned := '{}';
  end if;
end;
$$;

-- Spawn the task of a schedule for a planned time, or for the moment at which it is triggered.
-- The jitter of a planned time is always the same.
create or replace function teguh._spawn_scheduled(
  p_plan      teguh.schedules,
  p_at        timestamptz,
  p_triggered boolean,
  p_now       timestamptz
)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_start timestamptz := teguh._after(
    p_at, (p_plan.task_options ->> 'delay_seconds')::double precision
  );
begin
  v_start := coalesce(v_start, p_at);
  if not p_triggered and p_plan.jitter_seconds > 0 then
    v_start := teguh._after(v_start, p_plan.jitter_seconds * (
      hashtextextended(p_plan.schedule_name || extract(epoch from p_at), 0) & 1048575
    ) / 1048576);
  end if;

  return query
  select s.*
  from teguh.spawn_task(
    p_plan.queue_name,
    p_plan.task_name,
    p_plan.params,
    p_plan.task_options - 'delay_seconds'
    || jsonb_build_object(
      'headers',
      coalesce(nullif(p_plan.task_options -> 'headers', 'null'), '{}')
      || jsonb_build_object(
        'schedule_name', p_plan.schedule_name,
        'planned_at', to_char(timezone('UTC', p_at), 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
        'triggered', p_triggered
      )
    )
    || case when v_start > p_now then jsonb_build_object('available_at', v_start) else '{}' end
  ) as s;
end;
$$;

-- Refuse options of a spawn that cannot be the same each time a schedule fires.
create or replace function teguh._check_task_options(p_plan teguh.schedules)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_key text;
begin
  perform teguh._check_spawn(
    p_plan.queue_name, p_plan.task_name, p_plan.params, p_plan.task_options, '{}'
  );
  select u.key into v_key
  from unnest(array[
    'idempotency_key', 'idempotency_mismatch', 'available_at', 'deadline_at', 'parent_run_id',
    'parent_queue_name'
  ]) as u(key)
  where p_plan.task_options ? u.key
  limit 1;
  if found then
    raise exception '"%" is no option for the tasks of a schedule', v_key
      using
        errcode = 'TG005',
        detail = 'It means one task or one moment, and a schedule spawns many.',
        hint = 'Options in seconds, such as "ttl_seconds", count from each firing.';
  end if;
end;
$$;

-- Read an option that must be one of some words; its default when absent or null.
create or replace function teguh._word_option(p_options jsonb, p_key text, p_words text[])
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_word text := coalesce(teguh._text_option(p_options, p_key), p_words[1]);
begin
  if v_word <> all (p_words) then
    raise exception 'unknown % "%"', p_key, left(v_word, 200)
      using
        errcode = 'TG005',
        detail = format('Known values: %s.', array_to_string(p_words, ', ')),
        hint = 'Check the spelling.';
  end if;

  return v_word;
end;
$$;

-- Set those parts of a schedule that are among the options, and check the whole, or raise TG005.
create or replace function teguh._draw_schedule(p_plan teguh.schedules, p_options jsonb)
  returns teguh.schedules
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_plan teguh.schedules := p_plan;
begin
  v_plan.timezone := coalesce(teguh._text_option(p_options, 'timezone'), 'UTC');
  v_plan.params := coalesce(p_options -> 'params', 'null');
  v_plan.task_options := coalesce(nullif(p_options -> 'task_options', 'null'), '{}');
  v_plan.catch_up := teguh._word_option(p_options, 'catch_up', '{one,skip,all}');
  v_plan.overlap := teguh._word_option(p_options, 'overlap', '{allow,skip}');
  v_plan.jitter_seconds := coalesce(
    teguh._number_option(p_options, 'jitter_seconds', 0, 1e9), 0
  );
  v_plan.starts_at := teguh._time_option(p_options, 'starts_at');
  v_plan.ends_at := teguh._time_option(p_options, 'ends_at');

  perform teguh._check_name('schedule name', v_plan.schedule_name);
  perform teguh._check_timezone(v_plan.timezone);
  perform teguh._check_task_options(v_plan);
  if v_plan.ends_at <= v_plan.starts_at then
    raise exception 'the schedule ends before it starts'
      using
        errcode = 'TG005',
        detail = format('It starts at %s and ends at %s.', v_plan.starts_at, v_plan.ends_at),
        hint = 'The end itself does not belong to it.';
  elsif teguh._cron_next(
    teguh._read_schedule(v_plan.schedule), teguh.current_time(), v_plan.timezone
  ) is null then
    perform teguh._refuse_schedule(v_plan.schedule, 'The time that it describes never comes.');
  end if;
  return v_plan;
end;
$$;

-- A schedule's options, as create_schedule() takes them.
create or replace function teguh._schedule_options(p_plan teguh.schedules)
  returns jsonb
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'timezone', p_plan.timezone, 'params', p_plan.params, 'task_options', p_plan.task_options,
    'catch_up', p_plan.catch_up, 'overlap', p_plan.overlap,
    'jitter_seconds', p_plan.jitter_seconds, 'starts_at', p_plan.starts_at,
    'ends_at', p_plan.ends_at
  );
$$;

-- Raise TG008.
create or replace function teguh._miss_schedule(p_schedule_name text)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'schedule "%" does not exist', left(coalesce(p_schedule_name, 'null'), 200)
    using
      errcode = 'TG008',
      detail = 'No schedule of that name was created in this database, or it was dropped.',
      hint = 'See teguh.list_schedules().';
end;
$$;

-- The queue of a schedule, or TG008.
create or replace function teguh._scheduled_in(p_schedule_name text)
  returns text
  language plpgsql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text;
begin
  select s.queue_name into v_queue_name
  from teguh.schedules as s
  where s.schedule_name = p_schedule_name;
  if not found then
    perform teguh._miss_schedule(p_schedule_name);
  end if;
  return v_queue_name;
end;
$$;

-- Lock a schedule of the queue and read it, or raise TG008.
create or replace function teguh._grasp_template(p_schedule_name text)
  returns teguh.schedules
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_plan teguh.schedules;
begin
  select s.* into v_plan
  from teguh.schedules as s
  where s.schedule_name = p_schedule_name
  for no key update;
  if not found then
    perform teguh._miss_schedule(p_schedule_name);
  elsif v_plan.queue_name <> substr('_template', 2) then
    raise exception 'schedule "%" belongs to another queue', p_schedule_name
      using
        errcode = 'TG004',
        detail = format('It spawns tasks of queue "%s".', v_plan.queue_name),
        hint = 'Take another name, or drop it first.';
  end if;
  return v_plan;
end;
$$;

-- Write a schedule down, or change the one that has its name.
create or replace function teguh._enroll_template(p_plan teguh.schedules)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_plan teguh.schedules := p_plan;
begin
  perform teguh._check_named(
    substr('_template', 2),
    array(select n.name from teguh._queues_named(p_plan.task_options) as n(name))
  );
  v_plan.queue_name := substr('_template', 2);
  v_plan.created_at := teguh.current_time();
  v_plan.planned_at := teguh._planned_after(v_plan, v_plan.created_at);
  v_plan.next_at := v_plan.planned_at;
  v_plan.open_task_ids := '{}';
  insert into teguh.schedules as s
  select v_plan.*
  on conflict (schedule_name) do nothing;
  if not found then
    perform teguh._redraw_template(teguh._grasp_template(v_plan.schedule_name), v_plan);
    return;
  end if;

  perform teguh._replan_template();
  perform teguh._act_template(
    'create_schedule', null, null, null,
    jsonb_build_object('schedule_name', v_plan.schedule_name)
  );
end;
$$;

-- Change a locked schedule.  What is the same already stays as it is; what is planned changes only
-- with the times.
create or replace function teguh._redraw_template(p_old teguh.schedules, p_new teguh.schedules)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_plan teguh.schedules := p_new;
begin
  if (p_old.schedule, p_old.timezone, p_old.starts_at, p_old.ends_at)
      is not distinct from (p_new.schedule, p_new.timezone, p_new.starts_at, p_new.ends_at)
    or p_old.paused_at is not null
  then
    v_plan.planned_at := p_old.planned_at;
    v_plan.next_at := p_old.next_at;
  end if;

  update teguh.schedules as s
  set
    task_name = v_plan.task_name,
    schedule = v_plan.schedule,
    timezone = v_plan.timezone,
    params = v_plan.params,
    task_options = v_plan.task_options,
    catch_up = v_plan.catch_up,
    overlap = v_plan.overlap,
    jitter_seconds = v_plan.jitter_seconds,
    starts_at = v_plan.starts_at,
    ends_at = v_plan.ends_at,
    planned_at = v_plan.planned_at,
    next_at = v_plan.next_at
  where s.schedule_name = v_plan.schedule_name
    and (
      s.task_name, s.schedule, s.timezone, s.params, s.task_options, s.catch_up, s.overlap,
      s.jitter_seconds, s.starts_at, s.ends_at
    ) is distinct from (
      v_plan.task_name, v_plan.schedule, v_plan.timezone, v_plan.params, v_plan.task_options,
      v_plan.catch_up, v_plan.overlap, v_plan.jitter_seconds, v_plan.starts_at, v_plan.ends_at
    );
  if found then
    perform teguh._replan_template();
    perform teguh._act_template(
      'update_schedule', null, null, null,
      jsonb_build_object('schedule_name', v_plan.schedule_name)
    );
  end if;
end;
$$;

-- Create a schedule, or make one what is said here.
create or replace function teguh.create_schedule(
  p_schedule_name text,
  p_queue_name    text,
  p_task_name     text,
  p_schedule      text,
  p_options       jsonb default '{}'
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
  v_plan    teguh.schedules;
begin
  perform teguh._policy(p_queue_name);
  perform teguh._check_keys('schedule options', v_options, array[
    'params', 'task_options', 'timezone', 'catch_up', 'overlap', 'jitter_seconds', 'starts_at',
    'ends_at'
  ]);
  v_plan.schedule_name := p_schedule_name;
  v_plan.queue_name := p_queue_name;
  v_plan.task_name := p_task_name;
  v_plan.schedule := p_schedule;
  execute teguh._call('enroll', p_queue_name, 1)
  using teguh._draw_schedule(v_plan, v_options);
end;
$$;

comment on function teguh.create_schedule(text, text, text, text, jsonb) is
  'Spawns a task at each time that a schedule names (see next_fire_time()), exactly once, by '
  'ticker() or by a claim of the queue. With a name that exists, the schedule becomes what is said '
  'here; if it is that already, nothing changes, nor does its next time unless the times do. '
  'Options: params; task_options (those of spawn_task() that mean no single task or moment); '
  'timezone (default UTC); catch_up, for times that passed while nobody ticked: one (default: once '
  'for all of them, at the last), all, or skip (none, if later than a minute); overlap: allow '
  '(default), or skip (not at a time when a task it has spawned is not over); jitter_seconds '
  '(start up to so much later, always the same for the same time); starts_at; ends_at (itself '
  'excluded). The headers of the task get schedule_name, planned_at and triggered. A spawn that '
  'fails, as in a full queue, is tried again every 10 seconds. Raises TG001 for an unknown queue, '
  'TG004 if the schedule is another queue''s, TG005 for a bad schedule, name or option.';

-- Change parts of a schedule of the queue.
create or replace function teguh._reform_template(p_schedule_name text, p_changes jsonb)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_old teguh.schedules := teguh._grasp_template(p_schedule_name);
  v_new teguh.schedules := v_old;
begin
  perform teguh._check_named(
    substr('_template', 2),
    array(select n.name from teguh._queues_named(p_changes -> 'task_options') as n(name))
  );
  v_new.task_name := case
    when p_changes ? 'task_name' then teguh._text_option(p_changes, 'task_name')
    else v_old.task_name
  end;
  v_new.schedule := case
    when p_changes ? 'schedule' then teguh._text_option(p_changes, 'schedule')
    else v_old.schedule
  end;
  v_new := teguh._draw_schedule(v_new, teguh._schedule_options(v_old) || p_changes);
  v_new.planned_at := teguh._planned_after(v_new, teguh.current_time());
  v_new.next_at := v_new.planned_at;
  perform teguh._redraw_template(v_old, v_new);
end;
$$;

-- Change parts of a schedule.
create or replace function teguh.update_schedule(p_schedule_name text, p_changes jsonb)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text := teguh._scheduled_in(p_schedule_name);
  v_named      text;
begin
  perform teguh._check_keys('schedule changes', p_changes, array[
    'task_name', 'schedule', 'params', 'task_options', 'timezone', 'catch_up', 'overlap',
    'jitter_seconds', 'starts_at', 'ends_at'
  ]);
  for v_named in
    select n.name
    from teguh._queues_named(p_changes -> 'task_options') as n(name)
  loop
    perform teguh._policy(v_named);
    perform teguh._check_spawner(v_queue_name, v_named);
  end loop;
  execute teguh._call('reform', v_queue_name, 2) using p_schedule_name, p_changes;
end;
$$;

comment on function teguh.update_schedule(text, jsonb) is
  'Sets the parts given of a schedule and leaves the others: task_name, schedule, and the options '
  'of create_schedule(); null sets an option back to its default. When the times change, the next '
  'one is looked for from now on. Raises TG008 for an unknown schedule, TG005 for a bad change.';

-- Pause, resume or drop a schedule of the queue.  Paused, it has no next time; resumed, it has the
-- next from then on.
create or replace function teguh._steer_template(
  p_deed          text,
  p_schedule_name text,
  p_reason        text
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now  timestamptz := teguh.current_time();
  v_plan teguh.schedules := teguh._grasp_template(p_schedule_name);
begin
  if p_deed = 'drop_schedule' then
    delete from teguh.schedules as s
    where s.schedule_name = p_schedule_name;
  elsif (p_deed = 'pause_schedule') = (v_plan.paused_at is not null) then
    return;
  else
    update teguh.schedules as s
    set
      paused_at = case p_deed when 'pause_schedule' then v_now end,
      planned_at = p.planned_at,
      next_at = p.planned_at
    from (
      select case p_deed
        when 'resume_schedule' then teguh._planned_after(v_plan, v_now)
      end as planned_at
    ) as p
    where s.schedule_name = p_schedule_name;
  end if;

  if p_deed = 'resume_schedule' then
    perform teguh._replan_template();
  end if;
  perform teguh._act_template(
    p_deed, p_reason, null, null, jsonb_build_object('schedule_name', p_schedule_name)
  );
end;
$$;

-- Pause a schedule.
create or replace function teguh.pause_schedule(
  p_schedule_name text,
  p_reason        text default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  execute teguh._call('steer', teguh._scheduled_in(p_schedule_name), 3)
  using 'pause_schedule', p_schedule_name, p_reason;
end;
$$;

comment on function teguh.pause_schedule(text, text) is
  'Lets a schedule not fire until resume_schedule(). Times that pass meanwhile are not made up '
  'for. One that is paused already stays so. list_actions() shows p_reason. Raises TG008 for an '
  'unknown schedule.';

-- Resume a schedule.
create or replace function teguh.resume_schedule(
  p_schedule_name text,
  p_reason        text default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  execute teguh._call('steer', teguh._scheduled_in(p_schedule_name), 3)
  using 'resume_schedule', p_schedule_name, p_reason;
end;
$$;

comment on function teguh.resume_schedule(text, text) is
  'Lets a paused schedule fire again, from its next time on. One that is not paused stays as it '
  'is. list_actions() shows p_reason. Raises TG008 for an unknown schedule.';

-- Drop a schedule.
create or replace function teguh.drop_schedule(
  p_schedule_name text,
  p_reason        text default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  execute teguh._call('steer', teguh._scheduled_in(p_schedule_name), 3)
  using 'drop_schedule', p_schedule_name, p_reason;
end;
$$;

comment on function teguh.drop_schedule(text, text) is
  'Drops a schedule; tasks that it has spawned stay. list_actions() shows p_reason. Raises TG008 '
  'for an unknown schedule.';

-- Fire a schedule of the queue besides what is planned.
create or replace function teguh._launch_template(p_schedule_name text, p_reason text)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now  timestamptz := teguh.current_time();
  v_plan teguh.schedules := teguh._grasp_template(p_schedule_name);
  v_task record;
begin
  select s.* into v_task
  from teguh._spawn_scheduled(v_plan, v_now, true, v_now) as s;
  update teguh.schedules as s
  set
    last_fired_at = v_now,
    last_task_id = v_task.task_id,
    open_task_ids = case s.overlap
      when 'skip' then teguh._undone_template(s.open_task_ids || s.last_task_id)
      else '{}'
    end
  where s.schedule_name = p_schedule_name;
  perform teguh._act_template(
    'trigger_schedule', p_reason, null, null,
    jsonb_build_object('schedule_name', p_schedule_name, 'task_id', v_task.task_id)
  );
  return query select v_task.task_id, v_task.run_id, v_task.attempt, v_task.created;
end;
$$;

-- Fire a schedule now.
create or replace function teguh.trigger_schedule(
  p_schedule_name text,
  p_reason        text default null
)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('launch', teguh._scheduled_in(p_schedule_name), 2)
  using p_schedule_name, p_reason;
end;
$$;

comment on function teguh.trigger_schedule(text, text) is
  'Spawns the task of a schedule now, besides those that are planned, also while it is paused or '
  'over, and whatever its overlap. The header planned_at is the present moment, triggered is true. '
  'Returns what spawn_task() does. list_actions() shows p_reason. Raises TG008 for an unknown '
  'schedule, and what spawn_task() raises.';

-- The schedules of the queue, or one of them.
create or replace function teguh._diary_template(p_schedule_name text)
  returns table(
    schedule_name   text,
    queue_name      text,
    task_name       text,
    schedule        text,
    options         jsonb,
    created_at      timestamptz,
    paused_at       timestamptz,
    next_fire_at    timestamptz,
    last_planned_at timestamptz,
    last_fired_at   timestamptz,
    last_skipped_at timestamptz,
    last_task_id    uuid,
    last_error      text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  select
    s.schedule_name, s.queue_name, s.task_name, s.schedule,
    teguh._schedule_options(s),
    s.created_at, s.paused_at, s.planned_at, s.last_planned_at, s.last_fired_at,
    s.last_skipped_at, s.last_task_id, s.last_error
  from teguh.schedules as s
  where s.queue_name = substr('_template', 2)
    and s.schedule_name = coalesce(p_schedule_name, s.schedule_name)
  order by s.schedule_name;
end;
$$;

-- Read a schedule.
create or replace function teguh.get_schedule(p_schedule_name text)
  returns table(
    schedule_name   text,
    queue_name      text,
    task_name       text,
    schedule        text,
    options         jsonb,
    created_at      timestamptz,
    paused_at       timestamptz,
    next_fire_at    timestamptz,
    last_planned_at timestamptz,
    last_fired_at   timestamptz,
    last_skipped_at timestamptz,
    last_task_id    uuid,
    last_error      text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('diary', teguh._scheduled_in(p_schedule_name), 1)
  using p_schedule_name;
end;
$$;

comment on function teguh.get_schedule(text) is
  'One row: what the schedule spawns and when; options has all of them, with their defaults. '
  'paused_at is null unless it is paused; next_fire_at is null while it is, and when it is over. '
  'last_planned_at is the last planned time at which it fired, last_fired_at when it did or was '
  'triggered, last_skipped_at the last planned time at which it did not, last_task_id the last '
  'task it spawned, last_error why it could not, null when it could. Raises TG008 for an unknown '
  'schedule.';

-- List schedules.
create or replace function teguh.list_schedules(p_queue_name text default null)
  returns table(
    schedule_name   text,
    queue_name      text,
    task_name       text,
    schedule        text,
    options         jsonb,
    created_at      timestamptz,
    paused_at       timestamptz,
    next_fire_at    timestamptz,
    last_planned_at timestamptz,
    last_fired_at   timestamptz,
    last_skipped_at timestamptz,
    last_task_id    uuid,
    last_error      text
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
      or (p_queue_name is null and teguh._may('diary', q.queue_name))
  loop
    continue when p_queue_name is null and not teguh._share_queue(v_queue_name);
    return query execute teguh._call('diary', v_queue_name, 1) using null::text;
  end loop;
end;
$$;

comment on function teguh.list_schedules(text) is
  'The schedules of a queue (null: of each queue the caller may look at), with the columns of '
  'get_schedule(), by queue and name. Raises TG001 for an unknown queue.';
